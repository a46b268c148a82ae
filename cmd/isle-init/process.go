package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isle/internal/initproto"
)

const (
	// drainTime is how long output is waited for once a process has ended:
	// what it left in the pipe is there at once, and who else holds the pipe
	// is not waited for.
	drainTime = 250 * time.Millisecond
	// pieceSize bounds a piece of output, in bytes.
	pieceSize = 16 << 10

	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// environment returns the variables of a process of the user.
func (s *service) environment(u user, extra map[string]string, terminal bool) (env []string, path string) {
	m := map[string]string{"PATH": defaultPath, "HOME": u.home, "USER": u.name, "LOGNAME": u.name, "SHELL": u.shell, "HOSTNAME": s.self.host(),
		endpointVariable: "unix://" + initproto.WorkloadSocket}
	if terminal {
		m["TERM"] = "xterm-256color"
	}
	for _, from := range []map[string]string{s.trustVariables(), s.boot.Env, extra} {
		for k, v := range from {
			if !strings.ContainsAny(k, "=\x00") && !strings.Contains(v, "\x00") {
				m[k] = v
			}
		}
	}
	s.withJava(m)
	for k, v := range m {
		env = append(env, k+"="+v)
	}
	slices.Sort(env)
	return env, m["PATH"]
}

// resolve turns what is asked for into a command, or into why it cannot start,
// with the codes that shells use: 126 there is such a thing but it does not
// run, 127 there is not.
func (s *service) resolve(argv []string, extra map[string]string, u user, dir string, terminal bool) (command, *initproto.Exit) {
	if dir == "" {
		dir = s.boot.Workdir
	}
	if dir == "" {
		dir = "/"
	}
	env, path := s.environment(u, extra, terminal)
	c := command{args: argv, env: env, dir: dir, user: u, terminal: terminal}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return c, &initproto.Exit{Code: 126, Reason: fmt.Sprintf("working folder %s: there is no such folder", dir)}
	}
	var failure *initproto.Exit
	c.path, failure = find(argv[0], path, dir)
	return c, failure
}

// find looks for an executable as execvp(3) does.
func find(name, path, dir string) (string, *initproto.Exit) {
	candidates := []string{name}
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			candidates[0] = filepath.Join(dir, name)
		}
	} else {
		candidates = nil
		for _, p := range filepath.SplitList(path) {
			if filepath.IsAbs(p) {
				candidates = append(candidates, filepath.Join(p, name))
			}
		}
	}
	seen := ""
	for _, p := range candidates {
		st, err := os.Stat(p)
		if err != nil {
			continue
		}
		if st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
		seen = p
	}
	switch {
	case seen != "":
		return "", &initproto.Exit{Code: 126, Reason: fmt.Sprintf("%s: is there but not an executable file", seen)}
	case strings.Contains(name, "/"):
		return "", &initproto.Exit{Code: 127, Reason: fmt.Sprintf("%s: there is no such file in the image", name)}
	}
	return "", &initproto.Exit{Code: 127, Reason: fmt.Sprintf("%s: there is no such command in the image (PATH is %s)", name, path)}
}

// didNotStart says why the kernel would not start c.
func didNotStart(c command, err error) *initproto.Exit {
	e := &initproto.Exit{Code: 126, Reason: fmt.Sprintf("%s: %v", c.path, err)}
	switch {
	case errors.Is(err, syscall.ENOENT):
		e.Code, e.Reason = 127, c.path+": is there, but the interpreter or loader that it names is not"
	case errors.Is(err, syscall.EAGAIN):
		e.Reason = c.path + ": the environment has as many processes as limits.pids allows"
	case errors.Is(err, syscall.ENOMEM):
		e.Reason = c.path + ": the environment has used up limits.memory"
	case errors.Is(err, syscall.EPERM) && len(c.args) > 0:
		e.Reason = fmt.Sprintf("%s: cannot become user %s with the capabilities named: %v", c.path, c.user.name, err)
	}
	return e
}

// A piped is a process and our ends of its pipes.
type piped struct {
	child   *child
	stdin   *os.File   // nil: it reads /dev/null
	outputs []*os.File // stdout, stderr; or the terminal alone
}

// startPiped starts c on pipes. register is called before anyone can know of
// the end of the process; if it returns false, the process is killed.
func (s *service) startPiped(c command, input bool, register func(*child) bool) (*piped, *initproto.Exit) {
	p := &piped{}
	var theirs []int
	defer func() {
		for _, fd := range theirs {
			unix.Close(fd)
		}
	}()
	fail := func(err error) (*piped, *initproto.Exit) {
		p.close()
		return nil, &initproto.Exit{Code: 126, Reason: fmt.Sprintf("%s: no pipes: %v", c.path, err)}
	}
	if !input {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fail(err)
		}
		theirs = append(theirs, fd)
	}
	for i := len(theirs); i < 3; i++ {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			return fail(err)
		}
		ours, other := fds[0], fds[1]
		if i == 0 {
			ours, other = fds[1], fds[0]
		}
		theirs = append(theirs, other)
		// So that it can open /dev/stdout, which is the pipe, again.
		if c.user.uid != 0 {
			_ = unix.Fchown(other, int(c.user.uid), int(c.user.gid))
		}
		f, err := pollable(ours)
		if err != nil {
			return fail(err)
		}
		if i == 0 {
			p.stdin = f
		} else {
			p.outputs = append(p.outputs, f)
		}
	}
	c.files = theirs
	return s.startOn(p, c, register)
}

// startOn starts c, whose files are set, and makes it p's child.
func (s *service) startOn(p *piped, c command, register func(*child) bool) (*piped, *initproto.Exit) {
	child, err := s.spawn.start(c)
	if err != nil {
		p.close()
		return nil, didNotStart(c, err)
	}
	p.child = child
	if register != nil && !register(child) {
		_ = s.spawn.kill(child, syscall.SIGKILL)
	}
	return p, nil
}

// pollable makes a file of fd that the runtime's poller waits for.
func pollable(fd int) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pipe"), nil
}

// drain ends reading of outputs once what the ended process wrote is read.
func (p *piped) drain() {
	for _, f := range p.outputs {
		_ = f.SetReadDeadline(time.Now().Add(drainTime))
	}
}

func (p *piped) close() {
	if p.stdin != nil {
		_ = p.stdin.Close()
	}
	for _, f := range p.outputs {
		_ = f.Close()
	}
}

// pump gives what is read from f to emit, in a buffer with head bytes free in
// front, until the end, the read deadline, or an error of emit. At the deadline
// it reads what is there already.
func pump(f *os.File, head int, emit func([]byte) error) {
	buf := make([]byte, head+pieceSize)
	last := -1 // bytes that may still be read; -1: any
	for last != 0 {
		room := buf[head:]
		if last > 0 && last < len(room) {
			room = room[:last]
		}
		n, err := f.Read(room)
		if n > 0 {
			if last > 0 {
				last -= n
			}
			if emit(buf[:head+n]) != nil {
				return
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && last < 0:
			if last = pendingBytes(f); last <= 0 || f.SetReadDeadline(time.Time{}) != nil {
				return
			}
		default:
			return // the end; of a terminal, EIO
		}
	}
}

// pendingBytes returns how many bytes can be read without waiting.
func pendingBytes(f *os.File) int {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	if cerr := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); cerr != nil || err != nil {
		return 0
	}
	return n
}
