package spec

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"isle/internal/document"
)

// A shape is one kind of value. How it is read, what the JSON Schema says about
// it and how the reference names it stand together, so that they cannot drift
// apart.
type shape[T any] struct {
	words  string // what it is, for messages and the reference: "a size"
	schema *schema
	keys   []keyDoc // of a mapping with fixed keys, or of what a list or map holds
	read   func(r *reader, n *yaml.Node, into *T)
}

// readAt reads n into a value and reports what is wrong to r.
func (s shape[T]) readAt(r *reader, n *yaml.Node, into *T) {
	n, ok := r.Resolve(n)
	if !ok {
		return
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		r.Problem(n, "has no value; want %s, or remove the key", s.words)
		return
	}
	s.read(r, n, into)
}

// A keyDoc describes one key for the reference.
type keyDoc struct {
	name, words, def, doc string
	required              bool
	keys                  []keyDoc
	in                    string // how to write what lies between the key and its keys: ".NAME" or ".PATH" of a map, "[]" of a list
}

// A field is one key of a mapping that is read into a T.
type field[T any] struct {
	keyDoc
	schema *schema
	read   func(r *reader, n *yaml.Node, into *T)
}

// key declares a key: its default, written as in the file ("" is none), its
// documentation, its shape, and where its value goes.
func key[T, V any](name, def, doc string, s shape[V], to func(*T) *V) field[T] {
	sc := *s.schema
	sc.Description = strings.TrimSpace(sc.Description + " " + plain(doc))
	switch n, err := strconv.ParseFloat(def, 64); {
	case def == "" || def == "{}":
	case err == nil && (sc.Type == "integer" || sc.Type == "number"):
		sc.Default = n
	default:
		sc.Default = def
	}
	in := ""
	switch {
	case sc.AdditionalProperties != nil && sc.AdditionalProperties.schema != nil:
		in = ".NAME"
		if sc.PropertyNames.Pattern == absolutePattern {
			in = ".PATH"
		}
	case sc.Items != nil:
		in = "[]"
	}
	return field[T]{
		keyDoc: keyDoc{name: name, words: s.words, def: def, doc: doc, keys: s.keys, in: in},
		schema: &sc,
		read:   func(r *reader, n *yaml.Node, into *T) { s.readAt(r, n, to(into)) },
	}
}

// must makes a field required.
func must[T any](f field[T]) field[T] {
	f.required = true
	return f
}

// scalar is a value written as text: a string, number or boolean of YAML, taken
// as it is written. parse's error says what is wanted.
func scalar[T any](words string, sc schema, parse func(string) (T, error)) shape[T] {
	return shape[T]{words: words, schema: &sc, read: func(r *reader, n *yaml.Node, into *T) {
		if n.Kind != yaml.ScalarNode {
			r.Problem(n, "is %s; want %s", document.Words(n), words)
			return
		}
		v, err := parse(n.Value)
		if err != nil {
			r.Problem(n, "%v", err)
			return
		}
		*into = v
	}}
}

// list is a list of at most limit values.
func list[T any](words string, limit int, elem shape[T]) shape[[]T] {
	return shape[[]T]{
		words:  words,
		schema: &schema{Type: "array", Items: elem.schema, MaxItems: limit},
		keys:   elem.keys,
		read: func(r *reader, n *yaml.Node, into *[]T) {
			if n.Kind != yaml.SequenceNode {
				r.Problem(n, "is %s; want %s, as in [a, b]", document.Words(n), words)
				return
			}
			if len(n.Content) > limit {
				r.Problem(n, "has %d entries; at most %d are possible", len(n.Content), limit)
				return
			}
			out := make([]T, 0, len(n.Content))
			for i, c := range n.Content {
				leave := r.enter(fmt.Sprintf("[%d]", i), c)
				var v T
				elem.readAt(r, c, &v)
				out = append(out, v)
				leave()
			}
			*into = out
		},
	}
}

// scalarOr takes a scalar in one shape, and anything else in the other.
func scalarOr[T any](words string, s, other shape[T]) shape[T] {
	return shape[T]{
		words:  words,
		schema: &schema{AnyOf: []*schema{s.schema, other.schema}},
		keys:   other.keys,
		read: func(r *reader, n *yaml.Node, into *T) {
			if n.Kind == yaml.ScalarNode {
				s.read(r, n, into)
				return
			}
			other.read(r, n, into)
		},
	}
}

