package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isle"
)

// The requests of ioctl_fsfreeze (linux/fs.h).
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// A mounted is a volume that a launch has mounted.
type mounted struct {
	file *os.File // of the volume; not locked: the loop device has the lock
	loop *os.File // the device, which stays attached while this is open
	root *os.File // of the volume's file system, through a mount of our own
}

func (m *mounted) close() {
	for _, f := range []*os.File{m.root, m.loop, m.file} {
		if f != nil {
			f.Close()
		}
	}
}

// mounted finds the file system of a volume that a launch has mounted; nil, if
// none has. What a launch can reach has no part in that: the device is found by
// the volume's file, and mounted a second time, which gives the same file
// system, attached nowhere.
func (v *Volumes) mounted(id isle.ID) (*mounted, error) {
	file, err := v.open(id, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	m := &mounted{file: file}
	if m.loop, err = findLoop(file); err == nil && m.loop != nil {
		m.root, err = mountRoot(m.loop.Name())
	}
	if err != nil {
		m.close()
		return nil, isle.Errorf(isle.Unavailable, "volume %s: %w", id, err)
	}
	if m.loop == nil {
		m.close()
		return nil, nil
	}
	return m, nil
}

// mountRoot mounts the ext4 file system of a device, attached nowhere, and opens
// its root. The mount lasts as long as the file is open.
func mountRoot(device string) (*os.File, error) {
	fd, err := mountDetached("ext4", device, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	root, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the root of %s: %w", device, err)
	}
	return os.NewFile(uintptr(root), device), nil
}

// findLoop opens the loop device that the file is attached to; nil if there is
// none. While it is open the device stays attached to it.
func findLoop(backing *os.File) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(backing.Fd()), &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	attached, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	for _, dir := range attached {
		name := "/dev/" + filepath.Base(filepath.Dir(dir))
		dev, err := os.OpenFile(name, os.O_RDONLY, 0)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EBUSY) {
			continue // it was, a moment ago
		}
		if err != nil {
			return nil, err
		}
		info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
		if err == nil && info.Device == st.Dev && info.Inode == st.Ino {
			return dev, nil
		}
		dev.Close()
	}
	return nil, nil
}

// freezeFS holds a file system still, with all that was written to it on disk:
// who writes to it waits until thawFS. It is for everybody's mounts of it.
func freezeFS(root *os.File) error {
	return os.NewSyscallError("fifreeze", ioctlNothing(root, fiFreeze))
}

// thawFS undoes freezeFS. It reports whether it was frozen.
func thawFS(root *os.File) (bool, error) {
	err := ioctlNothing(root, fiThaw)
	if err == unix.EINVAL {
		return false, nil
	}
	return err == nil, os.NewSyscallError("fithaw", err)
}

func ioctlNothing(f *os.File, request uint) error { return unix.IoctlSetInt(int(f.Fd()), request, 0) }

// freezer says which file of the instance's group stops its processes, and what
// stops them and lets them go on: cgroup.freeze of a v2 group, which needs no
// controller, or the v1 controller freezer.
func (c *cgroups) freezer(instance string) (file, stop, run string, err error) {
	if len(c.hierarchies) == 0 {
		return "", "", "", errors.New("no control groups are mounted")
	}
	dir := c.path(instance, "")
	if c.hierarchies[c.naming].v2 {
		return filepath.Join(dir, "cgroup.freeze"), "1", "0", nil
	}
	return filepath.Join(dir, "freezer.state"), "FROZEN", "THAWED", nil
}

