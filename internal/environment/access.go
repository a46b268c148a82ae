package environment

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/audit"
)

// startWait is how long work in a service waits for it to start.
const startWait = 30 * time.Second

// line returns the Line of a service's present launch. It waits while the
// service starts, and fails at once if it is not to run.
func (l *live) line(ctx context.Context, service string) (Line, error) {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	for {
		var s Service
		err := l.wait(ctx, func(e Environment) bool {
			rec, ok := e.service(service)
			if !ok {
				s = Service{}
				return true
			}
			s = *rec
			return e.Desired == WantDown || s.Phase != Pending || s.Message != ""
		})
		switch {
		case err != nil:
			return nil, isle.Errorf(isle.Unavailable, "service %s of %s has not started: %w", service, l.ref, err)
		case s.Name == "":
			return nil, l.noService(service)
		case s.Phase == Exited || s.Phase == Broken || s.Phase == Pending:
			why := s.Message
			if why == "" {
				why = "it is " + string(s.Phase)
			}
			return nil, isle.Errorf(isle.Unavailable, "service %s of %s is not running: %s", service, l.ref, why).
				WithHint("isle logs %s shows its last words, isle up starts it again", l.ref)
		}
		line, err := l.m.cfg.Lines.Line(ctx, s.Launch)
		if err == nil {
			return line, nil
		}
		if ctx.Err() != nil {
			return nil, isle.Errorf(isle.Unavailable, "service %s of %s does not answer: %w", service, l.ref, err)
		}
		// The launch ended meanwhile, or is not expected yet: look again.
		if !sleep(ctx, 5*time.Millisecond) {
			return nil, isle.Errorf(isle.Unavailable, "service %s of %s does not answer: %w", service, l.ref, err)
		}
	}
}

func (l *live) noService(service string) error {
	rec := l.snapshot()
	var names []string
	for _, s := range rec.Spec.Services {
		names = append(names, s.Name)
	}
	return isle.Errorf(isle.NotFound, "environment %s has no service %s", l.ref, service).
		WithHint("it has: %s", strings.Join(names, ", "))
}

// choose returns the service to work in: the one named, else the first of the
// file.
func (l *live) choose(service string) (string, error) {
	rec := l.snapshot()
	if service == "" && len(rec.Spec.Services) > 0 {
		return rec.Spec.Services[0].Name, nil
	}
	if _, ok := rec.service(service); !ok {
		return "", l.noService(service)
	}
	return service, nil
}

// enter is what every piece of work in a service begins with: it finds the
// service, records the intent, and gets the line.
func (m *Manager) enter(ctx context.Context, actor isle.Actor, ref isle.Ref, service string, action isle.Action, summary string) (*entered, error) {
	l, err := m.get(ref)
	if err != nil {
		return nil, err
	}
	if err := l.keptFrom(); err != nil {
		return nil, err
	}
	if service, err = l.choose(service); err != nil {
		return nil, err
	}
	if err := l.comeIn(ctx, string(action)); err != nil {
		return nil, err
	}
	leave := l.session()
	intent, err := m.begin(ctx, audit.NewIntent(actor, action, serviceResource(ref, service), summary).In(ref, l.instance))
	if err != nil {
		leave()
		return nil, err
	}
	if action == isle.ActionEnvironmentExec {
		leave = l.inside(intent.ID, leave)
	}
	w := &entered{m: m, l: l, service: service, intent: intent, leave: leave}
	if w.line, err = l.line(ctx, service); err != nil {
		w.exit(err)
		return nil, err
	}
	return w, nil
}

// A visit is an exec session by its audit entry.
type visit struct {
	id    isle.ID
	ended time.Time // zero: it is open
}

// Bounds of what is known of visits.
const (
	maxVisits  = 16          // that an entry names
	keepVisits = time.Minute // after their end, for what is told of later
	// lateness is how long after it was tried something may be seen.
	lateness = 2 * time.Second
)

// inside notes an exec session, by its entry, until leave is called.
func (l *live) inside(id isle.ID, leave func()) func() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.execs = append(l.execs, visit{id: id})
	return func() {
		l.mu.Lock()
		now := l.m.cfg.Now()
		l.execs = slices.DeleteFunc(l.execs, func(v visit) bool { return !v.ended.IsZero() && now.Sub(v.ended) > keepVisits })
		for i := range l.execs {
			if l.execs[i].id == id {
				l.execs[i].ended = now
			}
		}
		l.mu.Unlock()
		leave()
	}
}

