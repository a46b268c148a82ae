package spec

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"

	"isle"
)

// Render writes an environment file that Parse reads as f, with every default
// written out.
func (f File) Render() ([]byte, error) {
	services := newMapping()
	for _, s := range f.Services {
		services.add(s.Name, s.node())
	}
	limits := newMapping().text("cpus", strconv.FormatFloat(f.Limits.CPUs, 'g', -1, 64)).number("memory", f.Limits.Memory).number("pids", int64(f.Limits.PIDs))
	root := newMapping().text("name", f.Name).text("isolation", f.Isolation).add("services", services.Node)
	root.list("egress", len(f.Egress), func(i int) *yaml.Node {
		e := f.Egress[i]
		return newMapping().text("host", e.Host).number("port", int64(e.Port)).texts("addresses", e.Addresses).text("inspect", strconv.FormatBool(e.Inspect)).Node
	})
	as := newMapping()
	for _, c := range slices.Sorted(maps.Keys(f.UsesAs)) {
		as.text(c, f.UsesAs[c])
	}
	root.texts("uses", f.Uses).add("uses_as", as.some()).add("limits", limits.Node).duration("ttl", f.TTL).text("warm", strconv.FormatBool(f.Warm))
	if s := f.Schema; s != nil {
		root.add("schema", newMapping().number("version", int64(s.Version)).number("compatible_with", int64(s.CompatibleWith)).Node)
	}
	root.add("stages", f.Stages.node().some())
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(root.Node); err != nil {
		return nil, isle.Errorf(isle.Invalid, "the environment's file cannot be written: %w", err)
	}
	return b.Bytes(), nil
}

// Check says whether f is what Parse gives for some file: what is from elsewhere
// may hold anything.
func (f File) Check() error {
	b, err := f.Render()
	if err != nil {
		return err
	}
	again, err := Parse("isle.yaml", b)
	if err != nil {
		return err
	}
	is, err := json.Marshal(f)
	if err != nil {
		return isle.Errorf(isle.Invalid, "the environment's file cannot be written: %w", err)
	}
	if would, err := json.Marshal(again); err != nil || !bytes.Equal(is, would) {
		return isle.Errorf(isle.Invalid, "the environment's file says what no isle.yaml does")
	}
	return nil
}

func (s Service) node() *yaml.Node {
	m := newMapping().text("image", s.Image).add("build", s.Build.node().some()).text("suite", s.Suite).texts("packages", s.Packages)
	m.list("copy", len(s.Copy), func(i int) *yaml.Node {
		return newMapping().text("from", s.Copy[i].From).text("to", s.Copy[i].To).Node
	})
	m.texts("run", s.Run).text("network", s.Network).text("user", s.User).text("workdir", s.Workdir)
	env := newMapping()
	for _, k := range slices.Sorted(maps.Keys(s.Env)) {
		env.add(k, textNode(s.Env[k]))
	}
	volumes := newMapping()
	for _, v := range s.Volumes {
		volumes.add(v.Path, newMapping().number("size", v.Size).Node)
	}
	ports := newMapping()
	for _, p := range s.Ports {
		ports.number(p.Name, int64(p.Number))
	}
	m.add("env", env.some()).add("volumes", volumes.some()).texts("tmpfs", s.Tmpfs)
	if s.Writable != 0 {
		m.number("writable", s.Writable)
	}
	m.texts("setup", s.Setup).texts("command", s.Command).texts("args", s.Args).texts("on_fork", s.OnFork)
	if h := s.Healthcheck; h != nil {
		check := newMapping()
		if h.TCP != 0 {
			check.number("tcp", int64(h.TCP))
		}
		check.text("http", h.HTTP).texts("command", h.Command)
		check.duration("interval", h.Interval).duration("timeout", h.Timeout).duration("start", h.Start).number("retries", int64(h.Retries))
		m.add("healthcheck", check.Node)
	}
	return m.texts("depends_on", s.DependsOn).add("ports", ports.some()).text("restart", s.Restart).texts("caps", s.Caps).Node
}

// A mapping is a node of YAML whose values are all written as texts: the parser
// takes scalars as they are written.
type mapping struct{ *yaml.Node }

func newMapping() mapping { return mapping{&yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}} }

func textNode(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	if n.Style == 0 {
		n.Style = yaml.DoubleQuotedStyle // so that "null" is a text too
	}
	return n
}

// some is the mapping, or nil where it is empty.
func (m mapping) some() *yaml.Node {
	if len(m.Content) == 0 {
		return nil
	}
	return m.Node
}

// add adds a key, unless its value is nil.
func (m mapping) add(key string, value *yaml.Node) mapping {
	if value != nil {
		m.Content = append(m.Content, textNode(key), value)
	}
	return m
}

func (m mapping) text(key, value string) mapping {
	if value == "" {
		return m
	}
	return m.add(key, textNode(value))
}

func (m mapping) number(key string, n int64) mapping {
	return m.text(key, strconv.FormatInt(n, 10))
}

func (m mapping) duration(key string, d time.Duration) mapping {
	if d == 0 {
		return m
	}
	return m.text(key, FormatDuration(d))
}

func (m mapping) texts(key string, values []string) mapping {
	return m.list(key, len(values), func(i int) *yaml.Node { return textNode(values[i]) })
}

func (m mapping) list(key string, n int, value func(i int) *yaml.Node) mapping {
	if n == 0 {
		return m
	}
	list := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	for i := range n {
		list.Content = append(list.Content, value(i))
	}
	return m.add(key, list)
}
