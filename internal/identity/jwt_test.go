package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"isle"
	"isle/internal/identity/identitytest"
	"isle/internal/ledger/ledgertest"
)

func b64(b string) string { return base64.RawURLEncoding.EncodeToString([]byte(b)) }

func keyOfJWK(t testing.TB, text string) verifyKey {
	t.Helper()
	var k jose.JSONWebKey
	if err := json.Unmarshal([]byte(text), &k); err != nil {
		t.Fatal(err)
	}
	v, err := verifyKeyOf(k)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// The claims and keys of RFC 7515, appendix A, of RFC 8037, appendix A, and of RFC 7638, 3.1.
const (
	rfc7515Claims = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
	rfc7515RSA    = `{"kty":"RSA","e":"AQAB","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"}`
	rfc7515EC     = `{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}`
	rfc8037       = `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`
	rfc7638       = `{"kty":"RSA","e":"AQAB","alg":"RS256","kid":"2011-04-29","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"}`

	rfc7515A1 = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9." + rfc7515Claims + ".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
	rfc7515A2 = "eyJhbGciOiJSUzI1NiJ9." + rfc7515Claims + ".cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
	rfc7515A3 = "eyJhbGciOiJFUzI1NiJ9." + rfc7515Claims + ".DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
	rfc7515A5 = "eyJhbGciOiJub25lIn0." + rfc7515Claims + "."
	rfc8037A4 = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
)

func TestTheExamplesOfTheRFCsVerifyByTheirKeysAndNoOthers(t *testing.T) {
	keys := map[string]verifyKey{"rsa": keyOfJWK(t, rfc7515RSA), "ec": keyOfJWK(t, rfc7515EC), "ed": keyOfJWK(t, rfc8037)}
	for _, c := range []struct{ name, token, key string }{
		{"RFC 7515 A.2 RS256", rfc7515A2, "rsa"},
		{"RFC 7515 A.3 ES256", rfc7515A3, "ec"},
		{"RFC 8037 A.4 EdDSA", rfc8037A4, "ed"},
		{"RFC 7515 A.1 HS256", rfc7515A1, ""},
		{"RFC 7515 A.5 unsecured", rfc7515A5, ""},
	} {
		for name, k := range keys {
			claims, _, err := verifyJWT(c.token, []string{"", "jwt"}, func(string) []verifyKey { return []verifyKey{k} })
			switch {
			case name != c.key:
				if err == nil {
					t.Errorf("%s verifies by the %s key", c.name, name)
				}
			case c.token == rfc8037A4: // what it signs is no JSON: it came as far as that
				if err == nil || !strings.Contains(err.Error(), "claims cannot be read") {
					t.Errorf("%s: %v", c.name, err)
				}
			case err != nil:
				t.Errorf("%s: %v", c.name, err)
			default:
				if exp, ok := numericDate(claims["exp"]); claims["iss"] != "joe" || claims["http://example.com/is_root"] != true || !ok || exp.Unix() != 1300819380 {
					t.Errorf("%s says %v", c.name, claims)
				}
			}
		}
	}
	for text, want := range map[string]string{
		rfc7638: "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
		rfc8037: "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
	} {
		if got, err := thumbprint(keyOfJWK(t, text).public); err != nil || got != want {
			t.Errorf("the thumbprint is %s, %v; want %s", got, err, want)
		}
	}
}

// A forge makes tokens, right and wrong ones, by an issuer's own keys.
type forge struct {
	t      testing.TB
	issuer *Issuer
	now    time.Time
	header map[string]any
	claims map[string]any
	alter  func(token string) string
	key    any    // signs instead
	alg    string // that it signs by
}

func newForge(t testing.TB) *forge {
	t.Helper()
	f := &forge{t: t, now: time.Now().Truncate(time.Second)}
	i, err := OpenIssuer(t.Context(), IssuerConfig{Store: ledgertest.New(), Sealer: identitytest.NewSealer(), Now: func() time.Time { return f.now }, URL: func() string { return "https://isle.test" }})
	if err != nil {
		t.Fatal(err)
	}
	f.issuer = i
	f.reset()
	return f
}

func (f *forge) reset() {
	k := f.issuer.keyOf(svidKey)
	f.header = map[string]any{"alg": "ES256", "kid": k.ID, "typ": "JWT"}
	f.claims = map[string]any{"sub": "spiffe://" + f.issuer.TrustDomain() + "/shop/testing/a/web", "aud": "db", "exp": f.now.Add(time.Minute).Unix(), "iat": f.now.Unix()}
	f.key, f.alg, f.alter = k.private, "ES256", func(s string) string { return s }
}

func (i *Issuer) keyOf(kind string) *issuerKey {
	return signer(i.state.Load().keys, kind, i.cfg.Now())
}

// token signs what the forge holds, as it stands.
func (f *forge) token() string {
	f.t.Helper()
	header, err := json.Marshal(f.header)
	if err != nil {
		f.t.Fatal(err)
	}
	claims, err := json.Marshal(f.claims)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.alter(f.sign(string(header), string(claims)))
}

func (f *forge) sign(header, claims string) string {
	f.t.Helper()
	input := b64(header) + "." + b64(claims)
	sum := sha256.Sum256([]byte(input))
	var sig []byte
	switch k := f.key.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, k, sum[:])
		if err != nil {
			f.t.Fatal(err)
		}
		sig = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case []byte:
		m := hmac.New(sha256.New, k)
		m.Write([]byte(input))
		sig = m.Sum(nil)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func TestAJWTThatIsWrongInOneWayDoesNotCount(t *testing.T) {
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	otherJWK := jose.JSONWebKey{Key: other.Public()}
	long := strings.Repeat("x", MaxJWT)
	for name, spoil := range map[string]func(f *forge){
		"alg none":                               func(f *forge) { f.header["alg"] = "none"; f.key = nil },
		"alg none with the signature of another": func(f *forge) { f.header["alg"] = "none" },
		"alg None":                               func(f *forge) { f.header["alg"] = "None"; f.key = nil },
		"no alg":                                 func(f *forge) { delete(f.header, "alg") },
		"alg that is no text":                    func(f *forge) { f.header["alg"] = []string{"ES256"} },
		"HS256 with the public key in DER": func(f *forge) {
			f.header["alg"] = "HS256"
			f.key = f.issuer.keyOf(svidKey).Public
		},
		"HS256 with the public key in PEM": func(f *forge) {
			f.header["alg"] = "HS256"
			f.key = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: f.issuer.keyOf(svidKey).Public})
		},
		"HS256 with the point": func(f *forge) {
			f.header["alg"] = "HS256"
			point, err := f.issuer.keyOf(svidKey).private.PublicKey.Bytes()
			if err != nil {
				f.t.Fatal(err)
			}
			f.key = point
		},
		"RS256 over an EC signature":                       func(f *forge) { f.header["alg"] = "RS256" },
		"ES384 over an ES256 signature":                    func(f *forge) { f.header["alg"] = "ES384" },
		"another key":                                      func(f *forge) { f.key = other },
		"another key that comes along (jwk)":               func(f *forge) { f.key = other; f.header["jwk"] = otherJWK },
		"another key that comes along without a kid (jwk)": func(f *forge) { f.key = other; f.header["jwk"] = otherJWK; delete(f.header, "kid") },
		"the right key that comes along (jwk)": func(f *forge) {
			f.header["jwk"] = jose.JSONWebKey{Key: f.issuer.keyOf(svidKey).private.Public()}
		},
		"the address of a key (jku)":         func(f *forge) { f.header["jku"] = "https://evil.test/jwks.json" },
		"the address of a certificate (x5u)": func(f *forge) { f.header["x5u"] = "https://evil.test/x.pem" },
		"a certificate (x5c)":                func(f *forge) { f.header["x5c"] = []string{"AAAA"} },
		"a critical extension":               func(f *forge) { f.header["crit"] = []string{"exp"}; f.header["exp"] = 1 },
		"an unencoded payload (b64)":         func(f *forge) { f.header["b64"] = false; f.header["crit"] = []string{"b64"} },
		"a compressed payload (zip)":         func(f *forge) { f.header["zip"] = "DEF" },
		"no kid":                             func(f *forge) { delete(f.header, "kid") },
		"an empty kid":                       func(f *forge) { f.header["kid"] = "" },
		"another kid":                        func(f *forge) { f.header["kid"] = "other" },
		"a kid that is a path":               func(f *forge) { f.header["kid"] = "../../../dev/null" },
		"the kid of a key for access tokens": func(f *forge) {
			k := f.issuer.keyOf(accessKey)
			f.header["kid"], f.key = k.ID, k.private
		},
		"the kid of the X.509 authority": func(f *forge) {
			k := f.issuer.keyOf(x509Key)
			f.header["kid"], f.key = k.ID, k.private
		},
		"the typ of an access token":              func(f *forge) { f.header["typ"] = "at+jwt" },
		"another typ":                             func(f *forge) { f.header["typ"] = "dpop+jwt" },
		"no aud":                                  func(f *forge) { delete(f.claims, "aud") },
		"another aud":                             func(f *forge) { f.claims["aud"] = "other" },
		"an aud that only begins right":           func(f *forge) { f.claims["aud"] = "db2" },
		"an aud in another case":                  func(f *forge) { f.claims["aud"] = "DB" },
		"a list of other auds":                    func(f *forge) { f.claims["aud"] = []string{"a", "b"} },
		"an empty list of auds":                   func(f *forge) { f.claims["aud"] = []string{} },
		"an aud that is an object":                func(f *forge) { f.claims["aud"] = map[string]string{"db": "db"} },
		"a list of auds that are no text":         func(f *forge) { f.claims["aud"] = []any{"db", 1} },
		"too many auds":                           func(f *forge) { f.claims["aud"] = append(make([]string, maxAudiences), "db") },
		"no exp":                                  func(f *forge) { delete(f.claims, "exp") },
		"an exp that is now":                      func(f *forge) { f.claims["exp"] = f.now.Unix() },
		"an exp that is past":                     func(f *forge) { f.claims["exp"] = f.now.Add(-time.Second).Unix() },
		"an exp that is text":                     func(f *forge) { f.claims["exp"] = fmt.Sprint(f.now.Add(time.Minute).Unix()) },
		"an exp that is null":                     func(f *forge) { f.claims["exp"] = nil },
		"an exp beyond all years":                 func(f *forge) { f.claims["exp"] = 1e300 },
		"a negative exp":                          func(f *forge) { f.claims["exp"] = -1 },
		"an nbf further ahead than clocks differ": func(f *forge) { f.claims["nbf"] = f.now.Add(Skew + time.Second).Unix() },
		"an iat further ahead than clocks differ": func(f *forge) { f.claims["iat"] = f.now.Add(Skew + time.Second).Unix() },
		"an iat that is text":                     func(f *forge) { f.claims["iat"] = "now" },
		"another iss":                             func(f *forge) { f.claims["iss"] = "https://evil.test" },
		"an iss that is null":                     func(f *forge) { f.claims["iss"] = nil },
		"no sub":                                  func(f *forge) { delete(f.claims, "sub") },
		"a sub of another trust domain":           func(f *forge) { f.claims["sub"] = "spiffe://evil.test/shop/testing/a/web" },
		"the trust domain as sub":                 func(f *forge) { f.claims["sub"] = "spiffe://" + f.issuer.TrustDomain() },
		"a sub that is a list":                    func(f *forge) { f.claims["sub"] = []string{"spiffe://" + f.issuer.TrustDomain() + "/a"} },
		"too large":                               func(f *forge) { f.claims["pad"] = long },
		"a space in front":                        func(f *forge) { f.alter = func(s string) string { return " " + s } },
		"a line's end after":                      func(f *forge) { f.alter = func(s string) string { return s + "\n" } },
		"a line's end inside":                     func(f *forge) { f.alter = func(s string) string { return s[:9] + "\n" + s[9:] } },
		"padding":                                 func(f *forge) { f.alter = func(s string) string { return s + "==" } },
		"base64 that is not base64url":            func(f *forge) { f.alter = func(s string) string { return s[:len(s)-8] + "////++++" } },
		"a fourth part":                           func(f *forge) { f.alter = func(s string) string { return s + ".e30" } },
		"two parts":                               func(f *forge) { f.alter = func(s string) string { return s[:strings.LastIndex(s, ".")] } },
		"no signature":                            func(f *forge) { f.alter = func(s string) string { return s[:strings.LastIndex(s, ".")+1] } },
		"half a signature":                        func(f *forge) { f.alter = func(s string) string { return s[:len(s)-43] } },
		"a signature in DER": func(f *forge) {
			f.alter = func(s string) string {
				input := s[:strings.LastIndex(s, ".")]
				sum := sha256.Sum256([]byte(input))
				der, err := ecdsa.SignASN1(rand.Reader, f.issuer.keyOf(svidKey).private, sum[:])
				if err != nil {
					f.t.Fatal(err)
				}
				return input + "." + base64.RawURLEncoding.EncodeToString(der)
			}
		},
		"an all-zero signature (CVE-2022-21449)": func(f *forge) {
			f.alter = func(s string) string { return s[:strings.LastIndex(s, ".")+1] + b64(strings.Repeat("\x00", 64)) }
		},
		"other claims under the signature": func(f *forge) {
			f.alter = func(s string) string {
				p := strings.Split(s, ".")
				return p[0] + "." + b64(strings.Replace(string(mustDecode(f.t, p[1])), "/web", "/adm", 1)) + "." + p[2]
			}
		},
		"JSON serialisation": func(f *forge) {
			f.alter = func(s string) string {
				p := strings.Split(s, ".")
				return fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, p[0], p[1], p[2])
			}
		},
		"nothing":     func(f *forge) { f.alter = func(string) string { return "" } },
		"only points": func(f *forge) { f.alter = func(string) string { return ".." } },
		"claims that are a list": func(f *forge) {
			f.alter = func(string) string { return f.sign(headerText(f), `["sub"]`) }
		},
		"a claim twice": func(f *forge) {
			f.alter = func(s string) string {
				c := string(mustDecode(f.t, strings.Split(s, ".")[1]))
				return f.sign(headerText(f), `{"aud":"other",`+c[1:])
			}
		},
		"a member of the header twice": func(f *forge) {
			f.alter = func(s string) string {
				return f.sign(`{"alg":"none",`+headerText(f)[1:], string(mustDecode(f.t, strings.Split(s, ".")[1])))
			}
		},
		"a claim in another case beside none": func(f *forge) {
			f.claims["AUD"] = f.claims["aud"]
			delete(f.claims, "aud")
		},
		"something after the claims": func(f *forge) {
			f.alter = func(s string) string {
				return f.sign(headerText(f), string(mustDecode(f.t, strings.Split(s, ".")[1]))+`{}`)
			}
		},
		"claims that are not UTF-8": func(f *forge) {
			f.alter = func(s string) string {
				c := string(mustDecode(f.t, strings.Split(s, ".")[1]))
				return f.sign(headerText(f), "{\"x\":\"\xff\","+c[1:])
			}
		},
		"claims that are nested too deep": func(f *forge) {
			f.alter = func(s string) string {
				c := string(mustDecode(f.t, strings.Split(s, ".")[1]))
				return f.sign(headerText(f), `{"x":`+strings.Repeat("[", 50)+strings.Repeat("]", 50)+`,`+c[1:])
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newForge(t)
			if _, _, err := f.issuer.ValidateJWTSVID(f.token(), "db"); err != nil {
				t.Fatalf("the right one does not count: %v", err)
			}
			spoil(f)
			token := f.token()
			subject, claims, err := f.issuer.ValidateJWTSVID(token, "db")
			if isle.CodeOf(err) != isle.Refused || subject != "" || claims != nil {
				t.Fatalf("it counts for %q: %v", subject, err)
			}
			if token != "" && strings.Contains(err.Error(), "evil") {
				t.Errorf("the refusal repeats what the token says: %v", err)
			}
		})
	}
}

