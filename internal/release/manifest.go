package release

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"isle"
	"isle/internal/image"
	"isle/internal/spec"
)

// Bounds of a manifest: it may be another server's.
const (
	MaxManifest = 4 << 20 // bytes of its encoding

	maxServices = 64
	maxLayers   = 1024 // of one image
	maxSize     = 16 << 40
)

// New is the manifest of a file and the images of its services.
func New(f spec.File, images map[string]image.Image) (Manifest, error) {
	m := Manifest{Version: Version, Project: f.Name, Spec: f, Services: []Service{}}
	for _, svc := range f.Services {
		img, ok := images[svc.Name]
		if !ok {
			return m, isle.Errorf(isle.Invalid, "service %s has no image", svc.Name)
		}
		img.Layers = slices.Clone(img.Layers)
		for i := range img.Layers {
			img.Layers[i].Title = ""
		}
		m.Services = append(m.Services, Service{Name: svc.Name, Digest: img.Digest(), Image: img})
	}
	return m, nil
}

// Encode returns the canonical encoding: JSON (RFC 8259) with the fields in the
// declared order, the keys of maps sorted, no insignificant space and HTML
// characters not escaped. It fails with Invalid for what is not whole.
func (m Manifest) Encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	out, err := encode(m)
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "a release's manifest: %w", err)
	}
	if len(out) > MaxManifest {
		return nil, isle.Errorf(isle.Invalid, "a release's manifest has %d bytes, at most %d", len(out), MaxManifest)
	}
	return out, nil
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// Decode reads a canonical encoding. It is strict: what Encode would not have
// written byte for byte is Invalid.
func Decode(b []byte) (Manifest, error) {
	if len(b) > MaxManifest {
		return Manifest{}, isle.Errorf(isle.Invalid, "a release's manifest has %d bytes, at most %d", len(b), MaxManifest)
	}
	var m Manifest
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return Manifest{}, isle.Errorf(isle.Invalid, "a release's manifest cannot be read: %w", err).WithHint("if a newer isle made it, use that")
	}
	again, err := m.Encode()
	if err != nil {
		return Manifest{}, err
	}
	if !bytes.Equal(again, b) {
		return Manifest{}, isle.Errorf(isle.Invalid, "a release's manifest is not in its canonical encoding")
	}
	return m, nil
}

// check says what is wrong with a manifest.
func (m Manifest) check() error {
	bad := func(format string, args ...any) error {
		return isle.Errorf(isle.Invalid, "a release's manifest is not whole: %s", fmt.Sprintf(format, args...))
	}
	switch {
	case m.Version != Version:
		return isle.Errorf(isle.Invalid, "the release's manifest has version %d, and this program knows version %d only", m.Version, Version)
	case !isle.ValidName(m.Project) || m.Project != m.Spec.Name:
		return bad("%q is no project, or not that of its file", clip(m.Project))
	case len(m.Services) == 0 || len(m.Services) > maxServices || len(m.Services) != len(m.Spec.Services):
		return bad("it has %d services, and its file %d", len(m.Services), len(m.Spec.Services))
	}
	for i, s := range m.Services {
		switch {
		case s.Name != m.Spec.Services[i].Name:
			return bad("%q is not service %d of its file", clip(s.Name), i+1)
		case s.Image.Format != image.FormatVersion:
			return bad("the image of service %s has format %d, and this program knows %d only", clip(s.Name), s.Image.Format, image.FormatVersion)
		case len(s.Image.Layers) == 0 || len(s.Image.Layers) > maxLayers:
			return bad("the image of service %s has %d layers", clip(s.Name), len(s.Image.Layers))
		case s.Digest != s.Image.Digest():
			return bad("the image of service %s is not the one that it is said to be", clip(s.Name))
		}
		for _, l := range s.Image.Layers {
			if !l.Digest.Valid() || l.Size < 0 || l.Size > maxSize || l.Title != "" || len(l.Kind) > 100 || strings.ContainsFunc(l.Kind, unicode.IsControl) {
				return bad("a layer of service %s, %s, is none", clip(s.Name), clip(string(l.Digest)))
			}
		}
	}
	if err := m.Spec.Check(); err != nil {
		return isle.Errorf(isle.Invalid, "the file in the release: %w", err)
	}
	return nil
}

// clip is text that is none, as far as it is of use.
func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), 100)], "") }
