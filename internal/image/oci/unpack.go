package oci

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"isle"
	"isle/internal/image"
)

// bounds are those of one layer. Memory grows with the files and their names
// alone: contents go through disk.
type bounds struct {
	files int   // entries of the tar file
	names int64 // bytes of names and link targets
	bytes int64 // of contents, those of every hard link and hole too
	ratio int64 // how many bytes may come of one, once there are more than plain
	plain int64 // so many bytes may come of however few
	steps int64 // directories that are looked at in lower layers
}

// layerBounds are the bounds of every layer.
func layerBounds() bounds {
	return bounds{files: 1 << 20, names: 128 << 20, bytes: 32 << 30, ratio: 200, plain: 1 << 30, steps: 1 << 31}
}

// maxDepth is how deep directories nest. Real software has some dozens, and what
// looks a path up takes time by its square.
const maxDepth = 128

// maxOwner is the highest uid and gid inside: an environment has 65,536 of each.
const maxOwner = 1<<16 - 1

// Names that mean something in a layer (OCI image specification, layer.md).
const (
	whiteout       = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutAUFS   = ".wh..wh." // of a file system of old, which put its own things there
)

// An unpacker turns the entries of a tar file into those of a layer. It does
// what unpacking on top of the lower layers would, without a file system: names
// are followed through the symbolic links of this and the lower layers, and never
// out of the image's root.
type unpacker struct {
	w      *image.Writer
	below  *image.Stack // nil below the lowest layer
	bounds bounds
	came   func() int64 // compressed bytes read so far

	files int
	names int64
	bytes int64
	steps int64
	// hidden are paths whose lower files are not in this layer's view: gone by a
	// whiteout, or replaced by something that was replaced again.
	hidden map[string]bool
	opaque map[string]bool // directories whose lower content is gone
	left   []string        // what was left out, for people; at most maxLeft
	leftN  int

	dir, real string // the directory that was resolved last

	// Of ADD, where nothing hides anything: the folder that all goes below, and
	// what changes an entry, which may be nil.
	at     string // "" of a layer
	change func(*tar.Header)
}

// maxLeft is how many things that were left out are named.
const maxLeft = 20

func newUnpacker(w *image.Writer, below *image.Stack, b bounds, came func() int64) *unpacker {
	return &unpacker{w: w, below: below, bounds: b, came: came, hidden: map[string]bool{}, opaque: map[string]bool{}}
}

// unpack reads a tar file to its end.
func (u *unpacker) unpack(ctx context.Context, r io.Reader) error {
	if err := u.begin(); err != nil {
		return err
	}
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return u.finish()
		}
		if err != nil {
			return tarError(err)
		}
		if err := u.count(h); err != nil {
			return err
		}
		if err := u.entry(h, tr); err != nil {
			var known *isle.Error
			if !errors.As(err, &known) {
				err = tarError(err)
			}
			return prefix(clip(h.Name), err)
		}
	}
}

// tarError says that an archive cannot be read, unless the error says more.
func tarError(err error) error {
	var known *isle.Error
	if errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return isle.Errorf(isle.Invalid, "the archive cannot be read: %w", err)
}

func (u *unpacker) count(h *tar.Header) error {
	u.files++
	u.names += int64(len(h.Name) + len(h.Linkname))
	switch {
	case u.files > u.bounds.files:
		return isle.Errorf(isle.Exhausted, "the layer has more than %d files", u.bounds.files)
	case u.names > u.bounds.names:
		return isle.Errorf(isle.Exhausted, "the names in the layer have more than %d MiB", u.bounds.names>>20)
	}
	return nil
}

// spend counts bytes of content.
func (u *unpacker) spend(n int64) error {
	u.bytes += n
	switch {
	case n < 0 || u.bytes < 0 || u.bytes > u.bounds.bytes:
		return isle.Errorf(isle.Exhausted, "the layer unpacks to more than %d GiB", u.bounds.bytes>>30)
	case u.bytes > u.bounds.plain && u.bytes/u.bounds.ratio > u.came():
		return isle.Errorf(isle.Exhausted, "the layer unpacks to more than %d MiB, over %d times what it came as", u.bytes>>20, u.bounds.ratio).
			WithHint("it is made to fill a disk; if it is not, pack it without so large and empty files")
	}
	return nil
}

