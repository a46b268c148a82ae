package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/api/isle/v1/islev1connect"
	"isle/internal/approval"
	"isle/internal/audit"
	"isle/internal/identity"
	"isle/internal/policy"
	"isle/internal/problem"
)

// Approvals are what waits for a human; *approval.Approvals implements it.
type Approvals interface {
	List(all bool) ([]approval.Request, error)
	Get(id isle.ID) (approval.Request, error)
	Watch(ctx context.Context, emit func(approval.Request) error) error
	Approve(ctx context.Context, d approval.Decider, id isle.ID, hash isle.Digest, reason string) (approval.Request, error)
	Deny(ctx context.Context, d approval.Decider, id isle.ID, reason string) (approval.Request, error)
	Access
	Asked
}

// Access is access for a time; *approval.Approvals implements it.
type Access interface {
	Request(ctx context.Context, r approval.Request) (approval.Request, error)
	Break(ctx context.Context, r approval.Request) (approval.Request, error)
	Reviewed(ctx context.Context, d approval.Decider, id isle.ID, reason string) (approval.Request, error)
}

// Asked are requests whose asker does not wait for the answer; *approval.Approvals
// implements it.
type Asked interface {
	Ask(ctx context.Context, r approval.Request) (approval.Request, error)
	Find(ctx context.Context, r approval.Request) (found approval.Request, ok bool, err error)
	Acquire(ctx context.Context, r approval.Request, waiting func(approval.Request) error) (approval.Use, error)
	PassedOver(ctx context.Context, r approval.Request, what string) (approval.Request, error)
}

// approvals serves the ApprovalService.
type approvals struct{ Config }

// approvalRules are those of the ApprovalService.
func (cfg Config) approvalRules() map[string]rule {
	decide := func(ctx context.Context, msg any) []ask {
		return cfg.onRequest(ctx, isle.ActionApprovalDecide, msg.(interface{ GetId() string }).GetId())
	}
	// For an environment it takes what entering it takes: who asks could use it.
	onOther := func(ctx context.Context, msg any) []ask {
		if name := msg.(*islev1.AccessRequest).GetEnvironment(); name != "" {
			return []ask{cfg.onEnvironment(ctx, isle.ActionEnvironmentExec, name)}
		}
		return nil
	}
	// What is listed is what the caller may see: the handler asks about each.
	none := func(context.Context, any) []ask { return nil }
	return map[string]rule{
		islev1connect.ApprovalServiceListApprovalsProcedure:  none,
		islev1connect.ApprovalServiceWatchApprovalsProcedure: none,
		islev1connect.ApprovalServiceGetApprovalProcedure: func(ctx context.Context, msg any) []ask {
			return cfg.onRequest(ctx, isle.ActionApprovalRead, msg.(*islev1.GetApprovalRequest).GetId())
		},
		islev1connect.ApprovalServiceApproveProcedure: decide,
		islev1connect.ApprovalServiceDenyProcedure:    decide,
		islev1connect.ApprovalServiceReviewProcedure:  decide,
		// That an approval holds it is what asking is for: NewAccess decides.
		islev1connect.ApprovalServiceRequestAccessProcedure: onOther,
		islev1connect.ApprovalServiceBreakGlassProcedure:    onOther,
	}
}

// onRequest is an action on the connections of a request. What people asked for
// themselves they may see, and want no more, without a grant.
func (cfg Config) onRequest(ctx context.Context, action isle.Action, id string) (out []ask) {
	r, err := cfg.Approvals.Get(isle.ID(id))
	if err != nil {
		return []ask{{action, isle.Resource{Kind: "connection", Name: "?", Stage: isle.DefaultStage}, ""}}
	}
	who, _ := callerFrom(ctx)
	if own(who, r) && (action == isle.ActionApprovalRead || who.actor == r.Actor && r.Actor.Kind == isle.Human) {
		return nil
	}
	for _, resource := range r.Resources() {
		out = append(out, ask{action, resource, ""})
	}
	return out
}

// own reports whether a request is somebody's own, or of what they answer for,
// and of the stage that their session is in, if it is in one.
func own(who caller, r approval.Request) bool {
	if stage := who.stage(); stage != "" && stage != r.Stage {
		return false
	}
	return who.actor == r.Actor || who.actor.Kind == isle.Human && who.actor.String() == r.Owner
}

// visible reports whether the caller may see a request.
func (s *approvals) visible(who caller, r approval.Request) bool {
	if !who.member {
		return false
	}
	if own(who, r) {
		return true
	}
	for _, resource := range r.Resources() {
		q := queriesOf(who, ask{isle.ActionApprovalRead, resource, ""})
		if !s.Policy.Decide(q[0]).Allowed() {
			return false
		}
	}
	return true
}

