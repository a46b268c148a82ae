package policy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
	inner "github.com/cedar-policy/cedar-go/x/exp/ast"

	"isle"
	"isle/internal/problem"
)

// A Set is the policy of some documents, ready to decide. It never changes and
// may be used from any goroutine.
type Set struct {
	documents   []Document
	roles       map[string]*Role
	bindings    []Binding
	connections map[string]Connection
	approvals   []Approval
	webhooks    map[string]Webhook
	gates       []Gate
	keeps       []Keep
	protected   []string
	public      []string // stages whose ports are everybody's
	stages      []string // in the order of promotion

	members map[Subject][]member
	shapes  []Subject // which fields workload subjects have set, each once
	index   map[cedar.EntityUID]map[cedar.EntityUID][]*rule
	rules   []*rule
	byID    map[cedar.PolicyID]*rule
}

// A member is what one binding makes of a subject.
type member struct {
	role    *Role
	binding *Binding
	subject Subject
}

// active reports whether the membership holds at a time.
func (m member) active(now time.Time) bool {
	return (m.binding.Expires.IsZero() || now.Before(m.binding.Expires)) && (m.role.Expires.IsZero() || now.Before(m.role.Expires))
}

// names reports whether the membership was given with a stage's name. Workloads
// are named with theirs always.
func (m member) names(stage string) bool {
	return slices.Contains(m.binding.Stages, stage) || m.subject.Kind == "workload" && m.subject.Stage == stage
}

// A rule is one Cedar policy and where it comes from.
type rule struct {
	id      cedar.PolicyID
	policy  *cedar.Policy
	actions map[isle.Action]bool // of its scope; nil: every one
	role    *Role                // nil for Cedar and built-in ones
	message string               // for people, of the policy's annotation
}

// anyone is the key of the index for policies whose scope names nobody, or
// nothing.
var anyone cedar.EntityUID

// The types of Cedar entities. Resources have the kind with a capital letter.
const (
	typeHuman    = "Human"
	typeMachine  = "Machine"
	typeWorkload = "Workload"
	typeSystem   = "System"
	typeGroup    = "Group"
	typeRole     = "Role"
	typeNamed    = "RoleInStage" // of a role that was given with the stage's name
	typeStage    = "Stage"
	typeProject  = "Project"
	typeName     = "Name" // a resource by kind and name, whatever its stage
	typeAction   = "Action"
)

func uid(typ, id string) cedar.EntityUID {
	return cedar.NewEntityUID(cedar.EntityType(typ), cedar.String(id))
}

func kindType(kind string) string { return strings.ToUpper(kind[:1]) + kind[1:] }

// Compile makes a Set. Every document is read, so that the error tells all that
// is wrong with any: it is a *problem.FileError for the first document that has
// problems.
func Compile(documents ...Document) (*Set, error) {
	s := &Set{
		documents: documents, roles: map[string]*Role{}, connections: map[string]Connection{}, webhooks: map[string]Webhook{},
		members: map[Subject][]member{}, index: map[cedar.EntityUID]map[cedar.EntityUID][]*rule{}, byID: map[cedar.PolicyID]*rule{},
	}
	for _, r := range builtinRoles() {
		s.roles[r.Name] = &r
	}
	forbids, err := cedar.NewPolicyListFromBytes("built in", []byte(builtinForbids))
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "the built-in policies: %w", err)
	}
	for _, p := range forbids {
		s.add(&rule{id: cedar.PolicyID(p.Annotations()["id"]), policy: p, message: string(p.Annotations()["message"])})
	}
	wrong := map[string][]problem.Problem{}
	var files []File
	for _, d := range documents {
		switch d.Format {
		case YAML:
			f, err := Parse(d.fileName(), d.Body)
			if err != nil {
				return nil, err
			}
			files = append(files, f)
		case Cedar:
			if err := s.addCedar(d); err != nil {
				return nil, err
			}
		default:
			return nil, isle.Errorf(isle.Invalid, "policy %s: unknown format %q; known: %s, %s", d.Name, d.Format, YAML, Cedar)
		}
	}
	s.merge(files, wrong)
	for _, name := range slices.Sorted(maps.Keys(wrong)) {
		return nil, &problem.FileError{File: name, Problems: wrong[name]}
	}
	total := 0
	for i := range s.bindings {
		b := &s.bindings[i]
		if total += b.grants(s.roles[b.Role]); total > maxGrants {
			return nil, isle.Errorf(isle.Invalid, "%s: the bindings, with their stages and the resources of their roles, come to more than %d grants", b.At, maxGrants).
				WithHint("bind groups instead of their members, and name projects instead of each resource")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.roles)) {
		s.compileRole(s.roles[name])
	}
	s.enroll()
	return s, nil
}

