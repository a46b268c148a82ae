package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/erofs/go-erofs"

	"isle"
)

// A File is an Entry as read from a layer, with the digest of a regular file's
// content.
type File struct {
	Entry
	Digest isle.Digest
}

// ReadLayer reads the layer file at path: every entry sorted by path, contents
// hashed. It takes any bytes: what is no layer is Invalid.
func ReadLayer(ctx context.Context, name string) (files []File, err error) {
	err = WalkLayer(ctx, name, func(e Entry, open func() (io.ReadCloser, error)) error {
		f := File{Entry: e}
		if e.Mode.IsRegular() {
			var err error
			if f.Digest, err = hashFile(ctx, e, open); err != nil {
				return err
			}
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return files, nil
}

// WalkLayer calls each with every entry of the layer file at path, a directory
// before what is in it, and with what opens a regular file's content. It takes
// any bytes: what is no layer is Invalid. An error of each ends it.
func WalkLayer(ctx context.Context, name string, each func(e Entry, open func() (io.ReadCloser, error)) error) (err error) {
	f, err := os.Open(name)
	if err != nil {
		return storeError("open layer", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return storeError("open layer", err)
	}
	// The reader is another project's; a panic in it is a bad file, not our end.
	defer func() {
		if p := recover(); p != nil {
			err = isle.Errorf(isle.Invalid, "%s cannot be read as a layer: %v", name, p)
		}
	}()
	img, err := erofs.Open(f)
	if err != nil {
		return isle.Errorf(isle.Invalid, "%s is no layer: %w", name, err)
	}
	r := &layerReader{ctx: ctx, img: img, limit: fi.Size(), folders: map[int64]bool{}, each: each}
	root, err := fs.Stat(img, ".")
	if err == nil {
		err = r.walk(".", root)
	}
	var known *isle.Error
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return isle.Errorf(isle.Invalid, "%s cannot be read as a layer: %w", name, err)
}

// A layerReader walks one layer. Nothing in a layer is compressed or shared, so
// contents together are at most the file's size: a layer that says more lies.
type layerReader struct {
	ctx   context.Context
	img   fs.FS
	limit int64
	count int
	each  func(e Entry, open func() (io.ReadCloser, error)) error
	// folders are the directories seen, by inode: a directory has one name, and
	// one that has two may contain itself.
	folders map[int64]bool
}

func (r *layerReader) walk(name string, fi fs.FileInfo) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if len(name) > maxPath || r.count > maxEntries {
		return fmt.Errorf("too deep or too many files at %.80q", name)
	}
	var err error
	st, ok := fi.Sys().(*erofs.Stat)
	if !ok {
		return fmt.Errorf("%q has no owner", name)
	}
	e := Entry{Path: path.Clean("/" + name), Mode: st.Mode, UID: st.UID, GID: st.GID, Device: uint64(st.Rdev), Time: timeOf(st)}
	for _, k := range sortedKeys(st.Xattrs) {
		if e.Xattrs == nil {
			e.Xattrs = map[string][]byte{}
		}
		e.Xattrs[k] = []byte(st.Xattrs[k])
	}
	switch {
	case fi.Mode().IsRegular():
		e.Size = fi.Size()
		if r.limit -= e.Size; e.Size < 0 || r.limit < 0 {
			return fmt.Errorf("%q says it is larger than the layer", name)
		}
	case fi.Mode()&fs.ModeSymlink != 0:
		if e.Target, err = fs.ReadLink(r.img, name); err != nil {
			return err
		}
	}
	r.count++
	if err := r.each(e, func() (io.ReadCloser, error) { return r.img.Open(name) }); err != nil {
		return err
	}
	if !fi.IsDir() {
		return nil
	}
	if r.folders[st.Ino] {
		return fmt.Errorf("directory %q is in two places", name)
	}
	r.folders[st.Ino] = true
	entries, err := fs.ReadDir(r.img, name)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "" || e.Name() == "." || e.Name() == ".." || strings.ContainsAny(e.Name(), "/\x00") {
			return fmt.Errorf("%q has an entry named %q", name, e.Name())
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if err := r.walk(path.Join(name, e.Name()), info); err != nil {
			return err
		}
	}
	return nil
}

// timeOf is an inode's time; zero where it is that of all that Isle makes.
func timeOf(st *erofs.Stat) time.Time {
	t := time.Unix(int64(min(st.Mtime, latest)), int64(st.MtimeNs)).UTC()
	if t.Equal(Time) {
		return time.Time{}
	}
	return t
}

// hashFile reads a file's content, which has to be as long as its entry says.
func hashFile(ctx context.Context, e Entry, open func() (io.ReadCloser, error)) (isle.Digest, error) {
	f, err := open()
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, contextReader{ctx, io.LimitReader(f, e.Size+1)})
	if err != nil {
		return "", err
	}
	if n != e.Size {
		return "", fmt.Errorf("%q has %d bytes, not %d", e.Path, n, e.Size)
	}
	return isle.DigestFromSum(h.Sum(nil)), nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
