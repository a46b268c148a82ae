package owasp

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"isle/test/lab"
)

// scanners is what docs/machines.md gives to whoever looks for leaked keys.
var scanners = regexp.MustCompile(`\bislep?_[0-9A-Za-z]{46}\b`)

// genuine reports whether a credential's last six characters are the CRC-32 of
// those before, as docs/machines.md says.
func genuine(credential string) bool {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	body, sum := credential[:len(credential)-6], crc32.ChecksumIEEE([]byte(credential[:len(credential)-6]))
	var want []byte
	for range 6 {
		want = append([]byte{digits[sum%62]}, want...)
		sum /= 62
	}
	return credential == body+string(want)
}

// A credential is not accepted where others could read it, and never shown
// again; one that leaks all the same can be found. That none is left anywhere
// is TestNoSecretIsFoundAnywhereAfterwards.
func TestNHI2SecretLeakage(t *testing.T) {
	w := shared
	key := w.machine(t, "leaky", "--role", "admin")
	mine := w.must(t, "token", "create", "--purpose", "a test", "--expires", "1d")
	thief := w.from(t, "")

	t.Run("in arguments", func(t *testing.T) {
		for _, args := range [][]string{
			{"login", w.url, "--token=" + key}, {"login", w.url, "--token", key}, {"token", "revoke", mine}, {"identity", "revoke", "--key", key},
			{"secret", "set", "db", "hunter2-in-argv"}, {"secret", "set", "db", "--value", "hunter2-in-argv"},
		} {
			out, err := w.Command(args...).CombinedOutput()
			if err == nil {
				t.Errorf("isle %s: it is accepted", args[:2])
			}
			for _, v := range []string{key, mine, "hunter2-in-argv"} {
				if bytes.Contains(out, []byte(v)) {
					t.Errorf("isle %s: the answer has it: %s", args[:2], out)
				}
			}
		}
	})
	t.Run("in URLs", func(t *testing.T) {
		for _, path := range []string{"/isle.v1.ServerService/Info?access_token=" + key, "/isle.v1.IdentityService/WhoAmI?token=" + key, "/oauth/token?grant_type=client_credentials&client_id=leaky&client_secret=" + key} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			if strings.HasPrefix(path, "/oauth") {
				req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			}
			a, err := thief.do(req, false)
			if err != nil || a.Status == http.StatusOK || bytes.Contains(a.Body, []byte(key)) {
				t.Errorf("%s: %v, %v", path[:20], a, err)
			}
		}
	})
	t.Run("in answers", func(t *testing.T) {
		cmd := w.Command("secret", "set", "answered")
		cmd.Stdin = strings.NewReader("hunter2-by-stdin")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		token := thief.token(t, "leaky", key)
		all := thief.with(key)
		for procedure, m := range map[string]message{
			"IdentityService/ListIdentities": {}, "IdentityService/ListTokens": {}, "IdentityService/WhoAmI": {}, "SecretService/ListSecrets": {}, "SecretService/CheckSecret": {"name": "answered"},
			"PolicyService/Show": {}, "PolicyService/Roles": {}, "ServerService/Info": {}, "ServerService/Doctor": {}, "ServerService/Audit": {}, "EnvironmentService/List": {},
		} {
			a := all.call(t, procedure, m)
			if a.Code != "ok" && procedure != "IdentityService/ListTokens" {
				t.Errorf("%s: %v", procedure, a)
			}
			for what, v := range map[string]string{"the API key": key, "the personal token": mine, "the access token": token, "the secret": "hunter2-by-stdin"} {
				for _, f := range lab.Forms(v) {
					if bytes.Contains(a.Body, f) {
						t.Errorf("%s gives back %s", procedure, what)
					}
				}
			}
		}
	})
	t.Run("in refusals", func(t *testing.T) {
		wrong := key[:len(key)-7] + "xxxxxxx"
		for _, c := range []string{wrong, key + "x", "Basic-" + wrong} {
			a := w.from(t, c).call(t, "IdentityService/WhoAmI", message{})
			unproven(t, "a mistyped one", a)
			if bytes.Contains(a.Body, []byte(wrong[5:40])) {
				t.Errorf("the refusal repeats it: %s", a.Body)
			}
		}
		for _, args := range [][2]string{{key, "x"}, {"leaky", wrong}, {wrong, wrong}} { // the key where the name belongs
			if g := thief.asks(t, args[0], args[1]); g.Token != "" || strings.Contains(fmt.Sprint(g), args[0]) {
				t.Errorf("%+v", g)
			}
		}
		if out := w.must(t, "audit", "search", "-o", "json"); strings.Contains(out, key[5:30]) || strings.Contains(out, mine[6:30]) {
			t.Error("the log has a credential, or a part of it")
		}
	})
	t.Run("a private key where the public one belongs", func(t *testing.T) {
		pair, _ := newKey(t)
		der, err := x509.MarshalPKCS8PrivateKey(pair)
		if err != nil {
			t.Fatal(err)
		}
		b := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		path := filepath.Join(t.TempDir(), "private.pem")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		w.refuses(t, "private key", "identity", "create", "gives-away", "--purpose", "a test", "--expires", "1d", "--public-key", path)
		a := w.beside(t).call(t, "IdentityService/CreateIdentity", message{"name": "gives-away", "purpose": "a test", "expires": inDays(1), "publicKey": b})
		if a.Code != "invalid_argument" || strings.Contains(a.Message, "MIG") {
			t.Errorf("sent all the same: %v", a)
		}
	})
	t.Run("found by scanners", func(t *testing.T) {
		for _, v := range []string{key, mine} {
			if found := scanners.FindString("{\"token\":\"" + v + "\"}"); found != v || !genuine(found) {
				t.Errorf("a scanner finds %q of %q", found, v)
			}
		}
		if g := scanners.FindString("x" + key[:len(key)-1] + "-"); g != "" {
			t.Errorf("what is no key is found: %q", g)
		}
		w.must(t, "identity", "revoke", "leaky", "--reason", "it leaked")
		unproven(t, "what leaked and was revoked", thief.with(key).call(t, "IdentityService/WhoAmI", message{}))
		thief.loggedSource(t, "identity:authenticate")
	})
}
