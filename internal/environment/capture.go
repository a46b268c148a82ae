package environment

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"isle"
	"isle/internal/snapshot"
	"isle/internal/spec"
)

// Snapshots are the captured states that forks are made of and that restores
// bring back; *snapshot.Snapshots implements it.
type Snapshots interface {
	// Get finds one by its digest, the beginning of that, or a tag. It fails with
	// NotFound, and says which may have been meant.
	Get(name string) (snapshot.Snapshot, error)
	// Use is Get of one that something is about to be made of: it is whole, and
	// stays until done is called.
	Use(ctx context.Context, name string) (s snapshot.Snapshot, done func(), err error)
	// List returns all of them, the first one first.
	List() ([]snapshot.Snapshot, error)
	// Draft begins one.
	Draft() (*snapshot.Draft, error)
	// Volumes are those that snapshots and drafts hold: nobody else deletes them.
	Volumes() []isle.ID
	// Images calls use with each image that a snapshot needs.
	Images(use func(snapshot.Service))
}

// An origin is what copies are made of: an environment that runs, or a snapshot.
type origin struct {
	rec     Environment
	digest  isle.Digest // of the snapshot
	volumes []Volume    // that are copied
	live    *live       // nil: a snapshot
	op      *op         // holds the ref of what runs
	done    func()      // lets go of the snapshot
	once    sync.Once
	asleep  *memory // of a snapshot; nil: it has none to go on from, and cold says why
	cold    string
	memory  *memory // that its copies go on from; nil: they are started
}

