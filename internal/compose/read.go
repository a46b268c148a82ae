package compose

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"isle"
	"isle/internal/document"
	"isle/internal/problem"
)

// Bounds of what is read.
const (
	maxFile   = 1 << 20  // bytes of one file
	maxFiles  = 64       // files that lead to one another
	maxRead   = 64 << 20 // bytes of all, one that is named often read as often
	maxValues = 50_000   // values, aliases and merges followed
	maxLaid   = 500_000  // values that services have of what they extend
	maxDepth  = 64       // of values in one another
	maxNotes  = 400
)

// A place is where something stands.
type place struct {
	file string
	line int
}

// A node is a value of a file with its place, aliases and merge keys followed.
// Nodes are shared: nobody changes one.
type node struct {
	place
	kind   yaml.Kind // ScalarNode, SequenceNode or MappingNode
	null   bool      // of a scalar: nothing is written
	quoted bool      // of a scalar: it is text, whatever it looks like
	tag    string    // "!reset" or "!override", for files that are laid over others
	text   string    // of a scalar, interpolated
	items  []*node   // of a sequence
	pairs  []pair    // of a mapping, in the order of the file
}

type pair struct {
	place
	key   string
	value *node
}

// get is the value of a key, nil if it is not there or empty.
func (n *node) get(key string) *node {
	if n == nil {
		return nil
	}
	for _, p := range n.pairs {
		if p.key == key && !p.value.null {
			return p.value
		}
	}
	return nil
}

// keyAt is where a key stands.
func (n *node) keyAt(key string) place {
	for _, p := range n.pairs {
		if p.key == key {
			return p.place
		}
	}
	return n.place
}

// str is the text of a scalar, "" of everything else.
func (n *node) str() string {
	if n == nil || n.kind != yaml.ScalarNode {
		return ""
	}
	return n.text
}

// yes reports whether a scalar says so.
func (n *node) yes() bool {
	return slices.Contains([]string{"true", "yes", "on", "y"}, strings.ToLower(n.str()))
}

// texts are the scalars of a list, or the one that stands in its place.
func (n *node) texts() []string {
	if n == nil || n.null {
		return nil
	}
	if n.kind == yaml.ScalarNode {
		return []string{n.text}
	}
	var out []string
	for _, i := range n.items {
		out = append(out, i.str())
	}
	return out
}

// count is how many values a node is.
func (n *node) count() int {
	sum := 1 + len(n.pairs)
	for _, i := range n.items {
		sum += i.count()
	}
	for _, p := range n.pairs {
		sum += p.value.count()
	}
	return sum
}

// A reader reads one Source.
type reader struct {
	root   *os.Root
	src    Source
	top    *node // the file, all laid over one another
	reads  []string
	loaded map[string]*node // files, by name
	values int
	laid   int // values that were laid over others
	size   int // bytes that were read
	spent  int // bytes that variables came to
	notes  []Note
	vars   variables
	expand func(string) (string, error) // puts variables into a text; nil: vars does
}

// note tells something about a key.
func (r *reader) note(kind Kind, at place, service, key, reason, do string) {
	if len(r.notes) < maxNotes {
		r.notes = append(r.notes, Note{Kind: kind, File: at.file, Line: at.line, Service: problem.Clip(service), Key: problem.Clip(key), Reason: reason, Do: do})
	}
}

// below is a path that a file names, relative to the project's folder. base is
// the folder that it is relative to.
func below(base, name string) (string, error) {
	if strings.Contains(name, "://") || strings.HasPrefix(name, "git@") {
		return "", errors.New("is elsewhere, and nothing is fetched; keep a copy in the project's folder")
	}
	if strings.HasPrefix(name, "~") || strings.ContainsRune(name, 0) {
		return "", errors.New("is outside of the project's folder; copy it there")
	}
	clean := path.Join(base, name)
	if path.IsAbs(name) || clean == ".." || strings.HasPrefix(clean, "../") {
		return "", errors.New("is outside of the project's folder; copy it there")
	}
	return clean, nil
}

// read reads a file below the project's folder: links that lead out of it lead
// nowhere.
func (r *reader) read(name string) ([]byte, error) {
	if !slices.Contains(r.reads, name) {
		if len(r.reads) == maxFiles {
			return nil, isle.Errorf(isle.Invalid, "%s: more than %d files lead to one another", name, maxFiles)
		}
		r.reads = append(r.reads, name)
	}
	if r.size > maxRead {
		return nil, invalid(place{name, 0}, "%v", errTooLarge)
	}
	st, err := r.root.Stat(filepath.FromSlash(name))
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("it is no file")
	}
	if err != nil {
		return nil, notRead(name, err)
	}
	f, err := r.root.Open(filepath.FromSlash(name))
	if err != nil {
		return nil, notRead(name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, notRead(name, err)
	}
	r.size += len(b)
	if len(b) > maxFile {
		return nil, isle.Errorf(isle.Invalid, "%s has more than 1 MiB, which is the most that is read", name)
	}
	return b, nil
}

