package policy

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"isle"
	"isle/internal/problem"
)

func (r *reader) readFile(n *yaml.Node, f *File) {
	r.mapping(n, "a policy",
		key{name: "roles", read: func(n *yaml.Node) {
			r.named(n, "roles", func(name string, v *yaml.Node) {
				f.Roles = append(f.Roles, r.readRole(name, v))
			})
		}},
		key{name: "bindings", read: func(n *yaml.Node) {
			r.list(n, "a list of bindings", func(n *yaml.Node) { f.Bindings = append(f.Bindings, r.readBinding(n)) })
		}},
		key{name: "connections", read: func(n *yaml.Node) {
			r.named(n, "connections", func(name string, v *yaml.Node) {
				f.Connections = append(f.Connections, r.readConnection(name, v))
			})
		}},
		key{name: "approvals", read: func(n *yaml.Node) {
			r.list(n, "a list of approvals", func(n *yaml.Node) { f.Approvals = append(f.Approvals, r.readApproval(n)) })
		}},
		key{name: "gates", read: func(n *yaml.Node) {
			r.list(n, "a list of gates", func(n *yaml.Node) { f.Gates = append(f.Gates, r.readGate(n)) })
		}},
		key{name: "keep", read: func(n *yaml.Node) {
			r.list(n, "a list of rules of what is kept", func(n *yaml.Node) { f.Keeps = append(f.Keeps, r.readKeep(n)) })
		}},
		key{name: "webhooks", read: func(n *yaml.Node) {
			r.named(n, "webhooks", func(name string, v *yaml.Node) {
				f.Webhooks = append(f.Webhooks, r.readWebhook(name, v))
			})
		}},
		key{name: "protected", read: func(n *yaml.Node) {
			f.Protected = []string{}
			r.list(n, "a list of stages", func(n *yaml.Node) { r.stage(n, func(s string) { f.Protected = append(f.Protected, s) }) })
		}},
		key{name: "public", read: func(n *yaml.Node) {
			r.list(n, "a list of stages", func(n *yaml.Node) { r.stage(n, func(s string) { f.Public = append(f.Public, s) }) })
		}},
		key{name: "stages", read: func(n *yaml.Node) {
			f.Stages, f.StagesAt = []string{}, r.at(n)
			r.list(n, "a list of stages", func(n *yaml.Node) {
				r.stage(n, func(s string) {
					if slices.Contains(f.Stages, s) {
						r.Problem(n, "stage %s is here a second time", s)
					}
					f.Stages = append(f.Stages, s)
				})
			})
			if len(f.Stages) == 0 {
				r.Problem(n, "at least one stage is needed")
			}
		}},
	)
}

// named reads a mapping whose keys are names of the user's.
func (r *reader) named(n *yaml.Node, what string, each func(name string, v *yaml.Node)) {
	r.entries(n, what, func(name string, k, v *yaml.Node) {
		if !isle.ValidName(name) {
			r.Problem(k, "%q is no name: want lower-case letters, digits and dashes, at most 40, beginning with a letter", problem.Clip(name))
			return
		}
		defer r.Enter(name)()
		if v, ok := r.Resolve(v); ok {
			each(name, v)
		}
	})
}

func (r *reader) stage(n *yaml.Node, add func(string)) {
	s, ok := r.text(n, "a stage")
	switch {
	case !ok:
	case s == "*":
		r.Problem(n, "a stage is named; leave `stages` out for every one")
	case !isle.ValidName(s):
		r.Problem(n, "%q is no stage: want lower-case letters, digits and dashes, at most 40, beginning with a letter", problem.Clip(s))
	default:
		add(s)
	}
}

// A limit is what a wildcard needs.
type limit struct {
	reason  string
	expires time.Time
}

func (r *reader) limitKeys(l *limit) []key {
	return []key{
		{name: "reason", read: into(r, &l.reason, "a reason", plain)},
		{name: "expires", read: into(r, &l.expires, "a date", parseTime)},
	}
}

// needs notes that a wildcard lacks its reason or end.
func (r *reader) needs(n *yaml.Node, l limit, wild string) {
	if wild == "" || l.reason != "" && !l.expires.IsZero() {
		return
	}
	r.Problem(n, "the wildcard in %s needs a reason and an end: add `reason: …` and `expires: 2030-12-31`, or name what is meant", wild)
}

