package checkpoint

import (
	"crypto/sha256"
	"io"
	"os"
	"sync"
	"syscall"

	"isle"
)

// Builds knows programs by what is in them. Memory can be brought back only by
// the very build of isle-runsc that it was captured of: the kernel in it is that
// program's.
type Builds struct {
	mu    sync.Mutex
	known map[build]isle.Digest
}

// A build is a file as it is, for as long as nobody writes to it.
type build struct {
	device, inode uint64
	size          int64
	modified      syscall.Timespec
}

// Of returns the digest (SHA-256) of the program at a path. Of a sandbox it is
// that at /proc/PID/exe: what is at the path that it was started from may be a
// newer one by now.
func (b *Builds) Of(path string) (isle.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		return "", os.NewSyscallError("fstat", err)
	}
	key := build{uint64(st.Dev), st.Ino, st.Size, st.Mtim}
	b.mu.Lock()
	defer b.mu.Unlock()
	if d, ok := b.known[key]; ok {
		return d, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	if b.known == nil {
		b.known = make(map[build]isle.Digest)
	}
	d := isle.DigestFromSum(h.Sum(nil))
	b.known[key] = d
	return d, nil
}
