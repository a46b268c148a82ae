package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"strings"

	"github.com/erofs/go-erofs"

	"isle"
)

// A Stack looks things up in layers as overlayfs would show them. What makes an
// upper layer needs it: a directory that an upper layer has again takes the
// upper one's owner and mode, and one that hides a symbolic link ("/bin")
// breaks what is below.
type Stack struct {
	files  []*os.File
	layers []fs.FS // highest first
}

// OpenStack opens layer files, lowest first.
func OpenStack(layers []string) (*Stack, error) {
	s := &Stack{}
	for i := len(layers) - 1; i >= 0; i-- {
		f, err := os.Open(layers[i])
		if err != nil {
			s.Close()
			return nil, storeError("open layer", err)
		}
		s.files = append(s.files, f)
		img, err := erofs.Open(f)
		if err != nil {
			s.Close()
			return nil, isle.Errorf(isle.Invalid, "%s is no layer: %w", layers[i], err)
		}
		s.layers = append(s.layers, img)
	}
	return s, nil
}

// Close closes the layers' files.
func (s *Stack) Close() {
	for _, f := range s.files {
		f.Close()
	}
}

// Lookup returns the entry at an absolute, clean path without following a
// symbolic link, the parents' included, or an error that is fs.ErrNotExist.
func (s *Stack) Lookup(name string) (Entry, error) {
	entry, _, err := s.lookup(name)
	return entry, err
}

// ReadFile returns the content of a file of at most limit bytes; no symbolic link
// is followed.
func (s *Stack) ReadFile(name string, limit int64) ([]byte, error) {
	e, err := s.Lookup(name)
	if err != nil {
		return nil, err
	}
	if !e.Mode.IsRegular() || e.Size > limit {
		return nil, isle.Errorf(isle.Invalid, "%s is no file of at most %d bytes", name, limit)
	}
	f, err := s.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// Names are the names in a directory, sorted.
func (s *Stack) Names(dir string) ([]string, error) {
	e, layers, err := s.lookup(dir)
	if err != nil {
		return nil, err
	}
	if !e.Mode.IsDir() {
		return nil, isle.Errorf(isle.Invalid, "%s is no directory", dir)
	}
	names := map[string]bool{}
	for _, l := range layers {
		list, err := fs.ReadDir(l, path.Join(".", dir))
		if err != nil {
			return nil, err
		}
		for _, f := range list {
			names[f.Name()] = true
		}
	}
	maps.DeleteFunc(names, func(name string, _ bool) bool {
		_, err := s.Lookup(path.Join(dir, name))
		return errors.Is(err, fs.ErrNotExist)
	})
	return sortedKeys(names), nil
}

// Open opens a file for reading; no symbolic link is followed.
func (s *Stack) Open(name string) (io.ReadCloser, error) {
	_, layers, err := s.lookup(name)
	if err != nil {
		return nil, err
	}
	return layers[0].Open(strings.Trim(name, "/"))
}

// lookup is Lookup, and the layers that have the entry, the highest first.
func (s *Stack) lookup(name string) (Entry, []fs.FS, error) {
	entry, layers := Entry{}, s.layers
	at := "."
	parts := strings.Split(strings.Trim(name, "/"), "/")
	if name == "/" {
		parts = nil
	}
	for i := -1; i < len(parts); i++ {
		if i >= 0 {
			if !entry.Mode.IsDir() {
				return Entry{}, nil, &fs.PathError{Op: "lookup", Path: name, Err: fs.ErrNotExist}
			}
			at = path.Join(at, parts[i])
		}
		var err error
		if entry, layers, err = lookupIn(layers, at); err != nil {
			return Entry{}, nil, err
		}
	}
	return entry, layers, nil
}

// lookupIn returns the entry that the highest layer has at a path, and the
// layers that show through it if it is a directory.
func lookupIn(layers []fs.FS, at string) (entry Entry, through []fs.FS, err error) {
	found := false
	for _, l := range layers {
		fi, err := fs.Lstat(l, at)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return entry, nil, err
		}
		st, ok := fi.Sys().(*erofs.Stat)
		if !ok {
			return entry, nil, fmt.Errorf("%s has no owner", at)
		}
		if st.Mode.Type() == Whiteout && st.Rdev == 0 || found && !st.Mode.IsDir() {
			break
		}
		if !found {
			found = true
			entry = Entry{Path: path.Clean("/" + at), Mode: st.Mode, UID: st.UID, GID: st.GID, Time: timeOf(st)}
			if st.Mode&fs.ModeSymlink != 0 {
				if entry.Target, err = fs.ReadLink(l, at); err != nil {
					return entry, nil, err
				}
			}
			if st.Mode.IsRegular() {
				entry.Size = fi.Size()
			}
		}
		through = append(through, l)
		if !st.Mode.IsDir() || st.Xattrs[OpaqueXattr] == "y" {
			break
		}
	}
	if !found {
		return entry, nil, &fs.PathError{Op: "lookup", Path: "/" + at, Err: fs.ErrNotExist}
	}
	return entry, through, nil
}

// Resolve returns the path that name leads to once every symbolic link on the
// way, the last one too, is followed inside the root. What is not there stays
// as it is written.
func (s *Stack) Resolve(name string) (string, error) { return Resolve(name, s.Lookup) }

// maxLinks and maxParts bound what is followed to find where a path leads.
const (
	maxLinks = 40
	maxParts = 4096
)

// Resolve follows every symbolic link on a path, the last one too, inside the root
// that lookup looks into: no link leads above it. Where lookup finds nothing
// (fs.ErrNotExist) the path stays as it is written.
func Resolve(name string, lookup func(string) (Entry, error)) (string, error) {
	todo := strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/")
	at := "/"
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		e, err := lookup(next)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err != nil || e.Mode&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > maxLinks || len(todo) > maxParts {
			return "", isle.Errorf(isle.Invalid, "%.100q leads through too many symbolic links", name)
		}
		if path.IsAbs(e.Target) {
			at = "/"
		}
		todo = append(strings.Split(e.Target, "/"), todo...)
	}
	return at, nil
}
