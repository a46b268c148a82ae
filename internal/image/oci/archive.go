package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"isle"
	"isle/internal/image"
)

// Bounds of an archive.
const (
	maxArchiveFiles = 1 << 16
	maxArchiveBytes = 256 << 30 // once unpacked
	maxArchiveIndex = 16 << 20  // bytes of manifest.json or index.json
	maxArchiveLinks = 8         // links from one to the next
)

// refName is the annotation that names an image of a layout.
const refName = "org.opencontainers.image.ref.name"

// containerdName is another, with the registry in front.
const containerdName = "io.containerd.image.name"

// An Archive is an OCI image layout, as a folder or a tar file, or what `docker
// save` writes. Close it when nothing of it is read any more.
type Archive struct {
	files  map[string]file
	close  func() error
	layout bool
	refs   []reference
}

// A file is one of an archive.
type file struct {
	size int64
	open func() (io.ReadCloser, error)
}

// A reference is an image of an archive.
type reference struct {
	name   string     // as it is called; may be ""
	root   Descriptor // of a layout
	config string     // of docker save: name of the configuration's file
	layers []string
}

// OpenFolder opens a layout whose files are blobs of a store, by path.
func OpenFolder(images *image.Store, files map[string]isle.Digest, sizes map[string]int64) (*Archive, error) {
	a := &Archive{files: map[string]file{}, close: func() error { return nil }}
	for name, d := range files {
		a.files[name] = file{size: sizes[name], open: func() (io.ReadCloser, error) { return images.OpenBlob(d) }}
	}
	return a, a.read()
}

// OpenFile opens an archive that is one file, which may be compressed. It takes
// f over. scratch is a folder for what is decompressed.
func OpenFile(ctx context.Context, f *os.File, scratch string) (*Archive, error) {
	plain, err := plainFile(ctx, f, scratch)
	if err != nil {
		f.Close()
		return nil, err
	}
	a := &Archive{files: map[string]file{}, close: plain.Close}
	if err := a.list(ctx, plain); err != nil {
		a.Close()
		return nil, err
	}
	if err := a.read(); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

// Close lets go of the archive's file.
func (a *Archive) Close() error { return a.close() }

// plainFile is f, or what it decompresses to, in a file without a name.
func plainFile(ctx context.Context, f *os.File, scratch string) (*os.File, error) {
	var head [4]byte
	n, err := f.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, isle.Errorf(isle.Unavailable, "read the archive: %w", err)
	}
	if !compressed(head[:n]) {
		return f, nil
	}
	came := &counter{r: contextReader{ctx, io.NewSectionReader(f, 0, 1<<62)}, told: func(int64, bool) {}}
	r, err := decompress(came)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	out, err := os.CreateTemp(scratch, "archive-")
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "unpack the archive: %w", err)
	}
	os.Remove(out.Name())
	b := layerBounds()
	b.bytes = maxArchiveBytes
	if _, err := io.Copy(out, &inflated{r: r, hash: sha256.New(), bounds: b, came: came.count}); err != nil {
		out.Close()
		return nil, tarError(err)
	}
	f.Close()
	return out, nil
}