// textsBy is a mapping of names to texts.
func textsBy(words string, limit int, keys schema, check func(string) error, value shape[string]) shape[map[string]string] {
	pairs := mapOf(words, limit, keys, check, value, func(k, v string) [2]string { return [2]string{k, v} })
	return convert(pairs, func(in [][2]string) map[string]string {
		out := make(map[string]string, len(in))
		for _, kv := range in {
			out[kv[0]] = kv[1]
		}
		return out
	})
}

// mapOf is a mapping with free keys, in the order of the file, of at most limit
// entries. check says what a key must be, and join makes an entry.
func mapOf[V, E any](words string, limit int, keySchema schema, check func(string) error, value shape[V], join func(string, V) E) shape[[]E] {
	return shape[[]E]{
		words: words,
		schema: &schema{Type: "object", PropertyNames: &keySchema, MaxProperties: limit,
			AdditionalProperties: &additional{schema: value.schema}},
		keys: value.keys,
		read: func(r *reader, n *yaml.Node, into *[]E) {
			if n.Kind != yaml.MappingNode {
				r.Problem(n, "is %s; want %s", document.Words(n), words)
				return
			}
			if len(n.Content)/2 > limit {
				r.Problem(n, "has %d entries; at most %d are possible", len(n.Content)/2, limit)
				return
			}
			out := make([]E, 0, len(n.Content)/2)
			r.Pairs(n, func(name string, k, v *yaml.Node) {
				leave := r.enter(name, v)
				defer leave()
				if err := check(name); err != nil {
					r.Problem(k, "%v", err)
				}
				var val V
				value.readAt(r, v, &val)
				out = append(out, join(name, val))
			})
			*into = out
		},
	}
}

// object is a mapping with fixed keys. Missing keys get their defaults, read
// like any other value.
func object[T any](words string, fields ...field[T]) shape[T] {
	sc := &schema{Type: "object", Properties: map[string]*schema{}, AdditionalProperties: &additional{}}
	var names []string
	var keys []keyDoc
	for _, f := range fields {
		sc.Properties[f.name] = f.schema
		names = append(names, f.name)
		keys = append(keys, f.keyDoc)
		if f.required {
			sc.Required = append(sc.Required, f.name)
		}
	}
	return shape[T]{words: words, schema: sc, keys: keys, read: func(r *reader, n *yaml.Node, into *T) {
		if n.Kind != yaml.MappingNode {
			r.Problem(n, "is %s; want %s with the keys %s", document.Words(n), words, strings.Join(names, ", "))
			return
		}
		seen := map[string]bool{}
		r.Pairs(n, func(name string, k, v *yaml.Node) {
			seen[name] = true
			i := slices.Index(names, name)
			if i < 0 {
				r.unknown(k, name, names)
				return
			}
			leave := r.enter(name, v)
			fields[i].read(r, v, into)
			leave()
		})
		for _, f := range fields {
			switch {
			case seen[f.name]:
			case f.required:
				r.Problem(n, "%s is missing: %s", f.name, plain(f.doc))
			case f.def != "":
				f.read(r, defaultNode(f.def, n), into)
			}
		}
	}}
}

// defaultNode is a default as a node that stands where its mapping stands.
func defaultNode(text string, at *yaml.Node) *yaml.Node {
	if text == "{}" {
		return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: at.Line, Column: at.Column}
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text, Line: at.Line, Column: at.Column}
}

// unknown refuses a key with the nearest known one.
func (r *reader) unknown(k *yaml.Node, name string, known []string) {
	best, near := nearest(name, known)
	place := r.places[name]
	switch {
	case near:
		r.Problem(k, "unknown key %q; did you mean %q?", clip(name), best)
	case place != "":
		r.Problem(k, "unknown key %q here; it belongs in %s", clip(name), place)
	default:
		r.Problem(k, "unknown key %q; the nearest known one is %q, of %s", clip(name), best, strings.Join(known, ", "))
	}
}

// places says for every key, by name, where it belongs.
func places(keys []keyDoc) map[string]string {
	out := map[string]string{}
	var walk func(prefix string, keys []keyDoc)
	walk = func(prefix string, keys []keyDoc) {
		for _, k := range keys {
			where := strings.TrimSuffix(prefix, ".")
			if where == "" {
				where = "the top level"
			}
			if out[k.name] == "" {
				out[k.name] = where
			}
		}
		for _, k := range keys {
			walk(prefix+k.name+k.in+".", k.keys)
		}
	}
	walk("", keys)
	return out
}
