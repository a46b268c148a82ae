package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"isle"
)

func at(i int) time.Time { return time.Date(2026, 1, 1, 0, 0, i, 0, time.UTC) }

func event(name string, second int) Entry {
	e := NewEvent(isle.Actor{Kind: isle.Human, Name: "root"}, isle.ActionEnvironmentLaunch, isle.Resource{Kind: "environment", Name: name}, isle.Allow, "")
	e.Time = at(second)
	return e
}

// rows are a log as a store has it.
func (m *memoryLog) rows(t testing.TB) []Row {
	t.Helper()
	var out []Row
	var tree Tree
	for i, b := range m.entries {
		e, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		var completed []tlog.Hash
		tree, completed = tree.Add(tlog.RecordHash(b))
		out = append(out, Row{Sequence: uint64(i), Time: e.Time.UnixMicro(), ID: string(e.ID), Link: string(e.Link), Entry: b, Hashes: bytes.Join(toBytes(completed), nil)})
	}
	return out
}

func each(rows []Row) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		for _, r := range rows {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// found says whether a report names a sequence number with one of the kinds.
func found(r Report, seq uint64, kinds ...string) bool {
	return slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Sequence == seq && slices.Contains(kinds, f.Kind) })
}

// forge gives row i another summary, and everything about it that its holder
// can compute.
func forge(t testing.TB, rows []Row, i int, hash bool) {
	t.Helper()
	e, err := Decode(rows[i].Entry)
	if err != nil {
		t.Fatal(err)
	}
	e.Summary = "nothing happened here"
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	rows[i].Entry = b
	if hash {
		h := tlog.RecordHash(b)
		rows[i].Hashes = append(h[:], rows[i].Hashes[tlog.HashSize:]...)
	}
}

func TestVerifyNamesWhatWasTamperedWith(t *testing.T) {
	const n = 300
	m := newLog(t, n)
	kept := []Reference{{"kept", Checkpoint{Head: m.head(t)}}}
	fresh := func() []Row { return slices.Clone(m.rows(t)) }
	if r, err := VerifyRows(each(fresh()), kept); err != nil || !r.OK() || len(r.Proven) != 1 || r.To != n {
		t.Fatalf("an untouched log: %+v %v", r, err)
	}
	for name, c := range map[string]struct {
		do    func(rows []Row) []Row
		seq   uint64
		kinds []string
	}{
		"a bit of an entry flipped": {func(rows []Row) []Row {
			rows[77].Entry = bytes.Replace(rows[77].Entry, []byte("root"), []byte("roos"), 1)
			return rows
		}, 77, []string{Changed}},
		"an entry replaced":                     {func(rows []Row) []Row { forge(t, rows, 77, false); return rows }, 77, []string{Changed}},
		"an entry replaced with its hash":       {func(rows []Row) []Row { forge(t, rows, 77, true); return rows }, 76, []string{Changed}},
		"the last replaced with its hash":       {func(rows []Row) []Row { forge(t, rows, n-2, true); return rows }, 0, []string{Rewritten}},
		"an entry deleted":                      {func(rows []Row) []Row { return slices.Delete(rows, 100, 101) }, 100, []string{Missing}},
		"an entry deleted, the rest renumbered": {func(rows []Row) []Row { return renumber(slices.Delete(rows, 100, 101)) }, 100, []string{Missing, Changed}},
		"an entry inserted": {func(rows []Row) []Row {
			extra := rows[50]
			forged := []Row{extra}
			forge(t, forged, 0, true)
			return renumber(slices.Insert(rows, 100, forged[0]))
		}, 100, []string{Moved, Changed, Added}},
		"two swapped": {func(rows []Row) []Row {
			rows[30], rows[31] = rows[31], rows[30]
			return renumber(rows)
		}, 30, []string{Moved, Missing, Changed}},
		"the end cut off": {func(rows []Row) []Row { return rows[:250] }, 250, []string{Truncated}},
		"a whole history made anew": {func(rows []Row) []Row {
			other := &memoryLog{}
			for i := range n {
				other.add(t, event("other", i))
			}
			return other.rows(t)
		}, 0, []string{Rewritten}},
		"listed under another time":         {func(rows []Row) []Row { rows[9].Time++; return rows }, 9, []string{Changed}},
		"an outcome unlinked from its list": {func(rows []Row) []Row { rows[8].Link = ""; return rows }, 8, []string{Changed}},
	} {
		r, err := VerifyRows(each(c.do(fresh())), kept)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if r.OK() || !found(r, c.seq, c.kinds...) {
			t.Errorf("%s: entry %d is not named: %+v", name, c.seq, r.Findings)
		}
	}
}

