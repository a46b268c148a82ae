package environment

import (
	"context"
	"errors"
	"slices"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/spec"
)

// A Switch is how an instance took the place of another.
type Switch struct {
	Before   isle.ID       // instance that served until then
	Took     time.Duration // from the request until the other one served
	Pause    time.Duration // how long requests were held; 0: they were not
	Kept     bool          // the other one had been put aside, and went on as it was
	Until    time.Time     // the one before is kept until then; zero: it is not
	Snapshot isle.Digest   // of the volumes as they were before; "": there are none
}

// switchOver makes an environment what a release says, and drops no request: an
// instance of its own starts beside the one that serves, takes its name and its
// published ports once it is healthy, and the one before is put aside. If it does
// not become healthy, what serves goes on as if nothing had happened.
func (m *Manager) switchOver(ctx context.Context, actor isle.Actor, old *live, req UpRequest, say func(Progress)) (UpResult, error) {
	began := m.cfg.Now()
	if r, ok, err := m.goBack(ctx, actor, old, req, say); ok || err != nil {
		return r, err
	}
	ports, err := m.assignPorts(ctx, req.Ref, req.Spec, old)
	if err != nil {
		return UpResult{}, err
	}
	f, h, err := m.stageRelease(ctx, actor, old, req)
	if err != nil {
		ports.release()
		return UpResult{}, err
	}
	if err = m.takePlace(ctx, old, f, h, req, ports, say); err != nil {
		ports.release()
		text := "environment " + req.Ref.String() + " was not switched, and is as it was"
		if h != nil {
			if rerr := h.resume(say); rerr != nil {
				text = "environment " + req.Ref.String() + " was not switched, and what was there does not start again (" + firstLine(rerr) + ")"
			}
		}
		m.unstage(f, err)
		return UpResult{}, isle.Errorf(isle.CodeOf(err), "%s: %w", text, withoutHint(err))
	}
	s := Switch{Took: m.cfg.Now().Sub(began)}
	if h != nil {
		s.Pause = h.letGo()
		s.Snapshot = m.finish(old, f.l, say)
	}
	say(Progress{Step: "switch", State: "done"})
	return switched(old, f.l, s), nil
}

// takePlace launches the staged instance and puts it in the place of the other.
func (m *Manager) takePlace(ctx context.Context, old *live, f *fork, h *handover, req UpRequest, ports *portPlan, say func(Progress)) error {
	if h != nil {
		if err := m.open(ctx, f.l, say); err != nil { // what can be done before requests wait
			return err
		}
		if err := h.stop(ctx, say); err != nil {
			return err
		}
	}
	err := m.carryOut(ctx, f.l, f.secrets, false, say, func() {})
	if err == nil {
		err = f.l.unhealthy()
	}
	if err != nil {
		return err
	}
	m.fault("switch.up")
	c := Mutation{}
	if h != nil {
		c.PutVolumes = h.changeHands()
	}
	return m.exchange(ctx, old, f.l, req, ports, f.intent, c)
}

// finish saves the volumes as the one before has left them, and takes that away.
// What fails is tried again.
func (m *Manager) finish(old, now *live, say func(Progress)) isle.Digest {
	old.mu.Lock()
	a := old.aside
	old.mu.Unlock()
	say(Progress{Step: "snapshot", State: "start"})
	if err := m.endAside(context.WithoutCancel(m.ctx), old, a, 0); err != nil {
		say(Progress{Step: "snapshot", State: "failed", Message: "tried again: " + firstLine(err)})
		return ""
	}
	say(Progress{Step: "snapshot", State: "done"})
	if saved := now.snapshot().Saved; len(saved) > 0 {
		return saved[len(saved)-1].Snapshot
	}
	return ""
}

// switched is what a switch came to.
func switched(old, now *live, s Switch) UpResult {
	was := old.snapshot()
	if s.Before = was.Instance; was.Aside != nil && !was.Yielding {
		s.Until = was.Aside.Until
	}
	return UpResult{Environment: now.snapshot(), Changed: true, Replaced: []string{switchedFrom(old)}, Switch: &s}
}

// switchedFrom says for people what served before.
func switchedFrom(old *live) string {
	if d := old.snapshot().Release; d != "" {
		return "switched from release " + d.Short()
	}
	return "switched from what was launched of a file"
}

