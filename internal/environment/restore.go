package environment

import (
	"context"
	"os"
	"slices"

	"isle"
	"isle/internal/audit"
	"isle/internal/spec"
)

// A RestoreRequest says what an environment is to be brought back to.
type RestoreRequest struct {
	At   string // a snapshot, by digest or tag
	Cold bool   // started on the volumes, although the snapshot has memory
	// Last is called once when the replacement is up, and before it serves: if it
	// fails, nothing changes. nil: there is nothing to do then.
	Last func(context.Context) error
}

// RestoreTo brings an environment back to a snapshot: a replacement is made of
// it, with an instance and volumes of its own, and takes the place of what serves
// under the name once it is up; what served before, and its volumes, are gone
// then. If the replacement does not come up, what served goes on as if nothing
// had happened. A snapshot of an environment of another name is treated as a
// fork treats it: on_fork must succeed first.
//
// It fails with Conflict if the name is another project's, with Refused if the
// snapshot is of another stage, and with Failed, and the service's last lines, if
// the replacement does not come up. If ctx ends the work goes on.
func (m *Manager) RestoreTo(ctx context.Context, actor isle.Actor, ref isle.Ref, req RestoreRequest, progress func(Progress)) (UpResult, error) {
	if !isle.ValidName(ref.Name) || !isle.ValidName(ref.Stage) {
		return UpResult{}, isle.Errorf(isle.Invalid, "%q is no name for an environment", ref.String())
	}
	o, err := m.use(ctx, ref, req.At)
	if err != nil {
		return UpResult{}, err
	}
	say, mute := gate(progress)
	defer mute()
	why, err := m.memoryFor(o, ref.Stage, req.Cold)
	if err == nil {
		err = m.haveImages(ctx, o)
	}
	if err != nil {
		o.release()
		return UpResult{}, err
	}
	if why != "" {
		say(Progress{Step: "memory", State: "log", Message: "services are started anew: " + why})
	}
	held, err := m.locks.acquire(ctx, m.ctx, ref, false)
	if err != nil {
		o.release()
		return UpResult{}, err
	}
	type answer struct {
		result UpResult
		err    error
	}
	done := make(chan answer, 1)
	if !m.spawn(func() {
		defer held.release()
		defer o.release()
		r, err := m.restore(held.ctx, actor, ref, o, req.Last, say)
		o.release() // who has the answer may remove the snapshot
		done <- answer{r, err}
	}) {
		held.release()
		o.release()
		return UpResult{}, isle.Errorf(isle.Unavailable, "the server is ending")
	}
	select {
	case a := <-done:
		return a.result, a.err
	case <-ctx.Done():
		if why := context.Cause(ctx); isle.CodeOf(why) == isle.Refused {
			held.cancel(why)
			<-done
		}
		held.abandon()
		return UpResult{}, ctx.Err()
	}
}

// restore is RestoreTo with the ref held.
func (m *Manager) restore(ctx context.Context, actor isle.Actor, ref isle.Ref, o *origin, last func(context.Context) error, say func(Progress)) (UpResult, error) {
	old := m.find(ref)
	if old != nil && old.snapshot().Desired == WantDown { // a teardown that got stuck
		if err := m.takeDown(ctx, actor, old, false, say); err != nil {
			return UpResult{}, err
		}
		old = nil
	}
	if err := m.mayTake(old, ref, o); err != nil {
		return UpResult{}, err
	}
	f, err := m.stage(ctx, actor, ref, old, o)
	if err != nil {
		return UpResult{}, err
	}
	err = m.bringBack(ctx, o, f, say)
	if err == nil {
		m.fault("restore.up")
		if last != nil {
			err = last(ctx)
		}
	}
	if err == nil {
		err = m.swap(ctx, actor, old, f)
	}
	if err != nil {
		text := "environment " + ref.String() + " could not be brought back to snapshot " + o.digest.Short()
		if old != nil {
			text += ", and is as it was"
		}
		err = isle.Errorf(isle.CodeOf(err), "%s: %w", text, withoutHint(err))
		m.unstage(f, err)
		return UpResult{}, err
	}
	m.leave(old, f, say)
	return UpResult{Environment: f.l.snapshot(), Changed: true}, nil
}

// withoutHint is an error whose hint names what is not there any more.
func withoutHint(err error) error {
	if e, ok := err.(*isle.Error); ok {
		return e.WithHint("")
	}
	return err
}

// mayTake refuses a name that belongs to another project.
func (m *Manager) mayTake(old *live, ref isle.Ref, o *origin) error {
	if old != nil {
		if err := old.keptFrom(); err != nil {
			return err
		}
		if p := old.snapshot().Project; p != o.rec.Project {
			return isle.Errorf(isle.Conflict, "environment %s is of project %s, and snapshot %s of project %s", ref, p, o.digest.Short(), o.rec.Project)
		}
		return nil
	}
	for _, v := range m.volumesOf(ref) {
		if v.Project != o.rec.Project {
			return isle.Errorf(isle.Conflict, "volumes of project %s are kept under the name %s", v.Project, ref).
				WithHint("delete them: isle down %s --volumes, or fork the snapshot under another name", ref)
		}
	}
	return nil
}

