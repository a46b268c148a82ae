package checkout

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"isle"
)

// Where references are, below the repository's folder.
const (
	branches = "refs/heads/"
	remotes  = "refs/remotes/"
)

const (
	maxPacked  = 512 << 20 // bytes of packed-refs, which is read line by line
	maxRefHops = 5         // references that name references
	maxRefName = 1024      // bytes
)

// validRef reports whether name can be a path below the repository's folder
// (git-check-ref-format(1), as far as it matters here).
func validRef(name string) bool {
	if len(name) > maxRefName || strings.ContainsAny(name, "\x00\\ ~^:?*[\x7f") || strings.HasSuffix(name, ".lock") {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part[0] == '.' {
			return false
		}
	}
	return true
}

// resolveRef is the commit that a reference names; fs.ErrNotExist if there is
// no such reference.
func (c *Checkout) resolveRef(name string) (string, error) {
	for range maxRefHops {
		if !validRef(name) {
			return "", errors.New("a reference has a name that is none")
		}
		line, err := firstLine(filepath.Join(c.common, name))
		if notThere(err) {
			// Looked at after the loose one: git writes here before it removes there.
			return c.packedRef(name)
		}
		if err != nil {
			return "", err
		}
		next, symbolic := strings.CutPrefix(line, "ref: ")
		if !symbolic {
			if !c.isHash(line) {
				return "", errors.New(name + " names no commit")
			}
			return line, nil
		}
		name = next
	}
	return "", errors.New("references name each other")
}

// notThere reports whether a file is not there: refs/heads/a/b is not where
// refs/heads/a is a file, or refs/heads/a is a folder.
func notThere(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, errNotRegular)
}

// packedRef finds a reference in packed-refs.
func (c *Checkout) packedRef(name string) (hash string, err error) {
	err = c.eachPacked(context.Background(), func(ref, h string) bool {
		if ref == name {
			hash = h
		}
		return hash == ""
	})
	if err == nil && hash == "" {
		err = fs.ErrNotExist
	}
	return hash, err
}

// eachPacked calls f for the references of packed-refs until it returns false.
func (c *Checkout) eachPacked(ctx context.Context, f func(name, hash string) bool) error {
	file, err := openFile(filepath.Join(c.common, "packed-refs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(io.LimitReader(file, maxPacked))
	for n := 0; lines.Scan(); n++ {
		if n%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		line := lines.Text()
		if line == "" || line[0] == '#' || line[0] == '^' {
			continue
		}
		hash, name, ok := strings.Cut(line, " ")
		if !ok || !c.isHash(hash) {
			return errors.New("packed-refs holds a line that is no reference")
		}
		if !f(name, hash) {
			return nil
		}
	}
	return lines.Err()
}

// Gone returns those of the branches that the repository has no more: neither
// as its own, nor as one that it last saw at a remote, nor as one that a work
// tree has checked out and no commit yet. It fails rather than to call gone
// what it could not see.
func (c *Checkout) Gone(ctx context.Context, names []string) ([]string, error) {
	there, err := c.heads()
	if err != nil {
		return nil, c.unreadable(err)
	}
	var gone []string
	for _, name := range names {
		loose, err := c.looseBranch(name)
		if err != nil {
			return nil, c.unreadable(err)
		}
		if !there[name] && !loose && !slices.Contains(gone, name) {
			gone = append(gone, name)
		}
	}
	if len(gone) == 0 {
		return nil, nil
	}
	// One that is packed meanwhile is here before it is gone from there.
	err = c.eachPacked(ctx, func(ref, _ string) bool {
		gone = slices.DeleteFunc(gone, func(name string) bool { return ref == branches+name || isRemote(ref, name) })
		return len(gone) > 0
	})
	if err != nil {
		return nil, c.unreadable(err)
	}
	return gone, nil
}

func (c *Checkout) unreadable(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return isle.Errorf(isle.Unavailable, "cannot read which branches %s has: %w", c.root, err)
}

// isRemote reports whether ref is a remote's branch of the name. Remotes may
// have slashes in their names: what could be it counts.
func isRemote(ref, name string) bool {
	rest, ok := strings.CutPrefix(ref, remotes)
	return ok && strings.HasSuffix(rest, "/"+name)
}

// heads are the branches that the repository's work trees have checked out.
func (c *Checkout) heads() (map[string]bool, error) {
	files := []string{filepath.Join(c.gitdir, "HEAD"), filepath.Join(c.common, "HEAD")}
	linked, err := os.ReadDir(filepath.Join(c.common, "worktrees"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, cause(err)
	}
	for _, l := range linked {
		files = append(files, filepath.Join(c.common, "worktrees", l.Name(), "HEAD"))
	}
	out := map[string]bool{}
	for _, name := range files {
		line, err := firstLine(name)
		if notThere(err) {
			continue // a work tree that is being removed
		}
		if err != nil {
			return nil, err
		}
		if branch, ok := strings.CutPrefix(line, "ref: "+branches); ok {
			out[branch] = true
		}
	}
	return out, nil
}

// looseBranch reports whether a branch has a file of its own, here or as a
// remote's.
func (c *Checkout) looseBranch(name string) (bool, error) {
	if !validRef(branches + name) {
		return false, nil // no branch can be called so
	}
	is, err := regular(filepath.Join(c.common, branches+name))
	if is || err != nil {
		return is, err
	}
	return c.looseRemote(filepath.Join(c.common, remotes), name, 0)
}

// maxRemoteDepth is how many slashes a remote's name has at most.
const maxRemoteDepth = 8

// looseRemote looks for name in the folders below dir, each of which may be a
// remote's or the beginning of its name.
func (c *Checkout) looseRemote(dir, name string, depth int) (bool, error) {
	entries, err := os.ReadDir(dir)
	if notThere(err) || depth > maxRemoteDepth {
		return false, nil
	}
	if err != nil {
		return false, cause(err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		below := filepath.Join(dir, e.Name())
		if is, err := regular(filepath.Join(below, name)); is || err != nil {
			return is, err
		}
		if is, err := c.looseRemote(below, name, depth+1); is || err != nil {
			return is, err
		}
	}
	return false, nil
}

// regular reports whether name is a file.
func regular(name string) (bool, error) {
	st, err := os.Stat(name)
	if notThere(err) {
		return false, nil
	}
	if err != nil {
		return false, cause(err)
	}
	return st.Mode().IsRegular(), nil
}
