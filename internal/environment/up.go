package environment

import (
	"context"
	"errors"
	"hash/fnv"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/image"
	"isle/internal/spec"
)

// An UpRequest asks for an environment to run as a file says.
type UpRequest struct {
	Ref     isle.Ref
	Project string
	Spec    spec.File
	Images  map[string]image.Image // by service
	// Reasons say, by service, why its image differs from the last one, for
	// people: "app/shop.py changed".
	Reasons map[string]string
	OneShot bool // torn down, volumes too, when its client is gone
	// NoWait returns once the services that depend on none are launched; the
	// rest goes on.
	NoWait bool
	TTL    *time.Duration // overrides the file's; zero: no end
	Cold   bool           // it is started, although there may be a ready state that it could begin with

	Branch, Commit, Repository string // as in Environment
	Dirty                      bool
	// Release is what the file and the images are of; "": of none. What runs is
	// switched to it, and not replaced in place.
	Release isle.Digest
	// Back has an instance of the release that was put aside go on, where there
	// is one that is what is asked for.
	Back bool
	// Last is called by a switch when all that can fail has been done, and before
	// another instance serves: if it fails, nothing changes. nil: there is nothing
	// to do then.
	Last func(context.Context) error
	// Still is asked when it is the request's turn, before anything is done: what it
	// waited for may have changed whether this is to run. nil: it is.
	Still func() error
	// Keep is how long what a switch puts aside is kept at least, whatever
	// Config.KeepAside says; 0: as long as that.
	Keep time.Duration
}

// An UpResult is what Up came to.
type UpResult struct {
	Environment Environment
	Changed     bool     // false: it was so already
	Replaced    []string // what was replaced or applied in place, and why: "web: app/ changed"
	Switch      *Switch  // nil: nothing was switched
	// Warm is the snapshot of a ready state that it began with, and Took how long
	// that was until it was open; "": it was started, and NotWarm says, for
	// people, why although there was one.
	Warm    isle.Digest
	Took    time.Duration
	NotWarm string

	live  *live
	ready *readyState // what is to be kept of it; nil: nothing
}

// Progress is one line of what happens. State is "start", "done" or "failed".
type Progress struct {
	Service, Step, State, Message string
	Done, Total                   int64
}

func (req *UpRequest) check() error {
	if !isle.ValidName(req.Ref.Name) || !isle.ValidName(req.Ref.Stage) {
		return isle.Errorf(isle.Invalid, "%q is no name for an environment", req.Ref.String()).
			WithHint("use lower-case letters, digits and dashes, beginning with a letter, at most 40")
	}
	if len(req.Spec.Services) == 0 {
		return isle.Errorf(isle.Invalid, "%s has no services", req.Project)
	}
	for _, s := range req.Spec.Services {
		if _, ok := req.Images[s.Name]; !ok {
			return isle.Errorf(isle.Invalid, "service %s has no image", s.Name)
		}
	}
	return nil
}

// Up makes an environment what the request says and waits until it is. It
// fails with Conflict if the name belongs to another project, or a published
// port is taken; with Failed, and the service's last lines, if a service does
// not come up: then what is healthy runs on, the rest does not, and Up tries
// again. If ctx ends the work goes on until it is done or another request for
// the same environment comes; if it ends because whoever asked may not any more
// (its cause is Refused), the work ends too.
func (m *Manager) Up(ctx context.Context, actor isle.Actor, req UpRequest, progress func(Progress)) (UpResult, error) {
	if err := req.check(); err != nil {
		return UpResult{}, err
	}
	req.Spec.Services = slices.Clone(req.Spec.Services) // the record outlives the caller's
	specJSON := encodeSpec(req.Spec)
	if l := m.find(req.Ref); l != nil && l.upToDate(&req, specJSON) {
		return m.unchanged(ctx, actor, l, req)
	}
	o, err := m.locks.acquire(ctx, m.ctx, req.Ref, false)
	if err != nil {
		return UpResult{}, err
	}
	say, mute := gate(progress)
	defer mute()
	type answer struct {
		result UpResult
		err    error
	}
	done, launched := make(chan answer, 1), make(chan struct{})
	if !m.spawn(func() {
		release := sync.OnceFunc(o.release)
		defer release()
		r, err := m.up(o.ctx, actor, req, specJSON, say, sync.OnceFunc(func() { close(launched) }))
		if req.OneShot && ctx.Err() != nil {
			m.discard(req.Ref)
		}
		done <- answer{r, err}
		if r.ready != nil {
			m.keepReady(o, r.ready, release)
		}
	}) {
		o.release()
		return UpResult{}, isle.Errorf(isle.Unavailable, "the server is ending")
	}
	if !req.NoWait {
		launched = nil
	}
	select {
	case a := <-done:
		return a.result, a.err
	case <-launched:
		select {
		case a := <-done: // it is over already
			return a.result, a.err
		default:
		}
		o.abandon()
		if l := m.find(req.Ref); l != nil {
			return UpResult{Environment: l.snapshot(), Changed: true}, nil
		}
		return UpResult{}, isle.Errorf(isle.Conflict, "environment %s was torn down", req.Ref)
	case <-ctx.Done():
		why := context.Cause(ctx)
		if revoked := isle.CodeOf(why) == isle.Refused; req.OneShot || revoked {
			o.cancel(why)
			<-done
		}
		o.abandon()
		return UpResult{}, ctx.Err()
	}
}