func TestAJWTCountsWithinTheSkewOfClocks(t *testing.T) {
	for name, change := range map[string]func(f *forge){
		"as it is":                      func(*forge) {},
		"without typ":                   func(f *forge) { delete(f.header, "typ") },
		"typ JOSE":                      func(f *forge) { f.header["typ"] = "JOSE" },
		"typ as a media type":           func(f *forge) { f.header["typ"] = "application/jwt" },
		"aud in a list":                 func(f *forge) { f.claims["aud"] = []string{"other", "db"} },
		"iat just ahead":                func(f *forge) { f.claims["iat"] = f.now.Add(Skew).Unix() },
		"nbf just ahead":                func(f *forge) { f.claims["nbf"] = f.now.Add(Skew).Unix() },
		"exp in a fraction of a second": func(f *forge) { f.claims["exp"] = float64(f.now.Unix()) + 0.5 },
		"iss":                           func(f *forge) { f.claims["iss"] = "https://isle.test" },
		"a claim of its own":            func(f *forge) { f.claims["x"] = map[string]any{"y": []int{1}} },
	} {
		t.Run(name, func(t *testing.T) {
			f := newForge(t)
			change(f)
			if _, _, err := f.issuer.ValidateJWTSVID(f.token(), "db"); err != nil {
				t.Error(err)
			}
		})
	}
	f := newForge(t)
	if _, _, err := f.issuer.ValidateJWTSVID(f.token(), ""); err == nil {
		t.Error("it counts for nobody")
	}
}

