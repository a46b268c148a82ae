package debian

import (
	"bytes"
	"io"
	"io/fs"
	"path"
	"sort"
	"strings"
)

// A system collects what maintainer scripts would have made of a Tree.
type system struct {
	t     *Tree
	files map[string]made // by path without the leading slash, links resolved
}

type made struct {
	mode     fs.FileMode
	uid, gid uint32
	data     []byte
	target   string
	node     *node // the tree's own, given again so that a directory keeps its owner and mode
}

// System gives the entries of the system layer, sorted by path: what the
// packages' maintainer scripts would have made, computed from the tree and
// never by running them.
//
//   - base-files, libc-bin, tzdata and others: the usual directories and links,
//     /etc/profile, /etc/nsswitch.conf, /etc/localtime (UTC), and empty files
//     to mount over (/etc/hosts, /etc/hostname, /etc/resolv.conf, machine-id)
//   - users and groups (see users)
//   - /etc/ssl/certs: the bundle and the links by subject hash
//   - /etc/alternatives, where a script names them literally
//   - /etc/ld.so.cache
//
// What is not made: byte-compiled Python, caches of fonts, icons and schemas,
// Java's key store, generated locales other than C.UTF-8, configuration that
// debconf or ucf writes. A `run:` step can make it.
func (t *Tree) System(add Add) error {
	s := &system{t: t, files: map[string]made{}}
	s.base()
	if err := s.users(); err != nil {
		return err
	}
	s.alternatives()
	s.certificates()
	s.linkerCache()
	return s.give(add)
}

// give hands out what was made, each with its parents as the tree has them, so
// that the layer does not change a directory it only passes through.
func (s *system) give(add Add) error {
	for name := range s.files {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if n := s.t.nodes[dir]; n != nil && n.mode.IsDir() {
				if _, ok := s.files[dir]; !ok {
					s.files[dir] = made{node: n}
				}
			}
		}
	}
	names := make([]string, 0, len(s.files))
	for name := range s.files {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		f := s.files[name]
		var content func() (io.ReadCloser, error)
		e := Entry{Path: "/" + name, Mode: f.mode, UID: f.uid, GID: f.gid, Size: int64(len(f.data)), Target: f.target}
		if f.node != nil {
			e = f.node.entry(name)
		} else if f.mode.IsRegular() {
			content = contentOf(f.data)
		}
		if err := add(e, content); err != nil {
			return err
		}
	}
	return nil
}

// at returns where a path really is, or "" where that cannot be said.
func (s *system) at(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	at, err := s.t.resolve(name, false)
	if err != nil {
		return ""
	}
	return at
}

// exists reports whether a path is in the tree or was made.
func (s *system) exists(name string) bool {
	at := s.at(name)
	_, ok := s.files[at]
	return ok || s.t.nodes[at] != nil
}

// put makes a file that no package has. What a package has stays.
func (s *system) put(name string, m made) {
	if at := s.at(name); at != "" && s.t.nodes[at] == nil {
		s.files[at] = m
	}
}

func (s *system) file(name, data string) { s.put(name, made{mode: 0o644, data: []byte(data)}) }
func (s *system) link(name, target string) {
	s.put(name, made{mode: fs.ModeSymlink | 0o777, target: target})
}
func (s *system) directory(name string, mode fs.FileMode, gid uint32) {
	s.put(name, made{mode: fs.ModeDir | mode, gid: gid})
}

// copyOf makes a file with the content of another one of the tree.
func (s *system) copyOf(from, to string) {
	if b := s.t.read(from); b != nil {
		s.file(to, string(b))
	}
}

// The groups of base-passwd that are used here (Debian Policy 9.2.2).
const (
	gidMail    = 8
	gidShadow  = 42
	gidNogroup = 65534
)

// base does what base-files, libc-bin, tzdata, debianutils, dash and procps do
// on their first configuration.
func (s *system) base() {
	for _, d := range []string{"mnt", "srv", "opt", "etc/opt", "var/opt", "media", "boot", "home", "dev", "proc", "sys", "run",
		"usr/local", "usr/local/bin", "usr/local/etc", "usr/local/games", "usr/local/include", "usr/local/lib",
		"usr/local/sbin", "usr/local/share", "usr/local/share/man", "usr/local/src", "var/log", "var/spool", "etc/ssl/certs",
		"var/cache/ldconfig", "usr/share/man"} {
		s.directory(d, 0o755, 0)
	}
	s.directory("root", 0o700, 0)
	s.directory("tmp", 0o777|fs.ModeSticky, 0)
	s.directory("var/tmp", 0o777|fs.ModeSticky, 0)
	s.directory("var/mail", 0o775|fs.ModeSetgid, gidMail)
	s.link("var/spool/mail", "../mail")
	s.link("usr/local/man", "share/man")
	s.copyOf("usr/share/base-files/dot.profile", "root/.profile")
	s.copyOf("usr/share/base-files/dot.bashrc", "root/.bashrc")
	s.copyOf("usr/share/base-files/profile", "etc/profile")
	s.copyOf("usr/share/base-files/motd", "etc/motd")
	s.copyOf("usr/share/libc-bin/nsswitch.conf", "etc/nsswitch.conf")
	s.link("etc/dpkg/origins/default", "debian")
	s.link("etc/mtab", "/proc/mounts")
	s.link("etc/os-release", "../usr/lib/os-release")
	if s.exists("usr/bin/dash") {
		s.link("usr/bin/sh", "dash")
	}
	if s.exists("usr/share/zoneinfo/Etc/UTC") {
		s.link("etc/localtime", "/usr/share/zoneinfo/Etc/UTC")
		s.file("etc/timezone", "Etc/UTC\n")
	}
	for _, mount := range []string{"etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/machine-id"} {
		s.file(mount, "")
	}
	var shells bytes.Buffer
	shells.WriteString("# /etc/shells: valid login shells\n")
	for _, shell := range []string{"/bin/sh", "/bin/bash", "/bin/dash", "/usr/bin/bash", "/usr/bin/dash", "/usr/bin/sh", "/bin/zsh", "/usr/bin/zsh", "/usr/bin/fish"} {
		if s.exists(shell) {
			shells.WriteString(shell + "\n")
		}
	}
	s.file("etc/shells", shells.String())
}
