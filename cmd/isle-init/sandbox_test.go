package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/initproto"
)

// The tests run the real isle-init as PID 1 of namespaces of its own, with
// this machine's root folder (tmpfs over /tmp and /run), and talk to it with
// the real server's half over loopback.

func TestMain(m *testing.M) {
	if os.Args[0] == "sandbox" {
		fmt.Fprintln(os.Stderr, "sandbox:", enter(os.Args[1:]))
		os.Exit(120)
	}
	code := m.Run()
	if path, err := build(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// enter is what a driver does before isle-init, in the new namespaces. It
// returns only on error. File descriptor 4 is isle-init's file.
func enter(keep []string) error {
	for _, m := range []struct {
		source, target, kind, data string
		flags                      uintptr
	}{
		{"", "/", "", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", "", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmpfs", "/tmp", "tmpfs", "mode=1777", unix.MS_NOSUID},
		{"tmpfs", "/run", "tmpfs", "", unix.MS_NOSUID},
		{"devpts", "/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=0620", unix.MS_NOSUID},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	kept := map[uintptr]bool{}
	for _, name := range append([]string{"SETUID", "SETGID", "SETPCAP", "KILL", "CHOWN", "DAC_OVERRIDE", "FOWNER"}, keep...) {
		n, err := capability(name)
		if err != nil {
			return err
		}
		kept[n] = true
	}
	for n := uintptr(0); n <= unix.CAP_LAST_CAP; n++ {
		if !kept[n] {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, n, 0, 0, 0); err != nil {
				return err
			}
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	// A driver leaves nothing else open.
	unix.CloseOnExec(4)
	return syscall.Exec("/proc/self/fd/4", []string{"isle-init"}, []string{"PATH=/usr/bin:/bin"})
}

// build makes isle-init once for all tests.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "isle-init")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "isle-init")
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", out, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, b)
	}
	return out, nil
})

// A sandbox is a running isle-init and a server.
type sandbox struct {
	t        testing.TB
	boot     initproto.Boot
	address  string
	instance isle.ID
	listener net.Listener
	home     *initproto.Home
	events   *events
	cmd      *exec.Cmd
	ended    chan struct{}
	refused  chan initproto.Refusal
	workload func(net.Conn) // serves the Workload API, if set
}

// events records what isle-init tells.
type events struct {
	mu      sync.Mutex
	changed *sync.Cond
	list    []string
	output  bytes.Buffer
	hold    chan struct{} // SetupDone waits for it, if set
}

func newEvents() *events {
	e := &events{}
	e.changed = sync.NewCond(&e.mu)
	return e
}

func (e *events) add(format string, args ...any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, fmt.Sprintf(format, args...))
	e.changed.Broadcast()
	return nil
}

func (e *events) SetupDone(code int, output string) error {
	if e.hold != nil {
		<-e.hold
	}
	return e.add("setup %d %s", code, strings.TrimSpace(output))
}
func (e *events) Started() error { return e.add("started") }
func (e *events) Health(healthy bool, detail string) error {
	return e.add("health %v %s", healthy, detail)
}
func (e *events) Exited(code int, reason string) error { return e.add("exited %d %s", code, reason) }
func (e *events) Log(at time.Time, stderr bool, data []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.output.Write(data)
	e.changed.Broadcast()
	return nil
}

// wait returns once ok says so of events and output; the test's own timeout
// bounds it.
func (e *events) wait(ok func(list []string, output string) bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for !ok(e.list, e.output.String()) {
		e.changed.Wait()
	}
}

func (e *events) waitFor(prefix string) {
	e.wait(func(list []string, _ string) bool {
		for _, l := range list {
			if strings.HasPrefix(l, prefix) {
				return true
			}
		}
		return false
	})
}

func (e *events) snapshot() ([]string, string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]string(nil), e.list...), e.output.String()
}

// launch starts a service. change adapts the orders.
func launch(t testing.TB, change func(*initproto.Boot)) *sandbox {
	t.Helper()
	return launchTo(t, newEvents(), change)
}

// launchTo starts a service whose events go to e.
func launchTo(t testing.TB, e *events, change func(*initproto.Boot)) *sandbox {
	t.Helper()
	return launchServing(t, e, nil, change)
}

