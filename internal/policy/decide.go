package policy

import (
	"iter"
	"slices"
	"strings"
	"time"

	cedar "github.com/cedar-policy/cedar-go"

	"isle"
)

// noGrant is the rule of a refusal that nothing but the lack of a grant made.
const noGrant = "default: nothing grants it"

// Decide answers a query. Of the policies whose scope fits it evaluates every
// one, forbids and permits alike: a forbid that comes last counts as one that
// comes first. A forbid that cannot be evaluated forbids, which is stricter than
// Cedar, where it would be skipped.
func (s *Set) Decide(q Query) Answer {
	return s.decide(q, nil)
}

// decide is Decide with roles that the principal is supposed to have as well.
func (s *Set) decide(q Query, also []string) Answer {
	if q.Resource.Kind == "connection" && q.Resource.Stage == "" {
		q.Resource.Stage = s.connections[q.Resource.Name].Stage
	}
	c := s.prepare(q, also)
	decision, diagnostic := cedar.Authorize(c, c, cedar.Request{
		Principal: c.principal.UID, Action: uid(typeAction, string(q.Action)), Resource: c.resource.UID, Context: c.context,
	})
	a := Answer{Decision: isle.Deny, Rule: noGrant}
	for _, e := range diagnostic.Errors {
		r := s.byID[e.PolicyID]
		if r != nil && r.policy.Effect() == cedar.Forbid {
			name := string(e.PolicyID) + ", which cannot be evaluated"
			a.Because = append(a.Because, name)
			a.Final, a.Message = true, e.Message
		}
	}
	for _, reason := range diagnostic.Reasons {
		r := s.byID[reason.PolicyID]
		switch {
		case r == nil:
		case r.policy.Effect() == cedar.Forbid:
			if !a.Final || a.Message == "" {
				a.Message = r.message
			}
			a.Final = true
			a.Because = append(a.Because, string(r.id))
		case !a.Final:
			a.Because = append(a.Because, c.explain(r))
		}
	}
	if decision == cedar.Allow && !a.Final {
		a.Decision = isle.Allow
		s.judge(q, &a)
	}
	if len(a.Because) > 0 {
		a.Rule = a.Because[0]
	}
	return a
}

// matches reports whether a pattern means the resource of a query.
func (s *Set) matches(p Pattern, q Query) bool {
	if p.Kind != "*" && p.Kind != q.Resource.Kind || p.Stage != "" && p.Stage != q.Resource.Stage {
		return false
	}
	if p.Project != "" {
		return p.Project == "*" || p.Project == q.Project
	}
	return p.Name == "*" || glob(p.Name, q.Resource.Name)
}

// glob matches a name with "*" for any text.
func glob(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == name
	}
	name, ok := strings.CutPrefix(name, parts[0])
	if !ok {
		return false
	}
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(name, part)
		if i < 0 {
			return false
		}
		name = name[i+len(part):]
	}
	return strings.HasSuffix(name, parts[len(parts)-1])
}

// A candidacy is one query as Cedar sees it, and the policies that it could
// meet. It is the policies and the entities of one evaluation.
type candidacy struct {
	principal, resource cedar.Entity
	context             cedar.Record
	rules               []*rule
	held                []member         // by which the principal is in its roles
	by                  map[*Role]member // those of held, once somebody asks
}

var (
	_ cedar.PolicyIterator = (*candidacy)(nil)
	_ cedar.EntityGetter   = (*candidacy)(nil)
)

// All implements cedar.PolicyIterator.
func (c *candidacy) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		for _, r := range c.rules {
			if !yield(r.id, r.policy) {
				return
			}
		}
	}
}

// Get implements cedar.EntityGetter.
func (c *candidacy) Get(id cedar.EntityUID) (cedar.Entity, bool) {
	switch id {
	case c.principal.UID:
		return c.principal, true
	case c.resource.UID:
		return c.resource, true
	}
	return cedar.Entity{}, false
}

// explain names a permit as it stands in the audit log.
func (c *candidacy) explain(r *rule) string {
	if r.role == nil {
		return string(r.id)
	}
	if len(c.held) <= few {
		for _, m := range c.held {
			if m.role == r.role {
				return "role " + r.role.Name + ", bound to " + m.subject.String()
			}
		}
		return "role " + r.role.Name
	}
	if c.by == nil { // of several that give a role the first
		c.by = make(map[*Role]member, len(c.held))
		for _, m := range slices.Backward(c.held) {
			c.by[m.role] = m
		}
	}
	if m, ok := c.by[r.role]; ok {
		return "role " + r.role.Name + ", bound to " + m.subject.String()
	}
	return "role " + r.role.Name
}

