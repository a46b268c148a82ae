#!/bin/sh
# As that of the image everybody uses.
set -e
case $1 in -*|*.conf) set -- redis-server "$@" ;; esac
if [ "$1" = redis-server ] && [ "$(id -u)" = 0 ]; then
	chown -R redis .
	exec setpriv --reuid=redis --regid=redis --clear-groups "$0" "$@"
fi
[ "$1" != redis-server ] || set -- "$@" --protected-mode no
exec "$@"