func renumber(rows []Row) []Row {
	for i := range rows {
		rows[i].Sequence = uint64(i)
	}
	return rows
}

func TestVerifyChecksWhatEntriesSay(t *testing.T) {
	m := &memoryLog{}
	m.add(t, event("a", 5))
	m.add(t, event("b", 4)) // a clock that went back
	orphan := event("c", 6)
	orphan.Kind, orphan.Link = Outcome, isle.NewID()
	m.add(t, orphan)
	i := event("d", 7)
	i.Kind, i.Result = Intent, ""
	m.add(t, i)
	other := i.Outcome(nil)
	other.Time, other.Resource.Name = at(8), "e"
	m.add(t, other)
	open := event("f", 9)
	open.Kind, open.Result = Intent, ""
	m.add(t, open)
	r, err := VerifyRows(each(m.rows(t)), nil)
	if err != nil || !found(r, 1, Backwards) || !found(r, 2, Unlinked) || !found(r, 4, Unlinked) || len(r.Findings) != 3 || r.Open != 1 {
		t.Fatalf("%+v %v", r, err)
	}
}

func TestARangeOfAStoreIsVerified(t *testing.T) {
	m := newLog(t, 300)
	kept := []Reference{{"kept", Checkpoint{Head: m.head(t)}}}
	rows := m.rows(t)
	if r, err := VerifyRange(each(rows[100:200]), 100, 200, kept, m); err != nil || !r.OK() || len(r.Proven) != 1 {
		t.Fatalf("%+v %v", r, err)
	}
	forge(t, rows, 150, true)
	if r, err := VerifyRange(each(rows[100:200]), 100, 200, kept, m); err != nil || !found(r, 100, Rewritten) {
		t.Fatalf("%+v %v", r, err)
	}
	forge(t, rows, 160, false)
	if r, err := VerifyRange(each(rows[100:190]), 100, 200, kept, m); err != nil || !found(r, 160, Changed) || !found(r, 190, Truncated) {
		t.Fatalf("%+v %v", r, err)
	}
}

