package session

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/secret"
)

// A book is a log in memory, of the entries as they are encoded.
type book struct {
	mu      sync.Mutex // guards what follows
	entries [][]byte
	away    error
}

func (b *book) Append(_ context.Context, entries ...audit.Entry) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away != nil {
		return b.away
	}
	for _, e := range entries {
		e.Sequence, e.Time = uint64(len(b.entries)), time.Now()
		line, err := e.Encode()
		if err != nil {
			return err
		}
		b.entries = append(b.entries, line)
	}
	return nil
}

func (b *book) Next(context.Context) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return uint64(len(b.entries)), b.away
}

func (b *book) Encoded(_ context.Context, from uint64, limit int) ([][]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	from = min(from, uint64(len(b.entries)))
	return b.entries[from:min(from+uint64(limit), uint64(len(b.entries)))], b.away
}

// leave makes the log be away; nil brings it back.
func (b *book) leave(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = err
}

func (b *book) of(t testing.TB, action isle.Action) (out []audit.Entry) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, line := range b.entries {
		e, err := audit.Decode(line)
		if err != nil {
			t.Fatal(err)
		}
		if e.Action == action {
			out = append(out, e)
		}
	}
	return out
}

// testConfig is one of quick chunks, in folders of the test.
func testConfig(t testing.TB) (Config, *book) {
	t.Helper()
	dir := t.TempDir()
	ring, err := secret.OpenKeyring(filepath.Join(dir, "keys", "state"), true)
	if err != nil {
		t.Fatal(err)
	}
	log := &book{}
	return Config{
		Dir: filepath.Join(dir, "recordings"), Log: log, Sealer: ring,
		flushEvery: time.Millisecond, sealEvery: time.Millisecond, tick: 5 * time.Millisecond,
	}, log
}

func open(t testing.TB, cfg Config) *Sessions {
	t.Helper()
	s, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func someInfo() Info {
	return Info{
		Actor: isle.Actor{Kind: isle.Workload, Name: "shop@testing"}, Owner: "human:ann", Ref: isle.Ref{Name: "shop", Stage: "testing"}, Instance: isle.NewID(),
		Connection: "orders-db", Kind: "postgres", Stage: "testing", Address: "db.example:5432", Database: "orders", Role: "app",
	}
}

func begin(t testing.TB, s *Sessions) *Live {
	t.Helper()
	l, err := s.Begin(context.Background(), someInfo())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestASessionIsInTheLogBeforeItBeginsAndOnceItIsOver(t *testing.T) {
	cfg, log := testConfig(t)
	s := open(t, cfg)
	l := begin(t, s)
	opened := log.of(t, isle.ActionSessionOpen)
	if len(opened) != 1 || opened[0].ID != l.ID() || opened[0].Resource != (isle.Resource{Kind: "connection", Name: "orders-db", Stage: "testing"}) || opened[0].Environment != "shop@testing" {
		t.Fatalf("entries of the start: %+v", opened)
	}
	for range 3 {
		if err := l.Record(Event{Kind: Statement, Text: []byte("SELECT 1")}); err != nil {
			t.Fatal(err)
		}
		if err := l.Record(Event{Kind: Result, Tag: "SELECT 1", Rows: 1}); err != nil {
			t.Fatal(err)
		}
	}
	l.Count(100, 2000)
	if list := s.List(); len(list) != 1 || list[0].State != Active || list[0].Statements != 3 || list[0].Rows != 3 || list[0].BytesOut != 2000 {
		t.Errorf("listed: %+v", list)
	}
	l.End("the client left")
	l.End("again")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	over := log.of(t, isle.ActionSessionClose)
	if len(over) != 1 || over[0].Link != l.ID() || over[0].Summary != "the client left" || over[0].Details["statements"] != "3" || !over[0].Recording.Valid() || over[0].Result != audit.OK {
		t.Errorf("entries of the end: %+v", over)
	}
	if len(s.List()) != 0 {
		t.Error("it is listed still")
	}
	if err := l.Record(Event{Kind: Statement}); err == nil {
		t.Error("recorded after its end")
	}
	names, _ := filepath.Glob(filepath.Join(cfg.Dir, "*", "*.rec"))
	if len(names) != 1 || !strings.Contains(names[0], string(l.ID())) {
		t.Fatalf("files: %v", names)
	}
	if st, err := os.Stat(names[0]); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

func TestASessionThatSomebodyEndsSaysWhoAndWhy(t *testing.T) {
	cfg, log := testConfig(t)
	s := open(t, cfg)
	l := begin(t, s)
	ann := isle.Actor{Kind: isle.Human, Name: "ann"}
	if err := s.End(context.Background(), ann, l.ID(), "it is late"); err != nil {
		t.Fatal(err)
	}
	<-l.Done()
	if err := l.Cause(); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "ended by human:ann: it is late") {
		t.Errorf("cause: %v", err)
	}
	if err := l.Record(Event{Kind: Result, Tag: "UPDATE 1"}); !errors.Is(err, l.Cause()) {
		t.Errorf("recorded: %v", err)
	}
	if e := log.of(t, isle.ActionSessionEnd); len(e) != 1 || e[0].Actor != ann || e[0].Link != l.ID() {
		t.Errorf("entries: %+v", e)
	}
	l.End("the connection closed")
	s.Close()
	if e := log.of(t, isle.ActionSessionClose); len(e) != 1 || !strings.Contains(e[0].Summary, "ended by human:ann") {
		t.Errorf("entries: %+v", e)
	}
	if err := s.End(context.Background(), ann, l.ID(), ""); isle.CodeOf(err) != isle.NotFound {
		t.Errorf("ended twice: %v", err)
	}
}
