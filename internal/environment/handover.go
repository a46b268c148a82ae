package environment

import (
	"context"
	"slices"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/snapshot"
)

// holdDrain is how long what was begun may take to end before an instance whose
// volumes are handed over is stopped. Requests that come meanwhile wait.
const holdDrain = 5 * time.Second

// maxSaved bounds how many states a record names.
const maxSaved = 32

// A Saved is a snapshot of an environment's volumes as a release had left them
// when another one took them over.
type Saved struct {
	Release  isle.Digest `json:"release,omitempty"` // that had written them; "": a file's
	For      isle.Digest `json:"for,omitempty"`     // that took them over
	Snapshot isle.Digest `json:"snapshot"`
	Time     time.Time   `json:"time"`
}

// A handover is a switch in which volumes change hands: requests are held, the
// instance that writes to them is stopped, and the other one is started with
// copies of them. There is one writer at a time, and until the exchange the
// volumes of the one before are as it left them: what fails, or is cut off, is
// undone by starting it again.
type handover struct {
	m       *Manager
	old     *live
	f       *fork
	from    []Volume // of f.volumes, in their order
	letGo   func() time.Duration
	stopped bool
}

// hold has requests wait until letGo, which says how long they did.
func (l *live) hold(now Clock) (letGo func() time.Duration) {
	ch := make(chan struct{})
	l.mu.Lock()
	l.held = ch
	l.mu.Unlock()
	began := now()
	var took time.Duration
	over := false
	return func() time.Duration {
		if over {
			return took
		}
		over, took = true, now().Sub(began)
		l.mu.Lock()
		l.held = nil
		l.mu.Unlock()
		close(ch)
		return took
	}
}

// HoldRequests has requests to the published ports of an environment wait until release is
// called, once those that are under way have ended; after 5 seconds they are cut.
// Whoever serves then gets them, which may be another instance.
func (m *Manager) HoldRequests(ctx context.Context, ref isle.Ref) (release func(), err error) {
	l, err := m.get(ref)
	if err != nil {
		return nil, err
	}
	if l.holds() != nil {
		return nil, isle.Errorf(isle.Conflict, "requests to environment %s are held already", ref)
	}
	letGo := l.hold(m.cfg.Now)
	if err := l.quiet(ctx); err != nil {
		letGo()
		return nil, err
	}
	return func() { letGo() }, nil
}

