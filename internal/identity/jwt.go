package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"

	"isle"
)

// Bounds of a JWT.
const (
	// MaxJWT is how many bytes a JWT has at most, whatever it is for.
	MaxJWT = 8 << 10
	// Skew is how far two clocks may differ: a JWT counts that much before its
	// time by our clock, and the client's assertion that much after its end.
	Skew = 30 * time.Second

	maxDepth     = 8    // of objects and arrays in a JWT
	maxAudiences = 16   // of one JWT
	minModulus   = 2048 // bits of an RSA key (RFC 7518, 3.3)
	maxModulus   = 8192 // a longer one only costs time
)

// A verifyKey is a public key with the one algorithm that it is for. The
// algorithm never comes from what is verified (RFC 8725, 3.1).
type verifyKey struct {
	public crypto.PublicKey
	alg    jose.SignatureAlgorithm
	id     isle.ID // of a client's key
}

// verifyKeyOf says which algorithm a public key is for: the one that its JWK
// names, and else the usual one of its kind. It fails with Invalid where the key
// is too weak, of no kind that is used here, or not for what it names.
func verifyKeyOf(k jose.JSONWebKey) (verifyKey, error) {
	var fit []jose.SignatureAlgorithm
	switch p := k.Key.(type) {
	case *ecdsa.PublicKey:
		switch p.Curve {
		case elliptic.P256():
			fit = []jose.SignatureAlgorithm{jose.ES256}
		case elliptic.P384():
			fit = []jose.SignatureAlgorithm{jose.ES384}
		case elliptic.P521():
			fit = []jose.SignatureAlgorithm{jose.ES512}
		}
	case *rsa.PublicKey:
		if n := p.N.BitLen(); n < minModulus || n > maxModulus {
			return verifyKey{}, isle.Errorf(isle.Invalid, "an RSA key of %d bits; %d to %d are used here", n, minModulus, maxModulus)
		}
		fit = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}
	case ed25519.PublicKey:
		fit = []jose.SignatureAlgorithm{jose.EdDSA}
	}
	switch alg := jose.SignatureAlgorithm(k.Algorithm); {
	case len(fit) == 0 || !k.Valid():
		return verifyKey{}, isle.Errorf(isle.Invalid, "a key of a kind that is not used here: it is a public RSA, P-256, P-384, P-521 or Ed25519 key")
	case alg == "":
		return verifyKey{public: k.Key, alg: fit[0]}, nil
	case slices.Contains(fit, alg):
		return verifyKey{public: k.Key, alg: alg}, nil
	}
	return verifyKey{}, isle.Errorf(isle.Invalid, "a key for the algorithm %.20q, which is not one of its kind", k.Algorithm)
}

// verifyJWT returns the claims of a JWT (RFC 7519, compact serialisation), and
// which of the keys signed it. The header may have alg, typ and kid and nothing
// else: no key, no address of one and no extension comes from a token. keys
// gives the keys for a kid, "" where there is none; more than one only where
// the signer need not name it. What is not a JWT that counts is Refused, with a
// text that names the reason and nothing that the token says.
func verifyJWT(token string, typ []string, keys func(kid string) []verifyKey) (map[string]any, verifyKey, error) {
	var signed verifyKey
	if len(token) > MaxJWT {
		return nil, signed, refuseJWT("it has %d bytes; at most %d", len(token), MaxJWT)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, signed, refuseJWT("it does not have three parts")
	}
	var raw [3][]byte
	for n, part := range parts {
		var err error
		if raw[n], err = base64.RawURLEncoding.Strict().DecodeString(part); err != nil || strings.ContainsAny(part, "\r\n") {
			return nil, signed, refuseJWT("its part %d is not base64url", n+1)
		}
	}
	kid, alg, err := readHeader(raw[0], typ)
	if err != nil {
		return nil, signed, err
	}
	candidates := keys(kid)
	if len(candidates) == 0 {
		return nil, signed, refuseJWT("no key that counts has its kid")
	}
	for _, k := range candidates {
		if string(k.alg) != alg {
			continue
		}
		jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{k.alg})
		if err != nil {
			return nil, signed, refuseJWT("it is no JWS")
		}
		if _, err = jws.Verify(k.public); err == nil {
			signed = k
			break
		}
	}
	if signed.public == nil {
		return nil, signed, refuseJWT("its signature is not one of a key that counts, by the algorithm of that key")
	}
	claims, err := parseObject(raw[1])
	if err != nil {
		return nil, signed, refuseJWT("its claims cannot be read: %v", err)
	}
	return claims, signed, nil
}

