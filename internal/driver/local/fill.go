package local

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"isle"
)

// Fill makes the content of a volume that nobody has mounted anew: an ext4 file
// system of the volume's size with the files of a folder, which has one called
// data. Whoever wants it whole or not at all gives the ID of a fresh volume, and
// deletes that where Fill fails.
func (v *Volumes) Fill(ctx context.Context, id isle.ID, dir string) error {
	mke2fs, err := findTool("mke2fs")
	if err != nil {
		return isle.Errorf(isle.Unavailable, "volumes need mke2fs, and it is not installed").WithHint("apt-get install e2fsprogs")
	}
	if !id.Valid() {
		return isle.Errorf(isle.Internal, "fill a volume: %q is no ID", id)
	}
	f, err := os.OpenFile(v.Path(id), os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return isle.Errorf(isle.Unavailable, "fill volume %s: %w", id, err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return isle.Errorf(isle.Conflict, "fill volume %s: it is in use: %w", id, err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = errors.New("it is no file")
	}
	if err == nil {
		err = errors.Join(f.Truncate(0), f.Truncate(fi.Size())) // nothing of before stays
	}
	if err != nil {
		return isle.Errorf(isle.Unavailable, "fill volume %s: %w", id, err)
	}
	cmd := exec.CommandContext(ctx, mke2fs, "-q", "-F", "-t", "ext4", "-m", "0", "-I", "256",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0", "-d", dir, "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{f} // its path may be one of this process alone
	cmd.Env = []string{"MKE2FS_SYNC=0", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		text := strings.TrimSpace(string(out))
		if strings.Contains(text, "No space left") || strings.Contains(text, "Could not allocate") {
			return isle.Errorf(isle.Exhausted, "fill volume %s: its files do not fit, in it or on the disk: mke2fs: %s: %w", id, text, err)
		}
		return isle.Errorf(isle.Failed, "fill volume %s: mke2fs: %s: %w", id, text, err)
	}
	if err := f.Sync(); err != nil {
		return isle.Errorf(isle.Exhausted, "fill volume %s: %w", id, err)
	}
	return nil
}
