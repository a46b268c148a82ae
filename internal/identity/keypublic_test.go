package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"isle"
)

func pemOf(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func TestAPublicKeyIsTakenAsPEMAndAsJWK(t *testing.T) {
	edPublic, edPrivate, _ := ed25519.GenerateKey(rand.Reader)
	rsaKey, _ := rsa.GenerateKey(rand.Reader, 2048)
	keys := map[string]any{"Ed25519": edPublic, "RSA": &rsaKey.PublicKey}
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		k, _ := ecdsa.GenerateKey(c, rand.Reader)
		keys[c.Params().Name] = &k.PublicKey
	}
	for name, key := range keys {
		jwk, print, err := ParsePublicKey(pemOf(t, key))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		again, print2, err := ParsePublicKey([]byte(" " + jwk + "\n"))
		if err != nil || again != jwk || print != print2 || !print.Valid() {
			t.Errorf("%s: %v\n%s\n%s", name, err, jwk, again)
		}
		var k jose.JSONWebKey
		if err := json.Unmarshal([]byte(jwk), &k); err != nil || !k.IsPublic() || k.KeyID == "" || k.Use != "sig" {
			t.Errorf("%s: %v %s", name, err, jwk)
		}
	}
	// RFC 7638 §3.1: the thumbprint of its example is the kid that we give.
	example := `{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256"}`
	if jwk, _, err := ParsePublicKey([]byte(example)); err != nil || !strings.Contains(jwk, `"NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"`) {
		t.Errorf("%v %s", err, jwk)
	}

	small, _ := rsa.GenerateKey(rand.Reader, 1024)
	private, _ := x509.MarshalPKCS8PrivateKey(edPrivate)
	privateJWK, _ := jose.JSONWebKey{Key: edPrivate}.MarshalJSON()
	good, _, _ := ParsePublicKey(pemOf(t, edPublic))
	for what, text := range map[string]string{
		"bytes, not 0":       " \n",
		"16384 bytes, not":   strings.Repeat("a", MaxPublicKey+1),
		"no public key":      "ssh-ed25519 AAAA",
		"2048 to 8192":       string(pemOf(t, &small.PublicKey)),
		"a private key":      string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})),
		"private key, which": string(privateJWK),
		"stays with":         `{"kty":"oct","k":"AAAA"}`,
		"set of keys":        `{"keys":[` + good + `]}`,
		"want PUBLIC KEY":    "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
		"more than one":      string(pemOf(t, edPublic)) + string(pemOf(t, edPublic)),
		"no JWK":             `{"kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA"}`,
		"does not fit":       strings.Replace(good, `"kty"`, `"alg":"RS256","kty"`, 1),
		"not to sign":        strings.Replace(good, `"use":"sig"`, `"use":"enc"`, 1),
		"kid":                strings.Replace(good, `"kid":"`, `"kid":"`+strings.Repeat("a", 100), 1),
	} {
		if jwk, _, err := ParsePublicKey([]byte(text)); isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v %s", what, err, jwk)
		}
	}
}

func TestAPublicKeyIsOfOneMachineOnce(t *testing.T) {
	d := newDesk(t)
	public, _, _ := ed25519.GenerateKey(rand.Reader)
	n := d.machine("ci")
	n.PublicKey = pemOf(t, public)
	_, k, err := d.Create(t.Context(), root, n)
	if err != nil || k.Secret != "" || k.Kind != PublicKey {
		t.Fatalf("%+v %v", k, err)
	}
	if keys := d.PublicKeys("ci"); len(keys) != 1 || keys[0].ID != k.ID || keys[0].JWK == "" {
		t.Errorf("%+v", keys)
	}
	if s, err := d.Subject(k.ID); err != nil || s.Actor != theCI {
		t.Errorf("%+v %v", s, err)
	}
	n.Name = "other"
	if _, _, err := d.Create(t.Context(), root, n); isle.CodeOf(err) != isle.Conflict {
		t.Error(err)
	}
	if _, _, err := d.Rotate(t.Context(), root, "ci", 0, n.PublicKey); isle.CodeOf(err) != isle.Conflict {
		t.Error(err)
	}
	if d.counts(t, string(k.Hash)) || d.counts(t, k.JWK) {
		t.Error("what everybody knows is a credential")
	}
	d.pass(MaxKey + time.Second)
	if len(d.PublicKeys("ci")) != 0 {
		t.Error("it counts after its end")
	}
}

func FuzzPublicKey(f *testing.F) {
	public, _, _ := ed25519.GenerateKey(rand.Reader)
	f.Add(pemOf(f, public))
	jwk, _, _ := ParsePublicKey(pemOf(f, public))
	f.Add([]byte(jwk))
	f.Add([]byte(`{"kty":"RSA","n":"","e":"AQAB"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		jwk, print, err := ParsePublicKey(text)
		if err != nil {
			if isle.CodeOf(err) != isle.Invalid {
				t.Fatal(err)
			}
			return
		}
		again, print2, err := ParsePublicKey([]byte(jwk))
		if err != nil || again != jwk || print != print2 {
			t.Fatalf("%v\n%s\n%s", err, jwk, again)
		}
	})
}

func FuzzCredential(f *testing.F) {
	secret, _, _ := newSecret(Personal)
	f.Add(secret)
	f.Add("isle_")
	d := newDesk(f)
	k := d.create(f, "ci")
	f.Fuzz(func(t *testing.T, s string) {
		shapeOf(s)
		if _, err := d.Authenticate(t.Context(), s, s); err == nil && s != k.Secret {
			t.Fatalf("%q counts", s)
		}
	})
}