// stop stops every process of the instance and returns when all stand still.
func (c *cgroups) stop(ctx context.Context, instance string) error {
	file, stop, _, err := c.freezer(instance)
	if err != nil {
		return err
	}
	if err := write(filepath.Dir(file), filepath.Base(file), stop); err != nil {
		return err
	}
	for wait := 50 * time.Microsecond; ; wait = min(2*wait, 5*time.Millisecond) {
		if c.stopped(file) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("its processes do not stop: %w", context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

// stopped reports whether all processes below the freezer's file stand still.
func (c *cgroups) stopped(file string) bool {
	if filepath.Base(file) == "cgroup.freeze" {
		return readKey(filepath.Dir(file), "cgroup.events", "frozen") == 1
	}
	b, err := os.ReadFile(file)
	return err == nil && strings.TrimSpace(string(b)) == "FROZEN"
}

// goOn lets the instance's processes go on, if they were stopped.
func (c *cgroups) goOn(instance string) error {
	file, _, run, err := c.freezer(instance)
	if err != nil {
		return err
	}
	return write(filepath.Dir(file), filepath.Base(file), run)
}

// maxPause is how long what runs is stopped at most, whatever becomes of the
// server.
const maxPause = 2 * time.Minute

// guardScript thaws file systems and lets a control group go on when its
// standard input ends, or after a time: $1 is the time in seconds, $2 and $3 the
// group's file and what to write to it, and the file systems' roots are the
// descriptors from 3 on, $4 in number.
const guardScript = `timeout "$1" cat
n=3
while [ "$n" -lt $((3 + $4)) ]; do fsfreeze --unfreeze "/proc/self/fd/$n"; n=$((n + 1)); done
echo "$3" >"$2"`

// A guard is a process that lets go on what a capture stopped, should this one
// die or hang in between: a frozen file system would stay so for ever.
type guard struct {
	cmd  *exec.Cmd
	line *os.File // its standard input: closed with this process
}

// newGuard starts a guard of the roots and of the instance's processes. One of a
// server that died may be at work still, and would let go on what is stopped now:
// each holds a lock on the folder of the group, which the next waits for.
func (d *Driver) newGuard(ctx context.Context, instance isle.ID, roots []*os.File) (*guard, error) {
	if _, err := findTool("fsfreeze"); err != nil {
		return nil, isle.Errorf(isle.Unavailable, "volumes that are in use can't be captured: fsfreeze is not installed").WithHint("apt-get install util-linux")
	}
	file, _, run, err := d.groups.freezer(string(instance))
	if err != nil {
		return nil, err
	}
	group, err := os.Open(filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	defer group.Close()
	if err := flock(ctx, group, unix.LOCK_EX); err != nil {
		return nil, isle.Errorf(isle.Unavailable, "capture: the guard of an earlier capture is at work still: %w", err)
	}
	read, line, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	cmd := exec.Command("/bin/sh", "-c", guardScript, "isle-guard", strconv.Itoa(int(maxPause.Seconds())), file, run, strconv.Itoa(len(roots)))
	cmd.Env = []string{"PATH=" + defaultPath}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = read, d.silence, d.silence
	cmd.ExtraFiles = append(slices.Clip(roots), group)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what ends the server's group leaves it
	if err := cmd.Start(); err != nil {
		line.Close()
		return nil, fmt.Errorf("start a guard: %w", err)
	}
	return &guard{cmd: cmd, line: line}, nil
}

// dismiss ends the guard without its doing anything: all goes on already.
func (g *guard) dismiss() {
	unix.Kill(-g.cmd.Process.Pid, unix.SIGKILL) // its session: the shell and what it waits for
	g.cmd.Wait()
	g.line.Close()
}

// act has the guard do its work, now.
func (g *guard) act() {
	g.line.Close()
	g.cmd.Wait()
}

// thawAll lets go on what a server that died had stopped, if its guard was
// killed too. Nothing runs yet that would stop anything.
func (d *Driver) thawAll() {
	for instance := range d.launches() {
		file, _, _, err := d.groups.freezer(string(instance))
		if err != nil {
			return
		}
		if _, err := os.Stat(file); err == nil {
			if err := d.groups.goOn(string(instance)); err != nil {
				d.log.Error("what was stopped for a capture does not go on", "instance", instance, "err", err)
			}
		}
	}
	ids, err := d.volumes.List(context.Background())
	if err != nil {
		return // no folder yet
	}
	for _, id := range ids {
		m, err := d.volumes.mounted(id)
		if err != nil || m == nil {
			continue // whoever wants it is told why
		}
		if frozen, err := thawFS(m.root); err != nil {
			d.log.Error("a volume that was frozen for a capture is still", "volume", id, "err", err)
		} else if frozen {
			d.log.Warn("a volume was still frozen: the server died while it captured it", "volume", id)
		}
		m.close()
	}
}
