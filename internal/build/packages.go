package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"

	"isle"
	"isle/internal/build/debian"
	"isle/internal/image"
	"isle/internal/spec"
)

// A root is the tree that packages unpack to. (*debian.Tree) is one.
type root interface {
	Packages(add debian.Add) error // the packages' files
	System(add debian.Add) error   // what their maintainer scripts would have made
	Close() error
}

// unpackFunc unpacks packages that the store has.
type unpackFunc func(ctx context.Context, pkgs []spec.LockedPackage, open func(isle.Digest) (*os.File, error), o debian.UnpackOptions) (root, error)

func unpackDebian(ctx context.Context, pkgs []spec.LockedPackage, open func(isle.Digest) (*os.File, error), o debian.UnpackOptions) (root, error) {
	t, err := debian.Unpack(ctx, pkgs, open, o)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// packagesStep makes the two lowest layers: the packages' files, and the system
// files with the mount points that every sandbox needs.
func (b *Builder) packagesStep(s spec.Service, sl spec.ServiceLock, base inputs, o Options) step {
	in := base
	in.Kind = "packages"
	for _, p := range sl.Packages {
		in.Packages = append(in.Packages, packageInput{p.Name, p.Version, p.Digest})
	}
	name := packagesTitle(sl)
	return step{service: s.Name, name: "packages", title: name, inputs: in, make: func(ctx context.Context, w work) ([]image.Layer, error) {
		if err := b.fetch(ctx, sl, o, w.say); err != nil {
			return nil, err
		}
		dir, done, err := b.scratch("unpack")
		if err != nil {
			return nil, err
		}
		defer done()
		tree, err := b.unpack(ctx, sl.Packages, b.Images.OpenBlob, debian.UnpackOptions{
			Spool:    dir,
			Progress: func(n, total int64) { w.say(Event{State: "progress", Done: n, Total: total}) },
		})
		if err != nil {
			return nil, err
		}
		defer tree.Close()
		packages, err := w.into.WriteLayer(ctx, "packages", name, func(l *image.Writer) error { return tree.Packages(l.Add) })
		if err != nil {
			return nil, err
		}
		system, err := w.into.WriteLayer(ctx, "system", "users, certificates, linker cache, mount points", func(l *image.Writer) error {
			return fillSystem(l, tree, w.into.LayerPath(packages.Digest))
		})
		if err != nil {
			return nil, err
		}
		return []image.Layer{packages, system}, nil
	}}
}

// fetch brings the step's packages into the store.
func (b *Builder) fetch(ctx context.Context, sl spec.ServiceLock, o Options, say func(Event)) error {
	var digests []isle.Digest
	for _, p := range sl.Packages {
		digests = append(digests, p.Digest)
	}
	missing := b.Images.Missing(digests)
	if len(missing) == 0 {
		return nil
	}
	say(Event{Step: "fetch", State: "start", Message: count(len(missing), "package")})
	err := b.Archive.Fetch(ctx, sl.Packages, debian.FetchOptions{Mirror: o.Mirror, Suite: sl.Suite}, func(n, total int64) {
		say(Event{Step: "fetch", State: "progress", Done: n, Total: total})
	})
	if err == nil {
		say(Event{Step: "fetch", State: "done"})
	}
	return err
}

func packagesTitle(sl spec.ServiceLock) string {
	switch n := len(sl.Requests); {
	case n == 0:
		return fmt.Sprintf("%s's base, %s", sl.Suite, count(len(sl.Packages), "package"))
	case n == 1:
		return fmt.Sprintf("%s and %d more", sl.Requests[0], max(0, len(sl.Packages)-1))
	}
	return fmt.Sprintf("%s, %s and %d more", sl.Requests[0], sl.Requests[1], max(0, len(sl.Packages)-2))
}

// mountPoints are what a sandbox mounts over: a read-only root must have them.
var mountPoints = []image.Entry{
	{Path: "/dev", Mode: fs.ModeDir | 0o755},
	{Path: "/etc/hostname", Mode: 0o644},
	{Path: "/etc/hosts", Mode: 0o644},
	{Path: "/etc/resolv.conf", Mode: 0o644},
	{Path: "/isle", Mode: fs.ModeDir | 0o755},
	{Path: "/proc", Mode: fs.ModeDir | 0o555},
	{Path: "/root", Mode: fs.ModeDir | 0o700},
	{Path: "/run", Mode: fs.ModeDir | 0o755},
	{Path: "/sys", Mode: fs.ModeDir | 0o555},
	{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
}

// fillSystem writes the system layer over the packages layer.
func fillSystem(l *image.Writer, tree root, packages string) error {
	stack, err := image.OpenStack([]string{packages})
	if err != nil {
		return err
	}
	defer stack.Close()
	over := newOverlay(l, stack)
	if err := tree.System(over.add); err != nil {
		return err
	}
	for _, m := range mountPoints {
		if over.added[m.Path] {
			continue
		}
		have, err := stack.Lookup(m.Path)
		if err == nil && have.Mode.IsDir() == m.Mode.IsDir() && have.Mode&fs.ModeSymlink == 0 {
			continue
		}
		if err := over.add(m, nil); err != nil {
			return err
		}
	}
	return nil
}

// An overlay adds to an upper layer so that what is below keeps its owners: a
// parent directory that is there below is added with the lower one's mode.
type overlay struct {
	w     *image.Writer
	stack *image.Stack
	added map[string]bool
}

func newOverlay(w *image.Writer, stack *image.Stack) *overlay {
	return &overlay{w: w, stack: stack, added: map[string]bool{}}
}

func (o *overlay) add(e image.Entry, content contentFunc) error {
	if err := o.parents(e.Path); err != nil {
		return err
	}
	o.added[e.Path] = true
	return o.w.Add(e, content)
}

// parents adds those directories above name that are below and not yet here.
func (o *overlay) parents(name string) error {
	for dir := path.Dir(name); ; dir = path.Dir(dir) {
		if !o.added[dir] {
			o.added[dir] = true
			e, err := o.stack.Lookup(dir)
			switch {
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				return err
			case !e.Mode.IsDir():
				return isle.Errorf(isle.Invalid, "%s cannot be made: %s is not a directory in the layers below", name, dir)
			default:
				if err := o.w.Add(e, nil); err != nil {
					return err
				}
			}
		}
		if dir == "/" {
			return nil
		}
	}
}

// directory makes name a directory unless it is one, following links below.
func (o *overlay) directory(name string) error {
	at, err := o.stack.Resolve(name)
	if err != nil {
		return err
	}
	if at == "/" || o.added[at] {
		return nil
	}
	switch e, err := o.stack.Lookup(at); {
	case err == nil && e.Mode.IsDir():
		return nil
	case err == nil:
		return isle.Errorf(isle.Invalid, "%s cannot be a directory: the layers below have a file there", name)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return o.add(image.Entry{Path: at, Mode: fs.ModeDir | 0o755}, nil)
}

// pathsStep makes the directories that the service mounts over or starts in,
// where the packages do not have them.
func (b *Builder) pathsStep(s spec.Service, base inputs) (step, bool) {
	paths := map[string]bool{}
	for _, v := range s.Volumes {
		paths[v.Path] = true
	}
	for _, t := range s.Tmpfs {
		paths[t] = true
	}
	if s.Workdir != "" {
		paths[s.Workdir] = true
	}
	for p := range paths {
		if p = path.Clean("/" + p); p == "/" || p == "/tmp" || p == "/run" || p == "/dev/shm" {
			delete(paths, p)
		}
	}
	if len(paths) == 0 {
		return step{}, false
	}
	in := base
	in.Kind = "paths"
	in.Paths = slices.Sorted(maps.Keys(paths))
	return step{service: s.Name, name: "system", inputs: in, make: func(ctx context.Context, w work) ([]image.Layer, error) {
		stack, err := image.OpenStack(w.parents)
		if err != nil {
			return nil, err
		}
		defer stack.Close()
		l, err := w.into.WriteLayer(ctx, "system", "volumes, tmpfs and workdir", func(l *image.Writer) error {
			over := newOverlay(l, stack)
			for _, p := range in.Paths {
				if err := over.directory(path.Clean("/" + p)); err != nil {
					return err
				}
			}
			return nil
		})
		return []image.Layer{l}, err
	}}, true
}
