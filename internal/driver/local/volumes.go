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
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"isle"
)

// volumeRoot is the folder of a volume's file system that is the volume. The
// file system's own root has lost+found, which initdb refuses.
const volumeRoot = "data"

// minVolume is the smallest size, in bytes, that ext4 with a journal works in.
const minVolume = 8 << 20

// Volumes keeps each volume as one sparse file, ID.ext4, with an ext4 file
// system: its size holds on every file system and on every kernel. No file that
// was not made here is ever mounted: the path comes from the ID alone, and must
// lead to a regular file of root that no one else can write.
//
// The files are in dir where its file system has reflinks. Where it has none
// they are in a store in dir, if the machine can make one, and those that were
// made before stay where they are.
type Volumes struct {
	dir   string
	store *store
	fault func(point string) // Config.Fault
}

// Path is where the file is: of a volume in the store a path of this process
// alone, and until the driver is closed.
func (v *Volumes) Path(id isle.ID) string { return filepath.Join(v.home(id), string(id)+".ext4") }

// home is the folder that has the volume, or would have it.
func (v *Volumes) home(id isle.ID) string {
	inStore, ok := v.store.root()
	if !ok {
		return v.dir
	}
	// It is in dir only if it was made before there was a store.
	for _, name := range []string{string(id) + ".ext4", string(id) + ".ext4.new"} {
		if _, err := os.Lstat(filepath.Join(v.dir, name)); err == nil {
			return v.dir
		}
	}
	return inStore
}

// Create makes an empty volume of size bytes, replacing one that is there. One
// that does not fit on the disk is refused as Exhausted. It is durable when Create returns, and appears whole or not at all.
func (v *Volumes) Create(ctx context.Context, id isle.ID, size int64) (err error) {
	if !id.Valid() {
		return isle.Errorf(isle.Internal, "create volume: %q is no ID", id)
	}
	if size < minVolume {
		return isle.Errorf(isle.Invalid, "a volume of %d bytes is too small: the least is 8 MiB", size).WithHint("raise its size in isle.yaml")
	}
	// A sparse file of any size can be made, and whoever fills one that does not
	// fit takes the disk away from every other volume and from the server.
	if free, err := freeSpace(v.dir); err == nil && size > free {
		return isle.Errorf(isle.Exhausted, "no space left for a volume of %d MiB: %d MiB are free for the state folder", size>>20, free>>20).
			WithHint("give it a smaller size in isle.yaml, or make room, for example with `isle gc`")
	}
	if err := v.store.prepare(ctx); err != nil {
		return err
	}
	if err := v.unused(ctx, id); err != nil {
		return err
	}
	tmp, err := os.OpenFile(v.Path(id)+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return isle.Errorf(isle.Unavailable, "create volume %s: %w", id, err)
	}
	defer func() {
		tmp.Close()
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	if err := tmp.Truncate(size); err != nil {
		return isle.Errorf(isle.Exhausted, "create volume %s of %d bytes: %w", id, size, err)
	}
	if err := v.format(ctx, tmp); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return isle.Errorf(isle.Exhausted, "create volume %s: %w", id, err)
	}
	v.fault("volume.formatted")
	if err := os.Rename(tmp.Name(), v.Path(id)); err != nil {
		return isle.Errorf(isle.Internal, "create volume %s: %w", id, err)
	}
	return syncDir(filepath.Dir(v.Path(id)))
}

// unused returns nil where the volume may be replaced: nobody has it mounted. What
// is mounted would go on living unseen.
func (v *Volumes) unused(ctx context.Context, id isle.ID) error {
	old, err := v.open(id, os.O_RDONLY)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer old.Close()
	return lock(ctx, old, unix.LOCK_EX)
}

// format writes an empty ext4 file system with the folder volumeRoot. Inode
// tables and the journal are left to zeros that a sparse file has already: 1 GiB
// takes 7 ms, and 0.7 MiB of disk.
func (v *Volumes) format(ctx context.Context, file *os.File) error {
	mke2fs, err := findTool("mke2fs")
	if err != nil {
		return isle.Errorf(isle.Unavailable, "volumes need mke2fs, and it is not installed").WithHint("apt-get install e2fsprogs")
	}
	empty := filepath.Join(v.dir, ".empty")
	if err := os.MkdirAll(filepath.Join(empty, volumeRoot), 0o755); err != nil {
		return isle.Errorf(isle.Unavailable, "create a volume: %w", err)
	}
	cmd := exec.CommandContext(ctx, mke2fs, "-q", "-F", "-t", "ext4", "-m", "0", "-I", "256",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0", "-d", empty, "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{file} // its path may be one of this process alone
	cmd.Env = []string{"MKE2FS_SYNC=0", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return isle.Errorf(isle.Failed, "format a volume: mke2fs: %s: %w", strings.TrimSpace(string(out)), err)
	}
	return nil
}

// open opens a volume's file after a look at what it is.
func (v *Volumes) open(id isle.ID, flags int) (*os.File, error) {
	if !id.Valid() {
		return nil, isle.Errorf(isle.Internal, "volume: %q is no ID", id)
	}
	f, err := os.OpenFile(v.Path(id), flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if failed := v.store.broken(); failed != nil {
			return nil, failed
		}
		return nil, isle.Errorf(isle.NotFound, "volume %s is lost: %w", id, err).
			WithHint("put the file back, or give the volume up with: isle down ENV --volumes")
	}
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "volume %s: %w", id, err)
	}
	if err := ours(f); err != nil {
		f.Close()
		return nil, isle.Errorf(isle.Untrusted, "volume %s: %w; it is not mounted", id, err)
	}
	return f, nil
}

