package owasp

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Who has left, and what was revoked, opens nothing more: no key, no token that
// was given for it, no stream that was open, not after a crash either.
func TestNHI1ImproperOffboarding(t *testing.T) {
	w := shared
	for name, end := range map[string]func(name string){
		"revoked": func(name string) { w.must(t, "identity", "revoke", name, "--reason", "over") },
		"whose-owner-is-gone": func(name string) {
			w.must(t, "identity", "owner", name, "--to", "human:daemon")
			w.must(t, "identity", "owner", "--left", "human:daemon", "--grace", "0s")
		},
		"whose-key-is-revoked": func(name string) {
			for _, id := range keysOf(t, w, name) {
				w.must(t, "identity", "revoke", "--key", id)
			}
		},
		"rotated-at-once": func(name string) { w.must(t, "identity", "rotate", name, "--overlap", "0s") },
	} {
		t.Run(name, func(t *testing.T) {
			key := w.machine(t, name, "--role", "developer")
			leaver := w.from(t, key)
			token := leaver.token(t, name, key)
			get := message{"environment": "shop"}
			opens(t, "the key, before", leaver.call(t, "EnvironmentService/Get", get))
			opens(t, "the token, before", leaver.with(token).call(t, "EnvironmentService/Get", get))
			open := map[string]<-chan answer{}
			for what, c := range map[string]*caller{"opened by the key": leaver, "opened by the token": leaver.with(token)} {
				open["exec "+what] = background(t, c, "EnvironmentService/Exec", message{"start": message{"environment": "shop", "command": []string{"/inside", "wait"}}})
				open["logs "+what] = background(t, c, "EnvironmentService/Logs", message{"environment": "shop", "follow": true})
			}
			eventually(t, "the commands run", func() error {
				if n := len(w.entries(t, "--actor", "machine:"+name, "--action", "environment:exec", "--decision", "allow")); n < 2 {
					return fmt.Errorf("%d commands", n)
				}
				return nil
			})
			end(name)
			for what, ended := range open {
				select {
				case a := <-ended:
					if a.Code == "ok" {
						t.Errorf("%s: ended as if by itself: %v", what, a)
					}
				case <-time.After(patience):
					t.Errorf("%s goes on", what)
				}
			}
			unproven(t, "the key", leaver.call(t, "EnvironmentService/Get", get))
			unproven(t, "the token", leaver.with(token).call(t, "EnvironmentService/Get", get))
			if g := leaver.asks(t, name, key); g.Token != "" || g.Error != "invalid_client" {
				t.Errorf("a new token for it: %+v", g)
			}
			w.logged(t, name+": what was open ended", func(e entry) bool { return strings.HasPrefix(e.Summary, "ended: ") }, "--actor", "machine:"+name, "--action", "environment:exec", "--decision", "deny")
			leaver.loggedSource(t, "identity:authenticate")
			w.loggedGrant(t, "machine:"+name)
		})
	}
	w.refuses(t, "never used again", "identity", "create", "revoked", "--purpose", "again", "--expires", "1d")
	if out := w.must(t, "policy", "show", "machines"); strings.Contains(out, "machine:revoked") {
		t.Errorf("the roles of what was revoked are still bound:\n%s", out)
	}

	t.Run("through a crash", func(t *testing.T) {
		w, err := newWorld()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.Close)
		key := w.machine(t, "ci", "--role", "developer")
		token := w.from(t, "").token(t, "ci", key)
		mine := w.must(t, "token", "create", "--purpose", "a test", "--expires", "1d")
		list := message{}
		opens(t, "the token, before", w.from(t, token).call(t, "EnvironmentService/List", list))
		opens(t, "a person's token, before", w.from(t, mine).call(t, "EnvironmentService/List", list))
		w.must(t, "identity", "revoke", "ci", "--reason", "over")
		w.must(t, "identity", "owner", "--left", "human:root", "--grace", "0s")
		w.kill(t)
		unproven(t, "the key, after a crash", w.from(t, key).call(t, "EnvironmentService/List", list))
		unproven(t, "the token, after a crash", w.from(t, token).call(t, "EnvironmentService/List", list))
		unproven(t, "the token of who has left", w.from(t, mine).call(t, "EnvironmentService/List", list))
		w.must(t, "audit", "verify")
	})

	t.Run("an environment", func(t *testing.T) {
		dir := t.TempDir()
		if err := w.up(dir, "name: leaves\n"+service); err != nil {
			t.Fatal(err)
		}
		jwt := w.in(t, "leaves", "steal", w.url)["jwt"]
		w.must(t, "down", "leaves", "--volumes")
		unproven(t, "a JWT-SVID of what is down", w.from(t, jwt).call(t, "EnvironmentService/List", message{}))
	})
}

// background makes a call, and gives its answer once it ends.
func background(t *testing.T, c *caller, procedure string, m message) <-chan answer {
	out := make(chan answer, 1)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() { // ends with the call, or the test
		a, err := c.try(ctx, procedure, m)
		if err != nil {
			a = answer{http.StatusOK, "broken", err.Error(), nil}
		}
		out <- a
	}()
	return out
}
