package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	cedar "github.com/cedar-policy/cedar-go"

	"isle"
	"isle/internal/policy"
)

// policies measures one decision by a policy of n roles that are bound to n
// people, beside cedar-go evaluating all of the same policies. Both answer the
// same question, in turn; a wrong answer fails the run.
func policies(runs int) error {
	fmt.Printf("\n### A decision\n\n%d interleaved runs each, of 2,000 decisions, or of at least one for the peer.\n\n", runs)
	fmt.Printf("| policies | indexed | cedar-go evaluating all | ratio |\n|---|---|---|---|\n")
	for _, n := range []int{10, 100, 1000, 10_000} {
		set, q, all, err := grow(n)
		if err != nil {
			return err
		}
		var ours, theirs []time.Duration
		for range runs {
			begin := time.Now()
			for range 2000 {
				if !set.Decide(q).Allowed() {
					return fmt.Errorf("%d policies: refused", n)
				}
			}
			ours = append(ours, time.Since(begin)/2000)
			times := max(1, 2000/n)
			begin = time.Now()
			for range times {
				if err := all(); err != nil {
					return fmt.Errorf("%d policies: %w", n, err)
				}
			}
			theirs = append(theirs, time.Since(begin)/time.Duration(times))
		}
		a, b := middle(ours), middle(theirs)
		fmt.Printf("| %d | %.1f µs | %.1f µs | %.3f× |\n", n, micro(a), micro(b), float64(a)/float64(b))
	}
	return nil
}

func middle(times []time.Duration) time.Duration {
	slices.Sort(times)
	return median(times)
}

func micro(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// grow makes a policy with n roles and the question to ask, and the same for
// cedar-go alone.
func grow(n int) (set *policy.Set, q policy.Query, all func() error, err error) {
	var roles, bindings strings.Builder
	for i := range n {
		fmt.Fprintf(&roles, "  r%d: {actions: [environment:logs, environment:exec], resources: [\"environment:e%d@testing\"]}\n", i, i)
		fmt.Fprintf(&bindings, "  - {role: r%d, subjects: [human:u%d]}\n", i, i)
	}
	set, err = policy.Compile(policy.Document{Name: "main", Format: policy.YAML, Body: []byte("roles:\n" + roles.String() + "bindings:\n" + bindings.String())})
	if err != nil {
		return nil, q, nil, err
	}
	mine := n / 2
	q = policy.Query{
		Actor: isle.Actor{Kind: isle.Human, Name: fmt.Sprintf("u%d", mine)}, Groups: []string{"users", "isle"}, Stage: "testing",
		Action: isle.ActionEnvironmentExec, Resource: isle.Resource{Kind: "environment", Name: fmt.Sprintf("e%d", mine), Stage: "testing"}, Now: time.Now(),
	}
	everything, err := cedar.NewPolicySetFromBytes("all", set.CedarText())
	if err != nil {
		return nil, q, nil, err
	}
	id := func(typ cedar.EntityType, name string) cedar.EntityUID {
		return cedar.NewEntityUID(typ, cedar.String(name))
	}
	who, what := id("Human", q.Actor.Name), id("Environment", q.Resource.Name+"@testing")
	entities := cedar.EntityMap{
		who: {UID: who, Parents: cedar.NewEntityUIDSet(id("Role", fmt.Sprintf("r%d", mine)))},
		what: {UID: what, Parents: cedar.NewEntityUIDSet(id("Stage", "testing")),
			Attributes: cedar.NewRecord(cedar.RecordMap{"stage": cedar.String("testing"), "protected": cedar.False})},
	}
	req := cedar.Request{Principal: who, Action: id("Action", string(q.Action)), Resource: what, Context: cedar.NewRecord(cedar.RecordMap{"stage": cedar.String("testing")})}
	return set, q, func() error {
		if d, _ := cedar.Authorize(everything, entities, req); d != cedar.Allow {
			return fmt.Errorf("cedar-go refuses")
		}
		return nil
	}, nil
}
