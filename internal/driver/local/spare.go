package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/environment"
	"isle/internal/spec"
)

var _ environment.Stocker = (*Driver)(nil)

// A spare is a container that was made before anybody knew for what. The
// runtime has done all that it does: namespaces, capabilities, seccomp filter,
// group, /proc and /dev. Its root is a folder in which nothing is but isle-init,
// which waits for its orders. What is missing, the launch puts there: the image
// and what is written to, and the name.
//
// The server holds the end of the pipe that isle-init reads, so a spare ends
// with the server.
type spare struct {
	boot   *os.File    // what isle-init reads its orders from, on the other end
	pidfd  *os.File    // of what the launch is on the host
	root   *os.File    // the folder that is its root, to be written to; nil of the class container
	limits spec.Limits // that its mounts were made for, of the class gvisor
}

func (s *spare) close() {
	for _, f := range []*os.File{s.boot, s.pidfd, s.root} {
		if f != nil {
			f.Close()
		}
	}
}

// errUnfit is why a launch does not take the spare that stands ready for it.
var errUnfit = errors.New("it needs what a prepared container can't be given")

const (
	// spareRoot is where the image's root is mounted in a spare, before it is the
	// root.
	spareRoot = "/root"
	// spareMark is a file in the launch's folder while nobody has given isle-init
	// its orders: it does not count as alive.
	spareMark = "spare"
	// spareName is what a spare is called in a sandbox. No service can be.
	spareName = ".spare"
	// maxTop bounds what may be in the top folder of an image that a spare of the
	// class gvisor is given.
	maxTop = 64
)

