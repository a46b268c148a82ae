package ledger_test

import (
	"strings"
	"testing"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
	"isle/internal/ledger/ledgertest"
)

func entry(summary string) audit.Entry {
	return audit.NewEvent(isle.Actor{Kind: isle.Human, Name: "root"}, isle.ActionSecretSet, isle.Resource{Kind: "secret", Name: "x"}, isle.Allow, summary)
}

func record(key, body string) ledger.Record { return ledger.Record{Key: key, Body: []byte(body)} }

func open(t *testing.T, m *ledgertest.Memory) (*ledger.Ledger, []ledger.Record) {
	t.Helper()
	l, records, err := ledger.Open(t.Context(), m, "keys")
	if err != nil {
		t.Fatal(err)
	}
	return l, records
}

func TestALedgerComesBackAsItWasLeft(t *testing.T) {
	m := ledgertest.New()
	l, records := open(t, m)
	if len(records) != 0 || l.Epoch() != 0 {
		t.Fatal(records)
	}
	if err := l.Change(t.Context(), []ledger.Record{record("b", "1"), record("a", "1")}, nil, entry("first"), entry("second")); err != nil {
		t.Fatal(err)
	}
	if err := l.Change(t.Context(), []ledger.Record{record("a", "2")}, []string{"b", "never"}, entry("third")); err != nil {
		t.Fatal(err)
	}
	l, records = open(t, m)
	if len(records) != 1 || records[0].Key != "a" || string(records[0].Body) != "2" || l.Epoch() != 2 {
		t.Fatalf("%v %d", records, l.Epoch())
	}
	if err := l.Change(t.Context(), []ledger.Record{record("c", "")}, nil, entry("fourth")); err != nil {
		t.Fatal(err)
	}
	e := m.Entries()
	if len(e) != 4 || e[0].Bound != nil || e[1].Bound.Epoch != 1 || e[3].Bound.Epoch != 3 || e[3].Bound.State == e[2].Bound.State {
		t.Errorf("%+v", e)
	}
}

func TestAFailedChangeCountsForNothing(t *testing.T) {
	m := ledgertest.New()
	l, _ := open(t, m)
	m.Fail(isle.Errorf(isle.Exhausted, "no space left"))
	if err := l.Change(t.Context(), []ledger.Record{record("a", "1")}, nil, entry("")); isle.CodeOf(err) != isle.Exhausted {
		t.Fatal(err)
	}
	m.Fail(nil)
	if l.Epoch() != 0 || len(m.Entries()) != 0 {
		t.Error("it counts")
	}
	if err := l.Change(t.Context(), []ledger.Record{record("a", "1")}, nil, entry("")); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"no entry":     l.Change(t.Context(), []ledger.Record{record("b", "1")}, nil),
		"no key":       l.Change(t.Context(), []ledger.Record{record("", "1")}, nil, entry("")),
		"a long key":   l.Change(t.Context(), []ledger.Record{record(strings.Repeat("k", ledger.MaxKey+1), "1")}, nil, entry("")),
		"a large body": l.Change(t.Context(), []ledger.Record{record("k", strings.Repeat("k", ledger.MaxBody+1))}, nil, entry("")),
	} {
		if err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	open(t, m)
}

func TestWhatWasChangedBehindTheLogIsRefused(t *testing.T) {
	m := ledgertest.New()
	l, _ := open(t, m)
	for _, body := range []string{"granted", "revoked"} {
		if err := l.Change(t.Context(), []ledger.Record{record("a", body), record("b", body)}, nil, entry(body)); err != nil {
			t.Fatal(err)
		}
	}
	var right []ledger.Record
	m.Edit("keys", func(r []ledger.Record) []ledger.Record { right = r; return r })
	for name, wrong := range map[string][]ledger.Record{
		"a body edited":                {record("a", "granted"), right[1]},
		"all put back to what it was":  {record("a", "granted"), record("b", "granted")},
		"a record deleted":             {right[0]},
		"all deleted":                  nil,
		"a record added":               {right[0], right[1], record("c", "x")},
		"a key renamed":                {right[0], record("c", "revoked")},
		"bytes moved from key to body": {record("ar", "evoked"), right[1]},
	} {
		m.Edit("keys", func([]ledger.Record) []ledger.Record { return wrong })
		if _, _, err := ledger.Open(t.Context(), m, "keys"); isle.CodeOf(err) != isle.Unavailable || !strings.Contains(err.Error(), "behind the log") {
			t.Errorf("%s: %v", name, err)
		}
	}
	m.Edit("keys", func([]ledger.Record) []ledger.Record { return right })
	open(t, m)
	m.Edit("other", func([]ledger.Record) []ledger.Record { return right })
	if _, _, err := ledger.Open(t.Context(), m, "other"); err == nil {
		t.Error("records that no entry speaks of are taken")
	}
}

func BenchmarkChangeOfTenThousandRecords(b *testing.B) {
	l, _, err := ledger.Open(b.Context(), ledgertest.New(), "keys")
	if err != nil {
		b.Fatal(err)
	}
	var all []ledger.Record
	for range 10_000 {
		all = append(all, record(string(isle.NewID()), "body"))
	}
	if err := l.Change(b.Context(), all, nil, entry("")); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := l.Change(b.Context(), all[:1], nil, entry("")); err != nil {
			b.Fatal(err)
		}
	}
}
