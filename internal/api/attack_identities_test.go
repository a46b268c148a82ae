package api

import (
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
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
