package query

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	pg_query "github.com/pganalyze/pg_query_go/v6"
	pgquery "github.com/wasilibs/go-pgquery"
)

// corpora are all texts of the corpora, as seeds.
func corpora(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatal("no corpora", err)
	}
	var out []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for s := range strings.SplitSeq(strings.TrimSuffix(string(b), "\n"), "\n====\n") {
			if strings.HasPrefix(s, "# ") {
				_, s, _ = strings.Cut(s, "\n")
			}
			out = append(out, s)
		}
	}
	return out
}

// conforming is how the scanner of the grammar reads.
var conforming = Settings{StandardConforming: true, Encoding: "UTF8", ServerEncoding: "UTF8", Version: 17}

// What the lexer cuts is what PostgreSQL's scanner cuts; what the lexer refuses
// may be anything.
func FuzzTheLexerCutsAsTheScannerDoes(f *testing.F) {
	for _, s := range append(corpora(f), "a.b..c", "1..2", "1.e5", ".5.5", "1.5.5", "$1$2", "a$1", "$a$", "x'1'y", "B'0''0'", "b'1'2", "e'\\''", "N'a'", "u&'a'",
		"U&\"a\"b", "--", "/*", "/*/**/*/", "+-", "-+", "@-", "<=-", "=>", ":=", "::", ":::", ": :", "<>>", "'a'\n'b'", "'a'\n\n 'b''c'\r'd'", "'a' --\n'b'",
		"e'a'\n'\\''", "\"a\"\"b\"", "0x1f", "0o17", "0b11", "0x", "1_000", "1__0", "1_", "1e", "1e+", "1e5_0", "0x_1", "100000000000", "é", "a é1$", "\v", "^@<->*/*a*/", "!=-", "a-- b\n-c", "?|-", "*/") {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if readable(s, conforming) != "" || len(s) > 4096 {
			return
		}
		var ours []token
		l := lexer{s: s, set: conforming}
		for {
			tok, ok, err := l.next()
			if err != nil {
				return
			}
			if !ok {
				break
			}
			ours = append(ours, tok)
		}
		scanned, err := pgquery.Scan(s)
		if err != nil {
			return // what a constant or a name says is no matter of tokens: "", E'\u0000'
		}
		var theirs []*pg_query.ScanToken
		for _, tok := range scanned.GetTokens() {
			if tok.GetToken() != pg_query.Token_SQL_COMMENT && tok.GetToken() != pg_query.Token_C_COMMENT {
				theirs = append(theirs, tok)
			}
		}
		// N'a' is a word and a constant to the scanner.
		for i := 0; i < len(theirs) && i < len(ours); i++ {
			if ours[i].kind == national && i+1 < len(theirs) && theirs[i].GetToken() == pg_query.Token_NCHAR {
				theirs[i+1].Start = theirs[i].GetStart()
				theirs = append(theirs[:i:i], theirs[i+1:]...)
			}
		}
		if len(ours) != len(theirs) {
			t.Fatalf("%q: %d tokens, the scanner has %d: %v\n%v", s, len(ours), len(theirs), ours, theirs)
		}
		for i, tok := range ours {
			if tok.start != int(theirs[i].GetStart()) || tok.end != int(theirs[i].GetEnd()) || !agree(tok.kind, theirs[i].GetToken()) {
				t.Fatalf("%q: token %d is %v %q, the scanner has %v %q", s, i, tok.kind, s[tok.start:tok.end], theirs[i].GetToken(), s[theirs[i].GetStart():theirs[i].GetEnd()])
			}
		}
	})
}

// agree reports whether a kind is that of a token of the scanner.
func agree(k kind, t pg_query.Token) bool {
	switch t {
	case pg_query.Token_ICONST:
		return k == integer
	case pg_query.Token_FCONST:
		return k == number
	case pg_query.Token_SCONST, pg_query.Token_USCONST:
		return k == str || k == national
	case pg_query.Token_BCONST:
		return k == bits
	case pg_query.Token_XCONST:
		return k == hexes
	case pg_query.Token_PARAM:
		return k == param
	case pg_query.Token_UIDENT:
		return k == escaped
	case pg_query.Token_IDENT:
		return k == word || k == quoted
	}
	return k == word || k == operator || k == mark
}
