package server

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"isle"
	"isle/internal/api"
	"isle/internal/approval"
	"isle/internal/audit"
	"isle/internal/authority"
	"isle/internal/identity"
	"isle/internal/policy"
)

// openApprovals opens what waits for people. A ledger that is not what it was
// stops nothing but approvals.
func (r *rooms) openApprovals(ctx context.Context) (err error) {
	r.notifier = approval.NewNotifier(approval.NotifierConfig{
		Hooks:  func() []policy.Webhook { return r.policy.State().Set.Webhooks() },
		Secret: r.secrets.Resolve, Dial: r.dialWebhook, URL: r.server.URL, Slog: r.server.log,
	})
	r.approvals, err = approval.Open(ctx, approval.Config{
		Store: r.store, Log: r.store, May: r.mayDecide, Stands: r.requestStands, Notify: r.notifier.Notify, Grants: granter{r.policy},
		Now: r.policy.Now, Slog: r.server.log, Fault: r.server.cfg.fault(),
	})
	if err != nil {
		return err
	}
	r.callback = approval.NewCallback(approval.CallbackConfig{
		Approvals: r.approvals, Notifier: r.notifier,
		Groups: func(person string) ([]string, error) {
			if !speaks(person, r.server.cfg.Group) {
				return nil, isle.Errorf(isle.Refused, "%s may not speak to this server", person)
			}
			return api.GroupsOf(person), nil
		},
		Refused: func(e audit.Entry, source string) { r.refusals.source(e, api.SourceOf(source)) },
	})
	return nil
}

// checkApprovals says whether people can be asked, and what they should look at.
func (r *rooms) checkApprovals() api.Check {
	c := api.Check{Name: "approvals", State: api.CheckOK}
	list, err := r.approvals.List(false)
	if err != nil {
		flat := api.Flatten(err)
		c.State, c.Message, c.Remedy = api.CheckMissing, "nothing can be approved: "+flat.Message, flat.Hint
		return c
	}
	waiting, glass := 0, 0
	for _, q := range list {
		if q.State == approval.Pending {
			waiting++
		}
		if q.Access != nil && q.Access.Glass && q.Access.Review == nil {
			glass++
		}
	}
	if c.Message = fmt.Sprintf("%d requests wait", waiting); glass > 0 {
		c.State, c.Message, c.Remedy = api.CheckWarning, fmt.Sprintf("%s, and nobody has reviewed %d break-glass", c.Message, glass), "isle approvals"
	}
	return c
}

// dialWebhook connects to where a webhook is: a public address, or one that the
// policy names for it.
func (r *rooms) dialWebhook(ctx context.Context, w policy.Webhook, host string, port int) (net.Conn, error) {
	var named []netip.Prefix
	for _, a := range w.Addresses {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			return nil, isle.Errorf(isle.Invalid, "webhook %s: %w", w.Name, err)
		}
		named = append(named, p)
	}
	return r.gateway.Dial(ctx, "", host, port, named)
}

// access is where workloads ask for access. It is composed before anybody asks.
func (r *rooms) access() *api.WorkloadAccess {
	return &api.WorkloadAccess{
		Policy: r.policy, Approvals: r.approvals,
		Owner: func(instance isle.ID) (owner, project string, ok bool) {
			e, ok := r.manager.ByInstance(instance)
			return e.Owner.String(), e.Project, ok
		},
		Connection: func(instance isle.ID, name string) string {
			e, _ := r.manager.ByInstance(instance)
			return e.Spec.Connection(name)
		},
		Refused: func(c api.WorkloadCaller, e audit.Entry) { r.refusals.add(e, c.Ref) },
	}
}

// mayDecide says whether the policy lets somebody decide about a request: its
// rule names them as approver, and a role lets them decide about each resource
// that it is about. Where no rule names anybody, it takes who may change the
// policy, for that is what access for a time is.
func (r *rooms) mayDecide(d approval.Decider, q approval.Request) error {
	set := r.policy.State().Set
	stage := d.Stage
	if stage == "" {
		stage = q.Stage
	}
	query := policy.Query{Actor: d.Actor, Groups: d.Groups, Stage: stage, Now: r.policy.Now()}
	ask := func(action isle.Action, resource isle.Resource) error {
		query.Action, query.Resource = action, resource
		if a := set.Decide(query); !a.Allowed() {
			return isle.Errorf(isle.Refused, "%s may not %s %s: %s", d.Actor, action, resource, a.Rule)
		}
		return nil
	}
	for _, resource := range q.Resources() {
		if err := ask(isle.ActionApprovalDecide, resource); err != nil {
			return err
		}
	}
	if q.Rule == approval.Keepers || q.Access != nil && q.Access.Glass && len(q.Approvers) == 0 {
		return ask(isle.ActionPolicyApply, isle.Resource{Kind: "policy", Name: "policy"})
	}
	if !set.Among(q.Approvers, query) {
		return isle.Errorf(isle.Refused, "%s is none of those who may decide about request %s", d.Actor, q.ID).
			WithHint("they are %v, by %s", q.Approvers, q.Rule)
	}
	return nil
}

