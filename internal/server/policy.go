package server

import (
	"context"
	"time"

	"isle"
	"isle/internal/environment"
	"isle/internal/policy"
)

// Egress implements environment.Policy.
func (r *rooms) Egress(e environment.Environment, destination string) (allowed bool, rule, grant string) {
	q := policy.Query{
		Actor:    isle.Actor{Kind: isle.Workload, Name: e.Ref.Name + "@" + e.Ref.Stage},
		Place:    policy.Place{Project: e.Project, Stage: e.Ref.Stage, Environment: e.Ref.Name},
		Action:   isle.ActionEgressConnect,
		Resource: isle.Resource{Kind: "egress", Name: destination, Stage: e.Ref.Stage},
		Now:      time.Now(),
	}
	set := r.policy.State().Set
	a := set.Decide(q)
	if !a.Allowed() && !a.Final {
		grant = set.Grant(q)
	}
	return a.Allowed(), a.Rule, grant
}

// followPolicy opens and closes doors as the policy changes and grants end.
func (r *rooms) followPolicy(ctx context.Context) {
	for {
		state := r.policy.State()
		r.manager.PolicyChanged(ctx)
		var expires <-chan time.Time
		stop := func() bool { return true }
		if next := state.Set.NextExpiry(time.Now()); !next.IsZero() {
			t := time.NewTimer(time.Until(next))
			expires, stop = t.C, t.Stop
		}
		select {
		case <-ctx.Done():
			stop()
			return
		case <-state.Over():
		case <-expires:
		}
		stop()
	}
}
