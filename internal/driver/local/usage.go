package local

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"isle/internal/environment"
)

// usage reads what an instance uses from its groups. A controller that is not
// there leaves its number zero.
func (c *cgroups) usage(instance string) (u environment.Usage) {
	if h, ok := c.with("memory"); ok {
		dir := c.dir(h, instance, "")
		if h.v2 {
			u.Memory = readInt(dir, "memory.current")
			u.OOMKill = int(readKey(dir, "memory.events", "oom_kill"))
		} else {
			u.Memory = readInt(dir, "memory.usage_in_bytes")
			u.OOMKill = int(readKey(dir, "memory.oom_control", "oom_kill"))
		}
	}
	if h, ok := c.with("pids"); ok {
		u.PIDs = int(readInt(c.dir(h, instance, ""), "pids.current"))
	}
	if h, ok := c.with("cpuacct"); ok && !h.v2 {
		u.CPU = time.Duration(readInt(c.dir(h, instance, ""), "cpuacct.usage"))
	} else if h, ok := c.unified(); ok {
		u.CPU = time.Duration(readKey(c.dir(h, instance, ""), "cpu.stat", "usage_usec")) * time.Microsecond
	}
	return u
}

// readInt reads a file that holds one number; 0 where it can't.
func readInt(dir, file string) int64 {
	b, _ := os.ReadFile(filepath.Join(dir, file))
	n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n
}

// readKey reads the number after key in a file of "key number" lines; 0 where
// it can't.
func readKey(dir, file, key string) int64 {
	b, _ := os.ReadFile(filepath.Join(dir, file))
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == key {
			n, _ := strconv.ParseInt(v, 10, 64)
			return n
		}
	}
	return 0
}
