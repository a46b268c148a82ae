package environment

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"isle"
	"isle/internal/snapshot"
)

// Snapshots are the captured states that forks are made of and that restores
// bring back; *snapshot.Snapshots implements it.
type Snapshots interface {
	// Get finds one by its digest, the beginning of that, or a tag. It fails with
	// NotFound, and says which may have been meant.
	Get(name string) (snapshot.Snapshot, error)
	// Volumes are those that snapshots and drafts hold: nobody else deletes them.
	Volumes() []isle.ID
}

// An origin is what copies are made of: an environment that runs, or a snapshot.
type origin struct {
	rec     Environment
	digest  isle.Digest // of the snapshot
	volumes []Volume    // that are copied
	live    *live       // nil: a snapshot
	op      *op         // holds the ref of what runs
	once    sync.Once
}

// release lets others work on what is copied.
func (o *origin) release() {
	o.once.Do(func() {
		if o.op != nil {
			o.op.release()
		}
	})
}

// Whose says what a name means: an environment's, or, where there is none of
// that name, a snapshot's.
func (m *Manager) Whose(name string) (ref isle.Ref, at string) {
	ref, err := isle.ParseRef(name)
	if err == nil && (m.find(ref) != nil || len(m.volumesOf(ref)) > 0) {
		return ref, ""
	}
	if m.cfg.Snapshots != nil {
		if _, serr := m.cfg.Snapshots.Get(name); err != nil || serr == nil {
			return isle.Ref{}, name
		}
	}
	return ref, ""
}

// look finds what a request is about without holding it.
func (m *Manager) look(req ForkRequest) (*origin, error) {
	if req.At != "" {
		return m.snapshotOrigin(req.From, req.At)
	}
	l, err := m.get(req.From)
	if err != nil {
		if len(m.volumesOf(req.From)) > 0 {
			return nil, isle.Errorf(isle.NotFound, "environment %s is not up; its volumes are kept", req.From).
				WithHint("isle up takes them up again; a snapshot can be forked while its environment is down: isle fork %s --at SNAPSHOT", req.From)
		}
		return nil, err
	}
	return &origin{rec: l.snapshot(), live: l}, nil
}

// origin finds what a request is about and holds it: while it is copied it is
// not replaced or restored, and a teardown ends the copying.
func (m *Manager) origin(ctx context.Context, req ForkRequest) (*origin, error) {
	o, err := m.look(req)
	if err != nil || o.live == nil {
		return o, err
	}
	return o, m.hold(ctx, o)
}

// hold waits for the work that is done on an environment, and keeps it.
func (m *Manager) hold(ctx context.Context, o *origin) (err error) {
	if o.op, err = m.locks.join(ctx, m.ctx, o.live.ref); err != nil {
		return err
	}
	if m.find(o.live.ref) != o.live {
		o.release()
		return isle.Errorf(isle.Conflict, "environment %s was torn down", o.live.ref)
	}
	if o.rec = o.live.snapshot(); o.rec.Desired != WantRunning {
		o.release()
		return isle.Errorf(isle.Conflict, "environment %s is being torn down", o.rec.Ref).WithHint("isle down %s goes on with it", o.rec.Ref)
	}
	for _, svc := range o.rec.Spec.Services {
		for _, want := range svc.Volumes {
			// One that is not ready holds nothing: its setup runs in the copy too.
			if v, ok := m.volume(o.rec.Ref, svc.Name, want.Path); ok && v.Ready {
				o.volumes = append(o.volumes, v)
			}
		}
	}
	return nil
}