// Stock makes what the launches of an instance begin with. Of the class gvisor
// that is its sandbox with a container in it; of the class container it is the
// container of the first launch, where the runtime is crun: runc gives a
// container devices by its control group, which it wants to make itself.
func (d *Driver) Stock(ctx context.Context, s environment.Stock) error {
	if !s.Shared.Instance.Valid() || !s.Launch.Valid() || s.UIDBase == 0 || s.Init == "" {
		return isle.Errorf(isle.Internal, "prepare %q of instance %q: incomplete", s.Launch, s.Shared.Instance)
	}
	if err := d.Prepare(ctx, s.Shared); err != nil {
		return err
	}
	c := containerOf(ctx, environment.Launch{
		Instance: s.Shared.Instance, ID: s.Launch, Isolation: s.Shared.Isolation, Service: spareName, Hostname: "spare",
		UIDBase: s.UIDBase, Network: s.Network, Limits: s.Limits, Init: s.Init,
	})
	c.spare = true
	switch {
	case c.class == classGvisor && d.given.Runsc == "":
		return noRunsc()
	case c.class == classGvisor:
		if err := d.startSandbox(ctx, c); err != nil {
			return err
		}
		// Else runsc looks for the user's home in a root that is still empty, and
		// remembers that nothing is there.
		c.env = append(c.env, "HOME=/")
	case !d.crun():
		d.Warm(s.UIDBase)
		return nil
	}
	defer d.lock(s.Launch)()
	made, err := d.startSpare(c)
	if err == nil {
		d.mu.Lock()
		d.spares[s.Launch] = made
		d.mu.Unlock()
		return nil
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	return errors.Join(err, d.tidy(clean, c.instance, c.id))
}

// startSpare starts a spare's container.
func (d *Driver) startSpare(c *container) (s *spare, err error) {
	dir := d.dir(c.instance, c.id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, spareMark), nil, 0o600); err != nil {
		return nil, err
	}
	read, boot, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s = &spare{boot: boot, limits: c.limits}
	err = d.start(c, func(cmd *exec.Cmd) {
		if c.class == classGvisor {
			cmd.Stdin = read
			return
		}
		cmd.ExtraFiles = []*os.File{read}
	})
	read.Close()
	s.root = c.root
	if err == nil {
		s.pidfd, err = d.openPid(c.instance, c.id)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// openPid opens the launch's isle-init.
func (d *Driver) openPid(instance, launch isle.ID) (*os.File, error) {
	pid := d.process(instance, launch)
	if pid == 0 {
		return nil, errors.New("isle-init has ended")
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open isle-init: %w", err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	if d.process(instance, launch) != pid { // it ended, and the number was given away
		f.Close()
		return nil, errors.New("isle-init has ended")
	}
	return f, nil
}

// takeSpare takes the spare that stands ready for a launch, nil if there is
// none.
func (d *Driver) takeSpare(launch isle.ID) *spare {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.spares[launch]
	delete(d.spares, launch)
	return s
}

// closeSpares ends all spares.
func (d *Driver) closeSpares() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for launch, s := range d.spares {
		s.close()
		delete(d.spares, launch)
	}
}

// launchSpare is launch with a spare, which is used up in any case. It reports
// false where the launch has to go the ordinary way; nothing of the spare is
// left then.
func (d *Driver) launchSpare(s *spare, c *container, boot []byte) (bool, error) {
	defer s.close()
	err := errUnfit
	switch {
	case len(c.caps) > 0 || c.writable > 0:
	case c.class == classGvisor:
		err = d.furnishSandboxed(s, c)
	default:
		err = d.furnish(s, c)
	}
	if err == nil {
		d.given.Fault("launch.furnished")
		err = d.tell(s.boot, boot)
	}
	if err == nil {
		err = d.taken(c)
	}
	if err == nil {
		return true, nil
	}
	level := d.log.Warn
	if errors.Is(err, errUnfit) {
		level = d.log.Debug
	}
	level("a prepared container is not used", "instance", c.instance, "service", c.service, "err", err)
	return false, d.tidy(c.ctx, c.instance, c.id)
}

// taken notes that a spare is a service's now.
func (d *Driver) taken(c *container) error {
	if c.class == classGvisor {
		if err := d.noteService(c); err != nil {
			return err
		}
	}
	return os.Remove(filepath.Join(d.dir(c.instance, c.id), spareMark))
}

// A fitting is a mount that is attached nowhere yet, and where it belongs.
type fitting struct {
	at  string
	fd  int
	own bool // a fresh tmpfs, in which nothing is
}

// furnish makes a spare the launch's container: its root becomes the image's,
// with what is mounted there. Everything is assembled as for an ordinary
// launch, in mounts of the calling thread, carried over into those of the spare,
// in which nobody is but isle-init, and made its root (pivot_root(2)), to which
// the kernel moves isle-init too. The folder that was the root goes.
func (d *Driver) furnish(s *spare, c *container) (err error) {
	if c.userns, err = d.ids.get(c.uidBase); err != nil {
		return err
	}
	defer c.userns.Close()
	mounts, err := c.mounts(d.private)
	if err != nil {
		return err
	}
	return inPrivateMounts(d.private, nil, func() error {
		if err := d.assemble(c); err != nil {
			return err
		}
		root, err := unix.OpenTree(unix.AT_FDCWD, "root", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("open the root: %w", err)
		}
		defer unix.Close(root)
		fittings, err := c.fittings(mounts, d.private)
		defer func() {
			for _, f := range fittings {
				unix.Close(f.fd)
			}
		}()
		if err != nil {
			return err
		}
		if err := unix.Setns(int(s.pidfd.Fd()), unix.CLONE_NEWNS|unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("enter the prepared container: %w", err)
		}
		if err := unix.Sethostname([]byte(c.hostname)); err != nil {
			return fmt.Errorf("name the prepared container: %w", err)
		}
		return c.moveIn(root, fittings)
	})
}

// fittings makes what is mounted in the image's root beside that which a spare
// has already.
func (c *container) fittings(mounts []specs.Mount, private string) (out []fitting, err error) {
	for _, m := range mounts {
		attr := 0
		for option, flag := range map[string]int{"nosuid": unix.MOUNT_ATTR_NOSUID, "nodev": unix.MOUNT_ATTR_NODEV, "noexec": unix.MOUNT_ATTR_NOEXEC} {
			if slices.Contains(m.Options, option) {
				attr |= flag
			}
		}
		switch {
		case slices.Contains(spareHas, m.Destination):
		case m.Type == "tmpfs":
			options := []string{fmt.Sprintf("uid=%d", c.uidBase), fmt.Sprintf("gid=%d", c.uidBase)}
			for _, o := range m.Options {
				if strings.Contains(o, "=") {
					options = append(options, o)
				}
			}
			fd, err := mountDetached("tmpfs", "tmpfs", attr, options...)
			if err != nil {
				return out, err
			}
			out = append(out, fitting{at: m.Destination, fd: fd, own: true})
		default:
			fd, err := unix.OpenTree(unix.AT_FDCWD, strings.TrimPrefix(m.Source, private+"/"), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
			if err != nil {
				return out, fmt.Errorf("open %s: %w", m.Source, err)
			}
			out = append(out, fitting{at: m.Destination, fd: fd})
			if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: uint64(attr)}); err != nil {
				return out, fmt.Errorf("set attributes of %s: %w", m.Source, err)
			}
		}
	}
	return out, nil
}

