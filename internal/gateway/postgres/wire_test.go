package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"isle"
	"isle/internal/gateway"
	"isle/internal/gateway/postgres/query/grammar"
	"isle/internal/policy"
	"isle/internal/session"
	"isle/test/lab"
)

var (
	server *lab.PG
	parser = grammar.New()
)

func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.fuzz"); f.Value.String() != "" {
		os.Exit(m.Run()) // each of its many processes would start a server
	}
	var err error
	if server, err = lab.StartPostgres(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if _, err := server.Exec("postgres", `create role orders_db login password 'geheim'; create database orders owner orders_db`); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	server.Close()
	os.Exit(code)
}

// A fake is a gateway that asks decide.
type fake struct {
	connection policy.Connection
	addr       string
	password   string
	decide     func(ctx context.Context, a gateway.Ask) error
	caller     gateway.Caller
	early      bool // decide is asked at Parse too

	mu     sync.Mutex
	events []session.Event
}

type word string

func (w word) Reveal() []byte { return []byte(w) }
func (word) Destroy()         {}

func (f *fake) Caller() gateway.Caller { return f.caller }
func (f *fake) Refuse(a gateway.Ask, rule string, err error) {
	f.Record(session.Event{Kind: session.Refused, Text: a.Text, Rule: rule, Error: err.Error()})
}
func (f *fake) Lifts(*policy.Facts) bool      { return false }
func (f *fake) Started()                      {}
func (f *fake) Count(in, out int64)           {}
func (f *fake) Describe(_, _, _ string)       {}
func (f *fake) Connection() policy.Connection { return f.connection }
func (f *fake) Dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", f.addr)
}
func (f *fake) TLS(context.Context) (*tls.Config, error) {
	if f.connection.TLS.Off {
		return nil, nil
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(f.connection.TLS.CA))
	return &tls.Config{RootCAs: pool, ServerName: f.connection.TLS.Name}, nil
}
func (f *fake) Password(context.Context) (hidden, error) { return word(f.password), nil }
func (f *fake) Ask(ctx context.Context, a gateway.Ask) (gateway.Pass, error) {
	if f.decide != nil && (!a.Prepare || f.early) {
		if err := f.decide(ctx, a); err != nil {
			return gateway.Pass{}, err
		}
	}
	return gateway.Pass{}, nil
}
func (f *fake) Record(e session.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, e)
	return nil
}

func orders() *fake {
	return &fake{addr: server.Addr(), password: "geheim", connection: policy.Connection{
		Name: "orders-db", Kind: "postgres", Address: server.Addr(), Database: "orders", Stage: "testing",
		TLS: policy.TLS{CA: server.CA, Name: lab.PostgresName}, Credential: policy.Credential{Kind: "password", User: "orders_db", Secret: "orders"},
	}}
}

// listen serves a connection on a port of loopback until the test ends.
func listen(t testing.TB, f *fake) (addr string) {
	t.Helper()
	p := New(Config{Grammar: parser})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				if err := p.serve(ctx, c, f); err != nil && ctx.Err() == nil {
					t.Log("served:", err)
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		running.Wait()
	})
	return l.Addr().String()
}

func dial(t testing.TB, addr string, more ...string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), "postgres://nobody@"+addr+"/orders-db?sslmode=disable&"+strings.Join(more, "&"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

// psql runs a script and returns what it prints, errors too.
func psql(t testing.TB, addr, script string, args ...string) string {
	t.Helper()
	host, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command("psql", append([]string{"-X", "-A", "-t", "-h", host, "-p", port, "-f", "-"}, args...)...)
	cmd.Stdin = strings.NewReader(script)
	out, _ := cmd.CombinedOutput()
	return string(out)
}

func TestPsqlNeedsNoUserPasswordOrTLSInside(t *testing.T) {
	addr := listen(t, orders())
	out := psql(t, addr, "select current_user, 40+2; select current_database()")
	if out != "orders_db|42\norders\n" {
		t.Errorf("psql printed %q", out)
	}
}

func TestStatementsPassInBothProtocols(t *testing.T) {
	f := orders()
	addr := listen(t, f)
	for _, mode := range []string{"simple_protocol", "exec", "cache_statement", "describe_exec"} {
		c := dial(t, addr, "default_query_exec_mode="+mode)
		var n int
		var s string
		if err := c.QueryRow(t.Context(), "select $1::int + 2, $2::text", 40, "a'b").Scan(&n, &s); err != nil || n != 42 || s != "a'b" {
			t.Errorf("%s: %d, %q, %v", mode, n, s, err)
		}
		if _, err := c.Exec(t.Context(), "select 1/0"); err == nil || !strings.Contains(err.Error(), "22012") {
			t.Errorf("%s: division by zero gives %v", mode, err)
		}
		if err := c.QueryRow(t.Context(), "select $1::int", 7).Scan(&n); err != nil || n != 7 {
			t.Errorf("%s: after an error: %d, %v", mode, n, err)
		}
	}
}

func TestARefusedStatementFailsItsTransactionOnBothSides(t *testing.T) {
	f := orders()
	f.decide = func(_ context.Context, a gateway.Ask) error {
		if a.Facts.Statements[0] == "delete" {
			return isle.Errorf(isle.Refused, "no").WithHint("ask")
		}
		return nil
	}
	addr := listen(t, f)
	psql(t, addr, "create table if not exists gone (a int); insert into gone values (1)")
	for _, mode := range []string{"simple_protocol", "exec", "early"} {
		if f.early = mode == "early"; f.early {
			mode = "exec"
		}
		c := dial(t, addr, "default_query_exec_mode="+mode)
		refused := func() {
			t.Helper()
			_, err := c.Exec(t.Context(), "delete from gone")
			if err == nil || !strings.Contains(err.Error(), "42501") {
				t.Fatalf("%s: %v", mode, err)
			}
		}
		refused()
		if s := c.PgConn().TxStatus(); s != 'I' {
			t.Errorf("%s: outside of a transaction the status is %c", mode, s)
		}
		tx, err := c.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		refused()
		if s := c.PgConn().TxStatus(); s != 'E' {
			t.Errorf("%s: in a transaction the status is %c", mode, s)
		}
		if _, err := tx.Exec(t.Context(), "select 1"); err == nil || !strings.Contains(err.Error(), "25P02") {
			t.Errorf("%s: the failed transaction goes on: %v", mode, err)
		}
		tx.Rollback(t.Context())
		var n int
		if err := c.QueryRow(t.Context(), "select count(*) from gone").Scan(&n); err != nil || n == 0 {
			t.Errorf("%s: %d rows, %v", mode, n, err)
		}
	}
}
