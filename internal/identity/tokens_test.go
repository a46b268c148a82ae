package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"isle"
	"isle/internal/audit"
	"isle/internal/identity/identitytest"
	"isle/internal/ledger"
	"isle/internal/ledger/ledgertest"
)

const serverURL = "https://isle.test:7443"

// clients are machines for tests.
type clients struct {
	mu       sync.Mutex
	machines map[string]Machine
	keys     map[isle.ID]Key
	secrets  map[string]isle.ID
	now      func() time.Time
}

func (c *clients) Machine(name string) (Machine, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, ok := c.machines[name]
	return m, ok
}

func (c *clients) Subject(key isle.ID) (Subject, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.keys[key]
	if !ok || !k.Revoked.IsZero() || !c.now().Before(k.Expires) {
		return Subject{}, isle.Errorf(isle.Refused, "not a credential that counts here")
	}
	return Subject{Actor: k.Holder, Stage: c.machines[k.Holder.Name].Stage, Key: k.ID, Expires: k.Expires}, nil
}

func (c *clients) Authenticate(_ context.Context, credential, _ string) (Subject, error) {
	c.mu.Lock()
	id := c.secrets[credential]
	c.mu.Unlock()
	return c.Subject(id)
}

func (c *clients) Used(context.Context, isle.ID, string) error { return nil }

func (c *clients) PublicKeys(machine string) (out []Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(c.keys)) {
		if k := c.keys[id]; k.Kind == PublicKey && k.Holder == (isle.Actor{Kind: isle.Machine, Name: machine}) && k.Revoked.IsZero() {
			out = append(out, k)
		}
	}
	return out
}

// add gives a holder a key and returns its ID.
func (c *clients) add(holder isle.Actor, kind, value string) isle.ID {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := Key{ID: isle.NewID(), Kind: kind, Holder: holder, Expires: c.now().Add(24 * time.Hour)}
	if kind == PublicKey {
		k.JWK = value
	} else {
		c.secrets[value] = k.ID
	}
	if holder.Kind == isle.Machine {
		c.machines[holder.Name] = Machine{ID: isle.NewID(), Name: holder.Name, Stage: "testing"}
	}
	c.keys[k.ID] = k
	return k.ID
}

func (c *clients) change(id isle.ID, change func(*Key)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.keys[id]
	change(&k)
	c.keys[id] = k
}

// An office is a token endpoint with everything behind it, and a machine "ci"
// that has an API key and a public one.
type office struct {
	t       testing.TB
	now     time.Time
	store   *ledgertest.Memory
	issuer  *Issuer
	clients *clients
	tokens  *Tokens
	url     string
	secret  isle.ID
	public  isle.ID
	private *ecdsa.PrivateKey
}

const ciSecret = "isle_secret-of-ci"

var ci = isle.Actor{Kind: isle.Machine, Name: "ci"}

func newOffice(t testing.TB) *office {
	t.Helper()
	o := &office{t: t, now: time.Now().Truncate(time.Second), store: ledgertest.New(), url: serverURL}
	now := func() time.Time { return o.now }
	o.clients = &clients{machines: map[string]Machine{}, keys: map[isle.ID]Key{}, secrets: map[string]isle.ID{}, now: now}
	var err error
	if o.private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	o.secret = o.clients.add(ci, APIKey, ciSecret)
	o.public = o.clients.add(ci, PublicKey, jwkText(t, o.private.Public(), "k1", ""))
	if o.issuer, err = OpenIssuer(t.Context(), IssuerConfig{Store: o.store, Sealer: identitytest.NewSealer(), Now: now, URL: func() string { return o.url }}); err != nil {
		t.Fatal(err)
	}
	o.open()
	return o
}

func (o *office) open() {
	o.t.Helper()
	var err error
	o.tokens, err = OpenTokens(o.t.Context(), TokensConfig{
		Issuer: o.issuer, Clients: o.clients, Store: o.store, Log: o.store, URL: func() string { return o.url }, Now: func() time.Time { return o.now },
	})
	if err != nil {
		o.t.Fatal(err)
	}
}