// Inside are the exec sessions of an instance that are open, or were at a time of
// up to a minute ago or within two seconds before it, by their audit entries: the oldest first, at most 16. What a
// workload does while somebody is inside may be that person's doing, and the log
// says so.
func (m *Manager) Inside(instance isle.ID, at time.Time) (entries []isle.ID) {
	for _, l := range m.all() {
		if l.instance != instance {
			continue
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, v := range l.execs {
			if (v.ended.IsZero() || v.ended.After(at.Add(-lateness))) && len(entries) < maxVisits {
				entries = append(entries, v.id)
			}
		}
	}
	return entries
}

// entered is open work in a service. exit is called once it is over; only the
// first call counts.
type entered struct {
	m       *Manager
	l       *live
	service string
	line    Line
	intent  audit.Entry
	leave   func()
	once    sync.Once
}

// lasts has the work end when its instance serves no more.
func (w *entered) lasts(end func()) {
	stop, leave := w.l.whileServing(end), w.leave
	w.leave = func() { stop(); leave() }
}

// exit records the outcome. It does not wait for the disk: what was done is
// done.
func (w *entered) exit(err error) {
	w.once.Do(func() {
		w.leave()
		if !w.m.spawn(func() { w.m.end(w.intent, err) }) {
			w.m.end(w.intent, err)
		}
	})
}

// Exec starts a command in a service: the named one, or the file's first. Its
// owner closes the Process.
func (m *Manager) Exec(ctx context.Context, actor isle.Actor, ref isle.Ref, service string, e Exec) (Process, error) {
	if len(e.Command) == 0 {
		return nil, isle.Errorf(isle.Invalid, "no command to run").WithHint("isle exec %s -- COMMAND", ref)
	}
	if e.Session == "" {
		e.Session = isle.NewID()
	}
	w, err := m.enter(ctx, actor, ref, service, isle.ActionEnvironmentExec, strings.Join(e.Command, " "))
	if err != nil {
		return nil, err
	}
	p, err := w.line.Exec(ctx, e)
	if err != nil {
		w.exit(err)
		return nil, err
	}
	w.lasts(func() { p.Close() })
	return &execution{Process: p, w: w}, nil
}

// An execution is a Process whose end is recorded.
type execution struct {
	Process
	w *entered
}

// Next implements Process.
func (x *execution) Next() (Output, error) {
	out, err := x.Process.Next()
	switch {
	case err != nil:
		x.w.exit(isle.Errorf(isle.Unavailable, "the command's end was not seen: %w", err))
	case out.Exit != nil && out.Exit.Code != 0:
		x.w.exit(isle.Errorf(isle.Failed, "%s", describeExit(out.Exit.Code, oneLine(out.Exit.Reason))))
	case out.Exit != nil:
		x.w.exit(nil)
	}
	return out, err
}

// Close implements Process.
func (x *execution) Close() error {
	err := x.Process.Close()
	x.w.exit(isle.Errorf(isle.Unavailable, "its client left before its end"))
	return err
}

// Forward opens a connection to a TCP port on 127.0.0.1 inside.
func (m *Manager) Forward(ctx context.Context, actor isle.Actor, ref isle.Ref, service string, port int) (io.ReadWriteCloser, error) {
	return m.Reach(ctx, actor, ref, service, port, "")
}

// Reach is Forward with what it is for, which the entry says.
func (m *Manager) Reach(ctx context.Context, actor isle.Actor, ref isle.Ref, service string, port int, summary string) (io.ReadWriteCloser, error) {
	if port < 1 || port > 65535 {
		return nil, isle.Errorf(isle.Invalid, "%d is no port", port)
	}
	if l := m.find(ref); l != nil {
		if err := l.open(); err != nil {
			return nil, err
		}
	}
	w, err := m.enter(ctx, actor, ref, service, isle.ActionEnvironmentPort, summary)
	if err != nil {
		return nil, err
	}
	c, err := w.line.Forward(ctx, port)
	if err != nil {
		w.exit(err)
		return nil, err
	}
	w.lasts(func() { c.Close() })
	return &forwarded{ReadWriteCloser: c, w: w}, nil
}

// A forwarded connection records its end.
type forwarded struct {
	io.ReadWriteCloser
	w *entered
}

// CloseWrite ends what is sent and leaves what comes.
func (f *forwarded) CloseWrite() error {
	if half, ok := f.ReadWriteCloser.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return f.Close()
}

func (f *forwarded) Close() error {
	err := f.ReadWriteCloser.Close()
	f.w.exit(nil)
	return err
}

// Doors says what an environment may reach and what it has tried.
func (m *Manager) Doors(_ context.Context, _ isle.Actor, ref isle.Ref) ([]Door, error) {
	l, err := m.get(ref)
	if err != nil {
		return nil, err
	}
	return m.withPolicy(m.cfg.Network.Doors(l.instance), l.snapshot()), nil
}
