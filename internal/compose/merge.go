package compose

import (
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// listed are the keys that may be written as a list of NAME=VALUE, or of names,
// in place of a mapping.
var listed = []string{"environment", "labels", "args", "depends_on", "networks", "annotations", "sysctls", "extra_hosts", "additional_contexts", "ulimits"}

// replaced are the keys whose lists take the place of what they are laid over.
var replaced = []string{"command", "entrypoint", "test"}

// asMapping is a list of NAME=VALUE, or of names, as the mapping that it means.
// What it cannot read stays as it is.
func asMapping(key string, n *node) *node {
	if n == nil || n.kind != yaml.SequenceNode {
		return n
	}
	m := &node{place: n.place, kind: yaml.MappingNode, tag: n.tag}
	there := make(map[string]int, len(n.items))
	for _, i := range n.items {
		if i.kind != yaml.ScalarNode {
			return n
		}
		name, value, has := strings.Cut(i.text, "=")
		if !has && key == "extra_hosts" {
			name, value, has = strings.Cut(i.text, ":")
		}
		v := &node{place: i.place, kind: yaml.ScalarNode, text: value, quoted: true, null: !has}
		p := pair{i.place, name, v}
		if at, ok := there[name]; ok {
			m.pairs[at] = p // the last one counts
		} else {
			there[name] = len(m.pairs)
			m.pairs = append(m.pairs, p)
		}
	}
	return m
}

// lay is over laid over base: mappings key by key, lists one after the other,
// and all else replaced, with the exceptions that Compose has.
func lay(key string, base, over *node) *node {
	if slices.Contains(listed, key) {
		base, over = asMapping(key, base), asMapping(key, over)
	}
	switch {
	case base == nil || over.tag == "!override" || over.kind != base.kind && !(key == "volumes" || key == "ports"):
		return over
	case over.kind == yaml.MappingNode:
		return layMapping(base, over)
	case over.kind == yaml.SequenceNode && !slices.Contains(replaced, key):
		return layList(key, base, over)
	}
	return over
}

// layMapping is a mapping over another, in the other's order.
func layMapping(base, over *node) *node {
	m := &node{place: base.place, kind: yaml.MappingNode, pairs: slices.Clone(base.pairs)}
	at := make(map[string]int, len(m.pairs))
	for i, p := range m.pairs {
		at[p.key] = i
	}
	gone := map[int]bool{}
	for _, p := range over.pairs {
		i, there := at[p.key]
		switch {
		case p.value.tag == "!reset":
			if there {
				gone[i] = true
				delete(at, p.key)
			}
		case !there:
			at[p.key] = len(m.pairs)
			m.pairs = append(m.pairs, p)
		default:
			m.pairs[i] = pair{p.place, p.key, lay(p.key, m.pairs[i].value, p.value)}
		}
	}
	if len(gone) == 0 {
		return m
	}
	left := make([]pair, 0, len(m.pairs))
	for i, p := range m.pairs {
		if !gone[i] {
			left = append(left, p)
		}
	}
	m.pairs = left
	return m
}

// layList is a list after another: what is said twice counts once, and of two
// mounts at one path the later one.
func layList(key string, base, over *node) *node {
	l := &node{place: over.place, kind: yaml.SequenceNode}
	targets := map[string]bool{}
	if key == "volumes" {
		for _, o := range over.items {
			targets[mountTarget(o)] = true
		}
	}
	said := map[string]bool{}
	for _, i := range base.items {
		if key == "volumes" && targets[mountTarget(i)] {
			continue
		}
		if i.kind == yaml.ScalarNode {
			said[i.text] = true
		}
		l.items = append(l.items, i)
	}
	for _, o := range over.items {
		if o.kind == yaml.ScalarNode {
			if said[o.text] {
				continue
			}
			said[o.text] = true
		}
		l.items = append(l.items, o)
	}
	return l
}

// load reads a Compose file, with what it includes and extends.
func (r *reader) load(name string, from []string) (*node, error) {
	if slices.Contains(from, name) {
		return nil, invalid(place{from[len(from)-1], 0}, "files include each other in a circle: %s", strings.Join(append(from, name), " -> "))
	}
	if n, ok := r.loaded[name]; ok {
		return n, nil
	}
	top, err := r.parse(name)
	if err != nil {
		return nil, err
	}
	if top, err = r.include(top, append(slices.Clone(from), name)); err != nil {
		return nil, err
	}
	if r.loaded == nil {
		r.loaded = map[string]*node{}
	}
	r.loaded[name] = top
	return top, nil
}

// flat is a file whose services have what they extend. That comes before
// anything is laid over it.
func (r *reader) flat(name string) (*node, error) {
	top, err := r.load(name, nil)
	if err != nil {
		return nil, err
	}
	services := top.get("services")
	if services == nil || services.kind != yaml.MappingNode {
		return top, nil
	}
	all := &node{place: services.place, kind: yaml.MappingNode, tag: services.tag}
	for _, p := range services.pairs {
		s, err := r.extended(services, p.key, nil)
		if err != nil {
			return nil, err
		}
		if s == nil {
			s = p.value
		}
		all.pairs = append(all.pairs, pair{p.place, p.key, s})
	}
	out := &node{place: top.place, kind: yaml.MappingNode, pairs: slices.Clone(top.pairs)}
	out.pairs[slices.IndexFunc(out.pairs, func(p pair) bool { return p.key == "services" })].value = all
	return out, nil
}

// include adds what a file includes: names are not taken twice.
func (r *reader) include(top *node, from []string) (*node, error) {
	inc := top.get("include")
	if inc == nil {
		return top, nil
	}
	if inc.kind != yaml.SequenceNode {
		return nil, invalid(inc.place, "include: want a list of files")
	}
	out := top
	for _, i := range inc.items {
		paths := i.texts()
		if i.kind == yaml.MappingNode {
			paths = i.get("path").texts()
			for _, k := range []string{"project_directory", "env_file"} {
				if i.get(k) != nil {
					r.note(Refused, i.keyAt(k), "", "include."+k, "files are included with the folder that they are in, and the variables of this project", "move what it says into the file, or into .env")
				}
			}
		}
		var all *node
		for _, p := range paths {
			name, err := below(path.Dir(i.file), p)
			if err != nil {
				return nil, invalid(i.place, "include: %s %v", quote(p), err)
			}
			n, err := r.load(name, from)
			if err != nil {
				return nil, err
			}
			if all == nil {
				all = n
				continue
			}
			if r.laid += all.count() + n.count(); r.laid > maxLaid {
				return nil, invalid(i.place, "%v", errTooLarge)
			}
			all = lay("", all, n)
		}
		var err error
		if out, err = join(out, all); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// join adds the services, volumes and so on of a file that is included.
func join(top, more *node) (*node, error) {
	if more == nil {
		return top, nil
	}
	out := &node{place: top.place, kind: yaml.MappingNode, pairs: slices.Clone(top.pairs)}
	for _, section := range []string{"services", "volumes", "networks", "secrets", "configs"} {
		theirs := more.get(section)
		if theirs == nil || theirs.kind != yaml.MappingNode {
			continue
		}
		ours := out.get(section)
		m := &node{place: theirs.place, kind: yaml.MappingNode}
		if ours != nil {
			m.place, m.pairs = ours.place, slices.Clone(ours.pairs)
		}
		for _, p := range theirs.pairs {
			if ours.get(p.key) != nil {
				return nil, invalid(ours.keyAt(p.key), "%s.%s is here, and in %s, which is included; give one another name", section, p.key, p.file)
			}
			m.pairs = append(m.pairs, p)
		}
		if i := slices.IndexFunc(out.pairs, func(p pair) bool { return p.key == section }); i >= 0 {
			out.pairs[i].value = m
		} else {
			out.pairs = append(out.pairs, pair{m.place, section, m})
		}
	}
	return out, nil
}

// extended is a service with what it extends. trail is what led here.
func (r *reader) extended(services *node, name string, trail []string) (*node, error) {
	s := services.get(name)
	if s == nil {
		return nil, nil
	}
	if s.kind != yaml.MappingNode {
		return nil, invalid(s.place, "services.%s: want a mapping", quote(name))
	}
	e := s.get("extends")
	if e == nil {
		return s, nil
	}
	key := s.file + ":" + name
	if slices.Contains(trail, key) {
		return nil, invalid(e.place, "services extend each other in a circle: %s", strings.Join(append(trail, key), " -> "))
	}
	trail = append(slices.Clone(trail), key)
	base, from := e.get("service").str(), services
	if e.kind == yaml.ScalarNode {
		base = e.text
	}
	if file := e.get("file").str(); file != "" {
		name, err := below(path.Dir(e.file), file)
		if err != nil {
			return nil, invalid(e.place, "extends: %s %v", quote(file), err)
		}
		top, err := r.load(name, nil)
		if err != nil {
			return nil, err
		}
		from = top.get("services")
	}
	if from == nil || base == "" || from.get(base) == nil {
		return nil, invalid(e.place, "extends: there is no service %s there", quote(base))
	}
	b, err := r.extended(from, base, trail)
	if err != nil {
		return nil, err
	}
	own := &node{place: s.place, kind: yaml.MappingNode}
	for _, p := range s.pairs {
		if p.key != "extends" {
			own.pairs = append(own.pairs, p)
		}
	}
	if r.laid += b.count() + own.count(); r.laid > maxLaid {
		return nil, invalid(e.place, "%v", errTooLarge)
	}
	return lay("", b, own), nil
}

// mountTarget is where a volume of a service is mounted.
func mountTarget(n *node) string {
	if n.kind == yaml.MappingNode {
		return path.Clean(n.get("target").str())
	}
	parts := strings.Split(n.text, ":")
	if len(parts) == 1 {
		return path.Clean(parts[0])
	}
	return path.Clean(parts[1])
}
