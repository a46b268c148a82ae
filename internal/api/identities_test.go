package api

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/authority"
	"isle/internal/environment"
	"isle/internal/identity"
	"isle/internal/ledger/ledgertest"
	"isle/internal/policy"
)

// An office serves identities to callers of any kind.
type office struct {
	*rooms
	policy   *authority.Authority
	registry *identity.Registry
}

func newOffice(t *testing.T) *office {
	t.Helper()
	store := ledgertest.New()
	registry, err := identity.OpenRegistry(t.Context(), identity.RegistryConfig{Store: store, Log: store})
	if err != nil {
		t.Fatal(err)
	}
	return &office{&rooms{envs: map[isle.Ref]environment.Environment{}}, newPolicy(t), registry}
}

// as serves a caller; subject is what a credential proved, nil for whom the
// kernel vouches for.
func (o *office) as(t *testing.T, actor isle.Actor, subject *identity.Subject) *Client {
	t.Helper()
	return o.asBy(t, o.policy, actor, subject)
}

// asBy is as, by another policy.
func (o *office) asBy(t *testing.T, p Policy, actor isle.Actor, subject *identity.Subject) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{
		Handler: New(Config{Environments: o, Builder: o, Blobs: o, Audit: o, Host: o, Policy: p, Identities: o.registry, Credentials: o.registry, Log: slog.New(slog.DiscardHandler)}),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, actorKey{}, caller{actor: actor, member: true, subject: subject})
		},
		Protocols: new(http.Protocols),
	}
	srv.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	c := NewClient(socket)
	t.Cleanup(func() { c.Close(); srv.Close(); <-done })
	return c
}

func (o *office) root(t *testing.T) *Client {
	return o.as(t, isle.Actor{Kind: isle.Human, Name: Root}, nil)
}

func create(name string, more ...func(*islev1.CreateIdentityRequest)) *connect.Request[islev1.CreateIdentityRequest] {
	m := &islev1.CreateIdentityRequest{Name: name, Purpose: "builds the shop", Expires: timestamppb.New(time.Now().Add(100 * 24 * time.Hour))}
	for _, f := range more {
		f(m)
	}
	return connect.NewRequest(m)
}

func withRoles(roles ...string) func(*islev1.CreateIdentityRequest) {
	return func(m *islev1.CreateIdentityRequest) { m.Roles = roles }
}

func inStage(stage string) func(*islev1.CreateIdentityRequest) {
	return func(m *islev1.CreateIdentityRequest) { m.Stage = stage }
}

