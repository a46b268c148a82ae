package ext4

import (
	"context"
	"encoding/binary"
	"io/fs"
	"slices"
	"strings"
	"time"
)

// An Entry is one name in an image.
type Entry struct {
	Path  string // relative to where the walk began, slash-separated; "" is that folder
	Inode uint32 // names of one file have the same
	Links int    // names that it says to have; one that says 1 is a file of its own wherever it is met
	// Mode has the type, the permissions and the bits for setuid, setgid and
	// sticky.
	Mode     fs.FileMode
	UID, GID uint32
	Size     int64 // of a file
	ModTime  time.Time
	Target   string            // of a symbolic link
	Xattrs   map[string]string // those that are users'
	LeftOut  int               // attributes that are others'

	inode *inode
}

// A Visit is what a walk calls with each entry, folders before what is in them.
// data gives the content of a file, once at most: its pieces in their order,
// holes left out, each its callee's until it returns. It is nil for a name of a
// file that was met before, and for what is no file.
type Visit func(e Entry, data func(each func(at int64, b []byte) error) error) error

// Walk visits everything below a folder of the root, that folder first, by names
// in their order (bytewise). It fails with Invalid for what it does not take.
func (m *Image) Walk(ctx context.Context, folder string, visit Visit) error {
	const root = 2
	w := &walker{
		m: m, ctx: ctx, visit: visit, folders: map[uint32]bool{root: true}, linked: map[uint32]bool{},
		left: budget{blocks: m.blocks, bytes: 4*m.size + slack, entries: maxEntries, memory: m.memory},
	}
	top, err := m.inode(root)
	if err != nil {
		return err
	}
	names, err := w.list(top)
	if err != nil {
		return err
	}
	i, ok := slices.BinarySearchFunc(names, folder, func(n name, s string) int { return strings.Compare(n.name, s) })
	if !ok {
		return broken("it has no folder %s", folder)
	}
	return w.enter("", names[i].inode)
}

type walker struct {
	m       *Image
	ctx     context.Context
	visit   Visit
	folders map[uint32]bool // met so far
	linked  map[uint32]bool // met so far: those that have several names
	left    budget
}

// remember notes that so many bytes of names are kept; who visits keeps as much.
func (w *walker) remember(n int) error {
	if w.left.memory -= int64(n) + nameCost; w.left.memory < 0 {
		return broken("it has more names than can be looked at in %d MiB of memory", maxMemory>>20)
	}
	return nil
}

// forget notes that the names of a folder are kept no more.
func (w *walker) forget(names []name) {
	for _, n := range names {
		w.left.memory += int64(len(n.name)) + nameCost
	}
}

// enter visits one name, and what is below it.
func (w *walker) enter(path string, number uint32) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	i, err := w.m.inode(number)
	if err != nil {
		return err
	}
	e := Entry{Path: path, Inode: number, Links: int(i.links), UID: i.uid, GID: i.gid, ModTime: time.Unix(i.mtime, int64(i.nanos)).UTC(), inode: i}
	if e.Xattrs, e.LeftOut, err = w.m.xattrs(i); err != nil {
		return err
	}
	e.Mode = fs.FileMode(i.mode & 0o777)
	for bit, mode := range map[uint16]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if i.mode&bit != 0 {
			e.Mode |= mode
		}
	}
	if path == "" && i.kind() != typeDir {
		return broken("what should be a folder is none")
	}
	again := false
	if i.kind() != typeDir && i.links > 1 {
		if again = w.linked[number]; !again {
			w.linked[number] = true
			if err := w.remember(len(path)); err != nil {
				return err
			}
		}
	}
	switch i.kind() {
	case typeDir:
		return w.folder(e)
	case typeFile:
		return w.file(e, again)
	case typeLink:
		e.Mode |= fs.ModeSymlink
		if e.Target, err = w.target(i); err != nil {
			return err
		}
	case typeFIFO:
		e.Mode |= fs.ModeNamedPipe
	case typeSocket:
		e.Mode |= fs.ModeSocket
	case typeChar:
		e.Mode |= fs.ModeDevice | fs.ModeCharDevice
	case typeBlock:
		e.Mode |= fs.ModeDevice
	default:
		return broken("inode %d is of the type %#x", number, i.kind())
	}
	return w.visit(e, nil)
}