// parseTime reads a date, whose end is meant, or a time of RFC 3339. The zero
// time would mean never: there is no way to write it.
func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.DateOnly, s)
	if err == nil {
		t = t.AddDate(0, 0, 1)
	} else if t, err = time.Parse(time.RFC3339, s); err != nil {
		return time.Time{}, fmt.Errorf("%q is no date; want 2030-12-31 (to its end, UTC) or 2030-12-31T18:00:00Z", problem.Clip(s))
	}
	if t = t.UTC(); t.Year() < 2000 {
		return time.Time{}, fmt.Errorf("%q: want a year from 2000 on", problem.Clip(s))
	}
	return t, nil
}

func (r *reader) readRole(name string, n *yaml.Node) Role {
	role := Role{Name: name, At: r.at(n)}
	var l limit
	wild := ""
	r.mapping(n, "a role", append([]key{
		{name: "actions", required: true, read: func(n *yaml.Node) { role.Actions, role.All = r.readActions(n, &wild) }},
		{name: "resources", required: true, read: func(n *yaml.Node) { role.Resources = r.readPatterns(n, &wild) }},
	}, r.limitKeys(&l)...)...)
	r.needs(n, l, wild)
	role.Reason, role.Expires = l.reason, l.expires
	for _, i := range grantable() {
		if !slices.Contains(role.Actions, i.Action) || role.All || len(role.Resources) == 0 {
			continue
		}
		if !slices.ContainsFunc(role.Resources, func(p Pattern) bool { return p.Kind == "*" || p.Kind == i.Resource }) && wild == "" {
			r.Problem(n, "%s is done to %s:…, and no resource of the role is one", i.Action, i.Resource)
		}
	}
	return role
}

func (r *reader) readActions(n *yaml.Node, wild *string) (out []isle.Action, all bool) {
	r.list(n, "a list of actions", func(n *yaml.Node) {
		s, ok := r.text(n, "an action")
		if !ok {
			return
		}
		var known []string
		found := false
		for _, i := range grantable() {
			known = append(known, string(i.Action))
			noun, _, _ := strings.Cut(string(i.Action), ":")
			if s == string(i.Action) || s == noun+":*" || s == "*" {
				found = true
				if !slices.Contains(out, i.Action) {
					out = append(out, i.Action)
				}
			}
		}
		switch {
		case !found:
			r.unknown(n, "action", s, known)
		case strings.Contains(s, "*"):
			*wild = "actions"
			all = all || s == "*"
		}
	})
	return out, all
}

func (r *reader) readPatterns(n *yaml.Node, wild *string) (out []Pattern) {
	r.list(n, "a list of resources", func(n *yaml.Node) {
		var p Pattern
		if n.Kind == yaml.MappingNode {
			p.Kind = "environment"
			r.mapping(n, "the environments of a project",
				key{name: "project", required: true, read: into(r, &p.Project, "a project", nameOf("project"))},
				key{name: "stage", read: func(n *yaml.Node) { r.stage(n, func(s string) { p.Stage = s }) }})
			if p.Project == "" {
				return
			}
		} else {
			s, ok := r.text(n, "a resource")
			if !ok || !r.pattern(n, s, &p) {
				return
			}
		}
		if p.wild() {
			*wild = "resources"
		}
		out = append(out, p)
	})
	return out
}

// pattern reads KIND:NAME[@STAGE].
func (r *reader) pattern(n *yaml.Node, s string, p *Pattern) bool {
	if s == "*" {
		*p = Pattern{Kind: "*", Name: "*"}
		return true
	}
	kind, rest, ok := strings.Cut(s, ":")
	if !slices.Contains(kinds(), kind) {
		r.unknown(n, "kind of resource", kind, kinds())
		return false
	}
	name, stage, staged := strings.Cut(rest, "@")
	switch {
	case !ok || name == "":
		r.Problem(n, "%q names no %s; want %s:NAME", problem.Clip(s), kind, kind)
	case staged && !stageable(kind):
		r.Problem(n, "%q: a resource of kind %s has no stage", problem.Clip(s), kind)
	case staged && !isle.ValidName(stage):
		r.Problem(n, "%q: %q is no stage", problem.Clip(s), problem.Clip(stage))
	case kind == "environment" && !strings.Contains(name, "*") && !isle.ValidName(name):
		r.Problem(n, "%q: %q is no name of an environment", problem.Clip(s), problem.Clip(name))
	case kind == "egress" && !strings.Contains(name, "*") && !validDestination(name):
		r.Problem(n, "%q: want a host and a port, as in egress:api.example.com:443", problem.Clip(s))
	case len(name) > 300:
		r.Problem(n, "%q: the name is too long", problem.Clip(s))
	default:
		*p = Pattern{Kind: kind, Name: strings.ToLower(name), Stage: stage}
		return true
	}
	return false
}

