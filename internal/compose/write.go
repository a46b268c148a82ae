package compose

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"

	"isle/internal/document"
	"isle/internal/problem"
	"isle/internal/spec"
)

// An object is a mapping of isle.yaml.
type object struct{ *yaml.Node }

func newObject() object { return object{&yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}} }

// set sets a key, in the place where it stands if it does.
func (o object) set(key string, value *yaml.Node) {
	for i := 0; i+1 < len(o.Content); i += 2 {
		if o.Content[i].Value == key {
			o.Content[i+1] = value
			return
		}
	}
	o.Content = append(o.Content, scalar(key), value)
}

func (o object) text(key, value string) {
	if value != "" {
		o.set(key, scalar(value))
	}
}

func (o object) plain(key, value string) {
	o.set(key, &yaml.Node{Kind: yaml.ScalarNode, Value: value})
}

func (o object) texts(key string, values []string) {
	if len(values) > 0 {
		o.set(key, flow(values))
	}
}

func (o object) object(key string, value object) {
	if len(value.Content) > 0 {
		o.set(key, value.Node)
	}
}

// scalar is a text that is read as it is.
func scalar(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	if n.Style == 0 && !plainText(s) {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// plainText reports whether a text needs no quotes, whatever reads it.
func plainText(s string) bool {
	for i, c := range s {
		if !unicode.IsLetter(c) && (i == 0 && c != '/' && c != '.' || !strings.ContainsRune("0123456789/._-:@", c)) || c > 127 {
			return false
		}
	}
	return s != "" && !strings.HasSuffix(s, ":") && !slices.Contains([]string{"null", "true", "false", "yes", "no", "on", "off", "y", "n", ".", ".nan", ".inf"}, strings.ToLower(s))
}

// flow is a list on one line.
func flow(values []string) *yaml.Node {
	l := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Style: yaml.FlowStyle}
	for _, v := range values {
		l.Content = append(l.Content, scalar(v))
	}
	return l
}

// write makes isle.yaml of a draft, and reads it as whoever launches it will.
// What is refused then is noted where it is from.
func (d *draft) write(r *reader) ([]byte, spec.File, error) {
	at := map[string]place{}
	root := newObject()
	root.text("name", d.name)
	services := newObject()
	for _, s := range d.services {
		services.set(s.name, s.object(at).Node)
		at[document.Path("services", s.name)] = s.at
	}
	root.object("services", services)
	root.object("limits", d.limits(r))
	if d.isle != nil {
		for _, p := range d.isle.pairs {
			if p.key == "services" {
				r.note(Refused, p.place, "", "x-isle.services", "services are Compose's here", "write x-isle into the service")
				continue
			}
			root.set(p.key, yamlOf(p.value))
			at[p.key] = p.place
		}
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(root.Node); err != nil {
		return nil, spec.File{}, fmt.Errorf("isle.yaml cannot be written: %w", err)
	}
	f, err := spec.Parse("isle.yaml", b.Bytes())
	if fe, ok := errors.AsType[*problem.FileError](err); ok {
		for _, p := range fe.Problems {
			from, service := origin(at, p.Path, place{file: r.src.Name})
			if d.told(r, from) {
				continue // the cause is refused already
			}
			r.note(Refused, from, service, p.Path, p.Message, "")
		}
	}
	return b.Bytes(), f, err
}

// told reports whether something is refused at a place.
func (d *draft) told(r *reader, at place) bool {
	return slices.ContainsFunc(r.notes, func(n Note) bool { return n.Kind == Refused && n.File == at.file && n.Line == at.line })
}

// origin is where what stands at a path of isle.yaml is from.
func origin(at map[string]place, path string, other place) (from place, service string) {
	for p := path; p != ""; {
		if from, ok := at[p]; ok {
			return from, ""
		}
		p = p[:max(strings.LastIndexAny(p, ".["), 0)]
	}
	return other, ""
}

// yamlOf is a node as YAML.
func yamlOf(n *node) *yaml.Node {
	switch n.kind {
	case yaml.MappingNode:
		o := newObject()
		for _, p := range n.pairs {
			o.set(p.key, yamlOf(p.value))
		}
		return o.Node
	case yaml.SequenceNode:
		l := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for _, i := range n.items {
			l.Content = append(l.Content, yamlOf(i))
		}
		return l
	}
	return scalar(n.text)
}

// limits are those of the environment: what the services may have together. A
// service without one has what an environment has by default.
func (d *draft) limits(r *reader) object {
	o, def := newObject(), spec.DefaultLimits()
	var cpus float64
	var memory, pids int64
	all := [3]bool{true, true, true}
	for _, s := range d.services {
		cpus, memory, pids = cpus+s.cpus, memory+s.memory, pids+s.pids
		all[0], all[1], all[2] = all[0] && s.cpus > 0, all[1] && s.memory > 0, all[2] && s.pids > 0
	}
	if !all[0] && cpus > 0 {
		cpus += def.CPUs
	}
	if !all[1] && memory > 0 {
		memory += def.Memory
	}
	if !all[2] && pids > 0 {
		pids += int64(def.PIDs)
	}
	var said []string
	if cpus > 0 {
		o.plain("cpus", strconv.FormatFloat(max(cpus, 0.05), 'g', 6, 64))
		said = append(said, fmt.Sprintf("cpus %g", cpus))
	}
	if memory > 0 {
		o.text("memory", spec.FormatSize(memory))
		said = append(said, "memory "+spec.FormatSize(memory))
	}
	if pids > 0 {
		pids += 16 * int64(len(d.services)) // each service's isle-init
		o.plain("pids", strconv.FormatInt(pids, 10))
		said = append(said, fmt.Sprintf("pids %d", pids))
	}
	if len(said) > 0 {
		r.note(Differs, place{file: r.src.Name}, "", "limits", "hold for the environment as a whole: "+strings.Join(said, ", "), "write x-isle: {limits: {…}} at the top for others")
	}
	return o
}

// object is the service as isle.yaml has it.
func (s *service) object(at map[string]place) object {
	o := newObject()
	mark := func(key string, from place) { at[document.Path("services", s.name, key)] = from }
	for key, was := range map[string]string{"image": "image", "user": "user", "workdir": "working_dir", "command": "command", "args": "command", "ports": "ports", "volumes": "volumes", "tmpfs": "tmpfs", "caps": "cap_add", "env": "environment", "depends_on": "depends_on", "healthcheck": "healthcheck", "copy": "volumes", "run": "configs", "build": "build"} {
		mark(key, s.n.keyAt(was))
	}
	o.text("image", s.image)
	if b := s.build; b != nil && b.context != "" {
		m := newObject()
		m.text("context", b.context)
		m.text("dockerfile", b.dockerfile)
		m.text("target", b.target)
		m.object("args", sortedTexts(b.args))
		o.object("build", m)
		if b.record {
			o.text("network", spec.NetworkRecord)
		}
	}
	s.writeFiles(o, mark)
	o.text("user", s.user)
	o.text("workdir", s.workdir)
	o.object("env", sortedTexts(s.env))
	s.writeMounts(o)
	o.texts("setup", s.setup)
	if s.asArgs && s.isle.get("command") == nil {
		o.texts("args", s.arguments)
	} else {
		o.texts("command", s.command)
	}
	if h := s.health; h != nil {
		m := newObject()
		m.texts("command", h.command)
		m.text("interval", durationText(h.interval))
		m.text("timeout", durationText(h.timeout))
		m.text("start", durationText(h.start))
		m.plain("retries", strconv.Itoa(h.retries))
		o.object("healthcheck", m)
	}
	var depends []string
	for _, d := range s.depends {
		if name := serviceName(d.name); !slices.Contains(depends, name) {
			depends = append(depends, name)
		}
	}
	o.texts("depends_on", depends)
	ports := newObject()
	for _, p := range s.ports {
		ports.plain(p.name, strconv.Itoa(p.number))
	}
	ports.Style = yaml.FlowStyle
	o.object("ports", ports)
	if s.restart != "" && s.restart != "no" {
		o.text("restart", s.restart)
	}
	o.texts("caps", s.caps)
	s.layIsle(o, at)
	return o
}

func (s *service) writeFiles(o object, mark func(string, place)) {
	copies := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	for i, c := range s.copies {
		m := newObject()
		m.text("from", c.from)
		m.text("to", c.to)
		m.Style = yaml.FlowStyle
		copies.Content = append(copies.Content, m.Node)
		mark(fmt.Sprintf("copy[%d]", i), c.at)
	}
	if len(copies.Content) > 0 {
		o.set("copy", copies)
	}
	if len(s.run) > 0 {
		l := flow(s.run)
		l.Style = 0
		o.set("run", l)
	}
}

func (s *service) writeMounts(o object) {
	volumes := newObject()
	for _, v := range s.volumes {
		m := newObject()
		m.text("size", spec.FormatSize(max(v.size, volumeSize)))
		m.Style = yaml.FlowStyle
		volumes.set(v.path, m.Node)
	}
	o.object("volumes", volumes)
	o.texts("tmpfs", s.tmpfs)
	if s.writable {
		o.text("writable", spec.FormatSize(writableSize))
	}
}

// layIsle lays a service's x-isle over it: mappings key by key, all else as a
// whole.
func (s *service) layIsle(o object, at map[string]place) {
	if s.isle == nil {
		return
	}
	for _, p := range s.isle.pairs {
		at[document.Path("services", s.name, p.key)] = p.place
		have := o.get(p.key)
		if p.value.kind != yaml.MappingNode || have == nil || have.Kind != yaml.MappingNode {
			o.set(p.key, yamlOf(p.value))
			continue
		}
		for _, v := range p.value.pairs {
			object{have}.set(v.key, yamlOf(v.value))
		}
	}
}

// get is the value of a key, nil if it is not there.
func (o object) get(key string) *yaml.Node {
	for i := 0; i+1 < len(o.Content); i += 2 {
		if o.Content[i].Value == key {
			return o.Content[i+1]
		}
	}
	return nil
}

func sortedTexts(m map[string]string) object {
	o := newObject()
	for _, k := range slices.Sorted(maps.Keys(m)) {
		o.set(k, scalar(m[k]))
	}
	return o
}

// Commented is the isle.yaml with its notes at the top, for people to go on from.
func (c Conversion) Commented() []byte {
	var b bytes.Buffer
	if len(c.Reads) > 0 {
		fmt.Fprintf(&b, "# From %s.\n", line(c.Reads[0]))
	}
	for _, k := range []struct {
		kind  Kind
		title string
	}{{Refused, "What is missing here, and would be something else without it"}, {Differs, "What is done in another way"}, {Dropped, "What is left out"}} {
		first := true
		for _, n := range c.Notes {
			if n.Kind != k.kind {
				continue
			}
			if first {
				fmt.Fprintf(&b, "#\n# %s:\n", k.title)
			}
			first = false
			fmt.Fprintf(&b, "# - %s\n", line(n.String()))
		}
	}
	b.Write(c.YAML)
	return b.Bytes()
}

// line is text of a file as one line of a comment.
func line(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsControl(c) || c == '\u2028' || c == '\u2029' || c == '\ufeff' {
			return ' '
		}
		return c
	}, s)
}
