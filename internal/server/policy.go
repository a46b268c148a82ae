package server

import (
	"context"
	"net/netip"
	"slices"

	"isle"
	"isle/internal/environment"
	"isle/internal/gateway"
	"isle/internal/policy"
)

// Egress implements environment.Policy.
func (r *rooms) Egress(e environment.Environment, destination string) (allowed bool, rule, grant string) {
	q := policy.Query{
		Actor:    isle.Actor{Kind: isle.Workload, Name: e.Ref.Name + "@" + e.Ref.Stage},
		Place:    policy.Place{Project: e.Project, Stage: e.Ref.Stage, Environment: e.Ref.Name},
		Action:   isle.ActionEgressConnect,
		Resource: isle.Resource{Kind: "egress", Name: destination, Stage: e.Ref.Stage},
		Now:      r.policy.Now(),
	}
	set := r.policy.State().Set
	a := set.Decide(q)
	if !a.Allowed() && !a.Final {
		grant = set.Grant(q)
	}
	return a.Allowed(), a.Rule, grant
}

// closed says what no grant opens to an environment.
func (r *rooms) closed(instance isle.ID, to netip.AddrPort) string {
	if r.manager == nil {
		return "of a machine whose server is not there yet" // it is not composed; nobody dials
	}
	return r.manager.Closed(instance, to)
}

// followPolicy opens and closes doors as the policy changes and grants end.
func (r *rooms) followPolicy(ctx context.Context) {
	warm := false
	for {
		state, asked := r.policy.State(), r.policy.Now()
		if !warm && slices.ContainsFunc(state.Set.Connections(), func(c policy.Connection) bool { return c.Kind == "postgres" }) {
			warm = true
			r.following.Go(func() { // ends by itself, in seconds
				if err := r.postgres.Warm(); err != nil {
					r.server.log.Error("SQL can't be read, so nothing passes at connections of kind postgres", "err", err)
				}
			})
		}
		r.gateway.PolicyChanged()
		r.manager.PolicyChanged(ctx)
		if err := r.approvals.PolicyChanged(ctx); err != nil && ctx.Err() == nil && r.approvals.Err() == nil {
			r.server.log.Error("what waits for approval could not be asked about again; it is before it is done", "err", err)
		}
		if !r.policy.Await(ctx, state, asked, nil) {
			return
		}
	}
}

// Connection implements environment.Policy.
func (r *rooms) Connection(e environment.Environment, name string) environment.Connection {
	set := r.policy.State().Set
	c, ok := set.Connection(name)
	if !ok {
		return environment.Connection{}
	}
	q := policy.Query{
		Actor:    isle.Actor{Kind: isle.Workload, Name: e.Ref.Name + "@" + e.Ref.Stage},
		Place:    policy.Place{Project: e.Project, Stage: e.Ref.Stage, Environment: e.Ref.Name},
		Action:   isle.ActionConnectionOpen,
		Resource: isle.Resource{Kind: "connection", Name: c.Name, Stage: c.Stage},
		Now:      r.policy.Now(),
	}
	a := set.Decide(q)
	out := environment.Connection{
		Kind: c.Kind, Stage: c.Stage, Ports: gateway.Ports(c), Rule: a.Rule,
		Allowed: a.Allowed() || a.Decision == isle.Hold, // who comes waits at the gateway
	}
	if !out.Allowed && !a.Final {
		out.Grant = set.Grant(q)
	}
	return out
}
