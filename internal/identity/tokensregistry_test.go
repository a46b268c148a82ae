package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/url"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"isle"
	"isle/internal/identity"
	"isle/internal/identity/identitytest"
	"isle/internal/ledger/ledgertest"
)

// TestATokenStandsOnTheMachinesKey: what ends a machine or its key ends the
// access tokens that were given for it.
func TestATokenStandsOnTheMachinesKey(t *testing.T) {
	store := ledgertest.New()
	at := func() string { return "https://isle.test" }
	registry, err := identity.OpenRegistry(t.Context(), identity.RegistryConfig{Store: store, Log: store})
	if err != nil {
		t.Fatal(err)
	}
	issuer := openIssuer(t, identity.IssuerConfig{Store: store, Sealer: identitytest.NewSealer(), URL: at})
	tokens, err := identity.OpenTokens(t.Context(), identity.TokensConfig{Issuer: issuer, Clients: registry, Store: store, Log: store, URL: at})
	if err != nil {
		t.Fatal(err)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	ann := isle.Actor{Kind: isle.Human, Name: "ann"}
	for _, public := range [][]byte{nil, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})} {
		name := "by-secret"
		if public != nil {
			name = "by-signature"
		}
		_, key, err := registry.Create(t.Context(), ann, identity.NewMachine{Name: name, Owner: ann, Purpose: "tests", Stage: "testing", Expires: time.Now().Add(time.Hour), PublicKey: public})
		if err != nil {
			t.Fatal(err)
		}
		form := url.Values{"grant_type": {"client_credentials"}, "client_id": {name}, "client_secret": {key.Secret}}
		if public != nil {
			form = url.Values{"grant_type": {"client_credentials"}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {assert(t, private, name, at())}}
		}
		given, err := tokens.Grant(t.Context(), form, "", "", false, "192.0.2.7")
		if err != nil {
			t.Fatal(err)
		}
		s, err := tokens.Verify(t.Context(), given.AccessToken, "")
		if err != nil || s.Actor.Name != name || s.Stage != "testing" || s.Key != key.ID || s.Owner != ann {
			t.Fatalf("%s: it proves %+v, %v", name, s, err)
		}
		if err := registry.Check(s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if k, _ := registry.Key(key.ID); k.LastUsed.IsZero() || k.LastSource != "192.0.2.7" {
			t.Errorf("%s: that its key was used is not noted: %v from %q", name, k.LastUsed, k.LastSource)
		}
		over := registry.Over()
		if _, err := registry.Revoke(t.Context(), ann, name, "test"); err != nil {
			t.Fatal(err)
		}
		<-over
		if err := registry.Check(s); err == nil {
			t.Errorf("%s: what is open goes on", name)
		}
		if _, err := tokens.Verify(t.Context(), given.AccessToken, ""); isle.CodeOf(err) != isle.Refused {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func assert(t *testing.T, private *ecdsa.PrivateKey, name, audience string) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: private}, nil)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := json.Marshal(map[string]any{"iss": name, "sub": name, "aud": audience, "exp": time.Now().Add(time.Minute).Unix(), "jti": string(isle.NewID())})
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(claims)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}
