package owasp

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"isle/test/lab"
)

// What a deployment is told about this server cannot be misread or steered, what
// need not be public is not, and what would be insecure is not the default.
func TestNHI6InsecureCloudDeploymentConfigurations(t *testing.T) {
	w := shared
	anybody := w.from(t, "")

	t.Run("documents that others trust", func(t *testing.T) {
		for _, path := range []string{"/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = "thief.example" // who is asked for steers nothing
			req.Header.Set("X-Forwarded-Host", "thief.example")
			a, err := anybody.do(req, false)
			if err != nil {
				t.Fatal(err)
			}
			var d map[string]any
			if err := json.Unmarshal(a.Body, &d); err != nil {
				t.Fatalf("%s: %v: %s", path, err, a.Body)
			}
			if d["issuer"] != w.url || strings.Contains(string(a.Body), "thief") {
				t.Errorf("%s: its issuer is %v", path, d["issuer"])
			}
			for _, weak := range []string{`"none"`, `"HS256"`, `"implicit"`, `"password"`, `"authorization_code"`} {
				if strings.Contains(string(a.Body), weak) {
					t.Errorf("%s offers %s", path, weak)
				}
			}
		}
		for _, path := range []string{"/.well-known/jwks.json", "/.well-known/spiffe-bundle"} {
			var d struct{ Keys []map[string]any }
			if err := json.Unmarshal(anybody.gets(t, path).Body, &d); err != nil || len(d.Keys) == 0 {
				t.Errorf("%s: %v, %v", path, d, err)
			}
			for _, k := range d.Keys {
				for _, private := range []string{"d", "p", "q", "k"} {
					if k[private] != nil {
						t.Errorf("%s has the private member %s", path, private)
					}
				}
			}
		}
	})
	t.Run("whom a cloud would trust", func(t *testing.T) {
		key := w.machine(t, "deployer")
		workload := w.in(t, "shop", "steal", "sts.example")
		of := claims(t, workload["jwt"])
		if sub, _ := of["sub"].(string); sub != workload["id"] || !strings.HasSuffix(sub, "/shop/testing/shop/web") || of["iss"] != w.url {
			t.Errorf("a workload's: %v", of)
		}
		if !slices.Equal(audiences(of), []string{"sts.example"}) {
			t.Errorf("it is for %v", of["aud"])
		}
		machine := claims(t, anybody.token(t, "deployer", key, "resource", "https://sts.example"))
		if machine["sub"] != "machine:deployer" || machine["stage"] != "testing" {
			t.Errorf("a machine's: %v", machine)
		}
		// It cannot name itself so that a policy that looks for a part is misled.
		for _, name := range []string{"spiffe://x/shop/production/shop/web", "machine:admin", "a/b", "*", "Deployer"} {
			if out, err := w.Isle("identity", "create", name, "--purpose", "a test", "--expires", "1d"); err == nil {
				t.Errorf("there is a machine %q: %s", name, out)
			}
		}
		for _, two := range [][]string{{"resource", "https://a.example", "audience", "https://b.example"}, {"audience", "a b"}, {"resource", "relative"}} {
			if g := anybody.asks(t, "deployer", key, two...); g.Error != "invalid_target" {
				t.Errorf("%v: %+v", two, g)
			}
		}
		anybody.loggedSource(t, "token:issue")
	})
	t.Run("what is open to all", func(t *testing.T) {
		for _, path := range []string{
			"/", "/checkpoint", "/tile/0/000", "/tile/entries/000", "/metrics", "/debug/pprof/", "/debug/vars", "/healthz", "/oauth/authorize", "/oauth/introspect", "/oauth/register",
			"/.well-known/", "/.well-known/../isle.v1.ServerService/Info", "//isle.v1.ServerService/Info", "/isle.v1.ServerService/Info", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
		} {
			if a := anybody.gets(t, path); a.Status < 300 || a.Status >= 500 {
				t.Errorf("%s: %v", path, a)
			}
		}
		for _, p := range procedures(t) {
			if a := anybody.call(t, p, message{}); a.Status == http.StatusOK {
				t.Errorf("%s is open to all: %v", p, a)
			}
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodOptions, w.url+"/isle.v1.IdentityService/WhoAmI", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Origin", "https://thief.example")
		req.Header.Set("Access-Control-Request-Method", "POST")
		res, err := anybody.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if v := res.Header.Get("Access-Control-Allow-Origin"); v != "" {
			t.Errorf("pages of %s may ask it", v)
		}
	})
	t.Run("who only looks like the server", func(t *testing.T) {
		key := writeFile(t, "key", w.machine(t, "ci-elsewhere"))
		cmd := w.Command("--server", w.url, "whoami")
		cmd.Env = append(cmd.Env, "ISLE_TOKEN_FILE="+key, "ISLE_PIN=sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "another key") {
			t.Errorf("with another pin: %v: %s", err, out)
		}
		cmd = w.Command("--server", w.url, "whoami")
		cmd.Env = append(cmd.Env, "ISLE_TOKEN_FILE="+key)
		if out, err := cmd.CombinedOutput(); err == nil || strings.Contains(string(out), "machine:ci-elsewhere") {
			t.Errorf("with nobody to vouch for it: %v: %s", err, out)
		}
		cmd = w.Command("--server", strings.Replace(w.url, "https://", "http://", 1), "whoami")
		cmd.Env = append(cmd.Env, "ISLE_TOKEN_FILE="+key)
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Errorf("without TLS: %s", out)
		}
		if m := w.show(t, "ci-elsewhere"); !strings.Contains(strings.Join(m.Flags, ","), "never used") {
			t.Errorf("its key was sent all the same: %v", m.Flags)
		}
	})
	t.Run("by default", func(t *testing.T) {
		s, err := lab.Bare("../../bin")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		var told struct{ URL, Listen string }
		if out, err := s.Isle("version", "-o", "json"); err != nil || json.Unmarshal([]byte(out), &told) != nil || told.URL != "" || told.Listen != "" {
			t.Errorf("it listens: %+v, %v", told, err)
		}
		for _, stage := range []string{"staging", "production"} {
			out, err := s.Isle("policy", "explain", "workload:shop/"+stage+"/shop", "egress:connect", "egress:api.example.com:443@"+stage)
			if !strings.HasPrefix(out, "deny") {
				t.Errorf("%s reaches out: %s, %v", stage, out, err)
			}
		}
		modes(t, s.State, 0o700)
		modes(t, s.State+".keys", 0o700)
		if found, err := filepath.Glob(s.State + ".keys/*"); err != nil || len(found) == 0 {
			t.Errorf("the keys are not outside the state folder: %v, %v", found, err)
		} else {
			for _, f := range found {
				modes(t, f, 0o600)
			}
		}
	})
}

// modes says that nobody but the owner may come to a path.
func modes(t *testing.T, path string, most os.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Error(err)
	} else if m := info.Mode().Perm(); m&^most != 0 {
		t.Errorf("%s is open to others: %v", path, m)
	}
}

// audiences are those of claims.
func audiences(of map[string]any) (out []string) {
	switch v := of["aud"].(type) {
	case string:
		return []string{v}
	case []any:
		for _, a := range v {
			s, _ := a.(string)
			out = append(out, s)
		}
	}
	return out
}
