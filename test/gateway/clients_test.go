package gateway

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"isle/test/lab"
)

// A database is one of the server's, behind a connection of its name.
type database struct{ name string }

// Must runs SQL in it as the superuser.
func (d database) Must(t *testing.T, sql string) string {
	t.Helper()
	return server.Must(t, d.name, sql)
}

// shop is a database with orders, behind the connection that is named, whose role
// may read and write.
func shop(t *testing.T, name string, more ...string) database {
	t.Helper()
	d := database{name}
	server.Must(t, "postgres", `create database "`+name+`" owner shop`)
	d.Must(t, `set role shop;
		create table orders (id int primary key, item text, amount numeric, paid bool, doc jsonb);
		insert into orders values (1, 'tea', 1.50, true, '{"a": 1}'), (2, 'cup', 7.25, false, null), (3, 'pot', 20, true, '[]')`)
	secret(t, name, "shop")
	apply(t, name, "connections:\n"+connection(name, server, name, "shop", append(more, "functions: [pg_sleep]")...)+`
roles:
  `+name+`: {actions: [connection:open, postgres:select, postgres:write], resources: ["connection:`+name+`"]}
bindings:
  - {role: `+name+`, subjects: [human:root]}
`)
	return d
}

// through runs a command whose environment leads to a connection, and returns
// what it prints.
func through(t *testing.T, connection string, stdin []byte, command ...string) string {
	t.Helper()
	cmd := world.Command(append([]string{"connect", connection, "--listen", "127.0.0.1:0", "--"}, command...)...)
	var said bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &said
	stuck := time.AfterFunc(5*time.Minute, func() { cmd.Process.Signal(syscall.SIGTERM) })
	defer stuck.Stop()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", command, err, out, said.Bytes())
	}
	return string(out)
}

func same(t *testing.T, got, want string) {
	t.Helper()
	if want = strings.TrimPrefix(want, "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestPsqlSeesOneConnectionThatRefusesAndGoesOn(t *testing.T) {
	pg := shop(t, "by-psql", `rules: [{effect: deny, functions: ["lo_*"]}]`)
	script, err := os.ReadFile("testdata/client.sql")
	if err != nil {
		t.Fatal(err)
	}
	got := through(t, "by-psql", script, "sh", "-c", "psql -X -A -t -f - 2>&1 | sed 's/^psql:<stdin>:[0-9]*: //'")
	for _, line := range []string{"tea", "3", "ERROR:  42501", "ERROR:  25P02", "1\ttea", "goes on"} {
		if !slices.Contains(strings.Split(got, "\n"), line) {
			t.Errorf("no line %q in\n%s", line, got)
		}
	}
	if n := strings.Count(got, "ERROR:  42501"); n != 4 {
		t.Errorf("%d were refused, want 4 (a DELETE, one in a transaction, one behind a SELECT, lo_create):\n%s", n, got)
	}
	if n := pg.Must(t, "select count(*) from orders"); n != "3" {
		t.Errorf("%s orders are left", n)
	}
}

func TestPgbenchRunsThroughTheGateway(t *testing.T) {
	pg := shop(t, "by-pgbench")
	pg.Must(t, "grant create on schema public to shop")
	cmd := exec.Command("pgbench", "-i", "-q", "-h", server.Dir, "-p", strconv.Itoa(server.Port), "-U", "postgres", pg.name)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":"+pgBin(t))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	pg.Must(t, "grant all on all tables in schema public to shop")
	for _, mode := range []string{"simple", "extended", "prepared"} {
		out := through(t, "by-pgbench", nil, "sh", "-c", "PATH=$PATH:"+pgBin(t)+" exec pgbench -n -c 4 -j 2 -t 50 -M "+mode)
		if !strings.Contains(out, "number of transactions actually processed: 200/200") || !strings.Contains(out, "number of failed transactions: 0") {
			t.Errorf("%s: %s", mode, out)
		}
	}
}

func pgBin(t *testing.T) string {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(found) == 0 {
		t.Fatal("PostgreSQL is not installed")
	}
	return found[len(found)-1]
}

func TestPgDumpThroughTheGatewayIsTheSameDump(t *testing.T) {
	pg := shop(t, "by-pgdump")
	dump := func(out []byte) string { // a line of it is random in newer versions
		return string(bytes.TrimSpace(out))
	}
	cmd := exec.Command("pg_dump", "-h", server.Dir, "-p", strconv.Itoa(server.Port), "-U", "postgres", pg.name)
	want, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	drop := func(s string) string {
		var keep []string
		for line := range strings.Lines(s) {
			if !strings.HasPrefix(line, `\restrict`) && !strings.HasPrefix(line, `\unrestrict`) {
				keep = append(keep, line)
			}
		}
		return strings.Join(keep, "")
	}
	got := through(t, "by-pgdump", nil, "pg_dump")
	if drop(dump([]byte(got))) != drop(dump(want)) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestPsycopgWorksThroughTheGateway(t *testing.T) {
	shop(t, "by-psycopg", `rules: [{effect: deny, functions: ["lo_*"]}]`)
	same(t, through(t, "by-psycopg", nil, "/usr/bin/python3", "testdata/client.py", ""), `
prepared ['tea', 'cup', 'pot']
binary (Decimal('1.50'), True, {'a': 1})
refused 42501 3
refused inside 42501 INERROR 25P02
rolled back 3
copied 1000
pipelined 1275
refused in a pipeline 42501 1
goes on 3
cancelled 57014 True
large object 42501
notified orders_changed three
cursor 500500
`)
}

func TestPsycopg2WorksThroughTheGateway(t *testing.T) {
	shop(t, "by-psycopg2")
	same(t, through(t, "by-psycopg2", nil, "/usr/bin/python3", "testdata/client2.py", ""), `
parameters tea
refused 42501
goes on 3
refused inside 42501 25P02
copied 1000
notified orders_changed three
many 42501 no error
`)
}

func TestNodePostgresWorksThroughTheGateway(t *testing.T) {
	shop(t, "by-node")
	modules := lab.Cache("node-postgres")
	if _, err := os.Stat(filepath.Join(modules, "node_modules", "pg")); err != nil {
		if err := os.MkdirAll(modules, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("npm", "install", "--prefix", modules, "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "pg@8")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("npm: %v\n%s", err, out)
		}
	}
	t.Setenv("NODE_PATH", filepath.Join(modules, "node_modules"))
	same(t, through(t, "by-node", nil, "node", "testdata/client.js"), `
prepared tea,cup,pot
refused 42501 3
refused inside 42501 25P02
rolled back 3
queued 1275
notified orders_changed three
cancelled 57014
pool 1 42501 20
`)
}

func TestJDBCWorksThroughTheGateway(t *testing.T) {
	shop(t, "by-jdbc")
	same(t, through(t, "by-jdbc", nil, "sh", "-c", `exec java -cp /usr/share/java/postgresql.jar testdata/Client.java "jdbc:postgresql://$PGHOST:$PGPORT/$PGDATABASE?user=$PGUSER&sslmode=disable"`), `
prepared tea,cup,pot,
refused 42501 3
refused inside 42501 25P02
batched 1000
fetched 1000
copied 2
copied out 2
cancelled 57014
metadata true true true
`)
}
