package oci

import (
	"archive/tar"
	"bufio"
	"compress/bzip2"
	"context"
	"hash/fnv"
	"io"
	"path"
	"strings"

	"github.com/therootcompany/xz"

	"isle"
	"isle/internal/image"
)

// How other compressed bytes begin.
const (
	magicBzip2 = "BZh"
	magicXz    = "\xfd7zXZ\x00"
)

// Add adds what an archive has to a layer, below a folder, as a Dockerfile's ADD
// does: names are followed through links inside the image's root and never out of
// it, and nothing in an archive hides anything. change may change owner and mode
// of an entry. It reports false, with nothing added, where the bytes are no tar
// file, compressed or not, and what was left out of one: devices and pipes.
func Add(ctx context.Context, w *image.Writer, below *image.Stack, at string, open func() (io.ReadCloser, error), change func(*tar.Header)) (archive bool, left []string, err error) {
	defer func() { // readers of formats are many, and a panic in one is a bad archive
		if p := recover(); p != nil {
			err = isle.Errorf(isle.Invalid, "the archive cannot be read: %v", p)
		}
	}()
	if !isArchive(open) {
		return false, nil, nil
	}
	raw, err := open()
	if err != nil {
		return false, nil, err
	}
	defer raw.Close()
	c := &counter{r: contextReader{ctx, raw}, told: func(int64, bool) {}}
	plain, err := expand(c)
	if err != nil {
		return false, nil, err
	}
	defer plain.Close()
	bounds := layerBounds()
	if _, err := below.Lookup("/"); err != nil {
		below = nil // there is nothing below
	}
	u := newUnpacker(w, below, bounds, c.count)
	u.at, u.change = path.Clean(at), change
	err = u.unpack(ctx, &inflated{r: plain, hash: fnv.New64(), bounds: bounds, came: c.count})
	return true, u.leftOut(), err
}

// isArchive reports whether bytes begin as a tar file does.
func isArchive(open func() (io.ReadCloser, error)) bool {
	raw, err := open()
	if err != nil {
		return false
	}
	defer raw.Close()
	plain, err := expand(io.LimitReader(raw, 64<<20))
	if err != nil {
		return false
	}
	defer plain.Close()
	_, err = tar.NewReader(io.LimitReader(plain, 64<<20)).Next()
	return err == nil
}

// expand is decompress, for what is not found in layers too.
func expand(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, _ := b.Peek(len(magicXz))
	switch {
	case strings.HasPrefix(string(head), magicBzip2):
		return io.NopCloser(bzip2.NewReader(b)), nil
	case strings.HasPrefix(string(head), magicXz):
		// A header asks for a dictionary: 64 MiB is the most that xz(1) makes.
		z, err := xz.NewReader(b, 64<<20)
		if err != nil {
			return nil, tarError(err)
		}
		return io.NopCloser(z), nil
	}
	return decompress(b)
}
