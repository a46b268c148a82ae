// Package document reads a YAML document that a person wrote, and that may be
// hostile.
//
// A Reader walks the nodes of one document, whose Bounds it holds: what is
// larger is refused, and aliases that multiply end. It knows the Path of keys
// that leads to where it is, and gathers every Problem with its line and column.
// What a key means is up to whoever walks.
package document

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"isle/internal/problem"
)

// MaxProblems bounds how many problems of one file are told: more help nobody.
const MaxProblems = 50

// Bounds says what a document is and how large it may be.
type Bounds struct {
	Noun   string // for messages: "an environment file"
	Bytes  int    // of YAML
	Values int    // nodes looked at, aliases followed: an alias bomb ends here
	Empty  string // what to do about an empty one
	Second string // what to do about a second document in the file
}

// A Reader walks one document and gathers what is wrong with it. The zero
// Reader has no document, and gathers all the same.
type Reader struct {
	problems []problem.Problem
	path     []string
	visited  int
	bounds   Bounds
}

// Root finds the root of the one document in b, and holds its bounds from here
// on. Nothing but an error comes of a file that is no such document.
func (r *Reader) Root(b []byte, bounds Bounds) (*yaml.Node, bool) {
	r.bounds = bounds
	whole := func(line, column int, format string, args ...any) (*yaml.Node, bool) {
		r.problems = append(r.problems, problem.Problem{Line: line, Column: column, Message: fmt.Sprintf(format, args...)})
		return nil, false
	}
	if len(b) > bounds.Bytes {
		return whole(0, 0, "is %d bytes long; %s has at most %d", len(b), bounds.Noun, bounds.Bytes)
	}
	d := yaml.NewDecoder(bytes.NewReader(b))
	var doc, next yaml.Node
	err := d.Decode(&doc)
	if errors.Is(err, io.EOF) || err == nil && len(doc.Content) == 0 {
		return whole(1, 1, "is empty; %s", bounds.Empty)
	}
	if err == nil {
		if err = d.Decode(&next); err == nil {
			return whole(next.Line, next.Column, "a second document begins here; %s", bounds.Second)
		} else if errors.Is(err, io.EOF) {
			return doc.Content[0], true
		}
	}
	line, message := syntaxError(b, err)
	return whole(line, firstColumn(b, line), "this is not YAML: %s", message)
}

// yamlLine is compiled when the first file is no YAML: every program that knows
// this package would pay for it at its start otherwise.
var yamlLine = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(?:yaml: )?(?:(?:offset \d+|line (\d+)): )?(.*)$`)
})

// syntaxError takes the line out of the YAML library's message and adds what
// usually helps.
func syntaxError(b []byte, err error) (line int, message string) {
	text, _, _ := strings.Cut(err.Error(), "\n")
	if m := yamlLine().FindStringSubmatch(text); m != nil {
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
	switch {
	case strings.Contains(text, "cannot start any token"):
		text += "; indent with spaces, not tabs, and quote values that begin with @, ` or %"
	case strings.Contains(text, "mapping values are not allowed"):
		text += "; quote a value that holds a colon and a space"
	default:
		text += "; check the indentation, brackets and quotes here and on the line before"
	}
	return line, text
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

// firstColumn is the column of the first character of a line that is no space:
// the library tells lines only.
func firstColumn(b []byte, line int) int {
	for i, l := range bytes.Split(b, []byte("\n")) {
		if i+1 == line {
			return len(l) - len(bytes.TrimLeft(l, " \t")) + 1
		}
	}
	return 1
}

// Err is a *problem.FileError of all that was wrong in the file, or nil.
func (r *Reader) Err(file string) error {
	if len(r.problems) == 0 {
		return nil
	}
	return &problem.FileError{File: file, Problems: r.problems}
}

// Problems are those so far. Don't change them.
func (r *Reader) Problems() []problem.Problem { return r.problems }

// Problem notes that the value at n, which is the one that is read, is wrong.
func (r *Reader) Problem(n *yaml.Node, format string, args ...any) {
	r.ProblemAt(n, r.Path(), format, args...)
}

// ProblemAt notes that the value at n, whose path is given, is wrong.
func (r *Reader) ProblemAt(n *yaml.Node, path, format string, args ...any) {
	switch {
	case len(r.problems) > MaxProblems:
		return
	case len(r.problems) == MaxProblems:
		r.problems = append(r.problems, problem.Problem{Line: n.Line, Column: n.Column, Message: "there is more wrong; mend the above first"})
		return
	}
	r.problems = append(r.problems, problem.Problem{Line: n.Line, Column: n.Column, Path: path, Message: fmt.Sprintf(format, args...)})
}

// Enter goes down to a key, or to an index written [0]; what it returns goes
// back up.
func (r *Reader) Enter(step string) (leave func()) {
	r.path = append(r.path, step)
	return func() { r.path = r.path[:len(r.path)-1] }
}

// Path leads to the value that is read: services.web.copy[0].to.
func (r *Reader) Path() string { return Path(r.path...) }

// Path joins steps as Enter takes them.
func Path(steps ...string) string {
	var b strings.Builder
	for _, s := range steps {
		switch {
		case strings.HasPrefix(s, "["):
			b.WriteString(s)
		case !plain(s):
			b.WriteString("[" + strconv.Quote(problem.Clip(s)) + "]")
		case b.Len() > 0:
			b.WriteString("." + s)
		default:
			b.WriteString(s)
		}
	}
	return b.String()
}

// plain says whether a key can stand in a path without quotes.
func plain(key string) bool {
	for i, c := range []byte(key) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c != '-' && (c < '0' || c > '9')) {
			return false
		}
	}
	return key != ""
}

// Resolve follows an alias and counts: the bound ends alias bombs.
func (r *Reader) Resolve(n *yaml.Node) (*yaml.Node, bool) {
	r.visited++
	if r.visited > r.bounds.Values {
		if r.visited == r.bounds.Values+1 {
			r.Problem(n, "the file, with its aliases followed, is larger than %d values", r.bounds.Values)
		}
		return nil, false
	}
	if n.Kind != yaml.AliasNode {
		return n, true
	}
	if n.Alias == nil || n.Alias.Kind == yaml.AliasNode {
		r.Problem(n, "the alias points to nothing")
		return nil, false
	}
	// The alias's place is where the reader of the file has to look.
	c := *n.Alias
	c.Line, c.Column = n.Line, n.Column
	return &c, true
}

// Pairs calls each for the keys of a mapping; a key that stands there twice or
// is no plain text is a problem.
func (r *Reader) Pairs(n *yaml.Node, each func(name string, k, v *yaml.Node)) {
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		switch {
		case k.Tag == "!!merge":
			r.Problem(k, "merge keys (<<) do not work here; write the keys out, or alias single values")
			continue
		case k.Kind != yaml.ScalarNode:
			r.Problem(k, "a key is %s; keys are plain text", Words(k))
			continue
		}
		if line, twice := first[k.Value]; twice {
			r.Problem(k, "key %q is here a second time, first on line %d; remove one", problem.Clip(k.Value), line)
			continue
		}
		first[k.Value] = k.Line
		each(k.Value, k, v)
	}
}

// Words says what a node is, for people.
func Words(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		return "empty"
	default:
		return strconv.Quote(problem.Clip(n.Value))
	}
}
