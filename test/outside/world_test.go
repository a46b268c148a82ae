// Package outside comes to the gateway of a real server from outside of
// environments: with psql and other clients at its listener, and with isle
// connect, to a real PostgreSQL and to servers of HTTP and of plain TCP.
package outside

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"isle/test/lab"
)

// patience bounds what is waited for.
const patience = 60 * time.Second

// A world is a server with connections to a PostgreSQL, and an echo.
type world struct {
	*lab.Server
	pg      *lab.PG
	process *exec.Cmd
	log     *os.File
	url     string // of the API
	pin     string
	gateway string // HOST:PORT
	ca      string // path of the server's certificate
}

var shared *world

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if shared, err = newWorld(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer shared.Close()
	return m.Run()
}

// policy grants ci and person what is in testing, and nobody what is in
// production but by name.
const policy = `
bindings:
  - {role: admin, subjects: [human:root]}
  - {role: everything, subjects: [human:root, machine:ci, machine:ending, machine:reloaded]}
  - {role: reader, subjects: [machine:looks]}
roles:
  everything: {actions: ["connection:open", "postgres:select", "postgres:write", "postgres:schema", "postgres:admin", "http:read", "http:write"], resources: ["connection:*"], reason: tests, expires: 2100-01-01T00:00:00Z}
  reader: {actions: ["connection:open", "postgres:select"], resources: ["connection:orders-db"]}
protected: []
connections:
  orders-db: {kind: postgres, address: "%[1]s", database: postgres, stage: testing, credential: {secret: orders-db, user: app}, tls: {ca: %[2]q}}
  ledger-db: {kind: postgres, address: "%[1]s", database: postgres, stage: production, credential: {secret: orders-db, user: app}, tls: {ca: %[2]q}}
  echo: {kind: tcp, address: "%[3]s", stage: testing, tls: off}
`

const password = "canary-of-the-upstream-91b2"

func newWorld() (w *world, err error) {
	s, err := lab.Bare("../../bin")
	if err != nil {
		return nil, err
	}
	w = &world{Server: s, ca: filepath.Join(s.State, "tls.crt")}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	if w.pg, err = lab.StartPostgres(); err != nil {
		return w, err
	}
	if _, err = w.pg.Exec("postgres", `create role app login password '`+password+`'; create table orders(id int, note text); insert into orders select i, 'n' || i from generate_series(1, 100) i; grant all on orders to app`); err != nil {
		return w, err
	}
	if w.log, err = os.CreateTemp("", "isle-outside-log-"); err != nil {
		return w, err
	}
	if err = w.start(); err != nil {
		return w, err
	}
	set := w.Command("secret", "set", "orders-db")
	set.Stdin = strings.NewReader(password)
	if out, err := set.CombinedOutput(); err != nil {
		return w, fmt.Errorf("%w: %s", err, out)
	}
	return w, w.apply(fmt.Sprintf(policy, w.pg.Addr(), w.pg.CA, "127.0.0.1:1"))
}

// apply puts a policy in force.
func (w *world) apply(policy string) error {
	f := w.State + ".policy.yaml"
	if err := os.WriteFile(f, []byte(policy), 0o600); err != nil {
		return err
	}
	_, err := w.Isle("apply", "-f", f)
	return err
}

func (w *world) start() error {
	args := []string{"server", "--listen", "127.0.0.1:0", "--gateway", "127.0.0.1:0"}
	if w.Runtime != "" {
		args = append(args, "--runtime", w.Runtime)
	}
	w.process = w.Command(args...)
	w.process.Stderr = w.log
	if err := w.process.Start(); err != nil {
		return err
	}
	var told struct{ URL, Pin, Gateway string }
	for end := time.Now().Add(patience); told.Gateway == ""; time.Sleep(20 * time.Millisecond) {
		_, err := os.Stat(filepath.Join(w.State, "isle.sock")) // else the command line starts another
		if err == nil {
			var out string
			if out, err = w.Isle("version", "-o", "json"); err == nil {
				err = json.Unmarshal([]byte(out), &told)
			}
		}
		if time.Now().After(end) {
			b, _ := os.ReadFile(w.log.Name())
			return fmt.Errorf("the server does not listen: %v\n%s", err, b)
		}
	}
	w.url, w.pin, w.gateway = told.URL, told.Pin, told.Gateway
	return nil
}

// Close ends it all and removes what it left.
func (w *world) Close() {
	if w.process != nil {
		w.Isle("server", "stop")
		w.process.Wait()
	}
	w.Server.Close()
	if w.pg != nil {
		w.pg.Close()
	}
	os.Remove(w.State + ".policy.yaml")
	if w.log != nil {
		w.log.Close()
		os.Remove(w.log.Name())
	}
}

// must runs a command of the operator.
func (w *world) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := w.Isle(args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(out, "\n")
}

// machine makes a machine identity and returns its key.
func (w *world) machine(t *testing.T, name string, args ...string) string {
	t.Helper()
	return w.must(t, append([]string{"identity", "create", name, "--purpose", "a test", "--expires", "1d"}, args...)...)
}

// target is where psql finds a connection at the listener.
func (w *world) target(connection, user string) string {
	host, port, _ := net.SplitHostPort(w.gateway)
	return fmt.Sprintf("host=%s port=%s dbname=%s user=%s sslmode=verify-full sslrootcert=%s connect_timeout=20", host, port, connection, user, w.ca)
}

// A client is a program that runs, with what it said.
type client struct {
	*exec.Cmd
	out, said bytes.Buffer
}

// psql is psql at the listener, not started yet.
func (w *world) psql(connection, key string, args ...string) *client {
	c := &client{Cmd: exec.Command("psql", append([]string{"-X", "-A", "-t", "-q", "-d", w.target(connection, "ci")}, args...)...)}
	c.Env = append(os.Environ(), "PGPASSWORD="+key)
	c.Stdout, c.Stderr = &c.out, &c.said
	return c
}

// query runs one statement at the listener.
func (w *world) query(connection, key, sql string) (string, error) {
	c := w.psql(connection, key, "-c", sql)
	if err := c.Run(); err != nil {
		return c.out.String(), fmt.Errorf("%w: %s", err, c.said.String())
	}
	return strings.TrimSpace(c.out.String()), nil
}

// entries are those of the audit log that a search finds.
func (w *world) entries(t *testing.T, args ...string) (list []map[string]any) {
	t.Helper()
	for line := range strings.Lines(w.must(t, append([]string{"audit", "search", "-o", "json"}, args...)...)) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		list = append(list, e)
	}
	return list
}

// eventually waits until f has no error.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not within %v: %v", what, patience, err)
}
