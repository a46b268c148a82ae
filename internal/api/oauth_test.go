package api_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"isle"
	"isle/internal/api"
	"isle/internal/identity"
	"isle/internal/identity/identitytest"
	"isle/internal/ledger/ledgertest"
)

// oneMachine is the machine "ci" with one secret and one public key.
type oneMachine struct{ secret, public identity.Key }

const ciKey = "isle_the-key-of-ci"

func (m oneMachine) Machine(name string) (identity.Machine, bool) {
	return identity.Machine{Name: "ci", Stage: "testing"}, name == "ci"
}

func (m oneMachine) PublicKeys(machine string) []identity.Key {
	if machine != "ci" {
		return nil
	}
	return []identity.Key{m.public}
}

func (m oneMachine) Used(context.Context, isle.ID, string) error { return nil }

func (m oneMachine) Subject(key isle.ID) (identity.Subject, error) {
	if key != m.secret.ID && key != m.public.ID {
		return identity.Subject{}, isle.Errorf(isle.Refused, "not a credential that counts here")
	}
	return identity.Subject{Actor: isle.Actor{Kind: isle.Machine, Name: "ci"}, Stage: "testing", Key: key, Expires: time.Now().Add(time.Hour)}, nil
}

func (m oneMachine) Authenticate(_ context.Context, credential, _ string) (identity.Subject, error) {
	if credential != ciKey {
		return m.Subject("")
	}
	return m.Subject(m.secret.ID)
}

// endpoints are served over TLS, as others meet them.
type endpoints struct {
	*httptest.Server
	client *http.Client
	store  *ledgertest.Memory
	issuer *identity.Issuer
	tokens *identity.Tokens
	key    *ecdsa.PrivateKey
}

