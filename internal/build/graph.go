package build

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"isle"
	"isle/internal/image"
	"isle/internal/image/registry"
	"isle/internal/spec"
)

// parallelServices is how many services are built at once.
const parallelServices = 2

// Options change how Build works.
type Options struct {
	NoCache bool   // make every step again
	Frozen  bool   // the lock stays as it is: no step is answered what it does not have
	Mirror  string // as in debian.FetchOptions
	// Reach is asked before a step with the recorded network is connected to a
	// host; nil: any.
	Reach func(host string, port int) error
	// Credentials and Pull are as in LockOptions.
	Credentials Credentials
	Pull        func(registry.Reference) error
	// Secret gives steps what they mount as secrets; nil: there are none.
	Secret Secrets
}

// A Result is what Build made.
type Result struct {
	Images  map[string]image.Image // by service
	Reasons map[string]string      // by service: why its image differs from the last one built; none if it does not
	// Lock is the one that was built from, with what steps with the recorded
	// network were answered beyond it.
	Lock *spec.Lock
	// Recorded tells of such steps that ran, in the order of the file.
	Recorded []Recording
}

// A step makes the next layers of an image out of those below.
type step struct {
	service string
	name    string // as in Event
	title   string // of the first layer, for people; empty: as it was made
	inputs  inputs // Parents are filled in when the step's turn comes
	make    func(ctx context.Context, w work) ([]image.Layer, error)
	wire    *wire // of the recorded network; nil: it has none
}

// work is what a step works with.
type work struct {
	into    *image.Store // where new layers go; blobs and lower layers are in the Builder's
	parents []string     // paths of the layers below, lowest first
	say     func(Event)  // Service, and Step where it is empty, are filled in
}

