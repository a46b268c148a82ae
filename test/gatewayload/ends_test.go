package gatewayload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// Clients and servers end halfway, say nothing, or say very much. They share a
// world.
func TestWhatEndsHalfwayOrNeverIsBoundedAndTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	key := w.key(t, "one")
	w.warm(t, key)
	for _, c := range []struct {
		name string
		test func(t *testing.T, w *world, key string)
	}{
		{"a thousand handshakes", handshakesThatNeverEnd},
		{"clients that leave", aClientThatLeavesHalfwayLeavesNothing},
		{"clients that read nothing", clientsThatReadNothingFillNoMemory},
		{"a server that stops", aServerThatStopsIsWaitedForAndCanBeLeft},
		{"large rows and copies", largeRowsAndCopiesPassInBoundedMemory},
		{"a store that is locked", notWhileTheStoreIsLocked},
		{"a password that is away", aPasswordThatIsAway},
		{"a table that is revoked", aTableThatIsRevokedIsNotReadUnderLoad},
		{"a server that is cut off", aResultThatIsCutOffIsAnErrorAndIsRecordedAsOne}, // the last: the server does not come back
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, w, key) })
	}
}

// many is a result that no buffer holds.
const many = "select generate_series(1, 300000), repeat('x', 1000)"

// begin sends a query and reads its first rows.
func begin(t *testing.T, c *pgconn.PgConn, sql string) *pgconn.ResultReader {
	t.Helper()
	m := c.Exec(t.Context(), sql)
	if !m.NextResult() {
		t.Fatal(m.Close())
	}
	r := m.ResultReader()
	for range 10 {
		if !r.NextRow() {
			_, err := r.Close()
			t.Fatal("no row: ", err)
		}
	}
	return r
}

// The server behind is cut off or killed in the middle of a result: the client
// has an error and not the end of a result, and so says the recording.
func aResultThatIsCutOffIsAnErrorAndIsRecordedAsOne(t *testing.T, w *world, key string) {
	before := w.measure(t)
	for what, end := range map[string]func(){
		"the line is cut":          w.line.cut,
		"the server sends no more": w.line.half,
		"its process for the session is shot": func() {
			w.pg.Must(t, "postgres", "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'")
		},
	} {
		cutOff(t, w, key, what, end)
	}
	cutOff(t, w, key, "the server is killed", w.pg.Kill)
	w.settled(t, before.files+4)
}

func cutOff(t *testing.T, w *world, key, what string, end func()) {
	t.Helper()
	c := w.open(t, key)
	r := begin(t, c, many)
	end()
	for r.NextRow() {
	}
	tag, err := r.Close()
	if err == nil || tag.String() != "" {
		t.Errorf("%s: the client takes it for a whole result: %q", what, tag)
	}
	if s := state(err); s != "08006" && s != "57P01" && s != "57P02" {
		t.Errorf("%s: the client is told %q: %v", what, s, err)
	}
	eventually(t, what+": the session is over, and its recording says how", func() error {
		var list []struct{ ID, State, Why string }
		if err := json.Unmarshal([]byte(w.must(t, "sessions", "ls", "--all", "-o", "json")), &list); err != nil || len(list) == 0 {
			return fmt.Errorf("%v %v", list, err)
		}
		for _, s := range list {
			if s.State != "ended" {
				return fmt.Errorf("%s is %s", s.ID, s.State)
			}
		}
		said := w.must(t, "sessions", "replay", list[0].ID, "-o", "json")
		if !strings.Contains(said, "generate_series") || !strings.Contains(said, `"kind":"error"`) && !strings.Contains(said, `"tag":"unknown"`) || strings.Contains(said, `"tag":"SELECT`) {
			return errors.New(said)
		}
		return nil
	})
}

// A client that hangs up one way or the other leaves nothing behind, in the
// middle of a result too.
func aClientThatLeavesHalfwayLeavesNothing(t *testing.T, w *world, key string) {
	before := w.measure(t)
	for what, leave := range map[string]func(c *net.TCPConn){
		"sends no more": func(c *net.TCPConn) { c.CloseWrite() },
		"sends no more, and takes what comes": func(c *net.TCPConn) {
			c.CloseWrite()
			io.Copy(io.Discard, c)
		},
		"is gone": func(c *net.TCPConn) { c.SetLinger(0); c.Close() },
	} {
		for _, busy := range []bool{false, true} {
			if busy && what == "sends no more" {
				continue // one that does not read is waited for
			}
			var below *net.TCPConn
			c, err := w.connectOver(t.Context(), key, 2, func(n net.Conn) net.Conn { below = n.(*net.TCPConn); return n })
			if err != nil {
				t.Fatal(err)
			}
			if busy {
				begin(t, c, many)
			}
			leave(below)
			eventually(t, "a client that "+what+" is let go", func() error {
				if n := w.line.open(); n > 0 {
					return fmt.Errorf("%d connections to the server behind are open; in a result: %t", n, busy)
				}
				return nil
			})
			below.Close()
		}
	}
	w.settled(t, before.files+4)
}