func jwkText(t testing.TB, public crypto.PublicKey, kid, alg string) string {
	t.Helper()
	b, err := json.Marshal(jose.JSONWebKey{Key: public, KeyID: kid, Algorithm: alg})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// form is a request for a token with the client's secret, with other values.
func form(pairs ...string) url.Values {
	f := url.Values{"grant_type": {"client_credentials"}, "client_id": {"ci"}, "client_secret": {ciSecret}}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "-" {
			f.Del(pairs[i])
		} else {
			f.Set(pairs[i], pairs[i+1])
		}
	}
	return f
}

func (o *office) grant(f url.Values) (TokenResponse, error) {
	return o.tokens.Grant(o.t.Context(), f, "", "", false, "192.0.2.7")
}

// assertion signs the claims of a right assertion, changed.
func (o *office) assertion(change func(claims map[string]any), options ...func(*jose.SignerOptions)) string {
	o.t.Helper()
	return signAssertion(o.t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: o.private, KeyID: "k1"}}, o.claims(change), options...)
}

func (o *office) claims(change func(claims map[string]any)) map[string]any {
	claims := map[string]any{
		"iss": "ci", "sub": "ci", "aud": serverURL + TokenPath, "iat": o.now.Unix(), "exp": o.now.Add(time.Minute).Unix(), "jti": string(isle.NewID()),
	}
	if change != nil {
		change(claims)
	}
	return claims
}

func signAssertion(t testing.TB, key jose.SigningKey, claims map[string]any, options ...func(*jose.SignerOptions)) string {
	t.Helper()
	opts := &jose.SignerOptions{}
	for _, o := range options {
		o(opts)
	}
	s, err := jose.NewSigner(key, opts)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := s.Sign(body)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func byAssertion(assertion string, pairs ...string) url.Values {
	f := form(append([]string{"client_secret", "-", "client_id", "-"}, pairs...)...)
	f.Set("client_assertion_type", assertionType)
	f.Set("client_assertion", assertion)
	return f
}

func (o *office) refused(what string, err error, code string) {
	o.t.Helper()
	var g *GrantError
	if !errors.As(err, &g) || g.OAuth != code {
		o.t.Errorf("%s: %v; want %s", what, err, code)
		return
	}
	for _, c := range g.Description { // RFC 6749, 5.2
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			o.t.Errorf("%s: the description has %q", what, c)
		}
	}
	entries := o.store.Entries()
	e := entries[len(entries)-1]
	if code == TemporarilyUnavailable || code == ServerError {
		return
	}
	if e.Action != isle.ActionTokenIssue || e.Actor != nobody || e.Decision != isle.Deny || e.Result != string(isle.Refused) || e.Details["source"] != "192.0.2.7" || e.Details["error"] != code {
		o.t.Errorf("%s: the log says %+v", what, e)
	}
	if b, err := e.Encode(); err != nil || strings.Contains(string(b), "secret-of") {
		o.t.Errorf("%s: the log has the secret, or nothing: %s %v", what, b, err)
	}
}