// Build makes the images of every service of f. What the lock names but the
// store lacks of copied files is NotFound: see Needs. When ctx ends the build
// stops, and what was finished of it is kept for the next. The Lock of a Result with
// an error, where there is one, has what steps that ended well were answered, so that
// the next build is answered the same; and Recorded tells of them.
func (b *Builder) Build(ctx context.Context, f spec.File, lock *spec.Lock, o Options, p Progress) (Result, error) {
	if err := b.checkLock(f, lock); err != nil {
		return Result{}, err
	}
	defer b.Images.Hold()()
	p = serial(p)
	var mu sync.Mutex
	res := Result{Images: map[string]image.Image{}, Reasons: map[string]string{}}
	made := &memo{steps: map[isle.Digest]outcome{}}
	wires := map[string][]*wire{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelServices)
	for _, s := range f.Services {
		g.Go(func() error {
			m, reason, network, err := b.service(gctx, f.Name, s, lock, o, made, p)
			mu.Lock()
			defer mu.Unlock()
			wires[s.Name] = network
			if err != nil {
				return err
			}
			res.Images[s.Name] = m
			if reason != "" {
				res.Reasons[s.Name] = reason
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return unfinished(f, lock, wires, o), err
	}
	res.Lock = lock
	if !o.Frozen {
		c := *lock
		res.Lock, c.Services = &c, maps.Clone(lock.Services)
		for name, network := range wires {
			sl := c.Services[name]
			sl.Network = networkOf(network)
			c.Services[name] = sl
		}
	}
	if err := checkSize(res.Lock, wires); err != nil {
		return Result{}, err
	}
	for _, s := range f.Services {
		res.Recorded = append(res.Recorded, recordings(s.Name, wires[s.Name])...)
	}
	if err := b.keepLock(f.Name, res.Lock, res.Images); err != nil {
		return Result{}, err
	}
	if err := b.nameImages(f, res.Images); err != nil {
		return Result{}, err
	}
	return res, nil
}

// freshOf is how many answers steps were given that no lock had.
func freshOf(wires map[string][]*wire) (n int) {
	for _, list := range wires {
		for _, w := range list {
			if w != nil {
				n += w.fresh
			}
		}
	}
	return n
}

// checkSize refuses a lock that nobody would read, with what was recorded now.
func checkSize(lock *spec.Lock, wires map[string][]*wire) error {
	if freshOf(wires) == 0 {
		return nil
	}
	if n := len(lock.Encode()); n > spec.MaxLockSize {
		return isle.Errorf(isle.Exhausted, "with what its steps were answered isle.lock has %d MiB, and at most %d are read", n>>20, spec.MaxLockSize>>20).
			WithHint("have steps ask for less: a mirror of one's own, or fewer packages")
	}
	return nil
}

// unfinished is the Result of a build that failed.
func unfinished(f spec.File, lock *spec.Lock, wires map[string][]*wire, o Options) (res Result) {
	c := *lock
	c.Services = maps.Clone(lock.Services)
	for _, s := range f.Services {
		res.Recorded = append(res.Recorded, recordings(s.Name, wires[s.Name])...)
		sl := c.Services[s.Name]
		sl.Network = keepAnswers(sl.Network, networkOf(wires[s.Name]))
		c.Services[s.Name] = sl
	}
	if !o.Frozen && freshOf(wires) > 0 && checkSize(&c, wires) == nil {
		res.Lock = &c
	}
	return res
}

// A memo holds what one Build made, so that NoCache makes a step once.
type memo struct {
	mu    sync.Mutex
	steps map[isle.Digest]outcome
}

// An outcome is what a step made, and what it was answered.
type outcome struct {
	layers []image.Layer
	used   []spec.Material
}

func (m *memo) get(key isle.Digest) (outcome, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.steps[key]
	return o, ok
}

func (m *memo) put(key isle.Digest, o outcome) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.steps[key] = o
}

// service builds one service's image. The networks of its steps are those that ended
// well, also with an error.
func (b *Builder) service(ctx context.Context, project string, s spec.Service, lock *spec.Lock, o Options, made *memo, p Progress) (image.Image, string, []*wire, error) {
	last := b.lastSteps(project, s.Name)
	m := image.Image{Format: image.FormatVersion, Architecture: lock.Architecture}
	var done []inputs
	var wires []*wire
	if l := lock.Services[s.Name].Image; l != nil {
		from, err := b.base(ctx, s.Name, l, commonInputs(lock), o, p)
		if err != nil {
			return m, "", nil, err
		}
		m.Layers, m.Config = slices.Clone(from.image.Layers), from.image.Config
		done = append(done, from.inputs)
	}
	if lock.Services[s.Name].Build != nil {
		x, err := b.newStages(project, s, lock, o, made, p)
		if err != nil {
			return m, "", nil, err
		}
		if m, done, wires, err = x.build(ctx); err != nil {
			return m, "", wires, err
		}
	}
	for _, st := range b.plan(s, lock, m.Config, o) {
		for _, l := range m.Layers {
			st.inputs.Parents = append(st.inputs.Parents, l.Digest)
		}
		why := func() string { return b.why(last, done, st.inputs) }
		layers, err := b.run(ctx, &st, m, o, why, made, p)
		if err != nil {
			return m, "", wires, err
		}
		if st.title != "" { // a layer may have been made for another request that comes to the same
			layers = slices.Clone(layers)
			layers[0].Title = st.title
		}
		m.Layers = append(m.Layers, layers...)
		done, wires = append(done, st.inputs), append(wires, st.wire)
	}
	if err := b.Images.PutImage(m); err != nil {
		return m, "", wires, err
	}
	reason := b.reason(last, done)
	if err := b.rememberSteps(project, s.Name, m, done); err != nil {
		return m, "", wires, err
	}
	return m, reason, wires, nil
}

// settle says of a step with the recorded network what it was answered, which its
// key is of.
func (st *step) settle(used []spec.Material) {
	if st.wire != nil {
		st.wire.used = used
		st.inputs.Network = answersOf(used)
	}
}

// run returns a step's layers, made or from the cache. What the step was answered
// is among its inputs then.
func (b *Builder) run(ctx context.Context, st *step, below image.Image, o Options, why func() string, made *memo, p Progress) ([]image.Layer, error) {
	key := st.inputs.key()
	p, leave, err := b.flights.enterPast(ctx, key, b.patience, p)
	if err != nil {
		return nil, err
	}
	defer leave()
	say := st.events(p)
	known, ok := made.get(key)
	layers := known.layers
	if ok {
		st.settle(known.used)
	} else if !o.NoCache {
		if layers, ok, err = b.lookup(key); err != nil {
			return nil, stepError(*st, err)
		}
	}
	if ok {
		say(Event{State: "cached"})
		return layers, nil
	}
	reason := "--no-cache"
	if !o.NoCache {
		reason = why()
	}
	say(Event{State: "start", Message: reason})
	parents, err := b.Images.Verify(ctx, below)
	if err != nil {
		return nil, err
	}
	layers, err = st.safely(ctx, work{into: b.Images, parents: parents, say: say})
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, stepError(*st, err)
	}
	done := outcome{layers: layers}
	if st.wire != nil {
		done.used = st.wire.used
		st.settle(done.used)
	}
	if err := b.note(st.inputs, layers); err != nil {
		return nil, err
	}
	made.put(key, done)
	var size int64
	for _, l := range layers {
		size += l.Size
	}
	say(Event{State: "done", Done: size, Total: size})
	return layers, nil
}

// safely is make, for which a panic is an error. What a step reads (packages,
// trees, what a command left) was written by who knows whom, and a mistake in
// reading it must not end the server.
func (st step) safely(ctx context.Context, w work) (layers []image.Layer, err error) {
	defer func() {
		if p := recover(); p != nil {
			w.say(Event{State: "log", Message: string(debug.Stack())})
			err = isle.Errorf(isle.Internal, "the server made a mistake: %v", p).WithHint("please report it with what is above")
		}
	}()
	return st.make(ctx, w)
}

// events tells p what the step says.
func (st step) events(p Progress) func(Event) {
	return func(e Event) {
		e.Service = st.service
		if e.Step == "" {
			e.Step = st.name
		}
		p(e)
	}
}

// stepError says which step of which service failed; code and hint stay.
func stepError(st step, err error) error { return prefix(st.service+": "+st.name, err) }

// prefix puts where something failed before an error's message.
func prefix(where string, err error) error {
	var e *isle.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("%s: %w", where, err)
	}
	c := *e
	c.Message = where + ": " + c.Message
	return &c
}

