package environment

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"isle"
	"isle/internal/spec"
)

// A Change is one path of a volume that differs from its baseline.
type Change struct {
	Service string
	Volume  string // its path inside
	Path    string // relative to the volume
	Kind    string // "added", "modified", "deleted"
	Size    int64
}

// CopyIn extracts a tar stream below dir in a service. With baseline the volume
// that holds dir is listed afterwards, and Diff compares with that.
func (m *Manager) CopyIn(ctx context.Context, actor isle.Actor, ref isle.Ref, service, dir string, baseline bool, tar io.Reader) error {
	if !path.IsAbs(dir) {
		return isle.Errorf(isle.Invalid, "%q is not an absolute path inside the service", dir)
	}
	w, err := m.enter(ctx, actor, ref, service, isle.ActionEnvironmentCopy, "into "+dir)
	if err != nil {
		return err
	}
	err = w.line.CopyIn(ctx, dir, tar, "")
	if err == nil && baseline {
		err = m.setBaseline(ctx, w, dir)
	}
	w.exit(err)
	return err
}

// CopyOut writes a file or folder of a service as a tar stream.
func (m *Manager) CopyOut(ctx context.Context, actor isle.Actor, ref isle.Ref, service, file string, tar io.Writer) error {
	if !path.IsAbs(file) {
		return isle.Errorf(isle.Invalid, "%q is not an absolute path inside the service", file)
	}
	w, err := m.enter(ctx, actor, ref, service, isle.ActionEnvironmentCopy, "out of "+file)
	if err != nil {
		return err
	}
	err = w.line.CopyOut(ctx, file, tar)
	w.exit(err)
	return err
}

// Folder lists what stands in a folder of a service, or what is at a path that is
// none. Who may copy files out may see their names.
func (m *Manager) Folder(ctx context.Context, actor isle.Actor, ref isle.Ref, service, dir string) ([]File, error) {
	if !path.IsAbs(dir) {
		return nil, isle.Errorf(isle.Invalid, "%q is not an absolute path inside the service", dir)
	}
	w, err := m.enter(ctx, actor, ref, service, isle.ActionEnvironmentCopy, "list of "+dir)
	if err != nil {
		return nil, err
	}
	files, err := w.line.Folder(ctx, dir)
	w.exit(err)
	return files, err
}

// Diff lists what changed in the volumes of a service, or of all services if
// none is named. A volume that was seeded with a baseline is compared with it;
// in one that was not, everything is added. Owners and times do not count.
func (m *Manager) Diff(ctx context.Context, actor isle.Actor, ref isle.Ref, service string) ([]Change, error) {
	l, err := m.get(ref)
	if err != nil {
		return nil, err
	}
	if service != "" {
		if service, err = l.choose(service); err != nil {
			return nil, err
		}
	}
	out := []Change{}
	rec := l.snapshot()
	for _, svc := range rec.Spec.Services {
		if len(svc.Volumes) == 0 || service != "" && svc.Name != service {
			continue
		}
		w, err := m.enter(ctx, actor, ref, svc.Name, isle.ActionEnvironmentDiff, "")
		if err != nil {
			return nil, err
		}
		for _, want := range svc.Volumes {
			var changes []Change
			if changes, err = m.diffVolume(ctx, w, want.Path); err != nil {
				break
			}
			out = append(out, changes...)
		}
		w.exit(err)
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (m *Manager) diffVolume(ctx context.Context, w *entered, volume string) ([]Change, error) {
	v, ok := m.volume(w.l.ref, w.service, volume)
	if !ok {
		return nil, isle.Errorf(isle.Internal, "volume %s of service %s has no record", volume, w.service)
	}
	is, err := w.line.List(ctx, volume)
	if err != nil {
		return nil, err
	}
	var was spec.Tree
	if v.Baseline != "" {
		b, err := os.ReadFile(m.baselinePath(v.ID))
		if err == nil && isle.DigestOf(b) != v.Baseline {
			err = errors.New("its digest is not the recorded one")
		}
		if err == nil {
			err = json.Unmarshal(b, &was)
		}
		if err != nil {
			return nil, isle.Errorf(isle.Unavailable, "what volume %s began as cannot be read: %w", volume, err)
		}
	}
	changes := compareTrees(was, is)
	for i := range changes {
		changes[i].Service, changes[i].Volume = w.service, volume
	}
	return changes, nil
}

// compareTrees lists what differs, sorted by path. Folders count when they come
// or go, and not for what is in them; an ext4 file system's own lost+found
// never does.
func compareTrees(was, is spec.Tree) (out []Change) {
	skip := func(e spec.TreeEntry) bool {
		return e.Path == "" || e.Path == "." || e.Path == "lost+found" || strings.HasPrefix(e.Path, "lost+found/")
	}
	before := map[string]spec.TreeEntry{}
	for _, e := range was.Entries {
		if !skip(e) {
			before[e.Path] = e
		}
	}
	for _, e := range is.Entries {
		if skip(e) {
			continue
		}
		old, ok := before[e.Path]
		delete(before, e.Path)
		switch {
		case !ok:
			out = append(out, Change{Path: e.Path, Kind: "added", Size: e.Size})
		case old != e:
			out = append(out, Change{Path: e.Path, Kind: "modified", Size: e.Size})
		}
	}
	for _, e := range before {
		out = append(out, Change{Path: e.Path, Kind: "deleted", Size: e.Size})
	}
	slices.SortFunc(out, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// baselinePath is the file that holds what a seeded volume began as.
func (m *Manager) baselinePath(id isle.ID) string {
	return filepath.Join(m.cfg.Logs, "baselines", string(id)+".json")
}

// setBaseline lists the volume that holds dir, keeps the list in a file, and
// its digest in the volume's record.
func (m *Manager) setBaseline(ctx context.Context, w *entered, dir string) error {
	rec := w.l.snapshot()
	svc, _ := rec.specOf(w.service)
	best := ""
	for _, v := range svc.Volumes {
		if (dir == v.Path || strings.HasPrefix(path.Clean(dir)+"/", v.Path+"/")) && len(v.Path) > len(best) {
			best = v.Path
		}
	}
	v, ok := m.volume(w.l.ref, w.service, best)
	if best == "" || !ok {
		return isle.Errorf(isle.Invalid, "%s is in no volume of service %s, so there is nothing to compare with later", dir, w.service)
	}
	tree, err := w.line.List(ctx, best)
	if err != nil {
		return err
	}
	b, err := json.Marshal(tree)
	if err != nil {
		return isle.Errorf(isle.Internal, "baseline of %s: %w", best, err)
	}
	if err := writeFile(m.baselinePath(v.ID), b); err != nil {
		return isle.Errorf(isle.Unavailable, "baseline of %s: %w", best, err)
	}
	v.Baseline = isle.DigestOf(b)
	if err := m.cfg.Store.Update(ctx, Mutation{PutVolumes: []Volume{v}}); err != nil {
		return err
	}
	m.remember([]Volume{v}, nil)
	return nil
}

// writeFile replaces a file whole, durable when it returns.
func writeFile(name string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	return err
}

// sweepFolder removes what keep does not name; a missing folder is empty.
func sweepFolder(dir string, keep func(name string) bool) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if !keep(e.Name()) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}
