package build

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"

	"isle"
	"isle/internal/image"
	"isle/internal/seal"
	"isle/internal/spec"
)

// What steps made goes from one server to another as one file: tar, compressed
// with zstd, of the manifest, its signature, and each layer once, by digest. A
// step's result cannot be checked but by making it again, so nothing of a file is
// taken in that a trusted key has not signed: its layers are read by the kernel,
// and images are built on them.
const (
	cacheManifestEntry  = "isle-cache/manifest.json"
	cacheSignatureEntry = "isle-cache/signature"
	cacheLayerEntry     = "isle-cache/layers/" // and its digest's hexadecimal

	cacheKind        = "cache" // of the signed note
	cacheFormat      = 1
	maxCacheManifest = 64 << 20 // bytes
	maxCacheWindow   = 8 << 20  // bytes that reading the compression takes
	maxLayerTitle    = 1024     // bytes

	// maxCacheImports bounds the imports that go on at once: before it is known who
	// signed a file its list is in memory.
	maxCacheImports = 4
)

// cacheManifest is what a file has.
type cacheManifest struct {
	Format int          `json:"format"`
	Steps  []record     `json:"steps"`
	Bases  []cachedBase `json:"bases"`
}

// A cachedBase is an image that was read from elsewhere, by what it was read of.
type cachedBase struct {
	Inputs inputs      `json:"inputs"`
	Image  image.Image `json:"image"`
}

// A CacheFile says what was exported or imported.
type CacheFile struct {
	Steps  int    // results of steps, and images that they begin with
	Layers int    // that were new here, of an import
	Size   int64  // bytes of them
	Signer string // whose signature it has
}

// layers are those of a manifest, each once, by digest.
func (m cacheManifest) layers() ([]image.Layer, error) {
	all := map[isle.Digest]image.Layer{}
	add := func(list []image.Layer) error {
		for _, l := range list {
			if have, ok := all[l.Digest]; ok && have.Size != l.Size {
				return isle.Errorf(isle.Invalid, "layer %s has two sizes", l.Digest.Short())
			}
			all[l.Digest] = l
		}
		return nil
	}
	for _, r := range m.Steps {
		if err := add(r.Layers); err != nil {
			return nil, err
		}
	}
	for _, b := range m.Bases {
		if err := add(b.Image.Layers); err != nil {
			return nil, err
		}
	}
	var out []image.Layer
	for _, d := range slices.Sorted(maps.Keys(all)) {
		out = append(out, all[d])
	}
	return out, nil
}

// ExportCache writes what the steps of a project's last build made, or of the last
// builds of all where it is "", as one file that this server signs. Cache mounts
// are not in it.
func (b *Builder) ExportCache(ctx context.Context, keys *seal.Ring, project string, w io.Writer) (CacheFile, error) {
	if keys == nil || keys.Own() == nil {
		return CacheFile{}, isle.Errorf(isle.Unavailable, "this server has no key to sign with").WithHint("`isle doctor` says what became of it")
	}
	defer b.Images.Hold()()
	m, err := b.lastMade(project)
	if err != nil {
		return CacheFile{}, err
	}
	layers, err := m.layers()
	if err != nil {
		return CacheFile{}, err
	}
	if len(layers) == 0 {
		return CacheFile{}, isle.Errorf(isle.NotFound, "nothing is known of what a build made").WithHint("`isle build` makes it")
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		return CacheFile{}, err
	}
	if len(manifest) > maxCacheManifest {
		return CacheFile{}, isle.Errorf(isle.Exhausted, "what is known of steps takes more than %d MiB", maxCacheManifest>>20).WithHint("export one project")
	}
	sig, err := keys.Own().Sign(seal.NoteText(cacheKind, isle.DigestOf(manifest)))
	if err != nil {
		return CacheFile{}, err
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(maxCacheWindow))
	if err != nil {
		return CacheFile{}, err
	}
	defer z.Close()
	tw := tar.NewWriter(z)
	for _, e := range []struct {
		name    string
		content []byte
	}{{cacheManifestEntry, manifest}, {cacheSignatureEntry, sig}} {
		if err := tw.WriteHeader(exportHeader(e.name, int64(len(e.content)))); err != nil {
			return CacheFile{}, err
		}
		if _, err := tw.Write(e.content); err != nil {
			return CacheFile{}, err
		}
	}
	out := CacheFile{Steps: len(m.Steps) + len(m.Bases), Layers: len(layers), Signer: keys.Own().Name()}
	for _, l := range layers {
		out.Size += l.Size
		if err := b.exportLayer(ctx, tw, l); err != nil {
			return CacheFile{}, err
		}
	}
	return out, errors.Join(tw.Close(), z.Close())
}

