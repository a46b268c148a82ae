package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/initproto"
)

// A service is what this isle-init is for.
type service struct {
	boot   *initproto.Boot
	self   self
	outbox *outbox
	spawn  *spawner // nil until prepared
	user   user
	jobs   chan struct{} // one for each piece of work being done
	stop   chan struct{} // closed when the command is to end

	mu       sync.Mutex
	main     *child // setup, then the command
	stopping bool
}

// maxJobs bounds the pieces of work done at once.
const maxJobs = 128

func newService(b *initproto.Boot, secret []byte) (*service, error) {
	s := &service{boot: b, outbox: newOutbox(), jobs: make(chan struct{}, maxJobs), stop: make(chan struct{})}
	s.self = self{launch: b.Launch, secret: secret, hostname: b.Hostname, trust: b.Trust}
	var err error
	if s.spawn, err = newSpawner(b.Caps, b.Hostname); err != nil {
		return nil, err
	}
	return s, nil
}

// run does the service's whole life and returns the code to exit with.
func (s *service) run(signals <-chan os.Signal) int {
	// The user is known before anything is asked for; an error of that is told
	// like any other reason why the command does not start.
	var err error
	s.user, err = lookUser("", s.boot.User)
	if err == nil {
		err = s.offerWorkload()
	}
	if err == nil {
		err = s.offerTrust()
	}
	go s.callHome()
	for range initproto.ParkedConnections {
		go s.waitForWork()
	}
	go s.forwardSignals(signals)
	code, reason, setup := 0, "", false
	if err != nil {
		code, reason = 126, err.Error()
	} else {
		code, reason, setup = s.life()
	}
	kind := initproto.EventExited
	if setup {
		return code // told and acknowledged
	}
	s.outbox.wait(s.outbox.tell(initproto.Event{Kind: kind, Code: code, Detail: reason}))
	return code
}

// life gives away volumes, runs setup and runs the command. setup is true if
// it ended there.
func (s *service) life() (code int, reason string, setup bool) {
	for _, path := range s.boot.Own {
		if err := s.own(path); err != nil {
			return 126, fmt.Sprintf("cannot give %s to user %s: %v", path, s.user.name, err), false
		}
	}
	if len(s.boot.Setup) > 0 {
		tail := &tail{max: initproto.MaxOutput}
		code, reason := s.runMain(s.boot.Setup, tail, nil)
		if reason != "" {
			tail.add([]byte(reason + "\n"))
		}
		s.outbox.wait(s.outbox.tell(initproto.Event{Kind: initproto.EventSetup, Code: code, Output: tail.String()}))
		if code != 0 {
			return code, reason, true
		}
	}
	if len(s.boot.Command) == 0 {
		s.outbox.tell(initproto.Event{Kind: initproto.EventStarted})
		s.checkHealth(s.stop)
		<-s.stop
		return 0, "", false
	}
	ended := make(chan struct{})
	code, reason = s.runMain(s.boot.Command, nil, func() {
		s.outbox.tell(initproto.Event{Kind: initproto.EventStarted})
		s.checkHealth(ended)
	})
	close(ended)
	return code, reason, false
}

// own gives a volume's root folder, and nothing in it, to the user.
func (s *service) own(path string) error {
	// gVisor follows a link here in spite of O_NOFOLLOW, where a folder is asked
	// for. Nothing of the service has run that could put one there meanwhile.
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fchown(fd, int(s.user.uid), int(s.user.gid))
}

// runMain runs setup or the command as what signals go to, and tells its
// output. The reason says why it did not start.
func (s *service) runMain(argv []string, tail *tail, started func()) (code int, reason string) {
	c, failure := s.resolve(argv, nil, s.user, "", false)
	if failure != nil {
		return failure.Code, failure.Reason
	}
	p, failure := s.startPiped(c, false, func(child *child) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.main = child
		return !s.stopping
	})
	if failure != nil {
		return failure.Code, failure.Reason
	}
	if started != nil {
		started()
	}
	var outputs sync.WaitGroup
	for i, f := range p.outputs {
		outputs.Go(func() {
			pump(f, 0, func(b []byte) error {
				s.outbox.log(i == 1, b)
				if tail != nil {
					tail.add(b)
				}
				return nil
			})
		})
	}
	<-p.child.exited
	p.drain()
	outputs.Wait()
	p.close()
	return p.child.code(), ""
}

// end asks the command to end, and after grace ends everything.
func (s *service) end(grace time.Duration) {
	s.mu.Lock()
	again := s.stopping
	s.stopping = true
	main := s.main
	s.mu.Unlock()
	if !again {
		close(s.stop)
	}
	if main == nil {
		return
	}
	_ = s.spawn.kill(main, syscall.SIGTERM)
	select {
	case <-main.exited:
		return
	case <-time.After(grace):
	}
	_ = s.spawn.kill(main, syscall.SIGKILL)
	_ = unix.Kill(-1, syscall.SIGKILL) // from PID 1: all but PID 1
}

// signal signals the command's process group.
func (s *service) signal(sig syscall.Signal) error {
	s.mu.Lock()
	main := s.main
	s.mu.Unlock()
	if main == nil {
		return isle.Errorf(isle.NotFound, "the service has no running command to signal")
	}
	if err := s.spawn.kill(main, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return isle.Errorf(isle.Failed, "signal: %w", err)
	}
	return nil
}

// forwardSignals passes on what PID 1 is sent, until the process ends. Of
// others' making are these only; the rest is the runtime's, or noise.
func (s *service) forwardSignals(signals <-chan os.Signal) {
	for got := range signals {
		switch sig := got.(syscall.Signal); sig {
		case syscall.SIGTERM, syscall.SIGINT:
			if len(s.boot.Command) == 0 {
				go s.end(0)
				continue
			}
			_ = s.signal(sig)
		case syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2:
			_ = s.signal(sig)
		}
	}
}

// A tail keeps the last bytes that were added. It is for more than one
// goroutine.
type tail struct {
	max int
	mu  sync.Mutex
	b   []byte
}

func (t *tail) add(b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	if over := len(t.b) - t.max; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}