// readHeader reads a JOSE header (RFC 7515, 4).
func readHeader(b []byte, typ []string) (kid, alg string, err error) {
	header, err := parseObject(b)
	if err != nil {
		return "", "", refuseJWT("its header cannot be read: %v", err)
	}
	for name, v := range header {
		s, ok := v.(string)
		switch {
		case name != "alg" && name != "typ" && name != "kid":
			return "", "", refuseJWT("its header has a member beside alg, typ and kid")
		case !ok || s == "":
			return "", "", refuseJWT("its header's %s is no text", name)
		}
	}
	alg, _ = header["alg"].(string)
	kid, _ = header["kid"].(string)
	t, _ := header["typ"].(string)
	// RFC 7515, 4.1.9: a media type, without regard to case, and without
	// "application/" where there is no other slash.
	t = strings.ToLower(t)
	if rest, ok := strings.CutPrefix(t, "application/"); ok && !strings.Contains(rest, "/") {
		t = rest
	}
	if !slices.Contains(typ, t) {
		return "", "", refuseJWT("its typ is not %s", strings.Trim(strings.Join(typ, " or "), " or"))
	}
	return kid, alg, nil
}

func refuseJWT(format string, args ...any) error {
	return isle.Errorf(isle.Refused, "the token does not count: %s", fmt.Sprintf(format, args...))
}

// checkTimes says whether a JWT counts now by its exp, nbf and iat. It counts
// Skew before nbf and iat, and late after exp.
func checkTimes(claims map[string]any, now time.Time, late time.Duration) (expires time.Time, err error) {
	times := map[string]time.Time{}
	for _, name := range []string{"exp", "nbf", "iat"} {
		v, there := claims[name]
		if !there {
			continue
		}
		t, ok := numericDate(v)
		if !ok {
			return expires, refuseJWT("its %s is no time", name)
		}
		times[name] = t
	}
	expires, ok := times["exp"]
	switch {
	case !ok:
		return expires, refuseJWT("it has no exp")
	case !now.Before(expires.Add(late)):
		return expires, refuseJWT("it has expired")
	case now.Before(times["nbf"].Add(-Skew)):
		return expires, refuseJWT("its time has not come (nbf)")
	case now.Before(times["iat"].Add(-Skew)):
		return expires, refuseJWT("it was issued in the future (iat)")
	}
	return expires, nil
}

// numericDate reads seconds since 1970 (RFC 7519, 2), up to the year 9999.
func numericDate(v any) (time.Time, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return time.Time{}, false
	}
	f, err := n.Float64()
	if err != nil || !(f >= 0 && f < 253402300800) {
		return time.Time{}, false
	}
	whole, fraction := math.Modf(f)
	return time.Unix(int64(whole), int64(fraction*1e9)), true
}

// checkAudience says whether a JWT is for one of the audiences (RFC 7519, 4.1.3).
func checkAudience(claims map[string]any, wanted ...string) error {
	audiences, err := audiencesOf(claims)
	if err != nil {
		return err
	}
	for _, a := range audiences {
		if a != "" && slices.Contains(wanted, a) {
			return nil
		}
	}
	return refuseJWT("it is for another audience (aud)")
}

func audiencesOf(claims map[string]any) ([]string, error) {
	switch v := claims["aud"].(type) {
	case nil:
		return nil, refuseJWT("it has no aud")
	case string:
		return []string{v}, nil
	case []any:
		if len(v) > maxAudiences {
			return nil, refuseJWT("it has %d audiences; at most %d", len(v), maxAudiences)
		}
		var out []string
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, refuseJWT("its aud is no text")
			}
			out = append(out, s)
		}
		return out, nil
	}
	return nil, refuseJWT("its aud is no text")
}

// parseObject reads one JSON object (RFC 8259) as those do who are of one mind
// about it: UTF-8, no name twice, names that differ by case are different,
// nothing after it, not too deep. Numbers are json.Number.
func parseObject(b []byte) (map[string]any, error) {
	if !utf8.Valid(b) {
		return nil, fmt.Errorf("it is not UTF-8")
	}
	if !json.Valid(b) {
		return nil, fmt.Errorf("it is no JSON")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	v, err := parseValue(d, 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("something follows it")
	}
	o, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("it is no JSON object")
	}
	return o, nil
}

func parseValue(d *json.Decoder, depth int) (any, error) {
	t, err := d.Token()
	if err != nil {
		return nil, fmt.Errorf("it is no JSON")
	}
	delim, ok := t.(json.Delim)
	if !ok {
		return t, nil
	}
	if depth == maxDepth {
		return nil, fmt.Errorf("it is nested more than %d deep", maxDepth)
	}
	switch delim {
	case '{':
		o := map[string]any{}
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return nil, fmt.Errorf("it is no JSON")
			}
			key := name.(string) // the decoder takes nothing else before a colon
			if _, twice := o[key]; twice {
				return nil, fmt.Errorf("it has a name twice")
			}
			if o[key], err = parseValue(d, depth+1); err != nil {
				return nil, err
			}
		}
		_, err = d.Token()
		return o, notJSON(err)
	case '[':
		a := []any{}
		for d.More() {
			v, err := parseValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			a = append(a, v)
		}
		_, err = d.Token()
		return a, notJSON(err)
	}
	return nil, fmt.Errorf("it is no JSON")
}

func notJSON(err error) error {
	if err != nil {
		return fmt.Errorf("it is no JSON")
	}
	return nil
}
