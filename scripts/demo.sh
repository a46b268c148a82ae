#!/bin/sh
# The demo: brings up examples/shop, sealed, and shows what that means; then the
# same shop before a database outside, behind the gateway, and releases of that. It has a state folder
# of its own, so it neither needs nor disturbs an installed server, and it can be
# run again and again. KEEP=1 leaves what it made running.
set -eu
cd "$(dirname "$0")/.."
ISLE_STATE=${ISLE_STATE:-${TMPDIR:-/tmp}/isle-demo}
export ISLE_STATE
PATH=$PWD/bin:$PATH
work=$ISLE_STATE.shop
# What the server and its clients remember of the audit log, and the server's keys, go with the state.
ISLE_CHECKPOINTS=$ISLE_STATE.seen XDG_STATE_HOME=$ISLE_STATE.seen ISLE_KEYS=$ISLE_STATE.keys
export ISLE_CHECKPOINTS XDG_STATE_HOME ISLE_KEYS
[ -e "$ISLE_STATE" ] || rm -rf "$ISLE_STATE.seen" "$ISLE_STATE.keys"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '  $ %s\n' "$*"; }
ms() { echo $(($(date +%s%N) / 1000000)); }
field() { sed -n "s/.*\"$1\": \"\(.*\)\".*/\1/p" | head -n 1; }
database() { [ ! -s "$work.db" ] || scripts/demo-database.sh stop "$(cat "$work.db")" && rm -f "$work.db"; }

