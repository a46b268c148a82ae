package build

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"

	"isle"
	"isle/internal/image"
	"isle/internal/spec"
)

// contentFunc opens a file's content.
type contentFunc = func() (io.ReadCloser, error)

// Needs returns the digests of trees and of their files that the lock names and
// the image store lacks. A tree that is missing hides its files, so the caller
// asks again once it has put what was asked for.
func (b *Builder) Needs(lock *spec.Lock) []isle.Digest {
	var want []isle.Digest
	for _, s := range lock.Services {
		if i := s.Image; i != nil && i.Tree != "" {
			if _, ok := b.knownBase(baseInputs(i, commonInputs(lock))); !ok {
				want = append(want, b.treeFiles(i.Tree)...)
			}
		}
		if s.Build != nil {
			want = append(append(want, b.treeFiles(s.Build.Tree)...), b.treeFiles(s.Build.File)...)
		}
		for _, c := range s.Copy {
			want = append(want, c.Tree)
			t, err := b.tree(c.Tree)
			if err != nil {
				continue
			}
			for _, e := range t.Entries {
				if e.Type == spec.TypeFile {
					want = append(want, e.Digest)
				}
			}
		}
	}
	return b.Images.Missing(want)
}

// tree reads a copied tree from the store.
func (b *Builder) tree(d isle.Digest) (spec.Tree, error) {
	raw, err := b.Images.ReadBlob(d, spec.MaxTreeSize)
	if err != nil {
		return spec.Tree{}, err
	}
	return spec.DecodeTree(raw)
}

// copyStep makes a layer of copied files: root's, 0644 or 0755, links as they
// are. A folder's content goes into To; a file becomes To, or goes into it
// where To is a directory below. Symbolic links of the layers below are
// followed on the way to To and in it, so that a copy to /bin goes to /usr/bin.
func (b *Builder) copyStep(s spec.Service, c spec.LockedCopy, base inputs) step {
	in := base
	in.Kind, in.From, in.To, in.Tree = "copy", c.From, c.To, c.Tree
	return step{service: s.Name, name: "copy " + c.From, inputs: in, make: func(ctx context.Context, w work) ([]image.Layer, error) {
		t, err := b.tree(c.Tree)
		if err != nil {
			return nil, err
		}
		stack, err := image.OpenStack(w.parents)
		if err != nil {
			return nil, err
		}
		defer stack.Close()
		l, err := w.into.WriteLayer(ctx, "copy", title(c.From+" to "+c.To), func(l *image.Writer) error {
			return b.layOut(t, c, newOverlay(l, stack))
		})
		return []image.Layer{l}, err
	}}
}

// layOut adds a tree's entries below its destination.
func (b *Builder) layOut(t spec.Tree, c spec.LockedCopy, over *overlay) error {
	to, err := destination(t, c, over.stack)
	if err != nil {
		return err
	}
	// at maps each folder of the tree to where it really is.
	at := map[string]string{}
	for _, e := range t.Entries {
		where := to
		if e.Path != "" {
			where = path.Join(at[parentOf(e.Path)], path.Base(e.Path))
		}
		switch e.Type {
		case spec.TypeDir:
			if err := over.directory(where); err != nil {
				return err
			}
			if where, err = over.stack.Resolve(where); err != nil {
				return err
			}
			at[e.Path] = where
		case spec.TypeLink:
			if err := over.replace(image.Entry{Path: where, Mode: fs.ModeSymlink | 0o777, Target: e.Target}, nil); err != nil {
				return err
			}
		case spec.TypeFile:
			mode := fs.FileMode(0o644)
			if e.Exec {
				mode = 0o755
			}
			content := func() (io.ReadCloser, error) { return b.Images.OpenBlob(e.Digest) }
			if err := over.replace(image.Entry{Path: where, Mode: mode}, content); err != nil {
				return err
			}
		}
	}
	return nil
}

// destination is where the copied thing itself goes.
func destination(t spec.Tree, c spec.LockedCopy, stack *image.Stack) (string, error) {
	to, err := stack.Resolve(c.To)
	if err != nil {
		return "", err
	}
	if t.Entries[0].Type == spec.TypeDir {
		return to, nil
	}
	e, err := stack.Lookup(to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if strings.HasSuffix(c.To, "/") || err == nil && e.Mode.IsDir() {
		return path.Join(to, path.Base(c.From)), nil
	}
	return to, nil
}

// replace adds what is no directory; it cannot hide a directory below, which is
// more often a slip than meant.
func (o *overlay) replace(e image.Entry, content contentFunc) error {
	if have, err := o.stack.Lookup(e.Path); err == nil && have.Mode.IsDir() {
		return isle.Errorf(isle.Invalid, "%s cannot be copied: the layers below have a directory there", e.Path)
	}
	return o.add(e, content)
}

func parentOf(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return ""
}