// discard tears down a one-shot environment whose client is gone; the ref is held.
func (m *Manager) discard(ref isle.Ref) {
	l := m.find(ref)
	if l == nil {
		return
	}
	actor := isle.Actor{Kind: isle.System, Name: "one-shot"}
	if err := m.takeDown(context.WithoutCancel(m.ctx), actor, l, true, func(Progress) {}); err != nil {
		m.cfg.Log.Error("a one-shot environment could not be torn down", "environment", ref, "error", err)
	}
}

// gate serializes a progress function and can close it for good.
func gate(progress func(Progress)) (say func(Progress), mute func()) {
	var mu sync.Mutex
	closed := progress == nil
	say = func(p Progress) {
		mu.Lock()
		defer mu.Unlock()
		if !closed {
			progress(p)
		}
	}
	return say, func() {
		mu.Lock()
		defer mu.Unlock()
		closed = true
	}
}

// up is Up with the ref held.
func (m *Manager) up(ctx context.Context, actor isle.Actor, req UpRequest, specJSON []byte, say func(Progress), started func()) (UpResult, error) {
	if req.Still != nil {
		if err := req.Still(); err != nil {
			return UpResult{}, err
		}
	}
	l := m.find(req.Ref)
	if l != nil && l.snapshot().Desired == WantDown { // a teardown that got stuck
		if err := m.takeDown(ctx, actor, l, false, say); err != nil {
			return UpResult{}, err
		}
		l = nil
	}
	if l != nil {
		if l.upToDate(&req, specJSON) {
			return m.unchanged(ctx, actor, l, req)
		}
		if err := l.keptFrom(); err != nil { // another file could read what is not masked yet
			return UpResult{}, err
		}
		if p := l.snapshot().Project; p != req.Project {
			return UpResult{}, isle.Errorf(isle.Conflict, "the name %s is taken by an environment of project %s", req.Ref, p).
				WithHint("choose another with --name, or isle down %s", req.Ref)
		}
		if req.Release != "" && l.snapshot().Opening == Open {
			return m.switchOver(ctx, actor, l, req, say)
		}
		return m.replace(ctx, actor, l, req, say, started)
	}
	kept := m.volumesOf(req.Ref)
	if req.OneShot && len(kept) > 0 { // to launch is not to delete
		return UpResult{}, isle.Errorf(isle.Conflict, "volumes are kept under the name %s, and an environment that ends with its call takes its volumes with it", req.Ref).
			WithHint("choose another name with --name, leave the environment with --keep, or delete them: isle down %s --volumes", req.Ref)
	}
	for _, v := range kept {
		if v.Project != req.Project {
			return UpResult{}, isle.Errorf(isle.Conflict, "volumes of project %s are kept under the name %s", v.Project, req.Ref).
				WithHint("choose another name with --name, or delete them: isle down %s --volumes", req.Ref)
		}
	}
	if len(kept) > 0 || !req.Spec.Warm {
		return m.create(ctx, actor, req, say, started)
	}
	return m.beginWarm(ctx, actor, req, say, started)
}

// mark puts into a record what git knows of the files.
func (req *UpRequest) mark(e *Environment) {
	e.Branch, e.Commit, e.Dirty, e.Repository = req.Branch, req.Commit, req.Dirty, req.Repository
	e.Release = req.Release
}

// from puts into an entry what git knows of the files.
func (req *UpRequest) from(e audit.Entry) audit.Entry {
	if req.Branch != "" {
		e = e.With("branch", req.Branch)
	}
	if req.Commit != "" {
		e = e.With("commit", req.Commit)
	}
	if req.Dirty {
		e = e.With("dirty", "true")
	}
	e.Release = req.Release
	return e
}

// unchanged is Up of what runs already: only where its files are said to come
// from may be new.
func (m *Manager) unchanged(ctx context.Context, actor isle.Actor, l *live, req UpRequest) (UpResult, error) {
	now := l.snapshot()
	was := now
	if req.mark(&now); now.Branch == was.Branch && now.Commit == was.Commit && now.Dirty == was.Dirty && now.Repository == was.Repository && now.Release == was.Release {
		return UpResult{Environment: now}, nil
	}
	e := audit.NewEvent(actor, isle.ActionEnvironmentLaunch, resource(req.Ref), isle.Allow, "nothing to do but to note where its files are from").In(req.Ref, l.instance).Explained(ctx).With("project", now.Project)
	err := l.change(ctx, req.mark, Mutation{Entries: []audit.Entry{req.from(e)}})
	return UpResult{Environment: l.snapshot()}, err
}

