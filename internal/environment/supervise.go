package environment

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/spec"
)

// The rhythm of restarts.
const (
	firstBackoff = 100 * time.Millisecond // doubles
	lastBackoff  = 30 * time.Second
	// steadyAfter is how long a launch must have been up for its end to count
	// as the first again.
	steadyAfter = 60 * time.Second
	// maxFirstExits is how often a service may end before it was ever up.
	maxFirstExits = 5
)

// A supervisor keeps one service of an environment as it should be: it
// launches, watches, and launches again by the restart policy. Its goroutine
// ends when there is nothing to do any more, when end is called, or with the
// Manager.
type supervisor struct {
	m    *Manager
	l    *live
	name string

	ctx  context.Context // ends with end and with the Manager
	stop context.CancelFunc
	done chan struct{} // closed when the goroutine has ended

	mu       sync.Mutex
	svc      spec.Service
	run      *run // the present launch
	failures int  // ends in a row
	wasReady bool // some launch of it was up
}

// newSecret returns a one-launch secret and the hash that is stored of it.
func newSecret() ([]byte, isle.Digest) {
	secret := make([]byte, 32)
	rand.Read(secret)
	return secret, isle.DigestOf(secret)
}

// supervise begins to keep a service. The launch is made with the secret, or,
// if that is nil, is there already.
func (m *Manager) supervise(l *live, svc spec.Service, rec Service, secret []byte) *supervisor {
	s := m.newSupervisor(l, svc, rec, secret == nil)
	if secret == nil {
		s.adopt(rec)
	}
	s.keep(s.run, secret)
	return s
}

// newSupervisor is one that does not keep anything yet, with the run of the
// record's launch: one that is adopted is there already.
func (m *Manager) newSupervisor(l *live, svc spec.Service, rec Service, adopted bool) *supervisor {
	s := &supervisor{m: m, l: l, name: svc.Name, svc: svc, done: make(chan struct{})}
	s.ctx, s.stop = context.WithCancel(m.ctx)
	r := newRun(s, rec.Launch)
	if adopted {
		r.adopted = true
		if rec.Phase == Running || rec.Phase == Unhealthy {
			r.ready, s.wasReady = true, true
			r.readyAt = m.cfg.Now()
		} else if len(svc.Setup) > 0 {
			for _, v := range m.volumesFor(l.snapshot()) {
				r.setup = r.setup || v.Service == svc.Name && !v.Ready // it is at its setup still
			}
		}
	}
	s.run = r
	return s
}

// keep begins to keep the service, from a run on.
func (s *supervisor) keep(r *run, secret []byte) {
	s.l.mu.Lock()
	s.l.supervisors[s.name] = s
	s.l.mu.Unlock()
	if !s.m.spawn(func() { s.loop(r, secret) }) {
		close(s.done)
	}
}

func (l *live) supervisor(service string) *supervisor {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.supervisors[service]
}

func (s *supervisor) current() *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.run
}

func (s *supervisor) stopping() bool { return s.ctx.Err() != nil }

// adopt takes up a launch that an earlier server made.
func (s *supervisor) adopt(rec Service) {
	r := s.run
	s.m.cfg.Lines.Expect(s.l.instance, r.launch, rec.SecretHash, r)
	w, ok := s.m.cfg.Driver.(Watcher)
	if !ok {
		return
	}
	if err := w.Watch(s.l.instance, r.launch, r.initGone); err != nil {
		s.m.cfg.Log.Error("a launch cannot be watched", "launch", r.launch, "error", err)
		r.initGone()
	}
}

func (s *supervisor) loop(r *run, secret []byte) {
	defer close(s.done)
	for {
		e := ending{}
		if secret != nil {
			e.launch = s.launch(r, secret)
		}
		if e.launch == nil {
			e = s.attend(r)
		}
		if s.stopping() {
			return // whoever stopped it ends the launch, or it runs on
		}
		pause, again := s.ended(r, e)
		for again {
			if !sleep(s.ctx, pause) {
				return
			}
			var err error
			if r, secret, err = s.renew(r); err == nil {
				break
			}
			if isle.CodeOf(err) == isle.Conflict {
				return // replaced or torn down meanwhile
			}
			s.m.cfg.Log.Error("a restart could not be recorded; trying again", "environment", s.l.ref, "service", s.name, "error", err)
			pause = lastBackoff
		}
		if !again {
			return
		}
	}
}

