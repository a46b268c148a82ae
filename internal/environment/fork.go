package environment

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/spec"
)

const (
	// maxForks bounds how many forks one request makes.
	maxForks = 64
	// maxNames bounds how many names are tried for them.
	maxNames = 10_000
)

// A ForkRequest asks for copies of an environment, or of a snapshot.
type ForkRequest struct {
	From isle.Ref // zero: whatever At is a snapshot of
	At   string   // a snapshot, by digest or tag; "": what runs now
	// Name is that of the fork; of several, NAME-1 to NAME-N. "" takes names that
	// are free: SOURCE-f1 and so on.
	Name    string
	N       int            // how many; 0 is 1
	Stage   string         // "": the source's
	OneShot bool           // torn down, volumes too, when its client is gone
	TTL     *time.Duration // overrides the file's; zero: no end
	Timeout time.Duration  // of each on_fork; 0: Config.OnFork
	Branch  string         // of the forks, as in Environment; "": the source's
	Cold    bool           // started on the volumes, although memory could be gone on from
	// May is asked once what is copied is held and the names are known, and before
	// anything is recorded: of both there may be another than when PlanFork was
	// asked. nil allows all.
	May func(ForkPlan) error
}

func (req *ForkRequest) check() error {
	switch {
	case req.N < 0 || req.N > maxForks:
		return isle.Errorf(isle.Invalid, "%d forks at a time: want 1 to %d", req.N, maxForks)
	case req.Name != "" && !isle.ValidName(req.Name), req.Stage != "" && !isle.ValidName(req.Stage):
		return isle.Errorf(isle.Invalid, "%q is no name for an environment", isle.Ref{Name: req.Name, Stage: req.Stage}.String()).
			WithHint("use lower-case letters, digits and dashes, beginning with a letter, at most 40")
	case req.Timeout < 0:
		return isle.Errorf(isle.Invalid, "a time-out of %v is none", req.Timeout)
	case req.From == (isle.Ref{}) && req.At == "":
		return isle.Errorf(isle.Invalid, "no environment and no snapshot is named")
	}
	req.N = max(req.N, 1)
	return nil
}

// A fork is one copy in the making; its ref is held by op.
type fork struct {
	l       *live
	op      *op
	ports   *portPlan
	secrets map[string][]byte
	volumes []Volume  // in the order of the origin's
	fresh   []Volume  // that hold nothing, as in the origin
	dropped []isle.ID // volumes whose place these take
	intent  audit.Entry

	memory      *memory // that it goes on from; nil: it is started
	leaveMemory func()  // says that it has gone on, or does not
	next        Opening // that it has once it has woken
}

// newFork is a copy of which nothing is made yet.
func newFork(l *live) *fork { return &fork{l: l, secrets: map[string][]byte{}, leaveMemory: func() {}} }

// Fork makes copies of what runs, or of a snapshot, and waits until they are
// open: each has volumes of its own that hold what the source's held at one
// instant, and goes on from its memory at that instant, or is launched where the
// class has none. It is shut until on_fork has succeeded in every service. The
// copies of one request are of the same instant; the source is stopped once,
// for that moment.
//
// It fails with NotFound if the source is not there, with Conflict if a name is
// taken, and with Failed if a fork does not come up or its on_fork fails: such a
// fork stays, shut, to be looked at, unless it is of another stage or one-shot.
// If ctx ends before the copies are made, they are undone; after that the work
// goes on, but for one-shot forks, which are torn down.
func (m *Manager) Fork(ctx context.Context, actor isle.Actor, req ForkRequest, progress func(Progress)) ([]UpResult, error) {
	if err := req.check(); err != nil {
		return nil, err
	}
	say, mute := gate(progress)
	defer mute()
	o, err := m.origin(ctx, req)
	if err != nil {
		return nil, err
	}
	defer o.release()
	if err := o.mayCross(req); err != nil {
		return nil, err
	}
	if err := m.haveImages(ctx, o); err != nil {
		return nil, err
	}
	why, err := m.memoryFor(o, req.Stage, req.Cold)
	if err != nil {
		return nil, err
	}
	forks, err := m.plan(ctx, actor, req, o)
	if err != nil {
		return nil, err
	}
	if why != "" {
		say(Progress{Service: o.rec.Ref.String(), Step: "memory", State: "log", Message: "services are started anew: " + why})
	}
	if err := m.copyInto(ctx, actor, o, forks, say); err != nil {
		return nil, err
	}
	o.release()
	return m.launchForks(ctx, req, forks, say)
}

