package gatewayload

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// asked runs a statement on the side.
func asked(t *testing.T, c *pgconn.PgConn, sql string) <-chan error {
	done := make(chan error, 1)
	ctx := t.Context()
	go func() { _, err := query(ctx, c, sql); done <- err }()
	return done
}

// locked holds a row of guarded until it is let go.
func (w *world) locked(t *testing.T, id int) (let func()) {
	t.Helper()
	cmd := exec.Command("psql", "-X", "-q", "-A", "-t", "-h", w.pg.Dir, "-p", fmt.Sprint(w.pg.Port), "-U", "postgres", "-d", "postgres")
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(in, "begin; select 1 from guarded where id = %d for update;\n", id)
	over := false
	let = func() {
		if !over {
			over = true
			in.Close()
			cmd.Wait()
		}
	}
	t.Cleanup(let)
	eventually(t, "the row is locked", func() error {
		if w.pg.Must(t, "postgres", "select count(*) from pg_stat_activity where state = 'idle in transaction'") != "1" {
			return errors.New("it is not")
		}
		return nil
	})
	return let
}

// The server is killed, and then becomes another, with an idle session, one
// whose statement waits for a person, and one whose approved statement is under
// way. Each client is told; nothing is done that was not approved, or twice.
func TestAServerThatDiesOrReloadsDoesNothingTwiceAndNothingUnapproved(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	key := w.key(t, "one")
	w.warm(t, key)
	for round, how := range []string{"killed", "reloaded"} {
		idle, held, flying := w.open(t, key), w.open(t, key), w.open(t, key)
		let := w.locked(t, 1)
		// Approved, it waits for the row.
		flew := asked(t, flying, fmt.Sprintf("update guarded set n = n + 1 where id = 1 and %d = %[1]d", round))
		approved := w.waiting(t)
		w.must(t, "approvals", "approve", approved, "--yes")
		eventually(t, "the approved statement is under way", func() error {
			if w.pg.Must(t, "postgres", "select count(*) from pg_stat_activity where usename = 'app' and wait_event_type = 'Lock'") != "1" {
				return errors.New("it does not wait for its row")
			}
			return nil
		})
		waits := asked(t, held, fmt.Sprintf("update guarded set n = n + 1 where id = 2 and %d = %[1]d", round))
		pending := w.waiting(t)
		want := ""
		if how == "killed" {
			w.kill(t, syscall.SIGKILL)
		} else {
			want = "57P01" // it can say why
			w.must(t, "server", "reload")
		}
		for what, c := range map[string]<-chan error{"the statement under way": flew, "the held one": waits} {
			err := <-c
			if s := state(err); err == nil || want != "" && s != want && !(what == "the held one" && s == "IS001") {
				t.Errorf("%s: %s: the client is told %q: %v", how, what, s, err)
			}
		}
		if _, err := query(t.Context(), idle, "select 1"); err == nil {
			t.Errorf("%s: an idle session goes on", how)
		}
		if how == "killed" {
			w.start(t)
		} else {
			w.listens(t)
		}
		// What was approved is spent, its end unknown; what waited can't be approved any more.
		if _, err := w.Isle("approvals", "approve", pending, "--yes"); err == nil {
			t.Errorf("%s: what nobody waits for was approved", how)
		}
		for _, a := range w.approvals(t) {
			if a.State == "pending" || a.State == "approved" || a.ID == approved && a.State != "spent" {
				t.Errorf("%s: request %s is %s", how, a.ID, a.State)
			}
		}
		unknown := false
		for _, e := range w.entries(t, "--action", "postgres:write") {
			unknown = unknown || e["kind"] == "outcome" && e["result"] == "unknown"
		}
		if !unknown {
			t.Errorf("%s: the log does not say that the outcome is unknown", how)
		}
		let()
		eventually(t, "nothing is under way any more", func() error {
			if n := w.pg.Must(t, "postgres", "select count(*) from pg_stat_activity where usename = 'app' and state = 'active'"); n != "0" {
				return errors.New(n + " are")
			}
			return nil
		})
		if n := w.pg.Must(t, "postgres", "select max(n) filter (where id = 1) <= "+fmt.Sprint(round+1)+", max(n) filter (where id = 2) from guarded"); n != "t|0" {
			t.Errorf("%s: done too often, or unapproved: %s", how, n)
		}
		// Doors open again, and the same text asks again.
		next := w.open(t, key)
		if got, err := query(t.Context(), next, "select 1"); err != nil || got != "1" {
			t.Errorf("%s: afterwards: %q %v", how, got, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := query(ctx, next, fmt.Sprintf("update guarded set n = n + 1 where id = 1 and %d = %[1]d", round))
			done <- err
		}()
		w.waiting(t)
		cancel()
		<-done
		eventually(t, "it is withdrawn", func() error {
			for _, a := range w.approvals(t) {
				if a.State == "pending" {
					return errors.New("it waits")
				}
			}
			return nil
		})
	}
	if out := w.must(t, "audit", "search", "--action", "session:close"); !strings.Contains(out, "the server died") {
		t.Errorf("no session is closed as one that the server died in:\n%s", out)
	}
	w.must(t, "sessions", "verify")
	w.must(t, "audit", "verify")
}

// Somebody else writes the database for longer than the server waits: what needs
// a person or an entry fails closed, and the session goes on.
func notWhileTheStoreIsLocked(t *testing.T, w *world, key string) {
	c, other := w.open(t, key), w.open(t, key)
	lock := exec.Command("python3", "-c", `import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30); c.execute("begin immediate"); print("locked", flush=True); sys.stdin.read()`, filepath.Join(w.State, "isle.db"))
	in, err := lock.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := lock.StdoutPipe()
	if err == nil {
		err = lock.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	let := func() { in.Close(); lock.Wait() }
	defer let()
	if b := make([]byte, 6); true {
		if _, err := out.Read(b); err != nil || string(b) != "locked" {
			t.Fatalf("%q %v", b, err)
		}
	}
	done := map[string]<-chan error{}
	for sql, c := range map[string]*pgconn.PgConn{"update guarded set n = n + 100 where id = 3": c, "update orders set n = n + 100 where id = 3": other} {
		done[sql] = asked(t, c, sql)
	}
	for sql, done := range done {
		if err := <-done; state(err) != "58030" {
			t.Errorf("%s: %q %v", sql, state(err), err)
		}
	}
	if got, err := query(t.Context(), c, "select 1"); err != nil || got != "1" {
		t.Errorf("the session does not go on: %q %v", got, err)
	}
	let()
	if got := w.pg.Must(t, "postgres", "select (select n from guarded where id = 3) + (select n from orders where id = 3)"); got != "0" {
		t.Errorf("something was done: %s", got)
	}
	if _, err := query(t.Context(), c, "update orders set n = n + 1 where id = 3"); err != nil {
		t.Errorf("with the store back: %v", err)
	}
}
