package session

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"isle"
)

func TestSearchFindsStatementsOfPastAndLiveSessions(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	past := begin(t, s)
	record(t, past, Event{Kind: Statement, Text: []byte("SELECT * FROM Orders"), Decision: isle.Allow})
	record(t, past, Event{Kind: Refused, Text: []byte("DELETE FROM orders"), Rule: "built in"})
	past.End("orders are done") // a reason is no statement
	until(t, func() bool { return s.find(past.ID()) == nil && time.Since(past.ID().Time()) > 2*time.Millisecond })
	i := someInfo()
	i.Connection, i.Actor = "mail-db", isle.Actor{Kind: isle.Human, Name: "ann"}
	live, err := s.Begin(context.Background(), i)
	if err != nil {
		t.Fatal(err)
	}
	record(t, live, Event{Kind: Statement, Text: []byte("select 1 from orders"), Decision: isle.Allow})
	begin(t, s) // of which there is no file
	for name, c := range map[string]struct {
		filter Filter
		query  Query
		want   string
	}{
		"text in any case": {Filter{}, Query{Text: "ORDERS"}, "select 1 from orders|SELECT * FROM Orders|DELETE FROM orders"},
		"a connection's":   {Filter{Connection: "orders-db@testing"}, Query{Text: "orders"}, "SELECT * FROM Orders|DELETE FROM orders"},
		"of another stage": {Filter{Connection: "orders-db@production"}, Query{Text: "orders"}, ""},
		"an actor's":       {Filter{Actor: "ann"}, Query{Text: "orders"}, "select 1 from orders"},
		"what was refused": {Filter{}, Query{Decision: isle.Deny}, "DELETE FROM orders"},
		"what may be seen": {Filter{May: func(i Info) bool { return i.Connection == "mail-db" }}, Query{}, "select 1 from orders"},
		"of later":         {Filter{Since: time.Now().Add(time.Hour)}, Query{}, ""},
		"of before":        {Filter{Until: past.ID().Time()}, Query{}, ""},
	} {
		var got []string
		if err := s.Search(context.Background(), c.filter, c.query, func(_ Info, e Event) error {
			got = append(got, string(e.Text))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if strings.Join(got, "|") != c.want {
			t.Errorf("%s: %q", name, got)
		}
	}
	list, err := s.Past(context.Background(), Filter{}, 10)
	if err != nil || len(list) != 3 || list[2].ID != past.ID() || list[2].State != Ended {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err = s.Past(context.Background(), Filter{}, 2); err != nil || len(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
}

// idAt is an ID of a time.
func idAt(at time.Time) isle.ID {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(at.UnixMilli())<<16)
	rand.Read(b[6:])
	return isle.ID(base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding).EncodeToString(b[:]))
}

// aged makes recordings of the past.
func aged(t *testing.T, s *Sessions, cfg Config, ago time.Duration, size int) isle.ID {
	t.Helper()
	l := begin(t, s)
	record(t, l, Event{Kind: Row, Data: noise(make([]byte, size), 7)})
	l.End("done")
	until(t, func() bool { return s.find(l.ID()) == nil })
	id := idAt(time.Now().Add(-ago))
	b, err := os.ReadFile(pathOf(cfg.Dir, l.ID()))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dayOf(cfg.Dir, id), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, pathOf(cfg.Dir, id), b)
	when := time.Now().Add(-ago)
	if err := os.Chtimes(pathOf(cfg.Dir, id), when, when); err != nil {
		t.Fatal(err)
	}
	os.Remove(pathOf(cfg.Dir, l.ID()))
	return id
}

func TestRetentionDeletesTheOldAndThenTheFirstAndSaysSo(t *testing.T) {
	cfg, log := testConfig(t)
	cfg.Keep, cfg.Max = 30*24*time.Hour, 250<<10
	s := open(t, cfg)
	day := 24 * time.Hour
	old := aged(t, s, cfg, 31*day, 1000)
	first := aged(t, s, cfg, 20*day, 100<<10)
	second := aged(t, s, cfg, 10*day, 100<<10)
	young := aged(t, s, cfg, time.Hour, 100<<10)
	younger := aged(t, s, cfg, time.Minute, 100<<10)
	live := begin(t, s)
	record(t, live, Event{Kind: Statement, Text: []byte("SELECT 1")})
	events(t, s, live.ID())
	n, err := s.Retain(context.Background())
	if err != nil || n != 3 {
		t.Fatalf("%d deleted: %v", n, err)
	}
	var left []isle.ID
	for id, err := range recordings(cfg.Dir, time.Time{}, time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, id)
	}
	if !slices.Equal(left, []isle.ID{live.ID(), younger, young}) {
		t.Errorf("left: %v; old %s, first %s, second %s", left, old, first, second)
	}
	entries := log.of(t, isle.ActionRecordingDelete)
	if len(entries) != 2 || entries[0].Rule != "recordings-keep 720h0m0s" || !slices.Equal(deletedBy(entries[0]), []isle.ID{old}) ||
		entries[1].Rule != fmt.Sprintf("recordings-max %d", cfg.Max) || !slices.Equal(deletedBy(entries[1]), []isle.ID{first, second}) {
		t.Errorf("entries: %+v", entries)
	}
	if days, _ := filepath.Glob(filepath.Join(cfg.Dir, "2*")); len(days) > 2 {
		t.Errorf("folders left: %v", days)
	}
	log.leave(isle.Errorf(isle.Unavailable, "away"))
	aged := kept{id: young, bytes: 1}
	if err := s.remove(context.Background(), []kept{aged}, "x"); err == nil {
		t.Error("deleted without an entry")
	}
	if _, err := os.Stat(pathOf(cfg.Dir, young)); err != nil {
		t.Error(err)
	}
	log.leave(nil)
}

func TestADeletedRecordingIsNotAMissingOne(t *testing.T) {
	cfg, log := testConfig(t)
	s := open(t, cfg)
	id := recordSome(t, s, log)
	if err := s.remove(context.Background(), []kept{{id: id, bytes: 1}}, "recordings-keep 720h0m0s"); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, cfg, log, id); r[0].State != Deleted || !strings.Contains(r[0].Note, "recordings-keep") {
		t.Errorf("%+v", r)
	}
	if _, err := s.Get(id); isle.CodeOf(err) != isle.NotFound {
		t.Error(err)
	}
}