// plan chooses the names, which are held from then on, and says what each fork
// is to be. Nothing of it is stored.
func (m *Manager) plan(ctx context.Context, actor isle.Actor, req ForkRequest, o *origin) (forks []*fork, err error) {
	defer func() {
		if err != nil {
			for _, f := range forks {
				m.drop(f)
			}
			forks = nil
		}
	}()
	if forks, err = m.reserve(actor, req, o); err != nil {
		return forks, err
	}
	if req.May != nil {
		if err = req.May(o.plan(refsOf(forks))); err != nil {
			return forks, err
		}
	}
	for _, f := range forks {
		if f.ports, err = m.assignPorts(ctx, f.l.ref, o.rec.Spec, nil); err != nil {
			return forks, err
		}
		var services []Service
		for _, name := range spec.StartOrder(o.rec.Spec) {
			svc, _ := o.rec.specOf(name)
			was, ok := o.rec.service(name)
			if !ok {
				return forks, isle.Errorf(isle.Conflict, "service %s of %s has no image", name, o.rec.Ref)
			}
			secret, hash := newSecret()
			f.secrets[name] = secret
			services = append(services, newService(svc, o.rec.Spec, was.Image, hash, f.ports.of(name)))
		}
		f.l.update(func(e *Environment) { e.Services = services })
		f.volumes, f.fresh = o.newVolumes(f.l.ref, "")
	}
	return forks, nil
}

// newVolumes are the records of a copy's volumes, of which nothing is made yet:
// those that get what the origin's hold, in their order, and the others.
func (o *origin) newVolumes(ref isle.Ref, staged isle.ID) (copied, fresh []Volume) {
	fill := func(v Volume) Volume {
		v.ID, v.Ref, v.Project, v.For = isle.NewID(), ref, o.rec.Project, staged
		return v
	}
	for _, v := range o.volumes {
		copied = append(copied, fill(Volume{Service: v.Service, Path: v.Path, Size: v.Size}))
	}
	for _, svc := range o.rec.Spec.Services {
		for _, want := range svc.Volumes {
			if _, ok := findVolume(o.volumes, svc.Name, want.Path); !ok {
				fresh = append(fresh, fill(Volume{Service: svc.Name, Path: want.Path, Size: want.Size}))
			}
		}
	}
	return copied, fresh
}

func refsOf(forks []*fork) (refs []isle.Ref) {
	for _, f := range forks {
		refs = append(refs, f.l.ref)
	}
	return refs
}

// reserve takes the names of the forks and puts their records in their places,
// so that nobody else takes them, or their uids.
func (m *Manager) reserve(actor isle.Actor, req ForkRequest, o *origin) (forks []*fork, err error) {
	now := m.cfg.Now().UTC()
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := 1; len(forks) < req.N; i++ {
		ref, derived := req.nameOf(i, o)
		held := m.locks.try(m.ctx, ref)
		if held == nil || m.takenLocked(ref) {
			if held != nil {
				held.release()
			}
			if derived && i < maxNames {
				continue
			}
			return forks, isle.Errorf(isle.Conflict, "the name %s is taken", ref).
				WithHint("choose another with --name, or isle down %s --volumes", ref)
		}
		m.generation = max(m.generation+1, now.UnixNano(), o.rec.Generation+1)
		e := o.rec.forked(ref, o.digest)
		e.Owner, e.Created, e.OneShot, e.Boot, e.Generation = actor, now, req.OneShot, m.cfg.Boot, m.generation
		e.Expires = expiry(now, UpRequest{Spec: e.Spec, TTL: req.TTL})
		if req.Branch != "" {
			e.Branch = req.Branch
		}
		l := m.newLive(e)
		l.forkLimit = req.Timeout
		l.uids = m.pickUIDs(e.Instance)
		l.rec.UIDBase = l.uids
		m.envs[ref] = l
		f := newFork(l)
		f.op = held
		forks = append(forks, f)
	}
	return forks, nil
}

// nameOf is the name of the i-th fork, and whether another would do as well.
func (req *ForkRequest) nameOf(i int, o *origin) (ref isle.Ref, derived bool) {
	stage := req.Stage
	if stage == "" {
		stage = o.rec.Ref.Stage
	}
	switch {
	case req.Name == "":
		return isle.Ref{Name: isle.Slug(fmt.Sprintf("%s-f%d", o.rec.Ref.Name, i)), Stage: stage}, true
	case req.N == 1:
		return isle.Ref{Name: req.Name, Stage: stage}, false
	}
	return isle.Ref{Name: isle.Slug(fmt.Sprintf("%s-%d", req.Name, i)), Stage: stage}, false
}

