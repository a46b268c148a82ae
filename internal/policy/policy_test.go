package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	cedar "github.com/cedar-policy/cedar-go"

	"isle"
)

var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func compile(t testing.TB, texts ...string) *Set {
	t.Helper()
	var docs []Document
	for i, text := range texts {
		format := YAML
		if strings.Contains(text, "permit") || strings.Contains(text, "forbid") {
			format = Cedar
		}
		docs = append(docs, Document{Name: fmt.Sprintf("doc%d", i), Format: format, Body: []byte(text)})
	}
	s, err := Compile(docs...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ask makes a query of words: the session is in the resource's stage.
func ask(t testing.TB, actor, action, resource string) Query {
	t.Helper()
	q := Query{Now: now}
	if err := ParseActor(actor, &q); err != nil {
		t.Fatal(err)
	}
	q.Action = isle.Action(action)
	var err error
	if q.Resource, err = ParseResource(resource); err != nil {
		t.Fatal(err)
	}
	q.Stage = q.Resource.Stage
	return q
}

const team = `
roles:
  log-reader: {actions: [environment:logs], resources: ["environment:shop"]}
  shop-dev: {actions: [environment:exec, environment:logs], resources: [{project: shop, stage: testing}]}
  prod-shell: {actions: [environment:exec], resources: ["environment:shop@production"]}
  payments: {actions: [egress:connect], resources: ["egress:api.example.com:443@testing"]}
  previews: {actions: [environment:exec], resources: ["environment:shop-*@testing"], reason: previews, expires: 2026-12-31}
  gone: {actions: [environment:exec], resources: ["environment:shop@testing"], expires: 2026-05-31}
bindings:
  - {role: admin, subjects: [human:root]}
  - {role: developer, subjects: [group:devs], stages: [testing]}
  - {role: developer, subjects: [human:lead]}
  - {role: developer, subjects: [human:oncall], stages: [testing, production]}
  - {role: log-reader, subjects: [human:bob, machine:ci]}
  - {role: shop-dev, subjects: [human:sue]}
  - {role: prod-shell, subjects: [human:pat]}
  - {role: previews, subjects: [human:pre]}
  - {role: gone, subjects: [human:late]}
  - {role: log-reader, subjects: [human:temp], expires: 2026-06-01T12:00:00Z}
  - {role: auditor, subjects: [human:aud]}
  - {role: payments, subjects: [{project: shop, stage: testing}]}
`

func TestDecisions(t *testing.T) {
	s := compile(t, team)
	for _, c := range []struct {
		actor, action, resource string
		want                    isle.Decision
		rule                    string
	}{
		{"human:root", "environment:exec", "environment:shop", isle.Allow, "role admin, bound to human:root"},
		{"human:root", "policy:apply", "policy:policy", isle.Allow, "role admin"},
		{"human:root", "environment:launch", "environment:shop@production", isle.Deny, "built in: protected"},
		{"human:root", "environment:exec", "environment:shop@production", isle.Deny, "default"},
		{"human:root", "environment:logs", "environment:shop@production", isle.Allow, "role admin"},
		{"human:nobody", "environment:exec", "environment:shop", isle.Deny, "default"},
		{"group:devs", "environment:exec", "environment:shop", isle.Allow, "role developer, bound to group:devs"},
		{"group:devs", "environment:exec", "environment:shop@staging", isle.Deny, "default"},
		{"group:devs", "image:build", "image:shop", isle.Allow, "role developer"},
		{"group:devs", "audit:read", "audit:log", isle.Deny, "default"},
		{"group:devs", "policy:apply", "policy:policy", isle.Deny, "default"},
		{"human:lead", "environment:exec", "environment:shop@staging", isle.Allow, "role developer"},
		{"human:lead", "environment:exec", "environment:shop@production", isle.Deny, "default"},
		{"human:lead", "environment:launch", "environment:shop@production", isle.Deny, "built in: protected"},
		{"human:oncall", "environment:exec", "environment:shop@production", isle.Allow, "role developer"},
		{"human:oncall", "environment:exec", "environment:shop@staging", isle.Deny, "default"},
		{"human:oncall", "environment:launch", "environment:shop@production", isle.Deny, "built in: protected"},
		{"human:bob", "environment:logs", "environment:shop@staging", isle.Allow, "role log-reader, bound to human:bob"},
		{"human:bob", "environment:logs", "environment:other", isle.Deny, "default"},
		{"human:bob", "environment:exec", "environment:shop", isle.Deny, "default"},
		{"machine:ci", "environment:logs", "environment:shop", isle.Allow, "role log-reader, bound to machine:ci"},
		{"human:ci", "environment:logs", "environment:shop", isle.Deny, "default"},
		{"human:pat", "environment:exec", "environment:shop@production", isle.Allow, "role prod-shell"},
		{"human:pat", "environment:exec", "environment:shop", isle.Deny, "default"},
		{"human:pre", "environment:exec", "environment:shop-feature", isle.Allow, "role previews"},
		{"human:pre", "environment:exec", "environment:shop", isle.Deny, "default"},
		{"human:late", "environment:exec", "environment:shop", isle.Deny, "default"},
		{"human:temp", "environment:logs", "environment:shop", isle.Deny, "default"},
		{"human:aud", "audit:read", "audit:log", isle.Allow, "role auditor"},
		{"human:root", "egress:connect", "egress:api.example.com:443", isle.Deny, "default"},
		{"workload:shop/testing/shop", "egress:connect", "egress:api.example.com:443", isle.Allow, "role payments, bound to {project: shop, stage: testing}"},
		{"workload:shop/testing/shop", "egress:connect", "egress:evil.example:443", isle.Deny, "default"},
		{"workload:other/testing/shop", "egress:connect", "egress:api.example.com:443", isle.Deny, "default"},
		{"workload:shop/staging/shop", "egress:connect", "egress:api.example.com:443", isle.Deny, "built in: a workload"},
	} {
		a := s.Decide(ask(t, c.actor, c.action, c.resource))
		if a.Decision != c.want || !strings.HasPrefix(a.Rule, c.rule) {
			t.Errorf("%s %s %s: %s by %q, want %s by %q", c.actor, c.action, c.resource, a.Decision, a.Rule, c.want, c.rule)
		}
	}
	q := ask(t, "human:sue", "environment:exec", "environment:anything")
	if s.Decide(q).Allowed() {
		t.Error("a role on a project opened what is of no project")
	}
	q.Project = "shop"
	if !s.Decide(q).Allowed() {
		t.Error("a role on a project did not open its environment")
	}
	if got := s.NextExpiry(now); !got.Equal(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("next expiry is %s", got)
	}
}

// Every kind of identity, in each stage, at the resources of each stage: with
// every role there is, only the diagonal opens.
func TestOnlyTheDiagonalOfStagesOpens(t *testing.T) {
	stages := []string{"testing", "staging", "production"}
	s := compile(t, `
roles:
  everything: {actions: ["*"], resources: ["*"], reason: the matrix, expires: 2099-01-01}
bindings:
  - {role: everything, subjects: [human:h, machine:m, {stage: testing}, {stage: staging}, {stage: production}], stages: [testing, staging, production], reason: x, expires: 2099-01-01}
protected: []
`, `permit (principal, action, resource);`)
	for _, action := range grantable() {
		if !isle.Staged(action.Resource) {
			continue
		}
		for _, kind := range []isle.ActorKind{isle.Human, isle.Machine, isle.Workload} {
			for _, from := range append(stages, "") {
				for _, to := range append(stages, "") {
					q := Query{Action: action.Action, Resource: isle.Resource{Kind: action.Resource, Name: "x", Stage: to}, Now: now}
					switch kind {
					case isle.Workload:
						q.Actor, q.Place = isle.Actor{Kind: kind, Name: "shop@" + from}, Place{"shop", from, "shop", "web"}
						q.Stage = to // what a session would say counts for nothing
					default:
						q.Actor, q.Stage = isle.Actor{Kind: kind, Name: string(kind[0])}, from
					}
					want := from == to && from != ""
					if a := s.Decide(q); a.Allowed() != want {
						t.Errorf("%s of %q %s in %q: %s by %s", kind, from, action.Action, to, a.Decision, a.Rule)
					}
				}
			}
		}
	}
}

func TestAForbidThatCannotBeEvaluatedForbids(t *testing.T) {
	s := compile(t, team, `@id("broken") forbid (principal, action, resource) when { resource.nothing == 1 };`)
	a := s.Decide(ask(t, "human:root", "environment:logs", "environment:shop"))
	if a.Allowed() || a.Rule != "cedar broken, which cannot be evaluated" || !a.Final {
		t.Fatalf("%+v", a)
	}
}

func TestAForbidWinsWhereverItStands(t *testing.T) {
	for _, texts := range [][]string{
		{team, `@id("no-shell") forbid (principal in Group::"devs", action == Action::"environment:exec", resource);`},
		{`@id("no-shell") forbid (principal in Group::"devs", action == Action::"environment:exec", resource in Stage::"testing");`, team},
	} {
		s := compile(t, texts...)
		if a := s.Decide(ask(t, "group:devs", "environment:exec", "environment:shop")); a.Allowed() || a.Rule != "cedar no-shell" {
			t.Errorf("%+v", a)
		}
		if a := s.Decide(ask(t, "human:lead", "environment:exec", "environment:shop")); !a.Allowed() {
			t.Errorf("%+v", a)
		}
	}
}

func TestWhatWaitsForAHumanIsHeld(t *testing.T) {
	s := compile(t, team, `
approvals:
  - {actions: [environment:exec], resources: ["environment:shop@production"], approvers: [role:approver], timeout: 15m, valid_for: 10m, uses: 1}
`)
	if a := s.Decide(ask(t, "human:oncall", "environment:exec", "environment:shop@production")); a.Decision != isle.Hold {
		t.Errorf("%+v", a)
	}
	if a := s.Decide(ask(t, "human:lead", "environment:exec", "environment:shop@production")); a.Decision != isle.Deny {
		t.Errorf("what is not granted waits for nobody: %+v", a)
	}
}

// The index must not change what is decided: beside it, Cedar evaluates all.
func TestTheIndexDecidesAsCedarEvaluatingAll(t *testing.T) {
	s := compile(t, team, `
@id("a") permit (principal is Human in Group::"devs", action, resource is Environment in Stage::"staging") when { resource.name like "shop*" };
@id("b") forbid (principal == Human::"lead", action in [Action::"environment:exec"], resource == Environment::"shop@staging");
@id("c") permit (principal, action == Action::"audit:read", resource is Audit) when { principal in Role::"developer" };
@id("d") forbid (principal in Role::"developer", action, resource in Name::"environment:secret");
`)
	for _, who := range []string{"human:root", "human:lead", "group:devs", "human:bob", "machine:ci", "human:pat", "human:pre", "workload:shop/testing/shop", "workload:shop/production/x"} {
		for _, a := range grantable() {
			for _, name := range []string{"shop", "shop-x", "secret", "api.example.com:443"} {
				for _, stage := range []string{"testing", "staging", "production", ""} {
					q := Query{Now: now, Action: a.Action, Stage: stage, Resource: isle.Resource{Kind: a.Resource, Name: name}}
					if isle.Staged(a.Resource) {
						q.Resource.Stage = stage
					}
					if err := ParseActor(who, &q); err != nil {
						t.Fatal(err)
					}
					c := s.prepare(q, nil)
					c.rules = s.rules
					all, _ := cedar.Authorize(c, c, cedar.Request{Principal: c.principal.UID, Action: uid(typeAction, string(q.Action)), Resource: c.resource.UID, Context: c.context})
					if got := s.Decide(q); got.Allowed() != (all == cedar.Allow) {
						t.Errorf("%s %s %s: %s by %s, and Cedar says %v", who, a.Action, q.Resource, got.Decision, got.Rule, all)
					}
				}
			}
		}
	}
}

func TestExplainNamesTheLeastGrantThatWouldDo(t *testing.T) {
	s := compile(t, team)
	e := s.Explain(ask(t, "human:ann", "environment:logs", "environment:shop"))
	if e.Allowed() || len(e.Grants) == 0 || e.Grants[0].Binding != "{role: log-reader, subjects: [human:ann], stages: [testing]}" {
		t.Errorf("%+v", e)
	}
	for _, g := range e.Grants { // each of them does what it says
		if !compile(t, strings.TrimRight(team, "\n")+"\n  - "+g.Binding+"\n").Decide(ask(t, "human:ann", "environment:logs", "environment:shop")).Allowed() {
			t.Errorf("%s does not help", g.Binding)
		}
	}
	e = s.Explain(ask(t, "workload:shop/testing/shop", "egress:connect", "egress:other.example:80"))
	if len(e.Grants) == 0 || e.Grants[0].New == "" {
		t.Fatalf("%+v", e)
	}
	text := strings.Replace(strings.TrimRight(team, "\n"), "roles:\n", "roles:\n  "+e.Grants[0].New+"\n", 1) + "\n  - " + e.Grants[0].Binding + "\n"
	if !compile(t, text).Decide(ask(t, "workload:shop/testing/shop", "egress:connect", "egress:other.example:80")).Allowed() {
		t.Errorf("%+v does not help", e.Grants[0])
	}
	if e = s.Explain(ask(t, "human:root", "environment:launch", "environment:shop@production")); !e.Final || len(e.Grants) > 0 || !strings.Contains(e.Message, "releases") {
		t.Errorf("%+v", e)
	}
}

func TestDiffSaysWhoGainsAndLosesWhat(t *testing.T) {
	before := compile(t, Default)
	after := compile(t, strings.Replace(Default, "bindings:", "bindings:\n  - {role: auditor, subjects: [human:aud]}", 1))
	var got []string
	for _, c := range before.Diff(after, now) {
		got = append(got, c.String())
	}
	want := []string{"human:aud gains environment:read, snapshot:read, release:read, environment:list, audit:read, policy:read, server:read, session:read, recording:read on everything"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if back := after.Diff(before, now); len(back) != 1 || !strings.HasPrefix(back[0].String(), "human:aud loses ") {
		t.Errorf("%v", back)
	}
	if d := before.Diff(before, now); len(d) > 0 {
		t.Errorf("%v", d)
	}
}

func TestAPolicyWithoutAKeeperIsSeen(t *testing.T) {
	if k := compile(t, Default).Keepers(now); !slices.Equal(k, []string{"human:root"}) {
		t.Errorf("%v", k)
	}
	if k := compile(t, "{}").Keepers(now); len(k) > 0 {
		t.Errorf("%v", k)
	}
	if k := compile(t, "bindings: [{role: admin, subjects: [group:ops]}]").Keepers(now); !slices.Equal(k, []string{"group:ops"}) {
		t.Errorf("%v", k)
	}
	if k := compile(t, Default, `forbid (principal, action == Action::"policy:apply", resource);`).Keepers(now); len(k) > 0 {
		t.Errorf("%v", k)
	}
}

func TestReplayTellsWhatIsOtherwise(t *testing.T) {
	cases, err := ParseCases("cases.yaml", []byte(`
- {actor: human:root, action: environment:launch, resource: "environment:shop@testing", expect: allow}
- {actor: group:devs, action: environment:exec, resource: "environment:shop@production", expect: allow}
- {actor: {project: shop, stage: testing, name: shop}, action: egress:connect, resource: "egress:a.example:443@testing", expect: allow, rule: role open-egress}
- {actor: human:root, action: environment:logs, resource: "environment:shop@testing", stage: staging, expect: deny}
`))
	if err != nil {
		t.Fatal(err)
	}
	failures := compile(t, Default).Replay(cases, now)
	if len(failures) != 1 || failures[0].String() != "cases.yaml:3:3: human:member-of-devs environment:exec environment:shop@production: want allow, got deny by default: nothing grants it" {
		t.Fatalf("%v", failures)
	}
}

func TestAPromotionIntoAProtectedStageTakesABindingThatNamesIt(t *testing.T) {
	s := compile(t, Default)
	for resource, want := range map[string]bool{"release:shop@testing": true, "release:shop@staging": true, "release:shop@production": false} {
		for _, action := range []string{"release:promote", "release:skip"} {
			if got := s.Decide(ask(t, "human:root", action, resource)).Allowed(); got != want {
				t.Errorf("%s %s: %v", action, resource, got)
			}
		}
	}
	s = compile(t, strings.Replace(Default, "bindings:", "bindings:\n  - {role: admin, subjects: [human:root], stages: [production]}\n  - {role: developer, subjects: [human:dev]}", 1))
	if !s.Decide(ask(t, "human:root", "release:promote", "release:shop@production")).Allowed() {
		t.Error("a binding that names the stage does not do")
	}
	q := ask(t, "human:root", "release:promote", "release:shop@production")
	q.Stage = "testing"
	if s.Decide(q).Allowed() {
		t.Error("a session of testing promotes to production")
	}
	s2 := compile(t, "roles:\n  keeper: {actions: [release:promote, release:read], resources: [release:shop]}\nbindings:\n  - {role: keeper, subjects: [human:k]}\n")
	for what, want := range map[[2]string]bool{
		{"release:promote", "release:shop@testing"}: true, {"release:read", "release:shop"}: true,
		{"release:promote", "release:shop@production"}: false, {"release:promote", "release:bank@testing"}: false,
	} {
		if got := s2.Decide(ask(t, "human:k", what[0], what[1])).Allowed(); got != want {
			t.Errorf("a role on release:shop, %s: %v", what, got)
		}
	}
	if s.Decide(ask(t, "human:dev", "release:promote", "release:shop@testing")).Allowed() || !s.Decide(ask(t, "human:dev", "release:create", "release:shop")).Allowed() {
		t.Error("a developer creates releases, and promotes none")
	}
}

func TestTheOrderOfStagesIsInOneDocument(t *testing.T) {
	if got := compile(t, Default).Stages(); !slices.Equal(got, []string{"testing", "staging", "production"}) {
		t.Error(got)
	}
	if got := compile(t, "stages: [testing, production]\n").Stages(); !slices.Equal(got, []string{"testing", "production"}) {
		t.Error(got)
	}
	for _, wrong := range []string{"stages: []\n", "stages: [a, a]\n", "stages: ['*']\n"} {
		if _, err := Compile(Document{Name: "p", Format: YAML, Body: []byte(wrong)}); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: %v", wrong, err)
		}
	}
	two := []Document{{Name: "a", Format: YAML, Body: []byte("stages: [a, b]\n")}, {Name: "b", Format: YAML, Body: []byte("stages: [b, a]\n")}}
	if _, err := Compile(two...); err == nil || !strings.Contains(err.Error(), "another document") {
		t.Error(err)
	}
}
