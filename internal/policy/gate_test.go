package policy

import (
	"strings"
	"testing"
	"time"

	"isle"
)

func TestAGateThatAsksForWhatCannotBeIsWrongWhereItIsApplied(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"{stages: [production]}", "doc.yaml:2:5: gates[0]: asks for nothing"},
		{"{soak: 5m}", "has no stages"},
		{"{stages: [testing], soak: 5m}", "stage testing is the first one"},
		{"{stages: [testing], checks: [{run: x}]}", "stage testing is the first one"},
		{"{stages: [prod], fresh: 5m}", "nothing is promoted to stage prod: the stages are testing, staging, production"},
		{"{stages: [\"*\"], fresh: 5m}", "a stage is named"},
		{"{stages: [production], soak: soon}", `"soon" is no duration`},
		{"{stages: [production], soak: -1h}", "is no duration"},
		{"{stages: [production], checks: [{timeout: 5m}]}", "has no run"},
		{"{stages: [production], checks: [{run: []}]}", "a check has a command"},
		{"{stages: [production], checks: [{run: \"\"}]}", "want a command"},
		{"{stages: [production], checks: [{run: x, timeout: 2h}]}", "a check may take 1h0m0s"},
		{"{stages: [production], checks: [{run: x, servcie: web}]}", `unknown key "servcie"; did you mean service?`},
		{"{stages: [production], watch: {for: 5m}}", "watches for nothing"},
		{"{stages: [production], watch: {for: 48h, health: true}}", "want at most 24h"},
		{"{stages: [production], watch: {for: 5m, errors: 5}}", `"5" is no share; want 5%`},
		{"{stages: [production], watch: {for: 5m, errors: 100%}}", "less than 100%"},
		{"{stages: [production], watch: {for: 5m, errors: NaN%}}", "is no share"},
		{"{stages: [production], watch: {health: true}}", "has no for"},
	} {
		_, err := Compile(Document{Name: "doc.yaml", Format: YAML, Body: []byte("gates:\n  - " + c.text)})
		if err == nil || !strings.Contains(err.Error(), c.want) || isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s\n got %v\nwant %s", c.text, err, c.want)
		}
	}
}

// Gates of all documents count, and whoever adds to one document takes nothing of
// another's away.
func TestEveryGateOfAStageCounts(t *testing.T) {
	s, err := Compile(
		Document{Name: "main.yaml", Format: YAML, Body: []byte("gates:\n  - {stages: [production], soak: 1h}\n  - {stages: [staging, production], projects: [shop], checks: [{service: web, run: /app/smoke}, {run: [a, b]}]}")},
		Document{Name: "more.yaml", Format: YAML, Body: []byte("gates:\n  - {stages: [production], projects: [blog], fresh: 24h, watch: {for: 5m, errors: 0.5%}}")})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		project, stage string
		want           int
	}{{"shop", "production", 2}, {"shop", "staging", 1}, {"shop", "testing", 0}, {"blog", "production", 2}, {"other", "production", 1}, {"other", "staging", 0}} {
		if got := s.Gates(c.project, c.stage); len(got) != c.want {
			t.Errorf("%s in %s has %d gates, want %d", c.project, c.stage, len(got), c.want)
		}
	}
	g := s.Gates("shop", "staging")[0]
	if g.String() != "gate at main.yaml:3:5" || g.Checks[0].String() != "web: /app/smoke" || g.Checks[1].String() != "a b" || g.Checks[0].Timeout != 5*time.Minute {
		t.Errorf("%+v", g)
	}
	if w := s.Gates("blog", "production")[1].Watch; w != (Watch{For: 5 * time.Minute, Errors: 0.005}) {
		t.Errorf("%+v", w)
	}
}

func TestAChangeOfGatesIsShown(t *testing.T) {
	compiled := func(text string) *Set {
		s, err := Compile(Document{Name: "doc.yaml", Format: YAML, Body: []byte(text)})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	none, moved := compiled("{}"), compiled("\n\ngates:\n  - {stages: [production], soak: 1h}")
	one := compiled("gates:\n  - {stages: [production], soak: 1h}")
	said := func(changes []Change) (out []string) {
		for _, c := range changes {
			out = append(out, c.String())
		}
		return out
	}
	if got := said(none.Diff(one, time.Now())); len(got) != 1 || got[0] != "everyone loses promotion to production without soak 1h0m0s" {
		t.Error(got)
	}
	if got := said(one.Diff(none, time.Now())); len(got) != 1 || got[0] != "everyone gains promotion to production without soak 1h0m0s" {
		t.Error(got)
	}
	if got := one.Diff(moved, time.Now()); len(got) != 0 {
		t.Errorf("a gate that moved is another: %v", got)
	}
}

func TestAStageIsGuardedByAGateOrByPeople(t *testing.T) {
	s := compile(t, `
gates:
  - {stages: [production], projects: [shop], fresh: 5m}
approvals:
  - {actions: [release:promote], resources: ["release:bank@testing"], approvers: [human:root]}
  - {actions: [release:promote], resources: ["release:*@staging"], approvers: [human:root], when: {tables: [none]}}
`)
	for _, c := range []struct {
		project, stage string
		want           bool
	}{
		{"shop", "production", true}, {"bank", "production", false}, {"bank", "testing", true}, {"shop", "testing", false}, {"shop", "staging", false},
	} {
		if got := s.Guarded(c.project, c.stage); got != c.want {
			t.Error(c, got)
		}
	}
}
