// Package oci reads and writes images as the OCI image specification has them.
//
// A Descriptor names content by digest and size. An index lists manifests, one
// for each Platform; a manifest names a configuration and layers, which are tar
// files; Content opens what a descriptor names, out of a layout, an archive or a
// registry. Choose follows an index to the Picture for one platform: its layers
// in order, each with the digest of its tar file (diff_id), and its image.Config.
// An Importer turns a Picture into an image.Image: it reads every tar file and
// writes an EROFS layer of Isle's own, so that no kernel parses bytes that came
// from outside. Write does the opposite.
//
// All that is read is hostile: digests and sizes are checked, everything has a
// bound, nothing is ever laid out on a file system of the machine.
package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"unicode"

	"isle"
	"isle/internal/image"
)

// Media types of the OCI image specification (media-types.md) and of Docker's
// image manifest, version 2, schema 2.
const (
	typeIndex          = "application/vnd.oci.image.index.v1+json"
	typeManifest       = "application/vnd.oci.image.manifest.v1+json"
	typeConfig         = "application/vnd.oci.image.config.v1+json"
	typeLayer          = "application/vnd.oci.image.layer.v1.tar"
	typeLayerGzip      = typeLayer + "+gzip"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerOld      = "application/vnd.docker.distribution.manifest.v1"
)

// Accepted are the media types of what Choose can begin with.
func Accepted() []string {
	return []string{typeIndex, typeManifest, typeDockerList, typeDockerManifest}
}

// Bounds of an image, far above what real ones have.
const (
	maxManifest  = 4 << 20 // bytes of an index, manifest or configuration
	maxLayers    = 256     // the kernel stacks no more than 500
	maxManifests = 1024    // in an index
	maxNesting   = 4       // of indexes
	maxConfig    = 1 << 20 // bytes of what is kept of a configuration
)

// A Descriptor names content (OCI image specification, descriptor.md).
type Descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      isle.Digest       `json:"digest"`
	Size        int64             `json:"size"` // bytes
	URLs        []string          `json:"urls,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *Platform         `json:"platform,omitempty"`
}

// A Platform is what an image runs on, in Go's words.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

// String is OS/ARCHITECTURE[/VARIANT].
func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// Here is the platform of this machine.
func Here() Platform { return Platform{OS: "linux", Architecture: runtime.GOARCH} }

// debian are Debian's names of architectures that Go calls otherwise.
func debian(goarch string) string {
	switch goarch {
	case "386":
		return "i386"
	case "arm":
		return "armhf"
	case "ppc64le":
		return "ppc64el"
	}
	return goarch
}

// fits reports whether what runs on p runs on want; of several that do the one
// without a variant is the plainest.
func (p Platform) fits(want Platform) bool {
	return p.OS == want.OS && p.Architecture == want.Architecture &&
		(p.Variant == want.Variant || want.Variant == "" || p.Variant == "")
}

// Content opens what a descriptor names. Who reads it checks the bytes.
type Content func(ctx context.Context, d Descriptor) (io.ReadCloser, error)

// read returns the content of a descriptor, whole and checked.
func (c Content) read(ctx context.Context, d Descriptor) ([]byte, error) {
	if !d.Digest.Valid() {
		return nil, isle.Errorf(isle.Invalid, "%.80q is no sha256 digest, and no other is read", d.Digest)
	}
	if d.Size < 0 || d.Size > maxManifest {
		return nil, isle.Errorf(isle.Invalid, "%s has %d bytes; a manifest or configuration has at most %d", d.Digest.Short(), d.Size, maxManifest)
	}
	r, err := c(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return image.ReadVerified(r, d.Digest, d.Size, maxManifest)
}

// A Picture is one image as it was found: for one platform, not yet unpacked.
type Picture struct {
	Digest   isle.Digest // of the manifest; of the configuration where there is none
	Platform Platform
	Config   image.Config
	Layers   []PictureLayer // lowest first
}

// A PictureLayer is one tar file of a Picture.
type PictureLayer struct {
	Title  string      // of its history, for people
	DiffID isle.Digest // of the tar file
	Digest isle.Digest // of the bytes that open gives; "" where only the tar file has one
	Size   int64       // of those, in bytes
	open   func(ctx context.Context) (io.ReadCloser, error)
}

// Size is how many bytes the layers have as they come.
func (p Picture) Size() (n int64) {
	for _, l := range p.Layers {
		n += l.Size
	}
	return n
}

// index is an image index, or Docker's list of manifests.
type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType,omitempty"`
	Manifests     []Descriptor `json:"manifests"`
}

