package oci

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"isle"
	"isle/internal/image"
)

// recipe is the version of how layers are made of tar files: raise it when the
// same tar file gives another layer.
const recipe = 1

// An Importer turns Pictures into images of a store. Its methods may be called
// from several goroutines.
type Importer struct {
	Images *image.Store
	// Cache is a folder of records of what was made of what. It can be deleted:
	// layers are made again then.
	Cache string

	bounds *bounds // nil is layerBounds(); tests have smaller ones
}

// Progress is told how far a layer is: bytes as they come.
type Progress func(layer int, l PictureLayer, done int64, cached bool)

// An Imported is what Import made.
type Imported struct {
	Image   image.Image
	LeftOut []string // what no image of Isle has: devices, pipes
}

// made is the record of a layer.
type made struct {
	Layer   image.Layer `json:"layer"`
	LeftOut []string    `json:"left_out,omitempty"`
}

// Import makes an image of a picture. A layer that was made before on top of the
// same ones is not read again. What was made before an error stays for the next
// attempt, and is nobody's until then. The caller holds the store.
func (im *Importer) Import(ctx context.Context, p Picture, progress Progress) (Imported, error) {
	if progress == nil {
		progress = func(int, PictureLayer, int64, bool) {}
	}
	out := Imported{Image: image.Image{Format: image.FormatVersion, Architecture: debian(p.Platform.Architecture), Config: &p.Config}}
	for i, l := range p.Layers {
		m, err := im.layer(ctx, out.Image, l, func(done int64, cached bool) { progress(i, l, done, cached) })
		if err != nil {
			if ctx.Err() != nil {
				return Imported{}, ctx.Err()
			}
			return Imported{}, prefix(fmt.Sprintf("layer %d of %d (%s)", i+1, len(p.Layers), l.DiffID.Short()), err)
		}
		m.Layer.Title = l.Title
		out.Image.Layers = append(out.Image.Layers, m.Layer)
		out.LeftOut = append(out.LeftOut, m.LeftOut...)
	}
	if err := im.Images.PutImage(out.Image); err != nil {
		return Imported{}, err
	}
	return out, nil
}

// Known is the image that Import made of the same layers, if all of it is still
// there: nothing of the picture is opened.
func (im *Importer) Known(p Picture) (Imported, bool) {
	out := Imported{Image: image.Image{Format: image.FormatVersion, Architecture: debian(p.Platform.Architecture), Config: &p.Config}}
	for _, l := range p.Layers {
		m, ok := im.recall(im.key(out.Image, l))
		if !ok {
			return Imported{}, false
		}
		m.Layer.Title = l.Title
		out.Image.Layers = append(out.Image.Layers, m.Layer)
		out.LeftOut = append(out.LeftOut, m.LeftOut...)
	}
	return out, true
}

// layer makes one layer on top of others.
func (im *Importer) layer(ctx context.Context, below image.Image, l PictureLayer, progress func(int64, bool)) (made, error) {
	key := im.key(below, l)
	if m, ok := im.recall(key); ok {
		if _, err := im.Images.VerifyLayer(m.Layer); err != nil {
			return made{}, err
		}
		progress(l.Size, true)
		return m, nil
	}
	paths, err := im.Images.Verify(ctx, below)
	if err != nil {
		return made{}, err
	}
	var stack *image.Stack
	if len(paths) > 0 {
		if stack, err = image.OpenStack(paths); err != nil {
			return made{}, err
		}
		defer stack.Close()
	}
	raw, err := l.open(ctx)
	if err != nil {
		return made{}, err
	}
	defer raw.Close()
	var m made
	m.Layer, err = im.Images.WriteLayer(ctx, "oci", l.Title, func(w *image.Writer) (err error) {
		m.LeftOut, err = im.unpack(ctx, w, stack, l, raw, progress)
		return err
	})
	if err != nil {
		return made{}, err
	}
	return m, im.note(key, m)
}

// unpack reads a layer's bytes into w and checks that they are what they are
// said to be, compressed and not.
func (im *Importer) unpack(ctx context.Context, w *image.Writer, stack *image.Stack, l PictureLayer, raw io.Reader, progress func(int64, bool)) (left []string, err error) {
	defer func() { // readers of formats are many, and a panic in one is a bad layer
		if p := recover(); p != nil {
			err = isle.Errorf(isle.Invalid, "it cannot be read: %v", p)
		}
	}()
	b := layerBounds()
	if im.bounds != nil {
		b = *im.bounds
	}
	came := &counter{r: contextReader{ctx, raw}, told: progress}
	var in io.Reader = came
	if l.Digest != "" {
		in = image.NewVerifier(came, l.Digest, l.Size)
	}
	plain, err := decompress(in)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	tarred := &inflated{r: plain, hash: sha256.New(), bounds: b, came: came.count}
	ahead := readAhead(tarred)
	defer ahead.Close()
	u := newUnpacker(w, stack, b, came.count)
	r := bufio.NewReaderSize(ahead, 256<<10)
	if err := u.unpack(ctx, r); err != nil {
		return nil, err
	}
	// The digest is of the whole tar file, with what follows its end; so is that
	// of the bytes as they came.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, tarError(err)
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return nil, tarError(err)
	}
	if got := isle.DigestFromSum(tarred.hash.Sum(nil)); got != l.DiffID {
		return nil, isle.Errorf(isle.Untrusted, "its tar file has digest %s, and the image's configuration says %s", got, l.DiffID).
			WithHint("the image was damaged or made to deceive; get it again from whom you trust")
	}
	return u.leftOut(), nil
}

