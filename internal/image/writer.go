package image

import (
	"bufio"
	"context"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/erofs/go-erofs"

	"isle"
)

// Time is the modification time of everything in a layer, and the layer's own:
// 2020-01-01T00:00:00Z in format 1. It is not 0, which tar, make and Python's
// zip tools take for "unknown" or cannot write; and it is in the past, so that
// what a service writes is always newer.
var Time = time.Unix(1577836800, 0).UTC()

// OpaqueXattr marks a directory of a layer that hides the lower layers' one.
const OpaqueXattr = "trusted.overlay.opaque"

// Bounds of one layer, far above what real software has.
const (
	maxEntries = 4 << 20
	maxPath    = 4095 // PATH_MAX without its NUL
	maxName    = 255
)

// An Entry is one file of a layer.
type Entry struct {
	Path   string      // absolute and clean: "/usr/bin/python3"; "/" is the root directory
	Mode   fs.FileMode // type bits, permissions, setuid, setgid, sticky
	UID    uint32      // as seen inside
	GID    uint32
	Size   int64     // bytes, as read; Writer.Add takes what content gives
	Target string    // of a symbolic link
	Time   time.Time // of its last change; zero is the package's Time, which all that Isle makes has
	Device uint64    // 0, the whiteout's; no other device can be in a layer
	Xattrs map[string][]byte
}

// Whiteout is the mode of an entry that hides a lower layer's file: a character
// device 0:0, as overlayfs has it.
const Whiteout = fs.ModeDevice | fs.ModeCharDevice

// A Writer collects the entries of one layer. Its methods may be called from
// several goroutines. The layer's bytes depend on the last Entry of each path
// alone, never on the order of different paths.
//
// Extended attributes other than OpaqueXattr are dropped: file capabilities
// have no effect in a sandbox, where no_new_privs is set, and labels belong to
// one machine. Hard links are not kept: each name is a file of its own (Link).
type Writer struct {
	ctx context.Context

	mu     sync.Mutex
	err    error // the first failure; everything after it fails alike
	nodes  map[string]*node
	spool  *os.File // contents in the order of arrival, unlinked
	buffer *bufio.Writer
	offset int64
	room   room
}

// A node is one entry with the place of its content in the spool.
type node struct {
	entry    Entry
	offset   int64
	children map[string]*node // of a directory
}

func newWriter(ctx context.Context, tmp string) (*Writer, error) {
	spool, err := os.CreateTemp(tmp, "spool-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(spool.Name()); err != nil {
		spool.Close()
		return nil, err
	}
	root := &node{entry: Entry{Path: "/", Mode: fs.ModeDir | 0o755}, children: map[string]*node{}}
	return &Writer{ctx: ctx, nodes: map[string]*node{"/": root}, spool: spool, buffer: bufio.NewWriterSize(spool, 256<<10)}, nil
}

// Add puts an entry into the layer. Parents that were not added are made,
// 0755 and root's. A path that was added before is replaced; a directory that
// has entries can only be replaced by a directory, and keeps them. For a
// regular file content is called once, before Add returns, and closed; nil is
// an empty file.
func (w *Writer) Add(e Entry, content func() (io.ReadCloser, error)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	if err := w.add(e, content); err != nil {
		w.err = err
		return err
	}
	return nil
}

func (w *Writer) add(e Entry, content func() (io.ReadCloser, error)) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if err := e.check(); err != nil {
		return err
	}
	if opaque, ok := e.Xattrs[OpaqueXattr]; ok && e.Mode.IsDir() {
		e.Xattrs = map[string][]byte{OpaqueXattr: opaque}
	} else {
		e.Xattrs = nil
	}
	e.Size = 0
	n := &node{entry: e, offset: w.offset}
	if e.Mode.IsRegular() && content != nil {
		size, err := w.copyIn(e.Path, content)
		if err != nil {
			return err
		}
		n.entry.Size = size
	}
	return w.place(n)
}

// Entry is the entry that was added last for a path.
func (w *Writer) Entry(name string) (Entry, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.nodes[name]
	if n == nil {
		return Entry{}, false
	}
	return n.entry, true
}

// Link adds another file with the content, owner, mode and time of one that was
// added before.
func (w *Writer) Link(name, to string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	old := w.nodes[to]
	if old == nil || !old.entry.Mode.IsRegular() {
		return isle.Errorf(isle.Invalid, "%s cannot be linked to %s: there is no such file in the layer", name, to)
	}
	n := *old
	n.entry.Path = name
	if w.err = n.entry.check(); w.err == nil {
		w.err = w.place(&n)
	}
	return w.err
}

// Remove takes back a path and all below it, as if it had not been added. The
// root stays.
func (w *Writer) Remove(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.nodes[name]
	if n == nil || name == "/" {
		return
	}
	if parent := w.nodes[path.Dir(name)]; parent != nil {
		delete(parent.children, path.Base(name))
	}
	todo := []*node{n}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		delete(w.nodes, n.entry.Path)
		for _, c := range n.children {
			todo = append(todo, c)
		}
	}
}

