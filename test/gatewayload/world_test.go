// Package gatewayload leans on the gateway of a real server: a crowd of
// sessions, clients and servers that say half of what they mean to or nothing
// at all, and everything around it killed, full, locked or changed. It looks at
// what must hold then: memory is bounded, whoever is told something is told
// the right thing, and nothing passes that is not allowed and written down.
package gatewayload

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"isle/test/lab"
)

// patience bounds every wait. What takes this long does not come, on a machine
// that does much else besides too.
const patience = 2 * time.Minute

// A world is a server with a connection orders-db, which leads through a Line
// to a PostgreSQL.
type world struct {
	*lab.Server
	pg      *lab.PG
	line    *line
	process *exec.Cmd
	ended   chan struct{} // closed once process has
	log     string        // of the server, a file
	gateway string        // HOST:PORT
}

const (
	canary = "canary-of-the-upstream-77d0" // the password
	// Everything is granted to machines, so that what stops is stopped by what the
	// tests do. Changes of guarded wait for a person.
	policy = `
bindings:
  - {role: admin, subjects: [human:root]}
  - {role: approver, subjects: [human:root]}
  - {role: everything, subjects: [MACHINES]}
roles:
  everything: {actions: ["connection:open", "postgres:select", "postgres:write", "postgres:schema", "postgres:admin"], resources: ["connection:*"], reason: tests, expires: 2100-01-01T00:00:00Z}
protected: []
connections:
  orders-db: {kind: postgres, address: "LINE", database: postgres, stage: testing, credential: {secret: orders-db, user: app}, tls: {ca: CA}RULES}
approvals:
  - {actions: ["postgres:write"], resources: ["connection:orders-db"], when: {tables: [guarded]}, approvers: ["human:root"], timeout: 5m, valid_for: 5m}
`
	tables = `create role app login password '` + canary + `'; create table orders(id int primary key, n bigint not null default 0); insert into orders select i from generate_series(1, 1000) i;
create table guarded(id int primary key, n bigint not null default 0); insert into guarded select i from generate_series(1, 10) i;
create table secrets(id int); insert into secrets values (1); grant all on orders, guarded, secrets to app`
)

// machines are all that may come.
var machines = []string{"one", "two", "three", "four", "five"}

// newWorld starts one. size bounds its state folder, in MiB; 0: the disk does.
func newWorld(t *testing.T, size int, settings ...string) *world {
	t.Helper()
	s, err := lab.Bare("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Server: s, log: filepath.Join(t.TempDir(), "server.log")}
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(w.log)
			t.Logf("the end of the server's log:\n%s", b[max(0, len(b)-4000):])
		}
		w.kill(t, syscall.SIGTERM)
		if size > 0 {
			eventually(t, "the disk is let go", func() error { return syscall.Unmount(s.State, 0) })
		}
		w.Close()
		os.Remove(s.State + ".policy.yaml")
	})
	if size > 0 {
		if err := syscall.Mount("tmpfs", s.State, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0700", size)); err != nil {
			t.Fatal(err)
		}
	}
	w.pg = lab.Postgres(t, settings...)
	w.pg.Must(t, "postgres", tables)
	w.line = newLine(t, w.pg.Addr())
	w.start(t)
	w.set(t, canary)
	w.apply(t, "")
	return w
}