// launch makes the present launch; the number of launches at a time is bounded.
func (s *supervisor) launch(r *run, secret []byte) error {
	select {
	case s.m.launches <- struct{}{}:
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
	defer func() { <-s.m.launches }()
	s.l.launching.RLock()
	defer s.l.launching.RUnlock()
	s.l.observe(s.name, r.launch, func(rec *Service) {
		rec.Phase, rec.Started = Starting, s.m.cfg.Now()
	})
	return s.m.launch(s.ctx, s, r, secret)
}

// An ending is why a launch is over, where isle-init did not tell.
type ending struct {
	launch  error  // it could not be made
	timeout string // it did not come up in time
}

// attend waits for the end of a launch, and calls it up when it is.
func (s *supervisor) attend(r *run) ending {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	s.m.spawn(func() {
		if _, err := s.m.cfg.Lines.Line(ctx, r.launch); err == nil {
			r.set(func() { r.home = true })
		}
	})
	for {
		limit, timeout, changed := r.next()
		var timer <-chan time.Time
		if limit > 0 {
			timer = time.After(limit)
		}
		select {
		case <-r.gone:
			return ending{}
		case <-s.ctx.Done():
			return ending{}
		case <-changed:
		case <-timer:
			switch timeout {
			case "":
				r.becomeReady()
			case lingers:
				return ending{}
			default:
				return ending{timeout: timeout}
			}
		}
	}
}

// ended records the end of a launch, clears what is left of it, and says
// whether and when there is to be another.
func (s *supervisor) ended(r *run, e ending) (pause time.Duration, again bool) {
	ctx := context.WithoutCancel(s.m.ctx)
	if err := s.m.cfg.Driver.Kill(ctx, s.l.instance, r.launch); err != nil {
		s.m.cfg.Log.Error("what is left of a launch cannot be removed", "launch", r.launch, "error", err)
	}
	s.m.cfg.Lines.Forget(r.launch)
	s.m.fault("exit.removed")
	switch {
	case e.launch != nil:
		again = s.wasUp() && s.restart() != "no"
		s.fail(r, "could not be launched: "+e.launch.Error(), again)
	case e.timeout != "":
		s.fail(r, e.timeout, false)
	default:
		again = r.finish(137, "isle-init was killed")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	pause = min(firstBackoff<<min(max(s.failures-1, 0), 16), lastBackoff)
	return pause, again
}

func (s *supervisor) wasUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wasReady
}

func (s *supervisor) endsInARow() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failures
}

func (s *supervisor) restart() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.svc.Restart
}

// setSpec takes over what can be changed while the service runs.
func (s *supervisor) setSpec(svc spec.Service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.svc = svc
}

// fail records that a launch came to nothing.
func (s *supervisor) fail(r *run, message string, again bool) {
	if s.stopping() {
		return
	}
	s.mu.Lock()
	s.failures++
	s.mu.Unlock()
	s.l.observe(s.name, r.launch, func(rec *Service) {
		rec.Phase, rec.Message = Broken, message
		if again {
			rec.Phase = Starting
		}
	})
	e := s.event(isle.ActionServiceExit, message)
	e.Result = string(isle.Failed)
	s.saveOrLog(e)
}

// verdict decides about a launch that ended with code: the service's phase and
// whether it is launched again.
func (s *supervisor) verdict(r *run, code int) (phase Phase, again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.upFor() >= steadyAfter {
		s.failures = 0
	}
	s.failures++
	switch s.svc.Restart {
	case "always":
		again = true
	case "on-failure":
		again = code != 0
	}
	if !s.wasReady && code != 0 && s.failures >= maxFirstExits {
		again = false
	}
	switch {
	case again:
		return Starting, true
	case code == 0:
		return Exited, false
	}
	return Broken, false
}

// renew records a new launch in the place of an ended one.
func (s *supervisor) renew(old *run) (*run, []byte, error) {
	r := newRun(s, isle.NewID())
	secret, hash := newSecret()
	e := s.event(isle.ActionServiceRestart, "")
	replaced := false
	err := s.l.change(s.ctx, func(rec *Environment) {
		if svc, ok := rec.service(s.name); ok && svc.Launch == old.launch {
			replaced = true
			svc.Launch, svc.SecretHash, svc.Phase = r.launch, hash, Starting
			svc.Restarts++
			svc.Started = s.m.cfg.Now() // for who finds the record
		}
	}, Mutation{Entries: []audit.Entry{e}})
	if err != nil {
		return nil, nil, err
	}
	if !replaced {
		return nil, nil, isle.Errorf(isle.Conflict, "service %s was replaced", s.name)
	}
	s.mu.Lock()
	s.run = r
	s.mu.Unlock()
	s.m.fault("restart.recorded")
	return r, secret, nil
}

// end stops keeping the service and ends its launch: SIGTERM, and after the
// grace SIGKILL. Nothing of the launch is left when it returns nil.
func (s *supervisor) end(ctx context.Context, grace time.Duration) error {
	s.stop()
	<-s.done
	r := s.current()
	if !r.isGone() {
		s.ask(ctx, r, grace)
	}
	err := s.m.cfg.Driver.Kill(ctx, s.l.instance, r.launch)
	s.m.cfg.Lines.Forget(r.launch)
	if err != nil {
		return fmt.Errorf("service %s: %w", s.name, err)
	}
	return nil
}

// ask has isle-init end the service and waits for it.
func (s *supervisor) ask(ctx context.Context, r *run, grace time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, grace+2*time.Second)
	defer cancel()
	short, cancelShort := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancelShort()
	line, err := s.m.cfg.Lines.Line(short, r.launch)
	if err != nil {
		return // it does not listen: it is killed
	}
	if err := line.Stop(ctx, grace); err != nil {
		return
	}
	select {
	case <-r.gone:
	case <-ctx.Done():
	}
}

// event is an audit entry of the server about this service.
func (s *supervisor) event(action isle.Action, summary string) audit.Entry {
	return audit.NewEvent(isle.Actor{Kind: isle.System, Name: "supervisor"}, action, serviceResource(s.l.ref, s.name), isle.Allow, summary).In(s.l.ref, s.l.instance)
}

func (s *supervisor) saveOrLog(entries ...audit.Entry) {
	if err := s.l.save(context.WithoutCancel(s.m.ctx), Mutation{Entries: entries}); err != nil {
		s.m.cfg.Log.Error("the state of a service could not be stored", "environment", s.l.ref, "service", s.name, "error", err)
	}
}

// sleep waits for d; false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