// copyIn appends one file's content to the spool.
func (w *Writer) copyIn(name string, content func() (io.ReadCloser, error)) (int64, error) {
	r, err := content()
	if err != nil {
		return 0, err
	}
	size, err := io.Copy(w.buffer, roomReader{&w.room, contextReader{w.ctx, r}})
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	w.offset += size
	if err != nil {
		return 0, storeError("write "+name+" into a layer", err)
	}
	return size, nil
}

// place hangs a node into the tree.
func (w *Writer) place(n *node) error {
	name := n.entry.Path
	old := w.nodes[name]
	if n.entry.Mode.IsDir() {
		n.children = map[string]*node{}
		if old != nil && old.entry.Mode.IsDir() {
			n.children = old.children
		}
	} else if old != nil && len(old.children) > 0 {
		return isle.Errorf(isle.Invalid, "%s is a directory with entries and cannot become a %s in the same layer", name, kindOf(n.entry.Mode))
	}
	w.nodes[name] = n
	if name == "/" {
		return nil
	}
	if len(w.nodes) > maxEntries {
		return isle.Errorf(isle.Exhausted, "a layer has more than %d files", maxEntries)
	}
	dir := path.Dir(name)
	parent := w.nodes[dir]
	if parent == nil {
		parent = &node{entry: Entry{Path: dir, Mode: fs.ModeDir | 0o755}}
		if err := w.place(parent); err != nil {
			return err
		}
	}
	if !parent.entry.Mode.IsDir() {
		return isle.Errorf(isle.Invalid, "%s cannot be added: %s is a %s", name, dir, kindOf(parent.entry.Mode))
	}
	parent.children[path.Base(name)] = n
	return nil
}

// latest is the last time that an entry can have, in Unix seconds: what comes
// after it is no time of four digits a year.
const latest = 253402300799

// changed is the entry's time as a layer can have it: not before 1970.
func (e Entry) changed() time.Time {
	switch {
	case e.Time.IsZero():
		return Time
	case e.Time.Unix() < 0:
		return time.Unix(0, 0).UTC()
	case e.Time.Unix() > latest:
		return time.Unix(latest, 0).UTC()
	}
	return e.Time
}

// check reports what cannot be in a layer.
func (e Entry) check() error {
	bad := func(format string, args ...any) error {
		return isle.Errorf(isle.Invalid, "layer entry %q: "+format, append([]any{e.Path}, args...)...)
	}
	if len(e.Path) > maxPath || !path.IsAbs(e.Path) || path.Clean(e.Path) != e.Path || strings.ContainsRune(e.Path, 0) {
		return bad("want an absolute, clean path of at most %d bytes", maxPath)
	}
	for part := range strings.SplitSeq(e.Path, "/") {
		if len(part) > maxName {
			return bad("a name has more than %d bytes", maxName)
		}
	}
	if e.Path == "/" && !e.Mode.IsDir() {
		return bad("the root is a directory")
	}
	switch e.Mode.Type() {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		if e.Target == "" || len(e.Target) >= maxPath || strings.ContainsRune(e.Target, 0) {
			return bad("want a link target of 1 to %d bytes", maxPath-1)
		}
	case Whiteout:
		if e.Device != 0 {
			return bad("only the whiteout 0:0 can be in a layer, no other device")
		}
	default:
		return bad("a %s cannot be in a layer", kindOf(e.Mode))
	}
	return nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsRegular():
		return "file"
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	case m.Type() == Whiteout:
		return "whiteout"
	case m&fs.ModeDevice != 0:
		return "device"
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	}
	return "special file"
}

// finish serializes the tree. Contents are laid out in the order of the sorted
// tree, whatever order they came in.
func (w *Writer) finish(out io.WriteSeeker) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	if err := w.buffer.Flush(); err != nil {
		return err
	}
	if w.offset > w.room.reserve/4 { // the layer is as large as the spool, which goes after it
		if err := w.room.left(w.offset); err != nil {
			return err
		}
	}
	b := &bufferedSeeker{out: out, w: bufio.NewWriterSize(out, 1<<20)}
	ew := erofs.Create(b, erofs.WithBuildTime(uint64(Time.Unix()), 0), erofs.WithBlockSize(4096))
	if err := ew.CopyFrom(&tree{writer: w}); err != nil {
		return err
	}
	if err := ew.Close(); err != nil {
		return err
	}
	return b.w.Flush()
}

