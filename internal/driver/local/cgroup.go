package local

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"isle/internal/spec"
)

// cgroups is the machine's control group hierarchies: one on cgroup v2; on v1
// one for each controller or set of them; on hybrid machines those and a v2
// hierarchy without controllers, which is used for cgroup.kill.
//
// Below each stands the group root, then one group for each instance, which
// has the limits. In one hierarchy alone, the naming one, each launch has a
// group of its own below that; it has no limits and says which processes are
// the launch's. To make a group takes the kernel 0.1 ms, so the seven others of
// a hybrid machine have none.
type cgroups struct {
	root        string // relative to each hierarchy: "isle-1a2b3c4d"
	hierarchies []hierarchy
	naming      int // index of the naming hierarchy: v2 where there is one, else the freezer's
	// all has every mounted hierarchy: runc makes groups in those too that we
	// don't use.
	all []string

	// mu is held for writing where the root itself is removed.
	mu sync.RWMutex
}

type hierarchy struct {
	mount       string
	v2          bool
	controllers []string
}

// wanted are the v1 controllers that we use. name=systemd is among them so
// that systemd doesn't take containers for a part of the server's unit.
var wanted = []string{"cpu", "cpuacct", "memory", "pids", "devices", "freezer", "name=systemd"}

// findCgroups reads what is mounted from /proc/self/mountinfo (proc(5)).
func findCgroups(root string) (*cgroups, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c := &cgroups{root: root}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 6 || len(rest) < 3 {
			continue
		}
		h := hierarchy{mount: fields[4]}
		switch rest[0] {
		case "cgroup":
			for _, o := range strings.Split(rest[2], ",") {
				if slices.Contains(wanted, o) {
					h.controllers = append(h.controllers, o)
				}
			}
		case "cgroup2":
			h.v2 = true
			b, _ := os.ReadFile(filepath.Join(h.mount, "cgroup.controllers"))
			h.controllers = strings.Fields(string(b))
		default:
			continue
		}
		c.all = append(c.all, h.mount)
		if h.v2 || len(h.controllers) > 0 {
			c.hierarchies = append(c.hierarchies, h)
		}
	}
	for i, h := range c.hierarchies {
		if h.v2 || slices.Contains(h.controllers, "freezer") && !c.hierarchies[c.naming].v2 {
			c.naming = i
		}
	}
	return c, lines.Err()
}

// path is the folder of a launch's group in the naming hierarchy.
func (c *cgroups) path(instance, launch string) string {
	if len(c.hierarchies) == 0 {
		return ""
	}
	return c.dir(c.hierarchies[c.naming], instance, launch)
}

// hybrid returns the mount points of v2 hierarchies on a machine that has v1
// ones too.
func (c *cgroups) hybrid() (mounts []string) {
	v1 := false
	for _, h := range c.hierarchies {
		if h.v2 {
			mounts = append(mounts, h.mount)
		} else {
			v1 = true
		}
	}
	if !v1 {
		return nil
	}
	return mounts
}

// with returns the hierarchy that has the controller.
func (c *cgroups) with(controller string) (hierarchy, bool) {
	for _, h := range c.hierarchies {
		if slices.Contains(h.controllers, controller) {
			return h, true
		}
	}
	return hierarchy{}, false
}

// unified returns the v2 hierarchy, with controllers or without.
func (c *cgroups) unified() (hierarchy, bool) {
	for _, h := range c.hierarchies {
		if h.v2 {
			return h, true
		}
	}
	return hierarchy{}, false
}

// dir is the folder of a group in h; launch "" is the instance's.
func (c *cgroups) dir(h hierarchy, instance, launch string) string {
	return filepath.Join(h.mount, c.root, instance, launch)
}

// prepare makes the instance's group everywhere and sets its limits. A v1
// group's devices are left to a runtime that limits them itself: it can't
// where the group above has been limited already.
func (c *cgroups) prepare(instance string, l spec.Limits, devices bool) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, h := range c.hierarchies {
		if h.v2 {
			if err := c.delegate(h); err != nil {
				return err
			}
		}
		dir := c.dir(h, instance, "")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the control group: %w", err)
		}
		if err := h.limit(dir, l); err != nil {
			return err
		}
		if err := h.limitDevices(dir, devices); err != nil {
			return fmt.Errorf("limit devices: %w", err)
		}
	}
	return nil
}

