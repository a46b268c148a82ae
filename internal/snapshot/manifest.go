package snapshot

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"isle"
)

// Bounds of a manifest: it may be another server's.
const (
	MaxManifest = 4 << 20 // bytes of its encoding
	MaxMessage  = 2 << 10 // bytes

	maxServices = 64
	maxLayers   = 1024 // of one image
	maxVolumes  = 1024
	maxFiles    = 1024     // of the memory
	maxSize     = 16 << 40 // bytes of a volume or file
	maxName     = 512      // bytes of an actor's name
	maxPath     = 4096
)

// Encode returns the canonical encoding: JSON (RFC 8259) with the fields in the
// declared order, the keys of maps sorted, no insignificant space, HTML
// characters not escaped, and times in UTC with at most microseconds. It fails
// with Invalid for what is not whole.
func (m Manifest) Encode() ([]byte, error) {
	m.Created = m.Created.UTC().Truncate(time.Microsecond)
	if err := m.check(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(m); err != nil {
		return nil, isle.Errorf(isle.Invalid, "a snapshot's manifest: %w", err)
	}
	out := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if len(out) > MaxManifest {
		return nil, isle.Errorf(isle.Invalid, "a snapshot's manifest has %d bytes, at most %d", len(out), MaxManifest)
	}
	return out, nil
}

// DecodeManifest reads a canonical encoding. It is strict: what Encode would not
// have written byte for byte is Invalid.
func DecodeManifest(b []byte) (Manifest, error) {
	if len(b) > MaxManifest {
		return Manifest{}, isle.Errorf(isle.Invalid, "a snapshot's manifest has %d bytes, at most %d", len(b), MaxManifest)
	}
	var m Manifest
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return Manifest{}, isle.Errorf(isle.Invalid, "a snapshot's manifest cannot be read: %w", err).WithHint("if a newer isle made it, use that")
	}
	again, err := m.Encode()
	if err != nil {
		return Manifest{}, err
	}
	if !bytes.Equal(again, b) {
		return Manifest{}, isle.Errorf(isle.Invalid, "a snapshot's manifest is not in its canonical encoding")
	}
	return m, nil
}

// Bytes is how much content the snapshot has: what is not zero in its volumes,
// and its memory.
func (m Manifest) Bytes() (n int64) {
	for _, v := range m.Volumes {
		n += v.Bytes
	}
	if m.Memory != nil {
		for _, f := range m.Memory.Files {
			n += f.Size
		}
	}
	return n
}

