package local

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"isle"
)

// inSandbox are the mounts that every container of a sandbox has, and a spare
// too. The sandbox's kernel makes them, and nobody can add to them from outside.
var inSandbox = []string{"/proc", "/dev", "/dev/pts", "/dev/shm", "/sys", "/tmp", "/run", initPath}

// A top is something in the top folder of an image.
type top struct {
	name string
	tree int    // a mount of it that is attached nowhere; -1 of a link
	to   string // of a link
	uid  int
	gid  int
	dir  bool
}

// furnishSandboxed is furnish for a sandbox. Its kernel has opened the spare's
// root and goes on with that folder, so the image comes into the folder: each
// thing in the image's top folder is mounted, or linked, below it, in the mounts
// of the container's gofer. The kernel opens what is below a folder as it is asked
// for it, and nobody has asked it for any of that yet: all that isle-init has
// touched so far is itself, /proc and /sys. What memory that is captured
// remembers of files are their paths, which are those of any other launch.
func (d *Driver) furnishSandboxed(s *spare, c *container) error {
	mounts, err := c.mounts(d.private)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if !slices.Contains(inSandbox, m.Destination) {
			return errUnfit
		}
	}
	if c.limits.Memory != s.limits.Memory || c.limits.PIDs != s.limits.PIDs {
		return errUnfit // sizes of tmpfs, and a limit of the kernel's own
	}
	if c.userns, err = d.ids.get(c.uidBase); err != nil {
		return err
	}
	defer c.userns.Close()
	return inPrivateMounts(d.private, nil, func() error {
		if err := d.assemble(c); err != nil {
			return err
		}
		tops, err := c.tops()
		defer func() {
			for _, t := range tops {
				if t.tree >= 0 {
					unix.Close(t.tree)
				}
			}
		}()
		if err != nil {
			return err
		}
		for _, t := range tops {
			if err := t.place(s.root); err != nil {
				return fmt.Errorf("make a place for /%s: %w", t.name, err)
			}
		}
		return d.mountTops(s, c, tops)
	})
}

// tops opens all that is in the image's top folder, but for the places of mounts
// that a spare has.
func (c *container) tops() (out []top, err error) {
	var st unix.Stat_t
	if err := unix.Lstat("root", &st); err != nil {
		return nil, err
	}
	if st.Mode&0o7777 != 0o755 || st.Uid != c.uidBase || st.Gid != c.uidBase {
		return nil, errUnfit // the spare's is so, and its kernel knows
	}
	entries, err := os.ReadDir("root")
	if err != nil {
		return nil, err
	}
	if len(entries) > maxTop {
		return nil, errUnfit
	}
	for _, e := range entries {
		if slices.Contains(inSandbox, "/"+e.Name()) {
			continue
		}
		path := "root/" + e.Name()
		if e.Name() == "isle" {
			if inside, err := os.ReadDir(path); err != nil || len(inside) != 1 {
				return out, errors.Join(errUnfit, err)
			}
			continue
		}
		if err := unix.Lstat(path, &st); err != nil {
			return out, err
		}
		t := top{name: e.Name(), tree: -1, uid: int(st.Uid), gid: int(st.Gid), dir: e.IsDir()}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			if t.to, err = os.Readlink(path); err != nil {
				return out, err
			}
		case unix.S_IFDIR, unix.S_IFREG:
			t.tree, err = unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
			if err != nil {
				return out, fmt.Errorf("open %s: %w", path, err)
			}
		default:
			return out, errUnfit
		}
		out = append(out, t)
	}
	return out, nil
}

// place makes a link, or what something can be mounted on, in a folder.
func (t *top) place(root *os.File) error {
	fd := int(root.Fd())
	switch {
	case t.tree < 0:
		if err := unix.Symlinkat(t.to, fd, t.name); err != nil {
			return err
		}
		return unix.Fchownat(fd, t.name, t.uid, t.gid, unix.AT_SYMLINK_NOFOLLOW)
	case t.dir:
		return unix.Mkdirat(fd, t.name, 0o755)
	}
	f, err := unix.Openat(fd, t.name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	return unix.Close(f)
}

// mountTops mounts what has a place in the spare's root now, where the gofer has
// it. The calling thread is in the gofer's mounts afterwards.
func (d *Driver) mountTops(s *spare, c *container, tops []top) error {
	pid := d.process(c.instance, c.id)
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("find the prepared container's root: %w", err)
	}
	defer unix.Close(root)
	if pid != d.process(c.instance, c.id) {
		return errors.New("the prepared container has ended")
	}
	if err := unix.Setns(int(s.pidfd.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the prepared container: %w", err)
	}
	for _, t := range tops {
		if t.tree < 0 {
			continue
		}
		at, err := unix.Openat(root, t.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.MoveMount(t.tree, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
			unix.Close(at)
		}
		if err != nil {
			return fmt.Errorf("mount /%s in the prepared container: %w", t.name, err)
		}
	}
	return nil
}

const (
	// serviceFile, in the folder of a launch that began with a spare, and in that of
	// its memory, holds the service's name. The sandbox's kernel calls its container
	// spareName, and so it does when its memory is brought back.
	serviceFile = "service"
	// maxService bounds what is read of it, in bytes.
	maxService = 256
)

// noteService writes down which service's container is called spareName.
func (d *Driver) noteService(c *container) error {
	return os.WriteFile(filepath.Join(d.dir(c.instance, c.id), serviceFile), []byte(c.service), 0o600)
}

// noteSpare writes into a folder of memory which service's container is called
// spareName there, if one is: one at most in a sandbox.
func (d *Driver) noteSpare(instance isle.ID, launches []isle.ID, memory string) error {
	for _, l := range launches {
		name, err := os.ReadFile(filepath.Join(d.dir(instance, l), serviceFile))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		return writeSync(filepath.Join(memory, serviceFile), name)
	}
	return nil
}

// writeSync writes a file, durably.
func writeSync(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

// spareIn is what noteSpare wrote, "" if it did not.
func spareIn(memory string) (service string, err error) {
	f, err := os.Open(filepath.Join(memory, serviceFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxService))
	return string(b), err
}
