package outside

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// connect is isle connect, not started yet.
func (w *world) connect(args ...string) *client {
	c := &client{Cmd: w.Command(append([]string{"connect"}, args...)...)}
	c.Stdout, c.Stderr = &c.out, &c.said
	return c
}

// code runs a client and returns its exit code.
func (c *client) code(t *testing.T) int {
	t.Helper()
	late := time.AfterFunc(patience, func() { c.Process.Kill() })
	defer late.Stop()
	if err := c.Run(); err != nil && c.ProcessState == nil {
		t.Fatal(err)
	}
	return c.ProcessState.ExitCode()
}

func TestAPersonOpensAConnectionWithPsql(t *testing.T) {
	c := shared.connect("orders-db", "--", "-X", "-A", "-t", "-c", "select count(*) from orders")
	if code := c.code(t); code != 0 || strings.TrimSpace(c.out.String()) != "100" {
		t.Fatalf("%d %s%s", code, c.out.String(), c.said.String())
	}
	// Without -- too: it reads what is typed.
	c = shared.connect("orders-db")
	c.Stdin = strings.NewReader("\\set QUIET on\n\\pset tuples_only on\nselect 'typed ' || count(*) from orders;\n")
	if code := c.code(t); code != 0 || !strings.Contains(c.out.String(), "typed 100") {
		t.Errorf("%d %s%s", code, c.out.String(), c.said.String())
	}
	// The program's own code is passed on, and its variables hold no secret.
	c = shared.connect("orders-db", "--", "-X", "-v", "ON_ERROR_STOP=1", "-c", "select 1 from nowhere")
	if code := c.code(t); code != 1 {
		t.Errorf("psql's code became %d", code)
	}
	c = shared.connect("orders-db", "--", "env")
	c.Env = append(c.Env, "PGPASSWORD=mine", "PGSERVICE=x", "PGSSLROOTCERT=/x")
	if code := c.code(t); code != 0 {
		t.Fatal(c.said.String())
	}
	env := c.out.String()
	for _, want := range []string{"PGHOST=/", "PGPORT=5432", "PGDATABASE=postgres", "PGSSLMODE=disable"} {
		if !strings.Contains(env, want) {
			t.Errorf("%s is not among\n%s", want, env)
		}
	}
	if strings.Contains(env, "PGPASSWORD") || strings.Contains(env, "PGSERVICE") || strings.Contains(env, "PGSSLROOTCERT") || strings.Contains(env, password) {
		t.Errorf("%s", env)
	}
	for line := range strings.Lines(env) {
		if dir, ok := strings.CutPrefix(strings.TrimSpace(line), "PGHOST="); ok {
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("%s is left: %v", dir, err)
			}
		}
	}
	opened := shared.entries(t, "--actor", "human:root", "--action", "session:open", "--resource", "connection:orders-db")
	if len(opened) < 3 {
		t.Errorf("%d sessions are in the log", len(opened))
	}
}

func TestAnyProgramFindsAConnectionByItsVariables(t *testing.T) {
	c := shared.connect("orders-db", "--", "pg_dump", "-t", "orders")
	if code := c.code(t); code != 0 || !strings.Contains(c.out.String(), "CREATE TABLE public.orders") || !strings.Contains(c.out.String(), "100\tn100") {
		t.Errorf("%d %s%s", code, c.out.String(), c.said.String())
	}
	c = shared.connect("orders-db", "--", "sh", "-c", "psql -X -A -t -c 'select 1' & psql -X -A -t -c 'select 2' & wait; exit 7")
	if code := c.code(t); code != 7 || len(strings.Fields(c.out.String())) != 2 {
		t.Errorf("%d %s%s", code, c.out.String(), c.said.String())
	}
	c = shared.connect("orders-db", "--", "no-such-program")
	if code := c.code(t); code != 1 || !strings.Contains(c.said.String(), "there is no no-such-program on this machine") {
		t.Errorf("%d %s", code, c.said.String())
	}
	c = shared.connect("orders-db")
	c.Env = append(c.Env, "PATH=/nonexistent")
	if code := c.code(t); code != 1 || !strings.Contains(c.said.String(), "postgresql-client") {
		t.Errorf("%d %s", code, c.said.String())
	}
}