func TestAMachineGetsATokenByItsSecretOrItsSignature(t *testing.T) {
	for name, ask := range map[string]func(o *office) (TokenResponse, error){
		"client_secret_post": func(o *office) (TokenResponse, error) { return o.grant(form()) },
		"client_secret_basic": func(o *office) (TokenResponse, error) {
			return o.tokens.Grant(t.Context(), url.Values{"grant_type": {"client_credentials"}}, url.QueryEscape("ci"), url.QueryEscape(ciSecret), true, "192.0.2.7")
		},
		"private_key_jwt": func(o *office) (TokenResponse, error) { return o.grant(byAssertion(o.assertion(nil))) },
		"private_key_jwt ": func(o *office) (TokenResponse, error) {
			return o.grant(byAssertion(o.assertion(func(c map[string]any) { c["aud"] = []string{serverURL} }), "client_id", "ci"))
		},
	} {
		o := newOffice(t)
		response, err := ask(o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if response.TokenType != "Bearer" || response.ExpiresIn != 300 {
			t.Errorf("%s: %+v", name, response)
		}
		s, err := o.tokens.Verify(t.Context(), response.AccessToken, "")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s.Actor != ci || s.Stage != "testing" || !s.Expires.Equal(o.now.Add(AccessToken)) || (s.Key != o.secret && s.Key != o.public) {
			t.Errorf("%s: it proves %+v", name, s)
		}
		entries := o.store.Entries()
		e := entries[len(entries)-1]
		if e.Action != isle.ActionTokenIssue || e.Decision != isle.Allow || e.Actor != ci || e.Details["method"] != strings.TrimSpace(name) || e.Details["key"] != string(s.Key) || e.Details["source"] != "192.0.2.7" || e.Details["audience"] != serverURL {
			t.Errorf("%s: the log says %+v", name, e)
		}
	}
}

// TestAnAccessTokenIsWhatTheStandardSays: RFC 9068, 2.
func TestAnAccessTokenIsWhatTheStandardSays(t *testing.T) {
	o := newOffice(t)
	response, err := o.grant(form("resource", "https://db.test/"))
	if err != nil {
		t.Fatal(err)
	}
	jws, err := jose.ParseSignedCompact(response.AccessToken, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	// Others check it by the keys that are served.
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(o.issuer.TokenKeys(), &set); err != nil {
		t.Fatal(err)
	}
	body, err := jws.Verify(set)
	if err != nil {
		t.Fatal(err)
	}
	if typ := jws.Signatures[0].Protected.ExtraHeaders[jose.HeaderType]; typ != "at+jwt" {
		t.Errorf("its typ is %v", typ)
	}
	var got map[string]any
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatal(err)
	}
	jti, _ := got["jti"].(string)
	want := map[string]any{
		"iss": serverURL, "sub": "machine:ci", "client_id": "ci", "aud": "https://db.test/", "iat": float64(o.now.Unix()), "exp": float64(o.now.Add(AccessToken).Unix()),
		"jti": jti, "stage": "testing", "key": string(o.secret),
		"as_of": float64(o.now.Unix()),
	}
	if !maps.Equal(got, want) || !isle.ID(jti).Valid() {
		t.Errorf("it says %v", got)
	}
	// The keys of JWT-SVIDs do not sign it, nor the other way round.
	if err := json.Unmarshal(o.issuer.Bundle().JWKS, &set); err != nil {
		t.Fatal(err)
	}
	if _, err := jws.Verify(set); err == nil {
		t.Error("it counts by the trust domain's bundle")
	}
	if _, _, err := o.issuer.ValidateJWTSVID(response.AccessToken, "https://db.test/"); err == nil {
		t.Error("it counts as a JWT-SVID")
	}
	if _, err := o.tokens.Verify(t.Context(), response.AccessToken, ""); err == nil {
		t.Error("a token for another audience counts here")
	}
	if _, err := o.tokens.Verify(t.Context(), response.AccessToken, "https://db.test/"); err != nil {
		t.Error(err)
	}
	svid, err := o.issuer.JWTSVID(o.issuer.ID(isle.Ref{Name: "a", Stage: "testing"}, "shop", "web"), []string{serverURL})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.tokens.Verify(t.Context(), svid.Token, ""); err == nil {
		t.Error("a JWT-SVID counts as an access token")
	}
}

func TestATokenEndsWithItsKeyItsIssuerAndItsTime(t *testing.T) {
	for name, end := range map[string]func(o *office){
		"its time":        func(o *office) { o.now = o.now.Add(AccessToken) },
		"its key revoked": func(o *office) { o.clients.change(o.secret, func(k *Key) { k.Revoked = o.now }) },
		"its key expired": func(o *office) { o.clients.change(o.secret, func(k *Key) { k.Expires = o.now }) },
		"its key of another": func(o *office) {
			o.clients.change(o.secret, func(k *Key) { k.Holder.Name = "other" })
		},
		"its machine in another stage": func(o *office) {
			o.clients.mu.Lock()
			o.clients.machines["ci"] = Machine{Name: "ci", Stage: "production"}
			o.clients.mu.Unlock()
		},
		"every key of the issuer ended": func(o *office) {
			if err := o.issuer.EndAll(t.Context(), "test"); err != nil {
				t.Fatal(err)
			}
		},
		"another URL": func(o *office) { o.url = "https://other.test" },
		"no URL":      func(o *office) { o.url = "" },
	} {
		o := newOffice(t)
		response, err := o.grant(form())
		if err != nil {
			t.Fatal(err)
		}
		end(o)
		if s, err := o.tokens.Verify(t.Context(), response.AccessToken, ""); isle.CodeOf(err) != isle.Refused || s.Actor.Name != "" {
			t.Errorf("%s: it proves %+v, %v", name, s, err)
		}
	}
	// It never outlives its key.
	o := newOffice(t)
	o.clients.change(o.secret, func(k *Key) { k.Expires = o.now.Add(time.Minute) })
	if response, err := o.grant(form()); err != nil || response.ExpiresIn != 60 {
		t.Errorf("%+v, %v", response, err)
	}
}

// TestATokenOutlivesTheRotationOfItsKey: what a key signed in its last moment
// counts to its end.
func TestATokenOutlivesTheRotationOfItsKey(t *testing.T) {
	o := newOffice(t)
	kid := o.issuer.keyOf(accessKey).ID
	o.now = o.issuer.keyOf(accessKey).Until.Add(-time.Second)
	if err := o.issuer.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	o.clients.change(o.secret, func(k *Key) { k.Expires = o.now.Add(time.Hour) })
	response, err := o.grant(form())
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		o.now = o.now.Add(time.Minute)
		if err := o.issuer.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if o.issuer.keyOf(accessKey).ID == kid {
			t.Fatal("the key was not rotated")
		}
		if _, err := o.tokens.Verify(t.Context(), response.AccessToken, ""); err != nil {
			t.Fatal(err)
		}
	}
}

