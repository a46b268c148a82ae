package owasp

import (
	"fmt"
	"strings"
	"testing"
)

// answering is an environment's file that says its name to whoever connects.
func answering(project, line string) string {
	return fmt.Sprintf(`
name: %s
services:
  web:
    copy: [{from: inside, to: /inside}]
    command: [/inside, answer, "7000", %s]
    healthcheck: {tcp: 7000, interval: 100ms}
    ports: {line: 7000}
`, project, line)
}

// Whoever is in one stage reaches nothing of another, whatever they say, ask for
// or hold. That only a stage's own opens it is TestOnlyTheDiagonalOpens.
func TestNHI8EnvironmentIsolation(t *testing.T) {
	w := shared
	if err := w.up(t.TempDir(), answering("shop", "staging-speaks"), "--stage", "staging"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Isle("down", "shop@staging", "--volumes") })
	port := portOf(t, w, "shop@staging")
	const rule = "a session is in one stage"

	key := w.machine(t, "tester", "--role", "admin")
	w.apply(t, "owasp-tester", "bindings: [{role: admin, subjects: [machine:tester], stages: [testing, staging, production]}]\n")
	tester := w.from(t, key)
	t.Run("by names and fields", func(t *testing.T) {
		opens(t, "its own", tester.call(t, "EnvironmentService/Get", message{"environment": "shop"}))
		source := message{"spec": []byte(answering("shop", "mine")), "specName": "isle.yaml"}
		for what, a := range map[string]answer{
			"seen":                    tester.call(t, "EnvironmentService/Get", message{"environment": "shop@staging"}),
			"entered":                 tester.call(t, "EnvironmentService/Exec", message{"start": message{"environment": "shop@staging", "command": []string{"/inside"}}}),
			"entered, with variables": tester.call(t, "EnvironmentService/Exec", message{"start": message{"environment": "shop@staging", "command": []string{"/inside"}, "env": message{"ISLE_STAGE": "testing"}}}),
			"forwarded":               tester.call(t, "EnvironmentService/PortForward", message{"start": message{"environment": "shop@staging", "port": 7000}}),
			"copied":                  tester.call(t, "EnvironmentService/CopyOut", message{"environment": "shop@staging", "path": "/inside"}),
			"launched":                tester.call(t, "EnvironmentService/Up", message{"source": source, "name": "shop", "stage": "staging"}),
			"launched, unprotected":   tester.call(t, "EnvironmentService/Up", message{"source": source, "name": "shop", "stage": "production"}),
			"ended":                   tester.call(t, "EnvironmentService/Down", message{"environments": []string{"shop@staging"}}),
			"ended beside its own":    tester.call(t, "EnvironmentService/Down", message{"environments": []string{"no-such", "shop@staging"}}),
			"its machines":            tester.call(t, "IdentityService/CreateIdentity", message{"name": "stager", "owner": "human:root", "purpose": "x", "expires": inDays(1), "stage": "staging"}),
			"by a header":             tester.call(t, "EnvironmentService/Get", message{"environment": "shop@staging"}, "X-Isle-Stage", "staging"),
		} {
			denied(t, what, a, rule)
		}
		for _, name := range []string{"shop@staging@testing", "shop@STAGING", "shop@staging\x00", "../shop@staging", "shop@testing/../staging", "shop%40staging"} {
			if a := tester.call(t, "EnvironmentService/Get", message{"environment": name}); a.Code == "ok" {
				t.Errorf("%q is %s", name, a.Body)
			}
		}
		if a := tester.call(t, "EnvironmentService/List", message{}); strings.Contains(string(a.Body), "staging") {
			t.Errorf("it sees it in the list: %s", a.Body)
		}
		emptier := w.from(t, w.machine(t, "emptier", "--stage", "preview", "--role", "admin"))
		opens(t, "ending all that it may", emptier.call(t, "EnvironmentService/Down", message{"all": true, "volumes": true}))
		if e, err := w.Status("shop"); err != nil || e.Phase != "running" {
			t.Errorf("afterwards its own is %+v, %v", e, err)
		}
		if e, err := w.Status("shop@staging"); err != nil || e.Phase != "running" {
			t.Errorf("afterwards it is %+v, %v", e, err)
		}
		for _, action := range []string{"environment:read", "environment:exec", "environment:port-forward", "environment:copy", "environment:launch", "environment:down", "identity:create"} {
			w.loggedRefusal(t, "machine:tester", action, rule)
		}
	})
	t.Run("by tokens", func(t *testing.T) {
		token := tester.token(t, "tester", key, "stage", "staging", "resource", w.url)
		denied(t, "an access token", tester.with(token).call(t, "EnvironmentService/Get", message{"environment": "shop@staging"}), rule)
		confined := w.must(t, "token", "create", "--purpose", "a test", "--expires", "1h", "--stage", "testing")
		denied(t, "a person's confined token", w.from(t, confined).call(t, "EnvironmentService/Get", message{"environment": "shop@staging"}), rule)
		opens(t, "a person's confined token, its own", w.from(t, confined).call(t, "EnvironmentService/Get", message{"environment": "shop"}))
		w.loggedRefusal(t, "human:root", "environment:read", rule)
	})
	t.Run("from inside, through the machine", func(t *testing.T) {
		file := "name: reaches\n" + service + fmt.Sprintf("egress: [{host: %s, port: %d, addresses: [127.0.0.0/8]}]\n", itself, port)
		if err := w.up(t.TempDir(), file); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Isle("down", "reaches", "--volumes") })
		if how := w.in(t, "reaches", "via", itself, fmt.Sprint(port))["via"]; strings.Contains(how, "speaks") || how == "" {
			t.Errorf("it reaches staging: %s", how)
		}
		for where, how := range w.in(t, "reaches", "reach", fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("[::1]:%d", port), fmt.Sprintf("0.0.0.0:%d", port), "line.shop.staging.localhost:7480") {
			if strings.Contains(how, "speaks") {
				t.Errorf("%s: %s", where, how)
			}
		}
		if out := w.must(t, "doors", "reaches", "-o", "json"); !strings.Contains(out, "staging") {
			t.Errorf("the refusal is not told: %s", out)
		}
	})
	t.Run("by its identity", func(t *testing.T) {
		id := w.in(t, "shop", "steal", "x")["id"]
		for _, other := range []string{"staging", "production"} {
			wanted := strings.Replace(id, "/testing/", "/"+other+"/", 1)
			if how := w.in(t, "shop", "ask", wanted)[wanted]; how != "PermissionDenied" {
				t.Errorf("%s: %s", wanted, how)
			}
			w.logged(t, "asking for "+wanted, func(e entry) bool {
				return e.Actor.Kind == "workload" && e.Actor.Name == id && e.Details["asked"] == wanted
			}, "--action", "svid:issue", "--decision", "deny")
		}
	})
}

// portOf is the machine's port of an environment's published one.
func portOf(t *testing.T, w *world, environment string) int {
	t.Helper()
	e, err := w.Status(environment)
	if err != nil || e.Port("line") == 0 {
		t.Fatalf("%+v, %v", e, err)
	}
	return e.Port("line")
}
