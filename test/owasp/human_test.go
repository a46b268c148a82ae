package owasp

import (
	"encoding/json"
	"strings"
	"testing"
)

// A person who uses what is a machine's or a workload's becomes nobody by it: it
// can be seen whose it is, where it came from and who was there.
func TestNHI10HumanUseOfNHI(t *testing.T) {
	w := shared
	key := w.machine(t, "borrowed", "--role", "developer")

	t.Run("a person answers for each", func(t *testing.T) {
		for _, owner := range []string{"machine:borrowed", "group:root", "workload:x", "root", "human:", "human:nobody-of-that-name"} {
			w.refuses(t, "", "identity", "create", "ownerless", "--purpose", "a test", "--expires", "1d", "--owner", owner)
		}
		if m := w.show(t, "borrowed"); m.Owner != "human:root" {
			t.Errorf("%+v", m)
		}
	})
	t.Run("a machine's key in a person's hand", func(t *testing.T) {
		path := writeFile(t, "key", key)
		cmd := w.Command("--server", w.url, "whoami", "-o", "json")
		cmd.Env = append(cmd.Env, "ISLE_TOKEN_FILE="+path, "ISLE_PIN="+w.pin)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), `"machine:borrowed"`) || strings.Contains(string(out), "human:") {
			t.Errorf("%v: %s", err, out)
		}
		c := w.from(t, key)
		opens(t, "the key", c.call(t, "EnvironmentService/Get", message{"environment": "shop"}))
		// Each new address that a key comes from is written down, and shown.
		w.logged(t, "where it came from", func(e entry) bool { return e.Details["source"] == c.source }, "--actor", "machine:borrowed", "--action", "identity:authenticate", "--decision", "allow")
		if out := w.must(t, "identity", "show", "borrowed", "-o", "json"); !strings.Contains(out, c.source) {
			t.Errorf("it does not show %s: %s", c.source, out)
		}
		// It makes the person nothing that they would be without it.
		for procedure, m := range map[string]message{
			"PolicyService/Apply": {"name": "main", "format": "yaml"}, "IdentityService/CreateToken": {"purpose": "mine", "expires": inDays(1)},
			"IdentityService/ListTokens": {}, "IdentityService/SetOwner": {"name": "borrowed", "owner": "human:daemon"},
		} {
			denied(t, procedure, c.call(t, procedure, m), "")
		}
		w.loggedRefusal(t, "machine:borrowed", "token:create", "")
		w.loggedRefusal(t, "machine:borrowed", "identity:transfer", "default: nothing grants it")
	})
	t.Run("a machine's key beside the kernel's word", func(t *testing.T) {
		a := w.beside(t).call(t, "EnvironmentService/Get", message{"environment": "no-such"}, "Authorization", "Bearer "+key, "X-Forwarded-User", "machine:borrowed")
		if a.Code != "not_found" {
			t.Errorf("root by the socket: %v", a)
		}
		w.logged(t, "a person by the socket is that person", func(e entry) bool {
			return e.Actor.Kind == "human" && e.Actor.Name == "root" && e.Resource.Name == "no-such"
		}, "--action", "environment:read")
		for _, e := range w.entries(t, "--actor", "machine:borrowed", "--action", "environment:read") {
			if e.Resource.Name == "no-such" {
				t.Errorf("it is the machine's in the log: %+v", e)
			}
		}
	})
	t.Run("a person's token is that person", func(t *testing.T) {
		mine := w.must(t, "token", "create", "--purpose", "a test", "--expires", "1h")
		var who struct{ Actor string }
		if a := w.from(t, mine).call(t, "IdentityService/WhoAmI", message{}); json.Unmarshal(a.Body, &who) != nil || who.Actor != "human:root" {
			t.Errorf("%v %s", a, a.Body)
		}
		if g := w.from(t, "").asks(t, "root", mine); g.Token != "" {
			t.Errorf("a machine's token for it: %+v", g)
		}
	})
	t.Run("a workload's identity in a person's hand", func(t *testing.T) {
		id := w.in(t, "shop", "steal", "elsewhere")["id"]
		// Who had a command open inside is named in the entry of the document.
		sessions := map[string]bool{}
		for line := range strings.Lines(w.must(t, "audit", "search", "-o", "json", "--actor", "human:root", "--action", "environment:exec", "--environment", "shop")) {
			var e struct{ ID, Link string }
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatal(err)
			}
			sessions[e.ID] = true
		}
		w.logged(t, "the session of who asked", func(e entry) bool {
			return e.Actor.Name == id && e.Details["audience"] == "elsewhere" && len(e.Sessions) > 0 && sessions[e.Sessions[0]]
		}, "--action", "svid:issue", "--decision", "allow")
		got := w.in(t, "shop", "steal", w.url)
		c := w.from(t, got["jwt"])
		a := c.call(t, "EnvironmentService/List", message{})
		unproven(t, "outside", a)
		if !strings.Contains(a.Message, "only inside its own airlock") {
			t.Errorf("it says %v", a)
		}
		c.logged(t, "who it was", func(e entry) bool {
			return e.Details["claimed"] == id && e.Details["source"] == c.source && strings.Contains(e.Rule, "airlock")
		}, "--action", "identity:authenticate", "--decision", "deny")
	})
}
