package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"isle"
	"isle/internal/audit"
)

// verify reads the file as `isle audit verify` does.
func verify(t *testing.T, path string, refs ...audit.Reference) audit.Report {
	t.Helper()
	r, err := OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	report, err := audit.VerifyRows(r.Rows(t.Context(), 0, 1<<62), refs)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// soundTree compares the store's tree with one that tlog makes of its entries.
func soundTree(t *testing.T, s *Store) {
	t.Helper()
	entries, err := s.Encoded(t.Context(), 0, 1_000_000)
	if err != nil {
		t.Fatal(err)
	}
	var hashes []tlog.Hash
	mem := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			out[i] = hashes[x]
		}
		return out, nil
	})
	for i, e := range entries {
		h, err := tlog.StoredHashes(int64(i), e, mem)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, h...)
	}
	indexes := make([]int64, len(hashes))
	for i := range indexes {
		indexes[i] = int64(i)
	}
	got, err := s.Hashes(t.Context()).ReadHashes(indexes)
	if err != nil {
		t.Fatal(err)
	}
	for i := range hashes {
		if got[i] != hashes[i] {
			t.Fatalf("stored hash %d is not that of the entries", i)
		}
	}
	root, err := tlog.TreeHash(int64(len(entries)), mem)
	if err != nil {
		t.Fatal(err)
	}
	if h := s.Head(); h.Size != uint64(len(entries)) || h.Root != root {
		t.Fatalf("the head is of %d entries, there are %d, or its root is another", h.Size, len(entries))
	}
}

