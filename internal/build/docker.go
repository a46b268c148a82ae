package build

import (
	"context"
	"slices"

	"isle"
	"isle/internal/build/dockerfile"
	"isle/internal/image"
	"isle/internal/image/oci"
	"isle/internal/spec"
)

// LockNeeds returns the digests of what Lock reads of f and the image store
// lacks: Dockerfiles.
func (b *Builder) LockNeeds(f spec.File, copies []Copied) []isle.Digest {
	var want []isle.Digest
	for _, s := range f.Services {
		if s.Build == nil {
			continue
		}
		if d := sent(s, s.Build.File(), copies); d != "" {
			want = append(want, b.treeFiles(d)...)
		}
	}
	return b.Images.Missing(want)
}

// sent is the tree that a client hashed of what a build reads.
func sent(s spec.Service, from string, copies []Copied) isle.Digest {
	for _, c := range copies {
		if c.Service == s.Name && c.From == from && c.To == "" && c.Tree.Valid() {
			return c.Tree
		}
	}
	return ""
}

// lockBuild pins what a service's Dockerfile is built from: its own bytes, the
// files of its context, and the images that the target needs, which stay as old
// has them.
func (b *Builder) lockBuild(ctx context.Context, s spec.Service, old *spec.Lock, copies []Copied, o LockOptions, p Progress) (*spec.LockedBuild, error) {
	l := &spec.LockedBuild{Build: *s.Build, Tree: sent(s, s.Build.Context, copies), File: sent(s, s.Build.File(), copies), Images: []spec.LockedImage{}}
	if l.Tree == "" || l.File == "" {
		return nil, isle.Errorf(isle.Invalid, "%s: nothing was sent for build %s", s.Name, s.Build.Context)
	}
	plan, err := b.planBuild(l, s)
	if err != nil {
		return nil, prefix(s.Name, err)
	}
	for _, request := range plan.Images {
		pinned := pinnedImage(old, s.Name, request)
		if pinned == nil || o.Update {
			if o.Locked && pinned == nil {
				return nil, isle.Errorf(isle.Conflict, "isle.lock does not fit the file any more: %s: image %s is not pinned", s.Name, request).WithHint("`isle lock` brings it up to date")
			}
			if pinned, err = b.lockReference(ctx, s.Name, request, o, p); err != nil {
				return nil, err
			}
		}
		l.Images = append(l.Images, *pinned)
	}
	return l, nil
}

// planBuild reads a Dockerfile and finds out what its target needs.
func (b *Builder) planBuild(l *spec.LockedBuild, s spec.Service) (*dockerfile.Plan, error) {
	t, err := b.tree(l.File)
	if err != nil {
		return nil, err
	}
	if len(t.Entries) != 1 || t.Entries[0].Type != spec.TypeFile {
		return nil, isle.Errorf(isle.Invalid, "%s is no file", l.Build.File())
	}
	content, err := b.Images.ReadBlob(t.Entries[0].Digest, dockerfile.MaxSize)
	if err != nil {
		return nil, err
	}
	f, err := dockerfile.Parse(l.Build.File(), content)
	if err != nil {
		return nil, err
	}
	return f.Plan(dockerfile.Options{Target: l.Target, Args: l.Args, Architecture: oci.Here().Architecture, Network: s.Network == spec.NetworkRecord})
}

// checkBuild says how a lock's build does not fit what the file asks for; ""
// fits.
func checkBuild(s spec.Service, l *spec.LockedBuild) string {
	switch {
	case (s.Build != nil) != (l != nil) || l != nil && !l.Build.Equal(*s.Build):
		return "build changed"
	case l != nil && (!l.Tree.Valid() || !l.File.Valid()):
		return "build is not pinned by digests"
	}
	return ""
}

// buildDifference says how a locked build differs from another.
func (b *Builder) buildDifference(was, is *spec.LockedBuild) (out []string) {
	switch {
	case was == nil && is == nil:
		return nil
	case was == nil || is == nil:
		return []string{"build changed"}
	}
	if !was.Build.Equal(is.Build) {
		out = append(out, "build changed")
	}
	if was.File != is.File {
		out = append(out, is.Build.File()+" changed")
	}
	if was.Tree != is.Tree {
		out = append(out, b.treeChange(inputs{Tree: was.Tree}, inputs{From: is.Context, Tree: is.Tree}))
	}
	for _, i := range is.Images {
		n := slices.IndexFunc(was.Images, func(o spec.LockedImage) bool { return o.Request == i.Request })
		if n < 0 {
			out = append(out, "image "+i.Request+" is new")
		} else if d := imageDifference(&was.Images[n], &i); d != "" {
			out = append(out, d)
		}
	}
	for _, i := range was.Images {
		if !slices.ContainsFunc(is.Images, func(o spec.LockedImage) bool { return o.Request == i.Request }) {
			out = append(out, "image "+i.Request+" is gone")
		}
	}
	return out
}

// step is a step of the nth stage.
func (x *stages) step(ctx context.Context, n int, op dockerfile.Op, made image.Image) (step, error) {
	var st step
	var err error
	switch op := op.(type) {
	case *dockerfile.Run:
		st, err = x.runStep(ctx, n, op)
	case *dockerfile.Copy:
		st, err = x.copyStep(ctx, n, op)
	case *dockerfile.Folder:
		st = x.folderStep(op)
	}
	if err != nil {
		return st, err
	}
	st.service, st.name, st.inputs.Stage = x.service, stepName(op.Place()), x.plan.Stages[n].Name
	for _, l := range made.Layers {
		st.inputs.Parents = append(st.inputs.Parents, l.Digest)
	}
	return st, nil
}
