package gatewayload

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fill writes a file until the disk takes no more.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4096} { // to the last block
		for b := make([]byte, size); ; {
			if _, err := f.Write(b); err != nil {
				break
			}
		}
	}
}

// The disk of the log and of the recordings is full: nothing passes that can't
// be written down, and everything does again once there is room.
func TestOnAFullDiskNothingIsDoneThatIsNotWrittenDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 24)
	key := w.key(t, "one")
	w.warm(t, key)
	c := w.open(t, key)
	if _, err := query(t.Context(), c, "update orders set n = n + 1 where id = 1"); err != nil {
		t.Fatal(err)
	}
	done := 1
	ballast := filepath.Join(w.State, "ballast")
	for range 2 {
		fill(t, ballast)
		eventually(t, "nothing is changed any more", func() error {
			if _, err := query(t.Context(), c, "update orders set n = n + 1 where id = 1"); err == nil {
				done++ // the log had room that was its own already
				return errors.New("it was done")
			} else if s := state(err); s != "58030" && s != "57P01" {
				t.Errorf("the client is told %q: %v", s, err)
			}
			return nil
		})
		eventually(t, "nothing is read any more", func() error {
			if c.IsClosed() {
				return nil
			}
			got, err := query(t.Context(), c, "select n from orders where id = 2")
			if err == nil {
				return fmt.Errorf("%q was read", got)
			}
			if s := state(err); s != "58030" && s != "57P01" {
				t.Errorf("the reader is told %q: %v", s, err)
			}
			return nil
		})
		if next, err := w.connect(t.Context(), key, 3); err == nil {
			next.Close(t.Context())
			t.Error("a session begins that can't be recorded")
		} else if s := state(err); s != "08001" {
			t.Errorf("who comes is told %q: %v", s, err)
		} else if strings.Contains(err.Error(), w.State) {
			t.Errorf("who comes is told where this server keeps its files: %v", err)
		}
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		eventually(t, "with room made a session begins", func() error {
			next, err := w.connect(t.Context(), key, 3)
			if err == nil {
				c = next
			}
			return err
		})
		if _, err := query(t.Context(), c, "update orders set n = n + 1 where id = 1"); err != nil {
			t.Fatalf("with room made: %v", err)
		}
		done++
	}
	c.Close(t.Context())
	if got := w.pg.Must(t, "postgres", "select n from orders where id = 1"); got != fmt.Sprint(done) {
		t.Errorf("%s changes were made, and clients were told of %d", got, done)
	}
	entries := 0
	for _, e := range w.entries(t, "--action", "postgres:write", "--decision", "allow") {
		if e["kind"] != "outcome" {
			entries++
		}
	}
	if entries < done {
		t.Errorf("%d changes were made, and %d are in the log", done, entries)
	}
	w.must(t, "audit", "verify")
	if out := w.must(t, "sessions", "verify"); strings.Contains(out, "changed") {
		t.Error(out)
	}
}

// The password is away: no session begins, the client is not told where it is
// kept, and nobody sees what it was.
func aPasswordThatIsAway(t *testing.T, w *world, key string) {
	before := w.open(t, key)
	set := func(args ...string) {
		t.Helper()
		cmd := w.Command(append([]string{"secret", "set", "orders-db"}, args...)...)
		if len(args) == 0 {
			cmd.Stdin = strings.NewReader(canary)
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	defer set()
	w.must(t, "secret", "rm", "orders-db", "--force")
	c, err := w.connect(t.Context(), key, 2)
	if err == nil {
		c.Close(t.Context())
		t.Error("a session begins without a password")
	} else if s := state(err); s != "08001" && s != "58030" && s != "08006" {
		t.Errorf("the client is told %q: %v", s, err)
	}
	if got, err := query(t.Context(), before, "select 1"); err != nil || got != "1" {
		t.Errorf("who was there is told %q %v", got, err)
	}
	before.Close(t.Context())
	f, err := os.Open(w.log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || strings.Contains(string(b), canary) {
		t.Errorf("the password is in the server's log: %v", err)
	}
}
