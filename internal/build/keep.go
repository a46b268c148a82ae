package build

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"isle"
)

// Keep says what a collection of garbage leaves alone for the sake of builds:
// the layers of each project's last images, and the packages and copied files
// that its last lock names, of projects that were built since the time given.
func (b *Builder) Keep(since time.Time) (layers, blobs func(isle.Digest) bool) {
	keepLayers, keepBlobs := map[isle.Digest]bool{}, map[isle.Digest]bool{}
	for _, st := range b.projects() {
		if st.Lock == nil || time.Unix(st.Built, 0).Before(since) {
			continue
		}
		for _, d := range st.Images {
			m, err := b.Images.Image(d)
			if err != nil {
				continue
			}
			for _, l := range m.Layers {
				keepLayers[l.Digest] = true
			}
		}
		for _, s := range st.Lock.Services {
			for _, p := range s.Packages {
				keepBlobs[p.Digest] = true
			}
			for _, n := range s.Network {
				for _, m := range n.Materials {
					keepBlobs[m.Digest] = true
				}
			}
			if s.Image != nil { // the list alone: its files are layers by now
				keepBlobs[s.Image.Tree] = true
			}
			trees := make([]isle.Digest, 0, len(s.Copy)+2)
			for _, c := range s.Copy {
				trees = append(trees, c.Tree)
			}
			if s.Build != nil {
				trees = append(trees, s.Build.Tree, s.Build.File)
			}
			for _, t := range trees {
				for _, d := range b.treeFiles(t) {
					keepBlobs[d] = true
				}
			}
		}
	}
	return func(d isle.Digest) bool { return keepLayers[d] }, func(d isle.Digest) bool { return keepBlobs[d] }
}

func (b *Builder) projects() []projectState {
	dirs, err := os.ReadDir(filepath.Join(b.Cache, "projects"))
	if err != nil {
		return nil
	}
	var out []projectState
	for _, d := range dirs {
		var st projectState
		if readJSON(b.projectPath(d.Name(), "state.json"), &st) {
			out = append(out, st)
		}
	}
	return out
}

// Prune forgets records of steps and images whose layers the store no longer
// has. It is for after a collection.
func (b *Builder) Prune() {
	b.importer().Prune()
	for _, name := range jsonFiles(filepath.Join(b.Cache, "steps")) {
		var r record
		whole := readJSON(name, &r) && (len(r.Layers) == 0) == r.Empty
		for _, l := range r.Layers {
			whole = whole && b.Images.HasLayer(l.Digest)
		}
		if !whole {
			os.Remove(name)
		}
	}
	for _, name := range jsonFiles(filepath.Join(b.Cache, "images")) {
		d := isle.Digest("sha256:" + strings.TrimSuffix(filepath.Base(name), ".json"))
		if _, err := b.Images.Image(d); err != nil {
			os.Remove(name)
		}
	}
}

func jsonFiles(dir string) []string {
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil
	}
	return names
}
