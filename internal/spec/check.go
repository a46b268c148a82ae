package spec

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"isle"
	"isle/internal/document"
)

// check finds what only several values together show. Values that could not be
// read are zero here and told already.
func (r *reader) check(f *File) {
	if n := r.at["services"]; n != nil && len(f.Services) == 0 && len(r.Problems()) == 0 {
		r.ProblemAt(n, "services", "names no service; want at least one")
	}
	r.checkPorts(f)
	r.checkDependencies(f)
	for i := range f.Services {
		s := &f.Services[i]
		r.checkMounts(s)
		r.checkCopies(s)
		r.checkTwice(s)
		r.checkBegin(s)
		if s.Writable > f.Limits.Memory && f.Limits.Memory > 0 {
			r.problemFor(document.Path("services", s.Name, "writable"), "%s is more than limits.memory, %s, which it counts as; lower it, or raise the limit", FormatSize(s.Writable), FormatSize(f.Limits.Memory))
		}
		if len(s.Setup) > 0 && len(s.Volumes) == 0 {
			r.problemFor(document.Path("services", s.Name, "setup"), "runs once while the volumes are empty, and there are no volumes; add one, or do it in `run` or `command`")
		}
	}
	seen := map[string]bool{}
	for i, e := range f.Egress {
		where := fmt.Sprintf("%s:%d", e.Host, e.Port)
		if e.Host != "" && seen[where] {
			r.problemFor(document.Path("egress", fmt.Sprintf("[%d]", i)), "%s is here a second time; remove one", where)
		}
		seen[where] = true
		if _, err := netip.ParseAddr(e.Host); err == nil && e.Inspect {
			r.problemFor(document.Path("egress", fmt.Sprintf("[%d]", i)), "%s is an address, and a certificate is for a name; name the host, or leave `inspect` out", e.Host)
		}
	}
	r.checkUses(f)
	r.checkStages(f)
	if f.Warm && f.Isolation == Container {
		r.problemFor("warm", "needs memory that can be captured, which isolation container has not; add `isolation: gvisor`, or remove it")
	}
	if s := f.Schema; s != nil && s.CompatibleWith > s.Version {
		r.problemFor(document.Path("schema", "compatible_with"), "is %d, and the schema has version %d: a release is compatible with its own version at the most", s.CompatibleWith, s.Version)
	}
	if why := f.tooSmall(); why != "" {
		r.problemFor(document.Path("limits", "memory"), "%s", why)
	}
}

// What gVisor's own processes take of an environment's memory, in bytes: once, and
// for each service. One service starts with 32 MiB and not with 24, four with 80
// and not with 64; at rest they have 32 and 57 MiB. The rest is for what differs
// between machines, and for a first program.
const (
	sandboxMemory = 32 << 20
	serviceMemory = 16 << 20
)

// tooSmall says why the memory of the limits is not enough for the class, "" if it
// may be.
func (f File) tooSmall() string {
	least := int64(sandboxMemory + len(f.Services)*serviceMemory)
	if f.Isolation != Gvisor || f.Limits.Memory == 0 || f.Limits.Memory >= least {
		return ""
	}
	services := "one service"
	if len(f.Services) > 1 {
		services = fmt.Sprintf("%d services", len(f.Services))
	}
	return fmt.Sprintf("%s is too little for isolation %s with %s: its kernel takes %s, and %s more for each service, before a program has any; want %s at least",
		FormatSize(f.Limits.Memory), Gvisor, services, FormatSize(sandboxMemory), FormatSize(serviceMemory), FormatSize(least))
}

// Sandboxed is f in the class gvisor. It fails with Invalid where its limits are
// too small for that.
func (f File) Sandboxed() (File, error) {
	f.Isolation = Gvisor
	if why := f.tooSmall(); why != "" {
		return File{}, isle.Errorf(isle.Invalid, "limits.memory: %s", why).WithHint("raise limits.memory, or name a class in the file: isolation: container")
	}
	return f, nil
}

