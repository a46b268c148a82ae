package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds of an environment file. What is above them is refused with a message
// that names the bound.
const (
	MaxFileSize = 1 << 20 // bytes of YAML
	maxVisited  = 100_000 // nodes looked at, aliases followed: an alias bomb ends here
)

// Parse reads an environment file, applies every default and checks it whole.
// name is the file's name for messages. On error it is a *FileError that lists
// all problems found, with line and column, and unwraps to an *isle.Error with
// code Invalid.
//
// YAML aliases (*name) work and are bounded; merge keys (<<) do not.
func Parse(name string, b []byte) (File, error) {
	r := &reader{at: map[string]*yaml.Node{}}
	root, ok := r.document(b)
	var f File
	if ok {
		shape := fileShape()
		r.places = places(shape.keys)
		shape.readAt(r, root, &f)
		r.check(&f)
	}
	if len(r.problems) > 0 {
		return File{}, &FileError{File: name, Problems: r.problems}
	}
	return f, nil
}

// A reader walks one document and gathers what is wrong with it.
type reader struct {
	problems []Problem
	path     []string
	at       map[string]*yaml.Node // where the value of a path stands
	places   map[string]string     // key -> where it belongs, for keys on the wrong level
	visited  int
}

// document finds the one document's root.
func (r *reader) document(b []byte) (*yaml.Node, bool) {
	whole := func(line, column int, format string, args ...any) (*yaml.Node, bool) {
		r.problems = append(r.problems, Problem{Line: line, Column: column, Message: fmt.Sprintf(format, args...)})
		return nil, false
	}
	if len(b) > MaxFileSize {
		return whole(0, 0, "is %d bytes long; an environment file has at most %d", len(b), MaxFileSize)
	}
	d := yaml.NewDecoder(bytes.NewReader(b))
	var doc, next yaml.Node
	err := d.Decode(&doc)
	if errors.Is(err, io.EOF) || err == nil && len(doc.Content) == 0 {
		return whole(1, 1, "is empty; `isle init` writes one to start from")
	}
	if err == nil {
		if err = d.Decode(&next); err == nil {
			return whole(next.Line, next.Column, "a second document begins here; one file describes one project, remove the `---`")
		} else if errors.Is(err, io.EOF) {
			return doc.Content[0], true
		}
	}
	line, message := syntaxError(b, err)
	return whole(line, firstColumn(b, line), "this is not YAML: %s", message)
}

var yamlLine = pattern{text: `^(?:yaml: )?(?:(?:offset \d+|line (\d+)): )?(.*)$`}

// syntaxError takes the line out of the YAML library's message and adds what
// usually helps.
func syntaxError(b []byte, err error) (line int, message string) {
	text, _, _ := strings.Cut(err.Error(), "\n")
	if m := yamlLine.regexp().FindStringSubmatch(text); m != nil {
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

// problem notes that the value at n is wrong.
func (r *reader) problem(n *yaml.Node, format string, args ...any) {
	r.problemAt(n, r.where(), format, args...)
}

func (r *reader) problemAt(n *yaml.Node, path, format string, args ...any) {
	switch {
	case len(r.problems) > maxProblems:
		return
	case len(r.problems) == maxProblems:
		r.problems = append(r.problems, Problem{Line: n.Line, Column: n.Column, Message: "there is more wrong; mend the above first"})
		return
	}
	r.problems = append(r.problems, Problem{Line: n.Line, Column: n.Column, Path: path, Message: fmt.Sprintf(format, args...)})
}

// enter goes down to a key or index of the value that is read; the function it
// returns goes back up.
func (r *reader) enter(step string, n *yaml.Node) (leave func()) {
	r.path = append(r.path, step)
	r.at[r.where()] = n
	return func() { r.path = r.path[:len(r.path)-1] }
}

// where is the path of the value that is read: services.web.copy[0].to.
func (r *reader) where() string { return joinPath(r.path...) }

var plainKey = pattern{text: `^[A-Za-z_][A-Za-z0-9_-]*$`}

func joinPath(steps ...string) string {
	var b strings.Builder
	for _, s := range steps {
		switch {
		case strings.HasPrefix(s, "["):
			b.WriteString(s)
		case !plainKey.matches(s):
			b.WriteString("[" + strconv.Quote(clip(s)) + "]")
		case b.Len() > 0:
			b.WriteString("." + s)
		default:
			b.WriteString(s)
		}
	}
	return b.String()
}

// resolve follows an alias and counts: the budget ends alias bombs.
func (r *reader) resolve(n *yaml.Node) (*yaml.Node, bool) {
	r.visited++
	if r.visited > maxVisited {
		if r.visited == maxVisited+1 {
			r.problem(n, "the file, with its aliases followed, is larger than %d values", maxVisited)
		}
		return nil, false
	}
	if n.Kind == yaml.AliasNode {
		if n.Alias == nil || n.Alias.Kind == yaml.AliasNode {
			r.problem(n, "the alias points to nothing")
			return nil, false
		}
		// The alias's place is where the reader of the file has to look.
		c := *n.Alias
		c.Line, c.Column = n.Line, n.Column
		return &c, true
	}
	return n, true
}

// kindWords says what a node is, for people.
func kindWords(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		return "empty"
	default:
		return strconv.Quote(clip(n.Value))
	}
}