func newEndpoints(t *testing.T) *endpoints {
	t.Helper()
	e := &endpoints{store: ledgertest.New()}
	at := func() string { return e.URL }
	var err error
	if e.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	jwk, err := json.Marshal(jose.JSONWebKey{Key: e.key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	machine := oneMachine{identity.Key{ID: isle.NewID(), Kind: identity.APIKey}, identity.Key{ID: isle.NewID(), Kind: identity.PublicKey, JWK: string(jwk)}}
	if e.issuer, err = identity.OpenIssuer(t.Context(), identity.IssuerConfig{Store: e.store, Sealer: identitytest.NewSealer(), TrustDomain: "isle.test", URL: at}); err != nil {
		t.Fatal(err)
	}
	if e.tokens, err = identity.OpenTokens(t.Context(), identity.TokensConfig{Issuer: e.issuer, Clients: machine, Store: e.store, Log: e.store, URL: at}); err != nil {
		t.Fatal(err)
	}
	e.Server = httptest.NewUnstartedServer(api.NewIdentityEndpoints(api.IdentityEndpoints{Tokens: e.tokens, Issuer: e.issuer, URL: at}))
	e.EnableHTTP2 = true
	e.StartTLS()
	t.Cleanup(e.Close)
	e.client = e.Client()
	return e
}

func (e *endpoints) get(t *testing.T, path string, into any) *http.Response {
	t.Helper()
	r, err := e.client.Get(e.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if err := json.NewDecoder(r.Body).Decode(into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return r
}

// post sends a body to the token endpoint.
func (e *endpoints) post(t *testing.T, body io.Reader, change func(*http.Request)) (*http.Response, map[string]any) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, e.URL+"/oauth/token", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if change != nil {
		change(req)
	}
	r, err := e.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	answer := map[string]any{}
	if err := json.NewDecoder(r.Body).Decode(&answer); err != nil {
		t.Fatalf("%s: %v", r.Status, err)
	}
	if r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s: the header is %v", r.Status, r.Header)
	}
	return r, answer
}

func TestAMachineGetsATokenOverHTTP(t *testing.T) {
	e := newEndpoints(t)
	for name, ask := range map[string]func() (io.Reader, func(*http.Request)){
		"client_secret_basic": func() (io.Reader, func(*http.Request)) {
			return strings.NewReader("grant_type=client_credentials"), func(r *http.Request) { r.SetBasicAuth("ci", ciKey) }
		},
		"client_secret_post": func() (io.Reader, func(*http.Request)) {
			return strings.NewReader(url.Values{"grant_type": {"client_credentials"}, "client_id": {"ci"}, "client_secret": {ciKey}}.Encode()), nil
		},
		"a charset": func() (io.Reader, func(*http.Request)) {
			return strings.NewReader("grant_type=client_credentials"), func(r *http.Request) {
				r.SetBasicAuth("ci", ciKey)
				r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=UTF-8")
			}
		},
		"private_key_jwt": func() (io.Reader, func(*http.Request)) {
			s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: e.key}, (&jose.SignerOptions{}).WithType("JWT"))
			if err != nil {
				t.Fatal(err)
			}
			claims, err := json.Marshal(map[string]any{"iss": "ci", "sub": "ci", "aud": e.URL + "/oauth/token", "exp": time.Now().Add(time.Minute).Unix(), "jti": "1"})
			if err != nil {
				t.Fatal(err)
			}
			signed, err := s.Sign(claims)
			if err != nil {
				t.Fatal(err)
			}
			assertion, err := signed.CompactSerialize()
			if err != nil {
				t.Fatal(err)
			}
			return strings.NewReader(url.Values{
				"grant_type": {"client_credentials"}, "client_assertion": {assertion},
				"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
			}.Encode()), nil
		},
	} {
		body, change := ask()
		r, answer := e.post(t, body, change)
		token, _ := answer["access_token"].(string)
		if r.StatusCode != http.StatusOK || answer["token_type"] != "Bearer" || answer["expires_in"] != float64(300) {
			t.Errorf("%s: %s %v", name, r.Status, answer)
			continue
		}
		if s, err := e.tokens.Verify(t.Context(), token, ""); err != nil || s.Actor.Name != "ci" {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	entries := e.store.Entries()
	if source := entries[len(entries)-1].Details["source"]; source != "127.0.0.1" {
		t.Errorf("the log has the source %q", source)
	}
}

func TestTheTokenEndpointAnswersWhatIsWrongAsTheStandardSays(t *testing.T) {
	e := newEndpoints(t)
	right := "grant_type=client_credentials"
	basic := func(user, password string) func(*http.Request) {
		return func(r *http.Request) { r.SetBasicAuth(user, password) }
	}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.SetBasicAuth("ci", ciKey); r.Header.Set(name, value) }
	}
	for _, c := range []struct {
		name, body string
		change     func(*http.Request)
		status     int
		code       string
	}{
		{"a wrong secret", right, basic("ci", "wrong"), 401, "invalid_client"},
		{"no client", right, nil, 401, "invalid_client"},
		{"a bearer token", right, header("Authorization", "Bearer x"), 401, "invalid_client"},
		{"two ways", right + "&client_secret=x", basic("ci", ciKey), 400, "invalid_request"},
		{"no grant type", "", basic("ci", ciKey), 400, "invalid_request"},
		{"another grant type", "grant_type=authorization_code", basic("ci", ciKey), 400, "unsupported_grant_type"},
		{"a scope", right + "&scope=x", basic("ci", ciKey), 400, "invalid_scope"},
		{"a relative resource", right + "&resource=x", basic("ci", ciKey), 400, "invalid_target"},
		{"no form", "%zz", basic("ci", ciKey), 400, "invalid_request"},
		{"semicolons", "grant_type=client_credentials;a=b", basic("ci", ciKey), 400, "invalid_request"},
		{"JSON", `{"grant_type":"client_credentials"}`, header("Content-Type", "application/json"), 415, "invalid_request"},
		{"a large body", right + "&x=" + strings.Repeat("x", 40<<10), basic("ci", ciKey), 413, "invalid_request"},
		{"parameters in the URL", right, func(r *http.Request) { r.URL.RawQuery = "client_id=ci&client_secret=" + ciKey }, 400, "invalid_request"},
		{"GET", "", func(r *http.Request) { r.Method = http.MethodGet }, 405, "invalid_request"},
		{"PUT", right, func(r *http.Request) { r.Method = http.MethodPut }, 405, "invalid_request"},
	} {
		r, answer := e.post(t, strings.NewReader(c.body), c.change)
		description, _ := answer["error_description"].(string)
		if r.StatusCode != c.status || answer["error"] != c.code || description == "" || strings.Contains(description, ciKey) {
			t.Errorf("%s: %s %v; want %d %s", c.name, r.Status, answer, c.status, c.code)
		}
		if c.status == 401 && !strings.HasPrefix(r.Header.Get("WWW-Authenticate"), "Basic ") {
			t.Errorf("%s: it does not say how to prove oneself", c.name)
		}
		if c.status == 405 && r.Header.Get("Allow") != "POST" {
			t.Errorf("%s: it does not say which method", c.name)
		}
	}
	e.store.Fail(isle.Errorf(isle.Unavailable, "the log takes no entries: no space left on /secret/path"))
	r, answer := e.post(t, strings.NewReader(right), basic("ci", ciKey))
	if r.StatusCode != 503 || answer["error"] != "temporarily_unavailable" || r.Header.Get("Retry-After") == "" || strings.Contains(answer["error_description"].(string), "/secret") {
		t.Errorf("without a log: %s %v", r.Status, answer)
	}
}