// manifest is an image manifest.
type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType,omitempty"`
	Config        Descriptor   `json:"config"`
	Layers        []Descriptor `json:"layers"`
}

// configFile is an image's configuration (OCI image specification, config.md).
type configFile struct {
	Created      string `json:"created,omitempty"`
	Author       string `json:"author,omitempty"`
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
	Config       struct {
		User         string              `json:"User,omitempty"`
		ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
		Env          []string            `json:"Env,omitempty"`
		Entrypoint   []string            `json:"Entrypoint,omitempty"`
		Cmd          []string            `json:"Cmd,omitempty"`
		Volumes      map[string]struct{} `json:"Volumes,omitempty"`
		WorkingDir   string              `json:"WorkingDir,omitempty"`
		Labels       map[string]string   `json:"Labels,omitempty"`
		StopSignal   string              `json:"StopSignal,omitempty"`
		Shell        []string            `json:"Shell,omitempty"`
		OnBuild      []string            `json:"OnBuild,omitempty"`
		Healthcheck  *healthcheck        `json:"Healthcheck,omitempty"`
	} `json:"config"`
	RootFS struct {
		Type    string        `json:"type"`
		DiffIDs []isle.Digest `json:"diff_ids"`
	} `json:"rootfs"`
	History []history `json:"history,omitempty"`
}

type healthcheck struct {
	Test          []string `json:"Test,omitempty"`
	Interval      int64    `json:"Interval,omitempty"` // nanoseconds, as all of them
	Timeout       int64    `json:"Timeout,omitempty"`
	StartPeriod   int64    `json:"StartPeriod,omitempty"`
	StartInterval int64    `json:"StartInterval,omitempty"`
	Retries       int      `json:"Retries,omitempty"`
}

type history struct {
	Created    string `json:"created,omitempty"`
	CreatedBy  string `json:"created_by,omitempty"`
	EmptyLayer bool   `json:"empty_layer,omitempty"`
}

// Choose follows root, an index or a manifest, to the image for a platform.
func Choose(ctx context.Context, content Content, root Descriptor, want Platform) (Picture, error) {
	seen := 0
	var offers []string
	d, err := choose(ctx, content, root, want, 0, &seen, &offers)
	if err != nil {
		return Picture{}, err
	}
	if d == nil {
		return Picture{}, isle.Errorf(isle.NotFound, "there is no image for %s; there are %s", want, strings.Join(slices.Compact(slices.Sorted(slices.Values(offers))), ", ")).
			WithHint("an image of another architecture cannot run on this machine")
	}
	return fromManifest(ctx, content, *d, want)
}