// machine makes one, and returns a client that is it.
func (o *office) machine(t *testing.T, name string, more ...func(*islev1.CreateIdentityRequest)) *Client {
	t.Helper()
	res, err := o.root(t).Identities.CreateIdentity(t.Context(), create(name, more...))
	if err != nil {
		t.Fatal(err)
	}
	s, err := o.registry.Authenticate(t.Context(), res.Msg.GetSecret(), "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	return o.as(t, s.Actor, &s)
}

func TestAMachineGetsItsRolesInItsStageUntilItsEnd(t *testing.T) {
	o := newOffice(t)
	c := o.root(t)
	res, err := c.Identities.CreateIdentity(t.Context(), create("ci", inStage("staging"), withRoles("developer", "developer", "auditor")))
	if err != nil {
		t.Fatal(err)
	}
	i := res.Msg.GetIdentity()
	if i.GetOwner() != "human:root" || i.GetState() != "active" || strings.Join(i.GetRoles(), " ") != "auditor developer" || !slices.Equal(i.GetFlags(), []string{"never used"}) || len(i.GetKeys()) != 1 {
		t.Errorf("%+v", i)
	}
	may := func(stage string, now time.Time) bool {
		return o.policy.State().Set.Decide(policy.Query{
			Actor: isle.Actor{Kind: isle.Machine, Name: "ci"}, Stage: stage, Action: isle.ActionEnvironmentExec,
			Resource: isle.Resource{Kind: "environment", Name: "shop", Stage: stage}, Now: now,
		}).Allowed()
	}
	if !may("staging", time.Now()) || may("testing", time.Now()) || may("staging", i.GetExpires().AsTime()) {
		t.Error("the binding is not of its stage, or has no end")
	}
	if _, err := c.Identities.RevokeIdentity(t.Context(), connect.NewRequest(&islev1.RevokeIdentityRequest{Name: "ci"})); err != nil {
		t.Fatal(err)
	}
	for _, d := range o.policy.State().Set.Documents() {
		if strings.Contains(string(d.Body), "machine:ci") {
			t.Errorf("its bindings stay:\n%s", d.Body)
		}
	}
	if may("staging", time.Now()) {
		t.Error("it may still")
	}
}

func TestRolesAreGivenByWhoeverMayChangeThePolicyOnly(t *testing.T) {
	o := newOffice(t)
	apply(t, o.policy, policy.Default+`
roles:
  maker: {actions: ["identity:*"], resources: ["identity:*"], reason: tests, expires: 2099-01-01}
`)
	apply(t, o.policy, strings.Replace(policy.Default, "bindings:", "bindings:\n  - {role: maker, subjects: [human:ann], stages: [testing]}", 1)+`
roles:
  maker: {actions: ["identity:*"], resources: ["identity:*"], reason: tests, expires: 2099-01-01}
`)
	ann := o.as(t, isle.Actor{Kind: isle.Human, Name: "ann"}, nil)
	if _, err := ann.Identities.CreateIdentity(t.Context(), create("ci", withRoles("auditor"))); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "policy:apply") {
		t.Errorf("%v", err)
	}
	if _, ok := o.registry.Machine("ci"); ok {
		t.Error("half of it was done")
	}
	if _, err := ann.Identities.CreateIdentity(t.Context(), create("ci", inStage("staging"))); isle.CodeOf(err) != isle.Refused {
		t.Errorf("a binding in testing made a machine of staging: %v", err)
	}
	if _, err := ann.Identities.CreateIdentity(t.Context(), create("ci")); err != nil {
		t.Error(err)
	}
	_, err := o.root(t).Identities.CreateIdentity(t.Context(), create("cd", withRoles("develper")))
	if isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), "did you mean developer") {
		t.Errorf("%v", err)
	}
	if _, ok := o.registry.Machine("cd"); ok {
		t.Error("it was made without its role")
	}
}

func TestWhatAMachineReadOfAnotherIsRecordedAsThat(t *testing.T) {
	o := newOffice(t)
	o.machine(t, "other")
	ci := o.machine(t, "ci")
	apply(t, o.policy, "roles: {reader: {actions: [identity:read], resources: [\"identity:other\"]}}\nbindings: [{role: admin, subjects: [human:root]}, {role: reader, subjects: [machine:ci]}]")
	for _, name := range []string{"other", "ci"} {
		o.read = nil
		if _, err := ci.Identities.ListIdentities(t.Context(), connect.NewRequest(&islev1.ListIdentitiesRequest{Name: name})); err != nil {
			t.Fatal(err)
		}
		if len(o.read) != 1 || o.read[0].Resource.Name != name {
			t.Errorf("it read %s: %+v", name, o.read)
		}
	}
}

