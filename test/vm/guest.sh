#!/bin/busybox sh
# shellcheck shell=dash
# Runs as PID 1 of the virtual machine: the smoke test itself. Each thing seen is
# a line "SMOKE …" on the console, where the test on the outside reads it.
bb=/bin/busybox
$bb --install -s /bin
export PATH=/usr/local/bin:/usr/bin:/bin:/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
ip link set lo up 2>/dev/null || ifconfig lo up
ln -sf /bin/modprobe /sbin/modprobe
for m in loop erofs overlay veth nf_tables nfnetlink_log; do modprobe $m; done

finish() {
	[ "$1" = 0 ] || { echo "SMOKE failed: $2"; tail -n 40 /var/lib/isle/server.log 2>/dev/null; }
	isle server stop >/dev/null 2>&1
	sync
	poweroff -f
	sleep 60
}

# plain runs a command without a terminal, so that it writes plain lines.
plain() {
	"$@" >/tmp/out 2>&1
	code=$?
	cat /tmp/out
	return $code
}

echo "SMOKE kernel $(uname -r)"
echo "SMOKE $(stat -f -c %T /sys/fs/cgroup | sed 's/UNKNOWN/cgroup2fs/')"
grep -q ' /sys/fs/cgroup cgroup2 ' /proc/mounts && echo "SMOKE cgroup2fs"
before=$(wc -l </proc/mounts)
cd /root/smoke || exit 1
plain isle doctor
plain isle lock import packages.tar || finish 1 "lock import"
plain isle up --locked || finish 1 "up"
[ "$(isle exec smoke -- cat /built)" = built ] && echo "SMOKE exec inside" || finish 1 "exec"
isle exec smoke -- touch /usr/x 2>&1 | grep -q "Read-only" && echo "SMOKE read-only" || finish 1 "the root can be written"
isle exec smoke -- sh -c 'echo kept > /data/x' || finish 1 "the volume cannot be written"
isle exec smoke -- bash -c 'exec 3<>/dev/tcp/203.0.113.1/80' 2>&1 | grep -q refused && echo "SMOKE refused" || finish 1 "a connection to the outside was not refused"
isle doors smoke | grep -q 203.0.113.1 || finish 1 "the refusal is not recorded"
plain isle down smoke && echo "SMOKE down" || finish 1 "down"
plain isle up --locked && [ "$(isle exec smoke -- cat /data/x)" = kept ] || finish 1 "the volume was not kept"
plain isle down smoke --volumes || finish 1 "down --volumes"
isle server stop
after=$(wc -l </proc/mounts)
[ "$before" = "$after" ] && [ -z "$(losetup -a)" ] && [ -z "$(ls -d /sys/fs/cgroup/isle*/*/ 2>/dev/null)" ] && echo "SMOKE nothing left" ||
	{ cat /proc/mounts; losetup -a; find /sys/fs/cgroup -maxdepth 2 -type d; finish 1 "something is left"; }
echo "SMOKE OK"
finish 0
