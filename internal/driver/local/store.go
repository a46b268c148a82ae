package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"isle"
)

// A store is a file system with reflinks on one sparse file, for a state folder
// whose own file system has none: volumes in it are cloned in no time. It is
// mounted nowhere: the driver holds the mount as a file descriptor, and nobody
// else sees it.
//
// When the server ends, that mount goes, but a launch that runs on has the loop
// device of its volume, whose file is in the store: so the store's file system
// and its own loop device stay. Who opens the store then takes that device. The
// file must never have a second one, because two file systems on one file
// destroy it; a flock that the device holds sees to that.
type store struct {
	dir   string // of the state's volumes
	kinds []storeKind
	fault func(point string)

	mu      sync.Mutex
	mount   *os.File // the mount; nil while there is none
	failed  error    // why a store that is there could not be opened
	settled bool     // whether one is to be made is decided
}

// A storeKind is a file system that a store can have.
type storeKind struct {
	name, tool, pkg string
	format          []string // arguments of the tool
	options         []string // of the mount
}

// storeKinds are the kinds, best first.
func storeKinds() []storeKind {
	return []storeKind{
		{
			name: "xfs", tool: "mkfs.xfs", pkg: "xfsprogs",
			// 64 MiB is the smallest log. It is given its blocks here, so that a full
			// disk never stops it.
			format:  []string{"-q", "-f", "-K", "-m", "reflink=1", "-l", "size=64m"},
			options: []string{"nouuid", "discard"}, // nouuid: a copy of a state folder is as good
		},
		{
			name: "btrfs", tool: "mkfs.btrfs", pkg: "btrfs-progs",
			format:  []string{"-q", "-f", "-K"},
			options: []string{"nodatacow", "discard=async"},
		},
	}
}

func (s *store) path(k storeKind) string { return filepath.Join(s.dir, "store."+k.name) }

// root is the path of the store's folder, for this process; false, where there
// is no store.
func (s *store) root() (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mount == nil {
		return "", false
	}
	return fdPath(s.mount), true
}

// open opens the store if there is one.
func (s *store) open() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.kinds {
		if _, err := os.Lstat(s.path(k)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		s.mount, s.failed = s.take(k)
		return s.failed
	}
	return nil
}

// broken is why a store that is there could not be opened.
func (s *store) broken() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// minStoreSpace is how many bytes must be free on the disk for a store to be
// made, which takes 64 MiB itself.
const minStoreSpace = 1 << 30

// prepare makes the store if there is none, the file system of the folder has no
// reflinks and the machine can. To have it before the first volume, and not for
// the first clone, spares that one a copy of the whole volume. The error tells
// that there is one and it can't be opened.
func (s *store) prepare(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return s.failed
	}
	if s.mount != nil || s.settled {
		return nil
	}
	if has, err := reflinks(s.dir); err == nil && has {
		s.settled = true
		return nil
	}
	if free, err := freeSpace(s.dir); err != nil || free < minStoreSpace {
		return nil
	}
	for _, k := range s.kinds {
		tool, ok := k.possible()
		if !ok {
			continue // it may be installed later
		}
		if err := s.make(ctx, k, tool); err != nil {
			return err
		}
		s.mount, s.failed = s.take(k)
		return s.failed
	}
	return nil
}

// possible reports whether this machine can make a store of the kind.
func (k storeKind) possible() (tool string, ok bool) {
	fd, err := unix.Fsopen(k.name, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", false
	}
	unix.Close(fd)
	tool, err = findTool(k.tool)
	return tool, err == nil
}

// make makes the store's file. It appears whole or not at all.
func (s *store) make(ctx context.Context, k storeKind, tool string) (err error) {
	tmp, err := os.OpenFile(s.path(k)+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return isle.Errorf(isle.Unavailable, "make a store for volumes: %w", err)
	}
	defer func() {
		tmp.Close()
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	if err := s.extend(tmp); err != nil {
		return isle.Errorf(isle.Unavailable, "make a store for volumes: %w", err)
	}
	cmd := exec.CommandContext(ctx, tool, append(k.format, "/proc/self/fd/3")...)
	cmd.ExtraFiles = []*os.File{tmp}
	cmd.Env = []string{"PATH=" + defaultPath, "LC_ALL=C"}
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return isle.Errorf(isle.Failed, "make a store for volumes: %s: %s: %w", k.tool, strings.TrimSpace(string(out)), err)
	}
	if err := tmp.Sync(); err != nil {
		return isle.Errorf(isle.Exhausted, "make a store for volumes: %w", err)
	}
	s.fault("store.formatted")
	if err := os.Rename(tmp.Name(), s.path(k)); err != nil {
		return isle.Errorf(isle.Internal, "make a store for volumes: %w", err)
	}
	return syncDir(s.dir)
}

