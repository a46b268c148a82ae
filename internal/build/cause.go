package build

import (
	"path"
	"slices"
	"strings"
)

// usualCause says what most often makes a step's file come out otherwise the second
// time, and what to do.
func usualCause(in inputs, file, how string) string {
	if in.Kind != "run" {
		return "this is a fault of isle: please report it with the lock"
	}
	if slices.ContainsFunc(in.Mounts, func(m mountInput) bool { return m.Type == "cache" }) {
		return "the step has a cache mounted, which held something else the second time: copy nothing out of it that is not pinned"
	}
	within := func(dirs ...string) bool {
		return slices.ContainsFunc(dirs, func(d string) bool { return strings.Contains(file, d) })
	}
	ends := func(all ...string) bool {
		return slices.ContainsFunc(all, func(s string) bool { return strings.HasSuffix(file, s) })
	}
	switch {
	case ends(".pyc"):
		return "compiled Python has the time of its source in it: python3 -m compileall --invalidation-mode unchecked-hash"
	case within("/var/log/") || ends(".log"):
		return "a log has times in it: remove it at the end of the step"
	case ends("/machine-id", ".pem", ".key", ".crt") || within("/etc/ssh/ssh_host_"):
		return "an identity or a key is another each time it is made: make it when the service starts, on a volume"
	case ends(".gz", ".tgz", ".tar", ".zip", ".jar", ".whl", ".deb"):
		return "an archive has times and an order in it: gzip -n, tar --sort=name --mtime=@$SOURCE_DATE_EPOCH, zip -X"
	case ends(".a", ".o") || strings.Contains(path.Base(file), ".so"):
		return "a compiler or archiver put a time, a path or an order in it: ar D, -ffile-prefix-map, -Wl,--build-id=none"
	case within("/var/cache/", "/var/lib/apt/", "/.cache/", "/.npm/", "/tmp/", "/run/"):
		return "it is a cache or a scratch file: remove it at the end of the step"
	case ends(".db", ".sqlite", ".sqlite3") || within("/pg_wal/", "/var/lib/postgresql/", "/var/lib/mysql/"):
		return "a database has times and numbers of its own in it: make it when the service starts, on a volume"
	case strings.HasPrefix(how, "only there"):
		return "its name has a time, a random number or a process's number in it, or the step does several things in no order"
	}
	return "the step depends on something that is not locked: a time, a random number, an order"
}
