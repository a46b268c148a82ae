package policy

import (
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"isle/internal/document"
	"isle/internal/problem"
)

// Bounds of a document.
const (
	MaxDocument = 4 << 20 // bytes
	maxNodes    = 500_000 // values looked at, aliases followed: an alias bomb ends here
)

var bounds = document.Bounds{
	Noun: "a policy", Bytes: MaxDocument, Values: maxNodes,
	Empty:  "write {} for a policy that says nothing",
	Second: "remove the `---`",
}

// Parse reads one YAML document strictly. name is the file's for messages. On
// error it is a *problem.FileError that lists all that is wrong with line and
// column.
func Parse(name string, b []byte) (File, error) {
	r := &reader{file: name}
	var f File
	if root, ok := r.Root(b, bounds); ok {
		r.readFile(root, &f)
	}
	if err := r.Err(name); err != nil {
		return File{}, err
	}
	return f, nil
}

// A reader walks one document.
type reader struct {
	document.Reader
	file string
}

func (r *reader) at(n *yaml.Node) Position { return Position{r.file, n.Line, n.Column} }

// A key is one key of a mapping and what reads its value.
type key struct {
	name     string
	read     func(n *yaml.Node)
	required bool
}

// mapping reads a mapping with known keys. Its problems name the nearest one.
func (r *reader) mapping(n *yaml.Node, what string, keys ...key) {
	r.entries(n, what, func(name string, k, v *yaml.Node) {
		i := slices.IndexFunc(keys, func(k key) bool { return k.name == name })
		if i < 0 {
			var names []string
			for _, k := range keys {
				names = append(names, k.name)
			}
			r.unknown(k, "key", name, names)
			return
		}
		defer r.Enter(name)()
		if v, ok := r.Resolve(v); ok {
			if v.Kind == yaml.ScalarNode && v.Tag == "!!null" {
				r.Problem(v, "has no value; give it one, or remove the key")
				return
			}
			keys[i].read(v)
		}
	})
	if n.Kind != yaml.MappingNode {
		return
	}
	for _, k := range keys {
		if k.required && !slices.ContainsFunc(n.Content, func(c *yaml.Node) bool { return c.Value == k.name }) {
			r.Problem(n, "has no %s; %s needs one", k.name, what)
		}
	}
}

// entries calls each for every key of a mapping, each key once.
func (r *reader) entries(n *yaml.Node, what string, each func(name string, k, v *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		r.Problem(n, "is %s; want %s, a mapping of key: value", document.Words(n), what)
		return
	}
	r.Pairs(n, each)
}

// unknown says that a word is not known, and the nearest that is.
func (r *reader) unknown(n *yaml.Node, what, word string, known []string) {
	if best, near := problem.Nearest(word, known); near {
		r.Problem(n, "unknown %s %q; did you mean %s?", what, problem.Clip(word), best)
		return
	}
	sorted := slices.Sorted(slices.Values(known))
	r.Problem(n, "unknown %s %q; known: %s", what, problem.Clip(word), strings.Join(sorted, ", "))
}

// list calls each for every entry of a list.
func (r *reader) list(n *yaml.Node, what string, each func(n *yaml.Node)) {
	if n.Kind != yaml.SequenceNode {
		r.Problem(n, "is %s; want %s, as in [a, b]", document.Words(n), what)
		return
	}
	for i, c := range n.Content {
		leave := r.Enter("[" + strconv.Itoa(i) + "]")
		if c, ok := r.Resolve(c); ok {
			each(c)
		}
		leave()
	}
}

// text reads a scalar.
func (r *reader) text(n *yaml.Node, what string) (string, bool) {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		r.Problem(n, "is %s; want %s", document.Words(n), what)
		return "", false
	}
	if len(n.Value) > 512 || strings.ContainsFunc(n.Value, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		r.Problem(n, "%q is no %s: at most 512 characters, none of them for control", problem.Clip(n.Value), strings.TrimPrefix(what, "a "))
		return "", false
	}
	return n.Value, true
}

// into makes a key's reader of a scalar with a check.
func into[T any](r *reader, to *T, what string, parse func(string) (T, error)) func(n *yaml.Node) {
	return func(n *yaml.Node) {
		s, ok := r.text(n, what)
		if !ok {
			return
		}
		v, err := parse(s)
		if err != nil {
			r.Problem(n, "%v", err)
			return
		}
		*to = v
	}
}

func plain(s string) (string, error) {
	if strings.TrimSpace(s) == "" {
		return "", errors.New("is empty")
	}
	return s, nil
}

// pattern returns what compiles a regular expression when it is first used. At
// a program's start every command of a client would pay for all of them.
func pattern(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}
