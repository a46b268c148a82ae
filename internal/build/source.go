package build

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"isle"
	"isle/internal/image"
	"isle/internal/spec"
)

// A source is a root that files are copied from. Paths are absolute and clean.
type source interface {
	// Lookup returns what is at a path; no link is followed.
	Lookup(name string) (image.Entry, error)
	// Resolve follows every link on a path, inside the root.
	Resolve(name string) (string, error)
	// Names are the names in a folder, sorted.
	Names(dir string) ([]string, error)
	// Open opens a file.
	Open(name string) (io.ReadCloser, error)
}

var (
	_ source = (*image.Stack)(nil)
	_ source = (*treeSource)(nil)
)

// A treeSource is a source out of files that a client sent: root's, 0644 or 0755.
type treeSource struct {
	images  *image.Store
	entries map[string]spec.TreeEntry // by absolute path
	names   map[string][]string       // of folders
}

func newTreeSource(images *image.Store, t spec.Tree) *treeSource {
	s := &treeSource{images: images, entries: make(map[string]spec.TreeEntry, len(t.Entries)), names: map[string][]string{}}
	for _, e := range t.Entries { // sorted by path
		at := path.Join("/", e.Path)
		s.entries[at] = e
		if e.Path != "" {
			s.names[path.Dir(at)] = append(s.names[path.Dir(at)], path.Base(at))
		}
	}
	for _, names := range s.names {
		slices.Sort(names)
	}
	return s
}

// Lookup implements source.
func (s *treeSource) Lookup(name string) (image.Entry, error) {
	e, ok := s.entries[name]
	if !ok {
		return image.Entry{}, &fs.PathError{Op: "lookup", Path: name, Err: fs.ErrNotExist}
	}
	out := image.Entry{Path: name, Mode: 0o644, Size: e.Size, Target: e.Target}
	switch {
	case e.Type == spec.TypeDir:
		out.Mode = fs.ModeDir | 0o755
	case e.Type == spec.TypeLink:
		out.Mode = fs.ModeSymlink | 0o777
	case e.Exec:
		out.Mode = 0o755
	}
	return out, nil
}

// Resolve implements source.
func (s *treeSource) Resolve(name string) (string, error) { return image.Resolve(name, s.Lookup) }

// Names implements source.
func (s *treeSource) Names(dir string) ([]string, error) { return s.names[dir], nil }

// Open implements source.
func (s *treeSource) Open(name string) (io.ReadCloser, error) {
	return s.images.OpenBlob(s.entries[name].Digest)
}

// opener opens a file later.
func (s *treeSource) opener(name string) contentFunc {
	return func() (io.ReadCloser, error) { return s.Open(name) }
}

// An item is one thing that COPY takes: a path, once its pattern is a name.
type item struct {
	path string // its links followed
	base string // its name, as it is written
	dir  bool
	// parents says that what is taken keeps its folders below the path, of
	// --parents.
	parents bool
	files   []pick // what of it is taken; a file is one
}

// A pick is a file, folder or link that is taken.
type pick struct {
	rel   string // below the item; "" is the item itself
	entry image.Entry
}

// find turns a pattern of COPY into items. Patterns are those of Go's path.Match,
// part by part; a name that is not there is an error, and a pattern that matches
// nothing is none.
func find(ctx context.Context, from source, pattern string) ([]item, error) {
	clean := path.Clean("/" + pattern)
	if !strings.ContainsAny(clean, `*?[\`) {
		it, err := one(from, clean)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, isle.Errorf(isle.NotFound, "there is no %.200s", pattern)
		}
		return []item{it}, err
	}
	parts := strings.Split(strings.Trim(clean, "/"), "/")
	at := []string{"/"}
	for _, part := range parts {
		if _, err := path.Match(part, "x"); err != nil {
			return nil, isle.Errorf(isle.Invalid, "%.200s is no pattern: a [ or \\ is not ended", pattern)
		}
		var next []string
		for _, dir := range at {
			found, err := matching(from, dir, part)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return nil, err
			}
			if next = append(next, found...); len(next) > maxMatched {
				return nil, isle.Errorf(isle.Exhausted, "more than %d paths match %.200s", maxMatched, pattern)
			}
		}
		at = next
	}
	var out []item
	for _, p := range at {
		it, err := one(from, p)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		out = append(out, it)
	}
	return out, nil
}

// matching are the paths in a folder whose names match.
func matching(from source, dir, part string) ([]string, error) {
	real, err := from.Resolve(dir)
	if err != nil {
		return nil, err
	}
	if e, err := from.Lookup(real); err != nil || !e.Mode.IsDir() {
		return nil, nil
	}
	names, err := from.Names(real)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range names {
		if ok, err := path.Match(part, name); err != nil || !ok {
			continue
		}
		out = append(out, path.Join(dir, name))
	}
	return out, nil
}

// one is the item at a path, its links followed.
func one(from source, name string) (item, error) {
	at, err := from.Resolve(name)
	if err != nil {
		return item{}, err
	}
	e, err := from.Lookup(at)
	if err != nil {
		return item{}, err
	}
	return item{path: at, base: path.Base(name), dir: e.Mode.IsDir()}, nil
}

// maxCopied is how many files one COPY can take.
const maxCopied = 1 << 20

// maxMatched is how many paths match one pattern of COPY.
const maxMatched = 1 << 18

// maxCopyDepth is how deep the folders nest that one COPY takes.
const maxCopyDepth = 128

// walk calls each with what is below a folder, sorted, a folder before what is in
// it; rel is the path below. What is in a folder for which each says no is left
// out too.
func walk(from source, dir, rel string, depth int, each func(rel string, e image.Entry) (into bool, err error)) error {
	if depth > maxCopyDepth {
		return isle.Errorf(isle.Invalid, "%.100q nests deeper than %d folders", rel, maxCopyDepth)
	}
	names, err := from.Names(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		e, err := from.Lookup(path.Join(dir, name))
		if err != nil {
			return err
		}
		below := path.Join(rel, name)
		into, err := each(below, e)
		if err != nil {
			return err
		}
		if e.Mode.IsDir() && into {
			if err := walk(from, e.Path, below, depth+1, each); err != nil {
				return err
			}
		}
	}
	return nil
}
