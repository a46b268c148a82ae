package spec

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/patternmatcher"

	"isle"
)

// maxTreeDepth bounds how deep folders nest; each level holds a descriptor.
const maxTreeDepth = 128

// HashTree lists and hashes what `copy: [{from: FROM}]` names in the project
// folder root. It returns the tree and, for the upload, the path of a file for
// each digest. cache may be nil; the caller saves it.
//
// No link is followed out of root: FROM may lead over links that stay inside,
// links below it are listed as links. Sockets, devices and pipes are refused,
// what .isleignore names is left out. A file that changes while it is read is
// read again. It can change once more before it is uploaded: the receiver
// compares the bytes with the digest.
func HashTree(ctx context.Context, root, from string, cache *Cache) (Tree, map[isle.Digest]string, error) {
	return hashTree(ctx, root, from, cache, readIgnore)
}

// HashCopy is HashTree without lock, the path of the file's own lock relative to
// root: it has the tree's digest, and may be called otherwise than isle.lock.
func HashCopy(ctx context.Context, root, lock, from string, cache *Cache) (Tree, map[isle.Digest]string, error) {
	return hashTree(ctx, root, from, cache, func(h *hasher, r *os.Root) error {
		h.lock = path.Clean(lock)
		return readIgnore(h, r)
	})
}

func hashTree(ctx context.Context, root, from string, cache *Cache, ignored func(*hasher, *os.Root) error) (Tree, map[isle.Digest]string, error) {
	clean, err := parseFrom(from)
	if err != nil {
		return Tree{}, nil, isle.Errorf(isle.Invalid, "copy: %v", err)
	}
	base, err := filepath.Abs(root)
	if err != nil {
		return Tree{}, nil, isle.Errorf(isle.Invalid, "copy %s: %w", from, err)
	}
	r, err := os.OpenRoot(base)
	if err != nil {
		return Tree{}, nil, isle.Errorf(isle.Invalid, "copy %s: the project's folder: %w", from, err)
	}
	defer r.Close()
	h := &hasher{ctx: ctx, base: base, cache: cache, files: map[isle.Digest]string{}, verb: "copy", ignoreFile: IgnoreFile}
	if err = ignored(h, r); err != nil {
		return Tree{}, nil, err
	}
	if err := h.top(r, clean); err != nil {
		return Tree{}, nil, err
	}
	slices.SortFunc(h.entries, func(a, b TreeEntry) int { return cmp.Compare(a.Path, b.Path) })
	return Tree{Entries: h.entries}, h.files, nil
}

// HashFiles is HashTree of any file or folder: it leaves nothing out, whatever an
// .isleignore says.
func HashFiles(ctx context.Context, dir, name string, cache *Cache) (Tree, map[isle.Digest]string, error) {
	return hashTree(ctx, dir, name, cache, func(*hasher, *os.Root) error { return nil })
}

func readIgnore(h *hasher, r *os.Root) error {
	b, err := readIgnoreFile(r, IgnoreFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		h.ignore, err = parseIgnore(b)
	}
	return err
}

// A hasher walks one copied thing.
type hasher struct {
	ctx        context.Context
	base       string // absolute path of the project folder
	ignore     ignore
	docker     *patternmatcher.PatternMatcher // of a Dockerfile's context, in place of ignore
	lock       string                         // the file's own lock, which is left out; ""
	verb       string                         // what the files are for: "copy", "build"
	ignoreFile string                         // what names those that are left out, for messages
	cache      *Cache
	entries    []TreeEntry
	size       int // of the encoding so far, roughly
	files      map[isle.Digest]string
	buffer     []byte
}

// top begins at what was named.
func (h *hasher) top(r *os.Root, from string) error {
	name := strings.TrimSuffix(from, "/")
	info, err := r.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return isle.Errorf(isle.NotFound, "%s: there is no %s in %s", h.verb, from, h.base).WithHint("from is relative to the folder of isle.yaml")
	case err != nil:
		return isle.Errorf(isle.Invalid, "%s %s: %w", h.verb, from, err).WithHint("it has to be readable, and links have to stay inside the project's folder")
	case info.IsDir():
		sub, err := r.OpenRoot(name)
		if err != nil {
			return h.fail(name, err)
		}
		defer sub.Close()
		h.cache.walk(filepath.Join(h.base, name))
		if err := h.add(TreeEntry{Type: TypeDir}, name); err != nil {
			return err
		}
		return h.dir(sub, name, "", 0, patternmatcher.MatchInfo{})
	case name != from:
		return isle.Errorf(isle.Invalid, "%s: %s is a file and not a folder", h.verb, from).WithHint("leave out the slash at its end")
	}
	return h.file(r, name, name, "")
}

// dir lists a folder. at is its path below the project folder, rel its path in
// the tree.
func (h *hasher) dir(r *os.Root, at, rel string, depth int, above patternmatcher.MatchInfo) error {
	if err := h.ctx.Err(); err != nil {
		return err
	}
	if depth > maxTreeDepth {
		return isle.Errorf(isle.Invalid, "%s: %s nests deeper than %d folders", h.verb, at, maxTreeDepth)
	}
	d, err := r.Open(".")
	if err != nil {
		return h.fail(at, err)
	}
	list, err := d.ReadDir(-1)
	d.Close()
	if err != nil {
		return h.fail(at, err)
	}
	for _, e := range list {
		name := e.Name()
		below := path.Join(at, name)
		if h.ignore.match(below, e.IsDir()) {
			continue
		}
		out, info, err := h.leaveOut(path.Join(rel, name), name, above)
		if err != nil {
			return isle.Errorf(isle.Invalid, "%s: %w", h.ignoreFile, err)
		}
		if below == h.lock {
			continue
		}
		if out && !(e.IsDir() && h.takesBack(name)) {
			continue
		}
		before := len(h.entries)
		if err := h.entry(r, e, below, path.Join(rel, name), depth, info); err != nil {
			return err
		}
		if out && len(h.entries) == before+1 { // a folder of which nothing was taken back
			h.entries = h.entries[:before]
		}
	}
	return nil
}