// ListApprovals implements the RPC.
func (s *approvals) ListApprovals(ctx context.Context, req *connect.Request[islev1.ListApprovalsRequest]) (*connect.Response[islev1.ListApprovalsResponse], error) {
	list, err := s.Approvals.List(req.Msg.GetAll())
	if err != nil {
		return nil, err
	}
	who, err := s.member(ctx)
	if err != nil {
		return nil, err
	}
	res := &islev1.ListApprovalsResponse{}
	for _, r := range list {
		if s.visible(who, r) {
			res.Approvals = append(res.Approvals, approvalMessage(r, false))
		}
	}
	return connect.NewResponse(res), s.recordList(ctx, fmt.Sprintf("%d of them", len(res.Approvals)))
}

// member is the caller of a call that the guard asked nothing about, if they may
// speak to the server at all.
func (s *approvals) member(ctx context.Context) (caller, error) {
	who, _ := callerFrom(ctx)
	if who.member {
		return who, nil
	}
	q := policy.Query{Actor: who.actor, Action: isle.ActionApprovalRead, Resource: isle.Resource{Kind: "connection", Name: "*"}}
	return who, s.guard.refuse(ctx, q, policy.Answer{Decision: isle.Deny, Rule: strangers, Final: true}, "")
}

// recordList records that somebody looked at what waits.
func (s *approvals) recordList(ctx context.Context, summary string) error {
	e := audit.NewEvent(actorOf(ctx), isle.ActionApprovalRead, isle.Resource{Kind: "connection", Name: "*"}, isle.Allow, summary)
	e.Rule = "built in: of those that may be read"
	return s.Audit.AppendSoon(ctx, e)
}

// GetApproval implements the RPC.
func (s *approvals) GetApproval(_ context.Context, req *connect.Request[islev1.GetApprovalRequest]) (*connect.Response[islev1.GetApprovalResponse], error) {
	r, err := s.Approvals.Get(isle.ID(req.Msg.GetId()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.GetApprovalResponse{Approval: approvalMessage(r, true)}), nil
}

// WatchApprovals implements the RPC.
func (s *approvals) WatchApprovals(ctx context.Context, _ *connect.Request[islev1.WatchApprovalsRequest], stream *connect.ServerStream[islev1.Approval]) error {
	if _, err := s.member(ctx); err != nil {
		return err
	}
	if err := s.recordList(ctx, "watched"); err != nil {
		return err
	}
	return s.Approvals.Watch(ctx, func(r approval.Request) error {
		if who, _ := callerFrom(ctx); !s.visible(who, r) {
			return nil
		}
		return stream.Send(approvalMessage(r, false))
	})
}

// deciderOf is the caller of a call, as who decides.
func deciderOf(ctx context.Context) approval.Decider {
	who, _ := callerFrom(ctx)
	return approval.Decider{Actor: who.actor, Groups: who.groups, Stage: who.stage()}
}

// Approve implements the RPC.
func (s *approvals) Approve(ctx context.Context, req *connect.Request[islev1.ApproveRequest]) (*connect.Response[islev1.ApproveResponse], error) {
	m := req.Msg
	r, err := s.Approvals.Approve(ctx, deciderOf(ctx), isle.ID(m.GetId()), isle.Digest(m.GetHash()), m.GetReason())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.ApproveResponse{Approval: approvalMessage(r, false)}), nil
}

// Deny implements the RPC.
func (s *approvals) Deny(ctx context.Context, req *connect.Request[islev1.DenyRequest]) (*connect.Response[islev1.DenyResponse], error) {
	r, err := s.Approvals.Deny(ctx, deciderOf(ctx), isle.ID(req.Msg.GetId()), req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.DenyResponse{Approval: approvalMessage(r, false)}), nil
}

// Review implements the RPC.
func (s *approvals) Review(ctx context.Context, req *connect.Request[islev1.ReviewRequest]) (*connect.Response[islev1.ReviewResponse], error) {
	r, err := s.Approvals.Reviewed(ctx, deciderOf(ctx), isle.ID(req.Msg.GetId()), req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.ReviewResponse{Approval: approvalMessage(r, false)}), nil
}

