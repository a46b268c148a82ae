# Once, while /data is empty: a database, its tables, and a role that may use them.
set -eu
initdb -D /data --auth=trust --encoding=UTF8 --locale=C.UTF-8
pg_ctl -D /data -w -o "-c unix_socket_directories=/run/postgresql -c listen_addresses=" start
psql -X -q -v ON_ERROR_STOP=1 -h /run/postgresql -U postgres -f /orders/schema.sql
pg_ctl -D /data -m fast -w stop