// create launches an environment that is not there.
func (m *Manager) create(ctx context.Context, actor isle.Actor, req UpRequest, say func(Progress), started func()) (UpResult, error) {
	now := m.cfg.Now().UTC()
	ports, err := m.assignPorts(ctx, req.Ref, req.Spec, nil)
	if err != nil {
		return UpResult{}, err
	}
	e := Environment{
		Instance: isle.NewID(), Ref: req.Ref, Project: req.Project, Owner: actor, Desired: WantRunning, Phase: Pending,
		Spec: req.Spec, Created: now, Expires: expiry(now, req), OneShot: req.OneShot, Boot: m.cfg.Boot,
	}
	secrets := map[string][]byte{}
	req.mark(&e)
	for _, name := range spec.StartOrder(req.Spec) {
		svc, _ := e.specOf(name)
		var hash isle.Digest
		secrets[name], hash = newSecret()
		e.Services = append(e.Services, newService(svc, req.Spec, req.Images[name], hash, ports.of(name)))
	}
	s, first, prepared := m.takeSpare(req.Spec)
	if prepared {
		e.Instance = s.instance
		svc, _ := e.service(first)
		svc.Launch = s.launch
	}
	l := m.newLive(e)
	m.mu.Lock()
	if prepared {
		l.uids = s.uids
		m.keepSpare(s)
	} else {
		l.uids = m.pickUIDs(e.Instance)
	}
	l.rec.UIDBase = l.uids
	m.envs[req.Ref] = l // so that nobody else picks its uids
	m.mu.Unlock()
	intent := audit.NewIntent(actor, isle.ActionEnvironmentLaunch, resource(req.Ref), "").In(req.Ref, e.Instance).Explained(ctx).With("project", e.Project)
	for _, s := range e.Services {
		intent = intent.With("image "+s.Name, string(s.Digest))
	}
	intent = req.from(intent) // last: an entry keeps so many details and no more
	vols := m.wantVolumes(req, now)
	m.fault("up.begin")
	m.warm(l)
	err = l.save(ctx, Mutation{PutVolumes: vols, Entries: append([]audit.Entry{intent}, volumesMade(actor, l, vols, now)...)})
	if err != nil {
		if prepared {
			m.returnSpare(s)
			err = errors.Join(err, m.discardSpare(s))
		}
		m.forget(l)
		ports.release()
		return UpResult{}, err
	}
	m.fault("up.recorded")
	l.publish(ports)
	err = m.carryOut(ctx, l, secrets, req.NoWait, say, started)
	return UpResult{Environment: l.snapshot(), Changed: true, live: l}, m.conclude(l, intent, err)
}

// carryOut makes what was recorded: airlock, control group, services.
func (m *Manager) carryOut(ctx context.Context, l *live, secrets map[string][]byte, noWait bool, say func(Progress), started func()) error {
	if noWait {
		waiting, cancel := context.WithCancel(ctx)
		defer cancel()
		m.spawn(func() {
			if l.wait(waiting, func(e Environment) bool { return e.rootsLaunched() }) == nil {
				started()
			}
		})
	}
	if err := m.open(ctx, l, say); err != nil {
		l.update(func(e *Environment) {
			for i := range e.Services {
				if s := &e.Services[i]; s.Phase == Pending {
					s.Phase, s.Message = Broken, "could not be launched: "+err.Error()
				}
			}
		})
		return err
	}
	if err := m.converge(ctx, l, secrets, say); err != nil {
		return err
	}
	return m.openFork(ctx, l, say)
}

// rootsLaunched reports whether every service that depends on none is alive.
func (e *Environment) rootsLaunched() bool {
	for _, s := range e.Services {
		svc, _ := e.specOf(s.Name)
		if len(svc.DependsOn) == 0 && s.Phase == Pending {
			return false
		}
	}
	return true
}

// conclude writes the outcome of an intent with the record as it is.
func (m *Manager) conclude(l *live, intent audit.Entry, err error) error {
	m.fault("up.concluding")
	e := l.save(context.WithoutCancel(m.ctx), Mutation{Entries: []audit.Entry{intent.Outcome(err)}})
	if e != nil {
		m.cfg.Log.Error("the outcome of an action could not be recorded; recovery will close it as unknown", "intent", intent.ID, "error", e)
	}
	if errors.Is(err, context.Canceled) && m.ctx.Err() != nil {
		return isle.Errorf(isle.Unavailable, "the server is ending; the environment goes on when it is back")
	}
	return err
}

