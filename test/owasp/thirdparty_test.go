package owasp

import (
	"crypto/rand"
	"testing"
	"time"
)

// A third party that was broken into has no more than it was given: its role in
// its stage, until its end or the moment it is revoked; and what it is shown on
// the way is of no use anywhere else.
func TestNHI3VulnerableThirdPartyNHI(t *testing.T) {
	w := shared
	key := w.machine(t, "vendor", "--role", "operator")
	thief := w.from(t, key)
	opens(t, "what the vendor is for", thief.call(t, "EnvironmentService/Get", message{"environment": "shop"}))

	t.Run("its key opens nothing more", func(t *testing.T) {
		for what, try := range map[string]struct {
			procedure string
			message   message
			rule      string
		}{
			"a shell":                  {"EnvironmentService/Exec", message{"start": message{"environment": "shop", "command": []string{"/inside", "reach"}}}, "default: nothing grants it"},
			"files":                    {"EnvironmentService/CopyOut", message{"environment": "shop", "path": "/inside"}, "default: nothing grants it"},
			"another stage":            {"EnvironmentService/Get", message{"environment": "shop@staging"}, "a session is in one stage"},
			"production":               {"EnvironmentService/Down", message{"environments": []string{"shop@production"}}, "a session is in one stage"},
			"the policy":               {"PolicyService/Apply", message{"name": "main", "format": "yaml"}, "default: nothing grants it"},
			"the log":                  {"ServerService/Audit", message{}, "default: nothing grants it"},
			"an identity to come back": {"IdentityService/CreateIdentity", message{"name": "backdoor", "owner": "human:root", "purpose": "x", "expires": inDays(300), "roles": []string{"admin"}}, "default: nothing grants it"},
			"a longer key":             {"IdentityService/RotateKey", message{"name": "vendor"}, "default: nothing grants it"},
			"a token of a person":      {"IdentityService/CreateToken", message{"purpose": "x", "expires": inDays(1)}, "may not token:create"},
			"secrets":                  {"SecretService/ListSecrets", message{}, "default: nothing grants it"},
			"a secret of its own":      {"SecretService/SetSecret", message{"name": "db", "value": []byte("x")}, "default: nothing grants it"},
			"others' identities":       {"IdentityService/ListIdentities", message{"name": "leaky"}, ""},
			"the server's end":         {"ServerService/Stop", message{}, ""},
		} {
			denied(t, what, thief.call(t, try.procedure, try.message), try.rule)
		}
		for _, action := range []string{"environment:exec", "policy:apply", "identity:create", "identity:rotate", "audit:read", "secret:set"} {
			w.loggedRefusal(t, "machine:vendor", action, "default: nothing grants it")
		}
		w.loggedRefusal(t, "machine:vendor", "environment:down", "a session is in one stage")
	})
	t.Run("a token for one party is nothing to another", func(t *testing.T) {
		elsewhere := thief.token(t, "vendor", key, "resource", "https://vendor.example")
		if aud := claims(t, elsewhere)["aud"]; aud != "https://vendor.example" {
			t.Errorf("it is for %v", aud)
		}
		unproven(t, "a token that the vendor was shown", thief.with(elsewhere).call(t, "IdentityService/WhoAmI", message{}))
		if g := thief.asks(t, "vendor", elsewhere); g.Error != "invalid_client" {
			t.Errorf("another token for it: %+v", g)
		}
	})
	t.Run("an assertion that is overheard", func(t *testing.T) {
		pair, public := newKey(t)
		w.machine(t, "signer", "--public-key", public)
		there := w.from(t, "")
		elsewhere := assertionOf("signer", "https://vendor.example/oauth/token")
		if g := there.asserts(t, forge(t, es256, elsewhere, by(pair))); g.Error != "invalid_client" {
			t.Errorf("one that was made for another server: %+v", g)
		}
		both := but(assertionOf("signer", w.url), "aud", []string{w.url, "https://vendor.example"})
		if g := there.asserts(t, forge(t, es256, both, by(pair))); g.Error != "invalid_client" {
			t.Errorf("one that was made for another server too: %+v", g)
		}
		once := forge(t, es256, assertionOf("signer", w.url), by(pair))
		if g := there.asserts(t, once); g.Token == "" {
			t.Fatalf("its own: %+v", g)
		}
		if g := there.asserts(t, once); g.Error != "invalid_client" {
			t.Errorf("the same again: %+v", g)
		}
		other, _ := newKey(t)
		if g := there.asserts(t, forge(t, es256, but(assertionOf("signer", w.url), "jti", rand.Text()), by(other))); g.Error != "invalid_client" {
			t.Errorf("one by another key: %+v", g)
		}
		w.loggedGrant(t, "machine:signer")
	})
	t.Run("it is cut off at once", func(t *testing.T) {
		token := thief.token(t, "vendor", key)
		open := background(t, thief, "EnvironmentService/Logs", message{"environment": "shop", "follow": true})
		w.must(t, "identity", "revoke", "vendor", "--reason", "the vendor was broken into")
		select {
		case <-open:
		case <-time.After(patience):
			t.Error("its stream goes on")
		}
		unproven(t, "its key", thief.call(t, "IdentityService/WhoAmI", message{}))
		unproven(t, "its token", thief.with(token).call(t, "IdentityService/WhoAmI", message{}))
		thief.loggedSource(t, "identity:authenticate")
	})
}
