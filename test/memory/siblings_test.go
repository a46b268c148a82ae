package memory

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isle/test/lab"
)

// random is an application with two connections to a database and generators of
// random numbers of its own, and an on_fork that has it reseed those that live in
// its memory, and in that of the database's processes.
const random = `
name: kin
isolation: gvisor
services:
  db:
    packages: [postgresql-15]
    user: postgres
    volumes: {/data: {size: 256MiB}}
    tmpfs: [/run/postgresql]
    setup: [/usr/lib/postgresql/15/bin/initdb, -D, /data, --auth=trust, --no-sync]
    command: [/usr/lib/postgresql/15/bin/postgres, -D, /data, -c, shared_buffers=16MB]
    healthcheck: {command: [/usr/lib/postgresql/15/bin/pg_isready, -h, localhost]} # it listens sooner than it answers
  web:
    packages: [python3, python3-psycopg2]
    copy: [{from: app.py, to: /app.py}]
    depends_on: [db]
    command: [python3, /app.py]
    healthcheck: {tcp: 8080}
    on_fork: [python3, -c, "import urllib.request as u; u.urlopen('http://localhost:8080/reseed').read()"]
limits: {cpus: 2, memory: 1GiB, pids: 512}
`

const app = `
import http.server, json, os, random, socket, ssl
import psycopg2
connections = [psycopg2.connect(host="localhost", user="postgres", dbname="postgres") for _ in range(2)]
def ask(c, what):
    with c, c.cursor() as q:
        q.execute(what)
        return str(q.fetchone()[0])
# Every generator has been used before a fork.
for c in connections: ask(c, "select random()"), ask(c, "select gen_random_uuid()")
random.random(), ssl.RAND_bytes(16)
pids = [ask(c, "select pg_backend_pid()") for c in connections]

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/reseed":
            random.seed()
            for c in connections:
                seed = int.from_bytes(os.urandom(6), "big") / 2**48
                ask(c, "select setseed(%.15f)" % seed)
            answer = {}
        else:
            answer = {
                "machine-id": open("/etc/machine-id").read().strip(), "generation": open("/etc/isle/generation").read().strip(),
                "hostname": socket.gethostname(), "getrandom": os.urandom(16).hex(), "ssl.RAND_bytes": ssl.RAND_bytes(16).hex(),
                "random.random": str(random.random()),
            }
            for i, c in enumerate(connections):
                if ask(c, "select pg_backend_pid()") != pids[i]: raise Exception("another connection")
                answer["gen_random_uuid %d" % i] = ask(c, "select gen_random_uuid()")
                answer["random() %d" % i] = ask(c, "select random()")
        b = json.dumps(answer).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(b))); self.end_headers(); self.wfile.write(b)
    def log_message(self, *a): pass
http.server.HTTPServer(("", 8080), Handler).serve_forever()
`

func TestTenSiblingsArePairwiseDifferent(t *testing.T) {
	t.Parallel()
	w := on(t, server)
	dir := t.TempDir()
	for name, text := range map[string]string{"isle.yaml": random, "app.py": app} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { w.down("kin") })
	w.must("up", dir)
	w.must("fork", "kin", "-n", "10")
	names := []string{"kin"}
	for n := 1; n <= 10; n++ {
		names = append(names, fmt.Sprintf("kin-f%d", n))
	}
	for _, name := range names[10:] { // what PostgreSQL goes on with is sound
		w.must("exec", name, "-s", "db", "--", "/usr/lib/postgresql/15/bin/pg_amcheck", "-h", "localhost", "-U", "postgres", "--install-missing", "-a")
	}
	had := map[string]string{} // kind and value -> whose
	for _, name := range names {
		var got map[string]string
		w.decode(&got, "exec", name, "-s", "web", "--", "python3", "-c", "import urllib.request as u; print(u.urlopen('http://localhost:8080/').read().decode())")
		if len(got) != 10 {
			t.Errorf("%s says %v", name, got)
		}
		for kind, value := range got {
			key := strings.TrimRight(kind, " 01") + " " + value
			if other := had[key]; other != "" {
				t.Errorf("%s and %s have the same %s: %s", other, name, kind, value)
			}
			had[key] = name
		}
	}
}

// doors lets holder, and nobody else, use a connection.
const doors = `
connections:
  orders: {kind: http, address: "ADDRESS", stage: testing, tls: off}
roles:
  orders-user: {actions: [connection:open, http:read], resources: [connection:orders]}
bindings:
  - {role: admin, subjects: [human:root]}
  - {role: orders-user, subjects: [{project: holder, stage: testing, name: holder}]}
`

// upstream is what is behind the connection.
func upstream(t *testing.T) (address string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "orders") }))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// What proves the parent is in the memory of a fork, and is worth nothing there:
// who somebody is, is where they come from.
func TestAForkThatShowsItsParentsTokenIsRefused(t *testing.T) {
	t.Parallel()
	s, err := lab.New("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	w := on(t, s)
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte(strings.ReplaceAll(doors, "ADDRESS", upstream(t))), 0o600); err != nil {
		t.Fatal(err)
	}
	w.must("apply", "-f", policy)
	w.up("holder", shop+"uses: [orders]\n")
	if got := w.ask("holder", "web", "hold http://orders/"); got != "200 OK orders" {
		t.Fatalf("the parent is told %q", got)
	}
	w.must("snapshot", "holder", "--tag", "held")
	w.must("fork", "holder")
	w.must("fork", "holder", "--at", "held", "--name", "holder-later")
	for _, name := range []string{"holder-f1", "holder-later"} {
		if got := w.ask(name, "web", "show http://orders/"); !strings.HasPrefix(got, "refused: ") {
			t.Errorf("%s is told %q", name, got)
		}
		if got := w.state(name); !strings.HasSuffix(got.Environment, "/testing/"+name+"/web") {
			t.Errorf("%s is %s", name, got.Environment)
		}
	}
	if got := w.ask("holder", "web", "show http://orders/"); got != "200 OK orders" {
		t.Errorf("the parent is told %q", got)
	}
	// A restore is the environment itself again: it has the same doors.
	w.must("restore", "holder", "--at", "held")
	if got := w.ask("holder", "web", "show http://orders/"); got != "200 OK orders" {
		t.Errorf("the restored one is told %q", got)
	}
}
