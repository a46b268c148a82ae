package local

import (
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// sealedRuntime is a copy of the OCI runtime's program in memory that nobody
// can write to any more. crun and runc make one of themselves at every start,
// and run a second time from it, so that no container can overwrite the
// program through /proc/self/exe (CVE-2019-5736). Started from such a copy they
// see that it is one, and it serves all launches: that takes a tenth off a
// launch.
type sealedRuntime struct {
	mu     sync.Mutex
	of     runtimeStamp
	copies []*os.File // the last is current; earlier ones may be about to be started
	filter string     // what the program made of the driver's seccomp rules, in base64; "" until it did
}

// filterKey is the annotation by which crun takes a seccomp filter that is
// made, instead of the rules that stand beside it for runtimes that don't. To
// make it of the rules is a fifth of what crun does.
const filterKey = "run.oci.seccomp_bpf_data"

// maxFilter is the most instructions, of 8 bytes, that the kernel takes
// (BPF_MAXINSNS).
const maxFilter = 4096 * 8

// known returns the filter that the program made before, "" if it has not.
func (s *sealedRuntime) known() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.filter
}

// learn keeps the filter that crun made for a launch and left in its own
// folder, for the launches after.
func (s *sealedRuntime) learn(folder string) {
	if s.known() != "" {
		return
	}
	b, err := os.ReadFile(filepath.Join(folder, "seccomp.bpf"))
	if err != nil || len(b) == 0 || len(b)%8 != 0 || len(b) > maxFilter {
		return // it goes on making them
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.filter = base64.StdEncoding.EncodeToString(b)
}

// A runtimeStamp tells whether the program is still the one that was copied.
type runtimeStamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// path returns where to execute the copy of the program from, from any process
// of this machine: its path below /proc. Where there can be none that is the
// program's own path, which is as safe and takes longer.
func (s *sealedRuntime) path(program string) string {
	f, err := os.Open(program)
	if err != nil {
		return program // whoever executes it says why not
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return program
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return program
	}
	stamp := runtimeStamp{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.copies) == 0 || s.of != stamp {
		c, err := seal(f)
		if err != nil {
			return program
		}
		s.of, s.copies, s.filter = stamp, append(s.copies, c), ""
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.copies[len(s.copies)-1].Fd())
}

func (s *sealedRuntime) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.copies {
		c.Close()
	}
	s.copies = nil
}

// seal copies f into memory. The seals are exactly those that crun and runc
// look for.
func seal(f *os.File) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	name := filepath.Base(f.Name())
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3 all can be executed
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	c := os.NewFile(uintptr(fd), name)
	if _, err = io.Copy(c, f); err == nil {
		err = c.Chmod(0o500)
	}
	if err == nil {
		_, err = unix.FcntlInt(c.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}
