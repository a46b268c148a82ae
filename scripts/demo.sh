#!/bin/sh
# The demo: brings up examples/shop, sealed, and shows what that means. It has a
# state folder of its own, so it neither needs nor disturbs an installed server,
# and it can be run again and again. KEEP=1 leaves the shop running.
set -eu
cd "$(dirname "$0")/.."
ISLE_STATE=${ISLE_STATE:-${TMPDIR:-/tmp}/isle-demo}
export ISLE_STATE
PATH=$PWD/bin:$PATH

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '  $ %s\n' "$*"; }
ms() { echo $(($(date +%s%N) / 1000000)); }

cleanup() {
	code=$?
	if [ "${KEEP:-0}" != 1 ]; then
		isle down --all >/dev/null 2>&1 || true
		isle server stop >/dev/null 2>&1 || true
	fi
	exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say "1. One file, one command: build what is needed, launch, wait for health"
show "isle up examples/shop"
isle up examples/shop

port=$(isle ls -o json | sed -n 's/.*"host": *\([0-9][0-9]*\).*/\1/p' | head -n 1)
say "2. A real application with a real PostgreSQL behind it"
show "curl http://127.0.0.1:$port/"
curl -fsS "http://127.0.0.1:$port/" | sed -n 's/.*<h1>\(.*\)<\/h1>.*/  \1/p; s/.*<p class="summary">\(.*\)<\/p>.*/  \1/p'
show "isle exec shop -s db -- psql -U postgres -c 'SELECT count(*), sum(total) …'"
isle exec shop -s db -- psql -U postgres -c 'SELECT count(*) AS orders, min(id), max(id) FROM orders' | sed 's/^/  /'

say "3. Sealed: there is no way out but what is granted, and no way to change what was launched"
show "isle exec shop -s web -- python3 -c \"socket.create_connection(('203.0.113.7', 443))\""
isle exec shop -s web -- python3 -c "
import socket
try: socket.create_connection(('203.0.113.7', 443), 5)
except OSError as e: print('  ', e)"
show "isle exec shop -s web -- touch /usr/x"
isle exec shop -s web -- touch /usr/x 2>&1 | sed 's/^/  /' || true
show "isle doors shop"
isle doors shop | sed 's/^/  /'

say "4. Nothing changed, nothing to do"
show "isle up examples/shop"
t0=$(ms)
isle up examples/shop >/dev/null
t1=$(ms)
echo "   the whole command took $((t1 - t0)) ms"

say "5. Where to go from here"
cat <<END
   KEEP=1 make demo                  leave the shop running, then:
   export ISLE_STATE=$ISLE_STATE PATH=$PWD/bin:\$PATH
   isle status shop                  what runs, from which image, using how much
   isle shell shop -s web            look around inside
   isle logs -f shop                 follow what the services say
   isle run --packages python3 -- python3 -c 'print(6 * 7)'
   isle init                         write an isle.yaml for the folder you stand in
END