func TestWhatMayBeOpenedIsListed(t *testing.T) {
	var list []struct{ Name, Kind, Stage, Address, Decision string }
	if err := json.Unmarshal([]byte(shared.must(t, "connect", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range list {
		names = append(names, c.Name+" "+c.Kind+" "+c.Stage+" "+c.Decision)
	}
	if got := strings.Join(names, ", "); got != "echo tcp testing allow, ledger-db postgres production allow, orders-db postgres testing allow" {
		t.Error(got)
	}
	if out := shared.must(t, "connect"); !strings.Contains(out, "orders-db") || !strings.Contains(out, shared.pg.Addr()) {
		t.Error(out)
	}
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"unknown":          {[]string{"nothing"}, 1, "there is no connection nothing"},
		"another stage":    {[]string{"orders-db", "--stage", "production"}, 1, "is of stage testing, not of production"},
		"two names":        {[]string{"orders-db", "echo"}, 2, "takes one connection"},
		"stdio and listen": {[]string{"echo", "--stdio", "--listen", "127.0.0.1:0"}, 2, "--stdio stands alone"},
		"everybody":        {[]string{"echo", "--listen", "0.0.0.0:0"}, 2, "whoever connects acts as you"},
		"no port":          {[]string{"echo", "--listen", "127.0.0.1"}, 2, "127.0.0.1:PORT"},
		"no folder":        {[]string{"echo", "--listen", "/nonexistent/s"}, 1, "make the folder first"},
		"psql to an echo":  {[]string{"echo", "--", "-c", "x"}, 2, "is no PostgreSQL"},
	} {
		if c, want := shared.connect(c.args...), c; c.code(t) != want.code || !strings.Contains(c.said.String(), want.says) {
			t.Errorf("%s: %d %s", name, c.ProcessState.ExitCode(), c.said.String())
		}
	}
}

// echoes makes the connection echo lead to a server that says back what it is
// told, and bye once nothing more is.
func echoes(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
				io.WriteString(c, "bye")
			}()
		}
	}()
	if err := shared.apply(fmt.Sprintf(policy, shared.pg.Addr(), shared.pg.CA, l.Addr())); err != nil {
		t.Fatal(err)
	}
}

// listening starts isle connect at an address, and returns where it listens.
func listening(t *testing.T, args ...string) string {
	t.Helper()
	c := shared.connect(append(args, "-o", "json")...)
	out, err := func() (io.ReadCloser, error) { c.Stdout = nil; return c.StdoutPipe() }()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Signal(syscall.SIGTERM)
		c.Wait()
	})
	line, err := bufio.NewReader(out).ReadBytes('}')
	var told struct{ Address string }
	if err == nil {
		err = json.Unmarshal(line, &told)
	}
	if err != nil {
		t.Fatalf("%v: %s%s", err, line, c.said.String())
	}
	return told.Address
}

// says sends something, ends sending, and returns all that comes back.
func says(t *testing.T, network, address, what string) string {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, what)
	c.(interface{ CloseWrite() error }).CloseWrite()
	b, _ := io.ReadAll(c)
	return string(b)
}

func TestAPortOfThisMachineIsForItsOwnersClientsOnly(t *testing.T) {
	echoes(t)
	at := listening(t, "echo")
	for range 2 { // each is a session
		if got := says(t, "tcp", at, "hello "); got != "hello bye" {
			t.Errorf("%q", got)
		}
	}
	_, port, _ := net.SplitHostPort(at)
	other := exec.Command("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/"+port+"; echo hello >&3; cat <&3")
	other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	other.Dir = "/"
	if out, err := other.CombinedOutput(); bytes.Contains(out, []byte("hello")) {
		t.Errorf("another user got through: %s %v", out, err)
	}
	// A client that speaks IPv6 too is its owner's all the same.
	if out, err := exec.Command("python3", "-c", `import socket, sys
s = socket.socket(socket.AF_INET6); s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.connect(("::ffff:127.0.0.1", `+port+`)); s.sendall(b"six"); s.shutdown(socket.SHUT_WR)
print(s.makefile().read())`).CombinedOutput(); err == nil && strings.TrimSpace(string(out)) != "sixbye" {
		t.Errorf("%s %v", out, err)
	}
	socket := filepath.Join(t.TempDir(), "echo.sock")
	if at := listening(t, "echo", "--listen", socket); at != socket {
		t.Errorf("%q", at)
	}
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	if got := says(t, "unix", socket, "hello "); got != "hello bye" {
		t.Errorf("%q", got)
	}
}

func TestASessionIsCarriedOverStandardInputAndOutput(t *testing.T) {
	echoes(t)
	c := shared.connect("echo", "--stdio")
	c.Stdin = strings.NewReader("over stdio, ")
	if code := c.code(t); code != 0 || c.out.String() != "over stdio, bye" {
		t.Errorf("%d %q %s", code, c.out.String(), c.said.String())
	}
}
