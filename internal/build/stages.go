package build

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"isle"
	"isle/internal/build/dockerfile"
	"isle/internal/image"
	"isle/internal/spec"
)

// maxLayers is how many layers a stage can have: the kernel stacks no more than
// 500, and copies and steps of the file come on top.
const maxLayers = 256

// parallelSteps is how many steps of one Dockerfile are done at once.
const parallelSteps = 2

// stages are the stages of one Dockerfile on their way. Each is done once those
// that it needs are, and side by side with others.
type stages struct {
	b       *Builder
	project string
	service string
	lock    *spec.LockedBuild
	sl      spec.ServiceLock
	network bool // steps have the recorded network
	common  inputs
	o       Options
	last    []inputs // of the last build of the service
	made    *memo
	p       Progress
	plan    *dockerfile.Plan
	context *treeSource
	slots   chan struct{} // one is taken by each step that is made
	results []*stage
	images  *bases
	// again makes a step of Verify anew; nil: as Build does.
	again func(ctx context.Context, st step, below image.Image) ([]image.Layer, error)
}

// A stage is one that is done, or on its way.
type stage struct {
	done  chan struct{} // closed when all else is there
	walk  *dockerfile.Walk
	image image.Image
	steps []inputs       // its own
	wires []*wire        // of steps, nil of those without
	seen  map[string]int // steps with a network, by their text
	err   error
}

// bases are the images that a Dockerfile names, each found once.
type bases struct {
	mu    sync.Mutex
	found map[string]base
}

// newStages reads a service's Dockerfile.
func (b *Builder) newStages(project string, s spec.Service, lock *spec.Lock, o Options, made *memo, p Progress) (*stages, error) {
	l := lock.Services[s.Name].Build
	x := &stages{
		b: b, project: project, service: s.Name, lock: l, sl: lock.Services[s.Name], network: s.Network == spec.NetworkRecord, common: commonInputs(lock), o: o, last: b.lastSteps(project, s.Name), made: made, p: p,
		slots: make(chan struct{}, parallelSteps), images: &bases{found: map[string]base{}},
	}
	var err error
	if x.plan, err = b.planBuild(l, s); err != nil {
		return nil, prefix(s.Name, err)
	}
	t, err := b.tree(l.Tree)
	if err != nil {
		return nil, prefix(s.Name, err)
	}
	x.context = newTreeSource(b.Images, t)
	for range x.plan.Stages {
		x.results = append(x.results, &stage{done: make(chan struct{}), seen: map[string]int{}})
	}
	return x, nil
}

// build makes the image of the Dockerfile's target. It returns the image and the
// steps of all stages, in their order, with the networks that they had; with an
// error, the networks of those that ended well.
func (x *stages) build(ctx context.Context) (image.Image, []inputs, []*wire, error) {
	g, gctx := errgroup.WithContext(ctx)
	for i := range x.plan.Stages {
		g.Go(func() error {
			r := x.results[i]
			defer close(r.done)
			r.err = x.stage(gctx, i)
			return r.err
		})
	}
	err := g.Wait()
	var steps []inputs
	var wires []*wire
	for _, r := range x.results {
		steps, wires = append(steps, r.steps...), append(wires, r.wires...)
	}
	if err != nil {
		return image.Image{}, nil, wires, err
	}
	out := x.results[x.plan.Target].image
	if len(out.Layers) == 0 {
		return out, nil, wires, isle.Errorf(isle.Invalid, "%s: the image of %s has nothing in it", x.service, x.lock.Build.File())
	}
	return out, steps, wires, nil
}

// stage does one stage.
func (x *stages) stage(ctx context.Context, i int) error {
	s, r := x.plan.Stages[i], x.results[i]
	for _, n := range s.Needs {
		select {
		case <-x.results[n].done:
			if x.results[n].err != nil {
				return x.results[n].err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.image = image.Image{Format: image.FormatVersion, Architecture: x.common.Architecture}
	var below *dockerfile.Walk
	switch s.From.Kind {
	case dockerfile.FromStage:
		from := x.results[s.From.Stage]
		r.image.Layers, r.image.Config, below = slices.Clone(from.image.Layers), from.image.Config, from.walk
	case dockerfile.FromImage:
		from, err := x.image(ctx, s.From.Image)
		if err != nil {
			return err
		}
		r.image.Layers, r.image.Config = slices.Clone(from.image.Layers), from.image.Config
		from.inputs.Stage = s.Name
		r.steps = append(r.steps, from.inputs)
	}
	var err error
	if r.walk, err = x.plan.Walk(i, r.image.Config, below); err != nil {
		return prefix(x.service, err)
	}
	for {
		op, err := r.walk.Next()
		if err != nil {
			return prefix(x.service, err)
		}
		if op == nil {
			break
		}
		if err := x.do(ctx, i, r, op); err != nil {
			return err
		}
	}
	config := r.walk.Config()
	r.image.Config = &config
	return nil
}

// do does one step of a stage.
func (x *stages) do(ctx context.Context, n int, r *stage, op dockerfile.Op) error {
	st, err := x.step(ctx, n, op, r.image)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return prefix(x.service+": "+stepName(op.Place()), err)
	}
	select {
	case x.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-x.slots }()
	var layers []image.Layer
	if x.again != nil {
		layers, err = x.again(ctx, st, r.image)
	} else {
		layers, err = x.b.run(ctx, &st, r.image, x.o, func() string { return x.b.why(x.last, r.steps, st.inputs) }, x.made, x.p)
	}
	if err != nil {
		return err
	}
	if len(r.image.Layers)+len(layers) > maxLayers {
		return stepError(st, isle.Errorf(isle.Exhausted, "the image has more than %d layers", maxLayers).WithHint("join RUN instructions, or copy what they made into another stage"))
	}
	for _, l := range layers {
		l.Title = title(op.Place().Text) // it may have been made for another instruction that comes to the same
		r.image.Layers = append(r.image.Layers, l)
	}
	r.steps, r.wires = append(r.steps, st.inputs), append(r.wires, st.wire)
	return nil
}

// stepName is what a step is called while it is done.
func stepName(p dockerfile.Place) string {
	return fmt.Sprintf("%s:%d %s", p.File, p.Line, title(p.Text))
}

// image is one that the Dockerfile names, as the lock pins it.
func (x *stages) image(ctx context.Context, request string) (base, error) {
	x.images.mu.Lock()
	defer x.images.mu.Unlock()
	if found, ok := x.images.found[request]; ok {
		return found, nil
	}
	i := slices.IndexFunc(x.lock.Images, func(l spec.LockedImage) bool { return l.Request == request })
	if i < 0 {
		return base{}, isle.Errorf(isle.Conflict, "isle.lock does not fit the file: %s: image %s is not pinned", x.service, request).WithHint("`isle lock` brings it up to date")
	}
	found, err := x.b.base(ctx, x.service, &x.lock.Images[i], x.common, x.o, x.p)
	if err == nil {
		x.images.found[request] = found
	}
	return found, err
}

// source is what a step copies from or mounts, as layers.
func (x *stages) source(ctx context.Context, s dockerfile.Source) (image.Image, error) {
	if s.Kind == dockerfile.FromStage {
		return x.results[s.Stage].image, nil
	}
	from, err := x.image(ctx, s.Image)
	return from.image, err
}

func (x *stages) sourceName(s dockerfile.Source) string {
	if s.Kind == dockerfile.FromStage {
		return x.plan.Stages[s.Stage].Name
	}
	return s.Image
}