// delegate makes the controllers that h has available to instances' groups.
func (c *cgroups) delegate(h hierarchy) error {
	if err := os.MkdirAll(filepath.Join(h.mount, c.root), 0o755); err != nil {
		return fmt.Errorf("make the control group: %w", err)
	}
	dir := h.mount
	parts := append([]string{""}, strings.Split(c.root, "/")...)
	for _, part := range parts {
		dir = filepath.Join(dir, part)
		on, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
		if err != nil {
			return err
		}
		for _, controller := range []string{"cpu", "memory", "pids"} {
			if !slices.Contains(h.controllers, controller) || slices.Contains(strings.Fields(string(on)), controller) {
				continue
			}
			err := write(dir, "cgroup.subtree_control", "+"+controller)
			if errors.Is(err, unix.EBUSY) {
				// A group that has processes can't give controllers to its
				// children. If they are only this process, it moves aside.
				if err = write(dir, "server/cgroup.procs", strconv.Itoa(os.Getpid())); errors.Is(err, os.ErrNotExist) {
					if err = os.Mkdir(filepath.Join(dir, "server"), 0o755); err == nil {
						err = write(dir, "server/cgroup.procs", strconv.Itoa(os.Getpid()))
					}
				}
				if err == nil {
					err = write(dir, "cgroup.subtree_control", "+"+controller)
				}
			}
			if err != nil {
				return fmt.Errorf("enable the %s controller below %s: %w", controller, dir, err)
			}
		}
	}
	return nil
}

// limit writes the limits into the group dir of h.
func (h hierarchy) limit(dir string, l spec.Limits) error {
	var errs []error
	set := func(controller, file, value string) {
		if slices.Contains(h.controllers, controller) {
			if err := write(dir, file, value); err != nil {
				errs = append(errs, fmt.Errorf("limit %s: %w", controller, err))
			}
		}
	}
	const period = 100_000 // microseconds
	quota := int64(l.CPUs * period)
	if quota > 0 {
		quota = max(quota, 1000) // the kernel's least
		if h.v2 {
			set("cpu", "cpu.max", fmt.Sprintf("%d %d", quota, period))
		} else {
			set("cpu", "cpu.cfs_period_us", strconv.Itoa(period))
			set("cpu", "cpu.cfs_quota_us", strconv.FormatInt(quota, 10))
		}
	}
	if l.PIDs > 0 {
		set("pids", "pids.max", strconv.Itoa(l.PIDs))
	}
	if l.Memory > 0 && slices.Contains(h.controllers, "memory") {
		if err := h.limitMemory(dir, strconv.FormatInt(l.Memory, 10)); err != nil {
			errs = append(errs, fmt.Errorf("limit memory: %w", err))
		}
	}
	return errors.Join(errs...)
}

// limitMemory sets the limit of memory and gives no swap on top.
func (h hierarchy) limitMemory(dir, bytes string) error {
	if h.v2 {
		if _, err := os.Stat(filepath.Join(dir, "memory.swap.max")); err == nil {
			if err := write(dir, "memory.swap.max", "0"); err != nil {
				return err
			}
		}
		return write(dir, "memory.max", bytes)
	}
	const all = "memory.memsw.limit_in_bytes" // memory and swap; never below the limit of memory
	_, err := os.Stat(filepath.Join(dir, all))
	if err != nil {
		return write(dir, "memory.limit_in_bytes", bytes)
	}
	if write(dir, "memory.limit_in_bytes", bytes) == nil {
		return write(dir, all, bytes)
	}
	if err := write(dir, all, bytes); err != nil {
		return err
	}
	return write(dir, "memory.limit_in_bytes", bytes)
}

// An entrance is how a process gets into a launch's groups: it is started in
// one, and writes 0 to the files of the others.
type entrance struct {
	group *os.File // of the naming hierarchy; nil when its file is among files
	files []string
}

// add makes the launch's group. The launch may be followed by a slash and a
// group within the launch's.
//
// A process is started in a v2 group (clone3's CLONE_INTO_CGROUP), but not
// where the group is short of CPU time: the server's other threads wait for
// the start of a process. So on a pure v2 machine, where the naming hierarchy
// has limits, it is started outside if the instance runs other launches.
func (c *cgroups) add(instance, launch string) (*entrance, error) {
	if len(c.hierarchies) == 0 {
		return nil, errors.New("no control groups are mounted")
	}
	dir := c.path(instance, launch)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the launch's control group: %w", err)
	}
	in := &entrance{}
	naming := c.hierarchies[c.naming]
	switch {
	case !naming.v2:
		in.files = append(in.files, filepath.Join(dir, "tasks"))
	case slices.Contains(naming.controllers, "cpu") && c.busy(instance):
		in.files = append(in.files, filepath.Join(dir, "cgroup.procs"))
	default:
		f, err := os.Open(dir)
		if err != nil {
			return nil, err
		}
		in.group = f
	}
	for i, h := range c.hierarchies {
		if i != c.naming {
			in.files = append(in.files, filepath.Join(c.dir(h, instance, ""), "tasks"))
		}
	}
	return in, nil
}

