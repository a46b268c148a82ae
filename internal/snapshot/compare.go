package snapshot

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"isle"
	"isle/internal/seal"
	"isle/internal/spec"
)

// A State is what is compared: of an environment or of a snapshot.
type State struct {
	Spec     spec.File
	Packages map[string]map[string]string // by service: versions by name
	Files    map[string]spec.Tree         // of volumes, by Volume.Name
}

// A Difference is what differs between two states.
type Difference struct {
	Files         []FileChange
	Packages      []PackageChange
	Configuration []SettingChange
}

// A FileChange is one path of a volume.
type FileChange struct {
	Service, Volume string
	spec.TreeChange
}

// A PackageChange is one Debian package; a version is "" where it is not there.
type PackageChange struct {
	Service, Name, From, To string
}

// A SettingChange is one value of the environment's file, by the keys that lead
// to it: "services.db.command". It is "" where it is not there.
type SettingChange struct {
	Key, From, To string
}

// Compare says what differs, each kind in its order.
func Compare(a, b State) (Difference, error) {
	d := Difference{Files: []FileChange{}, Packages: []PackageChange{}, Configuration: []SettingChange{}}
	for _, name := range union(a.Files, b.Files) {
		service, volume, _ := strings.Cut(name, ":")
		for _, c := range spec.CompareTrees(a.Files[name], b.Files[name]) {
			d.Files = append(d.Files, FileChange{service, volume, c})
		}
	}
	for _, service := range union(a.Packages, b.Packages) {
		was, is := a.Packages[service], b.Packages[service]
		for _, name := range union(was, is) {
			if was[name] != is[name] {
				d.Packages = append(d.Packages, PackageChange{service, name, was[name], is[name]})
			}
		}
	}
	was, err := settings(a.Spec)
	if err != nil {
		return d, err
	}
	is, err := settings(b.Spec)
	if err != nil {
		return d, err
	}
	for _, key := range union(was, is) {
		if was[key] != is[key] {
			d.Configuration = append(d.Configuration, SettingChange{key, was[key], is[key]})
		}
	}
	return d, nil
}

// union are the keys of both, in their order.
func union[V any](a, b map[string]V) []string {
	all := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(all)
	return slices.Compact(all)
}

// settings are the values of an environment's file, by the keys that lead to
// them. Lists of texts are one value; of other lists each entry is one, by its
// name or path where it has one.
func settings(f spec.File) (map[string]string, error) {
	b, err := json.Marshal(f)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "an environment's file: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var root map[string]any
	if err := d.Decode(&root); err != nil {
		return nil, isle.Errorf(isle.Internal, "an environment's file: %w", err)
	}
	out := map[string]string{}
	flatten(out, "", root)
	return out, nil
}

func flatten(out map[string]string, at string, v any) {
	below := func(key string) string {
		if at == "" {
			return key
		}
		return at + "." + key
	}
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			flatten(out, below(k), x)
		}
		return
	case []any:
		for i, x := range v {
			m, ok := x.(map[string]any)
			if !ok {
				break // of texts
			}
			flatten(out, below(nameOf(m, i)), m)
			if i == len(v)-1 {
				return
			}
		}
	case string:
		if v != "" {
			out[at] = v
		}
		return
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err == nil {
		out[at] = strings.TrimSuffix(b.String(), "\n")
	}
}

// nameOf is what an entry of a list is called.
func nameOf(m map[string]any, i int) string {
	for _, key := range []string{"name", "path", "host", "to"} {
		if s, ok := m[key].(string); ok {
			return s
		}
	}
	return strconv.Itoa(i)
}

// Files lists what is in the volumes of a snapshot, or of one service of it.
func (s *Snapshots) Files(ctx context.Context, d isle.Digest, service string) (map[string]spec.Tree, error) {
	snap, done, err := s.Use(ctx, string(d))
	if err != nil {
		return nil, err
	}
	defer done()
	out := map[string]spec.Tree{}
	for _, v := range snap.Manifest.Volumes {
		if service != "" && v.Service != service {
			continue
		}
		f, err := seal.Open(s.cfg.Volumes.Path(snap.Local[v.Name()]))
		if err != nil {
			return nil, s.wrong(snap, "its volume "+v.Name(), err)
		}
		out[v.Name()], err = treeOf(ctx, f)
		f.Close()
		if err != nil {
			return nil, diskError("read volume "+v.Name()+" of snapshot "+d.Short(), err)
		}
	}
	return out, nil
}
