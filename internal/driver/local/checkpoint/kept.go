package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"isle"
)

// ErrKept is the failure of a capture whose sandbox keeps the files that it was
// given: it could change what was captured, and fill the disk, for as long as it
// runs. Whoever sees that ends it.
var ErrKept = errors.New("the sandbox does not let go of the files that its memory is in")

// spare is how much of the disk a capture leaves free for all else, in bytes.
const spare = 256 << 20

// given are the files that a sandbox writes to itself.
func given() []string { return []string{metaFile, pagesFile} }

// watch ends the work of a capture when the disk of a folder is almost full: what
// a sandbox writes has no other bound. It ends with ctx.
func watch(ctx context.Context, dir string, end context.CancelCauseFunc) {
	for tick := time.NewTicker(glance); ; {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err == nil && int64(st.Bavail)*st.Bsize < spare {
			end(isle.Errorf(isle.Exhausted, "no space left for the memory: %d MiB are free", int64(st.Bavail)*st.Bsize>>20).
				WithHint("free space on the disk of the state folder; isle snapshot ls says what snapshots take"))
		}
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
	}
}

// alone returns when nobody has the files of a folder open to write to them any
// more, or with ErrKept after a time. This process must have closed them.
func alone(dir string, patience time.Duration) error {
	for _, name := range given() {
		if err := closed(filepath.Join(dir, name), patience); err != nil {
			return err
		}
	}
	return nil
}

// closed is alone of one file. Linux gives a read lease (fcntl(2), F_SETLEASE) on
// what nobody can write to; a file system that has none can't tell, and is
// believed.
func closed(path string, patience time.Duration) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
		if err == nil {
			_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
			return os.NewSyscallError("unlease", err)
		}
		if !errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: %s", ErrKept, filepath.Base(path))
		}
	}
}

// discard removes what came to nothing. What the sandbox had written takes no
// space any more, even if it keeps it.
func discard(dir string) {
	left, _ := os.ReadDir(dir)
	for _, f := range left {
		at := filepath.Join(dir, f.Name())
		_ = os.Truncate(at, 0)
		_ = os.Remove(at)
	}
}