// launchServing starts a service whose Workload API is workload.
func launchServing(t testing.TB, e *events, workload func(net.Conn), change func(*initproto.Boot)) *sandbox {
	t.Helper()
	s := &sandbox{t: t, workload: workload, instance: isle.NewID(), ended: make(chan struct{}), refused: make(chan initproto.Refusal, 100), events: e}
	s.boot = initproto.Boot{Launch: isle.NewID(), Secret: []byte("the secret of exactly 32 bytes!!"), Hostname: "web"}
	s.listen("127.0.0.1:0")
	s.boot.Home = s.address
	if change != nil {
		change(&s.boot)
	}
	s.expect()
	s.start()
	t.Cleanup(func() {
		s.kill()
		s.stopServer()
	})
	return s
}

// listen starts a server, which expects what first says.
func (s *sandbox) listen(address string, first ...func()) {
	s.t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.listener, s.address = l, l.Addr().String()
	s.home = initproto.NewHome(initproto.HomeConfig{Refused: func(r initproto.Refusal) { s.refused <- r },
		Workload: func(instance, launch isle.ID, conn net.Conn) {
			if s.workload != nil && instance == s.instance && launch == s.boot.Launch {
				s.workload(conn)
			}
		}})
	for _, expect := range first {
		expect()
	}
	go func(home *initproto.Home) {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			home.Serve(s.instance, c)
		}
	}(s.home)
}

// listenAt starts a server that expects the launch.
func (s *sandbox) listenAt(address string) {
	s.t.Helper()
	s.listen(address)
	s.expect()
}

func (s *sandbox) expect() {
	s.home.Expect(s.instance, s.boot.Launch, isle.DigestOf(s.boot.Secret), s.events)
}

func (s *sandbox) stopServer() {
	s.listener.Close()
	s.home.Close()
}

func (s *sandbox) start() {
	s.t.Helper()
	path, err := build()
	if err != nil {
		s.t.Fatal(err)
	}
	init, err := os.Open(path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer init.Close()
	r, w, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close()
	orders, err := json.Marshal(s.boot)
	if err != nil {
		s.t.Fatal(err)
	}
	s.cmd = exec.Command("/proc/self/exe")
	s.cmd.Args = append([]string{"sandbox"}, s.boot.Caps...)
	s.cmd.ExtraFiles = []*os.File{r, init}
	s.cmd.Stderr = os.Stderr
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1 << 20, Size: 65536}}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{},
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		defer w.Close()
		_, _ = w.Write(orders)
	}()
	go func() {
		_ = s.cmd.Wait()
		close(s.ended)
	}()
}

func (s *sandbox) kill() {
	_ = s.cmd.Process.Kill()
	<-s.ended
}

func (s *sandbox) line() initproto.Line {
	s.t.Helper()
	ctx, cancel := context.WithCancelCause(s.t.Context())
	defer cancel(nil)
	go func() { // ends with the call
		select {
		case <-s.ended:
			cancel(errors.New("isle-init has ended"))
		case <-ctx.Done():
		}
	}()
	l, err := s.home.Line(ctx, s.boot.Launch)
	if err != nil {
		s.t.Fatal(err)
	}
	return l
}

// A result is what an exec gave.
type result struct {
	stdout, stderr string
	exit           initproto.Exit
}

func collect(p initproto.Process) (result, error) {
	var r result
	for {
		o, err := p.Next()
		switch {
		case err != nil:
			return r, err
		case o.Exit != nil:
			r.exit = *o.Exit
			return r, nil
		case o.Stderr:
			r.stderr += string(o.Data)
		default:
			r.stdout += string(o.Data)
		}
	}
}

func (s *sandbox) exec(e initproto.Exec, input string) result {
	s.t.Helper()
	p, err := s.line().Exec(s.t.Context(), e)
	if err != nil {
		s.t.Fatal(err)
	}
	defer p.Close()
	go func() {
		_, _ = io.WriteString(p.Stdin(), input)
		_ = p.Stdin().Close()
	}()
	r, err := collect(p)
	if err != nil {
		s.t.Fatalf("%v: %v", e.Command, err)
	}
	return r
}

func (s *sandbox) sh(script string) result {
	s.t.Helper()
	return s.exec(initproto.Exec{Command: []string{"sh", "-c", script}}, "")
}

func sh(script string) []string { return []string{"sh", "-c", script} }

// eventually tries until it is so; the test's own timeout bounds it.
func eventually(ctx context.Context, ok func() bool) {
	for !ok() && ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond)
	}
}