func (d Document) fileName() string {
	if strings.Contains(d.Name, ".") {
		return d.Name
	}
	return d.Name + "." + d.Format
}

// merge puts the files together and checks what one says of another.
func (s *Set) merge(files []File, wrong map[string][]problem.Problem) {
	say := func(at Position, format string, args ...any) {
		wrong[at.File] = append(wrong[at.File], problem.Problem{Line: at.Line, Column: at.Column, Message: fmt.Sprintf(format, args...)})
	}
	s.mergeNames(files, say)
	s.mergeGates(files, say)
	s.mergeKeeps(files, say)
	for _, f := range files {
		for _, b := range f.Bindings {
			s.needRole(b.At, b.Role, say)
			s.bindings = append(s.bindings, b)
		}
		for _, a := range f.Approvals {
			for _, who := range a.Approvers {
				if name, ok := strings.CutPrefix(who, "role:"); ok {
					s.needRole(a.At, name, say)
				}
			}
			for _, name := range a.Notify {
				if _, ok := s.webhooks[name]; !ok {
					say(a.At, "unknown webhook %q; declare it under webhooks", name)
				}
			}
			s.approvals = append(s.approvals, a)
		}
		for _, r := range f.Roles {
			for _, p := range r.Resources {
				s.needConnection(r, p, say)
			}
		}
	}
}

// mergeNames merges what documents declare under names, each of which stands in
// one of them, and what they say of stages.
func (s *Set) mergeNames(files []File, say func(at Position, format string, args ...any)) {
	spoken := false
	for _, f := range files {
		if f.Protected != nil {
			spoken = true
			s.protected = append(s.protected, f.Protected...)
		}
		s.public = append(s.public, f.Public...)
		if f.Stages != nil && s.stages != nil {
			say(f.StagesAt, "the order of stages is in another document already: %s", strings.Join(s.stages, ", "))
		} else if f.Stages != nil {
			s.stages = f.Stages
		}
		for _, r := range f.Roles {
			if have, ok := s.roles[r.Name]; ok {
				say(r.At, "role %s is there already: %s", r.Name, have.At)
				continue
			}
			s.roles[r.Name] = &r
		}
		for _, c := range f.Connections {
			if have, ok := s.connections[c.Name]; ok {
				say(c.At, "connection %s is there already: %s", c.Name, have.At)
				continue
			}
			s.connections[c.Name] = c
		}
		for _, w := range f.Webhooks {
			if have, ok := s.webhooks[w.Name]; ok {
				say(w.At, "webhook %s is there already: %s", w.Name, have.At)
				continue
			}
			s.webhooks[w.Name] = w
		}
	}
	if !spoken {
		s.protected = defaultProtected()
	}
	if s.stages == nil {
		s.stages = defaultStages()
	}
}

// needRole says that a role that is spoken of is not there.
func (s *Set) needRole(at Position, name string, say func(at Position, format string, args ...any)) {
	if _, ok := s.roles[name]; ok || name == "" {
		return
	}
	known := slices.Sorted(maps.Keys(s.roles))
	hint := "known: " + strings.Join(known, ", ")
	if best, near := problem.Nearest(name, known); near {
		hint = "did you mean " + best + "?"
	}
	say(at, "unknown role %q; %s", name, hint)
}

// needConnection says that a connection that a role speaks of by its name is not
// there, or not of that stage.
func (s *Set) needConnection(r Role, p Pattern, say func(at Position, format string, args ...any)) {
	if p.Kind != "connection" || strings.Contains(p.Name, "*") {
		return
	}
	c, ok := s.connections[p.Name]
	switch {
	case !ok:
		hint := ""
		if best, near := problem.Nearest(p.Name, slices.Collect(maps.Keys(s.connections))); near {
			hint = "; did you mean " + best + "?"
		}
		say(r.At, "role %s: unknown connection %q%s", r.Name, p.Name, hint)
	case p.Stage != "" && p.Stage != c.Stage:
		say(r.At, "role %s: connection %s is of stage %s, not %s", r.Name, p.Name, c.Stage, p.Stage)
	}
}

// enroll makes memberships of bindings.
func (s *Set) enroll() {
	for i := range s.bindings {
		b := &s.bindings[i]
		for _, subject := range b.Subjects {
			key := subject
			if key.Kind == "workload" {
				shape := key.shape()
				key = shape.fill(Place{key.Project, key.Stage, key.Environment, key.Service})
				if !slices.Contains(s.shapes, shape) {
					s.shapes = append(s.shapes, shape)
				}
			}
			s.members[key] = append(s.members[key], member{s.roles[b.Role], b, subject})
		}
	}
}

// shape says which fields of a workload subject select.
func (s Subject) shape() Subject {
	out := Subject{Kind: "workload"}
	for _, f := range [][2]*string{{&s.Project, &out.Project}, {&s.Stage, &out.Stage}, {&s.Environment, &out.Environment}, {&s.Service, &out.Service}} {
		if *f[0] != "" && *f[0] != "*" {
			*f[1] = "x"
		}
	}
	return out
}

