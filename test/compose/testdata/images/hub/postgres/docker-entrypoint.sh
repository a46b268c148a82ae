#!/bin/sh
# As that of the image everybody uses: it begins as root, owns the data, goes on
# as postgres, and fills an empty database.
set -e
if [ "$(id -u)" = 0 ]; then
	mkdir -p "$PGDATA" /var/run/postgresql
	chown -R postgres:postgres "$PGDATA" /var/run/postgresql
	chmod 700 "$PGDATA"
	exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
case $1 in -*) set -- postgres "$@" ;; esac
if [ "$1" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
	[ -n "$POSTGRES_PASSWORD$POSTGRES_HOST_AUTH_METHOD" ] || { echo "POSTGRES_PASSWORD is not set"; exit 1; }
	user=${POSTGRES_USER:-postgres}
	echo "$POSTGRES_PASSWORD" > /tmp/password
	initdb -D "$PGDATA" --username="$user" --pwfile=/tmp/password --auth-local=trust --auth-host="${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}" > /dev/null
	rm /tmp/password
	echo "host all all all ${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}" >> "$PGDATA/pg_hba.conf"
	pg_ctl -D "$PGDATA" -o "-c listen_addresses='' -p ${PGPORT:-5432}" -w start > /dev/null
	[ "${POSTGRES_DB:-$user}" = postgres ] || createdb -U "$user" "${POSTGRES_DB:-$user}"
	for f in /docker-entrypoint-initdb.d/*.sql; do
		[ ! -e "$f" ] || psql -q -v ON_ERROR_STOP=1 -U "$user" -d "${POSTGRES_DB:-$user}" -f "$f"
	done
	pg_ctl -D "$PGDATA" -m fast -w stop > /dev/null
fi
[ "$1" != postgres ] || set -- "$@" -c "listen_addresses=*"
exec "$@"
