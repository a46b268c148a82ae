package image

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"isle"
)

// The ways in which an image gets a Name.
const (
	FromArchive  = "archive"  // a file or folder that somebody sent
	FromRegistry = "registry" // pulled by that name
	FromBuild    = "build"    // a service that was built last; the name goes with the image
)

// maxImageName bounds a name in bytes; the OCI distribution specification asks for
// no more than 255 for the repository and 128 for the tag.
const maxImageName = 512

// A Name is what people call an image of the store. It points to one image, and
// to another when it is given again.
type Name struct {
	Name  string      `json:"name"` // "localhost/shop:1"
	Image isle.Digest `json:"image"`
	From  string      `json:"from"` // FromArchive, FromRegistry, FromBuild
	// Source is the digest of the OCI manifest that the image was made from.
	Source isle.Digest `json:"source,omitempty"`
	// Config is how a built image is run, which its file says and not the image.
	Config *Config `json:"config,omitempty"`
	// LeftOut are things of the archive that no image of Isle has: devices, pipes.
	LeftOut []string  `json:"left_out,omitempty"`
	Time    time.Time `json:"time"` // when the name was given
}

// Runs is how the image that is called so is run.
func (n Name) Runs(m Image) *Config {
	if n.Config != nil {
		return n.Config
	}
	return m.Config
}

// SetName calls an image of the store by a name, which nothing else has then.
func (s *Store) SetName(n Name) error {
	if n.Name == "" || len(n.Name) > maxImageName {
		return isle.Errorf(isle.Invalid, "%.100q is no name of an image: want 1 to %d bytes", n.Name, maxImageName)
	}
	if _, err := s.Image(n.Image); err != nil {
		return err
	}
	if old, err := s.Named(n.Name); err == nil {
		old.Time = n.Time
		if was, is := encodeName(old), encodeName(n); string(was) == string(is) {
			return nil // two fsyncs less
		}
	}
	w, err := s.newDraft()
	if err != nil {
		return err
	}
	defer w.discard()
	if _, err := w.Write(encodeName(n)); err != nil {
		return storeError("name an image", err)
	}
	return storeError("name an image", w.publish(s.namePath(n.Name)))
}

func encodeName(n Name) []byte {
	b, err := json.Marshal(n)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return b
}

// Named is the image that has a name.
func (s *Store) Named(name string) (Name, error) {
	n, err := readName(s.namePath(name))
	if errors.Is(err, fs.ErrNotExist) || err == nil && n.Name != name {
		return Name{}, isle.Errorf(isle.NotFound, "there is no image %.200s", name).WithHint("`isle image ls` shows those there are")
	}
	return n, storeError("read the name of an image", err)
}

// Names are all names of images, sorted. A name whose record was damaged is left
// out.
func (s *Store) Names() ([]Name, error) {
	files, err := os.ReadDir(filepath.Join(s.dir, "names"))
	if err != nil {
		return nil, storeError("list the names of images", err)
	}
	var out []Name
	for _, f := range files {
		if n, err := readName(filepath.Join(s.dir, "names", f.Name())); err == nil {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b Name) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// RemoveName takes a name away; the image goes at the next collection, unless
// something else needs it.
func (s *Store) RemoveName(name string) error {
	if _, err := s.Named(name); err != nil {
		return err
	}
	if err := os.Remove(s.namePath(name)); err != nil {
		return storeError("remove the name of an image", err)
	}
	return storeError("remove the name of an image", syncDir(filepath.Join(s.dir, "names")))
}

func (s *Store) namePath(name string) string {
	return filepath.Join(s.dir, "names", isle.DigestOf([]byte(name)).Hex())
}

func readName(path string) (n Name, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return n, err
	}
	return n, json.Unmarshal(b, &n)
}

// named are the layers of images that people named, which no collection takes.
func (s *Store) named() (map[isle.Digest]bool, error) {
	names, err := s.Names()
	if err != nil {
		return nil, err
	}
	keep := map[isle.Digest]bool{}
	for _, n := range names {
		m, err := s.Image(n.Image)
		if n.From == FromBuild || err != nil {
			continue
		}
		for _, l := range m.Layers {
			keep[l.Digest] = true
		}
	}
	return keep, nil
}

// dropNames removes the names of images that are no longer there.
func (s *Store) dropNames() error {
	names, err := s.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if _, err := s.Image(n.Image); isle.CodeOf(err) == isle.NotFound {
			if err := s.RemoveName(n.Name); err != nil {
				return err
			}
		}
	}
	return nil
}
