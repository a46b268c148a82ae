package main

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"

	"isle"
	"isle/internal/initproto"
	"isle/internal/spec"
)

// folder writes a File for each thing in the folder at p, or for what is at p.
// Nothing is opened but the folder.
func folder(w io.Writer, p string) error {
	p = path.Clean(p)
	out := json.NewEncoder(w)
	st, err := os.Lstat(p)
	if err == nil && !st.IsDir() {
		dir, err := openFolder(path.Dir(p))
		if err != nil {
			return err
		}
		defer dir.Close()
		return describe(out, dir, path.Base(p))
	}
	root, err := openFolder(p)
	if err != nil {
		return err
	}
	defer root.Close()
	dir, err := root.Open(".")
	if err != nil {
		return isle.Errorf(isle.Failed, "%s in the service: %w", p, err)
	}
	defer dir.Close()
	for n := 0; ; {
		names, err := dir.Readdirnames(256)
		if n += len(names); n > initproto.MaxFolder {
			return isle.Errorf(isle.Exhausted, "there are more than %d things in %s in the service", initproto.MaxFolder, p).WithHint("find them with a command inside")
		}
		for _, name := range names {
			if err := describe(out, root, name); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return isle.Errorf(isle.Failed, "%s in the service: %w", p, err)
		}
	}
}

// describe writes a File, unless it is gone meanwhile.
func describe(out *json.Encoder, root *os.Root, name string) error {
	st, err := root.Lstat(name)
	if err != nil {
		return nil
	}
	f := initproto.File{Name: spec.TreeName(name), Type: initproto.TypeOther, Mode: chmodBits(st.Mode()), Time: st.ModTime().UTC()}
	switch {
	case st.IsDir():
		f.Type = initproto.TypeDir
	case st.Mode().IsRegular():
		f.Type, f.Size = initproto.TypeFile, st.Size()
	case st.Mode()&fs.ModeSymlink != 0:
		target, err := root.Readlink(name)
		if err != nil {
			return nil
		}
		f.Type, f.Target = initproto.TypeLink, spec.TreeName(target)
	}
	return out.Encode(f)
}

// chmodBits is a mode as chmod(2) has it.
func chmodBits(m fs.FileMode) uint32 {
	bits := uint32(m.Perm())
	for from, to := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&from != 0 {
			bits |= to
		}
	}
	return bits
}