// Reach are the connections that a role or a door opens, and what a role lets one
// do there. A role is given for a time only if it is of named connections of one
// stage, and of nothing else.
func Reach(set *policy.Set, what, name string) (connections []string, actions []isle.Action, stage string, err error) {
	switch what {
	case approval.KindDoor:
		c, ok := set.Connection(name)
		if !ok {
			return nil, nil, "", isle.Errorf(isle.NotFound, "there is no connection %q", problem.Clip(name)).WithHint("connections are in the policy: isle policy show")
		}
		return []string{name}, nil, c.Stage, nil
	case approval.KindRole:
		role, ok := set.Role(name)
		if !ok {
			return nil, nil, "", isle.Errorf(isle.NotFound, "there is no role %q", problem.Clip(name)).WithHint("`isle role ls` lists them")
		}
		for _, p := range role.Resources {
			c, ok := set.Connection(p.Name)
			if p.Kind != "connection" || !ok || stage != "" && stage != c.Stage {
				return nil, nil, "", isle.Errorf(isle.Refused, "the role %s is not given for a time: it is not of named connections of one stage alone", name).
					WithHint("ask for a door instead: isle request door CONNECTION")
			}
			connections, stage = append(connections, p.Name), c.Stage
		}
		return connections, role.Actions, stage, nil
	}
	return nil, nil, "", isle.Errorf(isle.Invalid, "%q: want a role or a door", problem.Clip(what))
}

// doorActions are those of a door for a time.
func doorActions(kind string, write bool) []isle.Action {
	out := []isle.Action{isle.ActionConnectionOpen}
	switch kind {
	case "postgres":
		if out = append(out, isle.ActionPostgresSelect); write {
			out = append(out, isle.ActionPostgresWrite)
		}
	case "http":
		if out = append(out, isle.ActionHTTPRead); write {
			out = append(out, isle.ActionHTTPWrite)
		}
	}
	return out
}

// accessOf is the request that a message makes.
func (s *approvals) accessOf(ctx context.Context, action isle.Action, m *islev1.AccessRequest) (approval.Request, error) {
	who, err := s.member(ctx)
	if err != nil {
		return approval.Request{}, err
	}
	subject := policy.Subject{Kind: string(who.actor.Kind), Name: who.actor.Name}
	var ref isle.Ref
	if m.GetEnvironment() != "" {
		var err error
		if ref, err = isle.ParseRef(m.GetEnvironment()); err != nil {
			return approval.Request{}, err
		}
		e, err := s.Environments.Get(ctx, ref)
		if err != nil {
			return approval.Request{}, err
		}
		subject = policy.Subject{Kind: string(isle.Workload), Project: e.Project, Stage: ref.Stage, Environment: ref.Name}
	}
	r, no, err := newAccess(s.Policy, policy.Query{Actor: who.actor, Groups: who.groups, Stage: who.stage(), Action: action}, m, subject)
	if no != nil {
		return r, s.guard.refuse(ctx, no.query, no.answer, "")
	}
	r.Ref = ref
	if m, ok := s.machine(who.actor); ok {
		r.Owner = m.Owner.String()
	}
	return r, err
}

// machine is the machine identity of an actor.
func (cfg Config) machine(actor isle.Actor) (m identity.Machine, ok bool) {
	if actor.Kind != isle.Machine {
		return m, false
	}
	return cfg.Identities.Machine(actor.Name)
}

// A denial is what the policy does not let somebody ask for.
type denial struct {
	query  policy.Query
	answer policy.Answer
}

// newAccess is a request for access by whom a query is of, with who may approve
// it: whom the policy's approvals of the action name, and where there are none
// whoever keeps the policy.
func newAccess(p Policy, by policy.Query, m *islev1.AccessRequest, subject policy.Subject) (approval.Request, *denial, error) {
	set := p.State().Set
	connections, actions, stage, err := Reach(set, m.GetWhat(), m.GetName())
	if err != nil {
		return approval.Request{}, nil, err
	}
	if subject.Stage != "" && subject.Stage != stage {
		return approval.Request{}, nil, isle.Errorf(isle.Refused, "connection %s is of stage %s, and the environment of %s", connections[0], stage, subject.Stage)
	}
	x := &approval.Access{What: m.GetWhat(), Name: m.GetName(), Connections: connections, Actions: actions, For: m.GetFor().AsDuration(), Subject: subject}
	if c, ok := set.Connection(x.Name); ok && x.What == approval.KindDoor {
		x.Actions = doorActions(c.Kind, m.GetWrite() || by.Action == isle.ActionAccessBreakGlass)
	}
	r := approval.Request{Actor: by.Actor, Stage: stage, Why: m.GetWhy(), Actions: []isle.Action{by.Action}, Access: x, Rule: approval.Keepers}
	if by.Stage == "" {
		by.Stage = stage
	}
	for _, name := range connections {
		by.Resource = isle.Resource{Kind: "connection", Name: name, Stage: stage}
		a := p.Decide(by)
		if a.Decision == isle.Deny {
			return approval.Request{}, &denial{by, a}, nil
		}
		for i, h := range a.Holds {
			if i == 0 && r.Rule != approval.Keepers && r.Rule != h.String() || i > 0 {
				return approval.Request{}, nil, isle.Errorf(isle.Refused, "more than one rule says who approves %s of %s: %s and %s", by.Action, x.Name, r.Rule, h).
					WithHint("whoever keeps the policy gives it as a binding with an end")
			}
			r.Rule, r.Approvers, r.Quorum, r.Separate, r.Notify = h.String(), h.Approvers, h.Quorum, h.Separate, h.Notify
		}
	}
	return r, nil, nil
}

