//go:build !amd64 && !arm64

package local

import (
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// holdUserNamespace calls fn with the pid of a process in a new user namespace,
// which ends when fn returns. The calling thread must be its own: the process
// stops for it at its first instruction (ptrace(2)).
func holdUserNamespace(fn func(pid int) error) error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, Ptrace: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	return fn(cmd.Process.Pid)
}