cleanup() {
	code=$?
	if [ "${KEEP:-0}" != 1 ]; then
		isle down --all >/dev/null 2>&1 || true
		isle server stop >/dev/null 2>&1 || true
		database || true
		rm -rf "$work"
	fi
	exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# A copy of the example, so that the demo may change its source.
rm -rf "$work"
cp -R examples/shop "$work"

say "1. One file, one command: lock, build, launch, wait for health"
show "isle up shop"
t0=$(ms)
isle up "$work"
t1=$(ms)

port=$(isle status shop -o json | sed -n 's/.*"host": *\([0-9][0-9]*\).*/\1/p' | head -n 1)
say "2. A real application with a real PostgreSQL behind it"
show "curl http://127.0.0.1:$port/"
curl -fsS "http://127.0.0.1:$port/" | sed -n 's/.*<h1>\(.*\)<\/h1><span[^>]*>\(.*\)<\/span>.*/   \1: \2/p'
show "curl -d customer='Ada Lovelace' -d product=… http://127.0.0.1:$port/orders"
curl -fsS -o /dev/null -d 'customer=Ada Lovelace' -d 'product=Analytical engine' -d quantity=1 -d price=99.50 "http://127.0.0.1:$port/orders"
show "isle exec shop -s db -- psql -h localhost -U postgres -c 'SELECT … FROM orders …'"
isle exec shop -s db -- psql -h localhost -U postgres -c 'SELECT id, customer, product, price FROM orders ORDER BY id DESC LIMIT 3' | sed 's/^/  /'

say "3. Sealed: no way out but what is granted, and no way to change what was launched"
show "isle exec shop -s web -- python3 -c \"socket.create_connection(('203.0.113.7', 443))\""
isle exec shop -s web -- python3 -c "
import socket
try: socket.create_connection(('203.0.113.7', 443), 5)
except OSError as e: print('  ', e)"
show "isle exec shop -s web -- touch /usr/x"
isle exec shop -s web -- touch /usr/x 2>&1 | sed 's/^/   /' || true
show "isle doors shop"
isle doors shop | sed 's/^/   /'

say "4. A change replaces what it concerns, and nothing else"
show "sed -i 's/<h1>Orders/<h1>Orders of today/' app/shop.py; isle up"
sed -i 's/<h1>Orders/<h1>Orders of today/' "$work/app/shop.py"
t2=$(ms)
isle up "$work"
t3=$(ms)
curl -fsS "http://127.0.0.1:$port/" | sed -n 's/.*<h1>\(.*\)<\/h1><span[^>]*>\(.*\)<\/span>.*/   \1: \2/p'

say "5. Nothing changed, nothing to do"
show "isle up"
t4=$(ms)
isle up "$work" >/dev/null 2>&1
t5=$(ms)
t6=$(ms)
isle exec shop -s web -- true
t7=$(ms)

say "6. Three running copies of it, data included, in a blink"
orders() { isle exec "$1" -s db -- psql -h localhost -U postgres -Atc 'SELECT count(*) FROM orders' 2>&1 | sed "s/^/   $1: /; s/ERROR:  //" || true; }
show "isle fork shop -n 3"
f0=$(ms)
isle fork shop -n 3
f1=$(ms)
show "isle exec shop-f1 -s db -- psql -h localhost -U postgres -c 'DROP TABLE orders CASCADE'"
isle exec shop-f1 -s db -- psql -h localhost -U postgres -c 'DROP TABLE orders CASCADE' 2>&1 | sed 's/^/   /'
show "isle exec … -s db -- psql -h localhost -U postgres -Atc 'SELECT count(*) FROM orders'"
for e in shop shop-f1 shop-f2 shop-f3; do orders $e; done
show "isle tree"
isle tree | sed 's/^/   /'
isle down shop-f1 shop-f2 shop-f3 --volumes >/dev/null 2>&1

since=$(date -u +%FT%TZ)
say "7. A database outside, behind a door: no address, user, password or TLS inside"
database
# It runs as postgres, and so in a folder that postgres may enter.
where=$(mktemp -d /tmp/isle-demo-db.XXXXXX)
echo "$where" >"$work.db"
secret=$(openssl rand -hex 24)
printf %s "$secret" | scripts/demo-database.sh start "$where"
show "isle secret set orders-db                        # typed unseen, or over standard input; never given back"
printf %s "$secret" | isle secret set orders-db | sed 's/^/   /'
show "isle apply --document shop -f connections.yaml   # what orders-db is, who may, what waits for a human"
isle apply --document shop -f "$where/connections.yaml" | sed 's/^/   /'
show "isle up storefront.yaml                          # uses: [orders-db]"
isle up "$work/storefront.yaml"
page=$(isle status storefront -o json | sed -n 's/.*"host": *\([0-9][0-9]*\).*/\1/p' | head -n 1)
show "curl http://127.0.0.1:$page/"
curl -fsS "http://127.0.0.1:$page/" | sed -n 's/.*<h1>\(.*\)<\/h1><span[^>]*>\(.*\)<\/span>.*/   \1: \2/p'
inside() {
	show "isle exec storefront -- psql -h orders-db -c '$1'"
	isle exec storefront -- psql -h orders-db -c "$1" 2>&1 | sed 's/^/   /'
}
inside 'SELECT name, email FROM customers LIMIT 3'
inside 'DELETE FROM orders'

say "8. The password is nowhere inside"
instance=$(isle status storefront -o json | field instance)
show "go run ./test/seek $instance orders-db <secret   # from outside, as root, through all that is inside"
printf %s "$secret" | ${GO:-go} run ./test/seek "$instance" orders-db | sed 's/^/   /'

say "9. A human in the loop: a change waits on its connection"
show "isle exec storefront -- psql -h orders-db -c 'UPDATE orders SET quantity = 2 WHERE id = 42' &"
isle exec storefront -- psql -h orders-db -c 'UPDATE orders SET quantity = 2 WHERE id = 42' >"$work/update" 2>&1 &
update=$!
tries=0
until grep -q HINT "$work/update" && request=$(isle approvals -o json | field id) && [ -n "$request" ]; do
	tries=$((tries + 1))
	[ $tries -lt 100 ] || { cat "$work/update" >&2; exit 1; }
	sleep 0.1
done
sed 's/^/   /' "$work/update"
show "isle doors storefront"
isle doors storefront | sed 's/^/   /'
show "isle approvals show $request"
isle approvals show "$request" | sed -n '/^setting/!s/^/   /p'
hash=$(isle approvals show "$request" -o json | field hash)
told=$(wc -l <"$work/update")
show "isle approvals approve $request --hash $(printf %.15s… "$hash")   # what was read is what is approved"
isle approvals approve "$request" --hash "$hash" | sed 's/^/   /'
wait "$update"
show "fg"
sed "1,${told}d; s/^/   /" "$work/update"

say "10. Released: the same digest, switched without a failed request, and back in an instant"
release() { isle release create "$work/storefront.yaml" 2>&1 | tee /dev/stderr | sed -n 's/^release \([0-9a-f]*\) .*/\1/p'; }
commit() { (cd "$work" && git add -A && git -c user.name=demo -c user.email=demo@example.com commit -q -m "$1"); }
show "git commit -am 'orders of today'"
(cd "$work" && git init -q && printf '/update\n/said\n/asked\n/enough\n/*.release\n' >.gitignore)
commit 'orders of today'
show "isle release create storefront.yaml              # what runs, sealed and signed, under one digest"
first=$(release 2>"$work/said"); grep '^release' "$work/said" | sed 's/^/   /'
show "isle promote storefront --to testing --release $first; isle up --release storefront@testing"
isle promote storefront --to testing --release "$first" 2>/dev/null | sed 's/^/   /'
isle up --release storefront@testing >/dev/null 2>&1
show "sed -i 's/<h1>Orders of today/<h1>Orders, newest first/' app/shop.py; isle lock storefront.yaml; git commit -am 'newest first'; isle release create storefront.yaml"
sed -i 's/<h1>Orders of today/<h1>Orders, newest first/' "$work/app/shop.py"
isle lock "$work/storefront.yaml" >/dev/null 2>&1
commit 'newest first'
second=$(release 2>"$work/said"); grep '^release' "$work/said" | sed 's/^/   /'
isle release clear storefront@testing "$second" >/dev/null 2>&1 || true # of an earlier demo
heading() { curl -fsS "http://127.0.0.1:$page/" | sed -n 's/.*<h1>\(.*\)<\/h1>.*/   the page says: \1/p'; }
(while [ ! -e "$work/enough" ]; do curl -fsS -o /dev/null "http://127.0.0.1:$page/healthz" 2>/dev/null && echo answered || echo failed; done >"$work/asked") &
asking=$!
show "isle promote storefront --to testing --release $second     # while somebody asks all the time"
t8=$(ms)
isle promote storefront --to testing --release "$second" 2>/dev/null | sed 's/^/   /'
t9=$(ms)
heading
show "isle rollback storefront@testing -m 'the oldest were read first'"
t10=$(ms)
isle rollback storefront@testing -m 'the oldest were read first' 2>/dev/null | sed 's/^/   /'
t11=$(ms)
heading
touch "$work/enough"
wait $asking
echo "   $(grep -c answered "$work/asked") requests answered meanwhile, $(grep -c failed "$work/asked" || true) failed"
show "isle promote storefront --to testing --release $second     # nothing brings it back before a person has cleared it"
isle promote storefront --to testing --release "$second" 2>&1 | sed 's/^/   /' || true
show "isle release clear storefront@testing $second          # it is known why by now"
isle release clear storefront@testing "$second" | sed 's/^/   /'
show "isle drift storefront                            # what runs is what was released"
isle drift storefront | sed 's/^/   /'
show "isle history storefront@testing --limit 6        # the last line first; each is an entry of the audit log"
isle history storefront@testing --limit 6 | cut -c 1-170 | sed 's/^/   /'
show "isle release export $first page.release; isle verify page.release --key …     # asks no server and nobody else"
isle release export "$first" "$work/page.release" >/dev/null 2>&1
isle verify "$work/page.release" --key "$(isle release trust -o json | field key)" --state /nonexistent | sed 's/^/   /'

say "11. All of it is written down"
show "isle audit search --resource connection:orders-db --since $since"
isle audit search --resource connection:orders-db --since "$since" | grep -v ' session:\| approval:read' | cut -c 1-170 | sed 's/^/   /'
session=$(isle approvals show "$request" -o json | field session)
show "isle sessions replay $session"
isle sessions replay "$session" | cut -c 1-120 | sed 's/^/   /'

say "In short"
cat <<END
   $(printf '%6d' $((t1 - t0))) ms   up, building whatever was not built yet
   $(printf '%6d' $((t3 - t2))) ms   up after a change: web rebuilt, replaced and healthy, data kept
   $(printf '%6d' $((t5 - t4))) ms   up with nothing to do
   $(printf '%6d' $((t7 - t6))) ms   exec of a command inside
   $(printf '%6d' $((f1 - f0))) ms   three forks of the running shop, each with its own copy of the data, up and healthy
   $(printf '%6d' $((t9 - t8))) ms   promotion: another release launched beside what serves, healthy, and in its place
   $(printf '%6d' $((t11 - t10))) ms   rollback to what was kept

Where to go from here:
   KEEP=1 make demo                  leaves the shop running; then
   export ISLE_STATE=$ISLE_STATE ISLE_CHECKPOINTS=$ISLE_CHECKPOINTS ISLE_KEYS=$ISLE_KEYS XDG_STATE_HOME=$XDG_STATE_HOME PATH=$PWD/bin:\$PATH
   isle status shop                  what runs, from which image, using how much
   isle shell shop -s web            look around inside
   isle logs shop -f                 follow what the services say
   isle release stages               what each stage points at, since when, by whom
   isle connect orders-db            the same database as yourself, under the same policy and masks
   isle run --packages python3 -- python3 -c 'print(6 * 7)'
   isle init                         write an isle.yaml for the folder you stand in
END