// WriteLayer makes a layer out of what fill adds: the same entries give the
// same bytes, on any machine. The layer is in the store, whole and synced, when
// WriteLayer returns; on any error, and when ctx ends, nothing of it is.
// Memory is bounded by the number of files and the size of the small ones
// (below 4 KiB, which EROFS keeps with the metadata); contents go through disk.
func (s *Store) WriteLayer(ctx context.Context, kind, title string, fill func(w *Writer) error) (Layer, error) {
	w, err := newWriter(ctx, s.dir+"/tmp")
	if err != nil {
		return Layer{}, storeError("write a layer", err)
	}
	defer w.spool.Close()
	w.room = s.room()
	if err := fill(w); err != nil {
		return Layer{}, err
	}
	out, err := s.newDraft()
	if err != nil {
		return Layer{}, err
	}
	defer out.discard()
	if err := w.finish(out.file); err != nil {
		if ctx.Err() != nil {
			return Layer{}, ctx.Err()
		}
		return Layer{}, storeError("write a layer", err)
	}
	d, err := digestFile(out.file)
	if err != nil {
		return Layer{}, storeError("hash a layer", err)
	}
	size, err := out.file.Seek(0, io.SeekEnd)
	if err != nil {
		return Layer{}, storeError("hash a layer", err)
	}
	if err := ctx.Err(); err != nil {
		return Layer{}, err
	}
	l := Layer{Digest: d, Size: size, Kind: kind, Title: title}
	if s.HasLayer(d) && s.verifyLayer(l) == nil {
		return l, nil
	}
	if err := out.publish(s.LayerPath(d)); err != nil {
		return Layer{}, storeError("store layer "+d.Short(), err)
	}
	if err := s.remember(s.LayerPath(d)); err != nil {
		return Layer{}, err
	}
	s.persist(s.LayerPath(d), d)
	return l, nil
}

// A tree shows a Writer's nodes as the file system that go-erofs copies from.
type tree struct{ writer *Writer }

func (t *tree) node(op, name string) (*node, error) {
	n := t.writer.nodes[path.Clean("/"+name)]
	if n == nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	return n, nil
}

func (t *tree) Open(name string) (fs.File, error) {
	n, err := t.node("open", name)
	if err != nil {
		return nil, err
	}
	r := contextReader{t.writer.ctx, io.NewSectionReader(t.writer.spool, n.offset, n.entry.Size)}
	return &treeFile{contextReader: r, node: n}, nil
}

func (t *tree) Stat(name string) (fs.FileInfo, error) {
	n, err := t.node("stat", name)
	if err != nil {
		return nil, err
	}
	return treeInfo{n}, nil
}

func (t *tree) Lstat(name string) (fs.FileInfo, error) { return t.Stat(name) }

func (t *tree) ReadLink(name string) (string, error) {
	n, err := t.node("readlink", name)
	if err != nil {
		return "", err
	}
	return n.entry.Target, nil
}

func (t *tree) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := t.node("readdir", name)
	if err != nil {
		return nil, err
	}
	entries := make([]fs.DirEntry, 0, len(n.children))
	for _, name := range sortedKeys(n.children) {
		entries = append(entries, fs.FileInfoToDirEntry(treeInfo{n.children[name]}))
	}
	return entries, nil
}

type treeFile struct {
	contextReader
	node *node
}

func (f *treeFile) Stat() (fs.FileInfo, error) { return treeInfo{f.node}, nil }
func (f *treeFile) Close() error               { return nil }

type treeInfo struct{ node *node }

func (i treeInfo) Name() string       { return path.Base(i.node.entry.Path) }
func (i treeInfo) Size() int64        { return i.node.entry.Size }
func (i treeInfo) Mode() fs.FileMode  { return i.node.entry.Mode }
func (i treeInfo) ModTime() time.Time { return i.node.entry.changed() }
func (i treeInfo) IsDir() bool        { return i.node.entry.Mode.IsDir() }

// Sys hands go-erofs what fs.FileInfo cannot say.
func (i treeInfo) Sys() any {
	e := i.node.entry
	changed := e.changed()
	st := &erofs.Stat{Mode: e.Mode, Size: e.Size, UID: e.UID, GID: e.GID, Mtime: uint64(changed.Unix()), MtimeNs: uint32(changed.Nanosecond()), Nlink: 1}
	if e.Mode.IsDir() {
		st.Nlink = 2
		for _, c := range i.node.children {
			if c.entry.Mode.IsDir() {
				st.Nlink++
			}
		}
	}
	if len(e.Xattrs) > 0 {
		st.Xattrs = make(map[string]string, len(e.Xattrs))
		for k, v := range maps.All(e.Xattrs) {
			st.Xattrs[k] = string(v)
		}
	}
	return st
}

// A bufferedSeeker gathers small writes; it seeks only between them.
type bufferedSeeker struct {
	out io.WriteSeeker
	w   *bufio.Writer
}

func (b *bufferedSeeker) Write(p []byte) (int, error) { return b.w.Write(p) }

func (b *bufferedSeeker) Seek(offset int64, whence int) (int64, error) {
	if err := b.w.Flush(); err != nil {
		return 0, err
	}
	return b.out.Seek(offset, whence)
}
