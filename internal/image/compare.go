package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"

	"isle"
)

// A Change is one path that differs between two images.
type Change struct {
	Path string
	Kind string // "added", "modified" or "deleted", as seen from the first image
	Size int64  // bytes of what it is in the second; of what it was, where it is deleted
}

// A Comparison is what differs between two images.
type Comparison struct {
	Gone, New []Layer  // layers that only the first, and only the second has, the lowest first
	Files     []Change // sorted by path
	More      bool     // there are more Files than these
}

// maxChanges bounds the files of a comparison.
const maxChanges = 10_000

// Compare says what differs between two images whose layers are here. Of layers
// that only one has the files are compared as the whole image shows them; not those
// of packages, which have versions.
func (s *Store) Compare(ctx context.Context, a, b Image) (out Comparison, err error) {
	without := func(all, other []Layer) (out []Layer) {
		for _, l := range all {
			if !slices.ContainsFunc(other, func(o Layer) bool { return o.Digest == l.Digest }) {
				out = append(out, l)
			}
		}
		return out
	}
	out.Gone, out.New = without(a.Layers, b.Layers), without(b.Layers, a.Layers)
	if len(out.Gone)+len(out.New) == 0 {
		return out, nil
	}
	// The reader is another project's; a panic in it is a bad file, not our end.
	defer func() {
		if p := recover(); p != nil {
			err = isle.Errorf(isle.Invalid, "the layers of images %s and %s cannot be compared: %v", a.Digest().Short(), b.Digest().Short(), p)
		}
	}()
	c := &comparer{ctx: ctx, paths: map[string]bool{}}
	stacks := [2]*Stack{}
	for i, m := range []Image{a, b} {
		files, err := s.Verify(ctx, m)
		if err != nil {
			return out, err
		}
		if stacks[i], err = OpenStack(files); err != nil {
			return out, err
		}
		defer stacks[i].Close()
	}
	c.was, c.is = stacks[0], stacks[1]
	for _, l := range slices.Concat(out.Gone, out.New) {
		if l.Kind == "packages" {
			continue
		}
		if err := c.layer(s.LayerPath(l.Digest)); err != nil {
			return out, err
		}
	}
	out.Files, out.More, err = c.files()
	return out, err
}

// A comparer compares the paths that layers touch.
type comparer struct {
	ctx     context.Context
	was, is *Stack
	paths   map[string]bool
}

// maxTouched bounds the paths that are looked at.
const maxTouched = 1_000_000

// layer adds the paths of a layer, and those that it hides in a folder.
func (c *comparer) layer(name string) error {
	var hides []string
	err := WalkLayer(c.ctx, name, func(e Entry, _ func() (io.ReadCloser, error)) error {
		if e.Mode.Type() == Whiteout || e.Xattrs[OpaqueXattr] != nil {
			hides = append(hides, e.Path)
		}
		return c.touch(e.Path)
	})
	for _, dir := range hides {
		for _, s := range []*Stack{c.was, c.is} {
			if err == nil {
				err = c.below(s, dir)
			}
		}
	}
	return err
}

func (c *comparer) touch(name string) error {
	if c.paths[name] = true; len(c.paths) > maxTouched {
		return isle.Errorf(isle.Exhausted, "the images differ in more than %d files", maxTouched)
	}
	return nil
}

// below adds all that is in a folder; what is none has nothing in it.
func (c *comparer) below(s *Stack, dir string) error {
	if err := c.ctx.Err(); err != nil {
		return context.Cause(c.ctx)
	}
	if e, err := s.Lookup(dir); err != nil || !e.Mode.IsDir() {
		return nil
	}
	names, err := s.Names(dir)
	for _, n := range names {
		if err == nil {
			err = c.touch(path.Join(dir, n))
		}
		if err == nil {
			err = c.below(s, path.Join(dir, n))
		}
	}
	return err
}

// files compares them.
func (c *comparer) files() (out []Change, more bool, err error) {
	for _, name := range sortedKeys(c.paths) {
		if err := c.ctx.Err(); err != nil {
			return nil, false, context.Cause(c.ctx)
		}
		kind, size, err := c.file(name)
		switch {
		case err != nil:
			return nil, false, storeError("compare "+name, err)
		case kind == "":
			continue
		case len(out) == maxChanges:
			return out, true, nil
		}
		out = append(out, Change{name, kind, size})
	}
	return out, false, nil
}

// file says how one path differs; "" if it does not. A folder that stays is the
// same whatever is in it, unless its owner or mode is another.
func (c *comparer) file(name string) (kind string, size int64, err error) {
	was, err1 := c.was.Lookup(name)
	is, err2 := c.is.Lookup(name)
	gone, absent := errors.Is(err2, fs.ErrNotExist), errors.Is(err1, fs.ErrNotExist)
	switch {
	case gone && absent:
		return "", 0, nil
	case absent && err2 == nil:
		return "added", is.Size, nil
	case gone && err1 == nil:
		return "deleted", was.Size, nil
	case err1 != nil || err2 != nil:
		return "", 0, errors.Join(err1, err2)
	case was.Mode != is.Mode || was.UID != is.UID || was.GID != is.GID || was.Target != is.Target:
		return "modified", is.Size, nil
	case !is.Mode.IsRegular():
		return "", 0, nil
	case was.Size != is.Size:
		return "modified", is.Size, nil
	}
	same, err := c.content(name)
	if err != nil || same {
		return "", 0, err
	}
	return "modified", is.Size, nil
}

// content says whether a file has the same bytes in both.
func (c *comparer) content(name string) (same bool, err error) {
	var readers [2]*bufio.Reader
	for i, s := range []*Stack{c.was, c.is} {
		f, err := s.Open(name)
		if err != nil {
			return false, err
		}
		defer f.Close()
		readers[i] = bufio.NewReaderSize(contextReader{c.ctx, f}, 64<<10)
	}
	for {
		a, err1 := readers[0].Peek(64 << 10)
		b, err2 := readers[1].Peek(64 << 10)
		if !bytes.Equal(a, b) {
			return false, nil
		}
		for _, err := range []error{err1, err2} {
			if err != nil && !errors.Is(err, io.EOF) {
				return false, err
			}
		}
		if len(a) == 0 {
			return true, nil
		}
		readers[0].Discard(len(a))
		readers[1].Discard(len(b))
	}
}