func validDestination(s string) bool {
	host, port, err := net.SplitHostPort(s)
	p, perr := strconv.Atoi(port)
	return err == nil && perr == nil && host != "" && p > 0 && p < 65536
}

func nameOf(what string) func(string) (string, error) {
	return func(s string) (string, error) {
		if s != "*" && !isle.ValidName(s) {
			return "", fmt.Errorf("%q is no %s: want lower-case letters, digits and dashes, at most 40, beginning with a letter", problem.Clip(s), what)
		}
		return s, nil
	}
}

func (r *reader) readBinding(n *yaml.Node) Binding {
	b := Binding{At: r.at(n)}
	var l limit
	wild := ""
	r.mapping(n, "a binding", append([]key{
		{name: "role", required: true, read: into(r, &b.Role, "a role", nameOf("role"))},
		{name: "subjects", required: true, read: func(n *yaml.Node) {
			r.list(n, "a list of subjects", func(n *yaml.Node) {
				if s, ok := r.readSubject(n); ok {
					b.Subjects = append(b.Subjects, s)
					if s.wild() {
						wild = "subjects"
					}
				}
			})
		}},
		{name: "stages", read: func(n *yaml.Node) {
			r.list(n, "a list of stages", func(n *yaml.Node) { r.stage(n, func(s string) { b.Stages = append(b.Stages, s) }) })
			if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
				r.Problem(n, "is empty; leave it out for every stage")
			}
		}},
	}, r.limitKeys(&l)...)...)
	if b.Role == "*" {
		r.Problem(n, "a binding is of one role, not of every one")
	}
	r.needs(n, l, wild)
	b.Reason, b.Expires = l.reason, l.expires
	return b
}

// subjectName is what an operating system or an identity may be called.
var subjectName = pattern(`^[A-Za-z0-9_][A-Za-z0-9_.:@/$-]{0,127}$`)

func (r *reader) readSubject(n *yaml.Node) (Subject, bool) {
	if n.Kind == yaml.MappingNode {
		s := Subject{Kind: "workload"}
		before := len(r.Problems())
		r.mapping(n, "workloads by where they run",
			key{name: "project", read: into(r, &s.Project, "a project", nameOf("project"))},
			key{name: "stage", required: true, read: func(n *yaml.Node) { r.stage(n, func(v string) { s.Stage = v }) }},
			key{name: "name", read: into(r, &s.Environment, "an environment", nameOf("environment"))},
			key{name: "service", read: into(r, &s.Service, "a service", nameOf("service"))})
		return s, len(r.Problems()) == before
	}
	text, ok := r.text(n, "a subject")
	if !ok {
		return Subject{}, false
	}
	kind, name, _ := strings.Cut(text, ":")
	known := []string{"human", "group", "machine"}
	switch {
	case !slices.Contains(known, kind):
		r.unknown(n, "kind of subject", kind, known)
		return Subject{}, false
	case name != "*" && !subjectName().MatchString(name):
		r.Problem(n, "%q names nobody; want %s:NAME", problem.Clip(text), kind)
		return Subject{}, false
	}
	return Subject{Kind: kind, Name: name}, true
}

func oneOf(what string, known ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		if slices.Contains(known, s) {
			return s, nil
		}
		if best, near := problem.Nearest(s, known); near {
			return "", fmt.Errorf("unknown %s %q; did you mean %s?", what, problem.Clip(s), best)
		}
		return "", fmt.Errorf("unknown %s %q; known: %s", what, problem.Clip(s), strings.Join(known, ", "))
	}
}

func parseSpan(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 || d > 30*24*time.Hour {
		return 0, fmt.Errorf("%q is no duration; want 90s, 15m or 2h, at most 720h", problem.Clip(s))
	}
	return d, nil
}
