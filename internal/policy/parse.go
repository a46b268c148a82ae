package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"isle/internal/problem"
)

// Bounds of a document.
const (
	MaxDocument = 4 << 20 // bytes
	maxNodes    = 500_000 // values looked at, aliases followed: an alias bomb ends here
	maxProblems = 50
)

// Parse reads one YAML document strictly. name is the file's for messages. On
// error it is a *problem.FileError that lists all that is wrong with line and
// column.
func Parse(name string, b []byte) (File, error) {
	r := &reader{file: name}
	var f File
	if root := r.document(b); root != nil {
		r.readFile(root, &f)
	}
	if len(r.problems) > 0 {
		return File{}, &problem.FileError{File: name, Problems: r.problems}
	}
	return f, nil
}

// A reader walks one document and gathers what is wrong with it.
type reader struct {
	file     string
	problems []problem.Problem
	path     []string
	visited  int
}

func (r *reader) document(b []byte) *yaml.Node {
	whole := func(line, column int, format string, args ...any) *yaml.Node {
		r.problems = append(r.problems, problem.Problem{Line: line, Column: column, Message: fmt.Sprintf(format, args...)})
		return nil
	}
	if len(b) > MaxDocument {
		return whole(0, 0, "is %d bytes long; a policy has at most %d", len(b), MaxDocument)
	}
	d := yaml.NewDecoder(bytes.NewReader(b))
	var doc, next yaml.Node
	err := d.Decode(&doc)
	if errors.Is(err, io.EOF) || err == nil && len(doc.Content) == 0 {
		return whole(1, 1, "is empty; write {} for a policy that says nothing")
	}
	if err == nil {
		if err = d.Decode(&next); err == nil {
			return whole(next.Line, next.Column, "a second document begins here; remove the `---`")
		} else if errors.Is(err, io.EOF) {
			return doc.Content[0]
		}
	}
	line, message := syntaxError(b, err)
	return whole(line, firstColumn(b, line), "this is not YAML: %s", message)
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:(?:offset \d+|line (\d+)): )?(.*)$`)

// syntaxError takes the line out of the YAML library's message.
func syntaxError(b []byte, err error) (line int, message string) {
	text, _, _ := strings.Cut(err.Error(), "\n")
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil && n > 0 {
			line = n
		}
		text = m[2]
	}
	// The library counts the lines of what its parser says from 0, and those of its scanner from 1.
	if line > 0 && parserSays(text) {
		line = min(line+1, bytes.Count(bytes.TrimRight(b, " \t\r\n"), []byte("\n"))+1)
	}
	line = max(line, 1)
	return line, text + "; check the indentation, brackets and quotes here and on the line before"
}

// parserSays says whether a message is the parser's, which speaks of what should
// have come next.
func parserSays(text string) bool {
	for _, next := range []string{"'-' indicator", "key", "',' or ']'", "',' or '}'", "node content", "<document start>"} {
		if text == "did not find expected "+next {
			return true
		}
	}
	return false
}

// firstColumn is the column of the first character of a line that is no space.
func firstColumn(b []byte, line int) int {
	for i, l := range bytes.Split(b, []byte("\n")) {
		if i+1 == line {
			return len(l) - len(bytes.TrimLeft(l, " \t")) + 1
		}
	}
	return 1
}

func (r *reader) problem(n *yaml.Node, format string, args ...any) {
	switch {
	case len(r.problems) > maxProblems:
		return
	case len(r.problems) == maxProblems:
		r.problems = append(r.problems, problem.Problem{Line: n.Line, Column: n.Column, Message: "there is more wrong; mend the above first"})
		return
	}
	r.problems = append(r.problems, problem.Problem{Line: n.Line, Column: n.Column, Path: strings.Join(r.path, ""), Message: fmt.Sprintf(format, args...)})
}

func (r *reader) at(n *yaml.Node) Position { return Position{r.file, n.Line, n.Column} }

var plainStep = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`)

// enter goes down to a key; what it returns goes back up.
func (r *reader) enter(step string) (leave func()) {
	switch {
	case strings.HasPrefix(step, "["):
	case !plainStep.MatchString(step):
		step = "[" + strconv.Quote(problem.Clip(step)) + "]"
	case len(r.path) > 0:
		step = "." + step
	}
	r.path = append(r.path, step)
	return func() { r.path = r.path[:len(r.path)-1] }
}

// resolve follows an alias and counts.
func (r *reader) resolve(n *yaml.Node) (*yaml.Node, bool) {
	r.visited++
	if r.visited > maxNodes {
		if r.visited == maxNodes+1 {
			r.problem(n, "the document, with its aliases followed, is larger than %d values", maxNodes)
		}
		return nil, false
	}
	if n.Kind == yaml.AliasNode {
		if n.Alias == nil || n.Alias.Kind == yaml.AliasNode {
			r.problem(n, "the alias points to nothing")
			return nil, false
		}
		c := *n.Alias
		c.Line, c.Column = n.Line, n.Column
		return &c, true
	}
	return n, true
}

// words says what a node is, for people.
func words(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		return "empty"
	}
	return strconv.Quote(problem.Clip(n.Value))
}

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
		defer r.enter(name)()
		if v, ok := r.resolve(v); ok {
			if v.Kind == yaml.ScalarNode && v.Tag == "!!null" {
				r.problem(v, "has no value; give it one, or remove the key")
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
			r.problem(n, "has no %s; %s needs one", k.name, what)
		}
	}
}

// entries calls each for every key of a mapping, each key once.
func (r *reader) entries(n *yaml.Node, what string, each func(name string, k, v *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		r.problem(n, "is %s; want %s, a mapping of key: value", words(n), what)
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode || k.Tag == "!!merge" {
			r.problem(k, "is no plain key")
			continue
		}
		if line, twice := seen[k.Value]; twice {
			r.problem(k, "the key %q is there already, on line %d", problem.Clip(k.Value), line)
			continue
		}
		seen[k.Value] = k.Line
		each(k.Value, k, v)
	}
}

// unknown says that a word is not known, and the nearest that is.
func (r *reader) unknown(n *yaml.Node, what, word string, known []string) {
	if best, near := problem.Nearest(word, known); near {
		r.problem(n, "unknown %s %q; did you mean %s?", what, problem.Clip(word), best)
		return
	}
	sorted := slices.Sorted(slices.Values(known))
	r.problem(n, "unknown %s %q; known: %s", what, problem.Clip(word), strings.Join(sorted, ", "))
}

// list calls each for every entry of a list.
func (r *reader) list(n *yaml.Node, what string, each func(n *yaml.Node)) {
	if n.Kind != yaml.SequenceNode {
		r.problem(n, "is %s; want %s, as in [a, b]", words(n), what)
		return
	}
	for i, c := range n.Content {
		leave := r.enter("[" + strconv.Itoa(i) + "]")
		if c, ok := r.resolve(c); ok {
			each(c)
		}
		leave()
	}
}

// text reads a scalar.
func (r *reader) text(n *yaml.Node, what string) (string, bool) {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		r.problem(n, "is %s; want %s", words(n), what)
		return "", false
	}
	if len(n.Value) > 512 || strings.ContainsFunc(n.Value, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		r.problem(n, "%q is no %s: at most 512 characters, none of them for control", problem.Clip(n.Value), strings.TrimPrefix(what, "a "))
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
			r.problem(n, "%v", err)
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