func TestTheTreeIsAlwaysThatOfTheEntries(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	soundTree(t, s)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 40 {
				appendOne := s.Append
				if j%2 == 0 {
					appendOne = s.AppendSoon
				}
				bad := event("too long")
				bad.Details = map[string]string{"x": string(make([]byte, audit.MaxSize))}
				if j%7 == 0 {
					if err := appendOne(context.Background(), event("undone"), bad); err == nil {
						t.Error("an entry that is too long is taken")
					}
				}
				if err := appendOne(context.Background(), event(fmt.Sprint(i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := s.Append(t.Context(), event("last")); err != nil {
		t.Fatal(err)
	}
	soundTree(t, s)
	s.Close()
	s = open(t, path)
	soundTree(t, s)
	if r := verify(t, path); !r.OK() || r.To != 8*40+1 {
		t.Fatalf("%+v", r)
	}
}

func TestReadsAreWrittenAtOnceAndCoveredSoon(t *testing.T) {
	heads := make(chan audit.Head, 100)
	s, err := Open(filepath.Join(t.TempDir(), "state.db"), Config{Commits: func(h audit.Head) func() { return func() { heads <- h } }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	<-heads // as it was opened
	if err := s.AppendSoon(t.Context(), event("read")); err != nil {
		t.Fatal(err)
	}
	if next, err := s.Next(t.Context()); err != nil || next != 1 {
		t.Fatalf("it is not written: %d %v", next, err)
	}
	if h := <-heads; h.Size != 1 || s.Head() != h { // it comes by itself
		t.Fatalf("%+v", h)
	}
	if err := s.AppendSoon(t.Context(), event("read")); err != nil {
		t.Fatal(err)
	}
	if err := s.Append(t.Context(), event("change")); err != nil {
		t.Fatal(err)
	}
	if h := s.Head(); h.Size != 3 {
		t.Fatalf("a change does not take what was read before with it: %+v", h)
	}
}

func TestWhoeverIsAnsweredIsInTheHeadThatWasToldOf(t *testing.T) {
	var told uint64
	s, err := Open(filepath.Join(t.TempDir(), "state.db"), Config{Commits: func(h audit.Head) func() { return func() { told = h.Size } }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range 20 {
		if err := s.Append(t.Context(), event("x")); err != nil {
			t.Fatal(err)
		}
		if told != uint64(i+1) {
			t.Fatalf("after %d entries the head that was told of is %d", i+1, told)
		}
	}
}

func TestWhoAppendsInARowSharesItsSyncWithAllOthersWhoDo(t *testing.T) {
	commits := 0
	s, err := Open(filepath.Join(t.TempDir(), "state.db"), Config{Commits: func(audit.Head) func() { commits++; return func() {} }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const writers, each = 16, 100
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				if err := s.Append(context.Background(), event("x")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	// Two halves that took turns would make two for each.
	if commits > each*3/2 {
		t.Errorf("%d transactions for %d entries of each of %d writers", commits, each, writers)
	}
}

func TestADatabaseFromBeforeTheTreeGetsIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	first, err := migrations.ReadFile("0001.sql")
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	if _, err := db.Exec(string(first) + "PRAGMA user_version = 1; BEGIN"); err != nil {
		t.Fatal(err)
	}
	intent := audit.NewIntent(isle.Actor{Kind: isle.Human, Name: "root"}, isle.ActionEnvironmentLaunch, isle.Resource{Kind: "environment", Name: "a"}, "")
	list := []audit.Entry{intent, intent.Outcome(nil)}
	for i := range 2500 {
		list = append(list, event(fmt.Sprint(i)))
	}
	for i, e := range list {
		e.Sequence, e.Time = uint64(i), time.UnixMicro(int64(i)).UTC()
		b, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec("INSERT INTO audit (seq, time, id, entry) VALUES (?, ?, ?, ?)", i, i, string(e.ID), b); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.Exec("COMMIT"); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if _, err := OpenReader(path); isle.CodeOf(err) != isle.Invalid {
		t.Fatalf("verify of what has no tree: %v", err)
	}
	s := open(t, path)
	soundTree(t, s)
	if err := s.Append(t.Context(), event("and on")); err != nil {
		t.Fatal(err)
	}
	soundTree(t, s)
	if seq, links, err := s.ByID(t.Context(), intent.ID); err != nil || seq != 0 || len(links) != 1 || links[0] != 1 {
		t.Fatal(seq, links, err)
	}
	if at, err := s.FirstSince(t.Context(), time.UnixMicro(1234)); err != nil || at != 1234 {
		t.Fatal(at, err)
	}
	if _, err := s.wdb.ExecContext(t.Context(), "UPDATE audit SET hashes = zeroblob(32) WHERE seq = 0"); err == nil {
		t.Error("after the migration the log can be changed")
	}
	s.Close()
	if r := verify(t, path); !r.OK() {
		t.Fatalf("%+v", r)
	}
}

// tamper changes the file behind the store's back, as whoever can write it can.
func tamper(t *testing.T, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	drop := []string{"DROP TRIGGER audit_is_never_changed", "DROP TRIGGER audit_is_never_shortened", "DROP TRIGGER audit_has_no_gap", "DROP TRIGGER audit_has_its_hashes"}
	for _, q := range append(drop, statements...) {
		if _, err := db.Exec(q); err != nil {
			t.Fatal(q, err)
		}
	}
}

func TestWhatIsDoneToTheFileIsNamed(t *testing.T) {
	for name, c := range map[string]struct {
		do   []string
		seq  uint64
		kind string
	}{
		"flip":     {[]string{"UPDATE audit SET entry = CAST(replace(CAST(entry AS TEXT), 'system', 'sistem') AS BLOB) WHERE seq = 20"}, 20, audit.Changed},
		"delete":   {[]string{"DELETE FROM audit WHERE seq = 20"}, 20, audit.Missing},
		"truncate": {[]string{"DELETE FROM audit WHERE seq >= 45"}, 45, audit.Truncated},
		"insert": {[]string{
			"UPDATE audit SET seq = -seq - 1 WHERE seq >= 20", "UPDATE audit SET seq = -seq WHERE seq < 0",
			"INSERT INTO audit (seq, time, id, entry, hashes) SELECT 20, time, 'x', entry, hashes FROM audit WHERE seq = 19",
		}, 20, audit.Moved},
		"reorder": {[]string{
			"UPDATE audit SET seq = -1 WHERE seq = 20", "UPDATE audit SET seq = 20 WHERE seq = 21", "UPDATE audit SET seq = 21 WHERE seq = -1",
		}, 20, audit.Missing},
		"a hash": {[]string{"UPDATE audit SET hashes = zeroblob(length(hashes)) WHERE seq = 21"}, 21, audit.Changed},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			s := open(t, path)
			for i := range 50 {
				if err := s.Append(t.Context(), event(fmt.Sprint(i))); err != nil {
					t.Fatal(err)
				}
			}
			kept := audit.Reference{Source: "kept", Checkpoint: audit.Checkpoint{Head: s.Head()}}
			s.Close()
			tamper(t, path, c.do...)
			r := verify(t, path, kept)
			for _, f := range r.Findings {
				if f.Sequence == c.seq && f.Kind == c.kind {
					return
				}
			}
			t.Errorf("entry %d is not named as %s: %+v", c.seq, c.kind, r.Findings)
		})
	}
}

func TestAKilledWriterLeavesATreeOfItsEntries(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	for range 3 {
		killChild(t, path, 60)
		s := open(t, path)
		soundTree(t, s)
		s.Close()
	}
	if r := verify(t, path); !r.OK() || r.To == 0 {
		t.Fatalf("%+v", r)
	}
}

func TestAReaderChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	if err := s.Append(t.Context(), event("x")); err != nil {
		t.Fatal(err)
	}
	verify(t, path) // while the store is open
	s.Close()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	verify(t, path)
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(before, after) {
		t.Fatal("the file is another", err)
	}
}