// fill is the subject of a shape that a place belongs to.
func (s Subject) fill(p Place) Subject {
	for _, f := range [][2]*string{{&s.Project, &p.Project}, {&s.Stage, &p.Stage}, {&s.Environment, &p.Environment}, {&s.Service, &p.Service}} {
		if *f[0] != "" {
			*f[0] = *f[1]
		}
	}
	return s
}

// compileRole makes the policies of a role: for each of its patterns one, and
// another for what reaches inside where the pattern names no stage.
func (s *Set) compileRole(r *Role) {
	infos := map[isle.Action]isle.ActionInfo{}
	for _, i := range isle.Actions() {
		infos[i.Action] = i
	}
	n := 0
	for _, p := range r.Resources {
		var plain, inside []isle.Action
		for _, a := range r.Actions {
			i := infos[a]
			switch {
			case p.Kind != "*" && p.Kind != i.Resource:
			case i.Inside && p.Stage == "":
				inside = append(inside, a)
			default:
				plain = append(plain, a)
			}
		}
		for _, part := range []struct {
			actions []isle.Action
			guarded bool
		}{{plain, false}, {inside, true}} {
			if len(part.actions) == 0 {
				continue
			}
			id := "role " + r.Name
			if n > 0 {
				id += " #" + strconv.Itoa(n+1)
			}
			n++
			policy := ast.Annotation("id", types.String(id)).Permit().PrincipalIn(uid(typeRole, r.Name))
			var set []types.EntityUID
			for _, a := range part.actions {
				set = append(set, uid(typeAction, string(a)))
			}
			policy = scopeOf(policy.ActionInSet(set...), p)
			if part.guarded {
				policy = policy.When(ast.Resource().Has("protected").And(ast.Resource().Access("protected").Equal(ast.False())).
					Or(ast.Principal().In(ast.Value(uid(typeNamed, r.Name)))))
			}
			s.add(&rule{id: cedar.PolicyID(id), policy: cedar.NewPolicyFromAST(policy), role: r})
		}
	}
}

// scopeOf says in Cedar which resources a pattern means.
func scopeOf(policy *ast.Policy, p Pattern) *ast.Policy {
	if p.Kind == "*" {
		return policy
	}
	typ := types.EntityType(kindType(p.Kind))
	if p.Project != "" && p.Project != "*" {
		id := p.Project
		if p.Stage != "" {
			id += "@" + p.Stage
		}
		return policy.ResourceIsIn(typ, uid(typeProject, id))
	}
	glob := strings.Contains(p.Name, "*") && p.Name != "*"
	all := p.Name == "*" || p.Project == "*"
	switch {
	case !glob && !all && (p.Stage != "" || !stageable(p.Kind)):
		return policy.ResourceEq(resourceUID(isle.Resource{Kind: p.Kind, Name: p.Name, Stage: p.Stage}))
	case !glob && !all:
		return policy.ResourceIsIn(typ, uid(typeName, p.Kind+":"+p.Name))
	case p.Stage != "":
		policy = policy.ResourceIsIn(typ, uid(typeStage, p.Stage))
	default:
		policy = policy.ResourceIs(typ)
	}
	if glob {
		var parts []any
		for i, part := range strings.Split(p.Name, "*") {
			if i > 0 {
				parts = append(parts, types.Wildcard{})
			}
			parts = append(parts, types.String(part))
		}
		policy = policy.When(ast.Resource().Access("name").Like(types.NewPattern(parts...)))
	}
	return policy
}

// resourceUID is NAME[@STAGE] under the kind's type.
func resourceUID(r isle.Resource) cedar.EntityUID {
	id := r.Name
	if r.Stage != "" {
		id += "@" + r.Stage
	}
	if r.Kind == "" {
		return uid("Unknown", id)
	}
	return uid(kindType(r.Kind), id)
}

// addCedar adds a document of hand-written policies.
func (s *Set) addCedar(d Document) error {
	name := d.fileName()
	if len(d.Body) > MaxDocument {
		return isle.Errorf(isle.Invalid, "%s is %d bytes long; a policy has at most %d", name, len(d.Body), MaxDocument)
	}
	if err := bounded(name, d.Body); err != nil {
		return err
	}
	list, err := cedar.NewPolicyListFromBytes(name, d.Body)
	if err != nil {
		line, column, text := cedarError(err)
		return &problem.FileError{File: name, Problems: []problem.Problem{{Line: line, Column: column, Message: "this is not Cedar: " + text}}}
	}
	var wrong []problem.Problem
	for i, p := range list {
		at := p.Position()
		id := "cedar " + d.Name + "#" + strconv.Itoa(i+1)
		if own := string(p.Annotations()["id"]); own != "" {
			id = "cedar " + problem.Clip(own)
		}
		// In another document too: an answer names what decided by its ID alone.
		if s.byID[cedar.PolicyID(id)] != nil {
			wrong = append(wrong, problem.Problem{Line: at.Line, Column: at.Column, Message: fmt.Sprintf("the id %q is there already", id)})
		}
		for _, w := range checkScope(p) {
			wrong = append(wrong, problem.Problem{Line: at.Line, Column: at.Column, Message: w})
		}
		s.add(&rule{id: cedar.PolicyID(id), policy: p, message: string(p.Annotations()["message"])})
	}
	if len(wrong) > 0 {
		return &problem.FileError{File: name, Problems: wrong}
	}
	return nil
}

