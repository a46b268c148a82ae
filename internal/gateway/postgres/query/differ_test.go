package query

import (
	"context"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"isle/internal/gateway/postgres/query/grammar"
)

// another gives a text of the same shape, with other constants: such as would
// matter if any did.
func another(s string, random *rand.Rand) string {
	of := map[kind][]string{
		str:      {"''", "'role'", "'none'", "'search_path'", "'off'", "'false'", "'analyze'", "'postgres'", "'a''b'", "$$a$$", "E'\\''", "'1'", "'orders'::text||''"[:8], "U&'\\0061'"},
		integer:  {"0", "1", "2", "53", "2147483647", "12"},
		number:   {"0.0", "1.5", "1e5", "99999999999", ".5", "2147483648"},
		bits:     {"b''", "b'1'", "B'0101'"},
		hexes:    {"x''", "x'1F'"},
		national: {"n''", "N'a'"},
	}
	var out strings.Builder
	l, last := lexer{s: s, set: conforming}, 0
	for {
		t, ok, err := l.next()
		if err != nil || !ok {
			break
		}
		out.WriteString(s[last:t.start])
		if choice := of[t.kind]; len(choice) > 0 {
			out.WriteString(" " + choice[random.IntN(len(choice))] + " ")
		} else {
			out.WriteString(s[t.start:t.end])
		}
		last = t.end
	}
	out.WriteString(s[last:])
	return out.String()
}

// whole compares what was read of a text without the items that repeat with what
// all of it says.
func whole(t *testing.T, r *Reader, s string, got *Read) {
	cut, why := r.shape(s, conforming)
	if why != "" || len(cut.cuts) == 0 || got.Facts.Uncertain != "" {
		return
	}
	short, why := r.shape(cut.without(s), conforming)
	if why != "" || string(short.key) != string(cut.key) || len(short.cuts) > 0 {
		t.Fatalf("%s\nwithout what repeats is of another shape: %s\n%q\n%q", s, cut.without(s), cut.key, short.key)
	}
	tree, err := r.grammar.Parse(context.Background(), s)
	if err != nil {
		t.Fatalf("%s\nis read without what repeats, and not with it: %v", s, err)
	}
	e := r.entry(tree, s, conforming, cut)
	a, b := *e.facts, *got.Facts
	a.Shape, b.Shape = "", ""
	if !reflect.DeepEqual(a, b) {
		t.Fatalf("%s\n%+v\nwithout what repeats\n%+v", s, a, b)
	}
}

// The facts that are kept for a shape are those of each text of it.
func FuzzFactsOfAShapeAreThoseOfEachTextOfIt(f *testing.F) {
	for i, s := range corpora(f) {
		f.Add(s, uint64(i))
	}
	f.Add("insert into t values (1, 'a', $1), (2, 'b', $2) , /* x */ (3,\n'c', $3), (now(), 1, 1), (4, 'd', $4) returning *; select 1 where a in (1, 2, 3) and b in ($1, $2, -1, -2, 3) and c in (select 1, a, a)", uint64(7))
	f.Add("values (1), (2), (3); values ((select 1 from (values (1), (2)) x)), ((select 1 from (values (1), (2)) x))", uint64(8))
	f.Add("select * from (values (1,2),(3,4),(5,6)) as v (a, b) where x not in ('a', 'b') order by 2 in (1, 2, 2)", uint64(9))
	f.Add("select set_config ('a', 'b', true)", uint64(1))
	f.Add("delete from t where 1 = 1 or a = 'x'", uint64(2))
	f.Add("select float(24), float(53) 'x'", uint64(3))
	f.Add("(explain (analyze 'off') delete from t)", uint64(4))
	f.Add("select 'x'::regclass, interval '1' day(3), cast(1 as float(3)) order by 1, 'a'", uint64(5))
	f.Add("fetch 5 from c; move -1 in d; execute q(1, 'a'); prepare q as copy t to 'x'", uint64(6))
	g := grammar.New()
	if err := g.Warm(); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { g.Close() })
	fresh := func() *Reader { return New(Config{Grammar: g}) }
	f.Fuzz(func(t *testing.T, s string, seed uint64) {
		if len(s) > 2000 {
			return
		}
		r := fresh()
		first, err := r.Read(context.Background(), s, conforming)
		if err != nil {
			t.Fatal(err)
		}
		whole(t, r, s, first)
		other := another(s, rand.New(rand.NewPCG(seed, 1)))
		kept, err := r.Read(context.Background(), other, conforming)
		if err != nil {
			t.Fatal(err)
		}
		if kept.Facts != first.Facts || first.Facts.Uncertain != "" {
			return // another shape, or one that isn't kept
		}
		scratch, err := fresh().Read(context.Background(), other, conforming)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(scratch.Facts.Uncertain, "the grammar: ") {
			return // the server refuses it: float(0)
		}
		if !reflect.DeepEqual(*kept.Facts, *scratch.Facts) || len(kept.Parts) != len(scratch.Parts) {
			t.Fatalf("%s\n%+v\n%s\n%+v", s, *kept.Facts, other, *scratch.Facts)
		}
		for i, p := range kept.Parts {
			q := scratch.Parts[i]
			if p.Start != q.Start || p.End != q.End || p.Kind != q.Kind || p.Name != q.Name || p.Transaction != q.Transaction || !reflect.DeepEqual(p.Settings, q.Settings) || !reflect.DeepEqual(*p.Facts, *q.Facts) {
				t.Fatalf("%s\n%+v\n%s\n%+v", s, p, other, q)
			}
		}
	})
}