func (in *entrance) close() {
	if in.group != nil {
		in.group.Close()
	}
}

// busy reports whether the instance has processes.
func (c *cgroups) busy(instance string) bool {
	return readKey(c.path(instance, ""), "cgroup.events", "populated") != 0
}

// has reports whether the process runs in the launch's group. A recycled pid
// does not, nor does a process that has ended and was not yet waited for.
func (c *cgroups) has(instance, launch string, pid int) bool {
	proc := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(proc + "/stat")
	if err != nil {
		return false
	}
	// proc_pid_stat(5): the state follows the name, which ends in the last ")".
	if _, state, ok := strings.Cut(string(stat[max(0, bytes.LastIndexByte(stat, ')')):]), ") "); !ok || state == "" || strings.ContainsAny(state[:1], "ZX") {
		return false
	}
	b, err := os.ReadFile(proc + "/cgroup")
	if err != nil {
		return false
	}
	group := "/" + filepath.Join(c.root, instance, launch) + "/"
	for line := range strings.Lines(string(b)) {
		if strings.Contains(strings.TrimSuffix(line, "\n")+"/", group) {
			return true
		}
	}
	return false
}

// procs lists the processes of the launch, those in groups below its group too.
func (c *cgroups) procs(instance, launch string) []int {
	var pids []int
	filepath.WalkDir(c.path(instance, launch), func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return nil
		}
		b, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for _, s := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(s); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// kill ends every process of the launch and returns when none is left.
//
// Where there is a v2 hierarchy cgroup.kill (Linux 5.14) does it at once. On
// v1 alone the group is frozen first, so that it can't fork faster than it is
// killed. Signals go through pidfds after a second look at the group: never to
// a process that has been given the number of one that ended.
func (c *cgroups) kill(ctx context.Context, instance, launch string) error {
	if len(c.hierarchies) == 0 {
		return nil
	}
	dir := c.path(instance, launch)
	var ending []int // a group does not list them from the moment on that their threads end
	for wait := 200 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		pids := c.procs(instance, launch)
		ending = slices.DeleteFunc(ending, func(pid int) bool { return slices.Contains(pids, pid) || !c.has(instance, launch, pid) })
		if len(pids)+len(ending) == 0 {
			return nil
		}
		ending = append(ending, pids...)
		if len(pids) > 0 && write(dir, "cgroup.kill", "1") != nil {
			write(dir, "freezer.state", "FROZEN")
			for _, pid := range pids {
				c.signal(instance, launch, pid)
			}
			write(dir, "freezer.state", "THAWED")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d processes of launch %s are still there: %w", len(ending), launch, context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

func (c *cgroups) signal(instance, launch string, pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if c.has(instance, launch, pid) {
		unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// remove removes a group everywhere; launch "" is the instance's with all that
// is in it. It has no processes any more.
func (c *cgroups) remove(ctx context.Context, instance, launch string) error {
	for _, mount := range c.all {
		if err := removeGroup(ctx, filepath.Join(mount, c.root, instance, launch)); err != nil {
			return err
		}
	}
	return nil
}

// removeRoot removes the root where no instance is in it.
func (c *cgroups) removeRoot() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, mount := range c.all {
		unix.Rmdir(filepath.Join(mount, c.root))
	}
}

// removeGroup removes the group and those in it. The kernel says EBUSY for a
// moment after the last process has gone.
func removeGroup(ctx context.Context, dir string) error {
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() {
				if err := removeGroup(ctx, filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove the control group %s: %w", dir, err)
		case <-time.After(wait):
		}
	}
}

// list returns the launches that have a group, by instance.
func (c *cgroups) list() map[string][]string {
	found := make(map[string][]string)
	for _, mount := range c.all {
		instances, _ := os.ReadDir(filepath.Join(mount, c.root))
		for _, i := range instances {
			if !i.IsDir() {
				continue
			}
			if _, ok := found[i.Name()]; !ok {
				found[i.Name()] = nil
			}
			launches, _ := os.ReadDir(filepath.Join(mount, c.root, i.Name()))
			for _, l := range launches {
				if l.IsDir() && !slices.Contains(found[i.Name()], l.Name()) {
					found[i.Name()] = append(found[i.Name()], l.Name())
				}
			}
		}
	}
	return found
}

// write writes a value into a file of a group, which is there already.
func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
