package checkout

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// untracked reports whether there is a file that git neither tracks nor
// ignores. Folders that hold none count for nothing.
func (s *scan) untracked() (bool, error) {
	tracked := make(map[string]bool, len(s.entries)) // a folder is true
	for _, e := range s.entries {
		tracked[strings.TrimSuffix(e.path, "/")] = false
		for p := e.path; ; {
			i := strings.LastIndexByte(p, '/')
			if i < 0 || tracked[p[:i]] {
				break
			}
			p = p[:i]
			tracked[p] = true
		}
	}
	ig, err := s.c.ignores()
	if err != nil {
		return false, err
	}
	// The folders above the one that is looked at have their say.
	dir := ""
	for part := range strings.SplitSeq(strings.TrimSuffix(s.prefix, "/"), "/") {
		if part == "" {
			break
		}
		if ig, err = ig.with(filepath.Join(s.c.root, dir, ".gitignore"), dir); err != nil {
			return false, err
		}
		if out, err := ig.match(s.ctx, dir+part, true); out || err != nil {
			return false, err // nothing is untracked below what is ignored
		}
		dir += part + "/"
	}
	return s.untrackedIn(s.prefix, tracked, ig, 0)
}

// untrackedIn looks in dir, which is "" or ends in a slash.
func (s *scan) untrackedIn(dir string, tracked map[string]bool, ig ignored, depth int) (bool, error) {
	if err := s.step(); err != nil || depth > maxDepth {
		return err == nil, err // nobody keeps files so deep: dirty
	}
	path := filepath.Join(s.c.root, filepath.FromSlash(dir))
	ig, err := ig.with(filepath.Join(path, ".gitignore"), dir)
	if err != nil {
		return false, err
	}
	d, err := os.Open(path)
	if notThere(err) {
		return false, nil
	}
	if err != nil {
		return false, cause(err)
	}
	defer d.Close()
	for {
		some, err := d.ReadDir(1024)
		if len(some) == 0 {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return false, cause(err)
		}
		for _, e := range some {
			if found, err := s.untrackedAt(dir+e.Name(), e, tracked, ig, depth); found || err != nil {
				return found, err
			}
		}
	}
}

// untrackedAt looks at one name of a folder.
func (s *scan) untrackedAt(path string, e fs.DirEntry, tracked map[string]bool, ig ignored, depth int) (bool, error) {
	if err := s.step(); err != nil {
		return false, err
	}
	folder, known := tracked[path]
	switch {
	case folder && !e.IsDir():
		return true, nil // what is tracked below it is reached by a link at most
	case e.Name() == ".git", known && !folder:
		return false, nil
	case !e.IsDir() && !e.Type().IsRegular() && e.Type() != fs.ModeSymlink:
		return false, nil // git keeps no sockets, pipes and devices
	}
	out, err := ig.match(s.ctx, path, e.IsDir())
	switch {
	case out || err != nil:
		return false, err
	case !e.IsDir():
		return true, nil
	}
	if _, err := os.Lstat(filepath.Join(s.c.root, path, ".git")); err == nil && !folder {
		return true, nil // another repository, which is no submodule
	}
	return s.untrackedIn(path+"/", tracked, ig, depth+1)
}
