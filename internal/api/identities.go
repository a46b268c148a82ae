package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/api/isle/v1/islev1connect"
	"isle/internal/audit"
	"isle/internal/authority"
	"isle/internal/identity"
	"isle/internal/policy"
	"isle/internal/problem"
)

// identities serves the IdentityService.
type identities struct {
	Config
	islev1connect.UnimplementedIdentityServiceHandler

	selves reading // machines that looked at themselves
}

// machineResource is a machine of a name as a resource: it is in its stage. One
// that is not there is in the default one.
func (cfg Config) machineResource(name string) isle.Resource {
	r := isle.Resource{Kind: "identity", Name: clipped(name), Stage: isle.DefaultStage}
	if m, ok := cfg.Identities.Machine(name); ok {
		r.Stage = m.Stage
	}
	return r
}

// onIdentity is a rule for what is done to the machine that a message names.
func (cfg Config) onIdentity(action isle.Action) rule {
	return func(_ context.Context, msg any) []ask {
		return []ask{{action, cfg.machineResource(msg.(interface{ GetName() string }).GetName()), ""}}
	}
}

// onOwnTokens is a rule for what callers do to their own personal tokens.
func onOwnTokens(action isle.Action) rule {
	return func(ctx context.Context, _ any) []ask {
		return []ask{{action, isle.Resource{Kind: "token", Name: actorOf(ctx).Name}, ""}}
	}
}

// identityRules are those of the IdentityService.
func (cfg Config) identityRules() map[string]rule {
	return map[string]rule{
		// Who the caller is, they know: it takes no grant.
		islev1connect.IdentityServiceWhoAmIProcedure:         func(context.Context, any) []ask { return nil },
		islev1connect.IdentityServiceCreateIdentityProcedure: cfg.asksOfCreate,
		islev1connect.IdentityServiceListIdentitiesProcedure: cfg.asksOfList,
		islev1connect.IdentityServiceRotateKeyProcedure:      cfg.onIdentity(isle.ActionIdentityRotate),
		islev1connect.IdentityServiceRevokeIdentityProcedure: cfg.onIdentity(isle.ActionIdentityRevoke),
		islev1connect.IdentityServiceRevokeKeyProcedure:      cfg.asksOfRevokeKey,
		islev1connect.IdentityServiceSetOwnerProcedure:       cfg.onIdentity(isle.ActionIdentityTransfer),
		islev1connect.IdentityServiceOwnerLeftProcedure:      cfg.asksOfOwnerLeft,
		islev1connect.IdentityServiceCreateTokenProcedure:    onOwnTokens(isle.ActionTokenCreate),
		islev1connect.IdentityServiceListTokensProcedure:     onOwnTokens(isle.ActionTokenRead),
		islev1connect.IdentityServiceRevokeTokenProcedure:    onOwnTokens(isle.ActionTokenRevoke),
	}
}

// asksOfCreate is the making of a machine in its stage. That the roles are a
// change of the policy, the handler asks.
func (cfg Config) asksOfCreate(_ context.Context, msg any) []ask {
	m := msg.(*islev1.CreateIdentityRequest)
	return []ask{{isle.ActionIdentityCreate, isle.Resource{Kind: "identity", Name: clipped(m.GetName()), Stage: stageOf(m.GetStage())}, ""}}
}

func stageOf(s string) string {
	if s == "" {
		return isle.DefaultStage
	}
	return s
}

// asksOfList is nothing for a machine that looks at itself, and where all are
// listed: the handler shows those that may be read.
func (cfg Config) asksOfList(ctx context.Context, msg any) []ask {
	name := msg.(*islev1.ListIdentitiesRequest).GetName()
	if name == "" || actorOf(ctx) == (isle.Actor{Kind: isle.Machine, Name: name}) {
		return nil
	}
	return []ask{{isle.ActionIdentityRead, cfg.machineResource(name), ""}}
}

