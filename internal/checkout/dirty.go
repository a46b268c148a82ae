package checkout

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// maxModules is how deep repositories stand in each other that are looked at.
const maxModules = 8

// Dirty reports whether the files of the folder that was found, and below it,
// are others than the commit's: changed, staged, missing, or there and neither
// in the commit nor ignored. Until the first commit they are. It fails where
// that cannot be told, or not before ctx ends.
//
// A file is compared by what git noted of it and, where that differs, by its
// content as it is: one that a filter or a conversion of line ends stands
// between counts as changed until git has looked again.
func (c *Checkout) Dirty(ctx context.Context) (bool, error) {
	return c.dirty(ctx, 0)
}

func (c *Checkout) dirty(ctx context.Context, depth int) (bool, error) {
	if c.Commit == "" {
		return true, nil
	}
	prefix := ""
	if c.folder != "" {
		prefix = filepath.ToSlash(c.folder) + "/"
	}
	s := &scan{c: c, ctx: ctx, depth: depth, prefix: prefix}
	if err := s.readIndex(); err != nil {
		return false, err
	}
	for _, look := range []func() (bool, error){s.staged, s.changed, s.untracked} {
		if dirty, err := look(); dirty || err != nil {
			return dirty, err
		}
	}
	return false, nil
}

// A scan is one look at a work tree.
type scan struct {
	c       *Checkout
	ctx     context.Context // a scan lives as long as the call that makes it
	depth   int
	prefix  string // of the paths that are looked at: "" or ends in a slash
	entries []entry
	written time.Time // when the index was
	steps   int
}

// step fails when the time is over; it is called for each file.
func (s *scan) step() error {
	if s.steps++; s.steps%256 == 0 {
		return s.ctx.Err()
	}
	return nil
}

func (s *scan) readIndex() error {
	f, err := openFile(filepath.Join(s.c.gitdir, "index"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing is tracked
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return cause(err)
	}
	if st.Size() > maxIndex {
		return errors.New("the index is too large")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxIndex))
	if err != nil {
		return cause(err)
	}
	s.written = st.ModTime()
	s.entries, err = parseIndex(b, s.c.hashLen, s.prefix)
	return err
}

// staged reports whether the index is other than the commit.
func (s *scan) staged() (bool, error) {
	for _, e := range s.entries {
		if e.stage != 0 || e.intent {
			return true, nil
		}
	}
	o := s.c.newObjects()
	defer o.close()
	root, err := o.treeOf(s.c.Commit)
	if err != nil {
		return false, err
	}
	tree, ok, err := o.subtree(root, strings.TrimSuffix(s.prefix, "/"))
	if err != nil || !ok {
		return len(s.entries) > 0, err
	}
	same, err := s.same(o, tree, s.entries, len(s.prefix), 0)
	return !same, err
}

// same reports whether a tree of the commit holds what entries say, which are
// below the folder whose path has from bytes.
func (s *scan) same(o *objects, tree string, entries []entry, from, depth int) (bool, error) {
	if err := s.ctx.Err(); err != nil { // each takes its time
		return false, err
	}
	nodes := s.nodes(entries, from, depth)
	if len(nodes) > 0 && s.hashTree(nodes) == tree {
		return true, nil
	}
	// Trees that git once wrote differ in the modes of files, hence each by each.
	have, err := o.readTree(tree)
	if err != nil || len(have) != len(nodes) || depth > maxDepth {
		return false, err
	}
	at := 0
	for i, n := range nodes {
		h := have[i]
		if h.name != n.name || canonical(h.mode) != canonical(n.mode) {
			return false, nil
		}
		if h.id != n.id {
			if n.mode&modeType != modeDir || n.count == 0 {
				return false, nil
			}
			if same, err := s.same(o, h.id, entries[at:at+n.count], from+len(n.name)+1, depth+1); !same || err != nil {
				return false, err
			}
		}
		at += max(n.count, 1)
	}
	return true, nil
}

// maxDepth bounds how deep folders are looked at.
const maxDepth = 256

// canonical is a mode as git writes it today.
func canonical(mode uint32) uint32 {
	if mode&modeType != modeFile {
		return mode & modeType
	}
	return modeFile | mode&modeExecute
}

// A folder is a node with the number of entries that are below it; 0 for a file,
// and a folder of which the index has the hash alone.
type folder struct {
	node
	count int
}