func TestARequestForATokenThatIsWrongInOneWayIsRefused(t *testing.T) {
	twice := form()
	twice["client_id"] = []string{"ci", "ci"}
	two := form()
	two["resource"] = []string{"https://a.test", "https://b.test"}
	for _, c := range []struct {
		name string
		form url.Values
		code string
	}{
		{"no grant type", form("grant_type", "-"), InvalidRequest},
		{"another grant type", form("grant_type", "password"), UnsupportedGrantType},
		{"a parameter twice", twice, InvalidRequest},
		{"a scope", form("scope", "admin"), InvalidScope},
		{"two resources", two, InvalidTarget},
		{"a resource and another audience", form("resource", "https://a.test", "audience", "b"), InvalidTarget},
		{"a relative resource", form("resource", "/a"), InvalidTarget},
		{"a resource with a fragment", form("resource", "https://a.test/#x"), InvalidTarget},
		{"an audience with a space", form("audience", "a b"), InvalidTarget},
		{"a long audience", form("audience", strings.Repeat("a", 257)), InvalidTarget},
		{"nothing that proves anything", form("client_secret", "-"), InvalidClient},
		{"no client", form("client_secret", "-", "client_id", "-"), InvalidClient},
		{"a wrong secret", form("client_secret", "isle_wrong-secret-of"), InvalidClient},
		{"an empty secret", form("client_secret", ""), InvalidClient},
		{"a secret without a client", form("client_id", "-"), InvalidClient},
		{"another machine's secret", form("client_id", "other"), InvalidClient},
		{"an unknown client", form("client_id", "nobody"), InvalidClient},
		{"the token of a person", form("client_id", "ann", "client_secret", "islep_secret-of-ann"), InvalidClient},
		{"a secret and an assertion", form("client_assertion", "x"), InvalidRequest},
		{"another type of assertion", byAssertion("x", "client_assertion_type", "-"), InvalidClient},
		{"the secret as the client's name", form("client_id", ciSecret), InvalidClient},
	} {
		o := newOffice(t)
		o.clients.add(isle.Actor{Kind: isle.Machine, Name: "other"}, APIKey, "isle_secret-of-other")
		o.clients.add(isle.Actor{Kind: isle.Human, Name: "ann"}, Personal, "islep_secret-of-ann")
		_, err := o.grant(c.form)
		o.refused(c.name, err, c.code)
		if c.code == InvalidClient && err.(*GrantError).Description != "the client did not prove who it is" {
			t.Errorf("%s: who asks is told %q", c.name, err)
		}
	}
	o := newOffice(t)
	for name, basic := range map[string][2]string{
		"a wrong secret": {"ci", "wrong"}, "no secret": {"ci", ""}, "what is not form-encoded": {"ci", "%zz"}, "another client": {"other", ciSecret},
	} {
		_, err := o.tokens.Grant(t.Context(), url.Values{"grant_type": {"client_credentials"}}, basic[0], basic[1], true, "192.0.2.7")
		o.refused("Basic with "+name, err, InvalidClient)
	}
	for name, f := range map[string]url.Values{"a secret in the body too": form(), "another client_id in the body": {"grant_type": {"client_credentials"}, "client_id": {"x"}}} {
		_, err := o.tokens.Grant(t.Context(), f, "ci", ciSecret, true, "192.0.2.7")
		o.refused("Basic with "+name, err, InvalidRequest)
	}
}