// takenLocked says whether a name is an environment's, or volumes are kept
// under it; m.mu is held.
func (m *Manager) takenLocked(ref isle.Ref) bool {
	if m.envs[ref] != nil {
		return true
	}
	for _, v := range m.volumes {
		if v.Ref == ref {
			return true
		}
	}
	return false
}

// A ForkPlan is what a request would come to now.
type ForkPlan struct {
	Source   isle.Ref    // whose data is copied
	Instance isle.ID     // of the source
	Snapshot isle.Digest // that is copied; "": what runs
	Project  string
	Forks    []isle.Ref // names may be taken by the time that it is made: Fork asks its May about those that it takes
	// Release is what the source was last brought up from, "" of none, and Spec and
	// Images, by service, what is launched.
	Release isle.Digest
	Spec    spec.File
	Images  map[string]isle.Digest
}

func (o *origin) plan(forks []isle.Ref) ForkPlan {
	p := ForkPlan{
		Source: o.rec.Ref, Instance: o.rec.Instance, Snapshot: o.digest, Project: o.rec.Project, Forks: forks,
		Release: o.rec.Release, Spec: o.rec.Spec, Images: map[string]isle.Digest{},
	}
	for _, s := range o.rec.Services {
		p.Images[s.Name] = s.Digest
	}
	return p
}

// PlanFork says what a request would come to.
func (m *Manager) PlanFork(req ForkRequest) (ForkPlan, error) {
	if err := req.check(); err != nil {
		return ForkPlan{}, err
	}
	o, err := m.look(req)
	if err != nil {
		return ForkPlan{}, err
	}
	p := o.plan(nil)
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := 1; len(p.Forks) < req.N; i++ {
		ref, derived := req.nameOf(i, o)
		if !derived || !m.takenLocked(ref) || i > maxNames {
			p.Forks = append(p.Forks, ref)
		}
	}
	return p, nil
}

// forked is the record of a copy: what it has of its source.
func (e *Environment) forked(ref isle.Ref, origin isle.Digest) Environment {
	ancestors := e.Ancestors
	if e.Parent != "" {
		ancestors = append([]Ancestor{{e.Parent, e.ParentRef, e.Origin}}, ancestors...)
	}
	return Environment{
		Instance: isle.NewID(), Ref: ref, Project: e.Project, Desired: WantRunning, Phase: Pending, Spec: e.Spec,
		Branch: e.Branch, Commit: e.Commit, Dirty: e.Dirty, Repository: e.Repository, Release: e.Release,
		Parent: e.Instance, ParentRef: e.Ref, Origin: origin, Ancestors: ancestors[:min(len(ancestors), maxAncestors)],
		Fork: true, Crossed: e.Ref.Stage != ref.Stage, Opening: Copying,
	}
}

// drop gives up a fork of which nothing is stored.
func (m *Manager) drop(f *fork) {
	m.forget(f.l)
	if f.ports != nil {
		f.ports.release()
		if err := m.cfg.Ports.ForgetPorts(context.WithoutCancel(m.ctx), f.l.ref); err != nil {
			m.cfg.Log.Error("ports could not be forgotten", "environment", f.l.ref, "error", err)
		}
	}
	f.op.release()
}

