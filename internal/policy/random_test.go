package policy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	cedar "github.com/cedar-policy/cedar-go"

	"isle"
)

// vocabulary is what random policies and questions are made of: few words, so that they
// meet.
var vocabulary = struct{ names, projects, stages, people, groups, services []string }{
	names: []string{"shop", "shop-a", "shop-ab", "b"}, projects: []string{"shop", "other"}, stages: []string{"testing", "staging", "production"},
	people: []string{"ann", "bob", "root"}, groups: []string{"devs", "ops"}, services: []string{"web", "db"},
}

func pick(r *rand.Rand, list ...string) string { return list[r.IntN(len(list))] }

func some(r *rand.Rand, list []string) []string {
	var out []string
	for _, s := range list {
		if r.IntN(3) == 0 {
			out = append(out, s)
		}
	}
	if out == nil {
		out = []string{pick(r, list...)}
	}
	return out
}

var asked = []string{"environment:exec", "environment:logs", "environment:launch", "volume:delete", "egress:connect", "audit:read", "policy:apply", "image:build", "postgres:select"}

func randomResource(r *rand.Rand) string {
	stage := pick(r, "", "@testing", "@staging", "@production")
	switch r.IntN(8) {
	case 0:
		return fmt.Sprintf("{project: %s}", pick(r, vocabulary.projects...))
	case 1:
		return fmt.Sprintf("{project: %s, stage: %s}", pick(r, vocabulary.projects...), pick(r, vocabulary.stages...))
	case 2:
		return `"egress:` + pick(r, "*.example.com:443", "a.example.com:443") + stage + `"`
	case 3:
		return `"volume:` + pick(r, append(vocabulary.names, "shop-*", "*")...) + stage + `"`
	case 4:
		return pick(r, `"audit:log"`, `"policy:policy"`, `"image:*"`, `"image:shop"`, `"*"`)
	case 5:
		return `"connection:` + pick(r, "orders", "*") + `"`
	}
	return `"environment:` + pick(r, append(vocabulary.names, "shop-*", "*", "*-a*", "s*p")...) + stage + `"`
}

func randomSubject(r *rand.Rand) string {
	switch r.IntN(4) {
	case 0:
		return "group:" + pick(r, append(vocabulary.groups, "*")...)
	case 1:
		return "machine:" + pick(r, "ci", "*")
	case 2:
		s := "{stage: " + pick(r, vocabulary.stages...)
		if r.IntN(2) == 0 {
			s += ", project: " + pick(r, append(vocabulary.projects, `"*"`)...)
		}
		if r.IntN(3) == 0 {
			s += ", name: " + pick(r, append(vocabulary.names, `"*"`)...)
		}
		if r.IntN(4) == 0 {
			s += ", service: " + pick(r, vocabulary.services...)
		}
		return s + "}"
	}
	return "human:" + pick(r, append(vocabulary.people, "*")...)
}

// randomEnd is of a role or binding: past, now, to come.
func randomEnd(r *rand.Rand) string {
	return pick(r, "2026-05-30", "2026-06-01T12:00:00Z", "2026-06-01T12:00:01Z", "2030-01-01", "2030-01-01")
}

func randomYAML(r *rand.Rand) string {
	var b strings.Builder
	b.WriteString("connections:\n  orders: {kind: postgres, address: \"db:5432\", stage: staging}\nroles:\n")
	n := 2 + r.IntN(4)
	for i := range n {
		actions := some(r, append(asked, "environment:*", "*"))
		var resources []string
		for range 1 + r.IntN(3) {
			resources = append(resources, randomResource(r))
		}
		// So that every action has something to be done to.
		resources = append(resources, `"environment:zz"`, `"volume:zz"`, `"egress:zz.example:1"`, `"audit:zz"`, `"policy:zz"`, `"image:zz"`, `"connection:orders"`, `"server:zz"`)
		fmt.Fprintf(&b, "  r%d: {actions: [%s], resources: [%s], reason: x, expires: %s}\n", i, quoted(actions), strings.Join(resources, ", "), randomEnd(r))
	}
	b.WriteString("bindings:\n")
	for range 1 + r.IntN(6) {
		role := pick(r, "admin", "developer", "auditor", "open-egress", fmt.Sprintf("r%d", r.IntN(n)), fmt.Sprintf("r%d", r.IntN(n)))
		var subjects []string
		for range 1 + r.IntN(2) {
			subjects = append(subjects, randomSubject(r))
		}
		stages := ""
		if r.IntN(2) == 0 {
			stages = ", stages: [" + strings.Join(some(r, vocabulary.stages), ", ") + "]"
		}
		fmt.Fprintf(&b, "  - {role: %s, subjects: [%s]%s, reason: x, expires: %s}\n", role, strings.Join(subjects, ", "), stages, randomEnd(r))
	}
	switch r.IntN(3) {
	case 0:
		b.WriteString("protected: [" + strings.Join(some(r, vocabulary.stages), ", ") + "]\n")
	case 1:
		b.WriteString("protected: []\n")
	}
	return b.String()
}