// unhealthy is why an instance is not to serve; nil: all of it is up.
func (l *live) unhealthy() error {
	rec := l.snapshot()
	for _, s := range rec.Services {
		if s.Phase != Running && s.Phase != Exited {
			return isle.Errorf(isle.Failed, "service %s is %s: %s", s.Name, s.Phase, s.Message)
		}
	}
	return nil
}

// stageRelease records the instance that is to take over: nobody finds it by
// name, and what a crash leaves of it is undone.
func (m *Manager) stageRelease(ctx context.Context, actor isle.Actor, old *live, req UpRequest) (*fork, *handover, error) {
	now := m.cfg.Now().UTC()
	e := old.snapshot()
	was := e.Instance
	e.Instance, e.Desired, e.Phase, e.Trouble, e.Boot = isle.NewID(), WantRunning, Pending, "", m.cfg.Boot
	e.Staged, e.Spec, e.Created, e.Services, e.Kept = true, req.Spec, now, nil, ""
	req.mark(&e)
	if req.TTL != nil || old.snapshot().Spec.TTL != req.Spec.TTL {
		e.Expires = expiry(now, req)
	}
	f := newFork(nil)
	for _, name := range spec.StartOrder(req.Spec) {
		svc, _ := e.specOf(name)
		secret, hash := newSecret()
		f.secrets[name] = secret
		s := newService(svc, req.Spec, req.Images[name], hash, nil)
		e.Services = append(e.Services, s)
	}
	s, first, prepared := m.takeSpare(req.Spec)
	if prepared {
		e.Instance = s.instance
		svc, _ := e.service(first)
		svc.Launch = s.launch
	}
	f.l = m.newLive(e)
	m.mu.Lock()
	if prepared {
		f.l.uids = s.uids
		m.keepSpare(s)
	} else {
		f.l.uids = m.pickUIDs(e.Instance)
	}
	f.l.rec.UIDBase = f.l.uids
	m.staged[e.Instance] = f.l
	m.mu.Unlock()
	f.intent = audit.NewIntent(actor, isle.ActionEnvironmentLaunch, resource(req.Ref), switchedFrom(old)).In(req.Ref, e.Instance).Explained(ctx).With("project", e.Project).With("replaces", string(was))
	for _, s := range e.Services {
		f.intent = f.intent.With("image "+s.Name, string(s.Digest))
	}
	f.intent = req.from(f.intent)
	m.warm(f.l)
	var h *handover
	if ownsVolumes(e.Spec) || ownsVolumes(old.snapshot().Spec) {
		h = &handover{m: m, old: old, f: f}
		h.from = m.wantHandover(f, now)
	}
	put := slices.Concat(f.volumes, f.fresh)
	if err := f.l.save(ctx, Mutation{PutVolumes: put, Entries: append([]audit.Entry{f.intent}, volumesMade(actor, f.l, put, now)...)}); err != nil {
		m.forget(f.l)
		if prepared {
			err = errors.Join(err, m.discardSpare(s))
		}
		return nil, nil, err
	}
	m.fault("switch.recorded")
	return f, h, nil
}

// goBack switches to an instance that was put aside and is what is asked for; ok
// is false where there is none.
func (m *Manager) goBack(ctx context.Context, actor isle.Actor, old *live, req UpRequest, say func(Progress)) (r UpResult, ok bool, err error) {
	if !req.Back {
		return r, false, nil
	}
	began := m.cfg.Now()
	kept := m.asides(req.Ref)
	i := slices.IndexFunc(kept, func(l *live) bool { return l.snapshot().is(req) })
	if i < 0 {
		return r, false, nil
	}
	l := kept[i]
	a, ok := l.claim()
	if !ok {
		return r, false, nil
	}
	ports, err := m.assignPorts(ctx, req.Ref, req.Spec, old)
	if err != nil {
		m.putAside(l)
		return r, false, err
	}
	intent, err := m.begin(ctx, req.from(audit.NewIntent(actor, isle.ActionEnvironmentLaunch, resource(req.Ref), switchedFrom(old)+" to an instance that was kept").
		In(req.Ref, l.instance).With("project", req.Project).With("replaces", string(old.instance))))
	if err == nil {
		err = m.part(ctx, l, false)
	}
	if err == nil {
		err = m.thaw(ctx, l, a)
	}
	m.fault("switch.thawed")
	for _, s := range l.snapshot().Services {
		if err == nil {
			_, err = l.line(ctx, s.Name)
		}
	}
	if err == nil {
		err = m.exchange(ctx, old, l, req, ports, intent, Mutation{})
	} else if intent.ID != "" { // it does not go on: it is launched anew
		m.cfg.Log.Warn("an instance that was kept does not go on", "environment", req.Ref, "instance", l.instance, "error", err)
		m.end(intent, err)
		ports.release()
		m.putAside(l)
		return r, false, nil
	}
	if err != nil {
		ports.release()
		m.putAside(l)
		m.end(intent, err)
		return r, true, isle.Errorf(isle.CodeOf(err), "environment %s was not switched, and is as it was: %w", req.Ref, err)
	}
	say(Progress{Step: "switch", State: "done", Message: "to the instance that was kept"})
	return switched(old, l, Switch{Took: m.cfg.Now().Sub(began), Kept: true}), true, nil
}