func (cfg Config) asksOfRevokeKey(_ context.Context, msg any) []ask {
	r := isle.Resource{Kind: "identity", Name: "?", Stage: isle.DefaultStage}
	if k, ok := cfg.Identities.Key(isle.ID(msg.(*islev1.RevokeKeyRequest).GetId())); ok && k.Holder.Kind == isle.Machine {
		r = cfg.machineResource(k.Holder.Name)
	} else if ok {
		r.Name, r.Stage = k.Holder.String(), stageOf(k.Stage)
	}
	return []ask{{isle.ActionIdentityRevoke, r, ""}}
}

// asksOfOwnerLeft is about the person. The handler asks about each machine: they
// are of several stages, each of them a session of its own.
func (cfg Config) asksOfOwnerLeft(_ context.Context, msg any) []ask {
	owner := msg.(*islev1.OwnerLeftRequest).GetOwner()
	return []ask{{isle.ActionIdentityTransfer, isle.Resource{Kind: "identity", Name: clipped(owner), Stage: isle.DefaultStage}, ""}}
}

// person reads human:NAME.
func person(s string) (isle.Actor, error) {
	name, ok := strings.CutPrefix(s, "human:")
	if !ok || name == "" || len(name) > 128 {
		return isle.Actor{}, isle.Errorf(isle.Invalid, "%q is no person: want human:NAME", problem.Clip(s))
	}
	return isle.Actor{Kind: isle.Human, Name: name}, nil
}

// CreateIdentity implements the RPC.
func (s *identities) CreateIdentity(ctx context.Context, req *connect.Request[islev1.CreateIdentityRequest]) (*connect.Response[islev1.CreateIdentityResponse], error) {
	m, by := req.Msg, actorOf(ctx)
	n := identity.NewMachine{Name: m.GetName(), Purpose: m.GetPurpose(), Stage: stageOf(m.GetStage())}
	if m.GetExpires() != nil {
		n.Expires = m.GetExpires().AsTime()
	}
	if len(m.GetPublicKey()) > 0 {
		n.PublicKey = m.GetPublicKey()
	}
	switch {
	case m.GetOwner() != "":
		var err error
		if n.Owner, err = person(m.GetOwner()); err != nil {
			return nil, err
		}
	case by.Kind == isle.Human:
		n.Owner = by
	}
	if err := s.Identities.Plan(by, n); err != nil {
		return nil, err
	}
	if err := s.mayBind(ctx, n, m.GetRoles()); err != nil {
		return nil, err
	}
	// What the policy holds ready for the name goes to whoever gets the key, as
	// if it were given now.
	if s.Policy.State().Set.Awaits(n.Name, s.Policy.Now()) {
		if err := s.allowed(ctx, ask{isle.ActionPolicyApply, isle.Resource{Kind: "policy", Name: "policy"}, ""}); err != nil {
			return nil, err
		}
	}
	machine, key, err := s.Identities.Create(ctx, by, n)
	if err != nil {
		return nil, err
	}
	if err := s.bind(ctx, n, m.GetRoles(), false); err != nil {
		flat := Flatten(err)
		return nil, isle.Errorf(flat.Code, "the machine identity %s was made, but without its roles and its key: %s", n.Name, flat.Message).
			WithHint("give it its roles with `isle apply --document %s`, and a key with `isle identity rotate %s --overlap 0s`; or end it with `isle identity revoke %s`", policy.MachinesDocument, n.Name, n.Name)
	}
	return connect.NewResponse(&islev1.CreateIdentityResponse{Identity: s.identityMessage(machine), Secret: key.Secret}), nil
}

// maxRoles bounds the roles that are given at once.
const maxRoles = 50

// mayBind says whether the caller may give a machine roles, and whether that
// would work.
func (s *identities) mayBind(ctx context.Context, n identity.NewMachine, roles []string) error {
	if len(roles) == 0 {
		return nil
	}
	if len(roles) > maxRoles {
		return isle.Errorf(isle.Invalid, "%d roles, at most %d", len(roles), maxRoles)
	}
	var known []string
	for _, r := range s.Policy.State().Set.Roles() {
		known = append(known, r.Name)
	}
	for _, r := range roles {
		if slices.Contains(known, r) {
			continue
		}
		err := isle.Errorf(isle.Invalid, "there is no role %q", problem.Clip(r))
		if best, near := problem.Nearest(r, known); near {
			return err.WithHint("did you mean %s? `isle role ls` lists them", best)
		}
		return err.WithHint("`isle role ls` lists them")
	}
	if err := s.allowed(ctx, ask{isle.ActionPolicyApply, isle.Resource{Kind: "policy", Name: "policy"}, ""}); err != nil {
		return err
	}
	return s.bind(ctx, n, roles, true)
}

