package environment

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"isle"
	"isle/internal/audit"
)

// Down tears an environment down: services end in reverse order of start, each
// with a grace, then the airlock and all else goes. Volumes stay unless asked
// for. It works for one that failed or is half made, and interrupts an Up. On
// error the environment stays recorded as going down; Down again goes on. For a
// ref that is not up it deletes kept volumes if asked, else fails with NotFound
// and the names that may have been meant. What takes the name while it waits for
// others is not what was meant, and stays.
func (m *Manager) Down(ctx context.Context, actor isle.Actor, ref isle.Ref, volumes bool, progress func(Progress)) error {
	meant, kept := m.find(ref), m.volumesOf(ref)
	if meant == nil && len(kept) == 0 {
		return m.notFound(ref)
	}
	o, err := m.locks.acquire(ctx, context.WithoutCancel(m.ctx), ref, true)
	if err != nil {
		return err
	}
	defer o.release()
	say, mute := gate(progress)
	defer mute()
	l := m.find(ref)
	kept = slices.DeleteFunc(m.volumesOf(ref), func(v Volume) bool {
		return !slices.ContainsFunc(kept, func(o Volume) bool { return o.ID == v.ID })
	})
	switch {
	case meant != nil && l != nil && l != meant:
		return nil // somebody else's Down was first, and somebody's Up after it
	case l != nil:
		// A teardown that has begun is finished, whether its client stays or not.
		return m.takeDown(o.ctx, actor, l, volumes, say)
	case volumes:
		return m.deleteVolumes(o.ctx, actor, ref, kept, say)
	case meant != nil:
		return nil // somebody else's Down was first
	}
	return isle.Errorf(isle.NotFound, "environment %s is not up; its volumes are kept", ref).
		WithHint("isle down %s --volumes deletes them, isle up takes them up again", ref)
}

// takeDown tears down with the ref held. Each step can be done again.
func (m *Manager) takeDown(ctx context.Context, actor isle.Actor, l *live, volumes bool, say func(Progress)) error {
	// What was never open leaves nothing that could be taken up without on_fork.
	volumes = volumes || l.snapshot().Opening != Open
	intent := audit.NewIntent(actor, isle.ActionEnvironmentDown, resource(l.ref), "").In(l.ref, l.instance).Explained(ctx)
	if volumes {
		intent = intent.With("volumes", "delete")
	}
	before := l.snapshot()
	err := l.change(ctx, func(e *Environment) {
		e.Desired = WantDown
		// What a crash finds: a one-shot's volumes go with it.
		e.OneShot = e.OneShot || volumes
	}, Mutation{Entries: []audit.Entry{intent}})
	if err != nil {
		return err
	}
	m.fault("down.recorded")
	say(Progress{Step: "down", State: "start"})
	m.dropAsides(ctx, l.ref, nil)
	if err := m.dismantle(ctx, l, before, say); err != nil {
		err = isle.Errorf(isle.CodeOf(err), "environment %s could not be torn down whole: %w", l.ref, err).
			WithHint("isle down %s tries again", l.ref)
		m.end(intent, err)
		return err
	}
	m.fault("down.removed")
	gone, err := m.dropVolumes(ctx, l.ref, volumes || before.OneShot)
	if err != nil {
		m.end(intent, err)
		return err
	}
	l.closeLogs()
	if err := os.RemoveAll(m.logDir(l.instance)); err != nil {
		m.cfg.Log.Error("logs could not be removed", "instance", l.instance, "error", err)
	}
	c := Mutation{Entries: []audit.Entry{intent.Outcome(nil)}}
	for _, v := range gone {
		c.RemoveVolumes = append(c.RemoveVolumes, v.ID)
		c.Entries = append(c.Entries, audit.NewEvent(actor, isle.ActionVolumeDelete, v.resource(), isle.Allow, v.Service+":"+v.Path).In(l.ref, l.instance))
	}
	if err := l.remove(ctx, c); err != nil {
		return err
	}
	m.fault("down.forgotten")
	if volumes || before.OneShot {
		if err := m.cfg.Ports.ForgetPorts(ctx, l.ref); err != nil {
			m.cfg.Log.Error("ports could not be forgotten", "environment", l.ref, "error", err)
		}
	}
	m.forget(l)
	l.update(func(*Environment) {}) // who waits or follows looks again
	l.wakeLogs()
	l.transport.CloseIdleConnections()
	say(Progress{Step: "down", State: "done"})
	return nil
}

