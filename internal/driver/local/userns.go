package local

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// idRange is how many uids and gids an environment has: 0 to 65535 inside are
// UIDBase to UIDBase+65535 on the host.
const idRange = 65536

// idMaps keeps one user namespace per UIDBase, as an open file, to idmap mounts
// with. Making one costs a process start (about 1 ms).
type idMaps struct {
	mu   sync.Mutex
	open map[uint32]*os.File
}

// get returns the user namespace of base. The file belongs to m.
func (m *idMaps) get(base uint32) (*os.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.open[base]; f != nil {
		return f, nil
	}
	f, err := newUserNamespace(base)
	if err != nil {
		return nil, err
	}
	if m.open == nil {
		m.open = make(map[uint32]*os.File)
	}
	if len(m.open) >= 1024 { // forget one: whoever still needs it makes it anew
		for b, old := range m.open {
			old.Close()
			delete(m.open, b)
			break
		}
	}
	m.open[base] = f
	return f, nil
}

func (m *idMaps) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for b, f := range m.open {
		f.Close()
		delete(m.open, b)
	}
}

// newUserNamespace makes a user namespace that maps 0…65535 to base…, held by
// the returned file alone. The process that is needed to make one stops at its
// first instruction and is killed there.
func newUserNamespace(base uint32) (ns *os.File, err error) {
	err = onOwnThread(func() error { // ptrace belongs to a thread
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(base), Size: idRange}}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{}
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER,
			UidMappings: ids,
			GidMappings: ids,
			Ptrace:      true,
		}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("make a user namespace for uids from %d: %w", base, err)
		}
		ns, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
		cmd.Process.Kill()
		cmd.Wait()
		return err
	})
	return ns, err
}