func TestAMachineSeesItselfAndWhatThePolicyLetsIt(t *testing.T) {
	o := newOffice(t)
	o.machine(t, "other")
	ci := o.machine(t, "ci")
	list := func(c *Client, name string) (names []string, err error) {
		res, err := c.Identities.ListIdentities(t.Context(), connect.NewRequest(&islev1.ListIdentitiesRequest{Name: name}))
		if err != nil {
			return nil, err
		}
		for _, i := range res.Msg.GetIdentities() {
			names = append(names, i.GetName())
		}
		return names, nil
	}
	if names, err := list(ci, ""); err != nil || !slices.Equal(names, []string{"ci"}) {
		t.Errorf("%v %v", names, err)
	}
	if names, err := list(ci, "ci"); err != nil || len(names) != 1 {
		t.Errorf("%v %v", names, err)
	}
	if _, err := list(ci, "other"); isle.CodeOf(err) != isle.Refused {
		t.Errorf("%v", err)
	}
	if _, err := list(o.as(t, isle.Actor{Kind: isle.Human, Name: "ann"}, nil), ""); isle.CodeOf(err) != isle.Refused {
		t.Errorf("somebody without a role sees them: %v", err)
	}
	if names, err := list(o.root(t), ""); err != nil || len(names) != 2 {
		t.Errorf("%v %v", names, err)
	}
	if _, err := list(o.root(t), "othre"); isle.CodeOf(err) != isle.NotFound || !strings.Contains(err.Error(), "did you mean other?") {
		t.Errorf("%v", err)
	}
	if _, err := list(ci, "nobody"); isle.CodeOf(err) != isle.Refused {
		t.Errorf("who may not see them learns which there are: %v", err)
	}
	// And does nothing to itself or others without a role.
	for what, err := range map[string]error{
		"rotate": second(ci.Identities.RotateKey(t.Context(), connect.NewRequest(&islev1.RotateKeyRequest{Name: "ci"}))),
		"revoke": second(ci.Identities.RevokeIdentity(t.Context(), connect.NewRequest(&islev1.RevokeIdentityRequest{Name: "other"}))),
		"owner":  second(ci.Identities.SetOwner(t.Context(), connect.NewRequest(&islev1.SetOwnerRequest{Name: "ci", Owner: "human:root"}))),
		"create": second(ci.Identities.CreateIdentity(t.Context(), create("more"))),
		"left":   second(ci.Identities.OwnerLeft(t.Context(), connect.NewRequest(&islev1.OwnerLeftRequest{Owner: "human:root"}))),
		"key":    second(ci.Identities.RevokeKey(t.Context(), connect.NewRequest(&islev1.RevokeKeyRequest{Id: "x"}))),
		"token":  second(ci.Identities.CreateToken(t.Context(), connect.NewRequest(&islev1.CreateTokenRequest{}))),
		"tokens": second(ci.Identities.ListTokens(t.Context(), connect.NewRequest(&islev1.ListTokensRequest{}))),
	} {
		if isle.CodeOf(err) != isle.Refused {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestAnAdministratingMachineStaysInItsStage(t *testing.T) {
	o := newOffice(t)
	o.machine(t, "prod", inStage("production"))
	ci := o.machine(t, "ci", withRoles("admin"))
	if _, err := ci.Identities.CreateIdentity(t.Context(), create("more", func(m *islev1.CreateIdentityRequest) { m.Owner = "human:root" })); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"create": second(ci.Identities.CreateIdentity(t.Context(), create("evil", inStage("production"), func(m *islev1.CreateIdentityRequest) { m.Owner = "human:root" }))),
		"rotate": second(ci.Identities.RotateKey(t.Context(), connect.NewRequest(&islev1.RotateKeyRequest{Name: "prod"}))),
		"revoke": second(ci.Identities.RevokeIdentity(t.Context(), connect.NewRequest(&islev1.RevokeIdentityRequest{Name: "prod"}))),
		"see":    second(ci.Identities.ListIdentities(t.Context(), connect.NewRequest(&islev1.ListIdentitiesRequest{Name: "prod"}))),
		"left":   second(ci.Identities.OwnerLeft(t.Context(), connect.NewRequest(&islev1.OwnerLeftRequest{Owner: "human:root"}))),
	} {
		if isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "one stage") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestATokenMakesNoTokens(t *testing.T) {
	o := newOffice(t)
	who := isle.Actor{Kind: isle.Human, Name: Root}
	req := &islev1.CreateTokenRequest{Purpose: "laptop", Expires: timestamppb.New(time.Now().Add(time.Hour))}
	res, err := o.root(t).Identities.CreateToken(t.Context(), connect.NewRequest(req))
	if err != nil {
		t.Fatal(err)
	}
	s, err := o.registry.Authenticate(t.Context(), res.Msg.GetSecret(), "192.0.2.1")
	if err != nil || s.Actor != who {
		t.Fatalf("%+v %v", s, err)
	}
	c := o.as(t, who, &s)
	for _, d := range []time.Duration{time.Minute, 80 * 24 * time.Hour} {
		req.Expires = timestamppb.New(time.Now().Add(d))
		if _, err := c.Identities.CreateToken(t.Context(), connect.NewRequest(req)); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "a token makes no tokens") {
			t.Errorf("%v", err)
		}
	}
	o.mu.Lock()
	last := o.entries[len(o.entries)-1]
	o.mu.Unlock()
	if last.Action != isle.ActionTokenCreate || last.Decision != isle.Deny {
		t.Errorf("%+v", last)
	}
	if _, err := c.Identities.RevokeToken(t.Context(), connect.NewRequest(&islev1.RevokeTokenRequest{Id: string(s.Key)})); err != nil || o.registry.Check(s) == nil {
		t.Errorf("it cannot end itself: %v", err)
	}
}

func TestARevocationCountsEvenWhereItsBindingsCannotGo(t *testing.T) {
	o := newOffice(t)
	c := o.root(t)
	if _, err := c.Identities.CreateIdentity(t.Context(), create("keeper", withRoles("admin"))); err != nil {
		t.Fatal(err)
	}
	apply(t, o.policy, `
roles: {ender: {actions: [identity:revoke], resources: ["identity:keeper"]}}
bindings: [{role: ender, subjects: [human:root]}]
`) // the machine alone may change the policy
	_, err := c.Identities.RevokeIdentity(t.Context(), connect.NewRequest(&islev1.RevokeIdentityRequest{Name: "keeper"}))
	if isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "keeper is revoked, but its bindings still stand") {
		t.Errorf("%v", err)
	}
	if m, _ := o.registry.Machine("keeper"); o.registry.StateOf(m) != identity.Revoked {
		t.Error("it is not revoked")
	}
}

func TestOwnersAreSaidToHaveLeft(t *testing.T) {
	o := newOffice(t)
	c := o.root(t)
	for name, stage := range map[string]string{"a": "testing", "b": "staging"} {
		if _, err := c.Identities.CreateIdentity(t.Context(), create(name, inStage(stage), func(m *islev1.CreateIdentityRequest) { m.Owner = "human:ann" })); err != nil {
			t.Fatal(err)
		}
	}
	res, err := c.Identities.OwnerLeft(t.Context(), connect.NewRequest(&islev1.OwnerLeftRequest{Owner: "human:ann", Grace: durationpb.New(3 * 24 * time.Hour)}))
	if err != nil || len(res.Msg.GetIdentities()) != 2 {
		t.Fatalf("%v %v", res, err)
	}
	if f := res.Msg.GetIdentities()[0].GetFlags(); !slices.Contains(f, "owner left, stops in 2 days") {
		t.Errorf("%v", f)
	}
	for _, wrong := range []string{"", "ann", "machine:a", "human:"} {
		if _, err := c.Identities.SetOwner(t.Context(), connect.NewRequest(&islev1.SetOwnerRequest{Name: "a", Owner: wrong})); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%q: %v", wrong, err)
		}
	}
	set, err := c.Identities.SetOwner(t.Context(), connect.NewRequest(&islev1.SetOwnerRequest{Name: "a", Owner: "human:bob"}))
	if err != nil || set.Msg.GetIdentity().GetStops() != nil || set.Msg.GetIdentity().GetOwner() != "human:bob" {
		t.Errorf("%v %v", set, err)
	}
}

