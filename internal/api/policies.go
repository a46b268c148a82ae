package api

import (
	"context"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/authority"
	"isle/internal/policy"
)

// policies serves the PolicyService.
type policies struct{ Config }

// Show implements the RPC.
func (s *policies) Show(_ context.Context, req *connect.Request[islev1.ShowRequest]) (*connect.Response[islev1.ShowResponse], error) {
	state := s.Policy.State()
	res := &islev1.ShowResponse{Epoch: state.Epoch}
	for _, d := range state.Set.Documents() {
		res.Documents = append(res.Documents, &islev1.PolicyDocument{Name: d.Name, Format: d.Format, Version: int32(d.Version), Body: d.Body})
	}
	if req.Msg.GetCedar() {
		res.Cedar = string(state.Set.CedarText())
	}
	return connect.NewResponse(res), nil
}

// Apply implements the RPC.
func (s *policies) Apply(ctx context.Context, req *connect.Request[islev1.ApplyRequest]) (*connect.Response[islev1.ApplyResponse], error) {
	m := req.Msg
	d := policy.Document{Name: m.GetDocument(), Format: m.GetFormat(), Body: m.GetBody()}
	if d.Name == "" {
		d.Name = policy.DefaultDocument
	}
	if d.Format == "" {
		d.Format = policy.YAML
	}
	actor := actorOf(ctx)
	r, err := s.Policy.Apply(ctx, actor, authority.Request{Document: d, DryRun: m.GetDryRun(), Confirmations: int(m.GetConfirmations())})
	if isle.CodeOf(err) == isle.Refused && err != nil {
		// The authority decides this one: it knows the change.
		q := policy.Query{Actor: actor, Action: isle.ActionPolicyApply, Resource: isle.Resource{Kind: "policy", Name: "policy"}}
		s.guard.refuse(ctx, q, policy.Answer{Decision: isle.Deny, Rule: "built in: nobody is locked out unasked", Final: true}, "")
	}
	if err != nil {
		return nil, err
	}
	r.Warnings = append(r.Warnings, s.unknownSecrets(d)...)
	res := &islev1.ApplyResponse{Changed: r.Changed, Warnings: r.Warnings, Version: int32(r.Version), Epoch: r.Epoch, LocksOut: r.LocksOut}
	for _, c := range r.Changes {
		res.Changes = append(res.Changes, &islev1.PolicyChange{Subject: c.Subject, Gains: c.Gains, What: c.What})
	}
	return connect.NewResponse(res), nil
}

// Explain implements the RPC.
func (s *policies) Explain(ctx context.Context, req *connect.Request[islev1.ExplainRequest]) (*connect.Response[islev1.ExplainResponse], error) {
	m := req.Msg
	q := policy.Query{Now: s.Policy.Now(), Project: m.GetProject(), Stage: m.GetStage()}
	if err := policy.ParseActor(m.GetActor(), &q); err != nil {
		return nil, err
	}
	var err error
	if q.Action, err = policy.ParseAction(m.GetAction()); err != nil {
		return nil, err
	}
	if q.Resource, err = policy.ParseResource(m.GetResource()); err != nil {
		return nil, err
	}
	if q.Stage == "" {
		q.Stage = q.Resource.Stage
	}
	if q.Project == "" && q.Resource.Kind == "environment" {
		if e, err := s.Environments.Get(ctx, isle.Ref{Name: q.Resource.Name, Stage: q.Resource.Stage}); err == nil {
			q.Project = e.Project
		}
	}
	if q.Actor.Kind == isle.Human && q.Groups == nil {
		q.Groups = GroupsOf(q.Actor.Name)
	}
	e := s.Policy.State().Set.Explain(q)
	res := &islev1.ExplainResponse{
		Decision: string(e.Decision), Rule: e.Rule, Because: e.Because, Final: e.Final, Message: e.Message, Roles: e.Roles,
		Evaluated: int32(e.Evaluated), Total: int32(e.Total), Groups: q.Groups,
	}
	for _, g := range e.Grants {
		res.Grants = append(res.Grants, &islev1.PolicyGrant{Role: g.Role, Binding: g.Binding, NewRole: g.New})
	}
	return connect.NewResponse(res), nil
}

// Roles implements the RPC.
func (s *policies) Roles(context.Context, *connect.Request[islev1.RolesRequest]) (*connect.Response[islev1.RolesResponse], error) {
	res := &islev1.RolesResponse{}
	for _, r := range s.Policy.State().Set.Roles() {
		res.Roles = append(res.Roles, &islev1.RoleInfo{
			Name: r.Name, Does: r.Does, Actions: r.Actions, Resources: r.Resources, Subjects: r.Subjects, Builtin: r.Builtin, At: r.At,
		})
	}
	return connect.NewResponse(res), nil
}