// list notes where the files of a tar file are.
func (a *Archive) list(ctx context.Context, f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return isle.Errorf(isle.Unavailable, "read the archive: %w", err)
	}
	section := io.NewSectionReader(f, 0, fi.Size())
	tr := tar.NewReader(section)
	links := map[string]string{}
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return tarError(err)
		}
		if n > maxArchiveFiles {
			return isle.Errorf(isle.Exhausted, "the archive has more than %d files", maxArchiveFiles)
		}
		name, err := inside(h.Name)
		if err != nil {
			return isle.Errorf(isle.Invalid, "%s in the archive: %w", clip(h.Name), err)
		}
		name = strings.TrimPrefix(name, "/")
		_, double := a.files[name]
		if _, linked := links[name]; double || linked {
			return isle.Errorf(isle.Invalid, "the archive has two files %s", clip(name))
		}
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := section.Seek(0, io.SeekCurrent)
			if err != nil || h.Size < 0 || h.Size > fi.Size()-at {
				return isle.Errorf(isle.Invalid, "%s in the archive: it ends before its content does", clip(name))
			}
			a.files[name] = file{size: h.Size, open: func() (io.ReadCloser, error) {
				return io.NopCloser(io.NewSectionReader(f, at, h.Size)), nil
			}}
		case tar.TypeSymlink: // docker save has layers that are there already so
			links[name] = path.Join("/", path.Dir(name), h.Linkname)
		case tar.TypeLink:
			links[name] = path.Clean("/" + h.Linkname)
		}
	}
	for name := range links {
		to, hops := name, 0
		for links[to] != "" && hops < maxArchiveLinks {
			to, hops = strings.TrimPrefix(links[to], "/"), hops+1
		}
		if target, ok := a.files[to]; ok {
			a.files[name] = target
		}
	}
	return nil
}

// whole reads a file of the archive of at most limit bytes.
func (a *Archive) whole(name string, limit int64) ([]byte, error) {
	f, ok := a.files[name]
	if !ok {
		return nil, isle.Errorf(isle.Invalid, "the archive has no file %s", clip(name))
	}
	if f.size > limit {
		return nil, isle.Errorf(isle.Invalid, "%s in the archive has %d bytes; at most %d are read", clip(name), f.size, limit)
	}
	r, err := f.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit))
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "read %s in the archive: %w", clip(name), err)
	}
	return b, nil
}

// read finds out what the archive is and which images it has.
func (a *Archive) read() error {
	if _, ok := a.files["index.json"]; ok {
		a.layout = true
		return a.readLayout()
	}
	if _, ok := a.files["manifest.json"]; ok {
		return a.readSaved()
	}
	return isle.Errorf(isle.Invalid, "it is no image: there is neither the index.json of an OCI layout nor the manifest.json of docker save in it").
		WithHint("`docker save`, `podman save` and `skopeo copy … oci-archive:FILE` write what can be read")
}

func (a *Archive) readLayout() error {
	b, err := a.whole("index.json", maxManifest)
	if err != nil {
		return err
	}
	var ix index
	if err := json.Unmarshal(b, &ix); err != nil {
		return isle.Errorf(isle.Invalid, "index.json cannot be read: %w", err)
	}
	if len(ix.Manifests) > maxManifests {
		return isle.Errorf(isle.Invalid, "index.json lists more than %d images", maxManifests)
	}
	for _, d := range ix.Manifests {
		name := d.Annotations[containerdName]
		if name == "" {
			name = d.Annotations[refName]
		}
		a.refs = append(a.refs, reference{name: name, root: d})
	}
	return a.some()
}

