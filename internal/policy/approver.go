package policy

import (
	"maps"
	"slices"
	"strings"
)

// Among reports whether the actor of a query is one of approvers: by name, by
// group, or by a role that they have for the query's resource.
func (s *Set) Among(approvers []string, q Query) bool {
	var held []member
	for _, a := range approvers {
		kind, name, _ := strings.Cut(a, ":")
		switch kind {
		case "human":
			if q.Actor.String() == a {
				return true
			}
		case "group":
			if slices.Contains(q.Groups, name) {
				return true
			}
		case "role":
			if held == nil {
				held = s.membership(q)
			}
			if slices.ContainsFunc(held, func(m member) bool { return m.role.Name == name }) {
				return true
			}
		}
	}
	return false
}

// Approval returns the approval of a name, as String gives it.
func (s *Set) Approval(name string) (Approval, bool) {
	for i := range s.approvals {
		if s.approvals[i].String() == name {
			return s.approvals[i], true
		}
	}
	return Approval{}, false
}

// Role returns one by name.
func (s *Set) Role(name string) (Role, bool) {
	if r, ok := s.roles[name]; ok {
		return *r, true
	}
	return Role{}, false
}

// Webhooks returns those of all documents, by name.
func (s *Set) Webhooks() []Webhook {
	return slices.SortedFunc(maps.Values(s.webhooks), func(a, b Webhook) int { return strings.Compare(a.Name, b.Name) })
}
