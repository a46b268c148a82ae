package owasp

import (
	"encoding/json"
	"strings"
	"testing"
)

// A credential is of one holder, for one place, and of one life: nothing of it
// can be used for another, or again.
func TestNHI9NHIReuse(t *testing.T) {
	w := shared
	one, two := w.machine(t, "reuse-one", "--role", "developer"), w.machine(t, "reuse-two")
	c := w.from(t, "")

	t.Run("by another machine", func(t *testing.T) {
		for what, g := range map[string]grant{
			"another's name":             c.asks(t, "reuse-two", one),
			"another's name in the form": c.asks(t, "reuse-one", one, "client_id", "reuse-two"),
			"a token as the key":         c.asks(t, "reuse-one", c.token(t, "reuse-one", one)),
		} {
			if g.Token != "" {
				t.Errorf("%s: %+v", what, g)
			}
		}
		w.loggedGrant(t, "machine:reuse-two")
		denied(t, "its role by the other's key", c.with(two).call(t, "EnvironmentService/Get", message{"environment": "shop"}), "default: nothing grants it")
	})
	t.Run("a key pair of two", func(t *testing.T) {
		pair, public := newKey(t)
		w.machine(t, "pair-one", "--public-key", public)
		w.refuses(t, "is one of machine:pair-one already", "identity", "create", "pair-two", "--purpose", "a test", "--expires", "1d", "--public-key", public)
		w.refuses(t, "is one of machine:pair-one already", "identity", "rotate", "reuse-two", "--public-key", public)
		there := w.from(t, "")
		if g := there.asserts(t, forge(t, es256, assertionOf("reuse-two", w.url), by(pair))); g.Error != "invalid_client" {
			t.Errorf("in another's name: %+v", g)
		}
		if g := there.asserts(t, forge(t, es256, assertionOf("pair-one", w.url), by(pair)), "client_id", "reuse-two"); g.Error == "" {
			t.Errorf("for another: %+v", g)
		}
		if g := there.asserts(t, forge(t, es256, but(assertionOf("pair-one", w.url), "sub", "reuse-two"), by(pair))); g.Error != "invalid_client" {
			t.Errorf("about another: %+v", g)
		}
		w.must(t, "identity", "revoke", "pair-one", "--reason", "over")
		if out, err := w.Isle("identity", "create", "pair-three", "--purpose", "a test", "--expires", "1d", "--public-key", public); err == nil {
			t.Errorf("a key that was revoked is another's: %s", out)
		}
		there.loggedSource(t, "token:issue")
	})
	t.Run("a name again", func(t *testing.T) {
		w.machine(t, "reuse-gone", "--role", "developer")
		w.must(t, "identity", "revoke", "reuse-gone", "--reason", "over")
		w.refuses(t, "a name is never used again", "identity", "create", "reuse-gone", "--purpose", "a test", "--expires", "1d")
		w.refuses(t, "there is a machine identity reuse-one", "identity", "create", "reuse-one", "--purpose", "a test", "--expires", "1d")
	})
	t.Run("in another stage", func(t *testing.T) {
		denied(t, "a key", c.with(one).call(t, "EnvironmentService/Get", message{"environment": "shop@staging"}), "a session is in one stage")
		w.loggedRefusal(t, "machine:reuse-one", "environment:read", "a session is in one stage")
	})
	t.Run("at another server", func(t *testing.T) {
		other, err := newWorld()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(other.Close)
		other.machine(t, "reuse-one", "--role", "admin") // of the same name
		there := other.from(t, "")
		mine := w.must(t, "token", "create", "--purpose", "a test", "--expires", "1h")
		for what, credential := range map[string]string{
			"a key": one, "a personal token": mine, "an access token": c.token(t, "reuse-one", one),
			"an access token for it": c.token(t, "reuse-one", one, "resource", other.url), "a JWT-SVID for it": w.in(t, "shop", "steal", other.url)["jwt"],
		} {
			unproven(t, what+" of another server", there.with(credential).call(t, "IdentityService/WhoAmI", message{}))
		}
		if g := there.asks(t, "reuse-one", one); g.Error != "invalid_client" {
			t.Errorf("a token for another server's key: %+v", g)
		}
		there.loggedSource(t, "identity:authenticate")
		there.loggedSource(t, "token:issue")
	})
	t.Run("by what is launched again", func(t *testing.T) {
		if err := w.up(t.TempDir(), "name: again\n"+service); err != nil {
			t.Fatal(err)
		}
		first, err := w.Status("again")
		if err != nil {
			t.Fatal(err)
		}
		before := w.in(t, "again", "steal", "x")
		w.must(t, "down", "again", "--volumes")
		if err := w.up(t.TempDir(), "name: again\n"+service); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Isle("down", "again", "--volumes") })
		second, err := w.Status("again")
		if err != nil || first.Instance == second.Instance || first.Launch("web") == second.Launch("web") {
			t.Errorf("%+v and %+v, %v", first, second, err)
		}
		after := w.in(t, "again", "steal", "x")
		for _, what := range []string{"jwt", "x509", "x509 key"} {
			if before[what] == after[what] || after[what] == "" {
				t.Errorf("it has the %s of before", what)
			}
		}
		if a, b := claims(t, before["jwt"])["jti"], claims(t, after["jwt"])["jti"]; a == b {
			t.Errorf("the jti %v twice", a)
		}
		instances := map[string]bool{}
		for line := range strings.Lines(w.must(t, "audit", "search", "-o", "json", "--action", "svid:issue", "--environment", "again")) {
			var e struct{ Instance string }
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatal(err)
			}
			instances[e.Instance] = true
		}
		if !instances[first.Instance] || !instances[second.Instance] {
			t.Errorf("the log does not tell %s from %s: %v", first.Instance, second.Instance, instances)
		}
	})
}