// forget drops an environment from memory.
func (m *Manager) forget(l *live) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.envs[l.ref] == l {
		delete(m.envs, l.ref)
	}
	delete(m.staged, l.instance)
}

func newService(svc spec.Service, f spec.File, img image.Image, hash isle.Digest, ports []PublishedPort) Service {
	return Service{
		Name: svc.Name, Launch: isle.NewID(), Image: img, Digest: img.Digest(), Config: configDigest(svc, f),
		Phase: Pending, SecretHash: hash, Ports: ports,
	}
}

// expiry is when the environment of a request ends; zero: never.
func expiry(now time.Time, req UpRequest) time.Time {
	ttl := req.Spec.TTL
	if req.TTL != nil {
		ttl = *req.TTL
	}
	if ttl <= 0 {
		return time.Time{}
	}
	return now.Add(ttl)
}

// wantVolumes returns the records to put for the volumes that a request names:
// new ones, and kept ones that are to be deleted no more. A kept volume keeps
// its size.
func (m *Manager) wantVolumes(req UpRequest, now time.Time) (put []Volume) {
	for _, svc := range req.Spec.Services {
		for _, want := range svc.Volumes {
			v, ok := m.volume(req.Ref, svc.Name, want.Path)
			switch {
			case !ok:
				v = Volume{ID: isle.NewID(), Ref: req.Ref, Project: req.Project, Service: svc.Name, Path: want.Path, Size: want.Size, Created: now}
			case !v.Ready && v.Size != want.Size:
				v.Size, v.DeleteAfter = want.Size, time.Time{}
			case !v.DeleteAfter.IsZero():
				v.DeleteAfter = time.Time{}
			default:
				continue
			}
			put = append(put, v)
		}
	}
	for _, v := range m.volumesOf(req.Ref) { // of services that are in the file no more
		if !v.DeleteAfter.IsZero() && !slices.ContainsFunc(put, func(p Volume) bool { return p.ID == v.ID }) {
			v.DeleteAfter = time.Time{}
			put = append(put, v)
		}
	}
	return put
}

// volumesMade are the entries about the volumes of put that are new.
func volumesMade(actor isle.Actor, l *live, put []Volume, now time.Time) (entries []audit.Entry) {
	for _, v := range put {
		if v.Created.Equal(now) {
			entries = append(entries, audit.NewEvent(actor, isle.ActionVolumeCreate, v.resource(), isle.Allow, v.Service+":"+v.Path).In(l.ref, l.instance))
		}
	}
	return entries
}

func (v Volume) resource() isle.Resource {
	return isle.Resource{Kind: "volume", Name: string(v.ID), Stage: v.Ref.Stage}
}

// The ranges of host uids given to environments: 65,536 each, from firstUID to
// below 2^32, since the last range holds the invalid uid.
const (
	firstUID   = 0x1000_0000
	uidsPerEnv = 1 << 16
	uidRanges  = (0xffff_0000 - firstUID) / uidsPerEnv
)

type uidRange struct{ first, count uint64 }

// readSubuids reads which uids the machine has given to users for their own
// containers (subuid(5)); a file that is not there gives none.
func readSubuids(paths ...string) (out []uidRange) {
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Split(strings.TrimSpace(line), ":")
			if len(f) != 3 {
				continue
			}
			first, err1 := strconv.ParseUint(f[1], 10, 32)
			count, err2 := strconv.ParseUint(f[2], 10, 32)
			if err1 == nil && err2 == nil {
				out = append(out, uidRange{first, count})
			}
		}
	}
	return out
}

// pickUIDs chooses a range that nothing alive has; m.mu is held. It
// begins at a place that the instance's random ID gives, so that servers with
// other state folders on the same machine hardly ever choose the same.
func (m *Manager) pickUIDs(instance isle.ID) uint32 {
	used := map[uint32]bool{}
	for _, l := range m.allLocked() {
		used[l.uids] = true
	}
	for _, base := range m.pool.uids {
		used[base] = true
	}
	for _, base := range m.leaving {
		used[base] = true
	}
	h := fnv.New32a()
	h.Write([]byte(instance))
	for i := range uint32(uidRanges) {
		base := firstUID + (h.Sum32()%uidRanges+i)%uidRanges*uidsPerEnv
		if !used[base] && !slices.ContainsFunc(m.subuids, func(r uidRange) bool {
			return uint64(base) < r.first+r.count && r.first < uint64(base)+uidsPerEnv
		}) {
			return base
		}
	}
	return firstUID // 61,440 live environments do not fit one machine
}

// left says that nothing is left of an instance: its uids are free.
func (m *Manager) left(instance isle.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.leaving, instance)
}

func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