// set stores the password.
func (w *world) set(t *testing.T, password string) {
	t.Helper()
	set := w.Command("secret", "set", "orders-db")
	set.Stdin = strings.NewReader(password)
	if out, err := set.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// apply puts the policy in force, with more keys of the connection.
func (w *world) apply(t *testing.T, rules string) {
	t.Helper()
	var subjects []string
	for _, m := range machines {
		subjects = append(subjects, "machine:"+m)
	}
	text := strings.NewReplacer("LINE", w.line.addr, "CA}", strconv.Quote(w.pg.CA)+"}", "RULES", rules, "MACHINES", strings.Join(subjects, ", ")).Replace(policy)
	f := w.State + ".policy.yaml"
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w.must(t, "apply", "-f", f)
}

// start starts the server, and returns once it listens.
func (w *world) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(w.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	w.process, w.ended = w.Command("server", "--gateway", "127.0.0.1:0"), make(chan struct{})
	w.process.Stderr = log
	if err := w.process.Start(); err != nil {
		t.Fatal(err)
	}
	go func(p *exec.Cmd, ended chan struct{}) { p.Wait(); close(ended) }(w.process, w.ended)
	w.listens(t)
}

// listens waits until the server does.
func (w *world) listens(t *testing.T) {
	t.Helper()
	eventually(t, "the server listens", func() error {
		if _, err := os.Stat(filepath.Join(w.State, "isle.sock")); err != nil {
			return err // else the command line starts another
		}
		out, err := w.Isle("version", "-o", "json")
		if err != nil {
			return err
		}
		var told struct{ Gateway string }
		if err := json.Unmarshal([]byte(out), &told); err != nil || told.Gateway == "" {
			return fmt.Errorf("%q %v", out, err)
		}
		w.gateway = told.Gateway
		return nil
	})
}

// kill ends the server.
func (w *world) kill(t *testing.T, s syscall.Signal) {
	t.Helper()
	if w.process == nil {
		return
	}
	w.process.Process.Signal(s)
	select {
	case <-w.ended:
	case <-time.After(patience):
		t.Errorf("the server does not end of signal %v", s)
		w.process.Process.Kill()
		<-w.ended
	}
	w.process = nil
	os.Remove(filepath.Join(w.State, "isle.sock")) // what was killed leaves it
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

// key makes a machine and returns its key.
func (w *world) key(t *testing.T, machine string) string {
	t.Helper()
	return w.must(t, "identity", "create", machine, "--purpose", "a test", "--expires", "1d")
}

// connect opens a session, from one of the addresses 127.0.0.N.
func (w *world) connect(ctx context.Context, key string, source int) (*pgconn.PgConn, error) {
	return w.connectOver(ctx, key, source, nil)
}

// connectOver is connect with a look at the connection below TLS.
func (w *world) connectOver(ctx context.Context, key string, source int, seen func(net.Conn) net.Conn) (*pgconn.PgConn, error) {
	host, port, _ := net.SplitHostPort(w.gateway)
	c, err := pgconn.ParseConfig(fmt.Sprintf("host=%s port=%s dbname=orders-db user=x password=%s sslmode=require connect_timeout=60", host, port, key))
	if err != nil {
		return nil, err
	}
	c.TLSConfig = &tls.Config{InsecureSkipVerify: true, ClientSessionCache: nil} // not what is tested
	c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := from(ctx, source, addr)
		if err == nil && seen != nil {
			conn = seen(conn)
		}
		return conn, err
	}
	return pgconn.ConnectConfig(ctx, c)
}

// from dials from 127.0.0.source.
func from(ctx context.Context, source int, addr string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(source))}}
	return d.DialContext(ctx, "tcp", addr)
}

// open is connect for tests.
func (w *world) open(t *testing.T, key string) *pgconn.PgConn {
	t.Helper()
	c, err := w.connect(t.Context(), key, 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		c.Close(ctx)
	})
	return c
}

// warm has the server make what it makes once: the grammar, for what the lexer
// leaves to it.
func (w *world) warm(t *testing.T, key string) {
	t.Helper()
	c := w.open(t, key)
	if _, err := query(t.Context(), c, "with a as (select id from orders) select count(*) from a where id in (select 1 union select 2)"); err != nil {
		t.Fatal(err)
	}
	c.Close(t.Context())
	w.settled(t, 1<<20)
}

// query runs one statement and returns the first column of the first row.
func query(ctx context.Context, c *pgconn.PgConn, sql string) (string, error) {
	results, err := c.Exec(ctx, sql).ReadAll()
	if err != nil || len(results) == 0 || len(results[0].Rows) == 0 {
		return "", err
	}
	return string(results[0].Rows[0][0]), nil
}

