package owasp

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A signature is how a forger signs.
type signature func(said []byte) ([]byte, error)

// unsigned is alg none.
func unsigned([]byte) ([]byte, error) { return nil, nil }

// byHMAC signs with a key that everybody knows, taken for a shared secret.
func byHMAC(key []byte) signature {
	return func(said []byte) ([]byte, error) {
		h := hmac.New(sha256.New, key)
		h.Write(said)
		return h.Sum(nil), nil
	}
}

// by signs with ES256 (RFC 7518, 3.4).
func by(key *ecdsa.PrivateKey) signature {
	return func(said []byte) ([]byte, error) {
		sum := sha256.Sum256(said)
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			return nil, err
		}
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...), nil
	}
}

// forge makes a JWT.
func forge(t *testing.T, header, claims map[string]any, sign signature) string {
	t.Helper()
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	said := part(header) + "." + part(claims)
	s, err := sign([]byte(said))
	if err != nil {
		t.Fatal(err)
	}
	return said + "." + base64.RawURLEncoding.EncodeToString(s)
}

// headerOf is that of a JWT.
func headerOf(t *testing.T, token string) (out map[string]any) {
	t.Helper()
	first, _, _ := strings.Cut(token, ".")
	b, err := base64.RawURLEncoding.DecodeString(first)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// but is a map with something else in it; nil takes it out.
func but(m map[string]any, key string, value any) map[string]any {
	m = maps.Clone(m)
	if value == nil {
		delete(m, key)
	} else {
		m[key] = value
	}
	return m
}

// newKey is a key pair, and the path of its public half.
func newKey(t *testing.T) (*ecdsa.PrivateKey, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key, publicKey(t, key.Public())
}

func publicKey(t *testing.T, key crypto.PublicKey) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	path := filepath.Join(t.TempDir(), "public.pem")
	if err == nil {
		err = os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// assertionOf is what a machine says to get a token (RFC 7523), unsigned.
func assertionOf(name, audience string) map[string]any {
	return map[string]any{"iss": name, "sub": name, "aud": audience, "jti": rand.Text(), "exp": time.Now().Add(time.Minute).Unix()}
}

var es256 = map[string]any{"alg": "ES256", "typ": "JWT"}

// asserts asks for a token by an assertion.
func (c *caller) asserts(t *testing.T, assertion string, form ...string) grant {
	t.Helper()
	return c.asks(t, "", "", append([]string{"client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion", assertion}, form...)...)
}