// quiet waits until what is under way in an instance whose requests are held has
// ended, and after holdDrain cuts it.
func (l *live) quiet(ctx context.Context) error {
	if l.drain(ctx, holdDrain) {
		return nil
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	l.cutThrough()
	l.serve()
	return nil
}

// wantHandover gives a staged instance records of the volumes that it is to have:
// copies of those that its services have now, and new ones.
func (m *Manager) wantHandover(f *fork, now time.Time) (from []Volume) {
	e := f.l.snapshot()
	for _, svc := range e.Spec.Services {
		for _, want := range svc.Volumes {
			v := Volume{ID: isle.NewID(), Ref: e.Ref, Project: e.Project, Service: svc.Name, Path: want.Path, Size: want.Size, Created: now, For: e.Instance}
			was, ok := m.volume(e.Ref, svc.Name, want.Path)
			if !ok || !was.Ready {
				f.fresh = append(f.fresh, v)
				continue
			}
			v.Size, v.Baseline = was.Size, was.Baseline
			from, f.volumes = append(from, was), append(f.volumes, v)
		}
	}
	return from
}

// stop has requests wait, ends the services of the one before, and copies its
// volumes.
func (h *handover) stop(ctx context.Context, say func(Progress)) error {
	m, old := h.m, h.old
	say(Progress{Step: "hold", State: "start"})
	h.letGo = old.hold(m.cfg.Now)
	if err := old.quiet(ctx); err != nil {
		return err
	}
	rec := old.snapshot()
	// What a crash finds from now on is started again.
	if err := old.change(ctx, func(e *Environment) { e.Yielding = true }, Mutation{}); err != nil {
		return err
	}
	h.stopped = true
	m.fault("handover.recorded")
	if err := m.stopServices(ctx, old, rec, rec.names(), func(name string) { say(Progress{Service: name, Step: "stop", State: "start"}) }); err != nil {
		return err
	}
	m.fault("handover.stopped")
	say(Progress{Step: "copy", State: "start"})
	how := "no volumes"
	for i, v := range h.f.volumes {
		var err error
		if how, err = m.cfg.Volumes.Clone(ctx, h.from[i].ID, v.ID); err != nil {
			return err
		}
		h.f.volumes[i].Ready = true
		if v.Baseline != "" && m.copyBaseline(h.from[i].ID, v.ID) != nil {
			h.f.volumes[i].Baseline = ""
		}
	}
	if err := m.cfg.Store.Update(ctx, Mutation{PutVolumes: h.f.volumes}); err != nil {
		return err
	}
	m.remember(h.f.volumes, nil)
	m.fault("handover.copied")
	say(Progress{Step: "copy", State: "done", Message: how})
	return nil
}

// names are those of all services.
func (e *Environment) names() map[string]bool {
	all := map[string]bool{}
	for _, s := range e.Services {
		all[s.Name] = true
	}
	return all
}

// resume starts the one before again, on its volumes, which nobody else has
// touched, and lets requests go on.
func (h *handover) resume(say func(Progress)) error {
	if h.letGo == nil {
		return nil
	}
	defer h.letGo()
	if !h.stopped {
		return nil
	}
	m, ctx := h.m, context.WithoutCancel(h.m.ctx)
	rec := h.old.snapshot()
	all := rec.names()
	if err := m.stopServices(ctx, h.old, rec, all, func(string) {}); err != nil { // it was cut off in the middle
		return err
	}
	secrets := map[string][]byte{}
	hashes := map[string]isle.Digest{}
	launches := map[string]isle.ID{}
	for name := range all {
		secrets[name], hashes[name] = newSecret()
		launches[name] = isle.NewID()
	}
	again := audit.NewEvent(system("switch"), isle.ActionServiceStart, resource(h.old.ref), isle.Allow, "its place was not taken: it is started again").In(h.old.ref, h.old.instance)
	err := h.old.change(ctx, func(e *Environment) {
		e.Yielding = false
		for i := range e.Services {
			s := &e.Services[i]
			s.Launch, s.SecretHash, s.Phase, s.Message, s.ExitCode = launches[s.Name], hashes[s.Name], Pending, "", nil
		}
	}, Mutation{Entries: []audit.Entry{again}})
	if err != nil {
		return err
	}
	m.fault("handover.resumed")
	return m.converge(m.ctx, h.old, secrets, say)
}

// changeHands is what the transaction of an exchange does to volumes: the staged
// instance's become the environment's, and those that they are copies of are the
// other's, which nobody runs, until they are in a snapshot.
func (h *handover) changeHands() (put []Volume) {
	for _, v := range slices.Concat(h.f.volumes, h.f.fresh) {
		if now, ok := h.m.known(v.ID); ok { // its setup may have made it ready
			v = now
		}
		v.For = ""
		put = append(put, v)
	}
	for _, v := range h.m.volumesOf(h.old.ref) {
		if slices.ContainsFunc(put, func(p Volume) bool { return p.Service == v.Service && p.Path == v.Path }) {
			v.For = h.old.instance
			put = append(put, v)
		}
	}
	return put
}

// save puts the volumes that an instance had, whose place was taken, into a
// snapshot, and notes it with whoever serves. Done again it finds what was done.
func (m *Manager) save(ctx context.Context, l *live) error {
	rec := l.snapshot()
	o := &origin{rec: rec}
	for _, v := range m.volumesFor(rec) {
		if v.Ready {
			o.volumes = append(o.volumes, v)
		}
	}
	if len(o.volumes) == 0 {
		return nil
	}
	if m.cfg.Snapshots == nil {
		return errNoSnapshots()
	}
	taker := Environment{}
	if now := m.find(rec.Ref); now != nil {
		taker = now.snapshot()
	}
	saved := Saved{Release: rec.Release, Time: rec.Aside.Since}
	if taker.Instance == rec.Aside.For {
		saved.For = taker.Release
	}
	var err error
	if saved.Snapshot, err = m.saved(rec, o); err == nil && saved.Snapshot == "" {
		saved.Snapshot, err = m.seal(ctx, rec, o)
	}
	if err != nil {
		return err
	}
	m.fault("handover.saved")
	c := Mutation{}
	for _, v := range m.volumesFor(rec) {
		c.RemoveVolumes = append(c.RemoveVolumes, v.ID)
	}
	note := func(e *Environment) {
		e.Saved = append(slices.Clone(e.Saved), saved)
		e.Saved = e.Saved[max(0, len(e.Saved)-maxSaved):]
	}
	keeper := m.find(rec.Ref)
	if keeper == nil {
		keeper = l
	}
	if err := keeper.change(ctx, note, c); err != nil {
		return err
	}
	m.discardVolumes(ctx, c.RemoveVolumes)
	return nil
}

// savedMessage is that of the snapshot of an instance whose place was taken.
func savedMessage(rec Environment) string {
	if rec.Release == "" {
		return "before the switch to another release"
	}
	return "as release " + rec.Release.Short() + " left it"
}

// saved finds the snapshot that an earlier save has made.
func (m *Manager) saved(rec Environment, o *origin) (isle.Digest, error) {
	all, err := m.cfg.Snapshots.List()
	if err != nil {
		return "", err
	}
	for _, s := range all {
		x := s.Manifest
		if x.Instance == rec.Instance && x.Message == savedMessage(rec) && !s.Imported && len(x.Volumes) == len(o.volumes) && !x.Created.Before(rec.Aside.Since) {
			return s.Digest, nil
		}
	}
	return "", nil
}

// seal makes that snapshot.
func (m *Manager) seal(ctx context.Context, rec Environment, o *origin) (isle.Digest, error) {
	d, err := m.cfg.Snapshots.Draft()
	if err != nil {
		return "", err
	}
	defer d.Discard() // nothing, once it is sealed
	for _, v := range o.volumes {
		if _, err := m.cfg.Volumes.Clone(ctx, v.ID, d.Volume(v.Service, v.Path)); err != nil {
			return "", err
		}
	}
	x := o.manifest()
	if x.Parent, err = m.parentOf(rec); err != nil {
		return "", err
	}
	x.Author, x.Message, x.Created = system("switch"), savedMessage(rec), m.cfg.Now()
	var s snapshot.Snapshot
	if s, err = d.Seal(ctx, x.Author, x); err != nil {
		return "", err
	}
	return s.Digest, nil
}
