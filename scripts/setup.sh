#!/bin/sh
# Installs the Debian packages that Isle and its tests need and that are
# missing: those below, or those named. With all there it does nothing, and asks
# no mirror. It can be run as often as one likes.
set -eu

[ $# -gt 0 ] || set -- crun e2fsprogs xfsprogs iproute2 debian-archive-keyring ca-certificates curl git

missing=
for p in "$@"; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)" = installed ] || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "missing:$missing" >&2
	echo "  next: sudo apt-get install$missing" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
echo "installing$missing"
apt-get install -qq -y --no-install-recommends $missing >/dev/null 2>&1 && exit 0
# The lists may be missing or old.
apt-get update -qq
exec apt-get install -qq -y --no-install-recommends $missing >/dev/null
