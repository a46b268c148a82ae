package local

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"isle/internal/driver/local/gvisor"
)

// A Check is what one thing that the driver needs was found to be.
type Check struct {
	Name    string `json:"name"`
	State   string `json:"state"`   // "ok", "warning" (works with less) or "missing"
	Message string `json:"message"` // what was found
	Remedy  string `json:"remedy,omitempty"`
}

// The states of a Check.
const (
	ok      = "ok"
	warning = "warning"
	missing = "missing"
)

// Examine looks at what a driver of this configuration needs of the machine, by
// trying it where that leaves no trace. It takes no server, and says as much as
// it can to somebody who is not root.
func Examine(c Config) []Check {
	checks := []Check{checkRoot()}
	d, err := assemble(c)
	if err != nil {
		return append(checks, Check{Name: "control groups", State: missing, Message: err.Error(), Remedy: "mount -t cgroup2 none /sys/fs/cgroup"})
	}
	defer d.silence.Close()
	defer d.ids.close()
	checks = append(checks, d.checkRuntime(), checkFileSystem("erofs"), checkFileSystem("overlay"), d.checkIDMap())
	checks = append(checks, d.checkGroups()...)
	return append(checks, checkProc(), checkTool("mke2fs", "e2fsprogs", missing, "volumes can't be made"),
		checkTool("fsfreeze", "util-linux", warning, "no snapshot or fork of what runs with volumes"), checkLoop(), d.checkClones(), d.checkSpace(), d.checkGvisor())
}

// checkGvisor runs a sandbox, which takes a third of a second.
func (d *Driver) checkGvisor() Check {
	c := Check{Name: "gVisor", State: ok, Message: d.given.Runsc}
	switch {
	case d.given.Runsc == "":
		c.State, c.Message = warning, "isle-runsc is neither beside the program nor in ../libexec/isle, so there is no `isolation: gvisor`"
		c.Remedy = "make build, or make install"
		return c
	case gvisor.Pause() == nil:
		c.State, c.Message = warning, "there is no gVisor for "+runtime.GOARCH+", so there is no `isolation: gvisor`"
		c.Remedy = "use `isolation: container`"
		return c
	case os.Geteuid() != 0:
		c.State, c.Message, c.Remedy = warning, "only root can try it", "sudo isle doctor"
		return c
	}
	dir, err := os.MkdirTemp("", "isle-doctor-")
	if err != nil {
		c.State, c.Message, c.Remedy = warning, "it was not tried: "+err.Error(), "make room in "+os.TempDir()
		return c
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), tryTime)
	defer cancel()
	log := filepath.Join(dir, "log")
	args := gvisor.Runtime{Program: d.given.Runsc, Root: dir}.Try(log)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=" + defaultPath}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = d.silence, d.silence, d.silence
	if err := cmd.Run(); err != nil {
		c.State, c.Remedy = warning, "use `isolation: container`, or run the server where ptrace and seccomp are allowed"
		c.Message = "no sandbox starts, so there is no `isolation: gvisor`: " + err.Error()
		if said := lastWords(log); said != "" {
			c.Message += ": " + said
		}
		if scope, _ := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); strings.TrimSpace(string(scope)) == "3" {
			c.Remedy = "boot without kernel.yama.ptrace_scope=3"
		}
	}
	return c
}

// tryTime bounds the sandbox of checkGvisor.
const tryTime = 20 * time.Second

func checkRoot() Check {
	c := Check{Name: "root", State: ok, Message: "the server runs as root"}
	if os.Geteuid() != 0 {
		c.State, c.Message, c.Remedy = missing, "the server does not run as root, which making namespaces and mounts takes", "sudo isle server"
	}
	return c
}

func (d *Driver) checkRuntime() Check {
	path, err := d.findRuntime()
	if err != nil {
		return Check{Name: "OCI runtime", State: missing, Message: "neither crun nor runc is installed", Remedy: "apt-get install crun"}
	}
	c := Check{Name: "OCI runtime", State: ok, Message: path}
	if !d.crun() {
		c.State, c.Message, c.Remedy = warning, path+" takes three times as long to start as crun", "apt-get install crun"
	}
	return c
}

// checkFileSystem opens a file system's context, which loads its module.
func checkFileSystem(name string) Check {
	fd, err := unix.Fsopen(name, unix.FSOPEN_CLOEXEC)
	if err == unix.EPERM {
		return Check{Name: name, State: warning, Message: "only root can try it", Remedy: "sudo isle doctor"}
	}
	if err != nil {
		return Check{Name: name, State: missing, Message: fmt.Sprintf("the kernel has no %s file system: %v", name, err), Remedy: "modprobe " + name}
	}
	unix.Close(fd)
	return Check{Name: name, State: ok, Message: "the kernel has it"}
}

// checkIDMap idmaps a detached tmpfs: where tmpfs can't be (before Linux 6.3),
// the kernel's version has to tell.
func (d *Driver) checkIDMap() Check {
	c := Check{Name: "idmapped mounts", State: ok}
	var u unix.Utsname
	unix.Uname(&u)
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	fmt.Sscanf(release, "%d.%d", &major, &minor)
	c.Message = "Linux " + release
	if major < 5 || major == 5 && minor < 19 {
		c.State, c.Message = missing, "Linux "+release+" can't stack idmapped layers: 5.19 or later is needed"
		c.Remedy = "boot a newer kernel (Debian 12 has 6.1)"
		return c
	}
	ns, err := d.ids.get(d.given.BuildUIDs)
	if err == nil {
		ns.Close()
	} else if os.Geteuid() == 0 {
		c.State, c.Message = missing, err.Error()
		c.Remedy = "sysctl user.max_user_namespaces=15000"
	}
	return c
}

