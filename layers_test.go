package isle_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// rooms lists every room, highest first. A room imports only rooms above it,
// so this list is the architecture: to move a line is to change the design.
var rooms = []string{
	".",
	"internal/problem",
	"internal/document",
	"internal/allowance",
	"internal/conceal",
	"internal/policy",
	"internal/image",
	"internal/audit",
	"internal/ledger",
	"internal/inspection",
	"internal/seal",
	"internal/authority",
	"internal/spec",
	"internal/compose", // of the client alone: the server is given an isle.yaml
	"internal/checkout",
	"internal/initproto",
	"internal/build",
	"internal/snapshot",
	"internal/environment",
	"internal/release",
	"internal/identity",
	"internal/secret",
	"internal/approval",
	"internal/session",
	"internal/gateway",
	"internal/airlock",
	"internal/driver",
	"internal/store",
	"internal/api",
	"internal/web",
	"internal/server",
	"internal/mcp", // a client as cmd is, and no part of the server: nothing but cmd may import it
	"cmd",
}

// confined says which imports only some rooms may have, and why.
var confined = []struct {
	prefix, reason string
	rooms          []string
}{
	{"database/sql", "SQL lives only in store", []string{"internal/store"}},
	{"modernc.org/sqlite", "SQL lives only in store", []string{"internal/store"}},
	{"k8s.io/", "Kubernetes lives only in driver/kubernetes", []string{"internal/driver/kubernetes"}},
	{"connectrpc.com/", "the wire API lives at the edges", []string{"internal/api", "internal/server", "cmd"}},
	{"google.golang.org/protobuf", "the wire API lives at the edges, and PostgreSQL's grammar gives its trees so", []string{"internal/api", "internal/server", "internal/gateway/postgres/query", "internal/mcp", "cmd"}},
	{"github.com/pganalyze/pg_query_go", "SQL's trees are read where SQL is", []string{"internal/gateway/postgres"}},
	{"github.com/jackc/pgx", "PostgreSQL's protocol lives in gateway/postgres", []string{"internal/gateway/postgres"}},
	{"github.com/tetratelabs/wazero", "foreign code is PostgreSQL's grammar alone", []string{"internal/gateway/postgres/query/grammar"}},
	{"github.com/cedar-policy/", "authorization is asked of policy", []string{"internal/policy"}},
	{"gvisor.dev/", "gVisor is a program of its own, which the driver runs", []string{"cmd/isle-runsc"}},
	{"github.com/modelcontextprotocol/", "agents are spoken to at their own edge", []string{"internal/mcp"}},
	{"github.com/google/jsonschema-go", "agents are spoken to at their own edge", []string{"internal/mcp"}},
	{"github.com/spf13/", "command lines live in cmd", []string{"cmd"}},
	{"unsafe", "memory safety is part of the sandbox", []string{"internal/driver/local", "internal/airlock", "cmd/isle-init", "internal/api/isle", "internal/gateway/postgres/query/grammar"}},
}

func roomOf(pkg string) int {
	best, length := -1, -1
	for i, r := range rooms {
		if (r == "." && pkg == "." || pkg == r || strings.HasPrefix(pkg, r+"/")) && len(r) > length {
			best, length = i, len(r)
		}
	}
	return best
}

// siblings are the rooms whose sub-packages must not import each other.
var siblings = []string{"internal/driver", "internal/store", "internal/gateway"}

func TestRoomsStayInTheirLayer(t *testing.T) {
	seen := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != "." || d.Name() == "testdata" || d.Name() == "node_modules" || path == "bin" || path == "examples") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		pkg := filepath.ToSlash(filepath.Dir(path))
		isTest := strings.HasSuffix(path, "_test.go")
		if strings.HasPrefix(pkg, "test") || strings.HasPrefix(pkg, "bench") {
			return nil // black-box tests and benchmarks stand outside the house
		}
		seen++
		room := roomOf(pkg)
		if room < 0 {
			t.Errorf("%s: package %s is in no room; add it to the list where it belongs", path, pkg)
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, imp := range f.Imports {
			name, _ := strconv.Unquote(imp.Path.Value)
			for _, c := range confined {
				if name == c.prefix || strings.HasPrefix(name, c.prefix) && (strings.HasSuffix(c.prefix, "/") || strings.HasPrefix(name, c.prefix+"/")) {
					ok := isTest
					for _, r := range c.rooms {
						ok = ok || pkg == r || strings.HasPrefix(pkg, r+"/")
					}
					if !ok {
						t.Errorf("%s imports %s: %s", path, name, c.reason)
					}
				}
			}
			if name != "isle" && !strings.HasPrefix(name, "isle/") {
				if room == 0 && !isTest && strings.Contains(strings.SplitN(name, "/", 2)[0], ".") {
					t.Errorf("%s imports %s: the vocabulary imports the standard library only", path, name)
				}
				continue
			}
			target := strings.TrimPrefix(strings.TrimPrefix(name, "isle"), "/")
			if target == "" {
				target = "."
			}
			if isTest && target == "test/lab" {
				continue // what tests share; it imports no room
			}
			to := roomOf(target)
			if to < 0 {
				t.Errorf("%s imports %s, which is in no room", path, name)
				continue
			}
			if to > room {
				t.Errorf("%s: room %s imports %s, which is below it; declare a small interface and let server wire it", path, rooms[room], target)
			}
			if to == room && pkg != target {
				for _, s := range siblings {
					if rooms[room] == s && pkg != s && target != s && !isTest && !strings.HasPrefix(target, pkg+"/") && !strings.HasPrefix(pkg, target+"/") {
						t.Errorf("%s: %s imports its sibling %s; only server constructs them", path, pkg, target)
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen == 0 {
		t.Fatal("found no Go files: the walk is broken")
	}
}

// A command's process lives for milliseconds. A pattern that is compiled when
// the program starts is paid for by every command and by every isle-init.
func TestNoPatternIsCompiledWhenTheProgramStarts(t *testing.T) {
	err := filepath.WalkDir("internal", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range f.Decls {
			vars, ok := decl.(*ast.GenDecl)
			if !ok {
				continue
			}
			ast.Inspect(vars, func(n ast.Node) bool {
				if _, ok := n.(*ast.FuncLit); ok {
					return false // runs when it is called
				}
				if s, ok := n.(*ast.SelectorExpr); ok && strings.HasPrefix(s.Sel.Name, "MustCompile") {
					t.Errorf("%s: %s stands where the program starts; compile it when it is first used", path, s.Sel.Name)
				}
				return true
			})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