// lastMade gathers what last builds used, of what is still there.
func (b *Builder) lastMade(project string) (m cacheManifest, err error) {
	m.Format = cacheFormat
	names, err := b.projectNames(project)
	if err != nil {
		return m, err
	}
	steps, bases := map[isle.Digest]record{}, map[isle.Digest]cachedBase{}
	for _, name := range names {
		var st projectState
		if !readJSON(b.projectPath(name, "state.json"), &st) || st.Lock == nil {
			continue
		}
		for service, l := range st.Lock.Services {
			for _, in := range b.lastSteps(name, service) {
				layers, ok, err := b.lookup(in.key())
				if err != nil {
					return m, err
				}
				if ok {
					in.Stage, in.Context = "", ""
					steps[in.key()] = record{in, layers, len(layers) == 0}
				}
			}
			for _, from := range imagesOf(l) {
				in := baseInputs(&from, commonInputs(st.Lock))
				if found, ok := b.knownBase(in); ok {
					bases[in.key()] = cachedBase{in, found}
				}
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(steps)) {
		m.Steps = append(m.Steps, steps[k])
	}
	for _, k := range slices.Sorted(maps.Keys(bases)) {
		m.Bases = append(m.Bases, bases[k])
	}
	return m, nil
}

// imagesOf are the images that a service begins with or copies from.
func imagesOf(l spec.ServiceLock) (all []spec.LockedImage) {
	if l.Image != nil {
		all = append(all, *l.Image)
	}
	if l.Build != nil {
		all = append(all, l.Build.Images...)
	}
	return all
}

// projectNames are the folders of the project, or of all where it is "".
func (b *Builder) projectNames(project string) ([]string, error) {
	if project != "" {
		return []string{project}, nil
	}
	list, err := os.ReadDir(filepath.Join(b.Cache, "projects"))
	if err != nil {
		return nil, diskError("list the projects", err)
	}
	var names []string
	for _, d := range list {
		names = append(names, d.Name())
	}
	return names, nil
}

func (b *Builder) exportLayer(ctx context.Context, tw *tar.Writer, l image.Layer) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	path, err := b.Images.VerifyLayer(l)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return diskError("read layer "+l.Digest.Short(), err)
	}
	defer f.Close()
	if err := tw.WriteHeader(exportHeader(cacheLayerEntry+l.Digest.Hex(), l.Size)); err != nil {
		return err
	}
	if _, err = io.Copy(tw, untilDone{ctx, io.LimitReader(f, l.Size)}); err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// untilDone reads until its context ends.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u untilDone) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

// ImportCache reads what ExportCache wrote, if a key that counts has signed it:
// Untrusted if none has. Nothing is stored before that is known. Each layer must
// have its digest, and each result is found by the inputs that it is said to be of;
// what is known here already stays as it is.
func (b *Builder) ImportCache(ctx context.Context, keys *seal.Ring, r io.Reader) (CacheFile, error) {
	if n := b.imports.Add(1); n > maxCacheImports {
		b.imports.Add(-1)
		return CacheFile{}, isle.Errorf(isle.Exhausted, "%d imports of what steps made go on already, as many as there may be", maxCacheImports).WithHint("try again when one has ended")
	}
	defer b.imports.Add(-1)
	z, err := zstd.NewReader(untilDone{ctx, r}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxCacheWindow), zstd.WithDecoderMaxMemory(4*maxCacheWindow))
	if err != nil {
		return CacheFile{}, isle.Errorf(isle.Internal, "import what steps made: %w", err)
	}
	defer z.Close()
	in := &cacheReader{b: b, ctx: ctx, tar: tar.NewReader(bufio.NewReaderSize(z, 256<<10))}
	out, err := in.read(keys)
	if ctx.Err() != nil {
		return CacheFile{}, context.Cause(ctx)
	}
	if known := new(isle.Error); err != nil && !errors.As(err, &known) {
		err = cacheFileError("%w", err)
	}
	return out, err
}

func cacheFileError(format string, args ...any) error {
	return isle.Errorf(isle.Invalid, "this is no file of what steps made, or not all of one: "+format, args...).WithHint("`isle cache export FILE` writes one")
}

// A cacheReader reads a file of what steps made.
type cacheReader struct {
	b   *Builder
	ctx context.Context
	tar *tar.Reader
}

func (c *cacheReader) read(keys *seal.Ring) (out CacheFile, err error) {
	raw, err := c.small(cacheManifestEntry, maxCacheManifest)
	if err != nil {
		return out, err
	}
	sig, err := c.small(cacheSignatureEntry, seal.MaxNote)
	if err != nil {
		return out, err
	}
	if keys == nil {
		return out, isle.Errorf(isle.Unavailable, "this server knows no keys that it trusts")
	}
	digest := isle.DigestOf(raw)
	signer, trusted, err := seal.OpenNote(sig, "the file", seal.NoteText(cacheKind, digest), keys.Verifiers())
	if err != nil {
		return out, err
	}
	if !trusted {
		return out, isle.Errorf(isle.Untrusted, "the file is signed by %.200q, which this server does not trust; nothing of it is taken in", signer).
			WithHint("if what that server builds may run here: isle release trust NAME+HASH+KEY, as `isle release trust` shows it there")
	}
	out.Signer = signer
	defer c.b.Images.Hold()() // who sends what nobody signed keeps no garbage from being collected
	m, err := readManifest(raw)
	if err != nil {
		return out, err
	}
	layers, err := m.check()
	if err != nil {
		return out, err
	}
	for _, l := range layers {
		added, err := c.layer(l)
		if err != nil {
			return out, err
		}
		if added {
			out.Layers++
			out.Size += l.Size
		}
	}
	if _, err := c.tar.Next(); !errors.Is(err, io.EOF) {
		return out, cacheFileError("something follows its layers")
	}
	out.Steps = len(m.Steps) + len(m.Bases)
	return out, c.b.takeIn(m)
}

