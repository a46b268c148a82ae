// Package dockerfile reads Dockerfiles: what each instruction means, and nothing
// of how it is done.
//
// A File is a Dockerfile that was parsed, by BuildKit's own parser. A Plan is
// what a target of it needs: its Stages in their order, with the images they
// begin with and copy from. A Walk goes through one stage on top of what it
// begins with: it keeps the stage's variables, user and folder, changes the
// image's configuration, and gives the Ops that make layers: Run, Copy, Folder.
//
// A Dockerfile comes from who knows whom. What Isle does not do is an error with
// its line and the reason; nothing is passed over.
package dockerfile

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"isle"
)

// Bounds of a Dockerfile, far above what people write.
const (
	MaxSize         = 256 << 10 // bytes; the parser takes time by the square of it
	maxLines        = 16 << 10
	maxStages       = 256
	maxInstructions = 4096
	maxWord         = 256 << 10 // bytes of one word and the variables in it
	maxGiven        = 64 << 20  // bytes of the variables in all words
	maxReplaced     = 512 << 20 // squares of bytes of the words that replace, which is what they take
	maxVariables    = 4096      // variables, and labels, of a stage
	maxSettings     = 1 << 20   // bytes of all of them
	maxNames        = 1024      // what one COPY copies and leaves out; volumes of a stage
	maxMounts       = 64        // of one RUN
	maxTriggers     = 64        // ONBUILD instructions of one image
	maxMessage      = 500       // bytes of an error of the parser
)

// A File is a parsed Dockerfile.
type File struct {
	name   string
	escape rune
	global []*instructions.ArgCommand // before the first FROM
	stages []stage
}

// A stage is a FROM with what follows it.
type stage struct {
	name     string // "" if it has none
	from     string // as written
	platform string
	line     int
	commands []command
}

// A command is one instruction.
type command struct {
	line int
	instructions.Command
}

// Parse reads a Dockerfile. name is what messages call it. Errors are Invalid
// and name the line.
func Parse(name string, content []byte) (f *File, err error) {
	f = &File{name: name}
	defer func() { // the parser is another project's; a panic in it is a bad file
		if p := recover(); p != nil {
			f, err = nil, isle.Errorf(isle.Invalid, "%s cannot be read as a Dockerfile: %v", name, p)
		}
	}()
	if err := readable(name, content); err != nil {
		return nil, err
	}
	if err := f.directives(content); err != nil {
		return nil, err
	}
	tree, err := parser.Parse(bytes.NewReader(content))
	if err != nil {
		return nil, f.fail(lineOf(err, 1), "%v", err)
	}
	f.escape = tree.EscapeToken
	if len(tree.AST.Children) > maxInstructions {
		return nil, isle.Errorf(isle.Invalid, "%s has %d instructions; at most %d are read", name, len(tree.AST.Children), maxInstructions)
	}
	for _, n := range tree.AST.Children {
		if err := f.instruction(n); err != nil {
			return nil, err
		}
	}
	if len(f.stages) == 0 {
		return nil, isle.Errorf(isle.Invalid, "%s has no FROM: there is nothing to build", name)
	}
	return f, nil
}

// readable refuses what the parser should not see: it takes time by the square of
// some things.
func readable(name string, content []byte) error {
	switch {
	case len(content) > MaxSize:
		return isle.Errorf(isle.Invalid, "%s has %d bytes, and a Dockerfile at most %d", name, len(content), MaxSize)
	case bytes.Count(content, []byte("\n")) > maxLines:
		return isle.Errorf(isle.Invalid, "%s has more than %d lines", name, maxLines)
	case bytes.Count(bytes.ToUpper(content), []byte("ONBUILD")) > maxNames:
		return isle.Errorf(isle.Invalid, "%s says ONBUILD more than %d times", name, maxNames)
	case !utf8.Valid(content) || bytes.IndexByte(content, 0) >= 0:
		return isle.Errorf(isle.Invalid, "%s is not UTF-8 text", name)
	}
	return nil
}