var cedarPlace = pattern(`(?s)^(?:parser error: )?parse error at [^ ]*?:?(\d+):(\d+):? ?(.*)$`)

// cedarError takes the place out of the parser's message.
func cedarError(err error) (line, column int, text string) {
	text = err.Error()
	if m := cedarPlace().FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		column, _ = strconv.Atoi(m[2])
		text = m[3]
	}
	return line, column, problem.Clip(text)
}

// checkScope says which words of a policy's scope mean nothing: a policy that
// can never match is a mistake, and a forbid that never matches a hole.
func checkScope(p *cedar.Policy) (wrong []string) {
	var resources []string
	for _, k := range kinds() {
		resources = append(resources, kindType(k))
	}
	principals := []string{typeHuman, typeMachine, typeWorkload, typeGroup, typeRole, typeNamed, typeStage, typeProject}
	check := func(what, word string, known []string) {
		if slices.Contains(known, word) {
			return
		}
		if best, near := problem.Nearest(word, known); near {
			wrong = append(wrong, fmt.Sprintf("unknown %s %q; did you mean %s?", what, problem.Clip(word), best))
			return
		}
		wrong = append(wrong, fmt.Sprintf("unknown %s %q; known: %s", what, problem.Clip(word), strings.Join(known, ", ")))
	}
	tree := (*inner.Policy)(p.AST())
	for _, t := range typesOf(tree.Principal) {
		check("type of principal", t, principals)
	}
	for _, t := range typesOf(tree.Resource) {
		check("type of resource", t, append(resources, typeStage, typeProject, typeName))
	}
	var known []string
	for _, a := range grantable() {
		known = append(known, string(a.Action))
	}
	for _, a := range actionsOf(tree.Action) {
		if a.Type != typeAction {
			wrong = append(wrong, fmt.Sprintf("%s is no action; want Action::\"environment:exec\"", a))
			continue
		}
		check("action", string(a.ID), known)
	}
	return wrong
}

func typesOf(scope inner.IsScopeNode) []string {
	switch n := scope.(type) {
	case inner.ScopeTypeEq:
		return []string{string(n.Entity.Type)}
	case inner.ScopeTypeIn:
		return []string{string(n.Entity.Type)}
	case inner.ScopeTypeIs:
		return []string{string(n.Type)}
	case inner.ScopeTypeIsIn:
		return []string{string(n.Type), string(n.Entity.Type)}
	}
	return nil
}

func actionsOf(scope inner.IsScopeNode) []cedar.EntityUID {
	switch n := scope.(type) {
	case inner.ScopeTypeEq:
		return []cedar.EntityUID{n.Entity}
	case inner.ScopeTypeIn:
		return []cedar.EntityUID{n.Entity}
	case inner.ScopeTypeInSet:
		return n.Entities
	}
	return nil
}

// keyOf is the entity that a scope needs the request to be, or be in; anyone
// where it names none.
func keyOf(scope inner.IsScopeNode) cedar.EntityUID {
	switch n := scope.(type) {
	case inner.ScopeTypeEq:
		return n.Entity
	case inner.ScopeTypeIn:
		return n.Entity
	case inner.ScopeTypeIsIn:
		return n.Entity
	}
	return anyone
}

// add puts a policy where a decision that it could bear on finds it. A scope is
// a condition that must hold, for forbids too, so to leave out the policies
// whose scope names others changes no decision.
func (s *Set) add(r *rule) {
	s.rules = append(s.rules, r)
	s.byID[r.id] = r
	tree := (*inner.Policy)(r.policy.AST())
	if named := actionsOf(tree.Action); named != nil {
		r.actions = map[isle.Action]bool{}
		for _, a := range named {
			r.actions[isle.Action(a.ID)] = true
		}
	}
	principal, resource := keyOf(tree.Principal), keyOf(tree.Resource)
	if s.index[principal] == nil {
		s.index[principal] = map[cedar.EntityUID][]*rule{}
	}
	s.index[principal][resource] = append(s.index[principal][resource], r)
}
