package release

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"isle"
	"isle/internal/document"
	"isle/internal/problem"
	"isle/internal/spec"
)

// Values are what is different in one stage, and no part of a release: they are
// put in its place when the release is launched there. Each replaces something
// that the release's file has.
type Values struct {
	Env    map[string]map[string]string `json:"env,omitempty"` // by service: variables that its env has
	Limits Limits                       `json:"limits,omitzero"`
	Uses   map[string]string            `json:"uses,omitempty"` // a connection that the file uses -> the one in its place
}

// Limits are those of a stage; zero: the file's.
type Limits struct {
	CPUs   float64 `json:"cpus,omitempty"`
	Memory int64   `json:"memory,omitempty"` // bytes
	PIDs   int     `json:"pids,omitempty"`
}

// MaxValues bounds the file of a stage's values in bytes.
const MaxValues = 64 << 10

// Digest is that of the values' JSON; "" where there are none.
func (v Values) Digest() isle.Digest {
	b, err := encode(v)
	if err != nil || v.empty() {
		return ""
	}
	return isle.DigestOf(b)
}

func (v Values) empty() bool { return len(v.Env) == 0 && len(v.Uses) == 0 && v.Limits == Limits{} }

// Lines are the values for people, as KEY=VALUE, in order.
func (v Values) Lines() (out []string) {
	for _, service := range slices.Sorted(maps.Keys(v.Env)) {
		for _, name := range slices.Sorted(maps.Keys(v.Env[service])) {
			out = append(out, "services."+service+".env."+name+"="+v.Env[service][name])
		}
	}
	if v.Limits.CPUs != 0 {
		out = append(out, "limits.cpus="+strconv.FormatFloat(v.Limits.CPUs, 'g', -1, 64))
	}
	if v.Limits.Memory != 0 {
		out = append(out, "limits.memory="+spec.FormatSize(v.Limits.Memory))
	}
	if v.Limits.PIDs != 0 {
		out = append(out, "limits.pids="+strconv.Itoa(v.Limits.PIDs))
	}
	for _, name := range slices.Sorted(maps.Keys(v.Uses)) {
		out = append(out, "uses."+name+"="+v.Uses[name])
	}
	return out
}

// has reports whether there is a value, named by the keys that lead to it.
func (v Values) has(name string) bool {
	kind, rest, _ := strings.Cut(name, ".")
	ok := false
	switch kind {
	case "env":
		service, variable, _ := strings.Cut(rest, ".")
		_, ok = v.Env[service][variable]
	case "uses":
		_, ok = v.Uses[rest]
	default:
		ok = rest == "cpus" && v.Limits.CPUs != 0 || rest == "memory" && v.Limits.Memory != 0 || rest == "pids" && v.Limits.PIDs != 0
	}
	return ok
}

// enough fails with Invalid where a release asks for values of each stage that
// are not all there. The error names them, and the file that they belong in.
func (v Values) enough(rel Release, stage string) error {
	asked := rel.Manifest.Spec.Stages
	if asked == nil {
		return nil
	}
	missing := slices.DeleteFunc(slices.Clone(asked.Values), v.has)
	if len(missing) == 0 {
		return nil
	}
	return isle.Errorf(isle.Invalid, "release %s asks for values that stage %s of %s has not: %s", rel.Digest.Short(), stage, rel.Manifest.Project, strings.Join(missing, ", ")).
		WithHint("write them into values.%s.yaml beside isle.yaml, and promote it from there", stage)
}

// Apply is a release's file as it is launched in the stage of the values. It fails
// with Invalid for a value that replaces nothing, or that the file cannot have.
// What it asks of stages is no part of what is launched.
func (v Values) Apply(f spec.File) (spec.File, error) {
	f.Stages = nil
	if v.empty() {
		return f, nil
	}
	wrong := func(format string, args ...any) error {
		return isle.Errorf(isle.Invalid, "values: "+format, args...).WithHint("a value replaces what the release's file says: isle release inspect --manifest shows it")
	}
	f.Services, f.Uses = slices.Clone(f.Services), slices.Clone(f.Uses)
	for _, name := range slices.Sorted(maps.Keys(v.Env)) {
		i := slices.IndexFunc(f.Services, func(s spec.Service) bool { return s.Name == name })
		if i < 0 {
			return f, wrong("there is no service %s", clip(name))
		}
		env := maps.Clone(f.Services[i].Env)
		for k, value := range v.Env[name] {
			if _, ok := env[k]; !ok {
				return f, wrong("service %s has no variable %s in its env", name, clip(k))
			}
			env[k] = value
		}
		f.Services[i].Env = env
	}
	uses, as := slices.Clone(f.Uses), maps.Clone(f.UsesAs)
	for _, name := range slices.Sorted(maps.Keys(v.Uses)) {
		if !slices.Contains(f.Uses, name) {
			return f, wrong("the connection %s is not used", clip(name))
		}
		delete(as, name)
	}
	for i, name := range f.Uses {
		to, ok := v.Uses[name]
		if inside := cmp.Or(f.UsesAs[name], name); ok && to != inside { // what is inside knows it by one name, in every stage
			if as == nil {
				as = map[string]string{}
			}
			as[to] = inside
		}
		if ok {
			uses[i] = to
		}
	}
	f.Uses, f.UsesAs = uses, as
	l := &f.Limits
	if v.Limits.CPUs != 0 {
		l.CPUs = v.Limits.CPUs
	}
	if v.Limits.Memory != 0 {
		l.Memory = v.Limits.Memory
	}
	if v.Limits.PIDs != 0 {
		l.PIDs = v.Limits.PIDs
	}
	if err := f.Check(); err != nil {
		return f, isle.Errorf(isle.Invalid, "with the values of the stage the file cannot be launched: %w", err)
	}
	return f, nil
}