// snapshotOrigin is a snapshot, which must be of the project and stage of the
// environment that is named with it, if one is.
func (m *Manager) snapshotOrigin(from isle.Ref, name string) (*origin, error) {
	if m.cfg.Snapshots == nil {
		return nil, isle.Errorf(isle.Unavailable, "this server keeps no snapshots")
	}
	s, err := m.cfg.Snapshots.Get(name)
	if err != nil {
		return nil, err
	}
	x := s.Manifest
	if from != (isle.Ref{}) && from.Stage != x.Ref.Stage {
		return nil, isle.Errorf(isle.Refused, "snapshot %s is of stage %s, and %s is of stage %s", s.Digest.Short(), x.Ref.Stage, from, from.Stage).
			WithHint("a copy keeps its stage; isle fork --to-stage takes volumes into another, where policy grants it")
	}
	o := &origin{digest: s.Digest, rec: Environment{
		Instance: x.Instance, Ref: x.Ref, Project: x.Project, Spec: x.Spec, Origin: x.Parent, Generation: x.Generation,
	}}
	if l := m.find(from); l != nil {
		if p := l.snapshot().Project; p != x.Project {
			return nil, isle.Errorf(isle.Conflict, "snapshot %s is of project %s, and %s is of project %s", s.Digest.Short(), x.Project, from, p)
		}
		o.rec.Branch = l.snapshot().Branch
	}
	for _, svc := range x.Services {
		o.rec.Services = append(o.rec.Services, Service{Name: svc.Name, Image: svc.Image, Digest: svc.Image.Digest()})
	}
	for _, v := range x.Volumes {
		id, ok := s.Local[v.Name()]
		if !ok {
			return nil, isle.Errorf(isle.Untrusted, "snapshot %s lacks the volume %s", s.Digest.Short(), v.Name()).WithHint("isle snapshot verify %s tells more", s.Digest.Short())
		}
		o.volumes = append(o.volumes, Volume{ID: id, Service: v.Service, Path: v.Path, Size: v.Size})
	}
	return o, nil
}

// mayCross refuses a copy that leaves its stage without on_fork where there is
// data: that is what would make it fit to leave.
func (o *origin) mayCross(req ForkRequest) error {
	if req.Stage == "" || req.Stage == o.rec.Ref.Stage {
		return nil
	}
	for _, v := range o.volumes {
		if svc, _ := o.rec.specOf(v.Service); len(svc.OnFork) == 0 {
			return isle.Errorf(isle.Refused, "%s cannot be forked into stage %s: service %s has the volume %s and no on_fork", o.rec.Ref, req.Stage, v.Service, v.Path).
				WithHint("say what makes its data fit for stage %s: on_fork in isle.yaml; [\"true\"] if there is nothing to do", req.Stage)
		}
	}
	return nil
}

// fill makes the volumes of the forks: those of what runs are captured once, at
// one instant, and cloned for the others. It says how, for people.
func (m *Manager) fill(ctx context.Context, o *origin, forks []*fork) (how string, err error) {
	if len(o.volumes) == 0 {
		return "no volumes", nil
	}
	first, rest := o.volumes, forks
	if o.live != nil {
		captured, err := m.capture(ctx, o, forks[0].volumes)
		if err != nil {
			return "", err
		}
		how = fmt.Sprintf("paused for %v, %s", captured.Paused.Round(100*time.Microsecond), captured.How)
		first, rest = forks[0].volumes, forks[1:]
	}
	for _, f := range rest {
		for i, v := range f.volumes {
			by, err := m.cfg.Volumes.Clone(ctx, first[i].ID, v.ID)
			if err != nil {
				return "", err
			}
			if how == "" {
				how = by
			}
		}
	}
	return how, nil
}

// capture has the driver copy the volumes of what runs.
func (m *Manager) capture(ctx context.Context, o *origin, into []Volume) (Captured, error) {
	driver, ok := m.cfg.Driver.(Capturer)
	if !ok {
		return Captured{}, isle.Errorf(isle.Unavailable, "environments of this server cannot be captured")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(o.op.ctx, func() { cancel(context.Cause(o.op.ctx)) })() // a teardown comes first
	c := Capture{Instance: o.rec.Instance, Isolation: o.rec.Spec.Isolation}
	for i, v := range o.volumes {
		c.Volumes = append(c.Volumes, Clone{From: v.ID, To: into[i].ID})
	}
	captured, err := driver.Capture(ctx, c)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return captured, err
}

// copyBaseline gives a copy of a seeded volume what diff compares it with.
func (m *Manager) copyBaseline(from, to isle.ID) error {
	b, err := os.ReadFile(m.baselinePath(from))
	if err != nil {
		return err
	}
	return writeFile(m.baselinePath(to), b)
}