// checkUses refuses a connection whose name means something else inside.
func (r *reader) checkUses(f *File) {
	taken := map[string]bool{} // names inside
	for i, connection := range f.Uses {
		path := document.Path("uses", fmt.Sprintf("[%d]", i))
		name := connection
		if as, ok := f.UsesAs[connection]; ok {
			path, name = document.Path("uses_as", connection), as
		}
		_, service := f.Service(name)
		switch {
		case name == "":
		case slices.Contains(f.Uses[:i], connection):
			r.problemFor(document.Path("uses", fmt.Sprintf("[%d]", i)), "%s is here a second time; remove one", connection)
		case taken[name]:
			r.problemFor(path, "%s is another connection's name inside, and a name means one thing there", name)
		case service:
			r.problemFor(path, "%s is a service of this file, and a name means one thing inside; give the service another name", name)
		case slices.ContainsFunc(f.Egress, func(e Egress) bool { return e.Host == name }):
			r.problemFor(path, "%s is a host under egress, and a name means one thing inside; remove one", name)
		}
		taken[name] = true
	}
	for _, connection := range slices.Sorted(maps.Keys(f.UsesAs)) {
		if !slices.Contains(f.Uses, connection) {
			r.problemFor(document.Path("uses_as", connection), "%s is no connection under uses", connection)
		}
	}
}

// problemFor notes a problem of the value at a path.
func (r *reader) problemFor(path, format string, args ...any) {
	n := r.at[path]
	if n == nil {
		n = &yaml.Node{}
	}
	r.ProblemAt(n, path, format, args...)
}

// checkPorts refuses two listeners on one port: services share one network.
func (r *reader) checkPorts(f *File) {
	type holder struct{ service, path string }
	held := map[int]holder{}
	claim := func(service, path string, port int) {
		if port == 0 {
			return
		}
		h, taken := held[port]
		switch {
		case !taken:
			held[port] = holder{service, path}
		case h.service != service:
			r.problemFor(path, "services %q and %q both listen on port %d (%s), and they share one network; give one of them another port", h.service, service, port, h.path)
		case strings.Contains(path, ".ports.") && strings.Contains(h.path, ".ports."):
			r.problemFor(path, "port %d has two names; remove one", port)
		}
	}
	for _, s := range f.Services {
		for _, p := range s.Ports {
			claim(s.Name, document.Path("services", s.Name, "ports", p.Name), p.Number)
		}
	}
	for _, s := range f.Services {
		if s.Healthcheck != nil {
			claim(s.Name, document.Path("services", s.Name, "healthcheck", "tcp"), s.Healthcheck.TCP)
		}
	}
}

// checkDependencies refuses unknown services and cycles.
func (r *reader) checkDependencies(f *File) {
	var names []string
	for _, s := range f.Services {
		names = append(names, s.Name)
	}
	for _, s := range f.Services {
		seen := map[string]bool{}
		for i, d := range s.DependsOn {
			path := document.Path("services", s.Name, "depends_on", fmt.Sprintf("[%d]", i))
			switch {
			case d == "": // told already
			case d == s.Name:
				r.problemFor(path, "service %q depends on itself; remove it", d)
			case seen[d]:
				r.problemFor(path, "%q is here a second time; remove one", d)
			case !slices.Contains(names, d):
				best, near := nearest(d, names)
				hint := fmt.Sprintf("the services are %s", strings.Join(names, ", "))
				if near {
					hint = fmt.Sprintf("did you mean %q?", best)
				}
				r.problemFor(path, "there is no service %q; %s", d, hint)
			}
			seen[d] = true
		}
	}
	if c := cycle(f.Services); c != nil {
		r.problemFor(document.Path("services", c[0], "depends_on"), "services wait for each other in a circle: %s; remove one of these dependencies", strings.Join(c, " -> "))
	}
}