// ParseValues reads the file of a stage's values, values.STAGE.yaml. On error it
// lists all problems found, with line and column.
func ParseValues(name string, b []byte) (Values, error) {
	r := &valueReader{}
	var v Values
	root, ok := r.Root(b, document.Bounds{Noun: "a file of values", Bytes: MaxValues, Values: 10_000, Empty: "leave it out", Second: "one file is one stage's"})
	if ok {
		r.root(root, &v)
	}
	return v, r.Err(name)
}

type valueReader struct{ document.Reader }

// mapping calls each for the keys of a mapping.
func (r *valueReader) mapping(n *yaml.Node, what string, each func(name string, k, v *yaml.Node)) {
	n, ok := r.Resolve(n)
	switch {
	case !ok:
	case n.Kind != yaml.MappingNode:
		r.Problem(n, "%s is a mapping, and not %s", what, document.Words(n))
	default:
		r.Pairs(n, func(name string, k, v *yaml.Node) {
			defer r.Enter(name)()
			each(name, k, v)
		})
	}
}

// text reads one value.
func (r *valueReader) text(n *yaml.Node) (string, bool) {
	n, ok := r.Resolve(n)
	if ok && (n.Kind != yaml.ScalarNode || n.Tag == "!!null") {
		r.Problem(n, "a value is text, and not %s", document.Words(n))
		return "", false
	}
	if !ok {
		return "", false
	}
	return n.Value, true
}

func (r *valueReader) root(n *yaml.Node, v *Values) {
	r.mapping(n, "a file of values", func(name string, k, n *yaml.Node) {
		switch name {
		case "env":
			v.Env = map[string]map[string]string{}
			r.mapping(n, "env", func(service string, _, n *yaml.Node) {
				v.Env[service] = map[string]string{}
				r.mapping(n, "the variables of a service", func(key string, _, n *yaml.Node) {
					if s, ok := r.text(n); ok {
						v.Env[service][key] = s
					}
				})
			})
		case "uses":
			v.Uses = map[string]string{}
			r.mapping(n, "uses", func(from string, _, n *yaml.Node) {
				if to, ok := r.text(n); ok && !isle.ValidName(to) {
					r.Problem(n, "%q is no connection", problem.Clip(to))
				} else if ok {
					v.Uses[from] = to
				}
			})
		case "limits":
			r.limits(n, &v.Limits)
		default:
			r.Problem(k, "a stage has no value %q; known: env, limits, uses", problem.Clip(name))
		}
	})
}

func (r *valueReader) limits(n *yaml.Node, l *Limits) {
	r.mapping(n, "limits", func(name string, k, n *yaml.Node) {
		s, ok := r.text(n)
		if !ok {
			return
		}
		var err error
		switch name {
		case "cpus":
			l.CPUs, err = strconv.ParseFloat(s, 64)
			ok = l.CPUs > 0 && l.CPUs < 1e6
		case "memory":
			l.Memory, err = spec.ParseSize(s)
		case "pids":
			l.PIDs, err = strconv.Atoi(s)
			ok = l.PIDs > 0
		default:
			r.Problem(k, "there is no limit %q; known: cpus, memory, pids", problem.Clip(name))
			return
		}
		if err != nil || !ok {
			r.Problem(n, "%q is no limit of %s", problem.Clip(s), name)
		}
	})
}

// changed are the names of values that differ, for the log: a value itself may
// say more than everybody is to read there.
func changed(was, is Values) string {
	before := map[string]bool{}
	for _, l := range was.Lines() {
		before[l] = true
	}
	var out []string
	for _, l := range is.Lines() {
		name, _, _ := strings.Cut(l, "=")
		if !before[l] {
			out = append(out, name)
		}
		delete(before, l)
	}
	for l := range before {
		if name, _, _ := strings.Cut(l, "="); !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}
