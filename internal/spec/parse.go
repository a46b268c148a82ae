package spec

import (
	"go.yaml.in/yaml/v3"

	"isle/internal/document"
)

// Bounds of an environment file. What is above them is refused with a message
// that names the bound.
const (
	MaxFileSize = 1 << 20 // bytes of YAML
	maxVisited  = 100_000 // nodes looked at, aliases followed: an alias bomb ends here
)

var bounds = document.Bounds{
	Noun: "an environment file", Bytes: MaxFileSize, Values: maxVisited,
	Empty:  "`isle init` writes one to start from",
	Second: "one file describes one project, remove the `---`",
}

// Parse reads an environment file, applies every default and checks it whole.
// name is the file's name for messages. On error it is a *FileError that lists
// all problems found, with line and column, and unwraps to an *isle.Error with
// code Invalid.
//
// YAML aliases (*name) work and are bounded; merge keys (<<) do not.
func Parse(name string, b []byte) (File, error) {
	r := &reader{at: map[string]*yaml.Node{}}
	var f File
	if root, ok := r.Root(b, bounds); ok {
		shape := fileShape()
		r.places = places(shape.keys)
		shape.readAt(r, root, &f)
		r.check(&f)
	}
	if err := r.Err(name); err != nil {
		return File{}, err
	}
	return f, nil
}

// Says reports whether an environment file that Parse takes has a key of its
// own, and not by default.
func Says(b []byte, key string) bool {
	var doc yaml.Node
	if yaml.Unmarshal(b, &doc) != nil || len(doc.Content) == 0 {
		return false
	}
	root := doc.Content[0]
	for i := 0; root.Kind == yaml.MappingNode && i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value == key {
			return true
		}
	}
	return false
}

// A reader walks an environment file.
type reader struct {
	document.Reader
	at     map[string]*yaml.Node // where the value of a path stands
	places map[string]string     // key -> where it belongs, for keys on the wrong level
}

// enter goes down to a key or index of the value that is read, whose place it
// keeps; the function it returns goes back up.
func (r *reader) enter(step string, n *yaml.Node) (leave func()) {
	leave = r.Enter(step)
	r.at[r.Path()] = n
	return leave
}