// dropVolumes deletes the files of an environment's volumes: all of them, or
// only those whose setup has not succeeded, which hold nothing.
func (m *Manager) dropVolumes(ctx context.Context, ref isle.Ref, all bool) (gone []Volume, err error) {
	for _, v := range m.volumesOf(ref) {
		if v.Ready && !all {
			continue
		}
		if err := m.cfg.Volumes.Delete(ctx, v.ID); err != nil {
			return nil, err
		}
		os.Remove(m.baselinePath(v.ID))
		gone = append(gone, v)
		m.fault("down.volume")
	}
	return gone, nil
}

// dismantle removes what runs of an environment. A step that fails does not
// keep the others from being done.
func (m *Manager) dismantle(ctx context.Context, l *live, e Environment, say func(Progress)) error {
	l.unpublishAll()
	all := e.names()
	l.mu.Lock()
	for name := range l.supervisors {
		all[name] = true // one that a half-done replacement left
	}
	l.mu.Unlock()
	stopped := m.stopServices(ctx, l, e, all, func(name string) {
		say(Progress{Service: name, Step: "stop", State: "start"})
	})
	m.fault("down.stopped")
	closed := m.closeNetwork(ctx, l)
	m.fault("down.network")
	if err := m.cfg.Driver.Remove(ctx, l.instance); err != nil {
		return errors.Join(err, closed)
	}
	if stopped != nil { // Remove ends what a stop could not
		m.cfg.Log.Warn("a service could not be stopped by itself", "environment", l.ref, "error", stopped)
	}
	return closed
}

// deleteVolumes deletes volumes that no environment has; the ref is held.
func (m *Manager) deleteVolumes(ctx context.Context, actor isle.Actor, ref isle.Ref, volumes []Volume, say func(Progress)) error {
	for _, v := range volumes {
		intent := audit.NewIntent(actor, isle.ActionVolumeDelete, v.resource(), v.Service+":"+v.Path).In(ref, "").Explained(ctx)
		// Not ready is what recovery deletes: from here on nothing uses it again.
		v.Ready = false
		if err := m.cfg.Store.Update(ctx, Mutation{PutVolumes: []Volume{v}, Entries: []audit.Entry{intent}}); err != nil {
			return err
		}
		m.remember([]Volume{v}, nil)
		m.fault("volume.recorded")
		say(Progress{Service: v.Service, Step: "volume", State: "start", Message: "delete " + v.Path})
		if err := m.cfg.Volumes.Delete(ctx, v.ID); err != nil {
			m.end(intent, err)
			return err
		}
		os.Remove(m.baselinePath(v.ID))
		m.fault("volume.deleted")
		if err := m.cfg.Store.Update(ctx, Mutation{RemoveVolumes: []isle.ID{v.ID}, Entries: []audit.Entry{intent.Outcome(nil)}}); err != nil {
			return err
		}
		m.remember(nil, []isle.ID{v.ID})
	}
	return m.cfg.Ports.ForgetPorts(ctx, ref)
}

// Extend moves the end of an environment's life by a duration, which may be
// negative, from its present end (from now if it has none), or takes the end
// away. It returns the new end, zero for never.
func (m *Manager) Extend(ctx context.Context, actor isle.Actor, ref isle.Ref, by time.Duration, never bool) (time.Time, error) {
	l, err := m.get(ref)
	if err != nil {
		return time.Time{}, err
	}
	rec := l.snapshot()
	var end time.Time
	if !never {
		end = rec.Expires
		if end.IsZero() {
			end = m.cfg.Now().UTC()
		}
		end = end.Add(by)
	}
	e := audit.NewEvent(actor, isle.ActionEnvironmentExtend, resource(ref), isle.Allow, "").In(ref, l.instance)
	if never {
		e = e.With("expires", "never")
	} else {
		e = e.With("expires", end.Format(time.RFC3339))
	}
	err = l.change(ctx, func(e *Environment) { e.Expires = end }, Mutation{Entries: []audit.Entry{e}})
	return end, err
}