func (w *walker) folder(e Entry) error {
	if w.folders[e.Inode] {
		return broken("a folder is in two places")
	}
	w.folders[e.Inode] = true
	if err := w.remember(0); err != nil {
		return err
	}
	e.Mode |= fs.ModeDir
	if err := w.visit(e, nil); err != nil {
		return err
	}
	names, err := w.list(e.inode)
	if err != nil {
		return err
	}
	defer w.forget(names)
	for _, n := range names {
		path := n.name
		if e.Path != "" {
			path = e.Path + "/" + n.name
		}
		if len(path) > maxPath {
			return broken("a path in it has more than %d bytes", maxPath)
		}
		if err := w.enter(path, n.inode); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) file(e Entry, again bool) error {
	e.Size = e.inode.size
	if again {
		return w.visit(e, nil)
	}
	if w.left.bytes -= e.Size; w.left.bytes < 0 {
		return broken("its files say to be far larger than it is")
	}
	return w.visit(e, func(each func(at int64, b []byte) error) error {
		return w.m.data(w.ctx, e.inode, &w.left, each)
	})
}

// target is where a symbolic link leads: a short one has that in its inode.
func (w *walker) target(i *inode) (string, error) {
	if i.size == 0 || i.size > maxTarget {
		return "", broken("a symbolic link has %d bytes", i.size)
	}
	var b []byte
	if i.flags&flagExtents == 0 {
		if i.size >= int64(len(i.block)) {
			return "", broken("a symbolic link of %d bytes has no extents", i.size)
		}
		b = i.block[:i.size]
	} else {
		b = make([]byte, i.size)
		if err := w.m.data(w.ctx, i, &w.left, func(at int64, piece []byte) error { copy(b[at:], piece); return nil }); err != nil {
			return "", err
		}
	}
	if slices.Contains(b, 0) {
		return "", broken("a symbolic link leads nowhere")
	}
	return string(b), nil
}

// A name is one entry of a folder.
type name struct {
	name  string
	inode uint32
}

// list reads a folder: its names in their order, without "." and "..". The index
// that large ones have lies in entries that are of nothing.
func (w *walker) list(i *inode) (names []name, err error) {
	if i.kind() != typeDir {
		return nil, broken("inode %d is no folder", i.number)
	}
	size := w.m.blockSize
	err = w.m.data(w.ctx, i, &w.left, func(_ int64, b []byte) error {
		for ; len(b) > 0; b = b[size:] {
			if int64(len(b)) < size {
				return broken("the folder %d ends within a block", i.number)
			}
			if names, err = w.block(b[:size], names); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(names, func(a, b name) int { return strings.Compare(a.name, b.name) })
	for n := 1; n < len(names); n++ {
		if names[n].name == names[n-1].name {
			return nil, broken("a folder has one name twice")
		}
	}
	return names, nil
}

// block reads one block of a folder.
func (w *walker) block(b []byte, names []name) ([]name, error) {
	for len(b) > 0 {
		if len(b) < 8 {
			return nil, broken("a folder's entry is cut off")
		}
		inode, length, n := binary.LittleEndian.Uint32(b), int(binary.LittleEndian.Uint16(b[4:])), int(b[6])
		if length < 8 || length%4 != 0 || length > len(b) || n > length-8 {
			return nil, broken("a folder's entry has %d bytes", length)
		}
		if s := string(b[8 : 8+n]); inode != 0 && s != "." && s != ".." {
			if !validName(s) {
				return nil, broken("%q is no name", s)
			}
			if w.left.entries--; w.left.entries < 0 || len(names) >= maxEntriesDir {
				return nil, broken("it has more entries than %d, or %d in one folder", maxEntries, maxEntriesDir)
			}
			if err := w.remember(len(s)); err != nil {
				return nil, err
			}
			names = append(names, name{s, inode})
		}
		b = b[length:]
	}
	return names, nil
}

// validName reports whether s can be one part of a path.
func validName(s string) bool {
	return s != "" && len(s) <= maxNameLen && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00")
}
