package environment

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/spec"
)

// WarmSnapshots are the ready states that environments begin with;
// *snapshot.Snapshots implements it.
type WarmSnapshots interface {
	// Warm returns the snapshot of the ready state that has a key.
	Warm(key isle.Digest) (d isle.Digest, ok bool)
	// Used notes that an environment has begun with it.
	Used(d isle.Digest)
	// Cool has nothing begin with it any more.
	Cool(ctx context.Context, actor isle.Actor, d isle.Digest) error
}

// maxFutile bounds how many keys are remembered with which no warm start comes to
// anything.
const maxFutile = 1000

// warmKey is the digest of all that decides what is in the memory of what a
// request asks for, and of whose that is. Memory is handed to nobody but the owner
// of what it was captured of, and stays in its project and stage.
func (m *Manager) warmKey(req UpRequest, owner isle.Actor) (isle.Digest, error) {
	sealed, err := m.cfg.Sealed(req.Spec, req.Images)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(struct {
		Sealed         isle.Digest
		Project, Stage string
		Owner          isle.Actor
	}{sealed, req.Project, req.Ref.Stage, owner})
	if err != nil {
		return "", isle.Errorf(isle.Internal, "the key of a ready state: %w", err)
	}
	return isle.DigestOf(b), nil
}

// beginWarm is create of what begins with the ready state of its release, where
// there is one. Where that comes to nothing it is created all the same, and nothing
// begins with that state again. Where there is none, what is created now leaves one.
func (m *Manager) beginWarm(ctx context.Context, actor isle.Actor, req UpRequest, say func(Progress), started func()) (UpResult, error) {
	if _, ok := m.cfg.Driver.(Restorer); m.cfg.Warm == nil || m.cfg.Snapshots == nil || !ok {
		return m.create(ctx, actor, req, say, started)
	}
	key, err := m.warmKey(req, actor)
	if err != nil {
		return UpResult{}, err
	}
	d, found := m.cfg.Warm.Warm(key)
	why := ""
	if found && !req.Cold {
		res, err := m.fromReady(ctx, actor, req, d, say)
		cold, ok := errors.AsType[*coldError](err)
		if !ok {
			return res, err
		}
		why = firstLine(cold.err)
		say(Progress{Step: "warm", State: "failed", Message: "started anew: " + why})
		m.cool(d, key, cold)
		found = false
	}
	res, err := m.create(ctx, actor, req, say, started)
	res.NotWarm = why
	if err == nil && !found && !req.OneShot {
		res.ready = m.standStill(res.live, key)
	}
	return res, err
}

// A coldError is why a warm start came to nothing, where an ordinary one may not.
// What was made for it is gone.
type coldError struct {
	err   error
	awake bool // services had gone on: those of the next one would fare the same
}

func (e *coldError) Error() string { return e.err.Error() }
func (e *coldError) Unwrap() error { return e.err }

// cool has nothing begin with a ready state again.
func (m *Manager) cool(d, key isle.Digest, cold *coldError) {
	if cold.awake {
		m.mu.Lock()
		if len(m.futile) >= maxFutile {
			clear(m.futile)
		}
		m.futile[key] = true
		m.mu.Unlock()
	}
	m.cfg.Log.Warn("an environment could not begin with a ready state, which is dropped", "snapshot", d, "error", cold.err)
	if err := m.cfg.Warm.Cool(context.WithoutCancel(m.ctx), system("warm"), d); err != nil {
		m.cfg.Log.Error("a ready state that nothing can begin with could not be dropped; the next start tries it again", "snapshot", d, "error", err)
	}
}

