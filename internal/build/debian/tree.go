package debian

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"sort"
	"strings"

	"isle"
)

// A Tree is the merged content of packages: one root with a merged /usr (bin,
// sbin, lib and lib64 are links into it), as every current Debian has.
type Tree struct {
	dir   string
	pkgs  []*unpacked      // sorted by name
	nodes map[string]*node // by path without the leading slash, no part of which is a link
}

// A node is one file of a Tree.
type node struct {
	mode     fs.FileMode
	uid, gid uint32
	target   string    // of a symbolic link
	owner    *unpacked // the package it is of; nil: made here
	offset   int64     // of a regular file's content in the owner's spool
	size     int64
}

// mergedUsr are the top-level directories that a merged /usr has as links.
var mergedUsr = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32"}

func newTree(dir string, pkgs []*unpacked) (*Tree, error) {
	t := &Tree{dir: dir, pkgs: slices.Clone(pkgs), nodes: map[string]*node{"": {mode: fs.ModeDir | 0o755}}}
	slices.SortStableFunc(t.pkgs, func(a, b *unpacked) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.Architecture, b.Architecture)
	})
	for _, name := range mergedUsr[:3] {
		t.mergeUsr(name)
	}
	// base-files has these as directories, and its script makes links of them.
	t.makeDirs("var")
	t.nodes["var/run"] = &node{mode: fs.ModeSymlink | 0o777, target: "/run"}
	t.nodes["var/lock"] = &node{mode: fs.ModeSymlink | 0o777, target: "/run/lock"}
	// base-files first: it says what the common directories look like.
	for _, first := range []bool{true, false} {
		for _, p := range t.pkgs {
			if (p.Name == "base-files") != first {
				continue
			}
			for _, f := range p.files {
				if err := t.place(p, f); err != nil {
					return nil, p.explain(err)
				}
			}
		}
	}
	return t, nil
}

// mergeUsr makes one top-level directory a link into /usr.
func (t *Tree) mergeUsr(name string) {
	if t.nodes[name] == nil && slices.Contains(mergedUsr, name) {
		t.nodes[name] = &node{mode: fs.ModeSymlink | 0o777, target: "usr/" + name}
		t.makeDirs("usr/" + name)
	}
}

// place puts a package's file where it belongs, following links to directories
// inside the tree as dpkg does.
func (t *Tree) place(p *unpacked, f file) error {
	top, _, _ := strings.Cut(f.path, "/")
	t.mergeUsr(top)
	parent, err := t.resolve(path.Dir(f.path), true)
	if err != nil {
		return err
	}
	name := path.Join(parent, path.Base(f.path))
	n := &node{mode: f.mode, uid: f.uid, gid: f.gid, target: f.target, owner: p, offset: f.offset, size: f.size}
	if f.link != "" {
		if leftOut(f.link) {
			return nil
		}
		source, err := t.resolve(f.link, false)
		if err != nil {
			return err
		}
		of := t.nodes[source]
		if of == nil || !of.mode.IsRegular() || of.owner != p {
			return isle.Errorf(isle.Invalid, "package %s: %s is a hard link to %s, which the package does not have", p.Name, f.path, f.link)
		}
		n = of
	}
	old := t.nodes[name]
	switch {
	case old == nil:
	case n.mode.IsDir() && old.mode.IsDir():
		if old.owner != nil {
			return nil // the first one's owner and mode stay
		}
	case n.mode.IsDir() && old.mode&fs.ModeSymlink != 0, n.mode&fs.ModeSymlink != 0 && old.mode.IsDir():
		return nil // a directory may be a link to one, and the other way round
	case n.mode.IsDir() || old.mode.IsDir():
		return isle.Errorf(isle.Invalid, "packages %s and %s: /%s is a directory in one and a file in the other", p.Name, ownerName(old), name)
	case old.owner == nil || old.owner != p && old.owner.replaces(p):
		return nil
	}
	t.nodes[name] = n
	return nil
}

func ownerName(n *node) string {
	if n.owner == nil {
		return "base"
	}
	return n.owner.Name
}

// replaces reports whether p says that its files replace those of q (Debian
// Policy 7.6.1).
func (p *unpacked) replaces(q *unpacked) bool {
	for _, g := range parseRelations(p.control.fields.get("Replaces"), p.Architecture) {
		if g[0].name == q.Name && g[0].allows(q.Version) {
			return true
		}
	}
	return false
}

// makeDirs makes a directory and its parents, root's, if they are not there.
func (t *Tree) makeDirs(name string) {
	for ; name != "." && name != "" && t.nodes[name] == nil; name = path.Dir(name) {
		t.nodes[name] = &node{mode: fs.ModeDir | 0o755}
	}
}