func quoted(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = `"` + s + `"`
	}
	return strings.Join(out, ", ")
}

func randomCedar(r *rand.Rand) string {
	var b strings.Builder
	for i := range 1 + r.IntN(5) {
		principal := pick(r, "principal", "principal", `principal == Human::"ann"`, `principal in Group::"devs"`, `principal is Human`, `principal is Human in Group::"ops"`,
			`principal in Role::"r0"`, `principal in RoleInStage::"r1"`, `principal is Workload in Project::"shop"`, `principal in Project::"shop@testing"`, `principal in Stage::"staging"`,
			`principal == Machine::"ci"`, `principal == Workload::"shop/testing/shop/web"`)
		action := pick(r, "action", "action", `action == Action::"environment:exec"`, `action in [Action::"environment:logs", Action::"volume:delete"]`, `action in Action::"audit:read"`, `action in []`)
		resource := pick(r, "resource", "resource", `resource == Environment::"shop@testing"`, `resource is Environment`, `resource is Volume in Stage::"staging"`, `resource in Project::"shop"`,
			`resource in Project::"shop@production"`, `resource in Name::"environment:shop-a"`, `resource is Environment in Name::"environment:b"`, `resource == Audit::"log"`, `resource in Stage::"production"`)
		when := pick(r, "", "", `when { resource.name like "shop*" }`, `when { resource.protected }`, `unless { context.stage == "testing" }`, `when { resource.nothing == 1 }`,
			`when { principal has project && resource has project && principal.project == resource.project }`, `when { context.now < datetime("2026-06-01T12:00:01Z") }`)
		fmt.Fprintf(&b, "@id(\"%d\") %s (%s, %s, %s) %s;\n", i, pick(r, "permit", "permit", "forbid"), principal, action, resource, when)
	}
	return b.String()
}

func randomQuery(r *rand.Rand) Query {
	q := Query{Now: now.Add(time.Duration(r.IntN(3)-1) * time.Second), Action: isle.Action(pick(r, asked...))}
	switch r.IntN(4) {
	case 0:
		q.Actor = isle.Actor{Kind: isle.Machine, Name: pick(r, "ci", "cd")}
	case 1:
		q.Place = Place{pick(r, vocabulary.projects...), pick(r, vocabulary.stages...), pick(r, vocabulary.names...), pick(r, append(vocabulary.services, "")...)}
		q.Actor = isle.Actor{Kind: isle.Workload, Name: q.Place.Environment + "@" + q.Place.Stage}
	default:
		q.Actor = isle.Actor{Kind: isle.Human, Name: pick(r, vocabulary.people...)}
		if r.IntN(2) == 0 {
			q.Groups = some(r, append(vocabulary.groups, "users"))
		}
	}
	for _, i := range isle.Actions() {
		if i.Action == q.Action {
			q.Resource.Kind = i.Resource
		}
	}
	switch q.Resource.Kind {
	case "audit":
		q.Resource.Name = "log"
	case "policy":
		q.Resource.Name = "policy"
	case "egress":
		q.Resource.Name = pick(r, "a.example.com:443", "evil.example:443", "xexample.com:443")
	case "connection":
		q.Resource.Name, q.Resource.Stage = pick(r, "orders", "unknown"), pick(r, "", "staging")
	default:
		q.Resource.Name = pick(r, vocabulary.names...)
	}
	if isle.Staged(q.Resource.Kind) && q.Resource.Kind != "connection" {
		q.Resource.Stage = pick(r, vocabulary.stages...)
	}
	if q.Resource.Kind == "environment" || q.Resource.Kind == "volume" || q.Resource.Kind == "image" {
		q.Project = pick(r, append(vocabulary.projects, "")...)
	}
	q.Stage = q.Resource.Stage
	if r.IntN(5) == 0 {
		q.Stage = pick(r, append(vocabulary.stages, "")...)
	}
	q.Release = r.IntN(8) == 0
	return q
}

// The index leaves out what cannot bear on a decision, and nothing else: over
// random policies and questions, Cedar evaluating every policy decides the same.
func TestTheIndexMissesNothingInRandomPolicies(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 1))
		s, err := Compile(Document{Name: "main", Format: YAML, Body: []byte(randomYAML(r))}, Document{Name: "hand", Format: Cedar, Body: []byte(randomCedar(r))})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for range 100 {
			q := randomQuery(r)
			got := s.Decide(q)
			if q.Resource.Kind == "connection" && q.Resource.Stage == "" {
				q.Resource.Stage = s.connections[q.Resource.Name].Stage
			}
			c := s.prepare(q, nil)
			c.rules = s.rules
			all, d := cedar.Authorize(c, c, cedar.Request{Principal: c.principal.UID, Action: uid(typeAction, string(q.Action)), Resource: c.resource.UID, Context: c.context})
			want := all == cedar.Allow
			for _, e := range d.Errors { // stricter than Cedar
				if r := s.byID[e.PolicyID]; r.policy.Effect() == cedar.Forbid {
					want = false
				}
			}
			if got.Allowed() != want {
				t.Fatalf("seed %d: %s %s %s: %s by %s, and Cedar says %v\n%s", seed, q.Actor, q.Action, q.Resource, got.Decision, got.Rule, all, s.CedarText())
			}
		}
	}
}