// requestStands says whether the policy in force has room for a request, and
// whether who asked for it still may.
func (r *rooms) requestStands(q approval.Request) error {
	set := r.policy.State().Set
	for _, resource := range q.Resources() {
		name := resource.Name
		c, ok := set.Connection(name)
		switch {
		case q.Kind == approval.KindRelease: // what is promoted is in its hash
		case resource.Kind == approval.Egress: // a grant of the environment's; below it is asked for
		case !ok:
			return isle.Errorf(isle.Refused, "there is no connection %s any more", name)
		case c.Stage != q.Stage || q.Access == nil && c.Kind != q.Kind:
			return isle.Errorf(isle.Refused, "the connection %s is another one now", name)
		}
	}
	if x := q.Access; x != nil && x.What == approval.KindRole {
		connections, actions, _, err := api.Reach(set, x.What, x.Name)
		if err != nil || !slices.Equal(connections, x.Connections) || !slices.Equal(actions, x.Actions) {
			return isle.Errorf(isle.Refused, "the role %s is another one now", x.Name)
		}
	}
	if q.Rule != approval.Keepers {
		rule, ok := set.Approval(q.Rule)
		if !ok || rule.Separate != q.Separate || max(rule.Quorum, 1) != q.Quorum || !slices.Equal(rule.Approvers, q.Approvers) {
			return isle.Errorf(isle.Refused, "the rule that it waited under is gone or another: %s", q.Rule)
		}
	}
	query := policy.Query{Actor: q.Actor, Stage: q.Stage, Now: r.policy.Now(), Action: isle.ActionConnectionOpen}
	switch {
	case q.Access != nil:
		query.Action = isle.ActionAccessRequest
	case q.Kind == approval.KindRelease:
		query.Action, query.Project = isle.ActionReleasePromote, q.Connection
	case q.Kind == approval.Egress:
		query.Action = isle.ActionEgressConnect
	}
	switch q.Actor.Kind {
	case isle.Workload:
		e, ok := r.manager.ByInstance(q.Instance)
		if !ok {
			return isle.Errorf(isle.Refused, "the environment %s is gone", q.Actor.Name)
		}
		query.Place = policy.Place{Project: e.Project, Stage: e.Ref.Stage, Environment: e.Ref.Name}
	case isle.Human:
		query.Groups = api.GroupsOf(q.Actor.Name)
	case isle.Machine:
		if m, ok := r.machines.Machine(q.Actor.Name); !ok || r.machines.StateOf(m) != identity.Active {
			return isle.Errorf(isle.Refused, "the machine %s counts no more", q.Actor.Name)
		}
	}
	for _, query.Resource = range q.Resources() {
		if a := set.Decide(query); a.Decision == isle.Deny {
			return isle.Errorf(isle.Refused, "%s may not %s %s any more: %s", q.Actor, query.Action, query.Resource, a.Rule)
		}
	}
	return nil
}

// A granter keeps the document of what was granted for a time.
type granter struct{ policy *authority.Authority }

func (g granter) apply(ctx context.Context, body []byte, dryRun bool) error {
	req := authority.Request{Document: policy.Document{Name: approval.GrantedDocument, Format: policy.YAML, Body: body}, DryRun: dryRun}
	if g.absent() && string(body) == string(approval.Nothing()) {
		return nil
	}
	_, err := g.policy.Apply(ctx, isle.Actor{Kind: isle.System, Name: "approval-access"}, req)
	return err
}

// absent reports whether nothing was ever granted.
func (g granter) absent() bool {
	return !slices.ContainsFunc(g.policy.State().Set.Documents(), func(d policy.Document) bool { return d.Name == approval.GrantedDocument })
}

// Check implements approval.Granter.
func (g granter) Check(ctx context.Context, body []byte) error { return g.apply(ctx, body, true) }

// Publish implements approval.Granter.
func (g granter) Publish(ctx context.Context, body []byte) error { return g.apply(ctx, body, false) }
