package document

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"isle"
	"isle/internal/problem"
)

var bounds = Bounds{Noun: "a test", Bytes: 2000, Values: 100, Empty: "write one", Second: "remove it"}

// walk resolves all that a document holds.
func walk(r *Reader, n *yaml.Node) {
	n, ok := r.Resolve(n)
	switch {
	case !ok:
	case n.Kind == yaml.MappingNode:
		r.Pairs(n, func(name string, _, v *yaml.Node) {
			defer r.Enter(name)()
			walk(r, v)
		})
	case n.Kind == yaml.SequenceNode:
		for i, c := range n.Content {
			leave := r.Enter(fmt.Sprintf("[%d]", i))
			walk(r, c)
			leave()
		}
	case n.Value == "bad":
		r.Problem(n, "is bad")
	}
}

func read(text string) error {
	var r Reader
	if root, ok := r.Root([]byte(text), bounds); ok {
		walk(&r, root)
	}
	return r.Err("f")
}

func TestWhatIsWrongIsToldWithItsPlaceAndPath(t *testing.T) {
	for text, want := range map[string]string{
		"":                           "f:1:1: is empty; write one",
		"# nothing":                  "f:1:1: is empty; write one",
		"a: 1\n---\nb: 1":            "f:2:1: a second document begins here; remove it",
		"a: [1\n":                    "f:1:1: this is not YAML: did not find expected ',' or ']'; check the indentation",
		"a:\n\tb: 1":                 "f:2:2: this is not YAML: found character that cannot start any token; indent with spaces",
		strings.Repeat("#", 2001):    "f: is 2001 bytes long; a test has at most 2000",
		"a: 1\na: 2":                 `f:2:1: key "a" is here a second time, first on line 1; remove one`,
		"<<: {a: 1}":                 "f:1:1: merge keys (<<) do not work here",
		"[a]: 1":                     "f:1:1: a key is a list; keys are plain text",
		"a: {b-c: [x, bad]}":         "f:1:14: a.b-c[1]: is bad",
		"a: {\"b.c\": bad, 1d: bad}": "f:1:12: a[\"b.c\"]: is bad\nf:1:21: a[\"1d\"]: is bad",
		"a: &a bad\nb: *a":           "f:1:4: a: is bad\nf:2:4: b: is bad",
	} {
		err := read(text)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q:\n%v, want\n%s", text, err, want)
		}
		var all *problem.FileError
		if !errors.As(err, &all) || isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%q: the error has code %v", text, isle.CodeOf(err))
		}
	}
	if err := read("a: {b: [1, 2]}"); err != nil {
		t.Error(err)
	}
}

func TestAliasesThatMultiplyEnd(t *testing.T) {
	bomb := "a: &a [x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c < 'z'; c++ {
		bomb += fmt.Sprintf("%c: &%c [*%c, *%c, *%c, *%c]\n", c, c, c-1, c-1, c-1, c-1)
	}
	err := read(bomb)
	if err == nil || strings.Count(err.Error(), "aliases followed, is larger than 100 values") != 1 {
		t.Errorf("%v", err)
	}
	// An alias to what it stands in has no end.
	if err := read("a: &a [*a]"); err == nil {
		t.Error("an alias of itself was read")
	}
}

func TestAFileIsNotToldMoreProblemsThanHelp(t *testing.T) {
	err := read("[" + strings.Repeat("bad, ", 90) + "]")
	var all *problem.FileError
	if !errors.As(err, &all) || len(all.Problems) != MaxProblems+1 || !strings.Contains(err.Error(), "there is more wrong") {
		t.Errorf("%v", err)
	}
}
