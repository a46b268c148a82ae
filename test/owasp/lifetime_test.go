package owasp

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Nothing is made without an end, no end is far, and what has ended opens
// nothing, by itself and at once.
func TestNHI7LongLivedSecrets(t *testing.T) {
	w := shared
	root := w.beside(t)
	invalid := func(what string, a answer) {
		t.Helper()
		if a.Code != "invalid_argument" {
			t.Errorf("%s: %v", what, a)
		}
	}
	t.Run("without an end, or with a far one", func(t *testing.T) {
		w.refuses(t, "--expires", "identity", "create", "eternal", "--purpose", "a test")
		w.refuses(t, "--expires", "token", "create", "--purpose", "a test")
		w.refuses(t, "more than 90 days ahead", "token", "create", "--purpose", "a test", "--expires", "91d")
		for what, expires := range map[string]any{"none": nil, "more than a year": inDays(367), "the year 9999": "9999-12-31T23:59:59Z", "the past": inDays(-1), "1970": "1970-01-01T00:00:00Z", "year 1": "0001-01-01T00:00:00Z"} {
			m := message{"name": "eternal", "owner": "human:root", "purpose": "a test"}
			if expires != nil {
				m["expires"] = expires
			}
			invalid("a machine, "+what, root.call(t, "IdentityService/CreateIdentity", m))
			delete(m, "name")
			delete(m, "owner")
			if expires != inDays(367) {
				invalid("a token, "+what, root.call(t, "IdentityService/CreateToken", m))
			}
		}
		invalid("a machine without a purpose", root.call(t, "IdentityService/CreateIdentity", message{"name": "eternal", "owner": "human:root", "expires": inDays(1)}))
		w.refuses(t, "", "identity", "show", "eternal")
	})
	t.Run("a key ends long before its machine", func(t *testing.T) {
		w.must(t, "identity", "create", "steady", "--purpose", "a test", "--expires", "300d")
		m := w.show(t, "steady")
		if len(m.Keys) != 1 || time.Until(m.Keys[0].Expires) > 90*24*time.Hour+time.Minute || time.Until(m.Expires) < 299*24*time.Hour {
			t.Errorf("%+v", m)
		}
		w.refuses(t, "30 days", "identity", "rotate", "steady", "--overlap", "31d")
		for range 12 { // who never lets an old one go
			w.Isle("identity", "rotate", "steady", "--overlap", "30d")
		}
		counting := 0
		for _, k := range w.show(t, "steady").Keys {
			if k.State == "active" {
				counting++
			}
		}
		if counting > 10 {
			t.Errorf("%d keys count at once", counting)
		}
	})
	t.Run("tokens last for minutes", func(t *testing.T) {
		key := w.machine(t, "brief")
		c := w.from(t, "")
		for what, g := range map[string]grant{"plain": c.asks(t, "brief", key), "asked for more": c.asks(t, "brief", key, "expires_in", "86400", "requested_token_lifetime", "86400", "exp", "9999999999")} {
			of := claims(t, g.Token)
			exp, _ := of["exp"].(float64)
			iat, _ := of["iat"].(float64)
			if g.In > 300 || exp-iat > 300 || time.Until(time.Unix(int64(exp), 0)) > 5*time.Minute {
				t.Errorf("%s: %d s, %v", what, g.In, of)
			}
		}
		if g := c.asks(t, "brief", key, "grant_type", "refresh_token"); g.Token != "" {
			t.Errorf("it is renewed without the key: %+v", g)
		}
		got := w.in(t, "shop", "steal", "x")
		for _, what := range []string{"jwt lives", "x509 lives"} {
			if n, err := strconv.Atoi(got[what]); err != nil || n <= 0 || n > 300 {
				t.Errorf("%s %s s", what, got[what])
			}
		}
	})
	t.Run("assertions last for minutes", func(t *testing.T) {
		pair, public := newKey(t)
		w.machine(t, "asserter", "--public-key", public)
		c := w.from(t, "")
		right := assertionOf("asserter", w.url)
		now := time.Now().Unix()
		for what, said := range map[string]map[string]any{
			"an hour": but(right, "exp", now+3600), "no end": but(right, "exp", nil), "over": but(right, "exp", now-60), "an end that is text": but(right, "exp", "9999999999"),
			"far away": but(right, "exp", 1e300), "not yet": but(right, "nbf", now+3600), "made in the future": but(right, "iat", now+3600), "no jti": but(right, "jti", nil),
		} {
			if g := c.asserts(t, forge(t, es256, said, by(pair))); g.Error != "invalid_client" {
				t.Errorf("%s: %+v", what, g)
			}
		}
		w.loggedGrant(t, "machine:asserter")
	})
	t.Run("what has ended ends by itself", func(t *testing.T) {
		key := w.must(t, "identity", "create", "fleeting", "--purpose", "a test", "--expires", "15s", "--role", "developer")
		c := w.from(t, key)
		g := c.asks(t, "fleeting", key)
		if g.Token == "" || g.In > 15 {
			t.Errorf("a token beyond its key's end: %+v", g)
		}
		open := background(t, c, "EnvironmentService/Logs", message{"environment": "shop", "follow": true})
		opens(t, "before", c.call(t, "IdentityService/WhoAmI", message{}))
		select {
		case a := <-open:
			if a.Code == "ok" {
				t.Errorf("its stream: %v", a)
			}
		case <-time.After(patience):
			t.Fatal("its stream goes on")
		}
		eventually(t, "nothing of it counts", func() error {
			for _, credential := range []string{key, g.Token} {
				if a := c.with(credential).call(t, "IdentityService/WhoAmI", message{}); a.Status != 401 {
					return fmt.Errorf("%v", a)
				}
			}
			return nil
		})
		if g := c.asks(t, "fleeting", key); g.Token != "" {
			t.Errorf("a token afterwards: %+v", g)
		}
		w.logged(t, "the end of its stream", func(e entry) bool { return strings.HasPrefix(e.Summary, "ended") }, "--actor", "machine:fleeting", "--action", "environment:logs", "--decision", "deny")
		c.loggedSource(t, "identity:authenticate")
		if out := w.must(t, "policy", "explain", "machine:fleeting", "environment:exec", "environment:shop"); !strings.HasPrefix(out, "deny") {
			t.Errorf("its roles go on: %s", out)
		}
	})
}
