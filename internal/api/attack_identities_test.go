package api

import (
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/authority"
	"isle/internal/identity"
	"isle/internal/policy"
)

const makers = `
roles:
  maker: {actions: ["identity:*"], resources: ["identity:*"], reason: tests, expires: 2099-01-01}
`

// withMaker is the default policy with ann as who makes machines of testing, and
// more bindings.
func withMaker(bindings ...string) string {
	bindings = append(bindings, "{role: maker, subjects: [human:ann], stages: [testing]}")
	return strings.Replace(policy.Default, "bindings:", "bindings:\n  - "+strings.Join(bindings, "\n  - "), 1) + makers
}

// Whoever may do something to machines of testing asks about a name that is
// nobody's yet, over and over. When it becomes one of production's between the
// question and the answer, what was asked is not done to it.
func TestAMachineThatAppearsMeanwhileIsAskedAboutAsWhatItIs(t *testing.T) {
	ann := isle.Actor{Kind: isle.Human, Name: "ann"}
	root := isle.Actor{Kind: isle.Human, Name: Root}
	for what, do := range map[string]func(t *testing.T, c *Client) error{
		"rotate": func(t *testing.T, c *Client) error {
			return second(c.Identities.RotateKey(t.Context(), connect.NewRequest(&islev1.RotateKeyRequest{Name: "deploy"})))
		},
		"revoke": func(t *testing.T, c *Client) error {
			return second(c.Identities.RevokeIdentity(t.Context(), connect.NewRequest(&islev1.RevokeIdentityRequest{Name: "deploy"})))
		},
		"owner": func(t *testing.T, c *Client) error {
			return second(c.Identities.SetOwner(t.Context(), connect.NewRequest(&islev1.SetOwnerRequest{Name: "deploy", Owner: "human:ann"})))
		},
		"see": func(t *testing.T, c *Client) error {
			return second(c.Identities.ListIdentities(t.Context(), connect.NewRequest(&islev1.ListIdentitiesRequest{Name: "deploy"})))
		},
	} {
		t.Run(what, func(t *testing.T) {
			o := newOffice(t)
			apply(t, o.policy, withMaker())
			made := false
			meanwhile := &decider{Authority: o.policy, decide: func(q policy.Query) policy.Answer {
				a := o.policy.Decide(q)
				if q.Actor == ann && !made {
					made = true
					if _, _, err := o.registry.Create(t.Context(), root, identity.NewMachine{Name: "deploy", Owner: root, Purpose: "deploys", Stage: "production", Expires: time.Now().Add(time.Hour)}); err != nil {
						t.Error(err)
					}
				}
				return a
			}}
			if err := do(t, o.asBy(t, meanwhile, ann, nil)); isle.CodeOf(err) != isle.Refused || !made {
				t.Errorf("it was done to a machine of production: %v", err)
			}
			m, _ := o.registry.Machine("deploy")
			if keys := o.registry.Keys(isle.Actor{Kind: isle.Machine, Name: "deploy"}); len(keys) != 1 || !keys[0].Revoked.IsZero() || !m.Revoked.IsZero() || m.Owner != root {
				t.Errorf("%+v %+v", m, keys)
			}
		})
	}
}

// Nor is a machine of production stopped with those of testing.
func TestAMachineThatIsMadeWhileItsOwnerLeavesIsAskedAboutToo(t *testing.T) {
	o := newOffice(t)
	apply(t, o.policy, withMaker())
	ann, bob := isle.Actor{Kind: isle.Human, Name: "ann"}, isle.Actor{Kind: isle.Human, Name: "bob"}
	if _, err := o.root(t).Identities.CreateIdentity(t.Context(), create("ci", func(m *islev1.CreateIdentityRequest) { m.Owner = bob.String() })); err != nil {
		t.Fatal(err)
	}
	asked := 0
	made := make(chan error, 1)
	meanwhile := &decider{Authority: o.policy, decide: func(q policy.Query) policy.Answer {
		if asked++; q.Actor == ann && asked == 2 { // about ci, after the call itself
			go func() {
				_, _, err := o.registry.Create(t.Context(), bob, identity.NewMachine{Name: "deploy", Owner: bob, Purpose: "deploys", Stage: "production", Expires: time.Now().Add(time.Hour)})
				made <- err
			}()
			for range 100 { // it waits for its turn, or has had it
				if _, ok := o.registry.Machine("deploy"); ok {
					break
				}
				time.Sleep(time.Millisecond)
			}
		}
		return o.policy.Decide(q)
	}}
	c := o.asBy(t, meanwhile, ann, nil)
	_, err := c.Identities.OwnerLeft(t.Context(), connect.NewRequest(&islev1.OwnerLeftRequest{Owner: bob.String(), Grace: durationpb.New(0)}))
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	if m, _ := o.registry.Machine("deploy"); !m.Stops.IsZero() {
		t.Errorf("it was stopped: %v", err)
	}
	if m, _ := o.registry.Machine("ci"); m.Stops.IsZero() {
		t.Errorf("ci was not: %v", err)
	}
}