// stage records a replacement: nobody finds it by name, and what a crash leaves
// of it is undone.
func (m *Manager) stage(ctx context.Context, actor isle.Actor, ref isle.Ref, old *live, o *origin) (*fork, error) {
	now := m.cfg.Now().UTC()
	e := o.rec.forked(ref, o.digest)
	e.Owner, e.Created, e.Boot, e.Staged, e.Fork, e.Crossed = actor, now, m.cfg.Boot, true, false, false
	e.Expires = expiry(now, UpRequest{Spec: e.Spec})
	if old != nil {
		was := old.snapshot()
		e.Owner, e.Expires, e.Fork, e.Keep, e.OneShot, e.Saved = was.Owner, was.Expires, was.Fork, was.Keep, was.OneShot, was.Saved
		e.Branch, e.Commit, e.Dirty, e.Repository = was.Branch, was.Commit, was.Dirty, was.Repository
	}
	f := newFork(nil)
	for _, name := range spec.StartOrder(e.Spec) {
		svc, _ := e.specOf(name)
		was, ok := o.rec.service(name)
		if !ok {
			return nil, isle.Errorf(isle.Untrusted, "snapshot %s has no image of service %s", o.digest.Short(), name)
		}
		secret, hash := newSecret()
		f.secrets[name] = secret
		e.Services = append(e.Services, newService(svc, e.Spec, was.Image, hash, nil))
	}
	f.volumes, f.fresh = o.newVolumes(ref, e.Instance)
	put := slices.Concat(f.volumes, f.fresh)
	for i := range put {
		put[i].Created = now
	}
	copy(f.volumes, put)
	copy(f.fresh, put[len(f.volumes):])
	m.mu.Lock()
	m.generation = max(m.generation+1, now.UnixNano(), o.rec.Generation+1)
	e.Generation = m.generation
	f.l = m.newLive(e)
	f.l.uids = m.pickUIDs(e.Instance)
	f.l.rec.UIDBase = f.l.uids
	m.staged[e.Instance] = f.l
	m.mu.Unlock()
	f.intent = audit.NewIntent(actor, isle.ActionEnvironmentRestore, resource(ref), "").In(ref, e.Instance).Explained(ctx)
	f.intent = o.detail(f.intent.With("project", e.Project))
	f.intent.Release = e.Release
	if o.rec.Ref != ref {
		f.intent = f.intent.With("of", o.rec.Ref.String())
	}
	if old != nil {
		f.intent = f.intent.With("replaces", string(old.instance))
	}
	if err := m.saveAll(ctx, []*live{f.l}, func(*Environment) {}, Mutation{
		PutVolumes: put, Entries: append([]audit.Entry{f.intent}, volumesMade(actor, f.l, put, now)...),
	}); err != nil {
		m.forget(f.l)
		return nil, err
	}
	m.fault("restore.recorded")
	return f, nil
}

// bringBack makes the replacement's volumes and launches it. Its airlock is that
// of the environment: it starts as that does.
func (m *Manager) bringBack(ctx context.Context, o *origin, f *fork, say func(Progress)) error {
	say(Progress{Step: "copy", State: "start"})
	how, err := m.fill(ctx, o, [][]Volume{f.volumes})
	if err != nil {
		return err
	}
	m.markCopied(o, f.volumes)
	next := Open
	if o.rec.Ref != f.l.ref && o.rec.forksRun() { // a copy of somebody else
		next = Shut
	}
	f.goesOnFrom(o.memory, next)
	if err := m.saveAll(ctx, []*live{f.l}, o.memory.made(next), Mutation{PutVolumes: f.volumes}); err != nil {
		return err
	}
	m.fault("restore.copied")
	say(Progress{Step: "copy", State: "done", Message: how})
	return m.startCopy(ctx, f, say)
}

// swap puts the replacement in the place of what serves, in one transaction:
// from then on the one is what the name means, and the other is what no record
// names.
func (m *Manager) swap(ctx context.Context, actor isle.Actor, old *live, f *fork) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	l := f.l
	ports, err := m.assignPorts(ctx, l.ref, l.snapshot().Spec, old)
	if err != nil {
		return err
	}
	if err = m.take(ctx, actor, old, f, ports); err != nil {
		ports.release()
		return err
	}
	m.fault("restore.swapped")
	if old == nil {
		l.publish(ports)
		return nil
	}
	l.succeed(old, ports)
	old.cutThrough()
	return nil
}

