package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// oomScore is added to the oom_score_adj of children, so that the kernel ends
// one of them before isle-init when memory runs out.
const oomScore = 300

// A command is what to start: everything is resolved already.
type command struct {
	path     string
	args     []string
	env      []string
	dir      string
	files    []int // descriptors that become 0, 1, 2; in blocking mode
	user     user
	terminal bool // files[0] becomes the controlling terminal
}

// A child is a process that was started and its end.
type child struct {
	pid    int
	exited chan struct{} // closed when it was reaped
	status syscall.WaitStatus
}

// code returns how the child ended, as a shell says it.
func (c *child) code() int {
	if c.status.Signaled() {
		return 128 + int(c.status.Signal())
	}
	return c.status.ExitStatus()
}

// A spawner starts processes and reaps them and all orphans. Two goroutines
// belong to it, for the life of the process, each locked to a thread: one of
// them starts processes with fewer privileges than isle-init has, since the
// bounding set is a thread's and is inherited over fork; the other waits.
type spawner struct {
	work chan func() // for the thread that starts processes
	bias []byte      // children's oom_score_adj
	keep []uintptr   // the capabilities that children have; that thread's

	mu       sync.Mutex
	some     *sync.Cond     // signalled when a child was started
	children map[int]*child // not reaped yet
}

// newSpawner returns once the starting thread has the hostname and has dropped
// every capability but caps.
func newSpawner(caps []string, hostname string) (*spawner, error) {
	keep := make([]uintptr, len(caps))
	for i, name := range caps {
		n, err := capability(name)
		if err != nil {
			return nil, err
		}
		keep[i] = n
	}
	s := &spawner{work: make(chan func()), children: map[int]*child{}}
	s.some = sync.NewCond(&s.mu)
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	if err == nil {
		n, err := strconv.Atoi(strings.TrimSpace(string(own)))
		if err == nil {
			s.bias = strconv.AppendInt(nil, int64(min(n+oomScore, 1000)), 10)
		}
	}
	ready := make(chan error)
	go s.startAll(keep, hostname, ready)
	if err := <-ready; err != nil {
		return nil, err
	}
	go s.reapAll()
	return s, nil
}

// startAll is the thread that starts processes.
func (s *spawner) startAll(keep []uintptr, hostname string, ready chan<- error) {
	runtime.LockOSThread() // for good: no other goroutine may run with this bounding set
	err := setHostname(hostname)
	if err == nil {
		err = limit(keep)
	}
	s.keep = keep
	ready <- err
	if err != nil {
		return
	}
	for do := range s.work {
		do()
	}
}

// setHostname gives processes that the calling thread starts a hostname. Where
// the driver has given the service its own it is that already. All services of
// a gVisor sandbox begin with one hostname; the thread then leaves them and
// takes its own, which needs CAP_SYS_ADMIN, over that sandbox's kernel alone.
func setHostname(name string) error {
	if now, err := os.Hostname(); err == nil && now == name || name == "" {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWUTS); err == unix.EPERM {
		return nil // the driver wants it as it is
	} else if err != nil {
		return fmt.Errorf("cannot get a hostname of its own: %w", err)
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("cannot set the hostname: %w", err)
	}
	return nil
}

// limit drops all but keep from the thread's bounding set, and everything from
// its inheritable and ambient sets. What a process started by it can ever have
// is then keep, whoever it is.
func limit(keep []uintptr) error {
	kept := map[uintptr]bool{}
	for _, n := range keep {
		kept[n] = true
	}
	for n := uintptr(0); n < 64; n++ {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, n, 0, 0, 0)
		if err != nil {
			break // past the last that the kernel knows
		}
		if has == 1 && !kept[n] {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, n, 0, 0, 0); err != nil {
				return fmt.Errorf("cannot drop capability %d for the service: %w", n, err)
			}
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot clear ambient capabilities: %w", err)
	}
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return fmt.Errorf("cannot read capabilities: %w", err)
	}
	d[0].Inheritable, d[1].Inheritable = 0, 0
	if err := unix.Capset(&h, &d[0]); err != nil {
		return fmt.Errorf("cannot clear inheritable capabilities: %w", err)
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// start starts a process in a session of its own. The error is of exec(2), or
// of what comes before it.
func (s *spawner) start(c command) (started *child, err error) {
	done := make(chan struct{})
	s.work <- func() {
		started, err = s.fork(c)
		close(done)
	}
	<-done
	return started, err
}

func (s *spawner) fork(c command) (*child, error) {
	attr := &syscall.ProcAttr{
		Dir: c.dir,
		Env: c.env,
		Sys: &syscall.SysProcAttr{
			Setsid:     true,
			Setctty:    c.terminal,
			Credential: &syscall.Credential{Uid: c.user.uid, Gid: c.user.gid, Groups: c.user.groups},
		},
	}
	if c.user.uid != 0 {
		attr.Sys.AmbientCaps = s.keep
	}
	for _, f := range c.files {
		attr.Files = append(attr.Files, uintptr(f))
	}
	s.mu.Lock() // a child is reaped only after it is known
	pid, err := syscall.ForkExec(c.path, c.args, attr)
	var started *child
	if err == nil {
		started = &child{pid: pid, exited: make(chan struct{})}
		s.children[pid] = started
	}
	s.some.Signal()
	s.mu.Unlock()
	// The forked child changed user while it shared this memory, which resets
	// what harden did to the value of fs.suid_dumpable.
	if derr := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); derr != nil && err == nil {
		return started, derr
	}
	if err != nil {
		return nil, err
	}
	if s.bias != nil {
		// It may be gone already.
		_ = writeFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", s.bias)
	}
	return started, nil
}

// writeFile writes b to a file that exists.
func writeFile(name string, b []byte) error {
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, b)
	unix.Close(fd)
	return err
}

// reapAll waits for every child, its own and orphans.
func (s *spawner) reapAll() {
	runtime.LockOSThread()
	for {
		// Look without taking, so that a child's number cannot become
		// another's before the lock is held: kill depends on it.
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		s.mu.Lock()
		var status syscall.WaitStatus
		pid, werr := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if werr == syscall.ECHILD {
			s.some.Wait() // no children, so no orphans either
		}
		if c := s.children[pid]; werr == nil && pid > 0 && c != nil {
			delete(s.children, pid)
			c.status = status
			close(c.exited)
		}
		s.mu.Unlock()
	}
}

// kill sends a signal to the process group that c leads, unless c was reaped.
func (s *spawner) kill(c *child, sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.children[c.pid] != c {
		return nil
	}
	return unix.Kill(-c.pid, sig)
}

// killSession kills c, everything in its session, and so every job of a shell.
func (s *spawner) killSession(c *child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.children[c.pid] != c {
		return
	}
	for _, pid := range sessionOf(c.pid) {
		_ = unix.Kill(pid, syscall.SIGKILL) // gone is as good
	}
	_ = unix.Kill(-c.pid, syscall.SIGKILL)
}

// sessionOf returns the processes whose session (proc_pid_stat(5), field 6) is
// that of the leader.
func sessionOf(leader int) []int {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var pids []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == 1 {
			continue
		}
		if sid, err := unix.Getsid(pid); err == nil && sid == leader {
			pids = append(pids, pid)
		}
	}
	return pids
}
