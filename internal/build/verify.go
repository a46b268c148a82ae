package build

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

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
	seen := map[isle.Digest]int{} // step keys done, with their number of layers
	for _, s := range f.Services {
		if err := b.verifyService(ctx, s, lock, o, res.Images[s.Name], again, seen, p); err != nil {
			return Result{}, err
		}
	}
	return res, nil
}

func (b *Builder) verifyService(ctx context.Context, s spec.Service, lock *spec.Lock, o Options, m image.Image, again *image.Store, seen map[isle.Digest]int, p Progress) error {
	below := image.Image{Format: m.Format, Architecture: m.Architecture}
	if l := lock.Services[s.Name].Image; l != nil { // it was checked against its source when it was read
		from, ok := b.knownBase(baseInputs(l, commonInputs(lock)))
		if !ok {
			return isle.Errorf(isle.Conflict, "%s: image %s was removed meanwhile", s.Name, l.Request).WithHint("run the command again")
		}
		below.Layers, below.Config = slices.Clone(from.Layers), from.Config
	}
	for _, st := range b.plan(s, lock, below.Config, o) {
		for _, l := range below.Layers {
			st.inputs.Parents = append(st.inputs.Parents, l.Digest)
		}
		want := m.Layers[len(below.Layers):]
		key := st.inputs.key()
		if n, ok := seen[key]; ok {
			below.Layers = append(below.Layers, want[:n]...)
			continue
		}
		say := st.events(p)
		say(Event{State: "start", Message: "verify: make it again"})
		parents, err := b.Images.Verify(ctx, below)
		if err != nil {
			return err
		}
		got, err := st.make(ctx, work{into: again, parents: parents, say: say})
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return stepError(st, err)
		}
		for i, l := range got {
			if i >= len(want) || want[i].Digest != l.Digest {
				return b.differs(ctx, st, below, want, i, again.LayerPath(l.Digest))
			}
		}
		seen[key] = len(got)
		below.Layers = append(below.Layers, want[:len(got)]...)
		say(Event{State: "done", Message: "the same bytes"})
	}
	return nil
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
	hint := "the step depends on something that is not locked: a time, a random number, an order"
	if st.inputs.Kind != "run" {
		hint = "this is a fault of isle: please report it with the lock"
	}
	return stepError(st, isle.Errorf(isle.Failed, "layer %s (%s) is not the same made again: %s: %s", want[n].Digest.Short(), want[n].Kind, path, how).WithHint("%s", hint))
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