// extend gives the new file its size: four times that of the disk, so that it
// need not grow when the disk does. Only what is written takes space.
func (s *store) extend(f *os.File) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return os.NewSyscallError("statfs", err)
	}
	disk := int64(st.Blocks) * st.Bsize
	// ext4 has no files of 16 TiB.
	err := f.Truncate(max(disk, min(4*disk, 15<<40)))
	if errors.Is(err, unix.EFBIG) {
		err = f.Truncate(disk)
	}
	return err
}

// take mounts the store's file: from the loop device that it has still, or else
// from one of its own.
func (s *store) take(k storeKind) (*os.File, error) {
	broken := func(err error) error {
		return isle.Errorf(isle.Unavailable, "the store of volumes %s can't be opened: %w", s.path(k), err).
			WithHint("volumes in it are safe as long as the file is: look at the kernel's log, and restart the server when it is mended")
	}
	f, err := os.OpenFile(s.path(k), os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, broken(err)
	}
	defer f.Close()
	if err := ours(f); err != nil {
		return nil, broken(err)
	}
	loop, err := s.device(k, f)
	if err != nil {
		return nil, broken(err)
	}
	defer loop.Close() // the mount keeps the device
	fd, err := mountDetached(k.name, loop.Name(), unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOATIME, k.options...)
	if err != nil {
		return nil, broken(err)
	}
	return os.NewFile(uintptr(fd), s.path(k)), nil
}

// device returns the loop device of the store's file, the one that there is
// or a new one.
func (s *store) device(k storeKind, f *os.File) (*os.File, error) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return attachLoop(s.path(k), f, unix.LO_FLAGS_DIRECT_IO)
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, os.NewSyscallError("flock", err)
		}
		if loop, err := findLoop(f); loop != nil || err != nil {
			return loop, err
		}
		if time.Now().After(deadline) {
			return nil, errors.New("another process has it open")
		}
		time.Sleep(5 * time.Millisecond) // the device is about to go
	}
}

// close lets go of the store. One that has no volumes is removed.
func (s *store) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mount == nil {
		return
	}
	entries, err := os.ReadDir(fdPath(s.mount))
	path := s.mount.Name()
	s.mount.Close()
	s.mount = nil
	if err == nil && len(entries) == 0 && os.Remove(path) == nil {
		syncDir(s.dir)
	}
}

// outside counts the volumes that are not in the store.
func (s *store) outside() int {
	files, err := filepath.Glob(filepath.Join(s.dir, "*.ext4"))
	if err != nil {
		return 0
	}
	return len(files)
}

// ours refuses a file that is not as Isle makes them.
func ours(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != 0 || st.Nlink != 1 || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s is not a file that Isle made", f.Name())
	}
	return nil
}

// reflinks reports whether files of the folder can share blocks, by trying it
// with files that have no name and so are never left behind. Where there can be
// none of those (O_TMPFILE of open(2)) there are no reflinks either.
func reflinks(dir string) (bool, error) {
	var files [2]*os.File
	for i := range files {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err == unix.EOPNOTSUPP || err == unix.EISDIR {
			return false, nil
		}
		if err != nil {
			return false, &os.PathError{Op: "open", Path: dir, Err: err}
		}
		files[i] = os.NewFile(uintptr(fd), dir)
		defer files[i].Close()
	}
	if _, err := files[0].Write(make([]byte, 64<<10)); err != nil {
		return false, err
	}
	err := reflink(files[1], files[0])
	if errors.Is(err, errors.ErrUnsupported) {
		return false, nil
	}
	return err == nil, err
}
