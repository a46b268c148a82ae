package environment

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/audit"
)

// A run is one launch: what isle-init and the driver tell about it. It
// implements Events. All that isle-init says is a claim of the environment
// about itself, and is believed about nothing else.
type run struct {
	s      *supervisor
	launch isle.ID
	gone   chan struct{} // closed when isle-init is gone
	once   sync.Once
	made   time.Time

	mu        sync.Mutex
	changed   chan struct{}
	adopted   bool // made by an earlier server
	idles     bool // it has no command
	home      bool // isle-init has called home
	setup     bool // setup has to succeed first
	setupFail string
	started   time.Time // the command started
	ready     bool      // it counts as up
	readyAt   time.Time
	detail    string // the check's last words
	exit      *Exit
}

func newRun(s *supervisor, launch isle.ID) *run {
	return &run{s: s, launch: launch, gone: make(chan struct{}), changed: make(chan struct{}), made: s.m.cfg.Now()}
}

var _ Events = (*run)(nil)

// set changes what is known and tells attend.
func (r *run) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *run) initGone() { r.once.Do(func() { close(r.gone) }) }

func (r *run) isGone() bool {
	select {
	case <-r.gone:
		return true
	default:
		return false
	}
}

func (r *run) upFor() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ready {
		return 0
	}
	return r.s.m.cfg.Now().Sub(r.readyAt)
}

// lingers is the timeout of an isle-init that told of its command's end and
// does not end itself.
const lingers = "lingers"

// next says how long to wait for the next step, and what it means if it does
// not come: with an empty timeout, that the service is up.
func (r *run) next() (limit time.Duration, timeout string, changed <-chan struct{}) {
	r.s.mu.Lock()
	svc := r.s.svc
	r.s.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	changed = r.changed
	since := func(t time.Time, d time.Duration) time.Duration {
		return max(d-r.s.m.cfg.Now().Sub(t), time.Millisecond)
	}
	switch {
	case r.exit != nil:
		return lingerLimit, lingers, changed
	case r.setupFail != "":
		return lingerLimit, r.setupFail, changed
	case r.ready:
		return 0, "", changed
	case r.setup:
		return since(r.made, setupLimit), fmt.Sprintf("setup did not end within %v", setupLimit), changed
	case !r.home && r.started.IsZero():
		return since(r.made, homeLimit), fmt.Sprintf("isle-init did not call home within %v", homeLimit), changed
	case svc.Healthcheck != nil:
		from := r.started
		if from.IsZero() {
			from = r.made
		}
		start := svc.Healthcheck.Start
		if start <= 0 {
			start = time.Minute
		}
		timeout = fmt.Sprintf("did not become healthy within %v", start)
		if r.detail != "" {
			timeout += ": " + r.detail
		}
		return since(from, start), timeout, changed
	case r.idles || r.adopted:
		return time.Nanosecond, "", changed // it idles, or ran before: up once home
	case r.started.IsZero():
		return since(r.made, homeLimit), fmt.Sprintf("its command did not start within %v", homeLimit), changed
	}
	return since(r.started, r.s.m.cfg.Settle), "", changed
}

// becomeReady says that the service is up.
func (r *run) becomeReady() {
	r.set(func() {
		if !r.ready {
			r.ready, r.readyAt = true, r.s.m.cfg.Now()
		}
	})
	r.s.mu.Lock()
	r.s.wasReady = true
	r.s.mu.Unlock()
	r.s.l.observe(r.s.name, r.launch, func(rec *Service) {
		if !r.over() { // it may have ended while that was found out
			rec.Phase, rec.Message, rec.ExitCode = Running, "", nil
		}
	})
}

// over says whether the launch has ended. It may be asked within observe.
func (r *run) over() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.exit != nil
}

// SetupDone implements Events: the volumes are ready from here on.
func (r *run) SetupDone(code int, output string) error {
	if code != 0 {
		message := fmt.Sprintf("setup ended with exit code %d", code)
		r.s.l.log(r.s.name).write(r.s.m.cfg.Now(), r.s.m.cfg.Now(), true, []byte(strings.TrimSuffix(output, "\n")+"\n"))
		r.set(func() { r.setupFail = message })
		return nil
	}
	var ready []Volume
	for _, v := range r.s.m.volumesFor(r.s.l.snapshot()) {
		if v.Service == r.s.name && !v.Ready {
			v.Ready = true
			ready = append(ready, v)
		}
	}
	r.s.m.fault("setup.done")
	if len(ready) > 0 {
		ctx := context.WithoutCancel(r.s.m.ctx)
		if err := r.s.m.cfg.Store.Update(ctx, Mutation{PutVolumes: ready}); err != nil {
			return err // told again: the command does not start before this is durable
		}
		r.s.m.remember(ready, nil)
	}
	r.s.m.fault("setup.recorded")
	r.set(func() { r.setup = false })
	return nil
}

