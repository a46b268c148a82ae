package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"isle"
)

// An X509SVID is an X.509-SVID with its key (X509-SVID standard).
type X509SVID struct {
	ID      SPIFFEID
	Chain   [][]byte // DER, the leaf first, without the root
	Key     []byte   `json:"-"` // PKCS #8, DER
	Expires time.Time
}

// Format implements fmt.Formatter: the key is not printed.
func (s X509SVID) Format(f fmt.State, _ rune) { printSVID(f, "X.509", s.ID, s.Expires) }

// A JWTSVID is a JWT-SVID (JWT-SVID standard).
type JWTSVID struct {
	ID      SPIFFEID
	Token   string `json:"-"`
	Expires time.Time
}

// Format implements fmt.Formatter: the token is not printed.
func (s JWTSVID) Format(f fmt.State, _ rune) { printSVID(f, "JWT", s.ID, s.Expires) }

func printSVID(f fmt.State, kind string, id SPIFFEID, expires time.Time) {
	fmt.Fprintf(f, "[%s-SVID of %s until %s]", kind, id, expires.UTC().Format(time.RFC3339))
}

// changeTimeout bounds a change of the keys that somebody waits for.
const changeTimeout = 5 * time.Second

// X509SVID gives an X.509-SVID with a key of its own, for MaxSVID from Skew ago.
func (i *Issuer) X509SVID(id SPIFFEID) (X509SVID, error) {
	uri, err := i.check(id)
	if err != nil {
		return X509SVID{}, err
	}
	now := i.cfg.Now().UTC().Truncate(time.Second)
	authority, err := i.signer(x509Key, now)
	if err != nil {
		return X509SVID{}, err
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return X509SVID{}, isle.Errorf(isle.Internal, "a key for %s: %w", id, err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return X509SVID{}, isle.Errorf(isle.Internal, "a key for %s: %w", id, err)
	}
	// X509-SVID standard, 2 and 4: exactly one URI, no authority, a digital
	// signature and nothing else. The name is only in the URI: a service's name
	// in the subject would be the same in every environment.
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{organization}}, URIs: []*url.URL{uri},
		NotBefore: now.Add(-Skew), NotAfter: now.Add(MaxSVID - Skew),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, authority.certificate, private.Public(), authority.private)
	if err != nil {
		return X509SVID{}, isle.Errorf(isle.Internal, "a certificate for %s: %w", id, err)
	}
	return X509SVID{ID: id, Chain: [][]byte{der}, Key: key, Expires: template.NotAfter}, nil
}

// JWTSVID gives a JWT-SVID for an audience, of at least one, for MaxSVID.
func (i *Issuer) JWTSVID(id SPIFFEID, audience []string) (JWTSVID, error) {
	uri, err := i.check(id)
	if err != nil {
		return JWTSVID{}, err
	}
	if err := checkAudiences(audience); err != nil {
		return JWTSVID{}, err
	}
	now := i.cfg.Now().UTC().Truncate(time.Second)
	expires := now.Add(MaxSVID)
	claims := map[string]any{
		"sub": uri.String(), "aud": audience, "exp": expires.Unix(), "iat": now.Unix(), "jti": string(isle.NewID()),
	}
	if iss := i.cfg.URL(); iss != "" {
		claims["iss"] = iss // by which OpenID Connect finds the keys; SPIFFE does without
	}
	token, err := i.sign(svidKey, claims, now)
	return JWTSVID{ID: id, Token: token, Expires: expires}, err
}

// checkAudiences says whether a token may be asked for the audiences.
func checkAudiences(audience []string) error {
	if len(audience) == 0 || len(audience) > maxAudiences {
		return isle.Errorf(isle.Invalid, "%d audiences; a token is for 1 to %d", len(audience), maxAudiences)
	}
	for _, a := range audience {
		if a == "" || len(a) > 256 || strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r == 0x7f || r == 0xfffd }) {
			return isle.Errorf(isle.Invalid, "%.300q is no audience", a).
				WithHint("an audience is the name or URL of who checks the token: at most 256 bytes, without spaces")
		}
	}
	return nil
}