// resolve returns the path without links that a path leads to inside the tree.
// The last element need not exist; with dirs set the whole path is a directory
// and is made where it does not exist.
func (t *Tree) resolve(name string, dirs bool) (string, error) {
	rest := strings.Split(path.Clean("/" + name)[1:], "/")
	at := ""
	for hops := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if at = path.Dir(at); at == "." {
				at = ""
			}
			continue
		}
		next := path.Join(at, part)
		n := t.nodes[next]
		if n != nil && n.mode&fs.ModeSymlink != 0 && (dirs || len(rest) > 0) {
			if hops++; hops > 40 {
				return "", fmt.Errorf("/%s: too many links", name)
			}
			if strings.HasPrefix(n.target, "/") {
				at = ""
			}
			rest = append(strings.Split(n.target, "/"), rest...)
			continue
		}
		if n == nil && dirs {
			t.nodes[next] = &node{mode: fs.ModeDir | 0o755}
		} else if n != nil && !n.mode.IsDir() && (dirs || len(rest) > 0) {
			return "", fmt.Errorf("/%s: /%s is not a directory", name, next)
		}
		at = next
	}
	return at, nil
}

// follow resolves a path to its end, last link included; nil if it leads
// nowhere.
func (t *Tree) follow(name string) (string, *node) {
	for range 40 {
		at, err := t.resolve(name, false)
		if err != nil {
			return "", nil
		}
		n := t.nodes[at]
		if n == nil || n.mode&fs.ModeSymlink == 0 {
			return at, n
		}
		if name = n.target; !strings.HasPrefix(name, "/") {
			// not path.Join: the target's ".." are resolved from where the link really is
			name = path.Dir("/"+at) + "/" + name
		}
	}
	return "", nil
}

// open returns the content of a regular file of the tree.
func (t *Tree) open(n *node) (io.ReadCloser, error) {
	f, err := os.Open(n.owner.spool)
	if err != nil {
		return nil, err
	}
	return section{io.NewSectionReader(f, n.offset, n.size), f}, nil
}

// A section is a part of a file that closes the file.
type section struct {
	*io.SectionReader
	io.Closer
}

// read returns the content of a file, links followed; nil if it is not there or
// larger than a megabyte.
func (t *Tree) read(name string) []byte {
	_, n := t.follow(name)
	if n == nil || !n.mode.IsRegular() || n.size > 1<<20 {
		return nil
	}
	if n.owner == nil {
		return []byte{}
	}
	r, err := t.open(n)
	if err != nil {
		return nil
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return nil
	}
	return b
}

// list returns the names in a directory of the tree, sorted.
func (t *Tree) list(dir string) (names []string) {
	at, n := t.follow(dir)
	if n == nil {
		return nil
	}
	for name := range t.nodes {
		if path.Dir(name) == at || at == "" && !strings.Contains(name, "/") && name != "" {
			names = append(names, path.Base(name))
		}
	}
	sort.Strings(names)
	return names
}

// Close removes what the Tree keeps on disk.
func (t *Tree) Close() error { return os.RemoveAll(t.dir) }

// Packages gives the entries of the packages layer, sorted by path: the files
// of all packages and dpkg's record of them.
func (t *Tree) Packages(add Add) error {
	names := make([]string, 0, len(t.nodes))
	for name := range t.nodes {
		if name != "" {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	for _, name := range names {
		n := t.nodes[name]
		var content func() (io.ReadCloser, error)
		if n.mode.IsRegular() && n.size > 0 {
			content = func() (io.ReadCloser, error) { return t.open(n) }
		}
		if err := add(n.entry(name), content); err != nil {
			return err
		}
	}
	for _, m := range t.dpkg() {
		e := Entry{Path: "/var/lib/dpkg/" + m.name, Mode: 0o644, Size: int64(len(m.data))}
		if err := add(e, contentOf(m.data)); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) entry(name string) Entry {
	return Entry{Path: "/" + name, Mode: n.mode, UID: n.uid, GID: n.gid, Size: n.size, Target: n.target}
}

func contentOf(b []byte) func() (io.ReadCloser, error) {
	if len(b) == 0 {
		return nil
	}
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

type record struct {
	name string
	data []byte
}

// dpkg returns the files of /var/lib/dpkg, so that dpkg and scanners see what
// is installed.
func (t *Tree) dpkg() []record {
	var status bytes.Buffer
	out := []record{{"available", nil}, {"diversions", nil}, {"statoverride", nil}, {"info/format", []byte("1\n")}}
	for _, p := range t.pkgs {
		for i, f := range p.control.fields {
			status.WriteString(f.name + ": " + strings.ReplaceAll(f.value, "\n", "\n ") + "\n")
			if i == 0 {
				status.WriteString("Status: install ok installed\n")
			}
		}
		status.WriteString("\n")
		name := p.Name
		if p.control.fields.get("Multi-Arch") == "same" {
			name += ":" + p.Architecture
		}
		var list bytes.Buffer
		list.WriteString("/.\n")
		for _, f := range p.files {
			list.WriteString("/" + f.path + "\n")
		}
		out = append(out, record{"info/" + name + ".list", list.Bytes()})
		if p.control.md5sums != "" {
			out = append(out, record{"info/" + name + ".md5sums", []byte(p.control.md5sums)})
		}
	}
	return append(out, record{"status", status.Bytes()})
}