// bind gives a machine roles in its stage until its end.
func (s *identities) bind(ctx context.Context, n identity.NewMachine, roles []string, dryRun bool) error {
	if len(roles) == 0 {
		return nil
	}
	var bindings []policy.Binding
	for _, r := range slices.Compact(slices.Sorted(slices.Values(roles))) {
		bindings = append(bindings, policy.Binding{
			Role: r, Subjects: []policy.Subject{{Kind: "machine", Name: n.Name}}, Stages: []string{n.Stage},
			Expires: n.Expires, Reason: n.Purpose,
		})
	}
	_, err := s.Policy.Apply(ctx, actorOf(ctx), authority.Request{
		Document: policy.Document{Name: policy.MachinesDocument, Format: policy.YAML}, DryRun: dryRun,
		Edit: func(body []byte) ([]byte, error) { return policy.Bind(body, bindings...) },
	})
	return err
}

// ListIdentities implements the RPC.
func (s *identities) ListIdentities(ctx context.Context, req *connect.Request[islev1.ListIdentitiesRequest]) (*connect.Response[islev1.ListIdentitiesResponse], error) {
	res := &islev1.ListIdentitiesResponse{}
	if name := req.Msg.GetName(); name != "" {
		if self := actorOf(ctx); self == (isle.Actor{Kind: isle.Machine, Name: name}) { // the rule asked nothing
			m, ok := s.Identities.Machine(name)
			if !ok {
				return nil, s.noMachine(ctx, name)
			}
			if err := s.recordSelf(ctx); err != nil {
				return nil, err
			}
			res.Identities = append(res.Identities, s.identityMessage(m))
			return connect.NewResponse(res), nil
		}
		m, err := s.named(ctx, isle.ActionIdentityRead, name)
		if err != nil {
			return nil, err
		}
		res.Identities = append(res.Identities, s.identityMessage(m))
		return connect.NewResponse(res), nil
	}
	seen, err := s.readable(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range seen {
		res.Identities = append(res.Identities, s.identityMessage(m))
	}
	return connect.NewResponse(res), nil
}

// mayRead reports whether the policy lets the caller see a machine.
func (s *identities) mayRead(ctx context.Context, r isle.Resource) bool {
	who, _ := callerFrom(ctx)
	return who.member && s.Policy.Decide(queriesOf(who, ask{isle.ActionIdentityRead, r, ""})[0]).Allowed()
}

// readable are the machines that the caller may see: those that the policy says,
// and of a machine itself. It records that they were read.
func (s *identities) readable(ctx context.Context) ([]identity.Machine, error) {
	self := actorOf(ctx)
	var out []identity.Machine
	for _, m := range s.Identities.Machines() {
		if self == (isle.Actor{Kind: isle.Machine, Name: m.Name}) || s.mayRead(ctx, s.machineResource(m.Name)) {
			out = append(out, m)
		}
	}
	if self.Kind == isle.Machine {
		return out, s.recordSelf(ctx)
	}
	who, _ := callerFrom(ctx)
	asked := isle.Resource{Kind: "identity", Name: "*", Stage: isle.DefaultStage}
	if len(out) > 0 { // the one that is known to be granted
		asked = s.machineResource(out[0].Name)
	}
	q := queriesOf(who, ask{isle.ActionIdentityRead, asked, ""})
	answers, err := s.guard.may(ctx, who, q, "")
	if err != nil {
		return nil, err
	}
	q[0].Resource.Name = "*"
	return out, s.Audit.AppendSoon(ctx, entryOf(q[0], answers[0], fmt.Sprintf("%d of them", len(out))))
}

// recordSelf records that a machine looked at itself, unless that was written a
// moment ago: it takes no grant, and so no role bounds how often it is done.
func (s *identities) recordSelf(ctx context.Context) error {
	self := actorOf(ctx)
	e := audit.NewEvent(self, isle.ActionIdentityRead, s.machineResource(self.Name), isle.Allow, "")
	e.Rule = "built in: a machine sees itself"
	return s.selves.record(self, time.Now(), func() error { return s.Audit.AppendSoon(ctx, e) })
}

// named finds the machine that a call names. The rule asked about the name, which
// may have been nobody's then and become a machine of another stage since, so it
// is asked again about the machine: its name and stage stay what they are.
func (s *identities) named(ctx context.Context, action isle.Action, name string) (identity.Machine, error) {
	m, ok := s.Identities.Machine(name)
	if !ok {
		return m, s.noMachine(ctx, name)
	}
	return m, s.allowed(ctx, ask{action, s.machineResource(name), ""})
}

// noMachine says that there is no machine of a name, and the nearest that the
// caller may see.
func (s *identities) noMachine(ctx context.Context, name string) error {
	var names []string
	for _, m := range s.Identities.Machines() {
		if s.mayRead(ctx, s.machineResource(m.Name)) {
			names = append(names, m.Name)
		}
	}
	err := isle.Errorf(isle.NotFound, "there is no machine identity %q", problem.Clip(identity.Redacted(name)))
	if best, near := problem.Nearest(name, names); near {
		return err.WithHint("did you mean %s? `isle identity ls --all` lists them", best)
	}
	return err.WithHint("`isle identity ls --all` lists them")
}

// RotateKey implements the RPC.
func (s *identities) RotateKey(ctx context.Context, req *connect.Request[islev1.RotateKeyRequest]) (*connect.Response[islev1.RotateKeyResponse], error) {
	m := req.Msg
	if _, err := s.named(ctx, isle.ActionIdentityRotate, m.GetName()); err != nil {
		return nil, err
	}
	overlap := identity.DefaultOverlap
	if m.GetOverlap() != nil {
		overlap = m.GetOverlap().AsDuration()
	}
	var public []byte
	if len(m.GetPublicKey()) > 0 {
		public = m.GetPublicKey()
	}
	k, end, err := s.Identities.Rotate(ctx, actorOf(ctx), m.GetName(), overlap, public)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.RotateKeyResponse{Key: s.keyMessage(k.Key), Secret: k.Secret, OthersEnd: timestamp(end)}), nil
}

