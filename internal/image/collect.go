package image

import (
	"os"
	"path/filepath"
	"time"

	"isle"
)

// Collected says what Collect removed, or would remove.
type Collected struct {
	Images int   `json:"images"`
	Layers int   `json:"layers"`
	Blobs  int   `json:"blobs"`
	Bytes  int64 `json:"bytes"`
}

// Collect removes layers and blobs that keep says no to, and images that lack a
// layer then. What people named stays. It is a Conflict while someone holds the store, for what a build
// is about to use has no name yet.
func (s *Store) Collect(keepLayers, keepBlobs func(isle.Digest) bool, dryRun bool) (Collected, error) {
	if !s.using.TryLock() {
		return Collected{}, isle.Errorf(isle.Conflict, "a build or launch is using the image store").WithHint("try again when it is done")
	}
	defer s.using.Unlock()
	var c Collected
	named, err := s.named()
	if err != nil {
		return c, err
	}
	layers, err := s.list("layers")
	if err != nil {
		return c, err
	}
	kept := make(map[isle.Digest]bool)
	var gone []isle.Digest
	for _, d := range layers {
		if named[d] || keepLayers(d) {
			kept[d] = true
		} else {
			gone = append(gone, d)
		}
	}
	// Manifests first: a manifest whose layers are gone would be a lie.
	images, err := s.list("images")
	if err != nil {
		return c, err
	}
	for _, d := range images {
		m, err := s.Image(d)
		whole := err == nil
		for _, l := range m.Layers {
			whole = whole && kept[l.Digest]
		}
		if !whole {
			c.Images++
			if err := s.drop(s.path("images", d), dryRun, &c); err != nil {
				return c, err
			}
		}
	}
	if !dryRun {
		if err := s.dropNames(); err != nil {
			return c, err
		}
	}
	for _, d := range gone {
		c.Layers++
		if err := s.drop(s.LayerPath(d), dryRun, &c); err != nil {
			return c, err
		}
		if !dryRun {
			os.Remove(filepath.Join(s.dir, "stamps", d.Hex()))
		}
	}
	if err := s.dropPartials(time.Now(), dryRun, &c); err != nil {
		return c, err
	}
	blobs, err := s.list("blobs")
	if err != nil {
		return c, err
	}
	for _, d := range blobs {
		if keepBlobs(d) {
			continue
		}
		c.Blobs++
		if err := s.drop(s.BlobPath(d), dryRun, &c); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (s *Store) drop(path string, dryRun bool, c *Collected) error {
	if fi, err := os.Lstat(path); err == nil {
		c.Bytes += fi.Size()
	}
	if dryRun {
		return nil
	}
	s.mu.Lock()
	delete(s.stamps, path)
	s.mu.Unlock()
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return storeError("remove "+filepath.Base(path), err)
	}
	return nil
}
