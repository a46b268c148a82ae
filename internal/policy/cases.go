package policy

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"isle"
	"isle/internal/problem"
)

// A Case is one question with the answer that is expected.
type Case struct {
	Query  Query
	Expect isle.Decision
	Rule   string // what the deciding rule begins with; "" is any
	At     Position
}

// A Failure is a case whose answer is another.
type Failure struct {
	Case   Case
	Answer Answer
}

// String is the failure for people.
func (f Failure) String() string {
	q := f.Case.Query
	s := fmt.Sprintf("%s: %s %s %s: want %s", f.Case.At, q.Actor, q.Action, q.Resource, f.Case.Expect)
	if f.Case.Rule != "" {
		s += " by " + f.Case.Rule
	}
	return s + fmt.Sprintf(", got %s by %s", f.Answer.Decision, f.Answer.Rule)
}

// Replay asks every case and returns those with another answer.
func (s *Set) Replay(cases []Case, now time.Time) (failures []Failure) {
	for _, c := range cases {
		q := c.Query
		if q.Now.IsZero() {
			q.Now = now
		}
		if a := s.Decide(q); a.Decision != c.Expect || !strings.HasPrefix(a.Rule, c.Rule) {
			failures = append(failures, Failure{c, a})
		}
	}
	return failures
}

// ParseCases reads a file of cases, a list of
//
//   - {actor: human:ann, groups: [devs], action: environment:exec, resource: environment:shop@production, expect: deny}
//
// The session is in the resource's stage unless `stage` says another; `project`
// is the resource's, `at` the time to ask for, `rule` what has to decide. A
// workload is written as a mapping: {project: shop, stage: testing, name: shop}.
func ParseCases(name string, b []byte) ([]Case, error) {
	r := &reader{file: name}
	var out []Case
	if root, ok := r.Root(b, bounds); ok {
		r.list(root, "a list of cases", func(n *yaml.Node) { out = append(out, r.readCase(n)) })
	}
	if err := r.Err(name); err != nil {
		return nil, err
	}
	return out, nil
}

func (r *reader) readCase(n *yaml.Node) Case {
	c := Case{At: r.at(n)}
	stage := ""
	expect := ""
	r.mapping(n, "a case",
		key{name: "actor", required: true, read: func(n *yaml.Node) { r.readActor(n, &c.Query) }},
		key{name: "groups", read: func(n *yaml.Node) {
			r.list(n, "a list of groups", func(n *yaml.Node) {
				if s, ok := r.text(n, "a group"); ok {
					c.Query.Groups = append(c.Query.Groups, s)
				}
			})
		}},
		key{name: "action", required: true, read: func(n *yaml.Node) {
			if s, ok := r.text(n, "an action"); ok {
				a, err := ParseAction(s)
				if err != nil {
					r.Problem(n, "%v", err)
				}
				c.Query.Action = a
			}
		}},
		key{name: "resource", required: true, read: into(r, &c.Query.Resource, "a resource", ParseResource)},
		key{name: "project", read: into(r, &c.Query.Project, "a project", nameOf("project"))},
		key{name: "stage", read: into(r, &stage, "a stage", nameOf("stage"))},
		key{name: "release", read: into(r, &c.Query.Release, "true or false", func(s string) (bool, error) {
			if s != "true" && s != "false" {
				return false, fmt.Errorf("%q: want true or false", problem.Clip(s))
			}
			return s == "true", nil
		})},
		key{name: "at", read: into(r, &c.Query.Now, "a time", func(s string) (time.Time, error) { return time.Parse(time.RFC3339, s) })},
		key{name: "rule", read: into(r, &c.Rule, "a rule", plain)},
		key{name: "expect", required: true, read: into(r, &expect, "a decision", oneOf("decision", "allow", "deny", "hold"))},
	)
	c.Expect = isle.Decision(expect)
	if stage == "" {
		stage = c.Query.Resource.Stage
	}
	c.Query.Stage = stage
	return c
}

