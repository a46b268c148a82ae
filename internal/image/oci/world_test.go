package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"isle"
	"isle/internal/image"
)

// An item is an entry of a tar file.
type item struct {
	tar.Header
	body string
}

func dir(name string, mode int64) item {
	return item{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}}
}

func reg(name, body string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))}, body: body}
}

func symlink(name, to string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}}
}

func hardlink(name, to string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}}
}

// tarOf writes a tar file.
func tarOf(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		if err := w.WriteHeader(&i.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(i.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstandard(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

// A layout is an OCI layout in the making.
type layout struct {
	t     testing.TB
	files map[string][]byte
	index index
}

func newLayout(t testing.TB) *layout {
	return &layout{t: t, files: map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}, index: index{SchemaVersion: 2}}
}

// blob adds content.
func (l *layout) blob(mediaType string, b []byte) Descriptor {
	d := isle.DigestOf(b)
	l.files["blobs/sha256/"+d.Hex()] = b
	return Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

func (l *layout) json(mediaType string, v any) Descriptor {
	b, err := json.Marshal(v)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.blob(mediaType, b)
}

// config is a configuration for this machine with the layers' diff_ids.
func config(layers ...[]byte) configFile {
	c := configFile{OS: "linux", Architecture: Here().Architecture}
	c.RootFS.Type = "layers"
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, isle.DigestOf(l))
	}
	return c
}

// image adds an image of uncompressed layers; change may change its
// configuration.
func (l *layout) image(name string, change func(*configFile), layers ...[]byte) Descriptor {
	c := config(layers...)
	if change != nil {
		change(&c)
	}
	m := manifest{SchemaVersion: 2, MediaType: typeManifest, Config: l.json(typeConfig, c), Layers: []Descriptor{}}
	for _, b := range layers {
		m.Layers = append(m.Layers, l.blob(typeLayer, b))
	}
	return l.list(name, m)
}

// list adds a manifest to the index.
func (l *layout) list(name string, m manifest) Descriptor {
	d := l.json(typeManifest, m)
	d.Annotations = map[string]string{refName: name}
	l.index.Manifests = append(l.index.Manifests, d)
	return d
}

// tar is the layout as a tar file.
func (l *layout) tar() []byte {
	b, err := json.Marshal(l.index)
	if err != nil {
		l.t.Fatal(err)
	}
	if l.files["index.json"] == nil {
		l.files["index.json"] = b
	}
	var items []item
	for _, name := range slices.Sorted(maps.Keys(l.files)) {
		items = append(items, reg(name, string(l.files[name])))
	}
	return tarOf(l.t, items...)
}

// A world is a store with an importer.
type world struct {
	t      testing.TB
	images *image.Store
	im     *Importer
}

func newWorld(t testing.TB) *world {
	t.Helper()
	s, err := image.Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	return &world{t, s, &Importer{Images: s, Cache: filepath.Join(t.TempDir(), "oci")}}
}

func (w *world) open(archive []byte) (*Archive, error) {
	w.t.Helper()
	name := filepath.Join(w.t.TempDir(), "archive")
	if err := os.WriteFile(name, archive, 0o600); err != nil {
		w.t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		w.t.Fatal(err)
	}
	a, err := OpenFile(context.Background(), f, w.t.TempDir())
	if err == nil {
		w.t.Cleanup(func() { a.Close() })
	}
	return a, err
}

// load imports the image of an archive.
func (w *world) load(archive []byte) (Imported, error) {
	w.t.Helper()
	a, err := w.open(archive)
	if err != nil {
		return Imported{}, err
	}
	p, err := a.Choose(context.Background(), "", Here())
	if err != nil {
		return Imported{}, err
	}
	return w.im.Import(context.Background(), p, nil)
}

// layers imports an image of uncompressed layers.
func (w *world) layers(layers ...[]byte) (Imported, error) {
	w.t.Helper()
	l := newLayout(w.t)
	l.image("", nil, layers...)
	return w.load(l.tar())
}

// must is layers, which cannot fail.
func (w *world) must(layers ...[]byte) image.Image {
	w.t.Helper()
	got, err := w.layers(layers...)
	if err != nil {
		w.t.Fatal(err)
	}
	return got.Image
}

// layer lists one layer of an image.
func (w *world) layer(m image.Image, n int) map[string]image.File {
	w.t.Helper()
	files, err := image.ReadLayer(context.Background(), w.images.LayerPath(m.Layers[n].Digest))
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[string]image.File{}
	for _, f := range files {
		out[f.Path] = f
	}
	return out
}

// read is the content of a file as the image's layers show it; "-" where there
// is none.
func (w *world) read(m image.Image, name string) string {
	w.t.Helper()
	stack := w.stack(m)
	defer stack.Close()
	e, err := stack.Lookup(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "-"
	case err != nil:
		w.t.Fatal(err)
	case e.Mode.IsDir():
		return "/"
	case e.Mode&fs.ModeSymlink != 0:
		return "-> " + e.Target
	}
	f, err := stack.Open(name)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

func (w *world) stack(m image.Image) *image.Stack {
	w.t.Helper()
	paths, err := w.images.Verify(context.Background(), m)
	if err != nil {
		w.t.Fatal(err)
	}
	stack, err := image.OpenStack(paths)
	if err != nil {
		w.t.Fatal(err)
	}
	return stack
}

// empty checks that the store has no layer and nothing half-made.
func (w *world) empty() {
	w.t.Helper()
	for _, kind := range []string{"layers/sha256", "images/sha256", "tmp"} {
		names, err := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(filepath.Dir(w.images.LayerPath("")))), kind, "*"))
		if err != nil || len(names) > 0 {
			w.t.Errorf("%s has %q (%v)", kind, names, err)
		}
	}
}

// wantCode checks how something failed.
func wantCode(t testing.TB, err error, code isle.Code) {
	t.Helper()
	if err == nil || isle.CodeOf(err) != code {
		t.Errorf("it ended with %v, which is %s and not %s", err, isle.CodeOf(err), code)
	}
}