// sort puts volumes and files in their order.
func (m *Manifest) sort() {
	m.Volumes = slices.Clone(m.Volumes)
	slices.SortFunc(m.Volumes, compareVolumes)
	if m.Volumes == nil {
		m.Volumes = []Volume{}
	}
	if m.Memory != nil {
		memory := *m.Memory
		memory.Files = slices.Clone(memory.Files)
		slices.SortFunc(memory.Files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
		m.Memory = &memory
	}
}

func compareVolumes(a, b Volume) int {
	return cmp.Or(strings.Compare(a.Service, b.Service), strings.Compare(a.Path, b.Path))
}

// check says what is wrong with a manifest, the file of the environment aside:
// that is checked where it may be foreign.
func (m Manifest) check() error {
	bad := func(format string, args ...any) error {
		return isle.Errorf(isle.Invalid, "a snapshot's manifest is not whole: %s", fmt.Sprintf(format, args...))
	}
	switch {
	case m.Version != Version:
		return isle.Errorf(isle.Invalid, "the snapshot's manifest has version %d, and this program knows version %d only", m.Version, Version)
	case !isle.ValidName(m.Ref.Name) || !isle.ValidName(m.Ref.Stage):
		return bad("%q is no environment", clip(m.Ref.Name+"@"+m.Ref.Stage))
	case !isle.ValidName(m.Project):
		return bad("%q is no project", clip(m.Project))
	case !m.Instance.Valid():
		return bad("%q is no instance", clip(string(m.Instance)))
	case m.Isolation != "container" && m.Isolation != "gvisor":
		return bad("%q is no isolation class", clip(m.Isolation))
	case !validActor(m.Author):
		return bad("%q is nobody who could have made it", clip(m.Author.String()))
	case m.Created.IsZero() || m.Created.Year() > 9999:
		return bad("it has no time")
	case CheckMessage(m.Message) != nil:
		return CheckMessage(m.Message)
	case m.Parent != "" && !m.Parent.Valid():
		return bad("%q is no digest of a parent", clip(string(m.Parent)))
	case len(m.Release) > maxName || !printable(m.Release, false):
		return bad("%q is no release", clip(m.Release))
	case m.Generation < 0 || m.Generation > math.MaxInt64/2:
		return bad("its generation is %d", m.Generation)
	}
	if err := m.checkServices(bad); err != nil {
		return err
	}
	if err := m.checkVolumes(bad); err != nil {
		return err
	}
	return m.Memory.check(bad)
}

// CheckMessage says what is wrong with what somebody says of a snapshot.
func CheckMessage(s string) error {
	if len(s) > MaxMessage || !printable(s, true) {
		return isle.Errorf(isle.Invalid, "the message of a snapshot is longer than %d bytes, or holds characters that cannot be shown", MaxMessage)
	}
	return nil
}

type bad func(format string, args ...any) error

func (m Manifest) checkServices(bad bad) error {
	if len(m.Services) == 0 || len(m.Services) > maxServices || len(m.Services) != len(m.Spec.Services) {
		return bad("it has %d services, and its file %d", len(m.Services), len(m.Spec.Services))
	}
	seen := map[string]bool{}
	for _, s := range m.Services {
		_, named := m.Spec.Service(s.Name)
		switch {
		case !isle.ValidName(s.Name) || seen[s.Name] || !named:
			return bad("%q is no service of its file, or is there twice", clip(s.Name))
		case !s.Launch.Valid():
			return bad("%q is no launch of service %s", clip(string(s.Launch)), s.Name)
		case s.SecretHash != "" && !s.SecretHash.Valid():
			return bad("the hash of service %s's secret is none", s.Name)
		case !validPhase(s.Phase) || s.ExitCode != nil && (*s.ExitCode < 0 || *s.ExitCode > 255):
			return bad("service %s was %q", s.Name, clip(s.Phase))
		case len(s.Image.Layers) == 0 || len(s.Image.Layers) > maxLayers:
			return bad("the image of service %s has %d layers", s.Name, len(s.Image.Layers))
		}
		for _, l := range s.Image.Layers {
			if !l.Digest.Valid() || l.Size < 0 || l.Size > maxSize || len(l.Title) > maxPath || !printable(l.Kind, false) {
				return bad("a layer of service %s, %s, is none", s.Name, clip(string(l.Digest)))
			}
		}
		seen[s.Name] = true
	}
	return nil
}

// validPhase reports whether s is what a service may have been; "" where no
// memory was captured.
func validPhase(s string) bool {
	switch s {
	case "", "running", "unhealthy", "starting", "exited", "failed", "pending":
		return true
	}
	return false
}

func (m Manifest) checkVolumes(bad bad) error {
	if m.Volumes == nil || len(m.Volumes) > maxVolumes || !slices.IsSortedFunc(m.Volumes, compareVolumes) {
		return bad("its volumes are missing, more than %d, or not in their order", maxVolumes)
	}
	for i, v := range m.Volumes {
		_, named := m.Spec.Service(v.Service)
		switch {
		case i > 0 && compareVolumes(m.Volumes[i-1], v) == 0:
			return bad("it has volume %s twice", clip(v.Name()))
		case !named || !path.IsAbs(v.Path) || path.Clean(v.Path) != v.Path || v.Path == "/" || len(v.Path) > maxPath || !printable(v.Path, false):
			return bad("%q is no volume of its file", clip(v.Name()))
		case v.Size <= 0 || v.Size > maxSize || v.Bytes < 0 || v.Bytes > v.Size || !v.Digest.Valid():
			return bad("the sizes or the digest of volume %s are none", clip(v.Name()))
		}
	}
	return nil
}

func (m *Memory) check(bad bad) error {
	if m == nil {
		return nil
	}
	if !m.Runtime.Valid() || len(m.Files) == 0 || len(m.Files) > maxFiles {
		return bad("its memory has no runtime, or %d files", len(m.Files))
	}
	for i, f := range m.Files {
		switch {
		case !validFile(f.Name) || i > 0 && m.Files[i-1].Name >= f.Name:
			return bad("%q is no file of a memory, or not in its place", clip(f.Name))
		case f.Size < 0 || f.Size > maxSize || !f.Digest.Valid():
			return bad("the size or the digest of the memory's %s is none", f.Name)
		}
	}
	return nil
}

// validFile reports whether s can name a file of the memory. It guards where the
// name becomes part of a path.
func validFile(s string) bool {
	if s == "" || len(s) > 100 || s[0] == '.' {
		return false
	}
	for _, c := range s {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

func validActor(a isle.Actor) bool {
	switch a.Kind {
	case isle.Human, isle.Machine, isle.Workload, isle.System:
		return a.Name != "" && len(a.Name) <= maxName && printable(a.Name, false)
	}
	return false
}

// printable reports whether s can be shown to people as it is.
func printable(s string, lines bool) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool {
		return !unicode.IsPrint(r) && !(lines && (r == '\n' || r == '\t'))
	}) < 0
}

// clip is text that is none, as far as it is of use.
func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), 100)], "") }