// RevokeIdentity implements the RPC.
func (s *identities) RevokeIdentity(ctx context.Context, req *connect.Request[islev1.RevokeIdentityRequest]) (*connect.Response[islev1.RevokeIdentityResponse], error) {
	name := req.Msg.GetName()
	if _, err := s.named(ctx, isle.ActionIdentityRevoke, name); err != nil {
		return nil, err
	}
	m, err := s.Identities.Revoke(ctx, actorOf(ctx), name, req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	if err := s.unbind(ctx, name); err != nil {
		flat := Flatten(err)
		return nil, isle.Errorf(flat.Code, "the machine identity %s is revoked, but its bindings still stand in the policy document %s: %s", name, policy.MachinesDocument, flat.Message).
			WithHint("they give nobody anything; to tidy up: `isle policy show %s`, `isle apply --document %s`", policy.MachinesDocument, policy.MachinesDocument)
	}
	return connect.NewResponse(&islev1.RevokeIdentityResponse{Identity: s.identityMessage(m)}), nil
}

// unbind removes the roles of a machine that never counts again. It takes
// nothing from anybody, and so no grant.
func (s *identities) unbind(ctx context.Context, name string) error {
	subject := policy.Subject{Kind: "machine", Name: name}
	for _, d := range s.Policy.State().Set.Documents() {
		if d.Name != policy.MachinesDocument || d.Format != policy.YAML || !strings.Contains(string(d.Body), subject.String()) {
			continue
		}
		_, err := s.Policy.Apply(ctx, actorOf(ctx), authority.Request{
			Document: policy.Document{Name: policy.MachinesDocument, Format: policy.YAML},
			Edit: func(body []byte) ([]byte, error) {
				body, _, err := policy.Unbind(body, subject)
				return body, err
			},
		})
		return err
	}
	return nil
}

// RevokeKey implements the RPC.
func (s *identities) RevokeKey(ctx context.Context, req *connect.Request[islev1.RevokeKeyRequest]) (*connect.Response[islev1.RevokeKeyResponse], error) {
	k, err := s.Identities.RevokeKey(ctx, actorOf(ctx), isle.ID(req.Msg.GetId()), req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.RevokeKeyResponse{Key: s.keyMessage(k)}), nil
}

// SetOwner implements the RPC.
func (s *identities) SetOwner(ctx context.Context, req *connect.Request[islev1.SetOwnerRequest]) (*connect.Response[islev1.SetOwnerResponse], error) {
	if _, err := s.named(ctx, isle.ActionIdentityTransfer, req.Msg.GetName()); err != nil {
		return nil, err
	}
	owner, err := person(req.Msg.GetOwner())
	if err != nil {
		return nil, err
	}
	m, err := s.Identities.SetOwner(ctx, actorOf(ctx), req.Msg.GetName(), owner)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.SetOwnerResponse{Identity: s.identityMessage(m)}), nil
}