// entry adds what one header says.
func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse, tar.TypeLink, tar.TypeSymlink, tar.TypeDir, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	default:
		return isle.Errorf(isle.Invalid, "an entry of type %q is no file of a layer", h.Typeflag)
	}
	name, err := inside(h.Name)
	if err != nil {
		return err
	}
	if name == "/" {
		if h.Typeflag != tar.TypeDir {
			return isle.Errorf(isle.Invalid, "the root of an image is a directory")
		}
		if u.at != "" { // the folder stays as it is
			return nil
		}
		return u.add("/", h, nil)
	}
	name = path.Join("/", u.at, name)
	if u.change != nil {
		u.change(h)
	}
	dir, err := u.resolve(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	if u.at == "" && strings.HasPrefix(base, whiteout) {
		return u.white(dir, base)
	}
	at := path.Join(dir, base)
	if old, ok := u.w.Entry(at); ok && !(old.Mode.IsDir() && h.Typeflag == tar.TypeDir) {
		u.w.Remove(at)
		u.hidden[at] = true
		u.forget()
	}
	if strings.Count(at, "/") > maxDepth {
		return isle.Errorf(isle.Invalid, "it lies more than %d directories deep", maxDepth)
	}
	if err := u.parents(at); err != nil {
		return err
	}
	return u.add(at, h, content)
}

// inside is a name of an archive as an absolute path. ".." is nobody's honest
// name.
func inside(name string) (string, error) {
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", isle.Errorf(isle.Invalid, "the name leads out of the image's root")
	}
	if strings.ContainsRune(name, 0) {
		return "", isle.Errorf(isle.Invalid, "the name has a NUL in it")
	}
	return path.Clean("/" + name), nil
}

// add adds what is no whiteout; its parents are there, and nothing but a
// directory is at its path.
func (u *unpacker) add(at string, h *tar.Header, content io.Reader) error {
	if h.Uid < 0 || h.Uid > maxOwner || h.Gid < 0 || h.Gid > maxOwner {
		return isle.Errorf(isle.Invalid, "it belongs to %d:%d; an environment has users and groups from 0 to %d", h.Uid, h.Gid, maxOwner)
	}
	e := image.Entry{Path: at, Mode: modeOf(h.Mode), UID: uint32(h.Uid), GID: uint32(h.Gid), Time: h.ModTime}
	if e.Time.Equal(image.Time) {
		e.Time = time.Time{}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		e.Mode |= fs.ModeDir
		return u.w.Add(e, nil)
	case tar.TypeSymlink:
		e.Mode, e.Target = fs.ModeSymlink|0o777, h.Linkname
		u.forget()
		return u.w.Add(e, nil)
	case tar.TypeLink:
		return u.link(at, h.Linkname)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		u.leave(at, h)
		u.hidden[at] = true
		return nil
	}
	return u.w.Add(e, func() (io.ReadCloser, error) { return io.NopCloser(&spender{u, content}), nil })
}

// modeOf are permissions with the setuid, setgid and sticky bits, as tar has them.
func modeOf(m int64) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	for bit, set := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= set
		}
	}
	return mode
}

// A spender counts what is read of a file.
type spender struct {
	u *unpacker
	r io.Reader
}

func (s *spender) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if serr := s.u.spend(int64(n)); serr != nil {
		return 0, serr
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = tarError(err)
	}
	return n, err
}

// leave notes what no image has.
func (u *unpacker) leave(at string, h *tar.Header) {
	if u.leftN++; u.leftN > maxLeft {
		return
	}
	kind := "named pipe"
	switch h.Typeflag {
	case tar.TypeChar:
		kind = fmt.Sprintf("character device %d:%d", h.Devmajor, h.Devminor)
	case tar.TypeBlock:
		kind = fmt.Sprintf("block device %d:%d", h.Devmajor, h.Devminor)
	}
	u.left = append(u.left, clip(at)+" ("+kind+")")
}

// link adds a hard link: another file with what the first one has.
func (u *unpacker) link(at, target string) error {
	to, err := inside(target)
	if err != nil {
		return isle.Errorf(isle.Invalid, "a hard link to %q: %w", clip(target), err)
	}
	to = path.Join("/", u.at, to)
	dir, err := u.resolve(path.Dir(to))
	if err != nil {
		return err
	}
	to = path.Join(dir, path.Base(to))
	e, here, err := u.look(to)
	if err != nil {
		return isle.Errorf(isle.Invalid, "a hard link to %q, which is not in the image", clip(target))
	}
	switch {
	case e.Mode&fs.ModeSymlink != 0:
		e.Path = at
		u.forget()
		return u.w.Add(e, nil)
	case !e.Mode.IsRegular():
		return isle.Errorf(isle.Invalid, "a hard link to %q, which is no file", clip(target))
	case here:
		if err := u.spend(e.Size); err != nil {
			return err
		}
		return u.w.Link(at, to)
	}
	e.Path = at
	return u.w.Add(e, func() (io.ReadCloser, error) {
		f, err := u.below.Open(to)
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{&spender{u, f}, f}, nil
	})
}

// white notes a whiteout in a directory. It hides what is below this layer
// alone, wherever in the archive it stands.
func (u *unpacker) white(dir, base string) error {
	u.forget()
	if base == whiteoutOpaque {
		u.opaque[dir] = true
		return nil
	}
	if strings.HasPrefix(base, whiteoutAUFS) {
		return nil
	}
	name := strings.TrimPrefix(base, whiteout)
	if name == "" || name == "." || name == ".." {
		return isle.Errorf(isle.Invalid, "a whiteout of %q", name)
	}
	u.hidden[path.Join(dir, name)] = true
	return nil
}