// ValidateJWTSVID says whom a JWT-SVID of this trust domain names, if it counts
// now for the audience; Refused if not. The claims are all that it has.
func (i *Issuer) ValidateJWTSVID(token, audience string) (subject string, claims map[string]any, err error) {
	claims, _, err = verifyJWT(token, []string{"jwt", "jose", ""}, i.verifyKeys(svidKey))
	if err != nil {
		return "", nil, err
	}
	if _, err := checkTimes(claims, i.cfg.Now(), 0); err != nil {
		return "", nil, err
	}
	if err := checkAudience(claims, audience); err != nil {
		return "", nil, err
	}
	if iss, there := claims["iss"]; there && (iss != i.cfg.URL() || iss == "") {
		return "", nil, refuseJWT("it is of another issuer (iss)")
	}
	subject, _ = claims["sub"].(string)
	if !strings.HasPrefix(subject, "spiffe://"+i.TrustDomain()+"/") {
		return "", nil, refuseJWT("it names nobody of this trust domain (sub)")
	}
	return subject, claims, nil
}

// verifyKeys gives the keys of a kind that count, by their kid. Which one signs
// now does not matter: all that are in the bundle count, by the clock or not,
// since the token says when it ends.
func (i *Issuer) verifyKeys(kind string) func(kid string) []verifyKey {
	s := i.state.Load()
	return func(kid string) []verifyKey {
		for _, k := range s.keys {
			if k.Kind == kind && k.ID == kid {
				return []verifyKey{{public: &k.private.PublicKey, alg: jose.ES256}}
			}
		}
		return nil
	}
}

// sign signs claims as a JWT by the key of a kind.
func (i *Issuer) sign(kind string, claims map[string]any, now time.Time) (string, error) {
	key, err := i.signer(kind, now)
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(claims)
	if err != nil {
		return "", isle.Errorf(isle.Internal, "a token's claims: %w", err)
	}
	signed, err := key.jwt.Sign(body)
	if err != nil {
		return "", isle.Errorf(isle.Internal, "a token's signature: %w", err)
	}
	token, err := signed.CompactSerialize()
	if err == nil && len(token) > MaxJWT {
		return "", isle.Errorf(isle.Invalid, "a token of %d bytes; at most %d", len(token), MaxJWT).WithHint("ask for fewer or shorter audiences")
	}
	return token, err
}

// signer is the key that signs now. Where the clock has left every key behind
// it makes one.
func (i *Issuer) signer(kind string, now time.Time) (*issuerKey, error) {
	if k := signer(i.state.Load().keys, kind, now); k != nil {
		return k, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), changeTimeout)
	defer cancel()
	if err := i.Rotate(ctx); err != nil {
		return nil, err
	}
	if k := signer(i.state.Load().keys, kind, now); k != nil {
		return k, nil
	}
	return nil, isle.Errorf(isle.Unavailable, "there is no key to sign identities with at %s: the clock jumps", now.Format(time.RFC3339)).WithHint("set the machine's clock, and try again")
}

// check says whether an identity may be given here, and its URI.
func (i *Issuer) check(id SPIFFEID) (*url.URL, error) {
	if i.err != nil {
		return nil, i.err
	}
	if id.TrustDomain != i.TrustDomain() || !isle.ValidName(id.Project) || !isle.ValidName(id.Stage) || !isle.ValidName(id.Name) || !isle.ValidName(id.Service) {
		return nil, isle.Errorf(isle.Invalid, "%.300q names no workload of the trust domain %s", id.String(), i.TrustDomain())
	}
	return &url.URL{Scheme: "spiffe", Host: id.TrustDomain, Path: "/" + strings.Join([]string{id.Project, id.Stage, id.Name, id.Service}, "/")}, nil
}
