package isle_test

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"

	"isle"
)

var update = flag.Bool("update", false, "write docs/actions.md anew")

// Every constant of type Action is in Actions, and only once.
func TestEveryActionIsListed(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "isle.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[isle.Action]int{}
	for _, a := range isle.Actions() {
		listed[a.Action]++
		noun, verb, ok := strings.Cut(string(a.Action), ":")
		if !ok || noun == "" || verb == "" || a.Resource == "" || a.Does == "" {
			t.Errorf("%+v is not whole", a)
		}
	}
	declared := 0
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); !ok || typ.Name != "Action" {
			return true
		}
		for _, v := range spec.Values {
			s, _ := strconv.Unquote(v.(*ast.BasicLit).Value)
			declared++
			if listed[isle.Action(s)] != 1 {
				t.Errorf("action %s is listed %d times in Actions", s, listed[isle.Action(s)])
			}
		}
		return true
	})
	if declared == 0 || declared != len(listed) {
		t.Errorf("%d actions are declared, %d listed", declared, len(listed))
	}
}

// The page of actions is what the list gives: go test -run TestThePageOfActions -update .
func TestThePageOfActionsIsCurrent(t *testing.T) {
	var b bytes.Buffer
	b.WriteString("# Actions\n\nMade from `Actions` in the root package; a test keeps it current (`go test -run TestThePageOfActions -update .`).\n" +
		"[policy.md](policy.md) says how they are granted.\n")
	table := func(title, intro string, want func(isle.ActionInfo) bool) {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| action | done to | what it does |\n|---|---|---|\n", title, intro)
		for _, a := range isle.Actions() {
			if !want(a) {
				continue
			}
			does := a.Does
			if a.Inside {
				does += " †"
			}
			kind := a.Resource + ":NAME"
			if isle.Staged(a.Resource) {
				kind += "@STAGE"
			}
			fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", a.Action, kind, does)
		}
	}
	table("What roles grant", "† reaches inside: in a protected stage only a role whose binding or resource names that stage gives it.",
		func(a isle.ActionInfo) bool { return !a.Own })
	table("What nobody asks for", "The server and environments do these by themselves. They are in the audit log, and no role names them.",
		func(a isle.ActionInfo) bool { return a.Own })
	b.WriteString("\nThe one server is `server:server`, its log `audit:log`, its policy `policy:policy`. An image is named by its project; `egress` by\n`HOST:PORT`.\n")
	if *update {
		if err := os.WriteFile("docs/actions.md", b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile("docs/actions.md")
	if err != nil || !bytes.Equal(have, b.Bytes()) {
		t.Errorf("docs/actions.md is out of date (%v): go test -run TestThePageOfActions -update .", err)
	}
}