// Clients that ask for everything and read nothing hold up the server behind
// them, and fill nothing in between.
func clientsThatReadNothingFillNoMemory(t *testing.T, w *world, key string) {
	const clients = 32
	files, m := w.measure(t).files, w.measure(t)
	w.forget(t)
	conns := make([]*pgconn.PgConn, clients)
	for i := range conns {
		conns[i] = w.open(t, key)
		begin(t, conns[i], many)
	}
	eventually(t, "the server behind waits for its clients", func() error {
		if n := w.pg.Must(t, "postgres", "select count(*) from pg_stat_activity where usename = 'app' and wait_event = 'ClientWrite'"); n != fmt.Sprint(clients) {
			return errors.New(n + " wait")
		}
		return nil
	})
	full := w.measure(t)
	t.Logf("%d clients that read nothing: %d MiB more at most", clients, (full.peak-m.resident)>>20)
	if full.peak-m.resident > 64<<20 {
		t.Error("they fill memory")
	}
	if got, err := query(t.Context(), w.open(t, key), "select 1"); err != nil || got != "1" {
		t.Errorf("another is told %q %v", got, err)
	}
	// Somebody ends them: a client that does not read is let go all the same.
	var list []struct{ ID string }
	if err := json.Unmarshal([]byte(w.must(t, "sessions", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		w.Isle("sessions", "end", s.ID, "--reason", "enough")
	}
	w.settled(t, files+4)
}

// The server behind takes or says nothing any more: the session waits, can be
// cancelled or left, and others go on.
func aServerThatStopsIsWaitedForAndCanBeLeft(t *testing.T, w *world, key string) {
	before := w.measure(t)
	for _, direction := range []string{"up", "down"} {
		c := w.open(t, key)
		w.line.hold(direction)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { _, err := query(ctx, c, "select count(*) from orders"); done <- err }()
		eventually(t, "a statement is under way", func() error {
			var list []struct {
				State      string
				Statements int
			}
			if err := json.Unmarshal([]byte(w.must(t, "sessions", "-o", "json")), &list); err != nil || len(list) != 1 || list[0].Statements == 0 {
				return fmt.Errorf("%v %v", list, err)
			}
			return nil
		})
		cancel()
		if err := <-done; err == nil {
			t.Error("it was answered")
		}
		w.settled(t, before.files+8) // with the line as it is
		w.line.hold()
		next := w.open(t, key)
		if got, err := query(t.Context(), next, "select 1"); err != nil || got != "1" {
			t.Errorf("afterwards: %q %v", got, err)
		}
		next.Close(t.Context())
		w.settled(t, before.files+8)
	}
}

// What is large passes in parts: the server never has it.
func largeRowsAndCopiesPassInBoundedMemory(t *testing.T, w *world, key string) {
	c := w.open(t, key)
	m := w.measure(t)
	bounded := func(what string) {
		t.Helper()
		now := w.measure(t)
		t.Logf("%s: %d MiB more at most", what, (now.peak-m.resident)>>20)
		if now.peak-m.resident > 64<<20 {
			t.Errorf("%s took memory", what)
		}
		w.forget(t)
	}
	w.forget(t)
	got, err := query(t.Context(), c, "select repeat('x', 200 * 1024 * 1024)")
	if err != nil || len(got) != 200<<20 {
		t.Errorf("%d %v", len(got), err)
	}
	got = ""
	bounded("a row of 200 MiB")
	var out counter
	tag, err := c.CopyTo(t.Context(), &out, "copy (select repeat('x', 8191) from generate_series(1, 32768)) to stdout")
	if err != nil || out != 256<<20 || tag.RowsAffected() != 32768 {
		t.Errorf("%d %v %v", out, tag, err)
	}
	bounded("256 MiB out")
	if tag, err = c.CopyFrom(t.Context(), &lines{left: 32768}, "copy orders (n) from stdin where false"); err != nil || tag.RowsAffected() != 0 {
		t.Errorf("%v %v", tag, err)
	}
	bounded("256 MiB in")
	if got, err := query(t.Context(), c, "select 'well'"); err != nil || got != "well" {
		t.Errorf("%q %v", got, err)
	}
}

// A counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

// lines are so many lines of 8 KiB, each a number.
type lines struct {
	left int
	rest string
}

var _ io.Reader = (*lines)(nil)

func (l *lines) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if l.rest == "" {
			if l.left == 0 {
				if n == 0 {
					err = io.EOF
				}
				return n, err
			}
			l.left--
			l.rest = line8K
		}
		k := copy(p[n:], l.rest)
		l.rest, n = l.rest[k:], n+k
	}
	return n, nil
}

var line8K = strings.Repeat(" ", 8190) + "1\n"