// fromReady makes the environment of a request as a copy of a ready state. It is
// somebody else than what was captured, and shut until on_fork has succeeded, whatever
// their names. It fails with a coldError where nothing is left of it and it may be
// created in another way.
func (m *Manager) fromReady(ctx context.Context, actor isle.Actor, req UpRequest, d isle.Digest, say func(Progress)) (UpResult, error) {
	began := m.cfg.Now()
	say(Progress{Step: "warm", State: "start", Message: "from snapshot " + d.Short()})
	o, err := m.readyOrigin(ctx, req, d)
	if err != nil {
		if ctx.Err() != nil {
			return UpResult{}, context.Cause(ctx)
		}
		return UpResult{}, &coldError{err: err}
	}
	defer o.release()
	f, err := m.planWarm(ctx, actor, req, o)
	if err != nil {
		return UpResult{}, err
	}
	awake, err := m.startWarm(ctx, o, f, say)
	if err == nil {
		m.cfg.Warm.Used(d)
		took := m.cfg.Now().Sub(began)
		say(Progress{Step: "warm", State: "done", Message: took.Round(time.Millisecond).String()})
		res := UpResult{Environment: f.l.snapshot(), Changed: true, Warm: d, Took: took, live: f.l}
		return res, m.conclude(f.l, f.intent, nil)
	}
	f.leaveMemory()
	if m.ctx.Err() != nil { // the next server starts it
		return UpResult{Environment: f.l.snapshot()}, m.conclude(f.l, f.intent, err)
	}
	err = fmt.Errorf("it could not begin with the ready state in snapshot %s: %w", d.Short(), withoutHint(err))
	if left := m.withdraw(f.l, f.intent.Outcome(err)); left != nil {
		return UpResult{Environment: f.l.snapshot()}, left
	}
	if ctx.Err() != nil {
		return UpResult{}, context.Cause(ctx)
	}
	return UpResult{}, &coldError{err, awake}
}

// readyOrigin holds the snapshot of a ready state that a request can begin with.
func (m *Manager) readyOrigin(ctx context.Context, req UpRequest, d isle.Digest) (*origin, error) {
	o, err := m.use(ctx, isle.Ref{}, string(d))
	if err != nil {
		return nil, err
	}
	switch why, err := m.memoryFor(o, req.Ref.Stage, false); {
	case err != nil:
		o.release()
		return nil, err
	case o.memory == nil:
		o.release()
		return nil, isle.Errorf(isle.Untrusted, "snapshot %s: %s", d.Short(), why)
	case o.rec.Project != req.Project || o.rec.Ref.Stage != req.Ref.Stage:
		o.release() // its key says otherwise
		return nil, isle.Errorf(isle.Untrusted, "snapshot %s is of project %s and stage %s", d.Short(), o.rec.Project, o.rec.Ref.Stage)
	}
	return o, nil
}

// planWarm records what is to begin with a ready state.
func (m *Manager) planWarm(ctx context.Context, actor isle.Actor, req UpRequest, o *origin) (*fork, error) {
	now := m.cfg.Now().UTC()
	ports, err := m.assignPorts(ctx, req.Ref, req.Spec, nil)
	if err != nil {
		return nil, err
	}
	e := o.rec.forked(req.Ref, o.digest)
	e.Owner, e.Created, e.OneShot, e.Boot, e.Spec = actor, now, req.OneShot, m.cfg.Boot, req.Spec
	e.Fork, e.Crossed, e.Warm = false, false, true
	e.Expires = expiry(now, req)
	req.mark(&e)
	f := newFork(nil)
	f.ports = ports
	for _, name := range spec.StartOrder(req.Spec) {
		svc, _ := e.specOf(name)
		secret, hash := newSecret()
		f.secrets[name] = secret
		e.Services = append(e.Services, newService(svc, req.Spec, req.Images[name], hash, ports.of(name)))
	}
	f.volumes, f.fresh = o.newVolumes(req.Ref, "")
	for _, list := range [][]Volume{f.volumes, f.fresh} {
		for i := range list {
			list[i].Created = now
		}
	}
	m.mu.Lock()
	m.generation = max(m.generation+1, now.UnixNano(), o.rec.Generation+1)
	e.Generation = m.generation
	f.l = m.newLive(e)
	f.l.uids = m.pickUIDs(e.Instance)
	f.l.rec.UIDBase = f.l.uids
	m.envs[req.Ref] = f.l
	m.mu.Unlock()
	intent := audit.NewIntent(actor, isle.ActionEnvironmentLaunch, resource(req.Ref), "warm start").In(req.Ref, e.Instance).Explained(ctx).With("project", e.Project)
	intent = o.detail(intent)
	for _, s := range e.Services {
		intent = intent.With("image "+s.Name, string(s.Digest))
	}
	f.intent = req.from(intent)
	put := slices.Concat(f.volumes, f.fresh)
	m.warm(f.l)
	err = m.saveAll(ctx, []*live{f.l}, func(*Environment) {}, Mutation{
		PutVolumes: put, Entries: append([]audit.Entry{f.intent}, volumesMade(actor, f.l, put, now)...),
	})
	if err != nil {
		m.forget(f.l)
		ports.release()
		return nil, err
	}
	m.fault("warm.recorded")
	f.l.publish(ports)
	return f, nil
}