// prepare makes the entities of a query and finds the policies.
func (s *Set) prepare(q Query, also []string) *candidacy {
	c := &candidacy{held: s.membership(q)}
	parents := make([]cedar.EntityUID, 0, 8)
	for _, g := range q.Groups {
		parents = append(parents, uid(typeGroup, g))
	}
	for _, m := range c.held {
		parents = append(parents, uid(typeRole, m.role.Name))
		if q.Resource.Stage != "" && m.names(q.Resource.Stage) {
			parents = append(parents, uid(typeNamed, m.role.Name))
		}
	}
	for _, r := range also {
		parents = append(parents, uid(typeRole, r), uid(typeNamed, r))
	}
	attributes := cedar.RecordMap{"name": cedar.String(q.Actor.Name)}
	id := uid(typeSystem, q.Actor.Name)
	switch q.Actor.Kind {
	case isle.Human:
		id = uid(typeHuman, q.Actor.Name)
	case isle.Machine:
		id = uid(typeMachine, q.Actor.Name)
	case isle.Workload:
		p := q.Place
		id = uid(typeWorkload, p.Project+"/"+p.Stage+"/"+p.Environment+"/"+p.Service)
		parents = append(parents, uid(typeProject, p.Project), uid(typeStage, p.Stage), uid(typeProject, p.Project+"@"+p.Stage))
		attributes["project"], attributes["name"], attributes["service"] = cedar.String(p.Project), cedar.String(p.Environment), cedar.String(p.Service)
		if p.Stage != "" {
			attributes["stage"] = cedar.String(p.Stage)
		}
	}
	c.principal = cedar.Entity{UID: id, Parents: cedar.NewEntityUIDSet(parents...), Attributes: cedar.NewRecord(attributes)}

	of := make([]cedar.EntityUID, 0, 4)
	r := q.Resource
	attributes = cedar.RecordMap{"name": cedar.String(r.Name), "protected": cedar.Boolean(slices.Contains(s.protected, r.Stage))}
	if r.Stage != "" || isle.Staged(r.Kind) {
		attributes["stage"] = cedar.String(r.Stage)
		of = append(of, uid(typeStage, r.Stage), uid(typeName, r.Kind+":"+r.Name))
	} else if stageable(r.Kind) {
		of = append(of, uid(typeName, r.Kind+":"+r.Name))
	}
	if q.Project != "" {
		attributes["project"] = cedar.String(q.Project)
		of = append(of, uid(typeProject, q.Project), uid(typeProject, q.Project+"@"+r.Stage))
	}
	c.resource = cedar.Entity{UID: resourceUID(r), Parents: cedar.NewEntityUIDSet(of...), Attributes: cedar.NewRecord(attributes)}

	context := cedar.RecordMap{"release": cedar.Boolean(q.Release), "now": cedar.NewDatetime(q.Now)}
	if q.Stage != "" {
		context["stage"] = cedar.String(q.Stage)
	}
	c.context = cedar.NewRecord(context)

	of = append(of, c.resource.UID, anyone)
	s.find(c, q.Action, anyone, of)
	s.find(c, q.Action, id, of)
	for _, p := range distinct(parents) { // a role that is bound twice
		s.find(c, q.Action, p, of)
	}
	return c
}

// few is how many things are looked through as fast as they are hashed.
const few = 16

// distinct is the list with each once, in its order: the same rule is named
// each time.
func distinct(list []cedar.EntityUID) []cedar.EntityUID {
	out := make([]cedar.EntityUID, 0, len(list))
	if len(list) <= few {
		for _, e := range list {
			if !slices.Contains(out, e) {
				out = append(out, e)
			}
		}
		return out
	}
	seen := make(map[cedar.EntityUID]bool, len(list))
	for _, e := range list {
		if !seen[e] {
			seen[e] = true
			out = append(out, e)
		}
	}
	return out
}

// find adds the policies that name a principal and one of the resources.
func (s *Set) find(c *candidacy, action isle.Action, principal cedar.EntityUID, of []cedar.EntityUID) {
	named := s.index[principal]
	if len(named) == 0 {
		return
	}
	for _, o := range of {
		for _, r := range named[o] {
			if r.actions == nil || r.actions[action] {
				c.rules = append(c.rules, r)
			}
		}
	}
}

// membership is by which bindings the actor of a query has roles, for the
// resource's stage.
func (s *Set) membership(q Query) (held []member) {
	look := func(key Subject) {
		for _, m := range s.members[key] {
			if !m.active(q.Now) || len(m.binding.Stages) > 0 && q.Resource.Stage != "" && !slices.Contains(m.binding.Stages, q.Resource.Stage) {
				continue
			}
			held = append(held, m)
		}
	}
	switch q.Actor.Kind {
	case isle.Human, isle.Machine:
		kind := string(q.Actor.Kind)
		look(Subject{Kind: kind, Name: q.Actor.Name})
		look(Subject{Kind: kind, Name: "*"})
		for _, g := range q.Groups {
			look(Subject{Kind: "group", Name: g})
		}
		if len(q.Groups) > 0 {
			look(Subject{Kind: "group", Name: "*"})
		}
	case isle.Workload:
		for _, shape := range s.shapes {
			look(shape.fill(q.Place))
		}
	}
	return held
}

// NextExpiry is when the next membership ends after a time; zero if none does.
func (s *Set) NextExpiry(now time.Time) (next time.Time) {
	for _, m := range s.members {
		for _, m := range m {
			for _, t := range []time.Time{m.binding.Expires, m.role.Expires} {
				if t.After(now) && (next.IsZero() || t.Before(next)) {
					next = t
				}
			}
		}
	}
	return next
}

// Protected reports whether a stage is protected.
func (s *Set) Protected(stage string) bool { return slices.Contains(s.protected, stage) }

// ProtectedStages are the stages that are protected.
func (s *Set) ProtectedStages() []string { return slices.Clone(s.protected) }

// Public reports whether everybody who reaches a published port of a stage may
// connect to it.
func (s *Set) Public(stage string) bool { return slices.Contains(s.public, stage) }

// Stages are the stages in the order of promotion, the first one first.
func (s *Set) Stages() []string { return slices.Clone(s.stages) }

// Documents are what the set is made of.
func (s *Set) Documents() []Document { return s.documents }
