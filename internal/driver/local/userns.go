package local

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// idRange is how many uids and gids an environment has: 0 to 65535 inside are
// UIDBase to UIDBase+65535 on the host.
const idRange = 65536

// idMaps keeps one user namespace per UIDBase, as an open file, to idmap mounts
// with, and for an environment's containers to join. Making one takes a process
// in it.
type idMaps struct {
	mu   sync.Mutex
	open map[uint32]*os.File
}

// get returns the user namespace of base. The file belongs to the caller.
func (m *idMaps) get(base uint32) (*os.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f, err := m.keep(base)
	if err != nil {
		return nil, err
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("the user namespace for uids from %d: %w", base, err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// keep returns m's own file. The caller holds m.mu.
func (m *idMaps) keep(base uint32) (*os.File, error) {
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
// the returned file alone.
//
// It belongs to the host's uid base and not to root: what the kernel counts by
// user (inotify instances and watches, pending signals, timers, processes) it
// counts for the maker of the namespace too, and for root that count would be
// one for all environments and the machine's own services.
func newUserNamespace(base uint32) (ns *os.File, err error) {
	err = onOwnThread(func() error { // a user belongs to a thread
		if err := becomeUser(int(base)); err != nil {
			return fmt.Errorf("make a user namespace for uids from %d: %w", base, err)
		}
		return holdUserNamespace(func(pid int) error {
			err := mapIDs(pid, base)
			if err == nil {
				ns, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
			}
			if err != nil {
				return fmt.Errorf("make a user namespace for uids from %d: %w", base, err)
			}
			return nil
		})
	})
	return ns, err
}

// mapIDs writes the maps of a new user namespace (user_namespaces(7)): 0… inside
// is base… outside.
func mapIDs(pid int, base uint32) error {
	for _, name := range []string{"uid_map", "gid_map"} {
		path := fmt.Sprintf("/proc/%d/%s", pid, name)
		if err := os.WriteFile(path, fmt.Appendf(nil, "0 %d %d\n", base, idRange), 0); err != nil {
			return err
		}
	}
	return nil
}

// becomeUser gives the calling thread the user's effective uid and keeps its
// capabilities. The thread must be its own and end afterwards.
func becomeUser(uid int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	// The call of package unix would change all threads. To leave uid 0 for the
	// effective one alone takes capabilities away from the effective set only.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
		return fmt.Errorf("become user %d: %w", uid, errno)
	}
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	return nil
}