func TestAnAssertionThatIsWrongInOneWayProvesNobody(t *testing.T) {
	otherKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	claim := func(name string, value any) func(o *office) string {
		return func(o *office) string { return o.assertion(func(c map[string]any) { c[name] = value }) }
	}
	without := func(name string) func(o *office) string {
		return func(o *office) string { return o.assertion(func(c map[string]any) { delete(c, name) }) }
	}
	ahead := func(name string, d time.Duration) func(o *office) string {
		return func(o *office) string { return o.assertion(func(c map[string]any) { c[name] = o.now.Add(d).Unix() }) }
	}
	for name, make := range map[string]func(o *office) string{
		"nothing":                func(*office) string { return "" },
		"no JWT":                 func(*office) string { return "x.y.z" },
		"no iss":                 without("iss"),
		"no sub":                 without("sub"),
		"no aud":                 without("aud"),
		"no exp":                 without("exp"),
		"no jti":                 without("jti"),
		"an empty jti":           claim("jti", ""),
		"a long jti":             claim("jti", strings.Repeat("x", maxJTI+1)),
		"a jti that is a number": claim("jti", 7),
		"another iss":            claim("iss", "other"),
		"another sub":            claim("sub", "other"),
		"iss and sub of nobody": func(o *office) string {
			return o.assertion(func(c map[string]any) { c["iss"], c["sub"] = "nobody", "nobody" })
		},
		"another aud":                claim("aud", "https://evil.test"),
		"us and another aud":         claim("aud", []string{serverURL, "https://evil.test"}),
		"no auds":                    claim("aud", []string{}),
		"our URL with a slash":       claim("aud", serverURL+"/"),
		"an end too far ahead":       ahead("exp", MaxAssertion+Skew+time.Second),
		"an end that is past":        ahead("exp", -Skew),
		"a beginning ahead":          ahead("nbf", Skew+time.Second),
		"issued ahead":               ahead("iat", Skew+time.Second),
		"the typ of an access token": func(o *office) string { return o.assertion(nil, func(s *jose.SignerOptions) { s.WithType("at+jwt") }) },
		"a key that comes along":     func(o *office) string { return o.assertion(nil, func(s *jose.SignerOptions) { s.EmbedJWK = true }) },
		"the address of a key": func(o *office) string {
			return o.assertion(nil, func(s *jose.SignerOptions) { s.WithHeader("jku", "https://evil.test") })
		},
		"another key": func(o *office) string {
			return signAssertion(o.t, jose.SigningKey{Algorithm: jose.ES256, Key: otherKey}, o.claims(nil))
		},
		"another key by the right kid": func(o *office) string {
			return signAssertion(o.t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: otherKey, KeyID: "k1"}}, o.claims(nil))
		},
		"another kid": func(o *office) string {
			return signAssertion(o.t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: o.private, KeyID: "k2"}}, o.claims(nil))
		},
		"the public key as an HMAC secret": func(o *office) string {
			return signAssertion(o.t, jose.SigningKey{Algorithm: jose.HS256, Key: []byte(jwkText(o.t, o.private.Public(), "k1", ""))}, o.claims(nil))
		},
		"the API key as an HMAC secret": func(o *office) string {
			return signAssertion(o.t, jose.SigningKey{Algorithm: jose.HS256, Key: []byte(ciSecret + strings.Repeat("x", 32))}, o.claims(nil))
		},
		"no signature": func(o *office) string {
			b, _ := json.Marshal(o.claims(nil))
			return b64(`{"alg":"none"}`) + "." + b64(string(b)) + "."
		},
		"too large": claim("x", strings.Repeat("x", MaxJWT)),
		"a key that is revoked": func(o *office) string {
			o.clients.change(o.public, func(k *Key) { k.Revoked = o.now })
			return o.assertion(nil)
		},
		"a key that has expired": func(o *office) string {
			o.clients.change(o.public, func(k *Key) { k.Expires = o.now })
			return o.assertion(nil)
		},
		"a key that is another machine's": func(o *office) string {
			o.clients.add(isle.Actor{Kind: isle.Machine, Name: "other"}, PublicKey, jwkText(o.t, otherKey.Public(), "k3", ""))
			return signAssertion(o.t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: otherKey, KeyID: "k3"}}, o.claims(nil))
		},
		"an access token of ours": func(o *office) string {
			r, err := o.grant(form())
			if err != nil {
				o.t.Fatal(err)
			}
			return r.AccessToken
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t)
			_, err := o.grant(byAssertion(make(o)))
			o.refused(name, err, InvalidClient)
			if err != nil && strings.Contains(err.Error(), "evil") {
				t.Errorf("%v", err)
			}
		})
	}
	o := newOffice(t)
	_, err = o.grant(byAssertion(o.assertion(nil), "client_id", "other"))
	o.refused("a client_id of somebody else", err, InvalidClient)
	f := byAssertion(o.assertion(nil))
	f.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer")
	_, err = o.grant(f)
	o.refused("SAML", err, InvalidRequest)
}