// look returns what is at a path of this layer on top of the lower ones, and
// whether it is this one's. No link is followed.
func (u *unpacker) look(at string) (e image.Entry, here bool, err error) {
	if e, ok := u.w.Entry(at); ok {
		return e, true, nil
	}
	if u.below == nil || u.gone(at) {
		return e, false, &fs.PathError{Op: "lookup", Path: at, Err: fs.ErrNotExist}
	}
	depth := int64(strings.Count(at, "/"))
	if u.steps += depth * depth; u.steps > u.bounds.steps {
		return e, false, isle.Errorf(isle.Exhausted, "its files lie in too many and too deep directories of lower layers")
	}
	e, err = u.below.Lookup(at)
	return e, false, err
}

// gone reports whether this layer hides what the lower ones have at a path.
func (u *unpacker) gone(at string) bool {
	if len(u.hidden) == 0 && len(u.opaque) == 0 {
		return false
	}
	if u.hidden[at] {
		return true
	}
	for at != "/" {
		at = path.Dir(at)
		if u.hidden[at] || u.opaque[at] {
			return true
		}
	}
	return false
}

func (u *unpacker) forget() { u.dir = "" }

// resolve returns where a directory of the archive really is, every symbolic
// link on the way followed inside the root. What is not there stays as written.
func (u *unpacker) resolve(dir string) (string, error) {
	if dir == "/" || dir == u.dir {
		if dir == "/" {
			return dir, nil
		}
		return u.real, nil
	}
	at, err := image.Resolve(dir, func(name string) (image.Entry, error) {
		e, _, err := u.look(name)
		return e, err
	})
	if err != nil {
		return "", err
	}
	u.dir, u.real = dir, at
	return at, nil
}

// parents adds the directories above a path that this layer lacks, as the lower
// layers have them.
func (u *unpacker) parents(at string) error {
	dir := path.Dir(at)
	if e, ok := u.w.Entry(dir); ok {
		if !e.Mode.IsDir() {
			return isle.Errorf(isle.Invalid, "%q is no directory", clip(dir))
		}
		return nil
	}
	if err := u.parents(dir); err != nil {
		return err
	}
	e, _, err := u.look(dir)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case err == nil && !e.Mode.IsDir():
		u.hidden[dir] = true
		fallthrough
	case err != nil:
		e = image.Entry{Path: dir, Mode: fs.ModeDir | 0o755}
	}
	return u.w.Add(e, nil)
}

// begin gives the layer's root directory the owner and mode of the lower ones'.
func (u *unpacker) begin() error {
	if u.below == nil {
		return nil
	}
	e, err := u.below.Lookup("/")
	if err != nil {
		return err
	}
	return u.w.Add(e, nil)
}

// finish writes down what the layer hides. A mark that hides nothing is left
// out; what this layer has itself stays.
func (u *unpacker) finish() error {
	if u.below == nil {
		return nil
	}
	if u.opaque["/"] { // overlayfs always merges roots: each thing in it by name
		names, err := u.below.Names("/")
		if err != nil {
			return err
		}
		for _, n := range names {
			u.hidden["/"+n] = true
		}
		delete(u.opaque, "/")
	}
	for _, at := range slices.Sorted(maps.Keys(u.hidden)) {
		if err := u.hide(at); err != nil {
			return err
		}
	}
	for _, at := range slices.Sorted(maps.Keys(u.opaque)) {
		e, err := u.below.Lookup(at)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !e.Mode.IsDir() {
			continue
		}
		if err != nil {
			return err
		}
		if own, ok := u.w.Entry(at); ok {
			e = own
		} else if u.gone(path.Dir(at)) || u.hidden[at] {
			continue // with all that is above it
		} else if err := u.parents(at); err != nil {
			return err
		}
		if !e.Mode.IsDir() {
			continue
		}
		e.Xattrs = map[string][]byte{image.OpaqueXattr: []byte("y")}
		if err := u.w.Add(e, nil); err != nil {
			return err
		}
	}
	return nil
}

// hide hides what the lower layers have at a path.
func (u *unpacker) hide(at string) error {
	have, err := u.below.Lookup(at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if own, ok := u.w.Entry(at); ok {
		if own.Mode.IsDir() && have.Mode.IsDir() {
			own.Xattrs = map[string][]byte{image.OpaqueXattr: []byte("y")}
			return u.w.Add(own, nil)
		}
		return nil
	}
	if u.gone(path.Dir(at)) || u.opaque[path.Dir(at)] {
		return nil
	}
	if err := u.parents(at); err != nil {
		return err
	}
	return u.w.Add(image.Entry{Path: at, Mode: image.Whiteout}, nil)
}
