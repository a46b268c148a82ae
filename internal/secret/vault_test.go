package secret

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"isle"
)

const vaultToken = "hvs.canary-token"

// A vaultServer answers as Vault does: GET /v1/kv/data/PATH[?version=N].
type vaultServer struct {
	*httptest.Server
	status    int    // instead of an answer; 0 is none
	body      string // of that
	namespace string // that was asked for last
	asked     int
}

// kvVersions is the history of kv/shop/db: 1 deleted, 2 destroyed, 3 the last.
var kvVersions = map[int]string{
	1: `{"data":null,"metadata":{"created_time":"2026-01-01T00:00:00Z","custom_metadata":null,"deletion_time":"2026-01-02T00:00:00Z","destroyed":false,"version":1}}`,
	2: `{"data":null,"metadata":{"created_time":"2026-01-01T00:00:00Z","custom_metadata":null,"deletion_time":"","destroyed":true,"version":2}}`,
	3: `{"data":{"password":"from vault","number":7,"object":{"a":"b"},"empty":"","null":null,"odd":"ä\u0000\n"},"metadata":{"created_time":"2026-01-01T00:00:00Z","custom_metadata":null,"deletion_time":"","destroyed":false,"version":3}}`,
}

func newVaultServer(t *testing.T) *vaultServer {
	s := &vaultServer{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked++
		s.namespace = r.Header.Get("X-Vault-Namespace")
		w.Header().Set("Content-Type", "application/json")
		say := func(status int, body string) {
			w.WriteHeader(status)
			fmt.Fprintln(w, body)
		}
		switch {
		case s.status != 0:
			w.Header().Set("Location", "https://127.0.0.1:1/v1/kv/data/shop/db")
			say(s.status, s.body)
		case r.Header.Get("X-Vault-Token") != vaultToken:
			say(http.StatusForbidden, `{"errors":["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"]}`)
		case r.Method != http.MethodGet || r.URL.EscapedPath() != "/v1/kv/data/shop/db":
			say(http.StatusNotFound, `{"errors":[]}`)
		default:
			n, _ := strconv.Atoi(r.URL.Query().Get("version"))
			if n == 0 {
				n = 3
			}
			body, ok := kvVersions[n]
			if !ok {
				say(http.StatusNotFound, `{"errors":[]}`)
				return
			}
			status := http.StatusOK
			if n < 3 {
				status = http.StatusNotFound
			}
			say(status, `{"request_id":"00000000-0000-0000-0000-000000000000","lease_id":"","renewable":false,"lease_duration":0,"data":`+body+`,"wrap_info":null,"warnings":null,"auth":null,"mount_type":"kv"}`)
		}
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // it is refused by clients on purpose
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *vaultServer) config(t *testing.T) VaultConfig {
	dir := t.TempDir()
	c := VaultConfig{Address: s.URL, TokenFile: filepath.Join(dir, "token"), CA: filepath.Join(dir, "ca.pem")}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := errors.Join(os.WriteFile(c.TokenFile, []byte(vaultToken+"\n"), 0o600), os.WriteFile(c.CA, cert, 0o644)); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAFieldInVaultIsReadWhenItIsUsed(t *testing.T) {
	v := newVaultServer(t)
	w := newWorld(t)
	w.cfg.Vault = v.config(t)
	w.open()
	if _, err := w.s.Refer(t.Context(), ann, "db", Vault, "kv/shop/db#password"); err != nil {
		t.Fatal(err)
	}
	if v.asked != 0 {
		t.Error("it was asked for before it was used")
	}
	w.resolve("db", "from vault")
	w.resolve("db", "from vault")
	if v.asked != 2 {
		t.Errorf("asked %d times", v.asked)
	}
	w.cfg.Vault.Namespace = "team/a"
	w.open()
	w.resolve("db", "from vault")
	if v.namespace != "team/a" {
		t.Errorf("asked in namespace %q", v.namespace)
	}
	for ref, want := range map[string]string{"kv/shop/db?version=3#password": "from vault", "kv/shop/db#odd": "ä\x00\n"} {
		b, err := w.cfg.Vault.read(t.Context(), ref)
		if err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", ref, b, err)
		}
	}
}

func TestWhatVaultDoesNotGiveIsToldApart(t *testing.T) {
	v := newVaultServer(t)
	c := v.config(t)
	expect := func(c VaultConfig, ref string, code isle.Code, text string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		b, err := c.read(ctx, ref)
		if isle.CodeOf(err) != code || !strings.Contains(fmt.Sprint(err), text) || b != nil {
			t.Errorf("%s: %q, %v; want %q", ref, b, err, text)
		}
		if strings.Contains(fmt.Sprint(err), "canary") {
			t.Errorf("the error says too much: %v", err)
		}
	}
	const ref = "kv/shop/db#password"
	expect(c, "kv/shop/db?version=1#password", isle.NotFound, "version 1 of kv/shop/db was deleted")
	expect(c, "kv/shop/db?version=2#password", isle.NotFound, "version 2 of kv/shop/db was destroyed")
	expect(c, "kv/shop/db?version=9#password", isle.NotFound, "Vault has no kv/shop/db")
	expect(c, "kv/none#password", isle.NotFound, "Vault has no kv/none")
	expect(c, "kv/shop/db#none", isle.NotFound, `no field "none"`)
	for _, field := range []string{"number", "object", "null"} {
		expect(c, "kv/shop/db#"+field, isle.Unavailable, "is no text")
	}

	wrong := c
	wrong.TokenFile = filepath.Join(t.TempDir(), "token")
	expect(wrong, ref, isle.Unavailable, "cannot read Vault's token")
	for text, want := range map[string]string{"canary-other": "Vault refuses to show kv/shop/db", "": "holds no token", "canary\r\nX-Evil: 1": "holds no token", strings.Repeat("x", maxToken+1): "more than 8192 bytes"} {
		os.WriteFile(wrong.TokenFile, []byte(text), 0o600)
		expect(wrong, ref, isle.Unavailable, want)
	}
	os.Chmod(wrong.TokenFile, 0o644)
	expect(wrong, ref, isle.Unavailable, "others than its owner may use it")

	unknown := c
	unknown.CA = ""
	expect(unknown, ref, isle.Unavailable, "does not answer")
	unknown.CA = c.TokenFile
	expect(unknown, ref, isle.Unavailable, "holds no certificate")
	unknown.CA = "/none"
	expect(unknown, ref, isle.Unavailable, "cannot read --vault-ca")
	named := c
	named.Address = strings.Replace(c.Address, "127.0.0.1", "localhost", 1) // not a name of the certificate
	expect(named, ref, isle.Unavailable, "does not answer")

	for status, text := range map[int]string{
		http.StatusServiceUnavailable: "sealed", http.StatusTemporaryRedirect: "redirects are not followed", http.StatusFound: "redirects are not followed",
		http.StatusTooManyRequests: "too often", http.StatusInternalServerError: "HTTP status 500", 472: "HTTP status 472", http.StatusNoContent: "HTTP status 204",
	} {
		v.status, v.body = status, ""
		if status != http.StatusNoContent {
			v.body = `{"errors":["canary of the body"],"data":{"data":{"password":"canary"}}}`
		}
		expect(c, ref, isle.Unavailable, text)
	}
	for _, body := range []string{"", "canary", "{}", `{"data":{"password":"canary of version 1"}}`, `{"data":[]}`, `{"data":{"data":"canary","metadata":{}}}`} {
		v.status, v.body = http.StatusOK, body
		expect(c, ref, isle.Unavailable, "not of KV version 2")
	}
	v.body = `{"data":{"data":{"password":"` + strings.Repeat("canary", maxAnswer/6) + `"},"metadata":{"version":1}}}`
	expect(c, ref, isle.Unavailable, "more than 1048576 bytes")
	v.Close()
	expect(c, ref, isle.Unavailable, "does not answer")
}

func TestAVaultThatSaysNothingIsGivenUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := newVaultServer(t).config(t)
	c.Address = "https://" + l.Addr().String()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.read(ctx, "kv/shop/db#password"); isle.CodeOf(err) != isle.Unavailable {
		t.Error(err)
	}
}

