package grammar_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"isle/internal/gateway/postgres/query/grammar"
)

func warm(t testing.TB) *grammar.Grammar {
	t.Helper()
	g := grammar.New()
	t.Cleanup(func() { g.Close() })
	if err := g.Warm(); err != nil {
		t.Fatal(err)
	}
	return g
}

func TestATextThatExhaustsTheGrammarSpoilsNoOther(t *testing.T) {
	g := warm(t)
	ctx := context.Background()
	deep := map[string]string{
		"a stack":             "select " + strings.Repeat("(select ", 2500) + "1" + strings.Repeat(")", 2500),
		"a chain":             "select 1" + strings.Repeat("+1", 20000),
		"the parser's stack":  "select " + strings.Repeat("(", 50000) + "1",
		"more than may be":    "select '" + strings.Repeat("x", grammar.Longest) + "'",
		"more than is there":  "select " + strings.Repeat("a.b,", grammar.Longest/4-10) + "a",
		"the depth of a tree": "select 1" + strings.Repeat(" union select 1", 20000),
	}
	var wg sync.WaitGroup
	for name, text := range deep {
		wg.Go(func() {
			if _, err := g.Parse(ctx, text); err != nil && !errors.Is(err, grammar.ErrExhausted) {
				t.Errorf("%s: %v", name, err)
			}
			var bad *grammar.SyntaxError
			if _, err := g.Parse(ctx, "selct 1"); !errors.As(err, &bad) || bad.At != 1 || !strings.Contains(bad.Message, `"selct"`) {
				t.Errorf("after %s: %v", name, err)
			}
			tree, err := g.Parse(ctx, "select 1; delete from t")
			if err != nil || len(tree.GetStmts()) != 2 || tree.GetStmts()[1].GetStmt().GetDeleteStmt().GetRelation().GetRelname() != "t" {
				t.Errorf("after %s: %v %v", name, tree, err)
			}
		})
	}
	wg.Wait()
}

func TestAClosedGrammarReadsNothing(t *testing.T) {
	g := grammar.New()
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Parse(context.Background(), "select 1"); err == nil {
		t.Error("it reads")
	}
}

func BenchmarkParse(b *testing.B) {
	g := warm(b)
	for b.Loop() {
		if _, err := g.Parse(context.Background(), "SELECT abalance FROM pgbench_accounts WHERE aid = 5"); err != nil {
			b.Fatal(err)
		}
	}
}