// startWarm makes what planWarm recorded, and opens it. awake says that its
// services had gone on when it failed.
func (m *Manager) startWarm(ctx context.Context, o *origin, f *fork, say func(Progress)) (awake bool, err error) {
	if _, err := m.fill(ctx, o, [][]Volume{f.volumes}); err != nil {
		return false, err
	}
	m.markCopied(o, f.volumes)
	next := Open
	if o.rec.forksRun() {
		next = Shut
	}
	f.goesOnFrom(o.memory, next)
	if err := m.saveAll(ctx, []*live{f.l}, o.memory.made(next), Mutation{PutVolumes: f.volumes}); err != nil {
		return false, err
	}
	m.fault("warm.copied")
	err = m.startCopy(ctx, f, say)
	rec := f.l.snapshot()
	return !rec.halfMade(), err
}

// withdraw takes away an environment that came to nothing, with its volumes, and
// keeps the numbers of its ports. On error it stays recorded as going down.
func (m *Manager) withdraw(l *live, entries ...audit.Entry) error {
	ctx := context.WithoutCancel(m.ctx)
	before := l.snapshot()
	err := l.change(ctx, func(e *Environment) { e.Desired, e.OneShot = WantDown, true }, Mutation{}) // for who finds it after a crash
	if err == nil {
		m.fault("warm.withdrawing")
		err = m.dismantle(ctx, l, before, func(Progress) {})
	}
	c := Mutation{Entries: entries}
	for _, v := range m.volumesOf(l.ref) {
		if err == nil {
			err = m.cfg.Volumes.Delete(ctx, v.ID)
		}
		c.RemoveVolumes = append(c.RemoveVolumes, v.ID)
	}
	if err == nil {
		err = l.remove(ctx, c)
	}
	if err != nil {
		return isle.Errorf(isle.CodeOf(err), "environment %s could not begin with a ready state, and what was made of it could not be removed: %w", l.ref, err).
			WithHint("isle down %s tries again", l.ref)
	}
	m.fault("warm.withdrawn")
	m.forget(l)
	m.forgetFiles(l)
	l.update(func(*Environment) {}) // who waits looks again
	return nil
}

// startAnew makes of what a crash has found in the middle of a warm start one that
// is to be started: it was asked for, and needs no ready state. Whoever takes it up
// launches its services, on empty volumes.
func (m *Manager) startAnew(ctx context.Context, l *live) error {
	if err := m.cfg.Driver.Remove(ctx, l.instance); err != nil {
		return err
	}
	var c Mutation
	for _, v := range m.volumesOf(l.ref) {
		v.Ready = false
		c.PutVolumes = append(c.PutVolumes, v)
	}
	launches := map[string]isle.ID{} // nothing that has heard of the present ones counts
	for _, s := range l.snapshot().Services {
		launches[s.Name] = isle.NewID()
	}
	return l.change(ctx, func(e *Environment) {
		e.Parent, e.ParentRef, e.Origin, e.Ancestors, e.Generation = "", isle.Ref{}, "", nil, 0
		e.Warm, e.Opening = false, Open
		for i := range e.Services {
			s := &e.Services[i]
			s.Launch, s.Phase, s.ExitCode, s.Message = launches[s.Name], Pending, nil, ""
		}
	}, c)
}