// OwnerLeft implements the RPC.
func (s *identities) OwnerLeft(ctx context.Context, req *connect.Request[islev1.OwnerLeftRequest]) (*connect.Response[islev1.OwnerLeftResponse], error) {
	m := req.Msg
	owner, err := person(m.GetOwner())
	if err != nil {
		return nil, err
	}
	grace := identity.DefaultGrace
	if m.GetGrace() != nil {
		grace = m.GetGrace().AsDuration()
	}
	machines, tokens, err := s.Identities.OwnerLeft(ctx, actorOf(ctx), owner, grace, m.GetDryRun(), func(owned []identity.Machine, tokens int) error {
		for _, o := range owned {
			if err := s.allowed(ctx, ask{isle.ActionIdentityTransfer, s.machineResource(o.Name), ""}); err != nil {
				return err
			}
		}
		if tokens == 0 {
			return nil
		}
		return s.allowed(ctx, ask{isle.ActionIdentityRevoke, isle.Resource{Kind: "identity", Name: owner.String(), Stage: isle.DefaultStage}, ""})
	})
	if err != nil {
		return nil, err
	}
	res := &islev1.OwnerLeftResponse{}
	for _, m := range machines {
		res.Identities = append(res.Identities, s.identityMessage(m))
	}
	for _, k := range tokens {
		res.Tokens = append(res.Tokens, s.keyMessage(k))
	}
	return connect.NewResponse(res), nil
}

// CreateToken implements the RPC. Only whom the kernel vouches for makes tokens:
// one that was stolen must not become another, which lasts longer or stays when
// the first is revoked.
func (s *identities) CreateToken(ctx context.Context, req *connect.Request[islev1.CreateTokenRequest]) (*connect.Response[islev1.CreateTokenResponse], error) {
	who, _ := callerFrom(ctx)
	if who.subject != nil {
		q := queriesOf(who, onOwnTokens(isle.ActionTokenCreate)(ctx, nil)...)
		return nil, s.guard.refuse(ctx, q[0], policy.Answer{
			Decision: isle.Deny, Rule: "built in: a token makes no tokens", Final: true,
			Message: "make it on the server's machine, where the operating system vouches for you: `isle token create`",
		}, "")
	}
	n := identity.NewToken{Purpose: req.Msg.GetPurpose(), Stage: req.Msg.GetStage()}
	if req.Msg.GetExpires() != nil {
		n.Expires = req.Msg.GetExpires().AsTime()
	}
	k, err := s.Identities.CreateToken(ctx, who.actor, n)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.CreateTokenResponse{Key: s.keyMessage(k.Key), Secret: k.Secret}), nil
}

// ListTokens implements the RPC.
func (s *identities) ListTokens(ctx context.Context, _ *connect.Request[islev1.ListTokensRequest]) (*connect.Response[islev1.ListTokensResponse], error) {
	res := &islev1.ListTokensResponse{}
	if who := actorOf(ctx); who.Kind == isle.Human {
		for _, k := range s.Identities.Keys(who) {
			res.Tokens = append(res.Tokens, s.keyMessage(k))
		}
	}
	return connect.NewResponse(res), nil
}