// What docs/policy.md says of YAML, written down a second time and without
// Cedar, decides the same over random policies and questions.
func TestRandomPoliciesMeanWhatTheReferenceSays(t *testing.T) {
	allowed := 0
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 2))
		text := randomYAML(r)
		f, err := Parse("main.yaml", []byte(text))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		s, err := Compile(Document{Name: "main", Format: YAML, Body: []byte(text)})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for range 100 {
			q := randomQuery(r)
			got, want := s.Decide(q), naive(f, q)
			if got.Allowed() != want {
				t.Fatalf("seed %d: %s %v %v %s %s of %q in a session in %q at %s: %s by %s, want allowed %v\n%s", seed, q.Actor, q.Groups, q.Place, q.Action, q.Resource, q.Project, q.Stage, q.Now, got.Decision, got.Rule, want, text)
			}
			if want {
				allowed++
			}
		}
	}
	if allowed < 1000 {
		t.Errorf("only %d were allowed: the test shows little", allowed)
	}
}

// naive decides by the words of the reference.
func naive(f File, q Query) bool {
	if q.Resource.Kind == "connection" && q.Resource.Stage == "" {
		for _, c := range f.Connections {
			if c.Name == q.Resource.Name {
				q.Resource.Stage = c.Stage
			}
		}
	}
	protected := f.Protected
	if protected == nil {
		protected = []string{"production"}
	}
	inProtected := slices.Contains(protected, q.Resource.Stage)
	staged := isle.Staged(q.Resource.Kind)
	switch {
	case q.Actor.Kind == isle.Workload && staged && q.Place.Stage != q.Resource.Stage:
		return false
	case q.Actor.Kind != isle.Workload && staged && (q.Stage == "" || q.Stage != q.Resource.Stage):
		return false
	case q.Action == isle.ActionEnvironmentLaunch && inProtected && !q.Release:
		return false
	}
	info := isle.ActionInfo{}
	for _, i := range isle.Actions() {
		if i.Action == q.Action {
			info = i
		}
	}
	roles := slices.Concat(builtinRoles(), f.Roles)
	for _, b := range f.Bindings {
		if !b.Expires.After(q.Now) || !slices.ContainsFunc(b.Subjects, func(s Subject) bool { return isSubject(s, q) }) {
			continue
		}
		if len(b.Stages) > 0 && q.Resource.Stage != "" && !slices.Contains(b.Stages, q.Resource.Stage) {
			continue
		}
		role := roles[slices.IndexFunc(roles, func(r Role) bool { return r.Name == b.Role })]
		if !role.Builtin && !role.Expires.After(q.Now) || !slices.Contains(role.Actions, q.Action) {
			continue
		}
		for _, p := range role.Resources {
			if p.Kind != "*" && (p.Kind != q.Resource.Kind || p.Stage != "" && p.Stage != q.Resource.Stage) {
				continue
			}
			if p.Kind != "*" && (p.Project != "" && p.Project != q.Project || p.Project == "" && !named(p.Name, q.Resource.Name)) {
				continue
			}
			if info.Inside && inProtected && p.Stage == "" && q.Actor.Kind != isle.Workload && !slices.Contains(b.Stages, q.Resource.Stage) {
				continue
			}
			return true
		}
	}
	return false
}

func isSubject(s Subject, q Query) bool {
	is := func(want, have string) bool { return want == "" || want == "*" || want == have }
	switch s.Kind {
	case "group":
		return q.Actor.Kind == isle.Human && (s.Name == "*" && len(q.Groups) > 0 || slices.Contains(q.Groups, s.Name))
	case "workload":
		return q.Actor.Kind == isle.Workload && is(s.Project, q.Place.Project) && is(s.Stage, q.Place.Stage) && is(s.Environment, q.Place.Environment) && is(s.Service, q.Place.Service)
	}
	return string(q.Actor.Kind) == s.Kind && is(s.Name, q.Actor.Name)
}

// named matches letter by letter, a star against any number of them.
func named(pattern, name string) bool {
	switch {
	case pattern == "":
		return name == ""
	case pattern[0] == '*':
		return named(pattern[1:], name) || name != "" && named(pattern, name[1:])
	}
	return name != "" && pattern[0] == name[0] && named(pattern[1:], name[1:])
}

// Approvals match resources without Cedar: by the same words.
func TestAPatternHoldsWhatItGrants(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 3))
		var letters []string
		for range 2 {
			var b strings.Builder
			for range r.IntN(8) {
				b.WriteString(pick(r, "a", "b", "*"))
			}
			letters = append(letters, b.String())
		}
		pattern, name := letters[0], strings.ReplaceAll(letters[1], "*", "a")
		if got, want := glob(pattern, name), named(pattern, name); got != want {
			t.Errorf("%q %q: %v, want %v", pattern, name, got, want)
		}
	}
}