// cycle returns a circle of dependencies, its first service again at its end,
// or nil. A service that depends on itself is left to its own message.
func cycle(services []Service) []string {
	after := map[string][]string{}
	for _, s := range services {
		for _, d := range s.DependsOn {
			if d != s.Name {
				after[s.Name] = append(after[s.Name], d)
			}
		}
	}
	done := map[string]bool{}
	var trail []string
	var visit func(name string) []string
	visit = func(name string) []string {
		if i := slices.Index(trail, name); i >= 0 {
			return append(slices.Clone(trail[i:]), name)
		}
		if done[name] {
			return nil
		}
		trail = append(trail, name)
		for _, d := range after[name] {
			if c := visit(d); c != nil {
				return c
			}
		}
		trail = trail[:len(trail)-1]
		done[name] = true
		return nil
	}
	for _, s := range services {
		if c := visit(s.Name); c != nil {
			return c
		}
	}
	return nil
}

// StartOrder returns the services' names so that each comes after those it
// depends on, otherwise in the order of the file. Reversed it is the order to
// stop in.
func StartOrder(f File) []string {
	byName := map[string]Service{}
	for _, s := range f.Services {
		byName[s.Name] = s
	}
	var out []string
	seen := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		s, known := byName[name]
		if seen[name] || !known {
			return
		}
		seen[name] = true
		for _, d := range s.DependsOn {
			visit(d)
		}
		out = append(out, name)
	}
	for _, s := range f.Services {
		visit(s.Name)
	}
	return out
}

// Service returns the service of that name.
func (f File) Service(name string) (Service, bool) {
	i := slices.IndexFunc(f.Services, func(s Service) bool { return s.Name == name })
	if i < 0 {
		return Service{}, false
	}
	return f.Services[i], true
}

// mounts are the paths that are mounted over a service's image, with where
// each is declared.
func mounts(s *Service) map[string]string {
	out := map[string]string{}
	for _, v := range s.Volumes {
		out[v.Path] = document.Path("services", s.Name, "volumes", v.Path)
	}
	for i, t := range s.Tmpfs {
		if t != "" {
			out[t] = document.Path("services", s.Name, "tmpfs", fmt.Sprintf("[%d]", i))
		}
	}
	return out
}

// checkMounts refuses volumes and tmpfs that lie in one another.
func (r *reader) checkMounts(s *Service) {
	all := mounts(s)
	paths := slices.Sorted(maps.Keys(all))
	for i, a := range paths {
		for _, b := range paths[i+1:] {
			if within(b, a) {
				r.problemFor(all[b], "%s lies in %s, which is a mount too; put them side by side", b, a)
			}
		}
	}
	for i, t := range s.Tmpfs {
		where := document.Path("services", s.Name, "tmpfs", fmt.Sprintf("[%d]", i))
		if t != "" && all[t] != where {
			r.problemFor(where, "%s is a tmpfs a second time; remove one", t)
		}
		if slices.ContainsFunc(s.Volumes, func(v Volume) bool { return v.Path == t }) {
			r.problemFor(where, "%s is a volume already; remove one of the two", t)
		}
	}
}

// checkCopies refuses files that a mount would hide.
func (r *reader) checkCopies(s *Service) {
	all := mounts(s)
	paths := append(slices.Sorted(maps.Keys(all)), "/tmp", "/run")
	for i, c := range s.Copy {
		for _, m := range paths {
			if c.To != "" && within(c.To, m) {
				r.problemFor(document.Path("services", s.Name, "copy", fmt.Sprintf("[%d]", i), "to"),
					"%s would be hidden by the volume or tmpfs at %s; copy to another path", c.To, m)
			}
		}
	}
}

// checkTwice refuses packages and capabilities that are named twice.
func (r *reader) checkTwice(s *Service) {
	seen := map[string]bool{}
	for i, p := range s.Packages {
		name, _, _ := strings.Cut(p, "=")
		if name != "" && seen[name] {
			r.problemFor(document.Path("services", s.Name, "packages", fmt.Sprintf("[%d]", i)), "package %q is here a second time; remove one", name)
		}
		seen[name] = true
	}
	for i, c := range s.Caps {
		if c != "" && slices.Index(s.Caps, c) < i {
			r.problemFor(document.Path("services", s.Name, "caps", fmt.Sprintf("[%d]", i)), "%s is here a second time; remove one", c)
		}
	}
}