// instruction adds one line's worth to the file.
func (f *File) instruction(n *parser.Node) error {
	parsed, err := instructions.ParseInstruction(n)
	if err != nil {
		return f.fail(n.StartLine, "%v", err)
	}
	if s, ok := parsed.(*instructions.Stage); ok {
		if len(f.stages) == maxStages {
			return f.fail(n.StartLine, "more than %d stages", maxStages)
		}
		for i, other := range f.stages {
			if s.Name != "" && strings.EqualFold(other.name, s.Name) {
				return f.fail(n.StartLine, "stage %d is called %q already, in line %d", i, s.Name, other.line)
			}
		}
		f.stages = append(f.stages, stage{name: s.Name, from: s.BaseName, platform: s.Platform, line: n.StartLine})
		return nil
	}
	c, ok := parsed.(instructions.Command)
	if !ok {
		return f.fail(n.StartLine, "%s is no instruction", n.Value)
	}
	if len(f.stages) > 0 {
		last := &f.stages[len(f.stages)-1]
		last.commands = append(last.commands, command{n.StartLine, c})
		return nil
	}
	arg, ok := c.(*instructions.ArgCommand)
	if !ok {
		return f.fail(n.StartLine, "%s stands before the first FROM, where only ARG can be", strings.ToUpper(c.Name()))
	}
	f.global = append(f.global, arg)
	return nil
}

// directives reads the comments at the top that mean something. Isle has one
// reader of Dockerfiles: what asks for another is refused.
func (f *File) directives(content []byte) error {
	var p parser.DirectiveParser
	all, err := p.ParseAll(content)
	if err != nil {
		return f.fail(1, "%v", err)
	}
	for _, d := range all {
		line := 1
		if len(d.Location) > 0 {
			line = d.Location[0].Start.Line
		}
		switch d.Name {
		case "escape": // the parser's
		case "syntax":
			if !knownSyntax(d.Value) {
				return f.fail(line, "syntax=%s asks for another program to read this file, and none is fetched; docker/dockerfile:1 is what this one reads", clip(d.Value))
			}
		default:
			return f.fail(line, "%s= is for `docker build --check`, which Isle does not have; remove the line", d.Name)
		}
	}
	return nil
}

// lastSyntax is the highest version of docker/dockerfile:1 that is read.
const lastSyntax = 20

// knownSyntax reports whether a syntax is docker/dockerfile:1, whichever
// version of it that this reader knows.
func knownSyntax(s string) bool {
	s, _, _ = strings.Cut(s, "@") // the digest of the image that is not fetched
	s = strings.TrimPrefix(s, "docker.io/")
	tag, ok := strings.CutPrefix(s, "docker/dockerfile")
	switch {
	case !ok:
		return false
	case tag == "" || tag == ":1" || tag == ":latest":
		return true
	}
	minor, ok := strings.CutPrefix(tag, ":1.")
	minor, _, _ = strings.Cut(minor, ".")
	n, err := strconv.Atoi(minor)
	return ok && err == nil && n >= 0 && n <= lastSyntax
}

// fail is an error of a line.
func (f *File) fail(line int, format string, args ...any) *isle.Error {
	e := isle.Errorf(isle.Invalid, format, args...)
	if len(e.Message) > maxMessage { // the parser's own repeat the whole line
		e.Message = strings.ToValidUTF8(e.Message[:maxMessage], "") + "…"
	}
	e.Message = fmt.Sprintf("%s:%d: %s", f.name, line, e.Message)
	return e
}

// lineOf is the line that an error of the parser is about.
func lineOf(err error, otherwise int) int {
	var at *parser.LocationError
	if errors.As(err, &at) && len(at.Locations) > 0 && len(at.Locations[0]) > 0 {
		return at.Locations[0][0].Start.Line
	}
	return otherwise
}

// clip makes one short line of a text from outside.
func clip(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 80 {
		return string(r[:79]) + "…"
	}
	return s
}