// RequestAccess implements the RPC.
func (s *approvals) RequestAccess(ctx context.Context, req *connect.Request[islev1.AccessRequest]) (*connect.Response[islev1.AccessResponse], error) {
	r, err := s.accessOf(ctx, isle.ActionAccessRequest, req.Msg)
	if err == nil {
		r, err = s.Approvals.Request(ctx, r)
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.AccessResponse{Approval: approvalMessage(r, true)}), nil
}

// BreakGlass implements the RPC.
func (s *approvals) BreakGlass(ctx context.Context, req *connect.Request[islev1.AccessRequest]) (*connect.Response[islev1.AccessResponse], error) {
	if req.Msg.GetEnvironment() != "" {
		return nil, isle.Errorf(isle.Invalid, "people break the glass for themselves, not for an environment")
	}
	r, err := s.accessOf(ctx, isle.ActionAccessBreakGlass, req.Msg)
	if err == nil {
		r, err = s.Approvals.Break(ctx, r)
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.AccessResponse{Approval: approvalMessage(r, true)}), nil
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func verdictMessage(v approval.Verdict) *islev1.ApprovalVerdict {
	return &islev1.ApprovalVerdict{Actor: v.Actor.String(), At: stamp(v.At), Approve: v.Approve, Reason: v.Reason, Via: v.Via}
}

// approvalMessage is a request on the wire, with its text where that is asked for.
func approvalMessage(r approval.Request, whole bool) *islev1.Approval {
	m := &islev1.Approval{
		Id: string(r.ID), State: r.State, Asked: stamp(r.Asked), Expires: stamp(r.Expires), Actor: r.Actor.String(), Owner: r.Owner, Chain: r.Chain,
		Instance: string(r.Instance), Session: string(r.Session), Source: r.Source, Connection: r.Connection, Kind: r.Kind, Stage: r.Stage,
		Address: r.Address, Database: r.Database, Role: r.Role, Rule: r.Rule, Shape: r.Shape, Estimate: r.Estimate, Why: r.Why, Hash: string(r.Hash),
		Approvers: slices.Clone(r.Approvers), Quorum: int32(r.Quorum), Separate: r.Separate, NoWait: r.NoWait, ValidFor: durationpb.New(r.ValidFor),
		Uses: int32(r.Uses), Used: int32(r.Used), Count: int32(r.Count), Until: stamp(r.Until), Ended: stamp(r.Ended), Ending: r.Ending,
	}
	if r.Ref.Name != "" {
		m.Environment = r.Ref.Name + "@" + r.Ref.Stage
	}
	for _, a := range r.Actions {
		m.Actions = append(m.Actions, string(a))
	}
	for _, v := range r.Decisions {
		m.Decisions = append(m.Decisions, verdictMessage(v))
	}
	if x := r.Access; x != nil {
		m.Access = &islev1.Access{What: x.What, Name: x.Name, Subject: x.Subject.String(), For: durationpb.New(x.For), Until: stamp(x.Until), Granted: x.Granted, BreakGlass: x.Glass}
		for _, a := range x.Actions {
			m.Access.Actions = append(m.Access.Actions, string(a))
		}
		if x.Review != nil {
			m.Access.Review = verdictMessage(*x.Review)
		}
	}
	if !whole {
		return m
	}
	m.Text = r.Text
	for _, p := range r.Params {
		m.Params = append(m.Params, &islev1.ApprovalParam{Type: p.Type, Value: p.Value, Null: p.Null, Binary: p.Binary})
	}
	for _, p := range r.Context {
		m.Settings = append(m.Settings, &islev1.ApprovalSetting{Key: strings.ToValidUTF8(p.Key, "?"), Value: strings.ToValidUTF8(p.Value, "?")})
	}
	return m
}

var _ Approvals = (*approval.Approvals)(nil)
