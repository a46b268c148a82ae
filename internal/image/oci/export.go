package oci

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"isle"
	"isle/internal/image"
)

// A Package is an image as others read it: all of it is blobs of the store.
type Package struct {
	Manifest Descriptor
	Config   Descriptor
	Layers   []Descriptor
}

// Blobs are all of the package's but the manifest, each once.
func (p Package) Blobs() []Descriptor {
	var out []Descriptor
	for _, d := range append([]Descriptor{p.Config}, p.Layers...) {
		if !slices.ContainsFunc(out, func(o Descriptor) bool { return o.Digest == d.Digest }) {
			out = append(out, d)
		}
	}
	return out
}

// packed is the record of a layer's tar file.
type packed struct {
	Layer  Descriptor  `json:"layer"`
	DiffID isle.Digest `json:"diff_id"`
}

// Pack writes an image as OCI blobs into its store: the same image, run in the
// same way, gives the same bytes. Layers are tar files in gzip. progress is told
// of each layer. The caller holds the store.
func (im *Importer) Pack(ctx context.Context, m image.Image, runs *image.Config, progress func(l image.Layer, cached bool)) (Package, error) {
	var p Package
	if _, err := im.Images.Verify(ctx, m); err != nil {
		return p, err
	}
	c := configOf(m, runs)
	for _, l := range m.Layers {
		one, err := im.packLayer(ctx, l, progress)
		if err != nil {
			return p, prefix("layer "+l.Digest.Short(), err)
		}
		p.Layers = append(p.Layers, one.Layer)
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, one.DiffID)
	}
	var err error
	if p.Config, err = im.blob(typeConfig, c); err != nil {
		return p, err
	}
	p.Manifest, err = im.blob(typeManifest, manifest{SchemaVersion: 2, MediaType: typeManifest, Config: p.Config, Layers: p.Layers})
	return p, err
}

func (im *Importer) blob(kind string, v any) (Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return Descriptor{}, isle.Errorf(isle.Internal, "write an image: %w", err)
	}
	d, size, err := im.Images.AddBlob(func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
	return Descriptor{MediaType: kind, Digest: d, Size: size}, err
}

// packLayer makes a layer's tar file, unless it is there.
func (im *Importer) packLayer(ctx context.Context, l image.Layer, progress func(image.Layer, bool)) (packed, error) {
	record := filepath.Join(im.Cache, "packed-"+l.Digest.Hex()+".json")
	var p packed
	if b, err := os.ReadFile(record); err == nil && json.Unmarshal(b, &p) == nil && p.Layer.Digest.Valid() && len(im.Images.Missing([]isle.Digest{p.Layer.Digest})) == 0 {
		progress(l, true)
		return p, nil
	}
	progress(l, false)
	plain := sha256.New()
	d, size, err := im.Images.AddBlob(func(w io.Writer) error {
		z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err != nil {
			return err
		}
		if err := writeTar(ctx, im.Images.LayerPath(l.Digest), io.MultiWriter(z, plain)); err != nil {
			return err
		}
		return z.Close()
	})
	if err != nil {
		return p, err
	}
	p = packed{Layer: Descriptor{MediaType: typeLayerGzip, Digest: d, Size: size}, DiffID: isle.DigestFromSum(plain.Sum(nil))}
	return p, writeRecord(im.Cache, record, p)
}

// writeTar writes a layer as a tar file, with whiteouts as OCI has them.
func writeTar(ctx context.Context, layer string, w io.Writer) error {
	tw := tar.NewWriter(w)
	err := image.WalkLayer(ctx, layer, func(e image.Entry, open func() (io.ReadCloser, error)) error {
		h := headerOf(e)
		if h.Name == "" { // the root
			h.Name = "./"
		}
		if err := tw.WriteHeader(h); err != nil {
			return isle.Errorf(isle.Internal, "write %s: %w", clip(e.Path), err)
		}
		if e.Mode.IsRegular() {
			f, err := open()
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err := io.Copy(tw, contextReader{ctx, f}); err != nil {
				return err
			}
		}
		if string(e.Xattrs[image.OpaqueXattr]) == "y" {
			return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(path.Join(e.Path, whiteoutOpaque), "/"), Mode: 0o644, ModTime: image.Time, Format: tar.FormatPAX})
		}
		return nil
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

// headerOf is an entry as tar has it.
func headerOf(e image.Entry) *tar.Header {
	h := &tar.Header{Name: strings.TrimPrefix(e.Path, "/"), Mode: int64(e.Mode.Perm()), Uid: int(e.UID), Gid: int(e.GID), ModTime: e.Time, Format: tar.FormatPAX}
	if e.Time.IsZero() {
		h.ModTime = image.Time
	}
	for bit, set := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if e.Mode&set != 0 {
			h.Mode |= bit
		}
	}
	switch {
	case e.Mode.IsDir():
		h.Typeflag = tar.TypeDir
		if h.Name != "" {
			h.Name += "/"
		}
	case e.Mode&fs.ModeSymlink != 0:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Target
	case e.Mode.Type() == image.Whiteout:
		h.Typeflag, h.Mode = tar.TypeReg, 0o644
		h.Name = strings.TrimPrefix(path.Join(path.Dir(e.Path), whiteout+path.Base(e.Path)), "/")
	default:
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	}
	return h
}