func (r *reader) readActor(n *yaml.Node, q *Query) {
	s, ok := r.readSubject(n)
	if !ok {
		return
	}
	switch {
	case s.wild():
		r.Problem(n, "a case asks for one actor")
	case s.Kind == "workload":
		q.Actor = isle.Actor{Kind: isle.Workload, Name: s.Environment + "@" + s.Stage}
		q.Place = Place{s.Project, s.Stage, s.Environment, s.Service}
	case s.Kind == "group":
		q.Actor, q.Groups = isle.Actor{Kind: isle.Human, Name: "member-of-" + s.Name}, append(q.Groups, s.Name)
	default:
		q.Actor = isle.Actor{Kind: isle.ActorKind(s.Kind), Name: s.Name}
	}
}

// ParseActor reads human:NAME, machine:NAME, group:NAME (somebody in it) or
// workload:PROJECT/STAGE/NAME into a query.
func ParseActor(s string, q *Query) error {
	kind, name, _ := strings.Cut(s, ":")
	switch {
	case kind == "workload":
		parts := strings.Split(name, "/")
		for _, p := range parts {
			if !isle.ValidName(p) || len(parts) < 3 || len(parts) > 4 {
				return isle.Errorf(isle.Invalid, "%q is no workload; want workload:PROJECT/STAGE/NAME, or that and /SERVICE", problem.Clip(s))
			}
		}
		q.Place = Place{Project: parts[0], Stage: parts[1], Environment: parts[2]}
		if len(parts) == 4 {
			q.Place.Service = parts[3]
		}
		q.Actor = isle.Actor{Kind: isle.Workload, Name: parts[2] + "@" + parts[1]}
	case !subjectName().MatchString(name):
		return isle.Errorf(isle.Invalid, "%q is nobody; want human:NAME, group:NAME, machine:NAME or workload:PROJECT/STAGE/NAME", problem.Clip(s))
	case kind == "group":
		q.Actor, q.Groups = isle.Actor{Kind: isle.Human, Name: "member-of-" + name}, []string{name}
	case kind == "human" || kind == "machine":
		q.Actor = isle.Actor{Kind: isle.ActorKind(kind), Name: name}
	default:
		best, near := problem.Nearest(kind, []string{"human", "group", "machine", "workload"})
		if !near {
			best = "human, group, machine or workload"
		}
		return isle.Errorf(isle.Invalid, "unknown kind of actor %q; did you mean %s?", problem.Clip(kind), best)
	}
	return nil
}

// ParseAction reads an action that can be granted.
func ParseAction(s string) (isle.Action, error) {
	var known []string
	for _, a := range grantable() {
		if string(a.Action) == s {
			return a.Action, nil
		}
		known = append(known, string(a.Action))
	}
	if best, near := problem.Nearest(s, known); near {
		return "", isle.Errorf(isle.Invalid, "unknown action %q; did you mean %s?", problem.Clip(s), best)
	}
	return "", isle.Errorf(isle.Invalid, "unknown action %q; docs/actions.md lists them", problem.Clip(s))
}

// ParseResource reads KIND:NAME[@STAGE] as one resource. What has a stage and
// names none is in testing.
func ParseResource(s string) (isle.Resource, error) {
	r := &reader{}
	var p Pattern
	if !r.pattern(&yaml.Node{}, s, &p) {
		return isle.Resource{}, isle.Errorf(isle.Invalid, "%s", r.Problems()[0].Message)
	}
	if p.wild() {
		return isle.Resource{}, errors.New("one resource is asked for, without *")
	}
	if p.Stage == "" && isle.Staged(p.Kind) && p.Kind != "connection" {
		p.Stage = isle.DefaultStage
	}
	return isle.Resource{Kind: p.Kind, Name: p.Name, Stage: p.Stage}, nil
}
