// Package compose reads what other tools describe environments with, Compose
// files and devcontainer.json, and says it as an isle.yaml.
//
// A Conversion is that isle.yaml with its Notes. A Note is about one key that
// Isle does in another way (Differs), leaves out (Dropped), or cannot do without
// the result being something else (Refused): it has the place, the reason and
// what to do. Nothing of a file is passed over without one.
//
// The files are untrusted. What they lead to, by include, extends, env_file,
// configs or a mount, is read below the project's folder only, each file once
// named in Reads; nothing is fetched, and nothing is run. Sizes, depth and the
// number of values are bounded.
//
// The reference implementation, compose-go, is what tests compare with. It is
// not linked: it reads files by itself, tells no lines, and its start would cost
// every command several milliseconds.
package compose

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"isle"
	"isle/internal/problem"
	"isle/internal/spec"
)

// A Kind says what became of a key.
type Kind string

// The kinds of note.
const (
	Differs Kind = "differs" // done in another way
	Dropped Kind = "dropped" // left out; what runs is the same without it, or nearly
	Refused Kind = "refused" // left out, and without it something else would run
)

// A Note is about one key that is not done as it is written.
type Note struct {
	Kind    Kind   `json:"kind"`
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`    // from 1; 0 if it belongs to no line
	Service string `json:"service,omitempty"` // "" is the file as a whole
	Key     string `json:"key"`
	Reason  string `json:"reason"`
	Do      string `json:"do,omitempty"` // what to do; may be empty
}

// String is the note for people, without its kind.
func (n Note) String() string {
	var b strings.Builder
	b.WriteString(n.File)
	if n.Line > 0 {
		fmt.Fprintf(&b, ":%d", n.Line)
	}
	b.WriteString(": ")
	if n.Service != "" {
		b.WriteString(n.Service + ": ")
	}
	b.WriteString(n.Key + ": " + n.Reason)
	if n.Do != "" {
		b.WriteString("; " + n.Do)
	}
	return b.String()
}

// A Source is a file to convert.
type Source struct {
	// Dir is the project's folder: nothing outside of it is read.
	Dir string
	// Name is the file's path relative to Dir, slash-separated.
	Name string
	// Over are files that are laid over it, in this order, named likewise.
	Over []string
	// Profiles are those that are asked for; "*" is all.
	Profiles []string
	// Environ looks up variables of whoever asks, for interpolation. nil: there
	// are none.
	Environ func(name string) (value string, ok bool)
}

// A Conversion is what a Source says as an isle.yaml.
type Conversion struct {
	YAML  []byte
	File  spec.File // YAML, parsed; the zero File where something is refused and the rest is none
	Notes []Note    // by place
	Reads []string  // the files that were read, relative to Dir, the Source's own first
	// Secrets are what its builds are given, which is not in YAML.
	Secrets []BuildSecret
}

// Err is a *problem.FileError of what is refused, or nil.
func (c Conversion) Err() error {
	var e problem.FileError
	for _, n := range c.Notes {
		if n.Kind != Refused {
			continue
		}
		text := n.Reason
		if n.Do != "" {
			text += "; " + n.Do
		}
		where := n.Key
		if n.Service != "" {
			where = n.Service + ": " + n.Key
		}
		e.File = cmp.Or(e.File, n.File)
		if n.File != e.File {
			text += " (" + n.File + ")"
		}
		e.Problems = append(e.Problems, problem.Problem{Line: n.Line, Path: where, Message: text})
	}
	if len(e.Problems) == 0 {
		return nil
	}
	e.Hint = "`isle convert` writes an isle.yaml of the rest, to go on from"
	return &e
}

// IsName reports whether a file is one of those that are converted, by its name.
func IsName(name string) bool {
	base := filepath.Base(name)
	if base == "devcontainer.json" || base == ".devcontainer.json" {
		return true
	}
	ext := filepath.Ext(base)
	return (ext == ".yaml" || ext == ".yml") && (strings.HasPrefix(base, "compose.") || strings.HasPrefix(base, "docker-compose."))
}

// Find is the file of a folder that is converted where there is no isle.yaml,
// and what is laid over it by its name; "" if there is none.
func Find(dir string) (name string, over []string) {
	there := func(name string) bool {
		st, err := os.Stat(filepath.Join(dir, filepath.FromSlash(name)))
		return err == nil && st.Mode().IsRegular()
	}
	for _, base := range []string{"compose", "docker-compose"} {
		for _, ext := range []string{".yaml", ".yml"} {
			if !there(base + ext) {
				continue
			}
			for _, e := range []string{".yaml", ".yml"} {
				if o := base + ".override" + e; there(o) {
					return base + ext, []string{o}
				}
			}
			return base + ext, nil
		}
	}
	for _, name := range []string{".devcontainer/devcontainer.json", ".devcontainer.json"} {
		if there(name) {
			return name, nil
		}
	}
	return "", nil
}

// Folder is the project's folder of a file, and its name relative to that.
func Folder(file string) (dir, name string) {
	dir, name = filepath.Split(file)
	dir = filepath.Clean(dir)
	if name == "devcontainer.json" && filepath.Base(dir) == ".devcontainer" {
		return filepath.Dir(dir), path.Join(".devcontainer", name)
	}
	return dir, name
}

// Convert reads a Source. Its error says why there is no Conversion at all; what
// a Conversion lacks is in its Notes.
func Convert(src Source) (c Conversion, err error) {
	defer func() { // the file is somebody else's: whatever it leads to is an error of this file
		if r := recover(); r != nil {
			c, err = Conversion{}, isle.Errorf(isle.Invalid, "%s cannot be read: %v", src.Name, r)
		}
	}()
	root, err := os.OpenRoot(src.Dir)
	if err != nil {
		return Conversion{}, isle.Errorf(isle.NotFound, "cannot read %s: %w", src.Dir, err)
	}
	defer root.Close()
	r := &reader{root: root, src: src}
	convert := r.compose
	if path.Ext(src.Name) == ".json" {
		convert = r.devcontainer
	}
	out, err := convert()
	if err != nil {
		return Conversion{}, err
	}
	c = Conversion{Notes: r.notes, Reads: r.reads}
	for _, s := range out.services {
		c.Secrets = append(c.Secrets, s.secrets...)
	}
	c.YAML, c.File, err = out.write(r)
	c.Notes = r.notes
	slices.SortStableFunc(c.Notes, func(a, b Note) int {
		return cmp.Or(cmp.Compare(slices.Index(r.reads, a.File), slices.Index(r.reads, b.File)), cmp.Compare(a.Line, b.Line))
	})
	c.Notes = slices.CompactFunc(c.Notes, func(a, b Note) bool { return a == b })
	if err != nil && c.Err() == nil {
		return c, err
	}
	return c, nil
}

// invalid is an error of a file as a whole, or of a line.
func invalid(at place, format string, args ...any) error {
	return &problem.FileError{File: at.file, Problems: []problem.Problem{{Line: at.line, Message: fmt.Sprintf(format, args...)}}}
}

var errTooLarge = errors.New("the files, with what they name followed, are larger than can be read")
