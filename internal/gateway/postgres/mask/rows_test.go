package mask_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	pg "github.com/pganalyze/pg_query_go/v6"

	"isle"
	"isle/internal/gateway/postgres/mask"
	"isle/internal/policy"
)

func row(values ...string) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(values)))
	for _, v := range values {
		if v == "NULL" {
			b = append(b, 0xff, 0xff, 0xff, 0xff)
			continue
		}
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
	}
	return message('D', b)
}

// rewriter masks the second of three columns, without a database.
func rewriter(t testing.TB, show string, detect ...string) *mask.Rows {
	t.Helper()
	m := masksOf(t, []policy.Mask{{Column: "t.b", Show: show}}, detect...)
	s := m.Begin(tables("1 public t r 1 a", "1 public t r 2 b", "1 public t r 3 c"))
	p, err := s.Plan(t.Context(), written("t", "a", "b", "c"))
	if err != nil {
		t.Fatal(err)
	}
	rows, err := s.Rows(t.Context(), p, []mask.Field{{Name: "a", Type: 25}, {Name: "b", Type: 25}, {Name: "c", Type: 25}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// written is SELECT columns FROM table, without the grammar: it takes minutes to
// be ready where a fuzzer counts what it does.
func written(table string, columns ...string) mask.Statement {
	sel := &pg.SelectStmt{FromClause: []*pg.Node{{Node: &pg.Node_RangeVar{RangeVar: &pg.RangeVar{Relname: table, Inh: true}}}}}
	for _, c := range columns {
		name := &pg.Node{Node: &pg.Node_String_{String_: &pg.String{Sval: c}}}
		ref := &pg.Node{Node: &pg.Node_ColumnRef{ColumnRef: &pg.ColumnRef{Fields: []*pg.Node{name}}}}
		sel.TargetList = append(sel.TargetList, &pg.Node{Node: &pg.Node_ResTarget{ResTarget: &pg.ResTarget{Val: ref}}})
	}
	return mask.Statement{Tree: func() (*pg.Node, error) { return &pg.Node{Node: &pg.Node_SelectStmt{SelectStmt: sel}}, nil }}
}

func TestARowIsRewrittenWhereMasksAre(t *testing.T) {
	r := rewriter(t, "partial", "card")
	for _, c := range [][2][]byte{
		{row("x", "canary@secret.example", "y"), row("x", "c***@s*****.example", "y")},
		{row("x", "NULL", "NULL"), row("x", "NULL", "NULL")},
		{row("", "", ""), row("", "****", "")},
		{row("4111111111111111", "a", "pay 4111 1111 1111 1111"), row("************1111", "****", "pay **** **** **** 1111")},
	} {
		got, err := r.Row([]byte("before"), c[0])
		if err != nil || string(got) != "before"+string(c[1]) {
			t.Errorf("%q became %q, want %q (%v)", c[0], got, c[1], err)
		}
	}
}

func TestARowThatDoesNotFitItsDescriptionIsNotSent(t *testing.T) {
	r := rewriter(t, "full")
	whole := row("x", "canary", "y")
	long := bytes.Clone(whole)
	binary.BigEndian.PutUint32(long[7:], 1<<30)
	negative := bytes.Clone(whole)
	binary.BigEndian.PutUint32(negative[7:], 0x80000000)
	for name, b := range map[string][]byte{
		"empty": nil, "short": whole[:8], "cut": whole[:len(whole)-1], "longer": append(bytes.Clone(whole), 0), "two columns": row("x", "canary"),
		"four columns": row("x", "y", "canary", "z"), "a long value": long, "a negative length": negative, "another message": message('T', whole[5:]),
	} {
		out, err := r.Row([]byte("b"), b)
		if isle.CodeOf(err) != isle.Untrusted || string(out) != "b" {
			t.Errorf("%s: %q, %v", name, out, err)
		}
	}
}

func FuzzRowsHoldNoMaskedValue(f *testing.F) {
	f.Add(row("x", "canary", "y"))
	f.Add(row("NULL", "NULL", "4111111111111111"))
	f.Add([]byte("D\x00\x00\x00\x06\x00\x03"))
	r := rewriter(f, "type", "card", "iban", "token")
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := r.Row(nil, in)
		if err != nil {
			return
		}
		if out[0] != 'D' || int(binary.BigEndian.Uint32(out[1:])) != len(out)-1 {
			t.Fatalf("%q became %q", in, out)
		}
		// The second value is empty, or NULL as it was.
		at := 7
		at += 4 + max(0, int(int32(binary.BigEndian.Uint32(out[at:]))))
		if n := int32(binary.BigEndian.Uint32(out[at:])); n > 0 {
			t.Fatalf("%q became %q", in, out)
		}
		if again, err := r.Row(nil, out); err != nil || len(again) != len(out) {
			t.Fatalf("what was sent is no row: %v", err)
		}
	})
}

func FuzzDescriptionsAndErrors(f *testing.F) {
	f.Add(message('T', []byte("\x00\x01a\x00\x00\x00\x40\x00\x00\x02\x00\x00\x00\x19\xff\xff\xff\xff\xff\xff\x00\x00")))
	f.Add(message('E', []byte("SERROR\x00C22P02\x00Minvalid input syntax for type integer: \"canary\"\x00\x00")))
	f.Add(message('N', []byte("M")))
	m := masksOf(f, []policy.Mask{{Column: "t.b", Show: "full"}})
	s := m.Begin(tables("1 public t r 1 a", "1 public t r 2 b"))
	p, err := s.Plan(f.Context(), written("t", "b"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		mask.Fields(in)
		out, changed := p.Scrub(nil, in)
		if changed && int(binary.BigEndian.Uint32(out[1:])) != len(out)-1 {
			t.Fatalf("%q became %q", in, out)
		}
	})
}

func TestAnErrorKeepsItsNamesAndLosesItsValues(t *testing.T) {
	m := masksOf(t, []policy.Mask{{Column: "t.b", Show: "full"}})
	s := m.Begin(tables("1 public t r 1 a", "1 public t r 2 b", "2 public u r 1 x"))
	touching, err := s.Plan(t.Context(), statement("SELECT a FROM t", false))
	if err != nil {
		t.Fatal(err)
	}
	other, err := s.Plan(t.Context(), statement("SELECT x FROM u", false))
	if err != nil {
		t.Fatal(err)
	}
	e := func(fields ...string) []byte { return message('E', []byte(strings.Join(fields, "\x00")+"\x00\x00")) }
	for _, c := range []struct {
		plan *mask.Plan
		in   []byte
		want []string
	}{
		{touching, e("SERROR", "VERROR", "C22P02", `Minvalid input syntax for type integer: "canary"`, "P8", "Fnumutils.c", "L323", "Rpg_strtoint32"), []string{"C22P02", "P8", "Minvalid input syntax for a type"}},
		{touching, e("SERROR", "C23505", `Mduplicate key value violates unique constraint "t_b"`, "DKey (b)=(canary) already exists.", "spublic", "tt", "nt_b"), []string{"C23505", "nt_b", "tt", `unique constraint "t_b"`}},
		{touching, e("SERROR", "C23502", `Mnull value in column "a" of relation "t" violates`, "DFailing row contains (null, canary).", "tt", "ca"), []string{"C23502", "ca", `column "a"`}},
		{touching, e("SERROR", "CP0001", "Mcustomer canary is odd", "Hask canary", "WPL/pgSQL function f(), canary", "Rexec_stmt_raise"), []string{"CP0001"}},
		{touching, e("SERROR", "C42703", `Mcolumn "nothing" does not exist`, "Hperhaps you meant", "P8", "RerrorMissingColumn"), []string{`column "nothing" does not exist`, "Hperhaps"}},
		{touching, e("SERROR", "C42703", "Mcanary", "Rexec_stmt_raise"), []string{"C42703"}},
		{touching, e("SERROR", "C57014", "Mcanceling statement due to user request"), []string{"canceling statement"}},
		{other, e("SERROR", "C22P02", `Minvalid input syntax for type integer: "x"`), []string{`integer: "x"`}},
		{other, e("SERROR", "CP0001", "Mcanary", `WPL/pgSQL function audit() line 3 at RAISE`), []string{"CP0001"}},
		{other, message('E', []byte("Mcanary")), []string{"CXX000"}},
	} {
		out, _ := c.plan.Scrub(nil, c.in)
		if bytes.Contains(out, []byte("canary")) {
			t.Errorf("%q leaves as %q", c.in, out)
		}
		for _, w := range c.want {
			if !bytes.Contains(out, []byte(w)) {
				t.Errorf("%q leaves as %q, without %q", c.in, out, w)
			}
		}
	}
}

// tables is a catalog that a test makes up: OID (from 16384 on), schema, name,
// kind, number and name of each column.
func tables(lines ...string) mask.Query {
	return func(_ context.Context, sql string) (out [][]string, err error) {
		switch {
		case strings.HasPrefix(sql, "SELECT pg_catalog.concat_ws"):
			return [][]string{{"1"}}, nil
		case strings.HasPrefix(sql, "SELECT c.oid, n.nspname"):
			for _, l := range lines {
				f := append(strings.Fields(l), "")
				f[0] = fmt.Sprint(16384 + int(f[0][0]))
				out = append(out, f)
			}
		}
		return out, nil
	}
}

func BenchmarkRows(b *testing.B) {
	for _, show := range []string{"full", "partial", "hash"} {
		b.Run(show, func(b *testing.B) {
			r := rewriter(b, show)
			in := row("an ordinary text", "canary@secret.example", "another text of some length")
			var out []byte
			b.SetBytes(int64(len(in)))
			b.ReportAllocs()
			for b.Loop() {
				out, _ = r.Row(out[:0], in)
			}
		})
	}
	b.Run("detectors", func(b *testing.B) {
		r := rewriter(b, "full", "card", "iban", "token")
		in := row("an ordinary text", "canary@secret.example", "another text of some length")
		var out []byte
		b.SetBytes(int64(len(in)))
		b.ReportAllocs()
		for b.Loop() {
			out, _ = r.Row(out[:0], in)
		}
	})
}