func mustDecode(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func headerText(f *forge) string {
	b, err := json.Marshal(f.header)
	if err != nil {
		f.t.Fatal(err)
	}
	return string(b)
}

func TestAWeakOrSecretKeyIsNoClientsKey(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edPrivate, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]jose.JSONWebKey{
		"RSA with 1024 bits": {Key: small.Public()},
		"P-224":              {Key: p224.Public()},
		"a private key":      {Key: private},
		"another private":    {Key: edPrivate},
		"a secret":           {Key: []byte("0123456789abcdef0123456789abcdef")},
		"for none":           {Key: private.Public(), Algorithm: "none"},
		"for HS256":          {Key: private.Public(), Algorithm: "HS256"},
		"EC for RS256":       {Key: private.Public(), Algorithm: "RS256"},
		"nothing":            {},
	} {
		if v, err := verifyKeyOf(k); err == nil {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

// FuzzJWT: whatever comes, the verifier ends without a panic, and nothing counts
// but what the key signed.
func FuzzJWT(f *testing.F) {
	g := newForge(f)
	right := g.token()
	for _, s := range []string{right, rfc7515A1, rfc7515A2, rfc7515A3, rfc7515A5, rfc8037A4, "", "..", "a.b.c", "e30.e30.", right + "x", b64(`{"alg":"ES256","kid":null}`) + ".e30.AA"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, token string) {
		subject, _, err := g.issuer.ValidateJWTSVID(token, "db")
		if err == nil && token != right {
			t.Fatalf("%q counts for %s", token, subject)
		}
		claimedSubject(token)
	})
}

// FuzzObject: what is read as an object is what encoding/json reads too, and has
// no name twice.
func FuzzObject(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1,"a":2}`, `{"a":{"b":[1,2,{"c":null}]}}`, `{"a":1}x`, `[1]`, `{"a":1e999}`, `{"\u0061":1,"a":2}`, "{\"a\":\"\xff\"}", `{"a":1,}`, `{"a":[1,]}`, `{"a" 1}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseObject([]byte(text))
		if err != nil {
			return
		}
		var want map[string]any
		if err := json.Unmarshal([]byte(text), &want); err != nil && !strings.Contains(err.Error(), "cannot unmarshal number") {
			t.Fatalf("%q: %v", text, err)
		} else if err == nil && len(got) != len(want) {
			t.Fatalf("%q: %v and %v", text, got, want)
		}
	})
}
