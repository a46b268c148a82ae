package build

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"

	"isle"
	"isle/internal/image"
	"isle/internal/spec"
)

// Verify makes every step of f's images again, without the cache and into a
// scratch store, on the same layers below, and compares digests. It needs
// Build's result, which it makes first. A difference is Failed and names the
// first path that differs and how.
func (b *Builder) Verify(ctx context.Context, f spec.File, lock *spec.Lock, o Options, p Progress) (Result, error) {
	res, err := b.Build(ctx, f, lock, o, p)
	if err != nil {
		return Result{}, err
	}
	defer b.Images.Hold()()
	p = serial(p)
	dir, done, err := b.scratch("verify")
	if err != nil {
		return Result{}, err
	}
	defer done()
	again, err := image.Open(filepath.Join(dir, "store"))
	if err != nil {
		return Result{}, err
	}
	lock, o.Frozen = res.Lock, true
	v := &verifying{b: b, again: again, p: p, seen: map[isle.Digest]bool{}}
	for _, s := range f.Services {
		if err := v.service(ctx, f.Name, s, lock, o, res.Images[s.Name]); err != nil {
			return Result{}, err
		}
	}
	return res, nil
}

// A verifying makes steps again. Its step may be called from several goroutines.
type verifying struct {
	b     *Builder
	again *image.Store
	p     Progress

	mu   sync.Mutex
	seen map[isle.Digest]bool // keys of steps that were made again
}

func (v *verifying) service(ctx context.Context, project string, s spec.Service, lock *spec.Lock, o Options, m image.Image) error {
	b := v.b
	below := image.Image{Format: m.Format, Architecture: m.Architecture}
	if l := lock.Services[s.Name].Image; l != nil { // it was checked against its source when it was read
		from, ok := b.knownBase(baseInputs(l, commonInputs(lock)))
		if !ok {
			return isle.Errorf(isle.Conflict, "%s: image %s was removed meanwhile", s.Name, l.Request).WithHint("run the command again")
		}
		below.Layers, below.Config = slices.Clone(from.Layers), from.Config
	}
	if lock.Services[s.Name].Build != nil {
		x, err := b.newStages(project, s, lock, o, nil, v.p)
		if err != nil {
			return err
		}
		x.again = v.made
		if below, _, _, err = x.build(ctx); err != nil {
			return err
		}
	}
	for _, st := range b.plan(s, lock, below.Config, o) {
		for _, l := range below.Layers {
			st.inputs.Parents = append(st.inputs.Parents, l.Digest)
		}
		n, err := v.step(ctx, st, below, m.Layers[len(below.Layers):])
		if err != nil {
			return err
		}
		below.Layers = m.Layers[:len(below.Layers)+n]
	}
	return nil
}

// made makes a step of a Dockerfile again, and returns what it made before.
func (v *verifying) made(ctx context.Context, st step, below image.Image) ([]image.Layer, error) {
	want, ok, err := v.b.lookup(st.inputs.key())
	if err != nil {
		return nil, stepError(st, err)
	}
	if !ok {
		return nil, stepError(st, isle.Errorf(isle.Conflict, "what it made was removed meanwhile").WithHint("run the command again"))
	}
	n, err := v.step(ctx, st, below, want)
	if err == nil && n != len(want) {
		return nil, stepError(st, isle.Errorf(isle.Failed, "made again it has fewer layers"))
	}
	return want, err
}

// step makes a step again, on the same layers below, and compares it with the
// first of those that are wanted. It returns how many they are.
func (v *verifying) step(ctx context.Context, st step, below image.Image, want []image.Layer) (int, error) {
	key := st.inputs.key()
	v.mu.Lock()
	seen := v.seen[key]
	v.seen[key] = true
	v.mu.Unlock()
	if seen {
		layers, _, err := v.b.lookup(key)
		return len(layers), err
	}
	say := st.events(v.p)
	say(Event{State: "start", Message: "verify: make it again"})
	parents, err := v.b.Images.Verify(ctx, below)
	if err != nil {
		return 0, err
	}
	got, err := st.safely(ctx, work{into: v.again, parents: parents, say: say})
	if err != nil {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		return 0, stepError(st, err)
	}
	for i, l := range got {
		if i >= len(want) || want[i].Digest != l.Digest {
			return 0, v.b.differs(ctx, st, below, want, i, v.again.LayerPath(l.Digest))
		}
	}
	say(Event{State: "done", Message: "the same bytes"})
	return len(got), nil
}

// differs says how the nth layer of a step came out otherwise the second time.
func (b *Builder) differs(ctx context.Context, st step, below image.Image, want []image.Layer, n int, got string) error {
	if n >= len(want) {
		return stepError(st, isle.Errorf(isle.Failed, "made again it has more layers"))
	}
	first, err := image.ReadLayer(ctx, b.Images.LayerPath(want[n].Digest))
	if err != nil {
		return stepError(st, err)
	}
	second, err := image.ReadLayer(ctx, got)
	if err != nil {
		return stepError(st, err)
	}
	path, how := firstDifference(first, second)
	return stepError(st, isle.Errorf(isle.Failed, "layer %s (%s) is not the same made again: %s: %s", want[n].Digest.Short(), want[n].Kind, path, how).WithHint("%s", usualCause(st.inputs, path, how)))
}

// firstDifference compares two listings sorted by path.
func firstDifference(a, b []image.File) (path, how string) {
	for i, j := 0, 0; i < len(a) || j < len(b); i, j = i+1, j+1 {
		switch {
		case j == len(b) || i < len(a) && a[i].Path < b[j].Path:
			return a[i].Path, "only there the first time"
		case i == len(a) || b[j].Path < a[i].Path:
			return b[j].Path, "only there the second time"
		}
		if how := fileDifference(a[i], b[j]); how != "" {
			return a[i].Path, how
		}
	}
	return "/", "the same files, laid out in another way"
}

func fileDifference(a, b image.File) string {
	switch {
	case a.Mode != b.Mode:
		return fmt.Sprintf("mode %v, then %v", a.Mode, b.Mode)
	case a.UID != b.UID || a.GID != b.GID:
		return fmt.Sprintf("owner %d:%d, then %d:%d", a.UID, a.GID, b.UID, b.GID)
	case a.Target != b.Target:
		return fmt.Sprintf("link to %q, then %q", a.Target, b.Target)
	case a.Size != b.Size:
		return fmt.Sprintf("%d bytes, then %d", a.Size, b.Size)
	case a.Digest != b.Digest:
		return fmt.Sprintf("content %s, then %s", a.Digest.Short(), b.Digest.Short())
	case string(a.Xattrs[image.OpaqueXattr]) != string(b.Xattrs[image.OpaqueXattr]):
		return "hides the folder below, then does not, or the other way round"
	}
	return ""
}