func notRead(name string, err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	return isle.Errorf(isle.NotFound, "cannot read %s: %w", name, err)
}

// parse reads a file of YAML.
func (r *reader) parse(name string) (*node, error) {
	b, err := r.read(name)
	if err != nil {
		return nil, err
	}
	return r.tree(name, b)
}

// tree is a document as nodes.
func (r *reader) tree(name string, b []byte) (*node, error) {
	var d document.Reader
	top, ok := d.Root(b, document.Bounds{Noun: "such a file", Bytes: maxFile, Values: maxValues, Empty: "it has to say what the environment is made of", Second: "one file is one document"})
	if !ok {
		return nil, d.Err(name)
	}
	n, err := r.build(top, place{name, top.Line}, 0)
	if err == nil && n.kind != yaml.MappingNode {
		err = invalid(n.place, "is %s; want a mapping", document.Words(top))
	}
	return n, err
}

// build makes a node of YAML's.
func (r *reader) build(y *yaml.Node, at place, depth int) (*node, error) {
	if r.values++; r.values > maxValues || depth > maxDepth {
		return nil, invalid(at, "%v", errTooLarge)
	}
	if y.Kind == yaml.AliasNode {
		if y.Alias == nil {
			return nil, invalid(at, "the alias points to nothing")
		}
		return r.build(y.Alias, at, depth+1)
	}
	n := &node{place: at, kind: y.Kind}
	if y.Tag == "!reset" || y.Tag == "!override" {
		n.tag = y.Tag
	}
	switch y.Kind {
	case yaml.ScalarNode:
		return n, r.scalar(n, y)
	case yaml.SequenceNode:
		for _, i := range y.Content {
			item, err := r.build(i, place{at.file, i.Line}, depth+1)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, item)
		}
		return n, nil
	case yaml.MappingNode:
		return n, r.mapping(n, y, depth)
	}
	return nil, invalid(at, "is no value")
}

func (r *reader) scalar(n *node, y *yaml.Node) error {
	n.text, n.null = y.Value, y.Tag == "!!null"
	n.quoted = y.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
	if n.null {
		return nil
	}
	expand := r.expand
	if expand == nil {
		expand = r.vars.expand
	}
	text, err := expand(n.text)
	if err != nil {
		return invalid(n.place, "%v", err)
	}
	n.text = text
	return nil
}

// mapping reads pairs; what a merge key brings stands behind what is written.
func (r *reader) mapping(n *node, y *yaml.Node, depth int) error {
	var merged []*yaml.Node
	seen := make(map[string]bool, len(y.Content)/2)
	for i := 0; i+1 < len(y.Content); i += 2 {
		k, v := y.Content[i], y.Content[i+1]
		at := place{n.file, k.Line}
		switch {
		case k.Tag == "!!merge":
			merged = append(merged, v)
			continue
		case k.Kind != yaml.ScalarNode:
			return invalid(at, "a key is %s; keys are plain text", document.Words(k))
		case seen[k.Value]:
			return invalid(at, "key %q is here a second time; remove one", problem.Clip(k.Value))
		}
		value, err := r.build(v, place{n.file, v.Line}, depth+1)
		if err != nil {
			return err
		}
		seen[k.Value] = true
		n.pairs = append(n.pairs, pair{at, k.Value, value})
	}
	for _, m := range merged {
		if err := r.mergeKey(n, m, depth+1, seen); err != nil {
			return err
		}
	}
	return nil
}

// mergeKey adds what a merge key names: a mapping, or a list of them, of which
// the first wins. seen are the keys that are there.
func (r *reader) mergeKey(n *node, y *yaml.Node, depth int, seen map[string]bool) error {
	from, err := r.build(y, place{n.file, y.Line}, depth)
	if err != nil {
		return err
	}
	list := []*node{from}
	if from.kind == yaml.SequenceNode {
		list = from.items
	}
	for _, m := range list {
		if m.kind != yaml.MappingNode {
			return invalid(m.place, "a merge key (<<) takes a mapping or a list of mappings")
		}
		for _, p := range m.pairs {
			if !seen[p.key] {
				seen[p.key] = true
				n.pairs = append(n.pairs, p)
			}
		}
	}
	return nil
}

// quote is text of a file for a message.
func quote(s string) string { return fmt.Sprintf("%q", problem.Clip(s)) }
