package environment

import (
	"context"
	"fmt"
	"time"

	"isle"
	"isle/internal/initproto"
	"isle/internal/spec"
)

// startCopy brings up a copy whose volumes are made: it goes on from memory, or
// is started.
func (m *Manager) startCopy(ctx context.Context, f *fork, say func(Progress)) error {
	if f.memory == nil {
		return m.carryOut(ctx, f.l, f.secrets, false, say, nil)
	}
	began := m.cfg.Now()
	say(Progress{Step: "memory", State: "start"})
	err := m.wake(ctx, f)
	f.leaveMemory()
	if err != nil {
		say(Progress{Step: "memory", State: "failed", Message: firstLine(err)})
		return err
	}
	say(Progress{Step: "memory", State: "done", Message: m.cfg.Now().Sub(began).Round(time.Millisecond).String()})
	return m.goOn(ctx, f, say)
}

// A woken is a service that goes on from memory, not yet kept by its supervisor.
type woken struct {
	s   *supervisor
	svc spec.Service
	asleep
}

// wake brings the services of a copy back that are in memory. When it returns
// nil each of them has called home as the copy's own, and the record says so; a
// copy that a crash finds before that is undone, as is one that this fails for:
// its services may have run, and what was told of it would be of no use to its
// source.
func (m *Manager) wake(ctx context.Context, f *fork) error {
	l := f.l
	if err := m.open(ctx, l, func(Progress) {}); err != nil {
		return err
	}
	all, launches, err := m.sleepers(ctx, f)
	if err != nil {
		return err
	}
	rec := l.snapshot()
	for _, w := range all {
		if err := m.expectFork(f, rec, w); err != nil {
			return err // what is expected is forgotten with the copy
		}
	}
	m.fault("fork.waking")
	if err := m.bringBackMemory(ctx, rec, f.memory, launches); err != nil {
		return err
	}
	m.fault("fork.restored")
	if err := m.awaitHome(ctx, all); err != nil {
		return err
	}
	if err := m.recordWoken(ctx, f, all); err != nil {
		return err
	}
	m.fault("fork.woken")
	for _, w := range all {
		w.s.keep(w.s.current(), nil)
	}
	return nil
}

// sleepers are the services that are in memory, and what the driver is to be told
// of them.
func (m *Manager) sleepers(ctx context.Context, f *fork) (all []*woken, launches []Launch, err error) {
	rec := f.l.snapshot()
	for i := range rec.Services {
		s := rec.Services[i]
		w := &woken{asleep: f.memory.of(s.Name)}
		if w.launch == "" {
			continue
		}
		w.svc, _ = rec.specOf(s.Name)
		s.Phase = w.phase // by which it counts as up
		w.s = m.newSupervisor(f.l, w.svc, s, true)
		x, err := m.launchOf(ctx, f.l, rec, w.svc, s)
		if err != nil {
			return nil, nil, err
		}
		for _, want := range w.svc.Volumes {
			v, ok := findVolume(m.volumesFor(rec), s.Name, want.Path)
			if !ok || !v.Ready {
				return nil, nil, isle.Errorf(isle.Internal, "service %s: volume %s was not captured with its memory", s.Name, want.Path)
			}
			x.Volumes = append(x.Volumes, Mount{Volume: v.ID, Source: m.cfg.Volumes.Path(v.ID), Path: want.Path})
		}
		x.Exited = w.s.current().initGone
		all, launches = append(all, w), append(launches, x)
	}
	return all, launches, nil
}

// expectFork has the line wait for an isle-init that takes itself for that of the
// launch which was captured, and tell it who it is.
func (m *Manager) expectFork(f *fork, rec Environment, w *woken) error {
	s, _ := rec.service(w.name)
	b := initproto.Become{Launch: s.Launch, Secret: f.secrets[w.name], Hostname: rec.hostname(w.name), Generation: rec.Generation}
	var err error
	if b.Trust, err = m.trust(rec); err != nil {
		return err
	}
	return m.cfg.Lines.ExpectFork(rec.Instance, w.launch, w.secretHash, b, w.s.current())
}

// bringBackMemory has the driver do it; how many sandboxes are made at a time is
// bounded.
func (m *Manager) bringBackMemory(ctx context.Context, rec Environment, y *memory, launches []Launch) error {
	driver, ok := m.cfg.Driver.(Restorer)
	if !ok {
		return isle.Errorf(isle.Unavailable, "memory cannot be brought back on this server")
	}
	select {
	case m.launches <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-m.launches }()
	ctx, done := m.bounded(ctx)
	defer done()
	shared := Shared{Instance: rec.Instance, Isolation: rec.Spec.Isolation, Limits: rec.Spec.Limits}
	return driver.Restore(ctx, Restore{Shared: shared, Launches: launches, Memory: y.dir, Runtime: y.runtime})
}

// awaitHome waits until every isle-init has called home as the copy's. One that
// has told the end of its command has called too.
func (m *Manager) awaitHome(ctx context.Context, all []*woken) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, w := range all {
		r := w.s.current()
		limit := time.AfterFunc(homeLimit, func() {
			cancel(isle.Errorf(isle.Failed, "isle-init of service %s did not call home within %v of going on", w.name, homeLimit))
		})
		stop := make(chan struct{})
		go func() { // ends with stop
			select {
			case <-r.gone:
				if !r.over() {
					cancel(isle.Errorf(isle.Failed, "service %s ended as it was to go on", w.name))
				}
			case <-stop:
			}
		}()
		_, err := m.cfg.Lines.Line(ctx, r.launch)
		close(stop)
		limit.Stop()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !r.over():
			return fmt.Errorf("service %s: %w", w.name, err)
		}
	}
	return nil
}

// recordWoken says in the record that a copy goes on: from here on it is as any
// other that runs.
func (m *Manager) recordWoken(ctx context.Context, f *fork, all []*woken) error {
	next := f.next
	now := m.cfg.Now()
	return f.l.change(ctx, func(e *Environment) {
		e.Opening = next
		for _, w := range all {
			if s, ok := e.service(w.name); ok && s.Phase == Starting && !w.s.current().over() {
				s.Phase, s.Message, s.Started = w.phase, w.message, now
			}
		}
	}, Mutation{})
}

// goOn opens a copy that has woken, starts the services that were about to start
// when it was captured, and has on_fork run.
func (m *Manager) goOn(ctx context.Context, f *fork, say func(Progress)) error {
	rec := f.l.snapshot()
	if rec.Opening == Open {
		refused, err := m.openNetwork(ctx, f.l)
		if err != nil {
			return err
		}
		for _, a := range refused {
			say(Progress{Step: a.by, State: "log", Message: "warning: " + a.warning()})
		}
	}
	start := map[string][]byte{}
	var ended []string
	for _, s := range rec.Services {
		switch a := f.memory.of(s.Name); {
		case a.launch != "":
		case a.phase == Pending && a.message == "":
			start[s.Name] = f.secrets[s.Name]
		default:
			ended = append(ended, s.Name)
		}
	}
	if err := m.settle(ctx, f.l, start, say); err != nil {
		return err
	}
	if err := f.l.failure(ended...); err != nil {
		return err
	}
	return m.openFork(ctx, f.l, say)
}