// choose returns the manifest for a platform that root leads to, or nil.
func choose(ctx context.Context, content Content, root Descriptor, want Platform, depth int, seen *int, offers *[]string) (*Descriptor, error) {
	switch kind := mediaType(root.MediaType); kind {
	case typeManifest, typeDockerManifest:
		return &root, nil
	case typeIndex, typeDockerList:
	default:
		if strings.HasPrefix(kind, typeDockerOld) {
			return nil, isle.Errorf(isle.Invalid, "the image has Docker's manifest of version 1, which says nothing about the digests of its layers").WithHint("push it again with any tool of the last ten years")
		}
		return nil, isle.Errorf(isle.Invalid, "%.100q is neither an image nor an index of images", root.MediaType)
	}
	if depth > maxNesting {
		return nil, isle.Errorf(isle.Invalid, "indexes of images lie in one another more than %d deep", maxNesting)
	}
	b, err := content.read(ctx, root)
	if err != nil {
		return nil, err
	}
	var ix index
	if err := json.Unmarshal(b, &ix); err != nil {
		return nil, isle.Errorf(isle.Invalid, "the index %s cannot be read: %w", root.Digest.Short(), err)
	}
	if *seen += len(ix.Manifests); *seen > maxManifests {
		return nil, isle.Errorf(isle.Invalid, "the index lists more than %d images", maxManifests)
	}
	// The plainest first: one without a variant, where none is asked for.
	var nested, fit []Descriptor
	for _, d := range ix.Manifests {
		switch kind := mediaType(d.MediaType); {
		case kind == typeIndex || kind == typeDockerList:
			nested = append(nested, d)
		case kind != typeManifest && kind != typeDockerManifest:
		case d.Platform == nil:
			if p, err := platformOf(ctx, content, d); err == nil && p.fits(want) {
				fit = append(fit, d)
			} else if err == nil {
				*offers = append(*offers, p.String())
			}
		case d.Platform.fits(want):
			fit = append(fit, d)
		case d.Platform.OS != "unknown": // attestations are for no platform
			*offers = append(*offers, clip(d.Platform.String()))
		}
	}
	if i := slices.IndexFunc(fit, func(d Descriptor) bool { return d.Platform == nil || d.Platform.Variant == want.Variant }); i >= 0 {
		return &fit[i], nil
	}
	if len(fit) > 0 {
		return &fit[0], nil
	}
	for _, d := range nested {
		if found, err := choose(ctx, content, d, want, depth+1, seen, offers); err != nil || found != nil {
			return found, err
		}
	}
	return nil, nil
}

// platformOf reads a manifest's platform from its configuration.
func platformOf(ctx context.Context, content Content, d Descriptor) (Platform, error) {
	m, err := readManifest(ctx, content, d)
	if err != nil {
		return Platform{}, err
	}
	c, _, err := readConfig(ctx, content, m.Config)
	return Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}, err
}

func readManifest(ctx context.Context, content Content, d Descriptor) (m manifest, err error) {
	b, err := content.read(ctx, d)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, isle.Errorf(isle.Invalid, "the manifest %s cannot be read: %w", d.Digest.Short(), err)
	}
	return m, nil
}

func readConfig(ctx context.Context, content Content, d Descriptor) (c configFile, raw []byte, err error) {
	if raw, err = content.read(ctx, d); err != nil {
		return c, nil, err
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, nil, isle.Errorf(isle.Invalid, "the image's configuration %s cannot be read: %w", d.Digest.Short(), err)
	}
	return c, raw, nil
}

// fromManifest is the picture that a manifest describes.
func fromManifest(ctx context.Context, content Content, d Descriptor, want Platform) (Picture, error) {
	m, err := readManifest(ctx, content, d)
	if err != nil {
		return Picture{}, err
	}
	c, _, err := readConfig(ctx, content, m.Config)
	if err != nil {
		return Picture{}, err
	}
	p, err := newPicture(d.Digest, c, len(m.Layers), want)
	if err != nil {
		return Picture{}, err
	}
	for i, l := range m.Layers {
		switch {
		case !l.Digest.Valid() || l.Size < 0:
			return Picture{}, isle.Errorf(isle.Invalid, "layer %d: %.80q with %d bytes is no layer that can be checked", i+1, l.Digest, l.Size)
		case len(l.URLs) > 0 || strings.Contains(l.MediaType, "foreign") || strings.Contains(l.MediaType, "nondistributable"):
			return Picture{}, isle.Errorf(isle.Invalid, "layer %d is not in the image but at an address elsewhere, which is not fetched", i+1)
		case strings.Contains(l.MediaType, "encrypted"):
			return Picture{}, isle.Errorf(isle.Invalid, "layer %d is encrypted, which is not supported", i+1)
		}
		p.Layers[i].Digest, p.Layers[i].Size = l.Digest, l.Size
		p.Layers[i].open = func(ctx context.Context) (io.ReadCloser, error) { return content(ctx, l) }
	}
	return p, nil
}

