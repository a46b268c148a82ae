#!/bin/sh
# demo-database.sh start|stop DIR: a PostgreSQL outside of Isle, for the demo. It
# has a folder, a port and a certificate of its own, and writes to DIR/connections.yaml
# the policy of examples/shop that leads to it. The password of its role storefront
# comes over standard input. DIR is empty or not there, in a folder that the user
# postgres may enter.
set -eu
cd "$(dirname "$0")/.."
dir=$2
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
as() { setpriv --reuid postgres --regid postgres --clear-groups -- "$@"; }

if [ "$1" = stop ]; then
	[ ! -e "$dir/data/postmaster.pid" ] || as "$bin/pg_ctl" -D "$dir/data" -m immediate -w stop >/dev/null
	rm -rf "$dir"
	exit
fi

mkdir -p -m 0700 "$dir"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=database.example \
	-addext subjectAltName=IP:127.0.0.1 -keyout "$dir/server.key" -out "$dir/server.crt" 2>/dev/null
chown -R postgres "$dir"
as "$bin/initdb" -D "$dir/data" -U postgres --auth-local=trust --auth-host=scram-sha-256 -E UTF8 --locale=C.UTF-8 --no-sync >/dev/null
port=55432
while ! as "$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w -o "-k $dir -h 127.0.0.1 -p $port -c fsync=off -c ssl=on -c ssl_cert_file=$dir/server.crt -c ssl_key_file=$dir/server.key" start >/dev/null 2>&1; do
	port=$((port + 1))
	[ $port -lt 55532 ] || { cat "$dir/log" >&2; exit 1; }
done
psql -X -q -v ON_ERROR_STOP=1 -h "$dir" -p $port -U postgres -f - <<SQL
create role storefront login password '$(cat)';
create database orders;
\\c orders
create table orders (
	id bigint generated always as identity primary key,
	customer text not null, product text not null, quantity integer not null, price numeric(10, 2) not null,
	created_at timestamptz not null default now());
create table customers (name text primary key, email text not null);
insert into customers select name, lower(name) || '@mail.example' from unnest(array['Ada', 'Barbara', 'Chen', 'Dorothy', 'Edsger', 'Frances']) name;
insert into orders (customer, product, quantity, price, created_at)
	select (array['Ada', 'Barbara', 'Chen', 'Dorothy', 'Edsger', 'Frances'])[1 + i % 6], (array['Walnut desk', 'Reading lamp', 'Oak stool', 'Tea kettle'])[1 + i % 4],
		1 + i % 3, (array[349.00, 59.90, 128.00, 54.30])[1 + i % 4], timestamptz '2024-01-01 08:00Z' + i * interval '73 minutes'
	from generate_series(1, 5000) i;
grant select, insert, update, delete on orders to storefront;
grant select on customers to storefront;
SQL
awk -v port=$port -v crt="$dir/server.crt" '
	/PUT THE CERTIFICATE/ { while ((getline line < crt) > 0) print "        " line; next }
	{ sub(/127\.0\.0\.1:5432/, "127.0.0.1:" port); print }' examples/shop/connections.yaml >"$dir/connections.yaml"