func TestWhatShouldBeLookedAtIsSaid(t *testing.T) {
	o := newOffice(t)
	now := time.Now()
	s := &identities{Config: Config{Identities: o.registry}}
	day := 24 * time.Hour
	m := identity.Machine{Expires: now.Add(100 * day)}
	key := func(ends, used time.Duration) identity.Key {
		k := identity.Key{Expires: now.Add(ends)}
		if used != 0 {
			k.LastUsed = now.Add(-used)
		}
		return k
	}
	for want, keys := range map[string][]identity.Key{
		"never used":                     {key(80*day, 0)},
		"":                               {key(80*day, day)},
		"unused for 40 days":             {key(80*day, 40*day)},
		"2 keys live":                    {key(80*day, day), key(90*day, 0)},
		"no key that counts":             {key(-day, day)},
		"never used, no key that counts": nil,
		"key expires in 5 days":          {key(5*day, day), key(-day, 0)},
		"unused for 31 days, key expires in less than a day": {key(day/2, 31*day)},
	} {
		var used time.Time
		for _, k := range keys {
			if k.LastUsed.After(used) {
				used = k.LastUsed
			}
		}
		if got := strings.Join(s.flagsOf(m, keys, used, now), ", "); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	m.Expires, m.OwnerLeft, m.Stops = now.Add(3*day), now, now.Add(36*time.Hour)
	if got := strings.Join(s.flagsOf(m, []identity.Key{key(3*day, day)}, now, now), ", "); got != "expires in 3 days, owner left, stops in 1 day" {
		t.Error(got)
	}
}