// nodes are what the tree of entries holds: they are in a tree's order.
func (s *scan) nodes(entries []entry, from, depth int) (out []folder) {
	for i := 0; i < len(entries); {
		e := entries[i]
		name, below, nested := strings.Cut(e.path[from:], "/")
		if !nested || below == "" {
			out = append(out, folder{node: node{e.mode, name, e.id}})
			i++
			continue
		}
		head := e.path[:from+len(name)+1]
		n := i
		for n < len(entries) && strings.HasPrefix(entries[n].path, head) {
			n++
		}
		f := folder{node: node{modeDir, name, ""}, count: n - i}
		if depth < maxDepth {
			f.id = s.hashTree(s.nodes(entries[i:n], len(head), depth+1))
		}
		out = append(out, f)
		i = n
	}
	return out
}

// hashTree is the hash of the tree that holds nodes.
func (s *scan) hashTree(nodes []folder) string {
	var b bytes.Buffer
	for _, n := range nodes {
		b.WriteString(strconv.FormatUint(uint64(n.mode), 8))
		b.WriteByte(' ')
		b.WriteString(n.name)
		b.WriteByte(0)
		b.WriteString(n.id)
	}
	return hashObject(s.c.hashLen, "tree", b.Bytes())
}

// changed reports whether a file is other than the index says.
func (s *scan) changed() (bool, error) {
	for _, e := range s.entries {
		if e.valid || e.skip || e.mode&modeType == modeDir {
			continue
		}
		if err := s.step(); err != nil {
			return false, err
		}
		if other, err := s.differs(e); other || err != nil {
			return other, err
		}
	}
	return false, nil
}

// differs compares one file with what the index says of it.
func (s *scan) differs(e entry) (bool, error) {
	name := filepath.Join(s.c.root, filepath.FromSlash(e.path))
	st, err := os.Lstat(name)
	if notThere(err) {
		return true, nil
	}
	if err != nil {
		return false, cause(err)
	}
	executable := s.c.config.off("core.filemode") || (e.mode&modeExecute != 0) == (st.Mode()&0o100 != 0)
	switch {
	case e.mode&modeType == modeModule:
		if !st.IsDir() {
			return true, nil
		}
		return s.module(name, e)
	case e.mode&modeType == modeLink && st.Mode().Type() == fs.ModeSymlink:
	case e.mode&modeType == modeFile && st.Mode().IsRegular() && executable:
	default:
		return true, nil
	}
	if s.asNoted(e, st) {
		return false, nil
	}
	id, err := s.hashFile(name, st)
	return id != e.id, err
}

// asNoted reports whether a file is what git saw when it last looked. What was
// written in the second of the index, or later, may have been changed since
// without that its times show it.
func (s *scan) asNoted(e entry, st fs.FileInfo) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || int64(e.mtime.seconds) >= s.written.Unix() {
		return false
	}
	return e.mtime.is(st.ModTime()) && e.ctime.is(time.Unix(sys.Ctim.Unix())) && e.size == uint32(st.Size()) &&
		e.inode == uint32(sys.Ino) && e.uid == sys.Uid && e.gid == sys.Gid
}

// hashFile is what git would call the content of a file.
func (s *scan) hashFile(name string, st fs.FileInfo) (string, error) {
	h := newHash(s.c.hashLen)
	if st.Mode().Type() == fs.ModeSymlink {
		target, err := os.Readlink(name)
		if err != nil {
			return "", cause(err)
		}
		return hashObject(s.c.hashLen, "blob", []byte(target)), nil
	}
	f, err := openFile(name)
	if notThere(err) {
		return "", nil // as nothing that was committed
	}
	if err != nil {
		return "", fmt.Errorf("cannot read %s: %w", name, err)
	}
	defer f.Close()
	fmt.Fprintf(h, "blob %d\x00", st.Size())
	left := st.Size()
	for buf := make([]byte, min(left+1, 1<<20)); ; {
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if left -= int64(n); left < 0 {
			return "", nil // it grows meanwhile
		}
		if errors.Is(err, io.EOF) {
			return string(h.Sum(nil)), nil
		}
		if err == nil {
			err = s.ctx.Err()
		}
		if err != nil {
			return "", cause(err)
		}
	}
}

// module compares a submodule with the commit that the index names; one that
// was not fetched is as it should be.
func (s *scan) module(dir string, e entry) (bool, error) {
	if _, err := os.Lstat(filepath.Join(dir, ".git")); notThere(err) {
		return false, nil
	}
	if s.depth >= maxModules {
		return false, errors.New("repositories stand in each other too deep")
	}
	c, err := open(dir)
	if err != nil {
		return false, fmt.Errorf("cannot read the submodule %s: %w", dir, err)
	}
	if c.Commit != hex.EncodeToString([]byte(e.id)) {
		return true, nil
	}
	return c.dirty(s.ctx, s.depth+1)
}