// configOf is an image's configuration, without its layers.
func configOf(m image.Image, runs *image.Config) configFile {
	c := configFile{Created: image.Time.Format(time.RFC3339), Architecture: goarch(m.Architecture), OS: "linux"}
	c.RootFS.Type = "layers"
	for _, l := range m.Layers {
		c.History = append(c.History, history{Created: c.Created, CreatedBy: l.Title})
	}
	if runs == nil {
		return c
	}
	c.Author = runs.Author
	in := &c.Config
	in.User, in.Env, in.Entrypoint, in.Cmd, in.WorkingDir, in.Labels = runs.User, runs.Env, runs.Entrypoint, runs.Cmd, runs.Workdir, runs.Labels
	in.StopSignal, in.Shell, in.OnBuild = runs.StopSignal, runs.Shell, runs.OnBuild
	for _, v := range runs.Volumes {
		if in.Volumes == nil {
			in.Volumes = map[string]struct{}{}
		}
		in.Volumes[v] = struct{}{}
	}
	for _, p := range runs.Ports {
		if in.ExposedPorts == nil {
			in.ExposedPorts = map[string]struct{}{}
		}
		in.ExposedPorts[p] = struct{}{}
	}
	if h := runs.Healthcheck; h != nil {
		in.Healthcheck = &healthcheck{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries}
	}
	return c
}

// goarch is Go's name of an architecture that Debian may call otherwise.
func goarch(debianName string) string {
	for _, a := range []string{"386", "arm", "ppc64le"} {
		if debian(a) == debianName {
			return a
		}
	}
	return debianName
}

// WriteArchive writes a package as one tar file that is both an OCI layout and
// what docker load reads: the same package under the same name gives the same
// bytes.
func WriteArchive(ctx context.Context, images *image.Store, p Package, name string, w io.Writer) error {
	ix := index{SchemaVersion: 2, MediaType: typeIndex, Manifests: []Descriptor{p.Manifest}}
	saved := []map[string]any{{"Config": blobPath(p.Config), "RepoTags": []string{}, "Layers": []string{}}}
	if name != "" {
		ix.Manifests[0].Annotations = map[string]string{refName: name, containerdName: name}
		saved[0]["RepoTags"] = []string{name}
	}
	var layers []string
	for _, l := range p.Layers {
		layers = append(layers, blobPath(l))
	}
	saved[0]["Layers"] = layers
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	for file, v := range map[string]any{"index.json": ix, "manifest.json": saved} {
		b, err := json.Marshal(v)
		if err != nil {
			return isle.Errorf(isle.Internal, "write an image: %w", err)
		}
		files[file] = b
	}
	tw := tar.NewWriter(w)
	header := func(name string, size int64) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: image.Time, Format: tar.FormatPAX}
	}
	for _, d := range append(p.Blobs(), p.Manifest) {
		if err := tw.WriteHeader(header(blobPath(d), d.Size)); err != nil {
			return err
		}
		f, err := images.OpenBlob(d.Digest)
		if err != nil {
			return err
		}
		_, err = io.Copy(tw, contextReader{ctx, f})
		f.Close()
		if err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := tw.WriteHeader(header(name, int64(len(files[name])))); err != nil {
			return err
		}
		if _, err := tw.Write(files[name]); err != nil {
			return err
		}
	}
	return tw.Close()
}

func blobPath(d Descriptor) string { return "blobs/sha256/" + d.Digest.Hex() }