// state is an error's SQLSTATE, "" if PostgreSQL's protocol said none.
func state(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

// An approval is a request as the operator sees it.
type approval struct {
	ID, State, Ending, Hash string
	Used                    int
}

// approvals are all requests, newest last.
func (w *world) approvals(t *testing.T) (list []approval) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(w.must(t, "approvals", "--all", "-o", "json")))
	for dec.More() {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			t.Fatal(err)
		}
		if bytes.HasPrefix(bytes.TrimSpace(raw), []byte("[")) {
			if err := json.Unmarshal(raw, &list); err != nil {
				t.Fatal(err)
			}
			continue
		}
		var a approval
		if err := json.Unmarshal(raw, &a); err != nil {
			t.Fatal(err)
		}
		list = append(list, a)
	}
	return list
}

// waiting waits until a request is pending, and returns its ID.
func (w *world) waiting(t *testing.T) (id string) {
	t.Helper()
	eventually(t, "a request waits", func() error {
		for _, a := range w.approvals(t) {
			if a.State == "pending" {
				id = a.ID
				return nil
			}
		}
		return errors.New("none does")
	})
	return id
}

// entries are those of the audit log that a search finds.
func (w *world) entries(t *testing.T, args ...string) (list []map[string]any) {
	t.Helper()
	for l := range strings.Lines(w.must(t, append([]string{"audit", "search", "-o", "json"}, args...)...)) {
		var e map[string]any
		if err := json.Unmarshal([]byte(l), &e); err != nil {
			t.Fatalf("%v: %s", err, l)
		}
		list = append(list, e)
	}
	return list
}

// A measure is what the server has of the machine.
type measure struct {
	resident, peak int64 // bytes
	files          int
}

// measure looks; peak is since forget.
func (w *world) measure(t *testing.T) (m measure) {
	t.Helper()
	dir := "/proc/" + strconv.Itoa(w.process.Process.Pid)
	b, err := os.ReadFile(dir + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		var n int64
		if _, err := fmt.Sscanf(l, "VmRSS: %d kB", &n); err == nil {
			m.resident = n << 10
		} else if _, err := fmt.Sscanf(l, "VmHWM: %d kB", &n); err == nil {
			m.peak = n << 10
		}
	}
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	m.files = len(fds)
	return m
}

// forget has the peak counted from now.
func (w *world) forget(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/proc/"+strconv.Itoa(w.process.Process.Pid)+"/clear_refs", []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// settled waits until the server has no more files open than so many, and no
// session goes on.
func (w *world) settled(t *testing.T, files int) {
	t.Helper()
	eventually(t, "sessions are over and files closed", func() error {
		var list []json.RawMessage
		if err := json.Unmarshal([]byte(w.must(t, "sessions", "-o", "json")), &list); err == nil && len(list) > 0 {
			return fmt.Errorf("%d sessions go on", len(list))
		}
		if m := w.measure(t); m.files > files {
			return fmt.Errorf("%d files are open, %d were", m.files, files)
		}
		return nil
	})
}

// goroutines ends the server with a list of its goroutines, and returns those
// that are in one of these functions.
func (w *world) goroutines(t *testing.T, in ...string) (found []string) {
	t.Helper()
	w.kill(t, syscall.SIGQUIT)
	b, err := os.ReadFile(w.log)
	if err != nil {
		t.Fatal(err)
	}
	_, dump, ok := bytes.Cut(b, []byte("SIGQUIT: quit"))
	if !ok {
		t.Fatal("the server did not say its goroutines")
	}
	for g := range strings.SplitSeq(string(dump), "\n\n") {
		if strings.HasPrefix(g, "goroutine ") && slices.ContainsFunc(in, func(f string) bool { return strings.Contains(g, f) }) {
			found = append(found, g)
		}
	}
	return found
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
