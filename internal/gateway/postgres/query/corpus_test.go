package query_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"isle"
	"isle/internal/gateway/postgres/query"
	"isle/internal/policy"
)

// A block is one text of a file of them, and the line above it.
type block struct{ title, sql string }

// blocks reads a file of texts between lines of "====".
func blocks(t testing.TB, name string) []block {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var out []block
	for s := range strings.SplitSeq(strings.TrimSuffix(string(b), "\n"), "\n====\n") {
		var title string
		if strings.HasPrefix(s, "# ") {
			title, s, _ = strings.Cut(s[2:], "\n")
		}
		out = append(out, block{title, s})
	}
	return out
}

func TestWhatReadsPassesAsReading(t *testing.T) {
	r := reader(t)
	seen := 0
	for _, file := range []string{"harmless.sql", "psql.sql"} {
		for _, b := range blocks(t, file) {
			seen++
			set := usual()
			if b.title == "of PostgreSQL 17" {
				set.Version = 17
			}
			if f := read(t, r, b.sql, set).Facts; !reads(f) {
				t.Errorf("%s needs %v: %s\n%s", b.title, f.Actions, f.Uncertain, b.sql)
			}
		}
	}
	if seen < 150 {
		t.Errorf("the corpus has %d texts only", seen)
	}
}

// pg_dump prepares statements and executes them by name.
func TestADumpReadsOnly(t *testing.T) {
	r := reader(t)
	prepared := map[string]*policy.Facts{}
	for _, b := range blocks(t, "pg_dump.sql") {
		got := read(t, r, b.sql, usual())
		facts := got.Facts
		switch p := got.Parts[0]; p.Kind {
		case "prepare":
			prepared[p.Name] = facts
		case "execute":
			if facts.Uncertain == "" {
				t.Errorf("it is known what %s is", p.Name)
			}
			facts = r.Execute(p, prepared[p.Name])
			if r.Execute(p, prepared[p.Name]) != facts {
				t.Error("the same two give other facts")
			}
		}
		if !reads(facts) {
			t.Errorf("needs %v: %s\n%s", facts.Actions, facts.Uncertain, b.sql)
		}
	}
}

// Each text of the corpus has to be held or refused for somebody who may read
// only. Its title says as what it counts.
func TestWhatWalksPastGuardsCountsAsWhatItIs(t *testing.T) {
	r := reader(t)
	all := blocks(t, "bypass.sql")
	for _, b := range all {
		class, title, _ := strings.Cut(b.title, ": ")
		f := read(t, r, b.sql, usual()).Facts
		got := "select"
		switch has := func(a isle.Action) bool { return slices.Contains(f.Actions, a) }; {
		case f.Uncertain != "" && has(isle.ActionPostgresAdmin):
			got = "unsure"
		case has(isle.ActionPostgresAdmin):
			got = "admin"
		case has(isle.ActionPostgresSchema):
			got = "schema"
		case has(isle.ActionPostgresWrite):
			got = "write"
		}
		if got != class {
			t.Errorf("%s: counts as %s (%s), want %s\n%s\n%+v", title, got, f.Uncertain, class, b.sql, *f)
		}
	}
	if len(all) < 150 {
		t.Errorf("the corpus has %d texts only", len(all))
	}
}

func TestEveryCaseAndSpacingCountsTheSame(t *testing.T) {
	r := reader(t)
	upper := func(s string) string { // but what is in quotes of any kind
		if strings.ContainsAny(s, `'"$`) {
			return s
		}
		return strings.ToUpper(s)
	}
	for _, b := range blocks(t, "bypass.sql") {
		for _, again := range []string{upper(b.sql), "/* 'x */" + b.sql, "\t\v\f\r\n " + b.sql + "\n", ";;" + b.sql + "\n;", "select 1;" + b.sql} {
			if strings.HasPrefix(b.sql, `\`) || strings.HasPrefix(b.sql, "--") {
				continue
			}
			if f := read(t, r, again, usual()).Facts; reads(f) {
				t.Errorf("%s passes as reading:\n%s", b.title, again)
			}
		}
	}
}

func TestEncodingsHideNothing(t *testing.T) {
	r := reader(t)
	for name, c := range map[string]struct {
		sql string
		set query.Settings
	}{
		"not UTF-8":                       {"select '\xff'", usual()},
		"overlong":                        {"select \xc0\xa7; delete from orders", usual()},
		"a NUL":                           {"select 1\x00; delete from orders", usual()},
		"a surrogate":                     {"select '\xed\xa0\x80'", usual()},
		"half a character of SJIS":        {"select '\x83\\'; delete from orders; --'", query.Settings{StandardConforming: true, Encoding: "SJIS", ServerEncoding: "UTF8"}},
		"beyond ASCII, encoding unknown":  {"select 'ä'", query.Settings{StandardConforming: true, ServerEncoding: "UTF8"}},
		"a name that the server folds":    {"select * from ÄRGER", query.Settings{StandardConforming: true, Encoding: "UTF8", ServerEncoding: "LATIN1"}},
		"UTF-16":                          {string(utf16le("select 1")), usual()},
		"a byte order mark":               {"\ufeffselect 1; drop table t", usual()},
		"a space that is none":            {"drop\u00a0table t", usual()},
		"backslashes in plain strings":    {`select '\'; delete from orders; --'`, query.Settings{Encoding: "UTF8", ServerEncoding: "UTF8"}},
		"U& where strings do not conform": {`select U&'\'`, query.Settings{Encoding: "UTF8", ServerEncoding: "UTF8"}},
	} {
		if f := read(t, r, c.sql, c.set).Facts; reads(f) || f.Uncertain == "" {
			t.Errorf("%s: %+v", name, *f)
		}
	}
	for _, ok := range []string{"select 'ä'", `select "Ä", '日本'`, "select $ä$x$ä$", "select E'\\'' -- ünï"} {
		if f := read(t, r, ok, usual()).Facts; !reads(f) {
			t.Errorf("%s: %+v", ok, *f)
		}
	}
	nonconforming := usual()
	nonconforming.StandardConforming = false
	for _, ok := range []string{"select 'it''s'", `select E'\\'`, "select $$\\$$"} {
		if f := read(t, r, ok, nonconforming).Facts; !reads(f) {
			t.Errorf("%s: %+v", ok, *f)
		}
	}
}

func utf16le(s string) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune(s)) {
		out = append(out, byte(u), byte(u>>8))
	}
	return out
}

func TestNamesMeanWhatIsBuiltInOnlyWherePathSaysSo(t *testing.T) {
	r := reader(t)
	set := usual()
	set.PathChanged = true
	for _, sql := range []string{"select lower('a')", "select 1 + 1", "select '1'::int", "select count(*) from t", "select * from t where a = 1", "select * from t tablesample system (1)"} {
		if f := read(t, r, sql, usual()).Facts; !reads(f) {
			t.Errorf("%s: %+v", sql, *f)
		}
		if f := read(t, r, sql, set).Facts; reads(f) && sql != "select '1'::int" {
			t.Errorf("with another path, %s: %+v", sql, *f)
		}
	}
	if f := read(t, r, "select pg_catalog.lower('a') operator(pg_catalog.||) 'b'", set).Facts; !reads(f) {
		t.Errorf("%+v", *f)
	}
}
