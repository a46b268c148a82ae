//go:build amd64 || arm64

package local

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// cloneSleeper is clone(2) without a stack. The new process sleeps until it is
// killed, which it is at the latest when the calling thread ends, of the process
// self. It shares this process's memory and touches none of it: all it does is
// in registers.
//
//go:noescape
func cloneSleeper(flags, self uintptr) (pid int)

// holdUserNamespace calls fn with the pid of a process in a new user namespace,
// which ends when fn returns. The calling thread must be its own.
//
// The process is no copy of this one, as fork would make: to copy the page
// tables of a server takes milliseconds, and every page that the server writes
// to afterwards a fault. That it shares the server's memory gives nobody a way to
// it: the process is gone before anything else has the uids of the namespace or
// joins it, and no process of an environment sees the host's.
func holdUserNamespace(fn func(pid int) error) error {
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	// A signal's handler would run in the sleeper too, on the stack of this
	// thread.
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return os.NewSyscallError("sigprocmask", err)
	}
	pid := cloneSleeper(unix.CLONE_VM|unix.CLONE_FILES|unix.CLONE_NEWUSER|uintptr(syscall.SIGCHLD), uintptr(os.Getpid()))
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil); err != nil {
		return os.NewSyscallError("sigprocmask", err)
	}
	if pid < 0 {
		return os.NewSyscallError("clone", syscall.Errno(-pid))
	}
	defer func() {
		unix.Kill(pid, unix.SIGKILL)
		for {
			if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
				return
			}
		}
	}()
	return fn(pid)
}
