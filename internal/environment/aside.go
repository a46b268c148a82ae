package environment

import (
	"context"
	"maps"
	"slices"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/spec"
)

const (
	// defaultDrain is how long what an instance was asked may take once another
	// one has taken its place.
	defaultDrain = 30 * time.Second
	// defaultKeepAside is how long it is kept after that.
	defaultKeepAside = time.Hour
	// homeAgain is how long the isle-inits of an instance that was put aside may
	// take to call a new server before it is frozen again.
	homeAgain = 10 * time.Second
)

// An aside is the work on an instance that was put aside: it is drained and then
// frozen. Its goroutine ends with stop, and with the Manager.
type aside struct {
	stop    context.CancelFunc
	done    chan struct{} // closed when the work is over
	claimed bool          // it is about to serve again, or to be removed; under live.mu
}

// putAside has an instance that serves no more answer what it was asked, cuts
// what goes on after that, and freezes it.
func (m *Manager) putAside(l *live) {
	ctx, stop := context.WithCancel(m.ctx)
	a := &aside{stop: stop, done: make(chan struct{})}
	l.mu.Lock()
	l.aside = a
	l.mu.Unlock()
	for _, s := range l.snapshot().Spec.Services {
		if keeper := l.supervisor(s.Name); keeper != nil {
			s.Restart = "no" // what ends now is of no use
			keeper.setSpec(s)
		}
	}
	if !m.spawn(func() {
		defer close(a.done)
		defer stop()
		drained := l.drain(ctx, m.cfg.Drain)
		if ctx.Err() != nil {
			return
		}
		if !drained {
			m.cfg.Log.Warn("what went on in an instance that serves no more was cut", "environment", l.ref, "instance", l.instance, "after", m.cfg.Drain)
		}
		l.cutThrough()
		l.unpublishAll() // ports that its successor does not have
		m.freeze(ctx, l)
	}) {
		stop()
		close(a.done)
	}
}

// freeze holds an instance still, once its isle-inits are home: what is frozen
// does not call.
func (m *Manager) freeze(ctx context.Context, l *live) {
	f, ok := m.cfg.Driver.(Freezer)
	if !ok {
		return
	}
	m.fault("switch.drained")
	if err := f.Freeze(ctx, l.instance); err != nil {
		m.cfg.Log.Error("what serves no more could not be frozen, and runs on until its time is over", "environment", l.ref, "instance", l.instance, "error", err)
		return
	}
	m.fault("switch.frozen")
}

// drain waits until nothing that was begun goes on in an instance; false: it does
// still when the limit is over, or ctx has ended.
func (l *live) drain(ctx context.Context, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		l.mu.Lock()
		through, sessions := slices.Collect(maps.Keys(l.through)), l.sessions
		l.mu.Unlock()
		for _, c := range through {
			c.moveOn()
		}
		if len(l.connections) == 0 && sessions == 0 {
			return true
		}
		if !sleep(ctx, 2*time.Millisecond) {
			return false
		}
	}
}

// cutThrough ends what still goes on through an instance.
func (l *live) cutThrough() {
	l.mu.Lock()
	cut, through := l.cutOff, slices.Collect(maps.Keys(l.through))
	l.mu.Unlock()
	cut()
	for _, c := range through {
		c.cut()
	}
	l.transport.CloseIdleConnections()
}

// asides are the instances that were put aside under a name, the last one first.
func (m *Manager) asides(ref isle.Ref) (out []*live) {
	m.mu.Lock()
	for _, l := range m.staged {
		if l.ref == ref {
			out = append(out, l)
		}
	}
	m.mu.Unlock()
	out = slices.DeleteFunc(out, func(l *live) bool { return l.snapshot().Aside == nil })
	slices.SortFunc(out, func(a, b *live) int { return b.snapshot().Aside.Since.Compare(a.snapshot().Aside.Since) })
	return out
}

// Asides are the instances that were put aside under a name, the last one first.
func (m *Manager) Asides(_ context.Context, ref isle.Ref) (out []Environment) {
	for _, l := range m.asides(ref) {
		out = append(out, l.snapshot())
	}
	return out
}

// claim takes an instance that was put aside, so that nobody else does.
func (l *live) claim() (*aside, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.aside == nil || l.aside.claimed {
		return nil, false
	}
	l.aside.claimed = true
	return l.aside, true
}

// thaw lets a claimed instance go on.
func (m *Manager) thaw(ctx context.Context, l *live, a *aside) error {
	a.stop()
	<-a.done
	l.serve()
	f, ok := m.cfg.Driver.(Freezer)
	if !ok {
		return nil
	}
	return f.Thaw(ctx, l.instance)
}