func (a *Archive) readSaved() error {
	b, err := a.whole("manifest.json", maxArchiveIndex)
	if err != nil {
		return err
	}
	var list []struct {
		Config   string   `json:"Config"`
		RepoTags []string `json:"RepoTags"`
		Layers   []string `json:"Layers"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return isle.Errorf(isle.Invalid, "manifest.json cannot be read: %w", err)
	}
	if len(list) > maxManifests {
		return isle.Errorf(isle.Invalid, "manifest.json lists more than %d images", maxManifests)
	}
	for _, m := range list {
		tags := m.RepoTags
		if len(tags) == 0 {
			tags = []string{""}
		}
		for _, t := range tags[:min(len(tags), maxManifests)] {
			a.refs = append(a.refs, reference{name: t, config: path.Clean(m.Config), layers: m.Layers})
		}
	}
	return a.some()
}

func (a *Archive) some() error {
	if len(a.refs) == 0 {
		return isle.Errorf(isle.Invalid, "there is no image in it")
	}
	return nil
}

// Names are the names of the images in the archive, sorted, each once; an image
// without one is "".
func (a *Archive) Names() []string {
	var out []string
	for _, r := range a.refs {
		out = append(out, clip(r.name))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Choose is the image of the name, for a platform. Without a name it is the only
// one: several are Invalid, unless they are one image for several platforms.
func (a *Archive) Choose(ctx context.Context, name string, want Platform) (Picture, error) {
	refs := a.refs
	if name != "" {
		refs = nil
		for _, r := range a.refs {
			if clip(r.name) == name {
				refs = append(refs, r)
			}
		}
		if len(refs) == 0 {
			return Picture{}, isle.Errorf(isle.NotFound, "there is no image %s in the archive; there are: %s", clip(name), strings.Join(a.Names(), ", "))
		}
	} else if names := a.Names(); len(names) > 1 && !a.same() {
		return Picture{}, isle.Errorf(isle.Invalid, "there are several images in the archive: %s", strings.Join(names, ", ")).WithHint("say which one with --image NAME")
	}
	if !a.layout {
		return a.saved(ctx, refs[0], want)
	}
	// One name may stand for several manifests, one for each platform.
	all := index{}
	for _, r := range refs {
		all.Manifests = append(all.Manifests, r.root)
	}
	if len(refs) == 1 {
		return Choose(ctx, a.content, refs[0].root, want)
	}
	b, err := json.Marshal(all)
	if err != nil {
		return Picture{}, isle.Errorf(isle.Invalid, "index.json cannot be read: %w", err)
	}
	root := Descriptor{MediaType: typeIndex, Digest: isle.DigestOf(b), Size: int64(len(b))}
	content := func(ctx context.Context, d Descriptor) (io.ReadCloser, error) {
		if d.Digest == root.Digest {
			return io.NopCloser(bytes.NewReader(b)), nil
		}
		return a.content(ctx, d)
	}
	return Choose(ctx, content, root, want)
}

// same reports whether all names of the archive are those of one image.
func (a *Archive) same() bool {
	for _, r := range a.refs {
		if r.root.Digest != a.refs[0].root.Digest || r.config != a.refs[0].config {
			return false
		}
	}
	return true
}

// content opens a blob of a layout.
func (a *Archive) content(_ context.Context, d Descriptor) (io.ReadCloser, error) {
	if !d.Digest.Valid() {
		return nil, isle.Errorf(isle.Invalid, "%.80q is no sha256 digest, and no other is read", d.Digest)
	}
	f, ok := a.files["blobs/sha256/"+d.Digest.Hex()]
	if !ok {
		return nil, isle.Errorf(isle.NotFound, "the layout has no blob %s", d.Digest)
	}
	if f.size != d.Size {
		return nil, isle.Errorf(isle.Untrusted, "blob %s has %d bytes, and its descriptor says %d", d.Digest, f.size, d.Size)
	}
	return f.open()
}

// saved is the picture of what docker save wrote: its layers are known by the
// digests of their tar files alone.
func (a *Archive) saved(_ context.Context, r reference, want Platform) (Picture, error) {
	raw, err := a.whole(r.config, maxManifest)
	if err != nil {
		return Picture{}, err
	}
	var c configFile
	if err := json.Unmarshal(raw, &c); err != nil {
		return Picture{}, isle.Errorf(isle.Invalid, "the image's configuration %s cannot be read: %w", clip(r.config), err)
	}
	p, err := newPicture(isle.DigestOf(raw), c, len(r.layers), want)
	if err != nil {
		return Picture{}, err
	}
	for i, name := range r.layers {
		f, ok := a.files[path.Clean(name)]
		if !ok {
			return Picture{}, isle.Errorf(isle.Invalid, "layer %d: the archive has no file %s", i+1, clip(name))
		}
		p.Layers[i].Size = f.size
		p.Layers[i].open = func(context.Context) (io.ReadCloser, error) { return f.open() }
	}
	return p, nil
}
