package main

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// fingerprint changes whenever the file or something it copies does: names,
// sizes, modes and times, without reading content. The lock is not part of it.
func (p *project) fingerprint() [sha256.Size]byte {
	h := sha256.New()
	note := func(path string, st fs.FileInfo) {
		fmt.Fprintf(h, "%s\x00%d\x00%o\x00%d\n", path, st.Size(), st.Mode(), st.ModTime().UnixNano())
	}
	if st, err := os.Stat(p.path); err == nil {
		note(p.path, st)
	}
	for _, s := range p.file.Services {
		for _, c := range s.Copy {
			filepath.WalkDir(filepath.Join(p.dir, filepath.FromSlash(c.From)), func(path string, d fs.DirEntry, err error) error {
				if err != nil {
					return nil // what cannot be read now is noticed when it can
				}
				if st, err := d.Info(); err == nil {
					note(path, st)
				}
				return nil
			})
		}
	}
	return [sha256.Size]byte(h.Sum(nil))
}