// removeAside ends a claimed instance for good.
func (m *Manager) removeAside(ctx context.Context, l *live, a *aside) error {
	if err := m.save(ctx, l); err != nil { // its volumes, if it has any: data is never just removed
		return err
	}
	l.update(func(e *Environment) { e.Desired = WantDown }) // who waits for it looks again, and nobody goes back to it
	// It ends as it began to rest: what an application was about to do then, and does
	// now that it goes on, is done to nobody any more.
	err := m.part(ctx, l, true)
	if err == nil {
		err = m.thaw(ctx, l, a)
	}
	if err != nil { // what is frozen does not end by itself
		m.cfg.Log.Warn("an instance that was put aside does not go on, and is killed", "environment", l.ref, "instance", l.instance, "error", err)
	}
	before := l.snapshot()
	if err := m.dismantle(ctx, l, before, func(Progress) {}); err != nil {
		return err
	}
	gone := audit.NewEvent(system("switch"), isle.ActionEnvironmentDown, resource(l.ref), isle.Allow, "an instance whose place was taken is removed").In(l.ref, l.instance)
	gone.Release = before.Release
	if err := l.remove(ctx, Mutation{Entries: []audit.Entry{gone}}); err != nil {
		return err
	}
	m.fault("aside.removed")
	m.forget(l)
	m.forgetFiles(l)
	return nil
}

// endAside is removeAside of what is tried again, after a pause, by whoever comes
// next where it fails.
func (m *Manager) endAside(ctx context.Context, l *live, a *aside, pause time.Duration) error {
	err := m.removeAside(ctx, l, a)
	if err != nil {
		m.cfg.Log.Error("an instance whose place was taken could not be removed; trying again", "environment", l.ref, "instance", l.instance, "error", err)
		sleep(m.ctx, pause)
		l.mu.Lock()
		a.claimed = false
		l.mu.Unlock()
	}
	return err
}

// dropAsides removes what was put aside under a name, but the given one, and
// waits for it. What fails is tried again when its time is over.
func (m *Manager) dropAsides(ctx context.Context, ref isle.Ref, but *live) {
	for _, l := range m.asides(ref) {
		if l == but {
			continue
		}
		a, ok := l.claim()
		if !ok {
			continue // it is on its way
		}
		_ = m.endAside(ctx, l, a, 0) // logged
	}
}

// expireAsides removes what was put aside and whose time is over, or of which
// something has ended.
func (m *Manager) expireAsides() {
	now := m.cfg.Now()
	for _, l := range m.all() {
		rec := l.snapshot()
		if rec.Aside == nil || now.Before(rec.Aside.Until) && rec.goesOn() {
			continue
		}
		a, ok := l.claim()
		if !ok {
			continue
		}
		if !m.spawn(func() {
			_ = m.endAside(context.WithoutCancel(m.ctx), l, a, lastBackoff) // logged
		}) {
			return
		}
	}
}

// goesOn reports whether every service of an instance is as it was when it
// served.
func (e *Environment) goesOn() bool {
	return !e.Yielding && !slices.ContainsFunc(e.Services, func(s Service) bool { return s.Phase != Running })
}

// ownsVolumes reports whether a service of a file has volumes: two instances of
// it never run side by side.
func ownsVolumes(f spec.File) bool {
	return slices.ContainsFunc(f.Services, func(s spec.Service) bool { return len(s.Volumes) > 0 })
}

// adoptAside takes up what an earlier server had put aside: it is frozen again as
// soon as its isle-inits have called. What does not run as it did is removed.
func (m *Manager) adoptAside(ctx context.Context, l *live, f *found) {
	rec := l.snapshot()
	whole := !ownsVolumes(rec.Spec) && rec.Boot == m.cfg.Boot && rec.Desired == WantRunning && rec.goesOn()
	for _, s := range rec.Services {
		whole = whole && f.alive(l.instance, s.Launch)
	}
	a := &aside{stop: func() {}, done: make(chan struct{})}
	l.mu.Lock()
	l.aside = a
	l.mu.Unlock()
	if whole {
		l.opening.Lock()
		l.parted = true // it goes on for a moment, to call, and does nothing to anybody
		l.opening.Unlock()
		for _, s := range rec.Services {
			svc, _ := rec.specOf(s.Name)
			svc.Restart = "no"
			m.supervise(l, svc, s, nil)
		}
		if _, err := m.openNetwork(ctx, l); err != nil {
			m.cfg.Log.Error("what was put aside could not be taken up", "environment", l.ref, "instance", l.instance, "error", err)
			whole = false
		}
	}
	if !whole { // expireAsides removes it
		close(a.done)
		l.update(func(e *Environment) {
			over := *e.Aside
			over.Until = time.Time{}
			e.Aside = &over
		})
		return
	}
	work, stop := context.WithCancel(m.ctx)
	a.stop = stop
	if !m.spawn(func() {
		defer close(a.done)
		defer stop()
		if f, ok := m.cfg.Driver.(Freezer); ok { // to call
			if err := f.Thaw(work, l.instance); err != nil {
				m.cfg.Log.Warn("what was put aside does not go on", "environment", l.ref, "instance", l.instance, "error", err)
			}
		}
		home, cancel := context.WithTimeout(work, homeAgain)
		defer cancel()
		for _, s := range rec.Services {
			if _, err := m.cfg.Lines.Line(home, s.Launch); err != nil {
				m.cfg.Log.Warn("a service that was put aside has not called yet", "environment", l.ref, "service", s.Name, "error", err)
			}
		}
		if work.Err() == nil {
			m.freeze(work, l)
		}
	}) {
		stop()
		close(a.done)
	}
}