// attach mounts the volume at target in the calling thread's mount namespace.
// A volume is mounted once at most: two file systems on one file would destroy
// it. It waits for an earlier launch's mount to go, ten seconds at most.
func (v *Volumes) attach(ctx context.Context, id isle.ID, target string, userns *os.File) error {
	f, err := v.open(id, os.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Mode().Perm()&0o200 == 0 {
		return isle.Errorf(isle.Refused, "volume %s is a snapshot's, which nothing is ever written to", id).WithHint("a fork has a copy of it: isle fork ENV --at SNAPSHOT")
	}
	if err := lock(ctx, f, unix.LOCK_EX); err != nil {
		return err
	}
	loop, err := attachLoop(filepath.Join(v.dir, string(id)+".ext4"), f, unix.LO_FLAGS_DIRECT_IO)
	if err != nil {
		return isle.Errorf(isle.Unavailable, "mount volume %s: %w", id, err)
	}
	defer loop.Close() // the mount keeps the device, and the device the lock
	fd, err := mountDetached("ext4", loop.Name(), unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return isle.Errorf(isle.Unavailable, "mount volume %s: %w", id, err)
	}
	defer unix.Close(fd)
	return attachMapped(fd, target, userns, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
}

// lock takes the volume for the open file (LOCK_EX to write, LOCK_SH to read):
// whoever has it open, a loop device too, holds it until the last descriptor is
// closed, even if this process dies.
func lock(ctx context.Context, f *os.File, how int) error {
	err := flock(ctx, f, how)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errLocked):
		return isle.Errorf(isle.Conflict, "volume %s is in use by another launch", strings.TrimSuffix(filepath.Base(f.Name()), ".ext4")).
			WithHint("end the launch that has it first")
	}
	return isle.Errorf(isle.Internal, "lock volume %s: %w", f.Name(), err)
}

var errLocked = errors.New("somebody has it locked")

// flock waits for a lock on the open file, 10 seconds at most.
func flock(ctx context.Context, f *os.File, how int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) {
			return os.NewSyscallError("flock", err)
		}
		select {
		case <-ctx.Done():
			return errLocked
		case <-time.After(wait):
		}
	}
}

// Delete removes a volume's file. A launch that still has it mounted keeps its
// content until it ends.
func (v *Volumes) Delete(ctx context.Context, id isle.ID) error {
	if !id.Valid() {
		return isle.Errorf(isle.Internal, "delete volume: %q is no ID", id)
	}
	if _, err := os.Lstat(v.Path(id)); err != nil {
		if failed := v.store.broken(); failed != nil {
			return failed
		}
	}
	for _, dir := range v.homes() {
		path := filepath.Join(dir, string(id)+".ext4")
		for _, path := range []string{path, path + ".new"} {
			if err := remove(path); err != nil {
				return isle.Errorf(isle.Internal, "delete volume %s: %w", id, err)
			}
		}
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// remove removes a file, and frees its blocks if nobody has it locked: a file
// system may else do that half a minute later, and who deletes needs the space.
func remove(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err == nil {
		defer f.Close()
	}
	if err := os.Remove(path); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	var st unix.Stat_t
	if err == nil && unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink == 0 &&
		unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		f.Truncate(0) // at the latest it is done when the file is closed
	}
	return nil
}

// homes are the folders that volumes are in.
func (v *Volumes) homes() []string {
	if inStore, ok := v.store.root(); ok {
		return []string{v.dir, inStore}
	}
	return []string{v.dir}
}

// List says which volumes exist.
func (v *Volumes) List(ctx context.Context) ([]isle.ID, error) {
	var ids []isle.ID
	for _, dir := range v.homes() {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("list volumes: %w", err)
		}
		for _, e := range entries {
			// A half-made one counts: who asks deletes what no record names.
			name, _ := strings.CutSuffix(e.Name(), ".new")
			name, ok := strings.CutSuffix(name, ".ext4")
			if id := isle.ID(name); ok && id.Valid() {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// Used is how many bytes the volume occupies on disk. Blocks that it shares with
// clones count for each of them.
func (v *Volumes) Used(id isle.ID) (int64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(v.Path(id), &st); err != nil {
		return 0, isle.Errorf(isle.NotFound, "volume %s: %w", id, err)
	}
	return st.Blocks * 512, nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// findTool looks for an administrator's program, which may not be in a
// server's PATH.
func findTool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}