func (d *Driver) checkGroups() []Check {
	kind := "v1"
	if h, v2 := d.groups.unified(); v2 && len(d.groups.hierarchies) == 1 {
		kind = "v2"
	} else if v2 {
		kind = "hybrid, v2 at " + h.mount
	}
	if len(d.groups.hierarchies) == 0 {
		return []Check{{Name: "control groups", State: missing, Message: "no control groups are mounted", Remedy: "mount -t cgroup2 none /sys/fs/cgroup"}}
	}
	checks := []Check{{Name: "control groups", State: ok, Message: kind}}
	var absent []string
	for _, controller := range []string{"cpu", "memory", "pids"} {
		if _, has := d.groups.with(controller); !has {
			absent = append(absent, controller)
		}
	}
	c := Check{Name: "limits", State: ok, Message: "cpu, memory and pids hold"}
	if len(absent) > 0 {
		c.State, c.Message = missing, "no controller for "+strings.Join(absent, ", ")+": those limits would not hold"
		c.Remedy = "boot with cgroup_enable=" + absent[0] + " (kernel command line)"
	}
	return append(checks, c)
}

// checkProc looks for mounts over parts of /proc: the kernel then gives a user
// namespace no proc of its own. It is so inside most containers.
func checkProc() Check {
	c := Check{Name: "proc", State: ok, Message: "fully visible"}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], "/proc/") && fields[4] != "/proc/sys/fs/binfmt_misc" {
			c.State, c.Message = missing, "something is mounted over "+fields[4]+", so a sandbox can't have a /proc of its own"
			c.Remedy = "run the server on the machine itself, or in a container with unmasked proc"
		}
	}
	return c
}

func checkTool(name, pkg, state, without string) Check {
	path, err := findTool(name)
	if err != nil {
		return Check{Name: name, State: state, Message: "not installed: " + without, Remedy: "apt-get install " + pkg}
	}
	return Check{Name: name, State: ok, Message: path}
}

func checkLoop() Check {
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return Check{Name: "loop devices", State: missing, Message: err.Error() + ": volumes can't be mounted", Remedy: "modprobe loop"}
	}
	f.Close()
	return Check{Name: "loop devices", State: ok, Message: "/dev/loop-control"}
}

// checkClones says how volumes are cloned, which a snapshot or fork waits for.
func (d *Driver) checkClones() Check {
	c := Check{Name: "clones", State: ok}
	dir := d.volumes.dir
	for _, err := os.Lstat(dir); err != nil && dir != "/"; _, err = os.Lstat(dir) {
		dir = filepath.Dir(dir)
	}
	s := d.volumes.store
	for _, k := range s.kinds {
		if _, err := os.Lstat(s.path(k)); err == nil {
			c.Message = "volumes are cloned at once, whatever their size: they are in " + s.path(k)
			if n := s.outside(); n > 0 {
				c.Message += fmt.Sprintf("; %d of before it are copied", n)
			}
			return c
		}
	}
	has, err := reflinks(dir)
	if err != nil {
		c.State, c.Message, c.Remedy = warning, "whether volumes are cloned at once or copied is not known: "+err.Error(), "sudo isle doctor"
		return c
	}
	if has {
		c.Message = "volumes are cloned at once, whatever their size: the file system of " + d.state + " has reflinks"
		return c
	}
	const copied = "volumes are copied: a snapshot or fork takes seconds for each GiB, in which the services stand still"
	free, err := freeSpace(dir)
	for _, k := range s.kinds {
		if _, can := k.possible(); can && err == nil && free >= minStoreSpace {
			c.Message = fmt.Sprintf("volumes are cloned at once, whatever their size: a store with %s is made for the first", k.name)
			return c
		} else if can {
			c.State, c.Message, c.Remedy = warning, fmt.Sprintf("%s, until %d MiB are free for a store", copied, minStoreSpace>>20), "isle gc"
			return c
		}
	}
	c.State, c.Message, c.Remedy = warning, copied, "apt-get install "+storeKinds()[0].pkg
	return c
}

// lowSpace is how many free bytes of the state folder are too few to go on.
const lowSpace = 1 << 30

func (d *Driver) checkSpace() Check {
	var st unix.Statfs_t
	for dir := d.state; unix.Statfs(dir, &st) != nil; dir = filepath.Dir(dir) {
		if dir == "/" {
			return Check{Name: "space", State: missing, Message: "the file system of " + d.state + " does not answer", Remedy: "choose another folder with --state"}
		}
	}
	free := int64(st.Bavail) * int64(st.Bsize)
	c := Check{Name: "space", State: ok, Message: fmt.Sprintf("%.1f GiB free in %s", float64(free)/(1<<30), d.state)}
	if free < lowSpace {
		c.State, c.Remedy = warning, "isle gc"
	}
	return c
}