// leftOut is what was left out, with how much more there was.
func (u *unpacker) leftOut() []string {
	if more := u.leftN - len(u.left); more > 0 {
		return append(u.left, fmt.Sprintf("and %d more", more))
	}
	return u.left
}

// key names a layer by what it is made of: its tar file and the layers below,
// whose directories and links decide where its files go.
func (im *Importer) key(below image.Image, l PictureLayer) isle.Digest {
	in := struct {
		Recipe, Format int
		Below          []isle.Digest
		DiffID         isle.Digest
	}{Recipe: recipe, Format: image.FormatVersion, DiffID: l.DiffID}
	for _, b := range below.Layers {
		in.Below = append(in.Below, b.Digest)
	}
	b, err := json.Marshal(in)
	if err != nil {
		panic(err) // strings and integers only
	}
	return isle.DigestOf(b)
}

func (im *Importer) recall(key isle.Digest) (m made, ok bool) {
	b, err := os.ReadFile(filepath.Join(im.Cache, key.Hex()+".json"))
	return m, err == nil && json.Unmarshal(b, &m) == nil && im.Images.HasLayer(m.Layer.Digest)
}

// note records a layer. Lost or torn it costs making the layer again.
func (im *Importer) note(key isle.Digest, m made) error {
	return writeRecord(im.Cache, filepath.Join(im.Cache, key.Hex()+".json"), m)
}

// writeRecord writes a file of a folder whole or not at all.
func writeRecord(dir, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return isle.Errorf(isle.Internal, "record a layer: %w", err)
	}
	f, err := os.CreateTemp(dir, ".draft-")
	if err != nil {
		return isle.Errorf(isle.Internal, "record a layer: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return isle.Errorf(isle.Internal, "record a layer: %w", err)
	}
	return nil
}

// Prune forgets records of layers that the store no longer has.
func (im *Importer) Prune() {
	names, err := filepath.Glob(filepath.Join(im.Cache, "*.json"))
	if err != nil {
		return
	}
	for _, name := range names {
		layer := isle.Digest("sha256:" + strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), "packed-"), ".json"))
		var m made
		if b, err := os.ReadFile(name); err == nil && json.Unmarshal(b, &m) == nil && (im.Images.HasLayer(m.Layer.Digest) || im.Images.HasLayer(layer)) {
			continue
		}
		os.Remove(name)
	}
}

// decompress finds out how bytes are compressed by how they begin, as every
// tool does: media types are often wrong.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, tarError(err)
	}
	switch {
	case !compressed(head):
		return io.NopCloser(b), nil
	case strings.HasPrefix(string(head), magicGzip):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, tarError(err)
		}
		return z, nil
	}
	z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, tarError(err)
	}
	return z.IOReadCloser(), nil
}

// How compressed bytes begin: RFC 1952 and RFC 8878.
const (
	magicGzip = "\x1f\x8b"
	magicZstd = "\x28\xb5\x2f\xfd"
)

func compressed(head []byte) bool {
	return strings.HasPrefix(string(head), magicGzip) || strings.HasPrefix(string(head), magicZstd)
}

// A counter counts the bytes that came. Its count may be asked for by another
// goroutine.
type counter struct {
	r    io.Reader
	n    atomic.Int64
	told func(done int64, cached bool)
}

func (c *counter) count() int64 { return c.n.Load() }

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.told(c.n.Add(int64(n)), false)
	return n, err
}

// An inflated hashes what was decompressed and ends a bomb.
type inflated struct {
	r      io.Reader
	hash   hash.Hash
	n      int64
	bounds bounds
	came   func() int64
}

func (d *inflated) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	d.hash.Write(p[:n])
	d.n += int64(n)
	// Headers are in it beside contents: an empty file takes 1 KiB at most.
	if limit := d.bounds.bytes + int64(d.bounds.files)*2048; d.n > limit {
		return 0, isle.Errorf(isle.Exhausted, "the layer unpacks to more than %d GiB", d.bounds.bytes>>30)
	}
	if d.n > d.bounds.plain+int64(d.bounds.files)*2048 && d.n/d.bounds.ratio > d.came() {
		return 0, isle.Errorf(isle.Exhausted, "the layer unpacks to more than %d MiB, over %d times what it came as", d.n>>20, d.bounds.ratio).
			WithHint("it is made to fill a disk; if it is not, pack it without so large and empty files")
	}
	return n, err
}

// readAhead reads in a goroutine of its own, so that decompressing goes on while
// files are written. It ends with the reader or its Close, which waits for it.
func readAhead(r io.Reader) io.ReadCloser {
	pr, pw := io.Pipe()
	a := &ahead{PipeReader: pr, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		defer func() {
			if p := recover(); p != nil {
				pw.CloseWithError(isle.Errorf(isle.Invalid, "it cannot be read: %v", p))
			}
		}()
		_, err := io.CopyBuffer(pw, struct{ io.Reader }{r}, make([]byte, 256<<10))
		pw.CloseWithError(err)
	}()
	return a
}

type ahead struct {
	*io.PipeReader
	done chan struct{}
}

func (a *ahead) Close() error {
	err := a.PipeReader.Close()
	<-a.done
	return err
}

// A contextReader ends when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// prefix puts where something failed before an error's message; code and hint
// stay.
func prefix(where string, err error) error {
	var e *isle.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("%s: %w", where, err)
	}
	c := *e
	c.Message = where + ": " + c.Message
	return &c
}
