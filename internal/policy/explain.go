package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"

	"isle"
)

// An Explanation is an answer with what it came from and what would change it.
type Explanation struct {
	Answer
	// Roles are those that the actor has for the resource, with where they were
	// bound: "developer, bound to group:devs (main.yaml:12:5)".
	Roles []string
	// Evaluated is how many policies bore on it, and Total how many there are.
	Evaluated, Total int
	// Grants are bindings to ask for, each of which would allow it, the least
	// first; empty where it is allowed or nothing helps.
	Grants []Grant
}

// A Grant is what one would ask for.
type Grant struct {
	Role    string
	Binding string // as YAML: "{role: developer, subjects: [human:ann], stages: [testing]}"
	New     string // the role as YAML, where there is none yet
}

// Explain answers a query and says why and what would change it.
func (s *Set) Explain(q Query) Explanation {
	c := s.prepare(q, nil)
	e := Explanation{Answer: s.Decide(q), Evaluated: len(c.rules), Total: len(s.rules)}
	for _, m := range c.held {
		e.Roles = append(e.Roles, fmt.Sprintf("%s, bound to %s (%s)", m.role.Name, m.subject, m.binding.At))
	}
	if !e.Allowed() && !e.Final && e.Decision != isle.Hold {
		e.Grants = s.grants(q)
	}
	return e
}

// Grant is the least grant that would allow a query, "" if there is none.
func (s *Set) Grant(q Query) string {
	if g := s.grants(q); len(g) > 0 {
		return g[0].Binding
	}
	return ""
}

// grants lists what would allow a query that is refused for want of a grant.
func (s *Set) grants(q Query) (out []Grant) {
	subject := q.subject()
	stages := ""
	if q.Resource.Stage != "" {
		stages = ", stages: [" + q.Resource.Stage + "]"
	}
	var fit []*Role
	for _, name := range slices.Sorted(maps.Keys(s.roles)) {
		r := s.roles[name]
		if !r.Expires.IsZero() && !q.Now.Before(r.Expires) || !slices.Contains(r.Actions, q.Action) ||
			!slices.ContainsFunc(r.Resources, func(p Pattern) bool { return s.matches(p, q) }) {
			continue
		}
		if a := s.decide(q, []string{name}); a.Allowed() || a.Decision == isle.Hold {
			fit = append(fit, r)
		}
	}
	slices.SortStableFunc(fit, func(a, b *Role) int { return cmp.Compare(a.size(), b.size()) })
	for _, r := range fit {
		out = append(out, Grant{Role: r.Name, Binding: fmt.Sprintf("{role: %s, subjects: [%s]%s}", r.Name, subject, stages)})
	}
	// A role of its own is less than a built-in one that has more.
	if len(fit) == 0 || q.Actor.Kind == isle.Workload && fit[0].Builtin {
		name := isle.Slug(strings.ReplaceAll(string(q.Action), ":", "-") + "-" + q.Resource.Name)
		g := Grant{
			Role:    name,
			Binding: fmt.Sprintf("{role: %s, subjects: [%s]%s}", name, subject, stages),
			New:     fmt.Sprintf("%s: {actions: [%s], resources: [%q]}", name, q.Action, q.Resource.String()),
		}
		out = slices.Insert(out, 0, g)
	}
	return out
}

// size orders roles by how much they give.
func (r *Role) size() int {
	n := len(r.Actions)
	for _, p := range r.Resources {
		if p.wild() {
			n += 100
		}
	}
	return n
}

// subject is the actor of a query as a binding names it.
func (q Query) subject() Subject {
	if q.Actor.Kind == isle.Workload {
		return Subject{Kind: "workload", Project: q.Place.Project, Stage: q.Place.Stage}
	}
	return Subject{Kind: string(q.Actor.Kind), Name: q.Actor.Name}
}

// A RoleInfo is a role for people to read.
type RoleInfo struct {
	Name      string
	Does      string
	Actions   []string
	Resources []string
	Subjects  []string // with stages and end: "group:devs in testing"
	Builtin   bool
	At        string
}

// Roles lists every role and who has it, built-in ones first.
func (s *Set) Roles() (out []RoleInfo) {
	for _, name := range slices.Sorted(maps.Keys(s.roles)) {
		r := s.roles[name]
		i := RoleInfo{Name: name, Does: r.Does, Builtin: r.Builtin, At: r.At.String()}
		for _, a := range r.Actions {
			i.Actions = append(i.Actions, string(a))
		}
		for _, p := range r.Resources {
			i.Resources = append(i.Resources, p.String())
		}
		for _, b := range s.bindings {
			if b.Role != name {
				continue
			}
			for _, who := range b.Subjects {
				text := who.String()
				if len(b.Stages) > 0 {
					text += " in " + strings.Join(b.Stages, ", ")
				}
				if !b.Expires.IsZero() {
					text += " until " + b.Expires.Format("2006-01-02 15:04") + " UTC"
				}
				i.Subjects = append(i.Subjects, text)
			}
		}
		out = append(out, i)
	}
	slices.SortStableFunc(out, func(a, b RoleInfo) int {
		if a.Builtin == b.Builtin {
			return 0
		}
		if a.Builtin {
			return -1
		}
		return 1
	})
	return out
}

// CedarText is every policy of the set as Cedar: what really decides, beside
// the membership of principals in roles that bindings make.
func (s *Set) CedarText() []byte {
	var list cedar.PolicyList
	for _, r := range s.rules {
		list = append(list, r.policy)
	}
	return append(list.MarshalCedar(), '\n')
}
