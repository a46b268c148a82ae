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
	out := []Change{}
	err := m.eachVolume(ctx, actor, ref, service, func(w *entered, volume string) error {
		changes, err := m.diffVolume(ctx, w, volume)
		out = append(out, changes...)
		return err
	})
	return out, err
}

// Files lists what is in the volumes of a service now, or of all services if none
// is named, by "SERVICE:PATH".
func (m *Manager) Files(ctx context.Context, actor isle.Actor, ref isle.Ref, service string) (map[string]spec.Tree, error) {
	out := map[string]spec.Tree{}
	err := m.eachVolume(ctx, actor, ref, service, func(w *entered, volume string) (err error) {
		out[w.service+":"+volume], err = w.line.List(ctx, volume)
		return err
	})
	return out, err
}

// eachVolume calls do in each service that has volumes, or in the one named, for
// each of them.
func (m *Manager) eachVolume(ctx context.Context, actor isle.Actor, ref isle.Ref, service string, do func(w *entered, volume string) error) error {
	l, err := m.get(ref)
	if err != nil {
		return err
	}
	if service != "" {
		if service, err = l.choose(service); err != nil {
			return err
		}
	}
	for _, svc := range l.snapshot().Spec.Services {
		if len(svc.Volumes) == 0 || service != "" && svc.Name != service {
			continue
		}
		w, err := m.enter(ctx, actor, ref, svc.Name, isle.ActionEnvironmentDiff, "")
		if err != nil {
			return err
		}
		for _, want := range svc.Volumes {
			if err = do(w, want.Path); err != nil {
				break
			}
		}
		w.exit(err)
		if err != nil {
			return err
		}
	}
	return nil
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
	var changes []Change
	for _, c := range spec.CompareTrees(was, is) {
		changes = append(changes, Change{w.service, volume, c.Path, c.Kind, c.Size})
	}
	return changes, nil
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
