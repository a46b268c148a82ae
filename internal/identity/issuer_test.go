package identity_test

import (
	"crypto/x509"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"isle"
	"isle/internal/identity"
	"isle/internal/identity/identitytest"
	"isle/internal/ledger/ledgertest"
)

// A setClock is a clock that a test sets.
type setClock struct {
	mu  sync.Mutex
	now time.Time
}

func newSetClock() *setClock { return &setClock{now: time.Now()} }

func (c *setClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *setClock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func openIssuer(t *testing.T, cfg identity.IssuerConfig) *identity.Issuer {
	t.Helper()
	if cfg.Store == nil {
		cfg.Store = ledgertest.New()
	}
	if cfg.Sealer == nil {
		cfg.Sealer = identitytest.NewSealer()
	}
	i, err := identity.OpenIssuer(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func web(i *identity.Issuer) identity.SPIFFEID {
	return i.ID(isle.Ref{Name: "pr-7", Stage: "testing"}, "shop", "web")
}

// bundles reads the issuer's bundle as others do.
func bundles(t *testing.T, i *identity.Issuer) *spiffebundle.Bundle {
	t.Helper()
	b := i.Bundle()
	td, err := spiffeid.TrustDomainFromString(b.TrustDomain)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := spiffebundle.Parse(td, b.Document)
	if err != nil {
		t.Fatal(err)
	}
	fromJWKS, err := jwtbundle.Parse(td, b.JWKS)
	if err != nil || !fromJWKS.Equal(parsed.JWTBundle()) {
		t.Fatalf("the JWK set is not that of the bundle: %v", err)
	}
	var roots []*x509.Certificate
	for _, der := range b.X509 {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, c)
	}
	if !x509bundle.FromX509Authorities(td, roots).Equal(parsed.X509Bundle()) {
		t.Fatal("the roots are not those of the bundle")
	}
	return parsed
}

func TestAnX509SVIDIsWhatTheStandardSays(t *testing.T) {
	c := newSetClock()
	i := openIssuer(t, identity.IssuerConfig{Now: c.Now, TrustDomain: "isle.test"})
	s, err := i.X509SVID(web(i))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509svid.ParseRaw(slices.Concat(s.Chain...), s.Key)
	if err != nil {
		t.Fatal(err)
	}
	if got := parsed.ID.String(); got != "spiffe://isle.test/shop/testing/pr-7/web" || got != s.ID.String() {
		t.Errorf("it names %s", got)
	}
	id, _, err := x509svid.ParseAndVerify(s.Chain, bundles(t, i), x509svid.WithTime(c.Now()))
	if err != nil || id != parsed.ID {
		t.Fatalf("go-spiffe does not verify it: %v", err)
	}
	leaf := parsed.Certificates[0]
	if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature || len(leaf.URIs) != 1 || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 || leaf.Subject.CommonName != "" {
		t.Errorf("the leaf is more than an identity: %+v", leaf)
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life > identity.MaxSVID || !leaf.NotAfter.Equal(s.Expires) || !leaf.NotBefore.Before(c.Now().Add(-10*time.Second)) {
		t.Errorf("it lives from %s to %s at %s", leaf.NotBefore, leaf.NotAfter, c.Now())
	}
	for _, root := range bundles(t, i).X509Authorities() {
		if !root.IsCA || root.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || len(root.URIs) != 1 || root.URIs[0].String() != "spiffe://isle.test" || !root.MaxPathLenZero {
			t.Errorf("the root is not what the standard says: %+v", root)
		}
		if root.Subject.String() == leaf.Subject.String() {
			t.Error("the leaf has its issuer's name")
		}
	}
	again, err := i.X509SVID(web(i))
	if err != nil || string(again.Key) == string(s.Key) {
		t.Errorf("a second one has the same key, or none: %v", err)
	}
}

func TestAJWTSVIDIsWhatTheStandardSays(t *testing.T) {
	i := openIssuer(t, identity.IssuerConfig{URL: func() string { return "https://isle.test:7443" }})
	s, err := i.JWTSVID(web(i), []string{"db", "https://other.test"})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := jwtsvid.ParseAndValidate(s.Token, bundles(t, i), []string{"db"})
	if err != nil {
		t.Fatal(err)
	}
	if parsed.ID.String() != web(i).String() || !parsed.Expiry.Equal(s.Expires) || parsed.Claims["jti"] == "" || parsed.Claims["iat"] == nil || parsed.Claims["iss"] != "https://isle.test:7443" {
		t.Errorf("it says %+v", parsed.Claims)
	}
	if left := time.Until(s.Expires); left > identity.MaxSVID {
		t.Errorf("it lives for %s", left)
	}
	subject, claims, err := i.ValidateJWTSVID(s.Token, "https://other.test")
	if err != nil || subject != web(i).String() || claims["sub"] != subject {
		t.Errorf("the issuer itself says %q, %v", subject, err)
	}
	if _, err := jwtsvid.ParseAndValidate(s.Token, bundles(t, openIssuer(t, identity.IssuerConfig{TrustDomain: i.TrustDomain()})), []string{"db"}); err == nil {
		t.Error("it counts by another issuer's keys")
	}
}

func TestNoIdentityIsGivenThatIsNotOne(t *testing.T) {
	i := openIssuer(t, identity.IssuerConfig{})
	for _, id := range []identity.SPIFFEID{
		{},
		{TrustDomain: "other.test", Project: "shop", Stage: "testing", Name: "a", Service: "web"},
		i.ID(isle.Ref{Name: "a", Stage: "testing"}, "", "web"),
		i.ID(isle.Ref{Name: "a/b", Stage: "testing"}, "shop", "web"),
		i.ID(isle.Ref{Name: "a", Stage: "testing"}, "..", "web"),
		i.ID(isle.Ref{Name: "a", Stage: "testing"}, "shop", "web?x"),
	} {
		if _, err := i.X509SVID(id); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s got an X.509-SVID: %v", id, err)
		}
		if _, err := i.JWTSVID(id, []string{"db"}); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s got a JWT-SVID: %v", id, err)
		}
	}
	for _, audience := range [][]string{nil, {""}, {"a b"}, {strings.Repeat("a", 257)}, make([]string, 17)} {
		if _, err := i.JWTSVID(web(i), audience); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("a JWT-SVID for %q: %v", audience, err)
		}
	}
}