// readManifest reads a manifest of which it knows every key: what is left out of a
// step's inputs is left out of what its result is found by.
func readManifest(raw []byte) (m cacheManifest, err error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		if strings.Contains(err.Error(), "unknown field") {
			return m, isle.Errorf(isle.Invalid, "the file has what this server does not know of: %w", err).WithHint("use the same version of isle on both")
		}
		return m, cacheFileError("%w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return m, cacheFileError("something follows its list")
	}
	return m, nil
}

// takeIn notes what a file has, once its layers are in the store.
func (b *Builder) takeIn(m cacheManifest) error {
	for _, r := range m.Steps {
		_, ok, err := b.lookup(r.Inputs.key())
		if err == nil && !ok {
			err = b.note(r.Inputs, r.Layers)
		}
		if err != nil {
			return err
		}
	}
	for _, base := range m.Bases {
		if _, ok := b.knownBase(base.Inputs); ok {
			continue
		}
		if err := b.Images.PutImage(base.Image); err != nil {
			return err
		}
		if err := writeJSON(b.basePath(base.Inputs), base.Image.Digest()); err != nil {
			return err
		}
	}
	return nil
}

// small reads an entry of at most limit bytes.
func (c *cacheReader) small(name string, limit int64) ([]byte, error) {
	size, err := c.next(name)
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, cacheFileError("%s has more than %d bytes", name, limit)
	}
	return io.ReadAll(io.LimitReader(c.tar, limit))
}

// next begins the next entry, which must be called so.
func (c *cacheReader) next(name string) (size int64, err error) {
	h, err := c.tar.Next()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	if h.Name != name || h.Typeflag != tar.TypeReg || sparse(h) {
		return 0, cacheFileError("%.100q stands where %s belongs", h.Name, name)
	}
	return h.Size, nil
}

// layer takes in a layer, and reports whether it was new.
func (c *cacheReader) layer(l image.Layer) (added bool, err error) {
	size, err := c.next(cacheLayerEntry + l.Digest.Hex())
	if err != nil {
		return false, err
	}
	if size != l.Size {
		return false, cacheFileError("layer %s has %d bytes, and %d are said", l.Digest.Short(), size, l.Size)
	}
	if _, err := c.b.Images.VerifyLayer(l); err == nil {
		_, err = io.Copy(io.Discard, c.tar)
		return false, err
	}
	if err := c.b.Images.PutLayer(c.ctx, l.Digest, c.tar); err != nil {
		if isle.CodeOf(err) == isle.Unavailable {
			err = cacheFileError("%w", err)
		}
		return false, err
	}
	return true, nil
}

// check refuses what this server would not write itself, and returns the layers.
func (m cacheManifest) check() ([]image.Layer, error) {
	if m.Format != cacheFormat {
		return nil, cacheFileError("it has format %d, and this server knows %d", m.Format, cacheFormat)
	}
	for _, r := range m.Steps {
		switch in := r.Inputs; {
		case in.Format != image.FormatVersion || in.Recipe != recipe:
			return nil, isle.Errorf(isle.Invalid, "the file is of a server that builds images in another way").WithHint("use the same version of isle on both")
		case in.Kind == "image" || (len(r.Layers) == 0) != r.Empty:
			return nil, cacheFileError("a step's result is none")
		}
	}
	for _, b := range m.Bases {
		if in := b.Inputs; in.Kind != "image" || in.Format != image.FormatVersion || b.Image.Format != image.FormatVersion || len(b.Image.Layers) == 0 || b.Image.Architecture != in.Architecture {
			return nil, cacheFileError("an image in it is none")
		}
	}
	layers, err := m.layers()
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		if !l.Digest.Valid() || l.Size < 0 {
			return nil, cacheFileError("a layer has no digest or no size")
		}
	}
	return layers, m.eachTitle(func(s string) bool {
		return len(s) <= maxLayerTitle && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
	})
}

// eachTitle asks for each text of a layer that is shown to people.
func (m cacheManifest) eachTitle(ok func(string) bool) error {
	lists := make([][]image.Layer, 0, len(m.Steps)+len(m.Bases))
	for _, r := range m.Steps {
		lists = append(lists, r.Layers)
	}
	for _, b := range m.Bases {
		lists = append(lists, b.Image.Layers)
	}
	for _, l := range slices.Concat(lists...) {
		if !ok(l.Kind) || !ok(l.Title) {
			return cacheFileError("the title of layer %s cannot be shown", l.Digest.Short())
		}
	}
	return nil
}
