package main

import (
	"os"
	"path/filepath"
	"strings"
)

// A checkout is what git knows of a folder.
type checkout struct {
	branch   string // "" where there is no git, or no branch is checked out
	isMain   bool   // the branch is the default one
	detached bool
}

// readCheckout finds the work tree that dir is in and reads its branch from
// git's files: running git would cost more than all the rest of `isle up`.
func readCheckout(dir string) checkout {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return checkout{}
	}
	for {
		dotgit := filepath.Join(dir, ".git")
		if st, err := os.Lstat(dotgit); err == nil {
			if st.IsDir() {
				return readHead(dotgit, dotgit)
			}
			// A linked work tree or submodule: a file "gitdir: PATH", and the
			// shared folder named by commondir (gitrepository-layout(5)).
			gitdir, ok := strings.CutPrefix(firstLine(dotgit), "gitdir: ")
			if !ok {
				return checkout{}
			}
			if !filepath.IsAbs(gitdir) {
				gitdir = filepath.Join(dir, gitdir)
			}
			common := gitdir
			if c := firstLine(filepath.Join(gitdir, "commondir")); c != "" {
				if common = c; !filepath.IsAbs(c) {
					common = filepath.Join(gitdir, c)
				}
			}
			return readHead(gitdir, common)
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return checkout{}
		}
		dir = parent
	}
}

// readHead reads the branch of a git folder. The default branch is the one
// that origin's HEAD names; without one it is main or master.
func readHead(gitdir, common string) checkout {
	head := firstLine(filepath.Join(gitdir, "HEAD"))
	branch, ok := strings.CutPrefix(head, "ref: refs/heads/")
	if !ok {
		return checkout{detached: head != ""}
	}
	c := checkout{branch: branch, isMain: branch == "main" || branch == "master"}
	if main, ok := strings.CutPrefix(firstLine(filepath.Join(common, "refs/remotes/origin/HEAD")), "ref: refs/remotes/origin/"); ok {
		c.isMain = branch == main
	}
	return c
}

// firstLine is the first line of a small file, "" if it cannot be read.
func firstLine(name string) string {
	b, err := readBounded(name, 64<<10)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line)
}