// release lets others work on what is copied. Memory stays as long as a copy
// needs it.
func (o *origin) release() {
	o.once.Do(func() {
		if o.op != nil {
			o.op.release()
		}
		if o.asleep != nil && o.asleep != o.memory {
			o.asleep.leave()
		}
		o.memory.leave()
		if o.done != nil {
			o.done()
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
		if m.cfg.Snapshots == nil {
			return nil, errNoSnapshots()
		}
		s, err := m.cfg.Snapshots.Get(req.At)
		if err != nil {
			return nil, err
		}
		return m.snapshotOrigin(req.From, s)
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
	if req.At != "" {
		return m.use(ctx, req.From, req.At)
	}
	o, err := m.look(req)
	if err != nil {
		return nil, err
	}
	return o, m.hold(ctx, o)
}

// use finds a snapshot and holds it.
func (m *Manager) use(ctx context.Context, from isle.Ref, at string) (*origin, error) {
	if m.cfg.Snapshots == nil {
		return nil, errNoSnapshots()
	}
	s, done, err := m.cfg.Snapshots.Use(ctx, at)
	if err != nil {
		return nil, err
	}
	o, err := m.snapshotOrigin(from, s)
	if err != nil {
		done()
		return nil, err
	}
	if o.asleep, o.cold = memoryOf(s, done); o.asleep == nil {
		o.done = done
	}
	return o, nil
}

// haveImages fails where an image of a snapshot is not there any more, before
// anything is made of it.
func (m *Manager) haveImages(ctx context.Context, o *origin) error {
	if o.live != nil {
		return nil
	}
	for _, s := range o.rec.Services {
		if _, err := m.cfg.Images.Verify(ctx, s.Image); err != nil {
			return isle.Errorf(isle.CodeOf(err), "snapshot %s: the image %s of service %s: %w", o.digest.Short(), s.Digest.Short(), s.Name, err).
				WithHint("isle build makes it, in the project's folder with the isle.lock of then")
		}
	}
	return nil
}

func errNoSnapshots() error { return isle.Errorf(isle.Unavailable, "this server keeps no snapshots") }

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
	m.volumesIn(o)
	return nil
}

// volumesIn notes the volumes of what runs that are copied.
func (m *Manager) volumesIn(o *origin) {
	for _, svc := range o.rec.Spec.Services {
		for _, want := range svc.Volumes {
			// One that is not ready holds nothing: its setup runs in the copy too.
			if v, ok := m.volume(o.rec.Ref, svc.Name, want.Path); ok && v.Ready {
				o.volumes = append(o.volumes, v)
			}
		}
	}
}

// snapshotOrigin is a snapshot, which must be of the project and stage of the
// environment that is named with it, if one is.
func (m *Manager) snapshotOrigin(from isle.Ref, s snapshot.Snapshot) (*origin, error) {
	x := s.Manifest
	if from != (isle.Ref{}) && from.Stage != x.Ref.Stage {
		return nil, isle.Errorf(isle.Refused, "snapshot %s is of stage %s, and %s is of stage %s", s.Digest.Short(), x.Ref.Stage, from, from.Stage).
			WithHint("a copy keeps its stage; isle fork --to-stage takes volumes into another, where policy grants it")
	}
	o := &origin{digest: s.Digest, rec: Environment{
		Instance: x.Instance, Ref: x.Ref, Project: x.Project, Spec: x.Spec, Generation: x.Generation,
	}}
	if !s.Imported { // a file says what it likes
		o.rec.Release = isle.Digest(x.Release)
	}
	if l := m.find(from); l != nil { // which is not what it was when it was captured
		if p := l.snapshot().Project; p != x.Project {
			return nil, isle.Errorf(isle.Conflict, "snapshot %s is of project %s, and %s is of project %s", s.Digest.Short(), x.Project, from, p)
		}
		was := l.snapshot()
		o.rec.Branch, o.rec.Commit, o.rec.Dirty, o.rec.Repository = was.Branch, was.Commit, was.Dirty, was.Repository
	}
	if e, ok := m.ByInstance(x.Instance); ok && !isForeign(s) { // else its own origin is not known any more
		o.rec.Parent, o.rec.ParentRef, o.rec.Origin, o.rec.Ancestors = e.Parent, e.ParentRef, e.Origin, e.Ancestors
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

// fill makes the volumes of the copies: those of what runs are captured once, at
// one instant, and cloned for the others. It says how, for people.
func (m *Manager) fill(ctx context.Context, o *origin, copies [][]Volume) (how string, err error) {
	first, rest := o.volumes, copies
	if o.live != nil && (len(o.volumes) > 0 || o.memory != nil) {
		captured, err := m.captureWith(ctx, o, copies[0])
		if err != nil {
			return "", err
		}
		how = captured.text()
		first, rest = copies[0], copies[1:]
	}
	if len(o.volumes) == 0 && how == "" {
		return "no volumes", nil
	}
	for _, volumes := range rest {
		for i, v := range volumes {
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

// text tells people how a capture went.
func (c Captured) text() string {
	text := fmt.Sprintf("paused for %v", c.Paused.Round(100*time.Microsecond))
	if c.Memory > 0 {
		text += fmt.Sprintf(", memory %d MiB", (c.Memory+1<<20-1)>>20)
	}
	if c.How != "" {
		text += ", " + c.How
	}
	return text
}

// capture has the driver copy the volumes of what runs, and its memory into a
// folder, if that is given.
func (m *Manager) capture(ctx context.Context, o *origin, into []Volume, memory string) (Captured, error) {
	driver, ok := m.cfg.Driver.(Capturer)
	if !ok {
		return Captured{}, isle.Errorf(isle.Unavailable, "environments of this server cannot be captured")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(o.op.ctx, func() { cancel(context.Cause(o.op.ctx)) })() // a teardown comes first
	c := Capture{Instance: o.rec.Instance, Isolation: o.rec.Spec.Isolation, Memory: memory}
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

// A SnapshotRequest says what to note of a snapshot.
type SnapshotRequest struct {
	Message  string
	Tag      string // "": none
	NoMemory bool   // volumes only, although the class has memory
}

// Snapshot captures an environment, which goes on: of the class gvisor with its
// memory, where something runs. It fails with Conflict for a
// fork that is not open: what is made of its snapshot would skip on_fork.
func (m *Manager) Snapshot(ctx context.Context, actor isle.Actor, ref isle.Ref, req SnapshotRequest) (snapshot.Snapshot, error) {
	if m.cfg.Snapshots == nil {
		return snapshot.Snapshot{}, errNoSnapshots()
	}
	o, err := m.origin(ctx, ForkRequest{From: ref})
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	defer o.release()
	if o.rec.Opening != Open {
		return snapshot.Snapshot{}, isle.Errorf(isle.Conflict, "environment %s is a fork, and on_fork has not succeeded: it is not captured", ref).
			WithHint("isle status %s tells how far it is", ref)
	}
	if req.Tag != "" { // nothing is stopped, and hashed, for what is refused in the end
		if s, err := m.cfg.Snapshots.Get(req.Tag); err == nil {
			return snapshot.Snapshot{}, isle.Errorf(isle.Conflict, "the tag %s is on snapshot %s", req.Tag, s.Digest.Short()).
				WithHint("choose another, or move it afterwards: isle snapshot tag --move SNAPSHOT %s", req.Tag)
		}
	}
	d, err := m.cfg.Snapshots.Draft()
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	defer d.Discard() // nothing, once it is sealed
	x := o.manifest()
	if x.Parent, err = m.parentOf(o.rec); err != nil {
		return snapshot.Snapshot{}, err
	}
	x.Author, x.Message = actor, req.Message
	var into []Volume
	for _, v := range o.volumes {
		into = append(into, Volume{ID: d.Volume(v.Service, v.Path)})
	}
	if _, ok := m.cfg.Driver.(Restorer); ok && !req.NoMemory && o.rec.Spec.Isolation == spec.Gvisor && m.restless(o) == "" {
		o.memory = &memory{dir: d.Memory(), users: 1}
	}
	if len(into) > 0 || o.memory != nil {
		if _, err = m.captureWith(ctx, o, into); err != nil {
			return snapshot.Snapshot{}, isle.Errorf(isle.CodeOf(err), "%s could not be captured: %w", ref, err)
		}
	}
	if o.memory != nil {
		o.memory.note(&x)
	}
	x.Created = m.cfg.Now()
	m.fault("snapshot.captured")
	o.release() // to hash takes longer
	var tags []string
	if req.Tag != "" {
		tags = append(tags, req.Tag)
	}
	return d.Seal(ctx, actor, x, tags...)
}

// manifest is what a snapshot of what runs says of it.
func (o *origin) manifest() snapshot.Manifest {
	x := snapshot.Manifest{
		Ref: o.rec.Ref, Project: o.rec.Project, Instance: o.rec.Instance, Isolation: o.rec.Spec.Isolation,
		Generation: o.rec.Generation, Spec: o.rec.Spec, Release: string(o.rec.Release),
	}
	for _, s := range o.rec.Services {
		x.Services = append(x.Services, snapshot.Service{Name: s.Name, Image: s.Image, Launch: s.Launch})
	}
	return x
}

// parentOf is the snapshot that a new one of an environment follows: the last
// one of it, else that which it was made of.
func (m *Manager) parentOf(e Environment) (isle.Digest, error) {
	all, err := m.cfg.Snapshots.List()
	if err != nil {
		return "", err
	}
	parent := e.Origin
	for _, s := range all {
		if s.Manifest.Instance == e.Instance && !isForeign(s) && s.Warm == nil {
			parent = s.Digest
		}
	}
	return parent, nil
}

// isForeign reports whether a snapshot says of itself what it was taken of, and
// nobody who is trusted does.
func isForeign(s snapshot.Snapshot) bool { return s.Imported && !s.Trusted }

// Copies are the environments that were made of a snapshot, by name.
func (m *Manager) Copies(d isle.Digest) (names []string) {
	for _, l := range m.all() {
		if e := l.snapshot(); e.Origin == d && !e.Staged {
			names = append(names, e.Ref.String())
		}
	}
	slices.Sort(names)
	return names
}