// is reports whether an instance is what a request asks for.
func (e Environment) is(req UpRequest) bool {
	if e.Release != req.Release || e.Desired != WantRunning || !e.goesOn() || string(encodeSpec(e.Spec)) != string(encodeSpec(req.Spec)) {
		return false
	}
	for _, s := range e.Services {
		if img, ok := req.Images[s.Name]; !ok || img.Digest() != s.Digest {
			return false
		}
	}
	return true
}

// exchange puts an instance in the place of the one that serves, in one
// transaction: from then on the name means it, new connections go to it, and the
// other is put aside.
func (m *Manager) exchange(ctx context.Context, old, next *live, req UpRequest, ports *portPlan, intent audit.Entry, c Mutation) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if req.Last != nil {
		if err := req.Last(ctx); err != nil {
			return err
		}
		m.fault("switch.committed")
	}
	now := m.cfg.Now().UTC()
	c.Entries = append(c.Entries, intent.Outcome(nil))
	place := func(e *Environment) {
		if e.Instance == next.instance {
			e.Staged, e.Aside = false, nil
			for i := range e.Services {
				e.Services[i].Ports = ports.of(e.Services[i].Name)
			}
			return
		}
		e.Staged, e.Aside = true, &Aside{For: next.instance, Since: now, Until: now.Add(max(m.cfg.KeepAside, req.Keep))}
		if e.Yielding { // it does not run any more
			e.Aside.Until = now
		}
		for i := range e.Services {
			e.Services[i].Ports = nil
		}
	}
	// The name is given free before it is taken.
	if err := m.saveAll(context.WithoutCancel(ctx), []*live{old, next}, place, c); err != nil {
		return err
	}
	m.fault("switch.taken")
	m.mu.Lock()
	delete(m.staged, next.instance)
	m.envs[next.ref], m.staged[old.instance] = next, old
	m.mu.Unlock()
	next.mu.Lock()
	next.aside = nil
	next.mu.Unlock()
	for _, svc := range next.snapshot().Spec.Services {
		if s := next.supervisor(svc.Name); s != nil {
			s.setSpec(svc)
		}
	}
	next.succeed(old, ports)
	old.update(func(*Environment) {}) // who waits or follows looks again
	old.wakeLogs()
	if old.snapshot().Yielding {
		old.mu.Lock()
		old.aside = &aside{stop: func() {}, done: closed(), claimed: true} // for finish
		old.mu.Unlock()
	} else {
		m.putAside(old)
	}
	m.spawn(func() { m.dropAsides(context.WithoutCancel(m.ctx), old.ref, old) })
	return nil
}

func closed() chan struct{} {
	ch := make(chan struct{})
	close(ch)
	return ch
}

// succeed gives an instance the published ports of the one whose place it has
// taken, with what listens there. Ports that it has not are closed when the other
// is drained.
func (l *live) succeed(old *live, plan *portPlan) {
	old.mu.Lock()
	taken := map[portKey]*publisher{}
	for service, ports := range plan.ports {
		for _, p := range ports {
			key := portKey{service, p.Name}
			if have := old.published[key]; have != nil {
				taken[key] = have
				delete(old.published, key)
			}
		}
	}
	for _, p := range old.published {
		p.ln.Close()
	}
	old.mu.Unlock()
	l.mu.Lock()
	for key, p := range taken {
		l.published[key] = p
	}
	l.mu.Unlock()
	l.publish(plan) // leads them here, and takes up those that are new
}