// take is the transaction of swap.
func (m *Manager) take(ctx context.Context, actor isle.Actor, old *live, f *fork, ports *portPlan) error {
	l := f.l
	c := Mutation{Entries: []audit.Entry{f.intent.Outcome(nil)}}
	for _, v := range slices.Concat(f.volumes, f.fresh) {
		if now, ok := m.known(v.ID); ok { // its setup may have made it ready
			v = now
		}
		v.For = ""
		c.PutVolumes = append(c.PutVolumes, v)
	}
	for _, v := range m.volumesOf(l.ref) {
		c.RemoveVolumes = append(c.RemoveVolumes, v.ID)
		c.Entries = append(c.Entries, audit.NewEvent(actor, isle.ActionVolumeDelete, v.resource(), isle.Allow, v.Service+":"+v.Path).In(l.ref, l.instance))
		f.dropped = append(f.dropped, v.ID)
	}
	if old != nil {
		old.writing.Lock()
		defer old.writing.Unlock()
		c.RemoveEnvironments = append(c.RemoveEnvironments, old.instance)
	}
	place := func(e *Environment) {
		e.Staged = false
		for i := range e.Services {
			e.Services[i].Ports = ports.of(e.Services[i].Name)
		}
	}
	if err := m.saveAll(ctx, []*live{l}, place, c); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.staged, l.instance)
	m.envs[l.ref] = l
	if old != nil {
		old.gone = true
		m.leaving[old.instance] = old.uids // until leave has ended it
	}
	return nil
}

// known returns the record of a volume.
func (m *Manager) known(id isle.ID) (Volume, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.volumes[id]
	return v, ok
}

// discardVolumes removes files that no record names any more; what cannot be
// removed the next start removes.
func (m *Manager) discardVolumes(ctx context.Context, ids []isle.ID) {
	for _, id := range ids {
		if err := m.cfg.Volumes.Delete(ctx, id); err != nil {
			m.cfg.Log.Error("a volume that nothing uses could not be removed; the next start tries again", "volume", id, "error", err)
		}
		os.Remove(m.baselinePath(id))
	}
}

// leave ends what a replacement took the place of. No record names it: what
// cannot be done now is done by the next start.
func (m *Manager) leave(old *live, f *fork, say func(Progress)) {
	ctx := context.WithoutCancel(m.ctx)
	if old != nil {
		before := old.snapshot()
		say(Progress{Step: "replace", State: "start", Message: "what was there ends"})
		old.update(func(e *Environment) { e.Desired = WantDown }) // who waits for it looks again
		if err := m.dismantle(ctx, old, before, func(Progress) {}); err != nil {
			m.cfg.Log.Error("what a restore took the place of could not be ended whole; the next start goes on", "instance", old.instance, "error", err)
		} else {
			m.left(old.instance)
		}
		m.forgetFiles(old)
	}
	m.discardVolumes(ctx, f.dropped)
	m.fault("restore.dropped")
}

// forgetFiles removes what the server has of an instance that is gone.
func (m *Manager) forgetFiles(l *live) {
	l.closeLogs()
	if err := os.RemoveAll(m.logDir(l.instance)); err != nil {
		m.cfg.Log.Error("logs could not be removed", "instance", l.instance, "error", err)
	}
	l.wakeLogs()
	l.transport.CloseIdleConnections()
}

// unstage takes a replacement away that came to nothing.
func (m *Manager) unstage(f *fork, cause error) {
	f.leaveMemory()
	ctx := context.WithoutCancel(m.ctx)
	m.mu.Lock()
	m.leaving[f.l.instance] = f.l.uids
	m.mu.Unlock()
	if err := m.dismantle(ctx, f.l, f.l.snapshot(), func(Progress) {}); err != nil {
		m.cfg.Log.Error("a replacement could not be ended whole; the next start goes on", "instance", f.l.instance, "error", err)
	} else {
		m.left(f.l.instance)
	}
	c := Mutation{Entries: []audit.Entry{f.intent.Outcome(cause)}}
	for _, v := range slices.Concat(f.volumes, f.fresh) {
		c.RemoveVolumes = append(c.RemoveVolumes, v.ID)
	}
	if err := f.l.remove(ctx, c); err != nil {
		m.cfg.Log.Error("a replacement that came to nothing could not be removed; the next start does it", "instance", f.l.instance, "error", err)
		return
	}
	m.discardVolumes(ctx, c.RemoveVolumes)
	m.forget(f.l)
	m.forgetFiles(f.l)
}

// unstageAll forgets every replacement that an earlier server left half made:
// what runs of it is then what no record names. It returns the other records.
func (m *Manager) unstageAll(ctx context.Context, envs []Environment, volumes []Volume) ([]Environment, []Volume, error) {
	var c Mutation
	asides := map[isle.ID]bool{}
	for _, e := range envs {
		asides[e.Instance] = e.Aside != nil
		if e.halfStaged() {
			c.RemoveEnvironments = append(c.RemoveEnvironments, e.Instance)
		}
		m.generation = max(m.generation, e.Generation)
	}
	for _, v := range volumes {
		if v.For != "" && !asides[v.For] {
			c.RemoveVolumes = append(c.RemoveVolumes, v.ID)
		}
	}
	if len(c.RemoveEnvironments)+len(c.RemoveVolumes) > 0 {
		if err := m.cfg.Store.Update(ctx, c); err != nil {
			return nil, nil, err
		}
	}
	envs = slices.DeleteFunc(envs, func(e Environment) bool { return e.halfStaged() })
	return envs, slices.DeleteFunc(volumes, func(v Volume) bool { return v.For != "" && !asides[v.For] }), nil
}

// halfStaged says that the record is of a replacement that has not taken the
// place it was made for.
func (e *Environment) halfStaged() bool { return e.Staged && e.Aside == nil }
