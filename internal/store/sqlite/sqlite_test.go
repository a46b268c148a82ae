package sqlite

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/audit"
	"isle/internal/environment"
	"isle/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Open {
		path := filepath.Join(t.TempDir(), "state.db")
		return func(t *testing.T, now environment.Clock) storetest.Store {
			s, err := Open(path, Config{Now: now})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
	})
}

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path, Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func event(name string) audit.Entry {
	return audit.NewEvent(isle.Actor{Kind: isle.System, Name: "test"}, isle.ActionServiceExit, isle.Resource{Kind: "service", Name: name}, isle.Allow, "<é>")
}

func TestTheLogCannotBeChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	if err := s.Append(t.Context(), event("a"), event("b")); err != nil {
		t.Fatal(err)
	}
	before, err := s.Encoded(t.Context(), 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{
		"UPDATE audit SET entry = x'00' WHERE seq = 0",
		"DELETE FROM audit WHERE seq = 1",
		"DELETE FROM audit",
		"INSERT OR REPLACE INTO audit (seq, time, id, entry, hashes) VALUES (1, 9e15, 'x', x'00', zeroblob(32))",
		"INSERT INTO audit (seq, time, id, entry, hashes) VALUES (3, 9000000000000000, 'gap', x'00', zeroblob(32))",
		"INSERT INTO audit (seq, time, id, entry, hashes) VALUES (2, 1, 'back in time', x'00', zeroblob(32))",
		"INSERT INTO audit (seq, time, id, entry) VALUES (2, 9000000000000000, 'no hash', x'00')",
	} {
		if _, err := s.wdb.ExecContext(t.Context(), q); err == nil {
			t.Errorf("%s: allowed", q)
		}
	}
	after, err := s.Encoded(t.Context(), 0, 10)
	if err != nil || len(after) != 2 || !bytes.Equal(bytes.Join(before, nil), bytes.Join(after, nil)) {
		t.Fatalf("%q %v", after, err)
	}
	if !strings.Contains(string(after[0]), "<é>") {
		t.Errorf("not the canonical bytes: %s", after[0])
	}
}

func TestAStateFolderHasOneServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	_, err := Open(path, Config{})
	if isle.CodeOf(err) != isle.Conflict || !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
		t.Fatalf("got %v", err)
	}
	s.Close()
	open(t, path)
}

func TestANewerSchemaIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	if _, err := s.wdb.Exec("PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	_, err := Open(path, Config{})
	if isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), "newer isle") {
		t.Fatalf("got %v", err)
	}
}

func TestEveryCommitIsSynced(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2"} {
		var got string
		if err := s.write.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q (%v), want %q", pragma, got, err, want)
		}
	}
	if info, err := os.Stat(s.path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

func TestADamagedFileIsSaidToBe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	if err := os.WriteFile(path, bytes.Repeat([]byte("no database "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(path, Config{})
	if isle.CodeOf(err) != isle.Unavailable || !strings.Contains(err.Error(), "damaged") {
		t.Fatalf("got %v", err)
	}
}

func TestAFullDiskIsSaidAndLosesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s := open(t, filepath.Join(dir, "state.db"))
	var full error
	n := 0
	for full == nil && n < 10_000 {
		if full = s.Append(t.Context(), event("a").With("fill", strings.Repeat("x", 2000))); full == nil {
			n++
		}
	}
	if c := isle.CodeOf(full); full == nil || c != isle.Exhausted && c != isle.Unavailable {
		t.Fatalf("after %d entries: %v", n, full)
	}
	t.Logf("after %d entries: %v", n, full)
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	if err := s.Append(t.Context(), event("again")); err != nil {
		t.Fatalf("with space again: %v", err)
	}
	all, err := s.Entries(t.Context(), 0, 20_000)
	if err != nil || len(all) != n+1 || all[n].Sequence != uint64(n) {
		t.Fatalf("%d entries after %d acknowledged (%v)", len(all), n+1, err)
	}
	s.Close()
}

// childPath tells the test binary to be the child of the test below.
const childPath = "ISLE_TEST_SQLITE_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childPath); path != "" {
		child(path)
	}
	os.Exit(m.Run())
}

// child appends from many goroutines and says which entries were acknowledged.
func child(path string) {
	s, err := Open(path, Config{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for i := range 8 {
		go func() {
			for {
				e := event(fmt.Sprint(i))
				appendBoth := s.Append
				if i%2 == 0 { // a killed process keeps these too
					appendBoth = s.AppendSoon
				}
				if err := appendBoth(context.Background(), e, event("second")); err != nil {
					fmt.Println(err)
					os.Exit(1)
				}
				os.Stdout.WriteString(string(e.ID) + "\n") // one write: lines stay whole
			}
		}()
	}
	select {}
}

// killChild runs a child on the file, kills it once it has acknowledged so many
// entries, and returns those.
func killChild(t *testing.T, path string, after int) (acknowledged []isle.ID) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childPath+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for n := 0; lines.Scan(); n++ {
		id := isle.ID(lines.Text())
		if !id.Valid() {
			t.Fatalf("the child says: %s", lines.Text())
		}
		acknowledged = append(acknowledged, id)
		if n == after {
			cmd.Process.Kill()
		}
	}
	cmd.Wait()
	return acknowledged
}

func TestKilledAtAnyMomentNothingAcknowledgedIsLost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	acknowledged := map[isle.ID]bool{}
	for round := range 5 {
		for _, id := range killChild(t, path, 20+37*round) {
			acknowledged[id] = true
		}
	}
	s := open(t, path)
	all, err := s.Entries(t.Context(), 0, 1_000_000)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range all {
		if e.Sequence != uint64(i) {
			t.Fatalf("entry %d has sequence %d", i, e.Sequence)
		}
		delete(acknowledged, e.ID)
	}
	if len(acknowledged) > 0 || len(all)%2 != 0 {
		t.Fatalf("%d acknowledged entries are lost, %d are there", len(acknowledged), len(all))
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var ok string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&ok); err != nil || ok != "ok" {
		t.Fatal(ok, err)
	}
}

func BenchmarkAppendParallel(b *testing.B) {
	s, err := Open(filepath.Join(b.TempDir(), "state.db"), Config{Now: time.Now})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.SetParallelism(50)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := s.Append(context.Background(), event("x")); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkAppendAlone(b *testing.B) {
	s, err := Open(filepath.Join(b.TempDir(), "state.db"), Config{Now: time.Now})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for b.Loop() {
		if err := s.Append(context.Background(), event("x")); err != nil {
			b.Fatal(err)
		}
	}
}