func TestWhatOthersTrustIsPublished(t *testing.T) {
	e := newEndpoints(t)
	var oauth, openID map[string]any
	e.get(t, "/.well-known/oauth-authorization-server", &oauth)
	for name, want := range map[string]string{"issuer": e.URL, "token_endpoint": e.URL + "/oauth/token", "jwks_uri": e.URL + "/.well-known/jwks.json"} {
		if oauth[name] != want {
			t.Errorf("%s is %v", name, oauth[name])
		}
	}
	if _, ok := oauth["response_types_supported"].([]any); !ok { // RFC 8414, 2: required
		t.Errorf("the metadata is %v", oauth)
	}
	r := e.get(t, "/.well-known/openid-configuration", &openID)
	if openID["issuer"] != e.URL || openID["jwks_uri"] != oauth["jwks_uri"] || r.Header.Get("Cache-Control") != "public, max-age=300" {
		t.Errorf("%v %v", openID, r.Header)
	}
	// An OpenID Connect relying party checks a JWT-SVID by nothing but its issuer.
	id := e.issuer.ID(isle.Ref{Name: "a", Stage: "testing"}, "shop", "web")
	svid, err := e.issuer.JWTSVID(id, []string{"sts.example"})
	if err != nil {
		t.Fatal(err)
	}
	var set jose.JSONWebKeySet
	e.get(t, "/.well-known/jwks.json", &set)
	jws, err := jose.ParseSignedCompact(svid.Token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	body, err := jws.Verify(set)
	if err != nil || !bytes.Contains(body, []byte(`"iss":"`+e.URL+`"`)) {
		t.Errorf("%s, %v", body, err)
	}
	for _, k := range set.Keys {
		if !k.IsPublic() || k.Use != "sig" || k.Algorithm != "ES256" || k.KeyID == "" {
			t.Errorf("a key of the set is %+v", k)
		}
	}
}

// TestNobodyIsToldThatAClosedIssuerHasNoKeys: who has a bundle goes on with it.
func TestNobodyIsToldThatAClosedIssuerHasNoKeys(t *testing.T) {
	closed := identity.ClosedIssuer(ledgertest.New(), isle.Errorf(isle.Unavailable, "the key is gone"))
	h := api.NewIdentityEndpoints(api.IdentityEndpoints{Issuer: closed, URL: func() string { return "" }})
	for path, want := range map[string]int{
		"/.well-known/spiffe-bundle": 503, "/.well-known/jwks.json": 503, "/.well-known/openid-configuration": 503, "/.well-known/oauth-authorization-server": 503, "/oauth/token": 404,
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want || strings.Contains(w.Body.String(), "keys") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

// TestAnotherTrustDomainFederates: go-spiffe fetches the bundle as it does any
// (SPIFFE Federation, 5.2.1: https_web), and checks SVIDs by it.
func TestAnotherTrustDomainFederates(t *testing.T) {
	e := newEndpoints(t)
	roots := x509.NewCertPool()
	roots.AddCert(e.Certificate())
	td := spiffeid.RequireTrustDomainFromString("isle.test")
	bundle, err := federation.FetchBundle(t.Context(), td, e.URL+"/.well-known/spiffe-bundle", federation.WithWebPKIRoots(roots))
	if err != nil {
		t.Fatal(err)
	}
	if hint, ok := bundle.RefreshHint(); !ok || hint != identity.RefreshHint {
		t.Errorf("the refresh hint is %s", hint)
	}
	if n, ok := bundle.SequenceNumber(); !ok || n != e.issuer.Bundle().Sequence {
		t.Errorf("the number is %d", n)
	}
	id := e.issuer.ID(isle.Ref{Name: "a", Stage: "testing"}, "shop", "web")
	x, err := e.issuer.X509SVID(id)
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := x509svid.ParseAndVerify(x.Chain, bundle); err != nil || got.String() != id.String() {
		t.Errorf("%s, %v", got, err)
	}
	j, err := e.issuer.JWTSVID(id, []string{"theirs"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.ParseAndValidate(j.Token, bundle, []string{"theirs"}); err != nil {
		t.Error(err)
	}
}

func TestPublicDocumentsAreCheapAndReadOnly(t *testing.T) {
	e := newEndpoints(t)
	for _, path := range []string{"/.well-known/jwks.json", "/.well-known/spiffe-bundle", "/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"} {
		var ignored map[string]any
		tag := e.get(t, path, &ignored).Header.Get("ETag")
		ask := func(method, tag string) *http.Response {
			req, err := http.NewRequest(method, e.URL+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("If-None-Match", tag)
			r, err := e.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
			return r
		}
		if r := ask(http.MethodGet, tag); r.StatusCode != http.StatusNotModified {
			t.Errorf("%s again: %s", path, r.Status)
		}
		if r := ask(http.MethodHead, `"x"`); r.StatusCode != http.StatusOK {
			t.Errorf("HEAD %s: %s", path, r.Status)
		}
		if r := ask(http.MethodPost, `"x"`); r.StatusCode != http.StatusMethodNotAllowed || r.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("POST %s: %s", path, r.Status)
		}
		if err := e.issuer.EndAll(t.Context(), "test"); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, "jwks.json") || strings.HasSuffix(path, "bundle") {
			if r := ask(http.MethodGet, tag); r.StatusCode != http.StatusOK {
				t.Errorf("%s after a change: %s", path, r.Status)
			}
		}
	}
	var none map[string]any
	if r := e.get(t, "/.well-known/other", &none); r.StatusCode != http.StatusNotFound || none["error"] != "not_found" {
		t.Errorf("%s %v", r.Status, none)
	}
}
