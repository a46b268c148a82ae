package policy

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	cedar "github.com/cedar-policy/cedar-go"

	"isle"
)

// A Change is what one subject gains or loses when a set replaces another.
type Change struct {
	Subject string // "group:devs"; "everyone" of hand-written Cedar
	Gains   bool
	What    string // "environment:exec, environment:logs on * in testing"
}

// String is the change for people.
func (c Change) String() string {
	if c.Gains {
		return c.Subject + " gains " + c.What
	}
	return c.Subject + " loses " + c.What
}

// Diff says who gains and loses what when next replaces s. It compares what
// bindings grant by then; of hand-written Cedar it says which policies come and go.
func (s *Set) Diff(next *Set, now time.Time) (out []Change) {
	before, after := s.bySubject(now), next.bySubject(now)
	subjects := map[string]bool{}
	for who := range before {
		subjects[who] = true
	}
	for who := range after {
		subjects[who] = true
	}
	for _, who := range slices.Sorted(maps.Keys(subjects)) { // one at a time: a policy may say much
		was, is := granted(before[who]), granted(after[who])
		out = append(out, compare(who, true, is, was)...)
		out = append(out, compare(who, false, was, is)...)
	}
	was, is := s.handWritten(), next.handWritten()
	for _, id := range slices.Sorted(maps.Keys(is)) {
		if was[id] != is[id] {
			out = append(out, is[id].change(id, true))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(was)) {
		if was[id] != is[id] {
			out = append(out, was[id].change(id, false))
		}
	}
	out = append(out, s.connectionsTo(next)...)
	out = append(out, s.gatesTo(next)...)
	out = append(out, s.keepsTo(next)...)
	if !slices.Equal(s.stages, next.stages) {
		out = append(out, Change{"everyone", true, "promotion in the order " + strings.Join(next.stages, ", ") + ", before it was " + strings.Join(s.stages, ", ")})
	}
	for _, stage := range next.protected {
		if !s.Protected(stage) {
			out = append(out, Change{"everyone", false, "launch and entry in stage " + stage + ", which becomes protected"})
		}
	}
	for _, stage := range s.protected {
		if !next.Protected(stage) {
			out = append(out, Change{"everyone", true, "launch and entry in stage " + stage + " as roles say: it is protected no more"})
		}
	}
	for _, stage := range next.public {
		if !s.Public(stage) {
			out = append(out, Change{"everyone", true, "to connect to the published ports of stage " + stage + ", which becomes public"})
		}
	}
	for _, stage := range s.public {
		if !next.Public(stage) {
			out = append(out, Change{"everyone", false, "to connect to the published ports of stage " + stage + ", which is public no more"})
		}
	}
	return out
}

// connectionsTo says which connections come, go and change. Who may open one is
// what roles say; what it leads to and what it refuses is everyone's.
func (s *Set) connectionsTo(next *Set) (out []Change) {
	for _, c := range next.Connections() {
		was, ok := s.connections[c.Name]
		what := "connection " + c.Name + "@" + c.Stage + " to " + c.target()
		switch {
		case !ok:
			out = append(out, Change{"everyone", true, what})
		case !reflect.DeepEqual(was.plain(), c.plain()):
			out = append(out, Change{"everyone", true, what + " as it is written now"})
		}
	}
	for _, c := range s.Connections() {
		if _, ok := next.connections[c.Name]; !ok {
			out = append(out, Change{"everyone", false, "connection " + c.Name + "@" + c.Stage + " to " + c.target()})
		}
	}
	return out
}

// target is where a connection leads, for people.
func (c Connection) target() string {
	if c.Address != "" {
		return c.Address
	}
	return "service " + c.Service + " of environment " + c.Environment
}

// plain is the connection without the places where it stands in files.
func (c Connection) plain() Connection {
	c.At = Position{}
	c.Rules, c.Mask = slices.Clone(c.Rules), slices.Clone(c.Mask)
	for i := range c.Rules {
		c.Rules[i].At = Position{}
	}
	for i := range c.Mask {
		c.Mask[i].At = Position{}
	}
	return c
}

// bySubject is by which bindings that hold at a time a subject has roles.
func (s *Set) bySubject(now time.Time) map[string][]member {
	out := map[string][]member{}
	for _, members := range s.members {
		for _, m := range members {
			if m.active(now) {
				who := m.subject.String()
				out[who] = append(out[who], m)
			}
		}
	}
	return out
}

// granted is, by where, which actions a subject's memberships grant.
func granted(members []member) map[string]map[isle.Action]bool {
	out := map[string]map[isle.Action]bool{}
	for _, m := range members {
		stages := m.binding.Stages
		if len(stages) == 0 {
			stages = []string{""}
		}
		for _, p := range m.role.Resources {
			for _, stage := range stages {
				where := p.String()
				if where == "*" {
					where = "everything"
				}
				if stage != "" {
					where += " in " + stage
				}
				if out[where] == nil {
					out[where] = map[isle.Action]bool{}
				}
				for _, a := range m.role.Actions {
					out[where][a] = true
				}
			}
		}
	}
	return out
}

// compare lists what a has and b has not.
func compare(who string, gains bool, a, b map[string]map[isle.Action]bool) (out []Change) {
	for _, where := range slices.Sorted(maps.Keys(a)) {
		var actions []string
		for _, i := range isle.Actions() {
			if a[where][i.Action] && !b[where][i.Action] {
				actions = append(actions, string(i.Action))
			}
		}
		if len(actions) > 0 {
			out = append(out, Change{who, gains, strings.Join(actions, ", ") + " on " + where})
		}
	}
	return out
}

func (s *Set) handWritten() map[string]written {
	out := map[string]written{}
	for _, r := range s.rules {
		if strings.HasPrefix(string(r.id), "cedar ") {
			out[string(r.id)] = written{string(r.policy.MarshalCedar()), r.policy.Effect() == cedar.Forbid}
		}
	}
	return out
}

// A written policy is one by hand.
type written struct {
	text   string
	forbid bool
}

// change is what its coming, or going, is to everyone: what a forbid is about is
// lost as it comes.
func (w written) change(id string, comes bool) Change {
	if w.forbid {
		return Change{"everyone", !comes, "what policy " + id + " forbids"}
	}
	return Change{"everyone", comes, "policy " + id}
}

// The resource of policy:read and policy:apply.
var policyResource = isle.Resource{Kind: "policy", Name: "policy"}

// Keepers are the subjects who may change the policy: people, groups and
// machines that a binding names. A policy without any locks everyone out.
func (s *Set) Keepers(now time.Time) (out []string) {
	for key, members := range s.members {
		if key.Kind == "workload" || key.Name == "*" {
			continue
		}
		q := Query{Action: isle.ActionPolicyApply, Resource: policyResource, Now: now}
		switch key.Kind {
		case "group":
			q.Actor, q.Groups = isle.Actor{Kind: isle.Human, Name: "a member of " + key.Name}, []string{key.Name}
		default:
			q.Actor = isle.Actor{Kind: isle.ActorKind(key.Kind), Name: key.Name}
		}
		if len(members) > 0 && s.Decide(q).Allowed() {
			out = append(out, key.String())
		}
	}
	slices.Sort(out)
	return out
}

// Loose are the bindings that name stages and give what no stage limits: who may
// change the policy in one stage may give themselves every other.
func (s *Set) Loose() (out []string) {
	for i := range s.bindings {
		b := &s.bindings[i]
		r := s.roles[b.Role]
		if len(b.Stages) == 0 || !slices.Contains(r.Actions, isle.ActionPolicyApply) ||
			!slices.ContainsFunc(r.Resources, func(p Pattern) bool { return s.matches(p, Query{Resource: policyResource}) }) {
			continue
		}
		for _, who := range b.Subjects {
			out = append(out, fmt.Sprintf("%s, bound to %s in %s", r.Name, who, strings.Join(b.Stages, ", ")))
		}
	}
	return out
}

// Summary counts what a set is made of, for a log.
func (s *Set) Summary() string {
	return fmt.Sprintf("%d roles, %d bindings, %d policies", len(s.roles), len(s.bindings), len(s.rules))
}
