// Package gateway drives the gateway from outside with the clients that people
// use, in front of a real PostgreSQL.
package gateway

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isle/test/lab"
)

var (
	world  *lab.Server
	server *lab.PG
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	s, err := lab.New("../../bin")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer s.Close()
	world = s
	if server, err = lab.StartPostgres(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer server.Close()
	if out, err := server.Exec("postgres", "create role shop login password 'shop'"); err != nil {
		fmt.Fprintln(os.Stderr, out, err)
		return 1
	}
	return m.Run()
}

func isle(t *testing.T, args ...string) string {
	t.Helper()
	out, err := world.Isle(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// secret sets a secret to a value.
func secret(t *testing.T, name, value string) {
	t.Helper()
	cmd := world.Command("secret", "set", name)
	cmd.Stdin = strings.NewReader(value)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("isle secret set: %v\n%s", err, out)
	}
}

// apply applies a document of policy under a name of its own.
func apply(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), name+".yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	isle(t, "apply", "--document", name, "-f", path)
}

// connection is the text of a connection to a PostgreSQL, with more lines of its
// own below it.
func connection(name string, pg *lab.PG, database, user string, more ...string) string {
	text := fmt.Sprintf(`  %s:
    kind: postgres
    address: %q
    database: %s
    stage: testing
    credential: {secret: %s, user: %s}
    tls:
      ca: |
        %s
`, name, pg.Addr(), database, name, user, strings.ReplaceAll(strings.TrimSpace(pg.CA), "\n", "\n        "))
	for _, line := range more {
		text += "    " + line + "\n"
	}
	return text
}
