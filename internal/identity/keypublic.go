package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"isle"
)

// Bounds of public keys.
const (
	// MaxPublicKey bounds the text of a public key in bytes.
	MaxPublicKey = 16 << 10
	weakestRSA   = 2048 // bits (RFC 7518 §3.3)
	longestRSA   = 8192 // bits: checking a signature must stay cheap
	maxKeyID     = 128  // bytes of a JWK's kid
)

// ParsePublicKey reads the public key of a client that signs assertions (RFC
// 7523): a JWK (RFC 7517), or PEM of a PKIX public key (RFC 7468 §13). It returns
// the key as a JWK with nothing but the key, its kid and its alg, and the SHA-256
// of its thumbprint (RFC 7638), which is also the kid where none is given. RSA
// of 2048 to 8192 bits, P-256, P-384, P-521 and Ed25519 are taken. It fails with
// Invalid.
func ParsePublicKey(text []byte) (jwk string, thumbprint isle.Digest, err error) {
	text = bytes.TrimSpace(text)
	if len(text) == 0 || len(text) > MaxPublicKey {
		return "", "", isle.Errorf(isle.Invalid, "a public key has 1 to %d bytes, not %d", MaxPublicKey, len(text))
	}
	var k jose.JSONWebKey
	if text[0] == '{' {
		k, err = readPublicJWK(text)
	} else {
		k.Key, err = readPublicPEM(text)
	}
	if err != nil {
		return "", "", err
	}
	algorithms, err := algorithmsOf(k.Key)
	if err != nil {
		return "", "", err
	}
	if k.Algorithm != "" && !slices.Contains(algorithms, jose.SignatureAlgorithm(k.Algorithm)) {
		return "", "", isle.Errorf(isle.Invalid, "the key's alg %q does not fit it; want %s, or none", shorten(k.Algorithm, 20), algorithms[0])
	}
	sum, err := k.Thumbprint(crypto.SHA256)
	if err != nil {
		return "", "", isle.Errorf(isle.Invalid, "the public key cannot be read: %w", err)
	}
	if k.KeyID == "" {
		k.KeyID = base64.RawURLEncoding.EncodeToString(sum)
	}
	out, err := jose.JSONWebKey{Key: k.Key, KeyID: k.KeyID, Algorithm: k.Algorithm, Use: "sig"}.MarshalJSON()
	if err != nil {
		return "", "", isle.Errorf(isle.Invalid, "the public key cannot be read: %w", err)
	}
	return string(out), isle.DigestFromSum(sum), nil
}

// privateKey says that what was given is not for others.
func privateKey() error {
	return isle.Errorf(isle.Invalid, "this is a private key, which stays with the client").
		WithHint("give its public half: `openssl pkey -in key.pem -pubout`; since this one was shown, better make another")
}

func readPublicJWK(text []byte) (jose.JSONWebKey, error) {
	var k jose.JSONWebKey
	wrong := func(err error) (jose.JSONWebKey, error) {
		return k, isle.Errorf(isle.Invalid, "this is no JWK (RFC 7517): %w", err)
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		return wrong(err)
	}
	for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"} {
		if _, ok := members[private]; ok {
			return k, privateKey()
		}
	}
	if _, ok := members["keys"]; ok {
		return k, isle.Errorf(isle.Invalid, "this is a set of keys; give one key of it")
	}
	for name := range members { // certificates and what points to them count for nothing here
		if strings.HasPrefix(name, "x5") {
			delete(members, name)
		}
	}
	clean, err := json.Marshal(members)
	if err != nil {
		return wrong(err)
	}
	if err := k.UnmarshalJSON(clean); err != nil {
		return wrong(err)
	}
	switch {
	case k.Use != "" && k.Use != "sig":
		return k, isle.Errorf(isle.Invalid, "the key is for use %q, not to sign", shorten(k.Use, 20))
	case len(k.KeyID) > maxKeyID || strings.ContainsFunc(k.KeyID, func(r rune) bool { return r < ' ' || r > '~' }):
		return k, isle.Errorf(isle.Invalid, "the key's kid has more than %d characters, or others than those of ASCII", maxKeyID)
	}
	return k, nil
}

func readPublicPEM(text []byte) (any, error) {
	block, rest := pem.Decode(text)
	switch {
	case block == nil:
		return nil, isle.Errorf(isle.Invalid, "this is no public key: want PEM (-----BEGIN PUBLIC KEY-----) or a JWK")
	case strings.Contains(block.Type, "PRIVATE"):
		return nil, privateKey()
	case block.Type != "PUBLIC KEY":
		return nil, isle.Errorf(isle.Invalid, "this is PEM of a %s; want PUBLIC KEY", shorten(block.Type, 40))
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, isle.Errorf(isle.Invalid, "there is more than one public key, or text after it; give one")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "the public key cannot be read: %w", err)
	}
	return key, nil
}

// algorithmsOf are those that a public key can check, the usual one first.
func algorithmsOf(key any) ([]jose.SignatureAlgorithm, error) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < weakestRSA || n > longestRSA {
			return nil, isle.Errorf(isle.Invalid, "an RSA key has %d to %d bits, not %d", weakestRSA, longestRSA, n)
		}
		if k.E < 3 || k.E%2 == 0 {
			return nil, isle.Errorf(isle.Invalid, "the RSA key's exponent is %d", k.E)
		}
		return []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}, nil
	case *ecdsa.PublicKey:
		if _, err := k.ECDH(); err == nil { // the point is on the curve
			switch k.Curve.Params().BitSize {
			case 256:
				return []jose.SignatureAlgorithm{jose.ES256}, nil
			case 384:
				return []jose.SignatureAlgorithm{jose.ES384}, nil
			case 521:
				return []jose.SignatureAlgorithm{jose.ES512}, nil
			}
		}
	case ed25519.PublicKey:
		if len(k) == ed25519.PublicKeySize {
			return []jose.SignatureAlgorithm{jose.EdDSA}, nil
		}
	}
	return nil, isle.Errorf(isle.Invalid, "a key of this kind is not taken; want RSA of at least %d bits, P-256, P-384, P-521 or Ed25519", weakestRSA)
}

// shorten cuts what came from outside for a message.
func shorten(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