// RevokeToken implements the RPC.
func (s *identities) RevokeToken(ctx context.Context, req *connect.Request[islev1.RevokeTokenRequest]) (*connect.Response[islev1.RevokeTokenResponse], error) {
	k, err := s.Identities.RevokeToken(ctx, actorOf(ctx), isle.ID(req.Msg.GetId()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&islev1.RevokeTokenResponse{Key: s.keyMessage(k)}), nil
}

func (s *identities) keyMessage(k identity.Key) *islev1.Key {
	return &islev1.Key{
		Id: string(k.ID), Kind: k.Kind, Holder: k.Holder.String(), Hint: k.Hint, Purpose: k.Purpose, Stage: k.Stage,
		Created: timestamp(k.Created), Expires: timestamp(k.Expires), Revoked: timestamp(k.Revoked),
		LastUsed: timestamp(k.LastUsed), LastSource: k.LastSource, State: s.Identities.StateOfKey(k),
	}
}

func (s *identities) identityMessage(m identity.Machine) *islev1.Identity {
	now := s.Policy.Now()
	out := &islev1.Identity{
		Id: string(m.ID), Name: m.Name, Owner: m.Owner.String(), Purpose: m.Purpose, Stage: m.Stage,
		Created: timestamp(m.Created), CreatedBy: m.CreatedBy.String(), Expires: timestamp(m.Expires), Revoked: timestamp(m.Revoked),
		OwnerLeft: timestamp(m.OwnerLeft), Stops: timestamp(m.Stops), State: s.Identities.StateOf(m),
	}
	for _, name := range []string{m.Name, "*"} {
		for _, role := range s.Policy.State().Set.RolesOf(policy.Subject{Kind: "machine", Name: name}, now) {
			if !slices.Contains(out.Roles, role) {
				out.Roles = append(out.Roles, role)
			}
		}
	}
	keys := s.Identities.Keys(isle.Actor{Kind: isle.Machine, Name: m.Name})
	var last identity.Key
	for _, k := range keys {
		out.Keys = append(out.Keys, s.keyMessage(k))
		if k.LastUsed.After(last.LastUsed) {
			last = k
		}
	}
	out.LastUsed, out.LastSource = timestamp(last.LastUsed), last.LastSource
	if out.State == identity.Active {
		out.Flags = s.flagsOf(m, keys, last.LastUsed, now)
	}
	return out
}

// What should be looked at.
const (
	unusedAfter = 30 * 24 * time.Hour
	soon        = 14 * 24 * time.Hour
)

// flagsOf says what should be looked at of a machine that counts.
func (s *identities) flagsOf(m identity.Machine, keys []identity.Key, used, now time.Time) (out []string) {
	days := func(d time.Duration) string {
		switch n := int(d.Hours() / 24); n {
		case 0:
			return "less than a day"
		case 1:
			return "1 day"
		default:
			return fmt.Sprintf("%d days", n)
		}
	}
	var live []identity.Key
	var lasts time.Time // the end of the key that goes on the longest
	for _, k := range keys {
		if s.Identities.StateOfKey(k) == identity.Active {
			live = append(live, k)
			if k.Expires.After(lasts) {
				lasts = k.Expires
			}
		}
	}
	if used.IsZero() {
		out = append(out, "never used")
	} else if d := now.Sub(used); d >= unusedAfter {
		out = append(out, "unused for "+days(d))
	}
	if d := m.Expires.Sub(now); d < soon {
		out = append(out, "expires in "+days(d))
	}
	if !m.OwnerLeft.IsZero() {
		out = append(out, "owner left, stops in "+days(m.Stops.Sub(now)))
	}
	switch {
	case len(live) == 0:
		out = append(out, "no key that counts")
	case len(live) > 1:
		out = append(out, fmt.Sprintf("%d keys live", len(live)))
	}
	if d := lasts.Sub(now); len(live) > 0 && d < soon && lasts.Before(m.Expires) {
		out = append(out, "key expires in "+days(d))
	}
	return out
}
