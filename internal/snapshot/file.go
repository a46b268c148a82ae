package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/seal"
)

// A local is what lies in the folder of a snapshot or draft and is of this
// machine only.
type local struct {
	Volumes map[string]localVolume `json:"volumes"`
	// Stamps are of files whose content was hashed, by Volume.Name, or by "memory/"
	// and the name. They are hints: without one a file is hashed again.
	Stamps map[string]stamp `json:"stamps,omitempty"`
}

func readLocal(dir string) (l local, err error) {
	b, err := seal.Read(filepath.Join(dir, fileLocal), MaxManifest)
	if err != nil {
		return l, err
	}
	return l, json.Unmarshal(b, &l)
}

func (l local) write(dir string) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return seal.Write(filepath.Join(dir, fileLocal), b)
}

// A stamp tells whether a file is the one that was hashed. Writing to a file,
// replacing it or changing its times or mode all change the stamp: the kernel
// sets ctime, and no system call sets it back.
type stamp struct {
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	Size   int64  `json:"size"`
	Mtime  int64  `json:"mtime"` // nanoseconds
	Ctime  int64  `json:"ctime"` // nanoseconds
}

func stampOf(f *os.File) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return stamp{}, err
	}
	return stamp{Device: st.Dev, Inode: st.Ino, Size: st.Size, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano()}, nil
}

// usedBelow is how many bytes the files below a folder occupy on disk.
func usedBelow(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // what cannot be seen is not counted
		}
		if fi, err := e.Info(); err == nil && e.Type().IsRegular() {
			if st, ok := fi.Sys().(*syscall.Stat_t); ok {
				n += st.Blocks * 512
			}
		}
		return nil
	})
	return n
}

// diskError gives an error of the file system its code: a full disk is Exhausted
// and says how to make room.
func diskError(what string, err error) error {
	if err == nil {
		return nil
	}
	if known := new(isle.Error); errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return isle.Errorf(isle.Exhausted, "no space left to %s: %w", what, err).WithHint("remove snapshots with `isle snapshot rm`, or free what nothing uses with `isle gc`; nothing half-made is left")
	}
	return isle.Errorf(isle.Unavailable, "cannot %s: %w", what, err)
}