// copyInto records the forks and then makes their volumes. When it returns nil
// they are recorded as copied, all at once; after an error nothing of them is
// left.
func (m *Manager) copyInto(ctx context.Context, actor isle.Actor, o *origin, forks []*fork, say func(Progress)) error {
	intent := audit.NewIntent(actor, isle.ActionEnvironmentFork, resource(o.rec.Ref), "").In(o.rec.Ref, o.rec.Instance).Explained(ctx)
	intent = o.detail(intent)
	var names []string
	c := Mutation{}
	now := m.cfg.Now().UTC()
	for _, f := range forks {
		names = append(names, f.l.ref.String())
		f.intent = audit.NewIntent(actor, isle.ActionEnvironmentLaunch, resource(f.l.ref), "fork of "+o.rec.Ref.String()).In(f.l.ref, f.l.instance).Explained(ctx)
		rec := f.l.snapshot()
		f.intent = f.intent.With("project", rec.Project)
		f.intent.Release = rec.Release
		for _, s := range rec.Services {
			f.intent = f.intent.With("image "+s.Name, string(s.Digest))
		}
		for i := range f.volumes {
			f.volumes[i].Created = now
		}
		for i := range f.fresh {
			f.fresh[i].Created = now
		}
		put := slices.Concat(f.volumes, f.fresh)
		c.PutVolumes = append(c.PutVolumes, put...)
		c.Entries = append(c.Entries, f.intent)
		c.Entries = append(c.Entries, volumesMade(actor, f.l, put, now)...)
		m.warm(f.l)
	}
	intent = intent.With("to", strings.Join(names, " "))
	first := []audit.Entry{intent}
	if stage := forks[0].l.ref.Stage; stage != o.rec.Ref.Stage {
		first = append(first, audit.NewEvent(actor, isle.ActionVolumeCross, resource(o.rec.Ref), isle.Allow, "its volumes are taken into stage "+stage).
			In(o.rec.Ref, o.rec.Instance).Explained(ctx).With("to", strings.Join(names, " ")))
	}
	c.Entries = append(first, c.Entries...)
	if err := m.saveAll(ctx, livesOf(forks), func(*Environment) {}, c); err != nil {
		for _, f := range forks {
			m.drop(f)
		}
		return err
	}
	m.fault("fork.recorded")
	say(Progress{Service: o.rec.Ref.String(), Step: "capture", State: "start"})
	var copies [][]Volume
	for _, f := range forks {
		copies = append(copies, f.volumes)
	}
	how, err := m.fill(ctx, o, copies)
	if err == nil {
		m.fault("fork.captured")
		err = m.copied(ctx, o, forks, intent)
	}
	if err != nil {
		err = isle.Errorf(isle.CodeOf(err), "%s could not be copied: %w", o.rec.Ref, err)
		m.undo(forks, intent, err)
		say(Progress{Service: o.rec.Ref.String(), Step: "capture", State: "failed", Message: err.Error()})
		return err
	}
	m.fault("fork.copied")
	say(Progress{Service: o.rec.Ref.String(), Step: "capture", State: "done", Message: how})
	return nil
}

// detail says in an entry what copies are made of.
func (o *origin) detail(e audit.Entry) audit.Entry {
	if o.digest != "" {
		e = e.With("snapshot", string(o.digest))
	}
	if o.memory != nil {
		e = e.With("memory", "true")
	}
	return e
}

func livesOf(forks []*fork) (all []*live) {
	for _, f := range forks {
		all = append(all, f.l)
	}
	return all
}

// copied records that the volumes hold what they are to hold.
func (m *Manager) copied(ctx context.Context, o *origin, forks []*fork, intent audit.Entry) error {
	next := Open
	if o.rec.forksRun() {
		next = Shut
	}
	for _, f := range forks {
		f.goesOnFrom(o.memory, next)
	}
	c := Mutation{Entries: []audit.Entry{intent.Outcome(nil)}}
	for _, f := range forks {
		m.markCopied(o, f.volumes)
		c.PutVolumes = append(c.PutVolumes, f.volumes...)
	}
	return m.saveAll(ctx, livesOf(forks), o.memory.made(next), c)
}

// forksRun says whether there is something to run before a copy opens.
func (e *Environment) forksRun() bool {
	return slices.ContainsFunc(e.Spec.Services, func(s spec.Service) bool { return len(s.OnFork) > 0 })
}

// markCopied says in the records of copied volumes that they are made, and gives
// copies of seeded ones what diff compares them with, in the same stage: it has
// the names of all files.
func (m *Manager) markCopied(o *origin, volumes []Volume) {
	for i := range volumes {
		v := &volumes[i]
		v.Ready = true
		if o.volumes[i].Baseline != "" && v.Ref.Stage == o.rec.Ref.Stage && m.copyBaseline(o.volumes[i].ID, v.ID) == nil {
			v.Baseline = o.volumes[i].Baseline
		}
	}
}

// undo takes away forks that were recorded and could not be made.
func (m *Manager) undo(forks []*fork, intent audit.Entry, cause error) {
	ctx := context.WithoutCancel(m.ctx)
	m.end(intent, cause)
	for _, f := range forks {
		f.leaveMemory()
		c := Mutation{Entries: []audit.Entry{f.intent.Outcome(cause)}}
		failed := false
		for _, v := range slices.Concat(f.volumes, f.fresh) {
			if err := m.cfg.Volumes.Delete(ctx, v.ID); err != nil {
				failed = true
				m.cfg.Log.Error("a volume of a fork that came to nothing could not be removed", "volume", v.ID, "error", err)
			}
			c.RemoveVolumes = append(c.RemoveVolumes, v.ID)
		}
		if !failed {
			if err := f.l.remove(ctx, c); err != nil { // the next start undoes it
				m.cfg.Log.Error("a fork that came to nothing could not be removed", "environment", f.l.ref, "error", err)
			}
		}
		m.drop(f)
		f.l.update(func(*Environment) {}) // who waits looks again
	}
}

