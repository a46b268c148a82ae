// Package checkout reads what git knows of a folder, and runs nothing.
//
// A Checkout is a work tree of git's as a folder in it sees it: the branch that
// is checked out, the commit that it is at, whether the folder's files are
// those of the commit (else it is dirty). A repository is where branches and
// commits are kept; several work trees may share one.
//
// It reads git's files (gitrepository-layout(5), gitformat-index(5),
// gitformat-pack(5)) and never asks git: a repository may name programs that
// git runs as it looks (core.fsmonitor, filters, hooks), and whoever looks may
// be root, in a folder that came from somebody else. What is read is hostile:
// it is bounded, and only regular files are opened.
package checkout

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"isle"
)

// A Checkout is a git work tree, as it was when it was found.
type Checkout struct {
	Branch   string // "" where no branch is checked out
	Default  bool   // Branch is the default one
	Detached bool   // a commit is checked out, and no branch
	// Commit is the hash of the commit that is checked out, 40 or 64 lower-case
	// hexadecimal characters; "" where there is none yet, or it cannot be read.
	Commit string

	root    string // of the work tree; absolute, without links
	folder  string // in root, which is looked at; "" is root itself
	gitdir  string // of this work tree
	common  string // of the repository: gitdir, but for linked work trees
	hashLen int    // bytes: 20 of SHA-1, 32 of SHA-256
	config  config // of the repository
}

// Find returns the work tree that dir is in. It fails with NotFound where there
// is none, and with Unavailable where git's files are not ones that it can read.
func Find(dir string) (*Checkout, error) {
	path, err := filepath.Abs(dir)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return nil, isle.Errorf(isle.NotFound, "cannot look for git's work tree in %s: %w", dir, cause(err))
	}
	for root := path; ; root = filepath.Dir(root) {
		if _, err := os.Lstat(filepath.Join(root, ".git")); err == nil {
			c, err := open(root)
			if err != nil {
				return nil, isle.Errorf(isle.Unavailable, "cannot read %s as git's: %w", filepath.Join(root, ".git"), err)
			}
			if c.folder, err = filepath.Rel(root, path); err != nil {
				return nil, isle.Errorf(isle.Internal, "%s is not below %s: %w", path, root, err)
			}
			if c.folder == "." {
				c.folder = ""
			}
			return c, nil
		}
		if root == filepath.Dir(root) {
			return nil, isle.Errorf(isle.NotFound, "%s is in no git work tree", dir)
		}
	}
}

// open reads the work tree whose folder is root.
func open(root string) (*Checkout, error) {
	c := &Checkout{root: root, gitdir: filepath.Join(root, ".git")}
	st, err := os.Stat(c.gitdir)
	if err != nil {
		return nil, cause(err)
	}
	if !st.IsDir() {
		// A linked work tree or submodule: a file "gitdir: PATH".
		line, err := firstLine(c.gitdir)
		if err != nil {
			return nil, err
		}
		dir, ok := strings.CutPrefix(line, "gitdir: ")
		if !ok || dir == "" {
			return nil, errors.New("it is neither a folder nor does it name one")
		}
		c.gitdir = resolve(root, dir)
	}
	c.common = c.gitdir
	switch line, err := firstLine(filepath.Join(c.gitdir, "commondir")); {
	case err == nil && line != "":
		c.common = resolve(c.gitdir, line)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if c.config, err = readConfig(filepath.Join(c.common, "config")); err != nil {
		return nil, err
	}
	c.hashLen = 20
	if c.config.get("extensions.objectformat") == "sha256" {
		c.hashLen = 32
	}
	if s := c.config.get("extensions.refstorage"); s != "" && s != "files" {
		return nil, errors.New("it keeps its references as " + s + ", which is not known here")
	}
	return c, c.readHead()
}

// readHead reads which branch is checked out, and at which commit.
func (c *Checkout) readHead() error {
	head, err := firstLine(filepath.Join(c.gitdir, "HEAD"))
	if err != nil {
		return err
	}
	name, symbolic := strings.CutPrefix(head, "ref: ")
	if !symbolic {
		if !c.isHash(head) {
			return errors.New("its HEAD names no branch and no commit")
		}
		c.Commit, c.Detached = head, true
		return nil
	}
	branch, ok := strings.CutPrefix(name, branches)
	if !ok || !validRef(name) || !utf8.ValidString(branch) || strings.ContainsFunc(branch, unicode.IsControl) {
		return errors.New("its HEAD names no branch")
	}
	c.Branch = branch
	c.Default = slices.Contains(c.defaults(), branch)
	c.Commit, err = c.resolveRef(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no commit yet
	}
	return err
}

// Repository names the repository on this machine, in 32 hexadecimal
// characters that tell nothing of its path: work trees that are linked share
// it, clones do not, nor does a folder that says to be part of a repository which
// does not know of it.
func (c *Checkout) Repository() string {
	machine, err := firstLine("/etc/machine-id")
	if err != nil || machine == "" {
		machine, _ = os.Hostname() // without either all machines are one, and paths tell them apart
	}
	common, err := filepath.EvalSymlinks(c.common)
	if err != nil {
		common = c.common
	}
	if !c.known() {
		common += "\x00" + c.root
	}
	sum := sha256.Sum256([]byte("isle repository\x00" + machine + "\x00" + common))
	return hex.EncodeToString(sum[:16])
}

// known reports whether the repository says too that the work tree is one of its
// own: it is in it, or has its path in the folder of a linked work tree or in the
// configuration of a submodule.
func (c *Checkout) known() bool {
	at := filepath.Join(c.root, ".git")
	if st, err := os.Lstat(at); err == nil && st.IsDir() && c.gitdir == at && c.common == at {
		return true
	}
	same := func(path, other string) bool {
		path, err := filepath.EvalSymlinks(path)
		if err != nil {
			return false
		}
		other, err = filepath.EvalSymlinks(other)
		return err == nil && path == other
	}
	if c.common == c.gitdir {
		tree := c.config.get("core.worktree")
		return tree != "" && same(resolve(c.gitdir, tree), c.root)
	}
	line, err := firstLine(filepath.Join(c.gitdir, "gitdir"))
	return err == nil && line != "" && same(filepath.Dir(c.gitdir), filepath.Join(c.common, "worktrees")) && same(resolve(c.gitdir, line), at)
}

// Root is the folder of the work tree.
func (c *Checkout) Root() string { return c.root }

// isHash reports whether s is the name of an object of this repository.
func (c *Checkout) isHash(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == c.hashLen && strings.ToLower(s) == s
}

// resolve is a path as a file in dir names it.
func resolve(dir, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}

// maxSmall bounds, in bytes, the files that are a line or a few.
const maxSmall = 1 << 20

// errNotRegular is why a file is not opened that could wait or never end.
var errNotRegular = errors.New("it is no regular file")

// openFile opens a regular file, and nothing that never ends or waits for a
// writer.
func openFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, cause(err)
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, errNotRegular
	}
	return f, nil
}

// readFile reads a regular file of at most limit bytes.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := openFile(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, cause(err)
	}
	if int64(len(b)) > limit {
		return nil, errors.New(filepath.Base(name) + " is too large")
	}
	return b, nil
}

// firstLine is the first line of a small file, without white space around it.
func firstLine(name string) (string, error) {
	b, err := readFile(name, maxSmall)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line), nil
}

// cause is what a file operation failed for, without the path.
func cause(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