// commonInputs are those of every step.
func commonInputs(lock *spec.Lock) inputs {
	return inputs{Recipe: recipe, Format: image.FormatVersion, Architecture: lock.Architecture}
}

// plan lists the steps of a service in their order, on top of its image if it
// begins with one, which says more of how it is run.
func (b *Builder) plan(s spec.Service, lock *spec.Lock, says *image.Config, o Options) []step {
	sl := lock.Services[s.Name]
	base := commonInputs(lock)
	s = asImageSays(s, says)
	var steps []step
	if sl.Image == nil && sl.Build == nil {
		steps = append(steps, b.packagesStep(s, sl, base, o))
	}
	if st, ok := b.pathsStep(s, base); ok {
		steps = append(steps, st)
	}
	for _, c := range sl.Copy {
		steps = append(steps, b.copyStep(s, c, base))
	}
	seen := map[string]int{}
	for _, cmd := range sl.Run {
		st := b.runStep(s, cmd, stepEnv(says), base, seen, sl, o)
		steps = append(steps, st)
	}
	return steps
}

// projectState is what is kept of a project's last build, for gc and reasons.
type projectState struct {
	Lock   *spec.Lock    `json:"lock"`
	Images []isle.Digest `json:"images"`
	Built  int64         `json:"built"` // Unix seconds
}

func (b *Builder) projectPath(project string, parts ...string) string {
	return filepath.Join(append([]string{b.Cache, "projects", folderName(project)}, parts...)...)
}

// folderName is what the folder of a project, or of a service in it, is called:
// each has its own. What is no name has a folder that is nobody's.
func folderName(name string) string {
	if !isle.ValidName(name) {
		return "-"
	}
	return name
}

func (b *Builder) keepLock(project string, lock *spec.Lock, images map[string]image.Image) error {
	st := projectState{Lock: lock, Built: b.Now().Unix()}
	for _, m := range images {
		st.Images = append(st.Images, m.Digest())
	}
	slices.Sort(st.Images)
	// The time says what gc may take, which is counted in days: an hour of it
	// is not worth a write.
	var old projectState
	path := b.projectPath(project, "state.json")
	if readJSON(path, &old) && slices.Equal(old.Images, st.Images) && st.Built >= old.Built && st.Built-old.Built < 3600 {
		st.Built = old.Built
	}
	return writeJSON(path, st)
}

func (b *Builder) lastSteps(project, service string) []inputs {
	var steps []inputs
	readJSON(b.projectPath(project, "service-"+folderName(service)+".json"), &steps)
	return steps
}

func (b *Builder) rememberSteps(project, service string, m image.Image, steps []inputs) error {
	if err := writeJSON(b.imageStepsPath(m.Digest()), steps); err != nil {
		return err
	}
	return writeJSON(b.projectPath(project, "service-"+folderName(service)+".json"), steps)
}

func (b *Builder) imageStepsPath(d isle.Digest) string {
	return filepath.Join(b.Cache, "images", d.Hex()+".json")
}

// title shortens text to one line for people.
func title(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 60 {
		return string(r[:59]) + "…"
	}
	return s
}