// Roles may wait in the policy for a machine that is not made yet: making it
// gives them to whoever gets its key.
func TestAMachineThatRolesWaitForIsMadeByWhoeverMayChangeThePolicyOnly(t *testing.T) {
	for what, binding := range map[string]string{
		"now":    "{role: admin, subjects: [machine:deploy]}",
		"later":  "{role: developer, subjects: [machine:deploy], stages: [production]}",
		"others": "{role: auditor, subjects: [machine:other, machine:deploy]}",
	} {
		t.Run(what, func(t *testing.T) {
			o := newOffice(t)
			apply(t, o.policy, withMaker(binding))
			ann := o.as(t, isle.Actor{Kind: isle.Human, Name: "ann"}, nil)
			if _, err := ann.Identities.CreateIdentity(t.Context(), create("deploy")); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "policy:apply") {
				t.Errorf("ann has what waits for deploy: %v", err)
			}
			if _, ok := o.registry.Machine("deploy"); ok {
				t.Error("it was made")
			}
			if _, err := ann.Identities.CreateIdentity(t.Context(), create("deploy-2")); err != nil {
				t.Error(err)
			}
			if _, err := o.root(t).Identities.CreateIdentity(t.Context(), create("deploy")); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("Cedar", func(t *testing.T) {
		o := newOffice(t)
		apply(t, o.policy, withMaker())
		_, err := o.policy.Apply(t.Context(), isle.Actor{Kind: isle.Human, Name: Root}, authority.Request{
			Document: policy.Document{Name: "hand", Format: policy.Cedar, Body: []byte(`@id("hand") permit (principal, action, resource) when { principal == Machine::"deploy" };`)}, Confirmations: 2,
		})
		if err != nil {
			t.Fatal(err)
		}
		ann := o.as(t, isle.Actor{Kind: isle.Human, Name: "ann"}, nil)
		if _, err := ann.Identities.CreateIdentity(t.Context(), create("deploy")); isle.CodeOf(err) != isle.Refused {
			t.Errorf("ann has what waits for deploy: %v", err)
		}
		if _, err := ann.Identities.CreateIdentity(t.Context(), create("deploy-2")); err != nil {
			t.Error(err)
		}
	})
}

// What takes no grant is not written down without an end.
func TestAMachineThatLooksAtItselfOnAndOnFillsNoLog(t *testing.T) {
	o := newOffice(t)
	ci := o.machine(t, "ci")
	for n := range 100 {
		if _, err := ci.Identities.ListIdentities(t.Context(), connect.NewRequest(&islev1.ListIdentitiesRequest{Name: []string{"", "ci"}[n%2]})); err != nil {
			t.Fatal(err)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.read) != 1 || o.read[0].Actor.Name != "ci" || o.read[0].Action != isle.ActionIdentityRead {
		t.Errorf("%d entries: %+v", len(o.read), o.read)
	}
}

// Whoever gives a credential where a name belongs has not told it to everybody
// who reads the log.
func TestACredentialGivenAsANameIsNotWrittenDown(t *testing.T) {
	o := newOffice(t)
	res, err := o.root(t).Identities.CreateIdentity(t.Context(), create("ci"))
	if err != nil {
		t.Fatal(err)
	}
	key := res.Msg.GetSecret()
	ann, root := o.as(t, isle.Actor{Kind: isle.Human, Name: "ann"}, nil), o.root(t)
	for _, c := range []*Client{ann, root} {
		for what, err := range map[string]error{
			"create": second(c.Identities.CreateIdentity(t.Context(), create(key))),
			"rotate": second(c.Identities.RotateKey(t.Context(), connect.NewRequest(&islev1.RotateKeyRequest{Name: key}))),
			"revoke": second(c.Identities.RevokeIdentity(t.Context(), connect.NewRequest(&islev1.RevokeIdentityRequest{Name: key}))),
			"see":    second(c.Identities.ListIdentities(t.Context(), connect.NewRequest(&islev1.ListIdentitiesRequest{Name: key}))),
			"key":    second(c.Identities.RevokeKey(t.Context(), connect.NewRequest(&islev1.RevokeKeyRequest{Id: key}))),
			"token":  second(c.Identities.RevokeToken(t.Context(), connect.NewRequest(&islev1.RevokeTokenRequest{Id: key}))),
		} {
			if err == nil || strings.Contains(err.Error(), key[5:20]) {
				t.Errorf("%s: %v", what, err)
			}
		}
		c.Environments.Doors(t.Context(), connect.NewRequest(&islev1.DoorsRequest{Environment: key})) // the log is what matters
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.entries)+len(o.read) == 0 {
		t.Error("nothing was written down")
	}
	for _, e := range append(o.entries, o.read...) {
		if b, err := e.Encode(); err != nil || strings.Contains(string(b), key[5:20]) {
			t.Errorf("%s %v", b, err)
		}
	}
}
