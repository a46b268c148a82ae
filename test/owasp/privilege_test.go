package owasp

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// procedures are all of the API, by its definition.
func procedures(t *testing.T) (out []string) {
	t.Helper()
	files, err := filepath.Glob("../../internal/api/isle/v1/*.proto")
	if err != nil {
		t.Fatal(err)
	}
	said := regexp.MustCompile(`(?m)^\s*(?:service (\w+) \{|rpc (\w+)\()`)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		service := ""
		for _, m := range said.FindAllStringSubmatch(string(b), -1) {
			if m[1] != "" {
				service = m[1]
			} else {
				out = append(out, service+"/"+m[2])
			}
		}
	}
	if len(out) < 40 {
		t.Fatalf("found only %d procedures: the search is broken", len(out))
	}
	return out
}

// apply applies a policy document of the test's own.
func (w *world) apply(t *testing.T, name, body string) {
	t.Helper()
	w.must(t, "apply", "-f", writeFile(t, "policy.yaml", body), "--document", name)
}

func writeFile(t *testing.T, name, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Nobody has more than was granted to them, nobody can grant themselves more,
// and what is granted and not used can be seen.
func TestNHI5OverprivilegedNHI(t *testing.T) {
	w := shared
	t.Run("nothing is granted by itself", func(t *testing.T) {
		key := w.machine(t, "bare")
		bare := w.from(t, key)
		// One of its own for tokens: there are more calls than each has refusals to itself.
		bearerKey := w.machine(t, "bearer")
		bearer := w.from(t, bearerKey)
		token := bearer.token(t, "bearer", bearerKey)
		own := map[string]bool{"IdentityService/WhoAmI": true, "IdentityService/ListIdentities": true, "ApprovalService/ListApprovals": true}
		w.apply(t, "owasp-bare", `connections: {bare-door: {kind: tcp, address: "127.0.0.1:9", stage: testing, tls: off}}`)
		door := message{"what": "door", "name": "bare-door", "for": "3600s", "why": "because"}
		of := map[string]message{"ApprovalService/RequestAccess": door, "ApprovalService/BreakGlass": door}
		for _, p := range procedures(t) {
			if p == "ApprovalService/WatchApprovals" {
				continue // is ListApprovals, and goes on
			}
			for what, c := range map[string]*caller{"key": bare, "token": bearer.with(token)} {
				m := of[p]
				if m == nil {
					m = message{}
				}
				if a := c.call(t, p, m); own[p] {
					opens(t, p+" by its "+what, a)
				} else {
					denied(t, p+" by its "+what, a, "")
				}
			}
		}
		if out := w.must(t, "identity", "ls"); !strings.Contains(out, "bare") {
			t.Error("it is not there at all: the test is broken")
		}
		if a := bare.call(t, "IdentityService/ListIdentities", message{}); strings.Count(string(a.Body), `"purpose"`) != 1 {
			t.Errorf("it sees others: %s", a.Body)
		}
		if a := bare.call(t, "ApprovalService/ListApprovals", message{}); strings.Contains(string(a.Body), `"id"`) {
			t.Errorf("it sees what others wait for: %s", a.Body)
		}
		for _, action := range []string{"environment:exec", "environment:launch", "policy:apply", "secret:set", "server:stop", "audit:read", "image:build"} {
			w.loggedRefusal(t, "machine:bare", action, "default: nothing grants it")
		}
	})
	t.Run("nobody grants themselves", func(t *testing.T) {
		key := w.machine(t, "maker", "--role", "developer")
		w.apply(t, "owasp-maker", `
roles:
  maker: {actions: [identity:create, identity:rotate], resources: ["identity:made@testing", "identity:maker@testing", "identity:made@staging"]}
bindings:
  - {role: maker, subjects: [machine:maker]}
`)
		maker := w.from(t, key)
		make := func(more message) answer {
			m := message{"name": "made", "owner": "human:root", "purpose": "more", "expires": inDays(30)}
			for k, v := range more {
				m[k] = v
			}
			return maker.call(t, "IdentityService/CreateIdentity", m)
		}
		denied(t, "a machine with a role", make(message{"roles": []string{"admin"}}), "policy:apply")
		denied(t, "a machine of another stage", make(message{"stage": "staging"}), "a session is in one stage")
		denied(t, "a machine of another name", make(message{"name": "another"}), "default: nothing grants it")
		denied(t, "the key of another", maker.call(t, "IdentityService/RotateKey", message{"name": "bare"}), "default: nothing grants it")
		if a := make(message{"owner": ""}); a.Code == "ok" {
			t.Errorf("a machine that no person answers for: %v", a)
		}
		denied(t, "a policy", maker.call(t, "PolicyService/Apply", message{"name": "mine", "format": "yaml", "body": []byte("bindings: [{role: admin, subjects: [machine:maker]}]\n")}), "policy:apply")
		opens(t, "what it may make", make(nil))
		if m := w.show(t, "made"); len(m.Roles) != 0 {
			t.Errorf("it has the roles %v", m.Roles)
		}
		w.loggedRefusal(t, "machine:maker", "policy:apply", "default: nothing grants it")
		w.loggedRefusal(t, "machine:maker", "identity:create", "a session is in one stage")
	})
	t.Run("wildcards need a reason and an end", func(t *testing.T) {
		for what, body := range map[string]string{
			"actions":   "roles: {all: {actions: ['*'], resources: ['environment:shop']}}\n",
			"resources": "roles: {all: {actions: [environment:exec], resources: ['environment:*']}}\n",
			"subjects":  "bindings: [{role: developer, subjects: ['machine:*']}]\n",
			"no end":    "bindings: [{role: developer, subjects: ['machine:*'], reason: it is easier}]\n",
		} {
			out, err := w.Isle("apply", "-f", writeFile(t, "wild.yaml", body), "--document", "wild")
			if err == nil || !strings.Contains(err.Error(), "wild.yaml:1:") {
				t.Errorf("%s: %v\n%s", what, err, out)
			}
		}
	})
	t.Run("asking for more gives no more", func(t *testing.T) {
		key := w.machine(t, "asker")
		c := w.from(t, "")
		if g := c.asks(t, "asker", key, "scope", "admin"); g.Error != "invalid_scope" {
			t.Errorf("a scope: %+v", g)
		}
		token := c.token(t, "asker", key, "stage", "production", "roles", "admin", "sub", "machine:maker")
		if got := claims(t, token); got["stage"] != "testing" || got["sub"] != "machine:asker" || got["roles"] != nil {
			t.Errorf("it says %v", got)
		}
		denied(t, "its token", c.with(token).call(t, "EnvironmentService/Get", message{"environment": "shop"}), "default: nothing grants it")
	})
	t.Run("a token makes no tokens", func(t *testing.T) {
		mine := w.must(t, "token", "create", "--purpose", "a test", "--expires", "1h")
		a := w.from(t, mine).call(t, "IdentityService/CreateToken", message{"purpose": "for longer", "expires": inDays(80)})
		if a.Code == "ok" {
			t.Error("a stolen token became another")
		}
		w.logged(t, "the attempt", func(e entry) bool { return e.Actor.Name == "root" }, "--action", "token:create", "--decision", "deny")
	})
	t.Run("what is unused is seen", func(t *testing.T) {
		w.machine(t, "idle", "--role", "developer")
		if m := w.show(t, "idle"); !strings.Contains(strings.Join(m.Flags, ","), "never used") {
			t.Errorf("it is marked %v", m.Flags)
		}
	})
	t.Run("a workload has no way to the API", func(t *testing.T) {
		address := strings.TrimPrefix(w.url, "https://")
		for where, how := range w.in(t, "shop", "reach", address, "localhost:7480", "169.254.169.254:80") {
			if strings.HasPrefix(how, "connected") {
				t.Errorf("%s: %s", where, how)
			}
		}
		var e struct{ Services []struct{ Ports []any } }
		if err := json.Unmarshal([]byte(w.must(t, "status", "shop", "-o", "json")), &e); err != nil || len(e.Services) != 1 {
			t.Errorf("%+v, %v", e, err)
		}
	})
}