func TestAReferenceToVaultIsMountPathAndField(t *testing.T) {
	for s, want := range map[string]string{
		"kv/db#password":            "https://v/base/v1/kv/data/db",
		"kv/shop/db?version=12#a b": "https://v/base/v1/kv/data/shop/db?version=12",
		"my kv/a b/c%2fd&e#f":       "https://v/base/v1/my%20kv/data/a%20b/c%252fd&e",
		"kv/ä#f":                    "https://v/base/v1/kv/data/%C3%A4",
	} {
		r, err := parseVaultReference(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		if got, err := r.url("https://v/base/"); err != nil || got != want {
			t.Errorf("%s is at %s, %v; want %s", s, got, err, want)
		}
	}
	for _, s := range []string{"", "#", "kv#f", "kv/#f", "/a#f", "kv/a", "kv/a#", "kv/../sys/raw#f", "kv/a/../../sys#f", "kv/./a#f", "kv//a#f", "kv/a/#f", "kv/a?version=0#f", "kv/a?version=-1#f", "kv/a?version=01#f", "kv/a?version=1&x=y#f", "kv/a?x=1#f", "kv/a?#f", "../kv/a#f"} {
		if r, err := parseVaultReference(s); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%q is %+v, %v", s, r, err)
		}
	}
}

