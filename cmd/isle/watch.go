package main

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// fingerprint changes whenever the file or something it copies or builds from does: names,
// sizes, modes and times, without reading content. The lock is not part of it.
func (p *project) fingerprint() [sha256.Size]byte {
	h := sha256.New()
	note := func(path string, st fs.FileInfo) {
		fmt.Fprintf(h, "%s\x00%d\x00%o\x00%d\n", path, st.Size(), st.Mode(), st.ModTime().UnixNano())
	}
	for _, name := range append([]string{p.path}, p.reads...) {
		if st, err := os.Stat(name); err == nil {
			note(name, st)
		}
	}
	walk := func(from string, skip func(name string) bool) {
		filepath.WalkDir(filepath.Join(p.dir, filepath.FromSlash(from)), func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return nil // what cannot be read now is noticed when it can
			case skip(d.Name()) && d.IsDir():
				return fs.SkipDir
			case skip(d.Name()):
				return nil
			}
			if st, err := d.Info(); err == nil {
				note(path, st)
			}
			return nil
		})
	}
	for _, s := range p.file.Services {
		for _, c := range s.Copy {
			walk(c.From, func(name string) bool { return p.lockPath != "" && name == filepath.Base(p.lockPath) })
		}
		if s.Build != nil { // what is never in a context changes by itself: the lock, and git's own
			walk(s.Build.Context, func(name string) bool {
				return name == ".git" || name == "isle.lock" || p.lockPath != "" && name == filepath.Base(p.lockPath)
			})
			walk(s.Build.File(), func(string) bool { return false })
		}
	}
	return [sha256.Size]byte(h.Sum(nil))
}
