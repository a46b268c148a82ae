package spec

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"isle"
)

// ConfigDigest is the digest of everything about a service, its image aside,
// that replaces the running service when it changes. Those are its own keys and
// the file's isolation and limits, and the hosts that are inspected, since a
// launch trusts what they are inspected with: what was launched is never changed
// in place. depends_on is not among them (it orders starts only), nor are the
// rest of egress, uses and ttl, which the environment follows without a new launch. The order of volumes,
// ports, tmpfs and caps means nothing.
func ConfigDigest(s Service, f File) isle.Digest {
	s.Image, s.Build, s.Suite, s.Packages, s.Copy, s.Run, s.Network, s.DependsOn = "", nil, "", nil, nil, nil, "", nil
	s.Volumes = sortedVolumes(s.Volumes)
	s.Ports = sortedPorts(s.Ports)
	s.Tmpfs = slices.Sorted(slices.Values(s.Tmpfs))
	s.Caps = slices.Sorted(slices.Values(s.Caps))
	b, err := json.Marshal(struct {
		Service   Service
		Isolation string
		Limits    Limits
		Inspected []string `json:",omitempty"`
	}{s, f.Isolation, f.Limits, f.Inspected()})
	if err != nil {
		panic(err) // strings and finite numbers only
	}
	return isle.DigestOf(b)
}

func sortedVolumes(v []Volume) []Volume {
	return slices.SortedFunc(slices.Values(v), func(a, b Volume) int { return cmp.Compare(a.Path, b.Path) })
}

func sortedPorts(p []Port) []Port {
	return slices.SortedFunc(slices.Values(p), func(a, b Port) int { return cmp.Compare(a.Name, b.Name) })
}

// Explain says the first thing about a service that differs, in words: "command
// changed", "env LOG_LEVEL changed". It is empty if nothing does.
func Explain(old, new Service) string {
	if s := explainMap("env", old.Env, new.Env); s != "" {
		return s
	}
	volumes := func(s Service) map[string]int64 {
		out := map[string]int64{}
		for _, v := range s.Volumes {
			out[v.Path] = v.Size
		}
		return out
	}
	ports := func(s Service) map[string]int {
		out := map[string]int{}
		for _, p := range s.Ports {
			out[p.Name] = p.Number
		}
		return out
	}
	if s := explainMap("volume", volumes(old), volumes(new)); s != "" {
		return s
	}
	if s := explainMap("port", ports(old), ports(new)); s != "" {
		return s
	}
	if s := explainSet("tmpfs", old.Tmpfs, new.Tmpfs); s != "" {
		return s
	}
	if s := explainSet("capability", old.Caps, new.Caps); s != "" {
		return s
	}
	for _, f := range []struct {
		name     string
		old, new any
	}{
		{"command", old.Command, new.Command}, {"args", old.Args, new.Args}, {"user", old.User, new.User}, {"workdir", old.Workdir, new.Workdir},
		{"setup", old.Setup, new.Setup}, {"on_fork", old.OnFork, new.OnFork}, {"healthcheck", old.Healthcheck, new.Healthcheck}, {"restart", old.Restart, new.Restart}, {"writable", old.Writable, new.Writable},
		{"image", old.Image, new.Image}, {"build", old.Build, new.Build}, {"suite", old.Suite, new.Suite}, {"network", old.Network, new.Network},
	} {
		if !same(f.old, f.new) {
			return f.name + " changed"
		}
	}
	if s := explainSet("package", old.Packages, new.Packages); s != "" {
		return s
	}
	switch {
	case !same(old.Copy, new.Copy):
		return "copy changed"
	case !same(old.Run, new.Run):
		return "run changed"
	case !same(old.DependsOn, new.DependsOn):
		return "depends_on changed"
	}
	return ""
}

// ExplainIn is Explain for the service of that name in two files, with what the
// files as a whole say and ConfigDigest covers.
func ExplainIn(old, new File, service string) string {
	a, was := old.Service(service)
	b, is := new.Service(service)
	switch {
	case !was && !is:
		return ""
	case !was:
		return "service added"
	case !is:
		return "service removed"
	}
	if s := Explain(a, b); s != "" {
		return s
	}
	switch {
	case old.Isolation != new.Isolation:
		return "isolation changed"
	case old.Limits.CPUs != new.Limits.CPUs:
		return "limit of cpus changed"
	case old.Limits.Memory != new.Limits.Memory:
		return "limit of memory changed"
	case old.Limits.PIDs != new.Limits.PIDs:
		return "limit of pids changed"
	case !same(old.Inspected(), new.Inspected()):
		return "inspected egress changed"
	}
	return ""
}

// same compares values; a missing list and an empty one are the same.
func same(a, b any) bool {
	va, vb := reflect.ValueOf(a), reflect.ValueOf(b)
	if va.Kind() == reflect.Slice && va.Len() == 0 && vb.Len() == 0 {
		return true
	}
	return reflect.DeepEqual(a, b)
}

func explainMap[V comparable](kind string, old, new map[string]V) string {
	for _, k := range slices.Sorted(maps.Keys(new)) {
		if v, was := old[k]; !was {
			return fmt.Sprintf("%s %s added", kind, k)
		} else if v != new[k] {
			return fmt.Sprintf("%s %s changed", kind, k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(old)) {
		if _, is := new[k]; !is {
			return fmt.Sprintf("%s %s removed", kind, k)
		}
	}
	return ""
}

func explainSet(kind string, old, new []string) string {
	set := func(in []string) map[string]bool {
		out := map[string]bool{}
		for _, s := range in {
			out[s] = true
		}
		return out
	}
	return explainMap(kind, set(old), set(new))
}