func TestAVaultThatWouldSeeTheTokenInTheClearIsNotConfigured(t *testing.T) {
	for _, c := range []VaultConfig{
		{Address: "http://vault.example.com:8200", TokenFile: "/t"}, {Address: "http://10.0.0.1", TokenFile: "/t"}, {Address: "http://localhost:8200", TokenFile: "/t"},
		{Address: "vault.example.com:8200", TokenFile: "/t"}, {Address: "ftp://x", TokenFile: "/t"}, {Address: "https://", TokenFile: "/t"}, {Address: "https://user:canary@x", TokenFile: "/t"},
		{Address: "https://x?a=b", TokenFile: "/t"}, {Address: "https://x"}, {Address: "https://x", TokenFile: "t"}, {Address: "https://x", TokenFile: "/t", Namespace: "a\r\nb"}, {TokenFile: "/t"},
	} {
		w := newWorld(t)
		w.cfg.Vault = c
		w.cfg.Store, w.cfg.Sealer, w.cfg.Log = w.store, w.key, w.store
		if _, err := Open(t.Context(), w.cfg); isle.CodeOf(err) != isle.Invalid || strings.Contains(err.Error(), "canary") {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for _, c := range []VaultConfig{{}, {Address: "https://vault.example.com:8200", TokenFile: "/t"}, {Address: "http://127.0.0.1:8200", TokenFile: "/t"}, {Address: "http://[::1]:8200/base/", TokenFile: "/t", Namespace: "a/b"}} {
		if err := c.check(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func FuzzVaultAnswer(f *testing.F) {
	for _, b := range kvVersions {
		f.Add(200, []byte(`{"data":`+b+`}`))
		f.Add(404, []byte(`{"data":`+b+`}`))
	}
	f.Add(403, []byte(`{"errors":["permission denied"]}`))
	f.Add(200, []byte(`{"data":{"data":{"password":""},"metadata":{}}}`))
	r, err := parseVaultReference("kv/shop/db#password")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		b, err := readAnswer(r, status, body)
		if err == nil && (status != http.StatusOK || !json.Valid(body)) {
			t.Errorf("took %q out of %d %q", b, status, body)
		}
		if err != nil && isle.CodeOf(err) == isle.Internal {
			t.Error(err)
		}
	})
}

func FuzzVaultReference(f *testing.F) {
	f.Add("kv/shop/db?version=3#password")
	f.Add("kv/../sys#x")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseVaultReference(s)
		if err != nil {
			return
		}
		where, err := r.url("https://vault.example.com:8200")
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequest(http.MethodGet, where, nil)
		if err != nil {
			t.Fatalf("%q: %v", where, err)
		}
		if req.URL.Host != "vault.example.com:8200" || req.URL.Path != "/v1/"+r.mount+"/data/"+r.path || strings.Contains(req.URL.Path, "/../") {
			t.Errorf("%q asks for %s", s, req.URL)
		}
	})
}