func (h *hasher) entry(r *os.Root, e fs.DirEntry, at, rel string, depth int, info patternmatcher.MatchInfo) error {
	switch e.Type() {
	case fs.ModeDir:
		if err := h.add(TreeEntry{Path: rel, Type: TypeDir}, at); err != nil {
			return err
		}
		sub, err := r.OpenRoot(e.Name())
		if err != nil {
			return h.fail(at, err)
		}
		defer sub.Close()
		return h.dir(sub, at, rel, depth+1, info)
	case fs.ModeSymlink:
		target, err := r.Readlink(e.Name())
		if err != nil {
			return h.fail(at, err)
		}
		if !treeText(target) || target == "" {
			return isle.Errorf(isle.Invalid, "%s: the target of the link %q is not UTF-8 or longer than %d bytes", h.verb, at, maxTreePath).WithHint("change it, or name it in %s", h.ignoreFile)
		}
		return h.add(TreeEntry{Path: rel, Type: TypeLink, Target: target}, at)
	case 0:
		return h.file(r, e.Name(), at, rel)
	}
	return h.notCopied(at, e.Type())
}

func (h *hasher) notCopied(at string, mode fs.FileMode) error {
	kind := "a device"
	switch {
	case mode&fs.ModeSocket != 0:
		kind = "a socket"
	case mode&fs.ModeNamedPipe != 0:
		kind = "a named pipe"
	}
	return isle.Errorf(isle.Invalid, "%s: %s is %s; only files, folders and links can be copied", h.verb, at, kind).
		WithHint("remove it, or name it in %s", h.ignoreFile)
}

// file adds one regular file, by the cache if it can.
func (h *hasher) file(r *os.Root, name, at, rel string) error {
	full := filepath.Join(h.base, at)
	info, err := r.Stat(name)
	if err != nil {
		return h.fail(at, err)
	}
	if !info.Mode().IsRegular() {
		return h.notCopied(at, info.Mode().Type())
	}
	digest, known := h.cache.get(full, info)
	if !known {
		if info, digest, err = h.read(r, name, at); err != nil {
			return err
		}
	}
	h.files[digest] = full
	return h.add(TreeEntry{Path: rel, Type: TypeFile, Exec: info.Mode()&0o100 != 0, Size: info.Size(), Digest: digest}, at)
}

// read hashes a file and returns what stat said about exactly those bytes.
func (h *hasher) read(r *os.Root, name, at string) (fs.FileInfo, isle.Digest, error) {
	for range 4 {
		start := h.cache.now()
		before, after, sum, err := h.hash(r, name)
		if err != nil {
			return nil, "", h.fail(at, err)
		}
		a, _ := statOf(before)
		b, _ := statOf(after)
		if a != b {
			continue
		}
		if after.Size() > maxTreeFile {
			return nil, "", isle.Errorf(isle.Invalid, "%s: %s is larger than %s", h.verb, at, FormatSize(maxTreeFile))
		}
		d := isle.DigestFromSum(sum)
		h.cache.put(filepath.Join(h.base, at), after, d, start)
		return after, d, nil
	}
	return nil, "", isle.Errorf(isle.Conflict, "%s: %s changes while it is read", h.verb, at).
		WithHint("stop what writes it, or name it in %s", h.ignoreFile)
}

func (h *hasher) hash(r *os.Root, name string) (before, after fs.FileInfo, sum []byte, err error) {
	// What was a file may be a named pipe by now: to open that without a writer
	// must not wait for ever.
	f, err := r.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, nil, err
	}
	defer f.Close()
	if before, err = f.Stat(); err != nil {
		return nil, nil, nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, nil, nil, errors.New("is no regular file any more")
	}
	if h.buffer == nil {
		h.buffer = make([]byte, 256<<10)
	}
	w := sha256.New()
	for {
		if err := h.ctx.Err(); err != nil {
			return nil, nil, nil, err
		}
		n, err := f.Read(h.buffer)
		w.Write(h.buffer[:n])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, nil, err
		}
	}
	after, err = f.Stat()
	return before, after, w.Sum(nil), err
}

func (h *hasher) add(e TreeEntry, at string) error {
	if e.Path != "" && !treePath(e.Path) {
		return isle.Errorf(isle.Invalid, "%s: the name %q is not UTF-8, or too long", h.verb, at).WithHint("rename it, or name its folder in %s", h.ignoreFile)
	}
	h.entries = append(h.entries, e)
	h.size += len(e.Path) + len(e.Target) + 160
	if len(h.entries) > MaxTreeEntries || h.size > MaxTreeSize {
		return isle.Errorf(isle.Invalid, "%s: %s makes more than %d files and folders, or %s of names", h.verb, at, MaxTreeEntries, FormatSize(MaxTreeSize)).
			WithHint("name what is not needed in %s, such as build output and caches", h.ignoreFile)
	}
	return nil
}

// fail says which file could not be read. The end of the context goes through.
func (h *hasher) fail(at string, err error) error {
	if h.ctx.Err() != nil {
		return h.ctx.Err()
	}
	return isle.Errorf(isle.Invalid, "%s %s: %w", h.verb, at, err).WithHint("make it readable, or name it in %s", h.ignoreFile)
}
