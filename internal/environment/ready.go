package environment

import (
	"context"
	"fmt"
	"sync"
	"time"

	"isle"
	"isle/internal/snapshot"
)

// readyLimit is how long what is to come in is kept waiting for a ready state to
// be captured.
const readyLimit = 30 * time.Second

// A readyState is an environment whose ready state is about to be captured. Nothing
// comes in from outside until open is called.
type readyState struct {
	l    *live
	key  isle.Digest
	open func() // does nothing the second time
}

// comeIn is what begins whatever brings something into an environment from
// outside: it is noted, and waits while the state is captured in which nothing has
// come in yet.
func (l *live) comeIn(ctx context.Context, what string) error {
	for {
		l.mu.Lock()
		still := l.still
		if still == nil && l.touched == "" {
			l.touched = what
		}
		l.mu.Unlock()
		if still == nil {
			return nil
		}
		select {
		case <-still:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Received notes that a workload is about to get something that is its own and
// nobody else's: the state of its environment is no other's to begin with.
func (m *Manager) Received(instance isle.ID, what string) {
	for _, l := range m.all() {
		if l.instance == instance {
			l.mu.Lock()
			if l.touched == "" {
				l.touched = what
			}
			l.mu.Unlock()
		}
	}
}

// standStill has whatever comes in from outside wait from now on. nil: something
// has come in, or what began with a state of that key has failed, since this server
// runs, or another one of that key is being captured.
func (m *Manager) standStill(l *live, key isle.Digest) *readyState {
	m.mu.Lock()
	taken := m.futile[key] || m.keeping[key]
	if !taken {
		m.keeping[key] = true
	}
	m.mu.Unlock()
	if taken {
		return nil
	}
	l.mu.Lock()
	touched := l.touched
	still := make(chan struct{})
	if touched == "" {
		l.still = still
	}
	l.mu.Unlock()
	if touched != "" {
		m.letKeep(key)
		m.noteKept(l, "not kept: "+touched+" came in before it was ready")
		return nil
	}
	return &readyState{l: l, key: key, open: sync.OnceFunc(func() {
		l.mu.Lock()
		l.still = nil
		l.mu.Unlock()
		close(still)
	})}
}

// letKeep lets the next one of that key be captured.
func (m *Manager) letKeep(key isle.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.keeping, key)
}

// keepReady keeps the ready state of an environment for others of the same
// release. It holds the ref by op, which release lets go of, until the state is
// captured; whoever wants the environment meanwhile comes first, and then nothing
// is kept.
func (m *Manager) keepReady(held *op, r *readyState, release func()) {
	defer r.open()
	held.abandon()
	d, err := m.captureReady(held, r, release)
	m.letKeep(r.key)
	note := "kept in snapshot " + d.Short()
	if err != nil {
		note = "not kept: " + firstLine(err)
		m.cfg.Log.Info("a ready state is not kept", "environment", r.l.ref, "reason", err)
	}
	m.noteKept(r.l, note)
}

// noteKept says in the record what became of a ready state.
func (m *Manager) noteKept(l *live, note string) {
	l.update(func(e *Environment) { e.Kept = note })
	if err := l.save(context.WithoutCancel(m.ctx), Mutation{}); err != nil {
		m.cfg.Log.Error("the state of an environment could not be stored", "environment", l.ref, "error", err)
	}
}

// captureReady makes a warm snapshot. What is in it came of the images and the
// file, and of nothing else: where something has come in, or was reached outside,
// or an identity was handed out, there is none.
func (m *Manager) captureReady(held *op, r *readyState, release func()) (isle.Digest, error) {
	ctx, cancel := context.WithTimeoutCause(held.ctx, readyLimit, isle.Errorf(isle.Unavailable, "it could not be captured within %v", readyLimit))
	defer cancel()
	if err := context.Cause(ctx); err != nil {
		return "", err
	}
	o := &origin{rec: r.l.snapshot(), live: r.l, op: held}
	m.volumesIn(o)
	if why := m.unready(o); why != "" {
		return "", isle.Errorf(isle.Conflict, "%s", why)
	}
	d, err := m.cfg.Snapshots.Draft()
	if err != nil {
		return "", err
	}
	defer d.Discard() // nothing, once it is sealed
	var into []Volume
	for _, v := range o.volumes {
		into = append(into, Volume{ID: d.Volume(v.Service, v.Path)})
	}
	x := o.manifest()
	x.Author, x.Message = system("warm"), "ready state"
	o.memory = &memory{dir: d.Memory(), users: 1}
	if _, err := m.captureWith(ctx, o, into); err != nil {
		return "", err
	}
	m.fault("ready.captured")
	if why := m.fromOutside(r.l); why != "" {
		return "", isle.Errorf(isle.Conflict, "%s", why)
	}
	r.open()
	release() // to hash takes longer
	o.memory.note(&x)
	x.Created = m.cfg.Now()
	snap, err := d.SealWarm(m.ctx, x.Author, x, snapshot.Warm{Key: r.key, Owner: o.rec.Owner})
	if err != nil {
		return "", err
	}
	m.fault("ready.kept")
	return snap.Digest, nil
}

// unready says why what runs is in no state to begin with.
func (m *Manager) unready(o *origin) string {
	if o.rec.Desired != WantRunning || o.rec.Opening != Open {
		return "it is not to run any more"
	}
	// A program keeps what it has read of whom to trust, which is this one's alone.
	if hosts := o.rec.Spec.Inspected(); len(hosts) > 0 {
		return "its egress to " + hosts[0] + " is inspected"
	}
	for _, s := range o.rec.Services {
		switch {
		case s.Phase != Running && s.Phase != Exited:
			return fmt.Sprintf("service %s is %s", s.Name, s.Phase)
		case s.Restarts > 0:
			return fmt.Sprintf("service %s had to be started again", s.Name)
		}
	}
	return m.restless(o)
}

// fromOutside says what an environment has of what is neither in its images nor in
// its file; "" if nothing.
func (m *Manager) fromOutside(l *live) string {
	l.mu.Lock()
	touched := l.touched
	l.mu.Unlock()
	if touched != "" {
		return touched + " came in before it was captured"
	}
	for _, d := range m.cfg.Network.Doors(l.instance) {
		if d.Count > 0 && d.State != "refused" {
			return "it has connected to " + d.Destination
		}
	}
	return ""
}