// Started implements Events. It is not stored: that the launch is alive says
// as much.
func (r *run) Started() error {
	r.set(func() {
		r.setup = false
		if r.started.IsZero() {
			r.started = r.s.m.cfg.Now()
		}
	})
	return nil
}

// Health implements Events.
func (r *run) Health(healthy bool, detail string) error {
	detail = oneLine(detail)
	if rec := r.s.l.snapshot(); rec.keepsQuiet() {
		detail = untold + rec.ParentRef.Stage
	}
	r.s.mu.Lock()
	checked := r.s.svc.Healthcheck != nil
	r.s.mu.Unlock()
	if !checked {
		return nil // nobody asked
	}
	r.mu.Lock()
	r.detail = detail
	before := r.ready
	r.mu.Unlock()
	switch {
	case healthy:
		r.becomeReady()
	case before:
		r.s.l.observe(r.s.name, r.launch, func(rec *Service) {
			if !r.over() {
				rec.Phase, rec.Message = Unhealthy, "its check fails: "+detail
			}
		})
	default:
		r.set(func() {}) // not up yet, and its words have changed
	}
	if r.s.stopping() {
		return nil
	}
	err := r.s.l.save(context.WithoutCancel(r.s.m.ctx), Mutation{})
	r.s.m.fault("up.healthy")
	return err
}

// Exited implements Events.
func (r *run) Exited(code int, reason string) error {
	r.finish(code, oneLine(reason))
	r.s.m.fault("exit.recorded")
	return nil
}

// finish records how the launch ended, the first time, and says whether it is
// to be followed by another.
func (r *run) finish(code int, reason string) (again bool) {
	r.mu.Lock()
	first := r.exit == nil
	if first {
		r.exit = &Exit{Code: code, Reason: reason}
	}
	code, reason = r.exit.Code, r.exit.Reason
	setupFail := r.setupFail
	r.mu.Unlock()
	s := r.s
	if !first {
		rec := s.l.snapshot()
		svc, ok := rec.service(s.name)
		return ok && svc.Launch == r.launch && svc.Phase == Starting
	}
	defer r.set(func() {})
	if s.stopping() {
		return false // it was told to
	}
	message := describeExit(code, reason)
	if code == 137 && s.outOfMemory() {
		message += " (out of memory: the limit of the environment is reached)"
	}
	phase, again := s.verdict(r, code)
	if setupFail != "" {
		phase, again, message = Broken, false, setupFail
	}
	if n := s.endsInARow(); n > 1 && phase == Broken && setupFail == "" {
		message += fmt.Sprintf(", %d times in a row", n)
	}
	s.l.observe(s.name, r.launch, func(rec *Service) {
		c := code
		rec.Phase, rec.ExitCode, rec.Message = phase, &c, message
		if again {
			rec.Message += "; restarting"
		}
	})
	e := s.event(isle.ActionServiceExit, message).With("launch", string(r.launch)).With("code", fmt.Sprint(code))
	if code != 0 {
		e.Result = string(isle.Failed)
	}
	s.saveOrLog([]audit.Entry{e}...)
	return again
}

func describeExit(code int, reason string) string {
	message := fmt.Sprintf("ended with exit code %d", code)
	if code > 128 && code < 128+65 {
		message = fmt.Sprintf("ended by signal %d", code-128)
	}
	if reason != "" {
		message += ": " + reason
	}
	return message
}

// outOfMemory reports whether the kernel has killed for memory since it was
// last asked.
func (s *supervisor) outOfMemory() bool {
	ctx, cancel := context.WithTimeout(s.m.ctx, time.Second)
	defer cancel()
	u, err := s.m.cfg.Driver.Usage(ctx, s.l.instance)
	if err != nil {
		return false
	}
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	grown := u.OOMKill > s.l.oomSeen
	s.l.oomSeen = u.OOMKill
	return grown
}

// Log implements Events. A line that cannot be written, as on a full disk, is
// dropped and counted: a service never stands still for its log.
func (r *run) Log(at time.Time, stderr bool, data []byte) error {
	now := r.s.m.cfg.Now()
	if at.After(now) || at.Before(now.Add(-24*time.Hour)) {
		at = now // its clock is not to be trusted
	}
	r.s.l.log(r.s.name).write(now, at, stderr, data)
	r.s.l.wakeLogs()
	return nil
}

// oneLine makes text from inside fit for a message.
func oneLine(s string) string {
	s = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(strings.TrimSpace(s), "\uFFFD"))
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}