func export(t testing.TB, m *memoryLog, s *Signer, from, to uint64) []byte {
	t.Helper()
	r, err := Follow(t.Context(), m.fetch(s, m.head(t)), s.Key())
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := r.Export(t.Context(), s.Key(), from, to, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestAnExportProvesItselfAndNamesWhatWasTamperedWith(t *testing.T) {
	s, m := signer(t), newLog(t, 700)
	for _, span := range [][2]uint64{{0, 700}, {0, 256}, {300, 601}, {699, 700}, {5, 5}} {
		h, r, err := VerifyExport(bytes.NewReader(export(t, m, s, span[0], span[1])), s.Key())
		if err != nil || !r.OK() || h.From != span[0] || r.To != span[1] {
			t.Fatalf("%v: %+v %v", span, r, err)
		}
	}
	whole := strings.Split(strings.TrimSuffix(string(export(t, m, s, 0, 700)), "\n"), "\n")
	line := func(seq int) int {
		return slices.IndexFunc(whole, func(l string) bool { return strings.HasPrefix(l, fmt.Sprintf(`{"v":1,"seq":%d,`, seq)) })
	}
	for name, c := range map[string]struct {
		do   func(l []string) []string
		seq  uint64
		kind string
	}{
		"flip":   {func(l []string) []string { l[line(300)] = strings.Replace(l[line(300)], "root", "toor", 1); return l }, 300, Changed},
		"delete": {func(l []string) []string { return slices.Delete(l, line(300), line(300)+1) }, 300, Missing},
		"insert": {func(l []string) []string {
			return slices.Insert(l, line(300), strings.Replace(l[line(299)], "root", "toor", 1))
		}, 300, Added},
		"repeat":   {func(l []string) []string { return slices.Insert(l, line(300), l[line(10)]) }, 300, Added},
		"reorder":  {func(l []string) []string { i, j := line(300), line(310); l[i], l[j] = l[j], l[i]; return l }, 310, Moved},
		"truncate": {func(l []string) []string { return l[:line(650)] }, 650, Truncated},
		"other hashes": {func(l []string) []string {
			i := slices.IndexFunc(l, func(s string) bool { return strings.HasPrefix(s, `{"leaves":"`) })
			l[i] = l[i][:20] + map[bool]string{true: "A", false: "B"}[l[i][20] != 'A'] + l[i][21:]
			return l
		}, 0, Rewritten},
	} {
		got := c.do(slices.Clone(whole))
		_, r, err := VerifyExport(strings.NewReader(strings.Join(got, "\n")+"\n"), s.Key())
		if err != nil || !found(r, c.seq, c.kind) {
			t.Errorf("%s: entry %d is not named: %+v %v", name, c.seq, r.Findings, err)
		}
		if len(r.Proven) > 0 {
			t.Errorf("%s: proven all the same", name)
		}
	}
	if _, _, err := VerifyExport(strings.NewReader(strings.Join(whole, "\n")), signer(t).Key()); err == nil {
		t.Error("another log's key is taken")
	}
}

func TestAnEntryIsProvenOffline(t *testing.T) {
	s, m := signer(t), newLog(t, 700)
	r, err := Follow(t.Context(), m.fetch(s, m.head(t)), s.Key())
	if err != nil {
		t.Fatal(err)
	}
	for _, seq := range []uint64{0, 1, 255, 256, 511, 699} {
		p, err := r.Prove(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		p, err = ParseProof(b)
		if err != nil {
			t.Fatal(err)
		}
		if e, c, err := p.Verify(s.Key()); err != nil || e.Sequence != seq || c.Size != 700 {
			t.Fatalf("entry %d: %+v %v", seq, e, err)
		}
		forged := p
		forged.Entry = strings.Replace(p.Entry, "root", "toor", 1)
		if _, _, err := forged.Verify(s.Key()); err == nil {
			t.Error("another entry is proven")
		}
		forged = p
		forged.Sequence ^= 1
		if _, _, err := forged.Verify(s.Key()); err == nil {
			t.Error("another place is proven")
		}
	}
	if _, err := r.Prove(t.Context(), 700); isle.CodeOf(err) != isle.NotFound {
		t.Error(err)
	}
	// A server that serves another entry than its tree has is caught.
	m.entries[3] = bytes.Replace(m.entries[3], []byte("root"), []byte("toor"), 1)
	if _, err := r.Prove(t.Context(), 5); err == nil {
		t.Error("a bundle with a changed entry is taken")
	}
}

func FuzzVerifyExport(f *testing.F) {
	s, m := signer(f), newLog(f, 9)
	f.Add(export(f, m, s, 0, 9))
	f.Add(export(f, m, s, 3, 7))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, r, err := VerifyExport(bytes.NewReader(b), s.Key())
		if err != nil || !r.OK() {
			return
		}
		// What is proven is what was appended.
		n := 0
		for line := range bytes.Lines(b) {
			if bytes.HasPrefix(line, []byte(`{"v":`)) {
				if !bytes.Equal(bytes.TrimRight(line, "\r\n"), m.entries[h.From+uint64(n)]) {
					t.Fatalf("proven: %s", line)
				}
				n++
			}
		}
	})
}

func FuzzParseProof(f *testing.F) {
	s, m := signer(f), newLog(f, 9)
	r, err := Follow(f.Context(), m.fetch(s, m.head(f)), s.Key())
	if err != nil {
		f.Fatal(err)
	}
	p, err := r.Prove(f.Context(), 4)
	if err != nil {
		f.Fatal(err)
	}
	b, _ := json.Marshal(p)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseProof(b)
		if err != nil {
			return
		}
		if e, _, err := p.Verify(s.Key()); err == nil {
			if got, _ := e.Encode(); !bytes.Equal(got, m.entries[e.Sequence]) {
				t.Fatalf("proven: %s", got)
			}
		}
	})
}
