package policy

import (
	"fmt"
	"strings"
	"testing"

	cedar "github.com/cedar-policy/cedar-go"

	"isle"
)

// grown is a policy of n roles, each bound to somebody of its own.
func grown(t testing.TB, n int) (*Set, Query) {
	var roles, bindings strings.Builder
	for i := range n {
		fmt.Fprintf(&roles, "  r%d: {actions: [environment:exec, environment:logs], resources: [\"environment:e%d@testing\"]}\n", i, i)
		fmt.Fprintf(&bindings, "  - {role: r%d, subjects: [human:u%d]}\n", i, i)
	}
	s := compile(t, "roles:\n"+roles.String()+"bindings:\n"+bindings.String())
	q := Query{
		Actor: isle.Actor{Kind: isle.Human, Name: fmt.Sprintf("u%d", n/2)}, Groups: []string{"users", "isle", "devs"}, Stage: "testing",
		Action: isle.ActionEnvironmentExec, Resource: isle.Resource{Kind: "environment", Name: fmt.Sprintf("e%d", n/2), Stage: "testing"}, Project: "shop", Now: now,
	}
	if !s.Decide(q).Allowed() {
		t.Fatal("refused")
	}
	return s, q
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 100, 1000, 10_000} {
		s, q := grown(b, n)
		b.Run(fmt.Sprintf("indexed/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.Decide(q)
			}
		})
		b.Run(fmt.Sprintf("all/%d", n), func(b *testing.B) {
			for b.Loop() {
				c := s.prepare(q, nil)
				c.rules = s.rules
				cedar.Authorize(c, c, cedar.Request{Principal: c.principal.UID, Action: uid(typeAction, string(q.Action)), Resource: c.resource.UID, Context: c.context})
			}
		})
	}
}
