package image

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"isle"
)

// A draft is a file on its way into the store: it is written under a name in
// the store's tmp folder, then given its final name in one rename, so that a
// name in the store is always a whole, synced file.
type draft struct {
	file *os.File
	hash hash.Hash // nil where the content is hashed by reading it back
	room room
}

func (s *Store) newDraft() (*draft, error) {
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "draft-")
	if err != nil {
		return nil, storeError("make a file in the image store", err)
	}
	return &draft{file: f, hash: sha256.New(), room: s.room()}, nil
}

// Write appends to the file and to its hash.
func (d *draft) Write(p []byte) (int, error) {
	if err := d.room.take(int64(len(p))); err != nil {
		return 0, err
	}
	n, err := d.file.Write(p)
	d.hash.Write(p[:n])
	return n, err
}

// publish makes the draft durable under its final name, read-only, replacing
// what has that name.
func (d *draft) publish(name string) error {
	if err := d.file.Chmod(0o400); err != nil {
		return err
	}
	if err := d.file.Sync(); err != nil {
		return err
	}
	if err := d.file.Close(); err != nil {
		return err
	}
	if err := os.Rename(d.file.Name(), name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

// discard removes the draft; after publish it does nothing.
func (d *draft) discard() {
	d.file.Close()
	os.Remove(d.file.Name())
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// digestFile hashes a file from its beginning.
func digestFile(f *os.File) (isle.Digest, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	h := sha256.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, 1<<20)); err != nil {
		return "", err
	}
	return isle.DigestFromSum(h.Sum(nil)), nil
}

// storeError gives an error of the file system its code: a full disk is
// Exhausted and says how to make room.
func storeError(what string, err error) error {
	if err == nil {
		return nil
	}
	var known *isle.Error
	if errors.As(err, &known) {
		return err
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return isle.Errorf(isle.Exhausted, "no space left to %s: %w", what, err).WithHint("`isle gc` frees what nothing uses; nothing half-written is left")
	}
	return isle.Errorf(isle.Internal, "%s: %w", what, err)
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

func stampOf(fi os.FileInfo) (stamp, error) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return stamp{}, fmt.Errorf("%s: no stat", fi.Name())
	}
	return stamp{Device: st.Dev, Inode: st.Ino, Size: st.Size, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano()}, nil
}