// spareHas are the mounts that the runtime makes in a spare.
var spareHas = []string{"/proc", "/dev", "/dev/pts", "/sys", initPath}

// moveIn makes the tree root the root of the mount namespace that the calling
// thread is in, whatever the spare has and the fittings on it.
func (c *container) moveIn(root int, fittings []fitting) error {
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, spareRoot, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount the image in the prepared container: %w", err)
	}
	top, err := unix.Open(spareRoot, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: spareRoot, Err: err}
	}
	defer unix.Close(top)
	for _, at := range []string{"/proc", "/dev", "/sys"} {
		to, err := openFolderIn(top, at)
		if err == nil {
			err = unix.MoveMount(unix.AT_FDCWD, at, to, "", unix.MOVE_MOUNT_T_EMPTY_PATH)
			unix.Close(to)
		}
		if err != nil {
			return fmt.Errorf("move %s in the prepared container: %w", at, err)
		}
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS}
	to, err := unix.Openat2(top, initPath, &how)
	if err == nil {
		err = unix.MoveMount(unix.AT_FDCWD, initPath, to, "", unix.MOVE_MOUNT_T_EMPTY_PATH)
		unix.Close(to)
	}
	if err != nil {
		return fmt.Errorf("move isle-init in the prepared container: %w", err)
	}
	own := []string{"/dev"}
	for _, f := range fittings {
		if err := c.attach(top, f, own); err != nil {
			return err
		}
		if f.own {
			own = append(own, f.at)
		}
	}
	if err := unix.Fchdir(top); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root of the prepared container: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the first root of the prepared container: %w", err)
	}
	return nil
}

// attach mounts f below the folder top. Where it belongs into one of own, which
// are tmpfs without a link that could lead elsewhere, its place is made.
func (c *container) attach(top int, f fitting, own []string) error {
	in := slices.IndexFunc(own, func(o string) bool { return strings.HasPrefix(f.at, o+"/") })
	if in < 0 && slices.ContainsFunc(c.volumes, func(v environment.Mount) bool { return strings.HasPrefix(f.at, v.Path+"/") }) {
		return errUnfit // the volume may lack the folder, or have a link there
	}
	if in >= 0 {
		if err := asOwner(int(c.uidBase), func() error { return makePlaces(top, own[in], f.at) }); err != nil {
			return fmt.Errorf("make a place for %s: %w", f.at, err)
		}
	}
	to, err := openFolderIn(top, f.at)
	if err != nil {
		return fmt.Errorf("find the place of %s: %w", f.at, err)
	}
	defer unix.Close(to)
	if err := unix.MoveMount(f.fd, "", to, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s in the prepared container: %w", f.at, err)
	}
	return nil
}

// makePlaces makes the folder at, and those between, in the tmpfs mounted at
// within, which is above it.
func makePlaces(top int, within, at string) error {
	dir, err := openFolderIn(top, within)
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimPrefix(at, within+"/"), "/") {
		err := unix.Mkdirat(dir, name, 0o755)
		if err != nil && err != unix.EEXIST {
			unix.Close(dir)
			return err
		}
		next, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(dir)
		if err != nil {
			return err
		}
		dir = next
	}
	return unix.Close(dir)
}

// assembleSpare makes the root of a spare: places for what the runtime mounts,
// and for the image.
func (d *Driver) assembleSpare(c *container) (err error) {
	dirs := []string{"root", "root/proc", "root/dev", "root/sys", "root/isle", "root" + spareRoot}
	if c.class == classGvisor {
		dirs = append(dirs[:5], "root/tmp", "root/run")
	}
	for _, dir := range dirs {
		if err := ownedDir(dir, int(c.uidBase)); err != nil {
			return err
		}
	}
	for _, file := range []string{"root" + initPath, "init"} {
		if err := os.WriteFile(file, nil, 0o755); err != nil {
			return err
		}
	}
	if c.class == classGvisor {
		if c.root, err = os.Open("root"); err != nil {
			return err
		}
	}
	return bindReadOnly(c.init, "init")
}
