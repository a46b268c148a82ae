package postgres

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"isle"
	"isle/internal/gateway"
	"isle/internal/gateway/gatewaytest"
)

// sleeping waits until the server behind does, or no longer does, sleep for so
// long.
func sleeping(t *testing.T, seconds, want string) {
	t.Helper()
	for range 1000 {
		if server.Must(t, "postgres", "select count(*) from pg_stat_activity where state = 'active' and query = 'select pg_sleep("+seconds+")'") == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s sessions do not sleep", want)
}

func TestWhatRunsWhenItsSessionEndsIsCancelledAtTheServer(t *testing.T) {
	w := gatewaytest.New(t, policyWith(`connection:open, "postgres:select", "postgres:admin"`), map[string]gateway.Protocol{"postgres": New(Config{Grammar: parser})})
	w.SetSecret("orders", "geheim")
	c := through(t, w)
	done := make(chan error, 1)
	go func() {
		_, err := c.Exec(t.Context(), "select pg_sleep(611)").ReadAll()
		done <- err
	}()
	sleeping(t, "611", "1")
	w.Apply(policyWith(`"postgres:select"`))
	if err := <-done; code(err) != stateEnded {
		t.Errorf("the client is told %v", err)
	}
	sleeping(t, "611", "0")
}

func TestWhatAClientThatIsGoneWasDoingIsCancelledAtTheServer(t *testing.T) {
	addr := listen(t, orders())
	c := dial(t, addr).PgConn()
	c.Frontend().Send(&pgproto3.Query{String: "select pg_sleep(612)"})
	c.Frontend().Flush()
	sleeping(t, "612", "1")
	c.Conn().Close()
	sleeping(t, "612", "0")
}

func TestToLeaveIsNoFailure(t *testing.T) {
	w := gatewaytest.New(t, policyWith(`connection:open, "postgres:select"`), map[string]gateway.Protocol{"postgres": New(Config{Grammar: parser})})
	w.SetSecret("orders", "geheim")
	for name, leave := range map[string]func(net.Conn){
		"Terminate":   func(c net.Conn) { c.Write([]byte{'X', 0, 0, 0, 4}); io.ReadAll(c) },
		"end of file": func(c net.Conn) { c.(*net.TCPConn).CloseWrite(); io.ReadAll(c) },
		"reset":       func(c net.Conn) { c.(*net.TCPConn).SetLinger(0); c.Close() },
	} {
		for range 5 { // the server's end comes at about the same time
			c, served := w.Connect(gatewaytest.Workload("shop", "testing"), "orders-db")
			front := pgproto3.NewFrontend(c, c)
			front.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "x"}})
			if err := front.Flush(); err != nil {
				t.Fatal(err)
			}
			for {
				m, err := front.Receive()
				if err != nil {
					t.Fatal(err)
				}
				if _, ok := m.(*pgproto3.ReadyForQuery); ok {
					break
				}
			}
			leave(c)
			if err := <-served; err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for _, e := range w.Log.Entries(isle.ActionSessionClose) {
		if e.Summary != "the client or the other side left" {
			t.Errorf("the session's entry says %q", e.Summary)
		}
	}
}