// launchForks brings copies up, side by side, and waits for them.
func (m *Manager) launchForks(ctx context.Context, req ForkRequest, forks []*fork, say func(Progress)) ([]UpResult, error) {
	results, errs := make([]UpResult, len(forks)), make([]error, len(forks))
	var all sync.WaitGroup
	for i, f := range forks {
		all.Add(1)
		if !m.spawn(func() {
			defer all.Done()
			defer f.op.release()
			errs[i] = m.launchFork(f, say)
			results[i] = UpResult{Environment: f.l.snapshot(), Changed: true}
			if req.OneShot && ctx.Err() != nil {
				m.discard(f.l.ref)
			}
		}) {
			f.leaveMemory()
			f.ports.release()
			f.op.release()
			errs[i] = f.cutOff()
			all.Done()
		}
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }() // ends with the goroutines above
	select {
	case <-done:
		return results, firstOf(errs)
	case <-ctx.Done():
	}
	why := context.Cause(ctx)
	for _, f := range forks {
		if req.OneShot || isle.CodeOf(why) == isle.Refused {
			f.op.cancel(why)
		}
		f.op.abandon()
	}
	if req.OneShot {
		<-done
	}
	return nil, ctx.Err()
}

func firstOf(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// launchFork brings one copy up and opens it; its ref is held.
func (m *Manager) launchFork(f *fork, say func(Progress)) error {
	say = prefixed(f.l.ref, say)
	f.l.publish(f.ports)
	err := m.conclude(f.l, f.intent, m.startCopy(f.op.ctx, f, say))
	if err == nil {
		say(Progress{Step: "fork", State: "done"})
		return nil
	}
	rec := f.l.snapshot()
	switch {
	case rec.halfMade() && m.ctx.Err() != nil:
		err = f.cutOff()
	case rec.halfMade():
		if derr := m.takeDown(context.WithoutCancel(m.ctx), system("fork"), f.l, true, func(Progress) {}); derr != nil {
			m.cfg.Log.Error("a fork that did not go on from memory could not be taken away; isle down tries again", "environment", f.l.ref, "error", derr)
		}
		err = isle.Errorf(isle.CodeOf(err), "fork %s could not go on from the memory of %s, and was taken away: %w", f.l.ref, rec.ParentRef, err)
	case rec.Crossed && rec.Opening != Open && m.ctx.Err() == nil: // what it holds was not to be seen in this stage
		if derr := m.takeDown(context.WithoutCancel(m.ctx), system("fork"), f.l, true, func(Progress) {}); derr != nil {
			m.cfg.Log.Error("a fork of another stage could not be taken away; isle down tries again", "environment", f.l.ref, "error", derr)
		}
		err = isle.Errorf(isle.CodeOf(err), "fork %s of stage %s was taken away: %w", f.l.ref, rec.ParentRef.Stage, err)
	}
	say(Progress{Step: "fork", State: "failed", Message: firstLine(err)})
	return err
}

// cutOff is the error of a copy that the end of the server has interrupted.
func (f *fork) cutOff() error {
	becomes := "goes on"
	if rec := f.l.snapshot(); rec.halfMade() {
		becomes = "is taken away"
	}
	return isle.Errorf(isle.Unavailable, "the server is ending; fork %s %s when it is back", f.l.ref, becomes)
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// prefixed names a fork's services after the fork.
func prefixed(ref isle.Ref, say func(Progress)) func(Progress) {
	return func(p Progress) {
		p.Service = strings.TrimSuffix(ref.String()+"/"+p.Service, "/")
		say(p)
	}
}

// hostname is that of a service: its name, and in a fork the fork's too, which
// tells copies apart. So it is in what may begin with a ready state, also where it
// does not. It is at most 63 characters long (RFC 1123).
func (e *Environment) hostname(service string) string {
	if !e.Fork && !e.Spec.Warm {
		return service
	}
	if name := service + "-" + e.Ref.Name; len(name) <= 63 {
		return name
	}
	return isle.Slug(service + "-" + e.Ref.Name)
}

// machineID is machine-id(5) of a service: random as its instance's ID is, and
// another one for each service.
func machineID(instance isle.ID, service string) string {
	sum := sha256.Sum256([]byte("isle machine-id\x00" + string(instance) + "\x00" + service))
	return hex.EncodeToString(sum[:16])
}