// newPicture checks a configuration and makes a picture of it, whose layers lack
// content yet.
func newPicture(source isle.Digest, c configFile, layers int, want Platform) (Picture, error) {
	p := Picture{Digest: source, Platform: Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}}
	switch {
	case !p.Platform.fits(want):
		return p, isle.Errorf(isle.Invalid, "the image is for %s, and this machine is %s", clip(p.Platform.String()), want).WithHint("get it for %s", want)
	case c.RootFS.Type != "layers" && c.RootFS.Type != "":
		return p, isle.Errorf(isle.Invalid, "the image's root is of %.40q and not of layers", c.RootFS.Type)
	case len(c.RootFS.DiffIDs) != layers:
		return p, isle.Errorf(isle.Invalid, "the image has %d layers, and its configuration names %d", layers, len(c.RootFS.DiffIDs))
	case layers > maxLayers:
		return p, isle.Errorf(isle.Exhausted, "the image has %d layers; at most %d are possible", layers, maxLayers).WithHint("squash it")
	}
	var err error
	if p.Config, err = c.config(); err != nil {
		return p, err
	}
	var titles []string
	for _, h := range c.History {
		if !h.EmptyLayer {
			titles = append(titles, h.CreatedBy)
		}
	}
	for i, d := range c.RootFS.DiffIDs {
		if !d.Valid() {
			return p, isle.Errorf(isle.Invalid, "layer %d: diff_id %.80q is no sha256 digest", i+1, d)
		}
		l := PictureLayer{DiffID: d, Title: fmt.Sprintf("layer %d", i+1)}
		if len(titles) == layers && titles[i] != "" {
			l.Title = clip(titles[i])
		}
		p.Layers = append(p.Layers, l)
	}
	return p, nil
}

// config is what is kept of a configuration.
func (c configFile) config() (image.Config, error) {
	in := c.Config
	out := image.Config{
		User: in.User, Entrypoint: in.Entrypoint, Cmd: in.Cmd, Env: in.Env, Workdir: in.WorkingDir, Labels: in.Labels,
		StopSignal: in.StopSignal, Shell: in.Shell, OnBuild: in.OnBuild, Author: c.Author,
		Volumes: sortedKeys(in.Volumes), Ports: sortedKeys(in.ExposedPorts),
	}
	if h := in.Healthcheck; h != nil {
		out.Healthcheck = &image.Healthcheck{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries}
	}
	b, err := json.Marshal(out)
	if err != nil {
		return out, isle.Errorf(isle.Invalid, "the image's configuration cannot be kept: %w", err)
	}
	if len(b) > maxConfig {
		return out, isle.Errorf(isle.Exhausted, "the image's configuration has %d bytes of variables, labels and commands; at most %d are kept", len(b), maxConfig)
	}
	if strings.Contains(string(b), `\u0000`) {
		return out, isle.Errorf(isle.Invalid, "the image's configuration has a NUL in a text, which no command or variable can have")
	}
	if out.Workdir != "" && !strings.HasPrefix(out.Workdir, "/") {
		out.Workdir = "/" + out.Workdir
	}
	return out, nil
}

func sortedKeys[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// mediaType is a media type without parameters.
func mediaType(s string) string {
	s, _, _ = strings.Cut(s, ";")
	return strings.TrimSpace(s)
}

// clip makes one short line of a text from outside.
func clip(s string) string {
	if len(s) > 1024 {
		s = s[:1024]
	}
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "\uFFFD"), func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if r := []rune(s); len(r) > 80 {
		return string(r[:79]) + "…"
	}
	return s
}
