package local

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// layerMounts keeps image layers mounted, but attached nowhere: each is a file
// descriptor of a detached mount, which launches clone. So services that share
// a layer share its pages in memory, and a launch doesn't read a superblock.
// When the server ends the mounts vanish, but for the clones in containers.
type layerMounts struct {
	mu     sync.Mutex
	byPath map[string]*layerMount
	clock  int
}

type layerMount struct {
	fd       int
	loop     string // path of the loop device; "" when the kernel mounts the file itself
	dev, ino uint64
	size     int64
	mtime    unix.Timespec
	used     int
}

// maxLayerMounts bounds how many layers are kept mounted that no launch needs
// right now.
const maxLayerMounts = 256

// attach mounts the layer at path read-only at target, a path in the calling
// thread's mount namespace, with owners shifted by the user namespace.
func (c *layerMounts) attach(path, target string, userns *os.File) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := c.get(path)
	if err != nil {
		return err
	}
	fd, err := unix.OpenTree(m.fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if errors.Is(err, unix.EINVAL) {
		// Before Linux 6.15 a detached mount can't be cloned: mount it again.
		// Through the same loop device the superblock is still shared.
		fd, err = m.again(path)
	}
	if err != nil {
		return fmt.Errorf("clone the mount of layer %s: %w", path, err)
	}
	defer unix.Close(fd)
	return attachMapped(fd, target, userns, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV)
}

// get returns the detached mount of path, made anew if the file is another one
// than it was. The caller holds c.mu.
func (c *layerMounts) get(path string) (*layerMount, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "stat layer", Path: path, Err: err}
	}
	c.clock++
	if m := c.byPath[path]; m != nil {
		if m.dev == st.Dev && m.ino == st.Ino && m.size == st.Size && m.mtime == st.Mtim {
			m.used = c.clock
			return m, nil
		}
		unix.Close(m.fd)
		delete(c.byPath, path)
	}
	m := &layerMount{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, used: c.clock}
	if m.fd, err = mountErofs(fdPath(f)); err != nil {
		// Before Linux 6.12, and on some file systems, EROFS needs a block device.
		loop, loopErr := attachLoop(path, f, unix.LO_FLAGS_READ_ONLY)
		if loopErr != nil {
			return nil, errors.Join(err, loopErr)
		}
		defer loop.Close() // the mount keeps the device until it goes
		m.loop = loop.Name()
		if m.fd, err = mountErofs(m.loop); err != nil {
			return nil, fmt.Errorf("layer %s: %w", path, err)
		}
	}
	if c.byPath == nil {
		c.byPath = make(map[string]*layerMount)
	}
	c.evict()
	c.byPath[path] = m
	return m, nil
}

// again mounts the layer a second time.
func (m *layerMount) again(path string) (int, error) {
	if m.loop != "" {
		return mountErofs(m.loop)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, err
	}
	defer f.Close()
	return mountErofs(fdPath(f))
}

// fdPath names an open file of this process: always short, and the very file,
// whatever is at its path by now.
func fdPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// evict drops the mounts whose file is gone, so that a collected layer frees
// its space, and the longest unused where there are too many.
func (c *layerMounts) evict() {
	oldest := ""
	for path, m := range c.byPath {
		if _, err := os.Lstat(path); err != nil {
			unix.Close(m.fd)
			delete(c.byPath, path)
		} else if oldest == "" || m.used < c.byPath[oldest].used {
			oldest = path
		}
	}
	if len(c.byPath) >= maxLayerMounts {
		unix.Close(c.byPath[oldest].fd)
		delete(c.byPath, oldest)
	}
}

// release lets go of loop devices, which others see. It is for when nothing is
// launched; the next launch attaches them again.
func (c *layerMounts) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for path, m := range c.byPath {
		if m.loop != "" {
			unix.Close(m.fd)
			delete(c.byPath, path)
		}
	}
}

func (c *layerMounts) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for path, m := range c.byPath {
		unix.Close(m.fd)
		delete(c.byPath, path)
	}
}

// mountErofs mounts an EROFS file or block device and returns the descriptor
// of the detached mount.
func mountErofs(source string) (int, error) {
	return mountDetached("erofs", source, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV, "ro")
}

// mountDetached makes a new mount that is attached nowhere. Each option is the
// file system's own, "key" or "key=value"; where the device is mounted already
// they are what they were.
func mountDetached(fstype, source string, attr int, options ...string) (int, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("this kernel has no %s file system: %w", fstype, err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", source); err != nil {
		return -1, fmt.Errorf("mount %s: source: %w", source, err)
	}
	for _, o := range options {
		if key, value, ok := strings.Cut(o, "="); ok {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, o)
		}
		if err != nil {
			return -1, fmt.Errorf("mount %s: %s: %w", source, o, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("mount %s as %s: %w", source, fstype, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w", source, err)
	}
	return fd, nil
}

// attachMapped gives the detached mount fd attributes and an idmapping and
// attaches it at target. Without a user namespace it is not idmapped.
func attachMapped(fd int, target string, userns *os.File, attr uint64) error {
	a := unix.MountAttr{Attr_set: attr}
	if userns != nil {
		a.Attr_set |= unix.MOUNT_ATTR_IDMAP
		a.Userns_fd = uint64(userns.Fd())
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &a); err != nil {
		return fmt.Errorf("idmap the mount for %s: %w", target, err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach a mount at %s: %w", target, err)
	}
	return nil
}

// attachLoop binds a file to a free loop device that detaches by itself when
// the last user (a mount or the returned file) is gone. The path is for the
// device's records only.
//
// The device holds the open file description of backing: a flock on it lasts
// as long as the device, whatever becomes of this process.
//
// With LO_FLAGS_DIRECT_IO the device keeps no pages of its own of what is in
// memory already as pages of the file system on it. Where the file can't be
// written to so the kernel leaves that out. Blocks have 512 bytes in any case:
// left to the kernel, a clone's would have 4096, which a file system of smaller
// blocks does not mount on.
func attachLoop(path string, backing *os.File, flags uint32) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop devices: %w", err)
	}
	defer ctl.Close()
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: 512}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | flags
	mode := os.O_RDWR
	if flags&unix.LO_FLAGS_READ_ONLY != 0 {
		mode = os.O_RDONLY
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], path)
	for try := 0; ; try++ {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		name := "/dev/loop" + strconv.Itoa(n)
		dev, err := os.OpenFile(name, mode, 0)
		if err == nil {
			if err = unix.IoctlLoopConfigure(int(dev.Fd()), &config); err == nil {
				return dev, nil
			}
			dev.Close()
		}
		// Another process took it, or udev has not made the node yet.
		if try >= 200 || !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENXIO) {
			return nil, fmt.Errorf("attach %s to %s: %w", path, name, err)
		}
		time.Sleep(time.Millisecond)
	}
}