func TestAnAssertionCountsOnce(t *testing.T) {
	o := newOffice(t)
	again := o.assertion(nil)
	if _, err := o.grant(byAssertion(again)); err != nil {
		t.Fatal(err)
	}
	_, err := o.grant(byAssertion(again))
	o.refused("a second time", err, InvalidClient)
	sameJTI := o.assertion(func(c map[string]any) { c["jti"] = "one" })
	if _, err := o.grant(byAssertion(sameJTI)); err != nil {
		t.Fatal(err)
	}
	_, err = o.grant(byAssertion(o.assertion(func(c map[string]any) { c["jti"], c["exp"] = "one", o.now.Add(2*time.Minute).Unix() })))
	o.refused("another with the same jti", err, InvalidClient)
	o.open() // after a crash
	_, err = o.grant(byAssertion(again))
	o.refused("after a crash", err, InvalidClient)
	o.now = o.now.Add(time.Minute + Skew - time.Second)
	_, err = o.grant(byAssertion(again))
	o.refused("in the last second in which its time is", err, InvalidClient)

	// Of the same moment only one counts.
	race := o.assertion(nil)
	var wg sync.WaitGroup
	var mu sync.Mutex
	given := 0
	for range 16 {
		wg.Go(func() {
			if _, err := o.grant(byAssertion(race)); err == nil {
				mu.Lock()
				given++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if given != 1 {
		t.Errorf("one assertion gave %d tokens", given)
	}
	// What has expired is not kept.
	o.now = o.now.Add(10 * time.Minute)
	if _, err := o.grant(byAssertion(o.assertion(nil))); err != nil {
		t.Fatal(err)
	}
	records, _, err := o.store.Ledger(t.Context(), assertionLedger)
	if err != nil || len(records) != 2 || records[1].Key != forgottenKey {
		t.Errorf("%d records, %v", len(records), err)
	}
	o.store.Edit(assertionLedger, func(r []ledger.Record) []ledger.Record { return nil })
	if _, err := OpenTokens(t.Context(), o.tokens.cfg); isle.CodeOf(err) == "" || err == nil {
		t.Error("a record that was removed behind the log is not missed")
	}
}

// A clock that jumped ahead has what was used forgotten; set back again it makes
// none of it count, after a crash neither, and holds nobody up for long.
func TestAnAssertionCountsOnceHoweverTheClockJumps(t *testing.T) {
	o := newOffice(t)
	used := o.assertion(nil)
	if _, err := o.grant(byAssertion(used)); err != nil {
		t.Fatal(err)
	}
	right := o.now
	o.now = right.Add(time.Hour)
	if _, err := o.grant(byAssertion(o.assertion(nil))); err != nil {
		t.Fatal(err)
	}
	o.now = right
	_, err := o.grant(byAssertion(used))
	o.refused("after the clock was set back", err, InvalidClient)
	o.open()
	_, err = o.grant(byAssertion(used))
	o.refused("and after a crash", err, InvalidClient)
	o.now = right.Add(time.Second) // what ends after all that was forgotten counts
	if _, err := o.grant(byAssertion(o.assertion(nil))); err != nil {
		t.Errorf("a new one: %v", err)
	}
}

func TestAClientThatNeverStopsAskingHasToWait(t *testing.T) {
	o := newOffice(t)
	until := o.now.Add(time.Minute)
	for i := range maxUsedOfOne {
		k := usedKey("ci", fmt.Sprint(i))
		o.tokens.used[k] = usedAssertion{k, "ci", until}
	}
	_, err := o.grant(byAssertion(o.assertion(nil)))
	o.refused("one more", err, TemporarilyUnavailable)
	if isle.CodeOf(err) != isle.Exhausted {
		t.Errorf("%v", isle.CodeOf(err))
	}
	// Others do not.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o.clients.add(isle.Actor{Kind: isle.Machine, Name: "other"}, PublicKey, jwkText(t, key.Public(), "", ""))
	other := signAssertion(t, jose.SigningKey{Algorithm: jose.ES256, Key: key}, o.claims(func(c map[string]any) { c["iss"], c["sub"] = "other", "other" }))
	if _, err := o.grant(byAssertion(other)); err != nil {
		t.Error(err)
	}
	o.now = until
	if _, err := o.grant(byAssertion(o.assertion(nil))); err != nil {
		t.Error(err)
	}
}

func TestNoTokenWithoutItsEntry(t *testing.T) {
	o := newOffice(t)
	full := errors.New("no space left on device")
	o.store.Fail(full)
	for _, f := range []url.Values{form(), byAssertion(o.assertion(nil))} {
		r, err := o.grant(f)
		if !errors.Is(err, full) || r.AccessToken != "" {
			t.Errorf("%+v, %v", r, err)
		}
	}
	o.store.Fail(nil)
	o.url = ""
	_, err := o.grant(form())
	o.refused("without a URL", err, TemporarilyUnavailable)
}

func TestEachKindOfClientKeySigns(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		public  crypto.PublicKey
		private any
		jwkAlg  string
		alg     jose.SignatureAlgorithm
		counts  bool
	}{
		{rsaKey.Public(), rsaKey, "", jose.RS256, true},
		{rsaKey.Public(), rsaKey, "PS256", jose.PS256, true},
		{rsaKey.Public(), rsaKey, "PS256", jose.RS256, false},
		{rsaKey.Public(), rsaKey, "", jose.PS256, false},
		{p384.Public(), p384, "", jose.ES384, true},
		{public, private, "", jose.EdDSA, true},
		{public, private, "EdDSA", jose.EdDSA, true},
	} {
		o := newOffice(t)
		id := o.clients.add(ci, PublicKey, jwkText(t, c.public, "other", c.jwkAlg))
		for _, kid := range []string{"", "other", string(id)} {
			a := signAssertion(t, jose.SigningKey{Algorithm: c.alg, Key: jose.JSONWebKey{Key: c.private, KeyID: kid}}, o.claims(nil))
			_, err := o.grant(byAssertion(a))
			if (err == nil) != c.counts {
				t.Errorf("%s by a key for %q, kid %q: %v", c.alg, c.jwkAlg, kid, err)
			}
		}
	}
}

func TestEachRefusalGoesWhereItIsBounded(t *testing.T) {
	o := newOffice(t)
	var got []audit.Entry
	o.tokens.cfg.Refused = func(e audit.Entry, source string) {
		if source != "192.0.2.7" {
			t.Errorf("from %s", source)
		}
		got = append(got, e)
	}
	before := len(o.store.Entries())
	for range 3 {
		if _, err := o.grant(form("client_secret", "wrong")); err == nil {
			t.Fatal("it counts")
		}
	}
	if len(got) != 3 || len(o.store.Entries()) != before || got[0].Actor != nobody || got[0].Resource.Name != "ci" {
		t.Errorf("%d, and %d in the log: %+v", len(got), len(o.store.Entries())-before, got)
	}
}

// FuzzGrant: whatever is asked, no token is given that nobody proved themself for.
func FuzzGrant(f *testing.F) {
	o := newOffice(f)
	for _, s := range []string{form().Encode(), byAssertion(o.assertion(nil)).Encode(), "grant_type=client_credentials&client_assertion_type=" + url.QueryEscape(assertionType) + "&client_assertion=a.b.c", "", "%", "a=b&a=c"} {
		f.Add(s, "ci", "x", false)
	}
	f.Add("grant_type=client_credentials", "ci", ciSecret, true)
	f.Fuzz(func(t *testing.T, body, user, password string, basic bool) {
		values, err := url.ParseQuery(body)
		if err != nil {
			return
		}
		r, err := o.tokens.Grant(context.Background(), values, user, password, basic, "192.0.2.7")
		if err == nil && !strings.Contains(body, "secret-of-ci") && !strings.Contains(password, "secret-of-ci") && !strings.Contains(body, "client_assertion") {
			t.Fatalf("%q got %+v", body, r)
		}
		var g *GrantError
		if err != nil && !errors.As(err, &g) {
			t.Fatalf("%v", err)
		}
	})
}

// Beside an assertion client_id may be left out (RFC 7523, 3): the log says
// all the same whose assertion was refused.
func TestARefusedAssertionIsWrittenDownUnderTheNameOfItsMachine(t *testing.T) {
	o := newOffice(t)
	replayed := o.assertion(nil)
	if _, err := o.grant(byAssertion(replayed)); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct{ assertion, name string }{
		"replayed":           {replayed, "ci"},
		"for another server": {o.assertion(func(c map[string]any) { c["aud"] = "https://another.test" }), "ci"},
		"of nobody":          {o.assertion(func(c map[string]any) { c["iss"], c["sub"] = "nobody", "nobody" }), "?"},
		"garbage":            {"a.b.c", "?"},
	} {
		_, err := o.grant(byAssertion(c.assertion))
		o.refused(what, err, InvalidClient)
		entries := o.store.Entries()
		if e := entries[len(entries)-1]; e.Resource.Name != c.name {
			t.Errorf("%s: the entry is about %s, not %s", what, e.Resource, c.name)
		}
	}
}
