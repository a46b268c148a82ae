package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/audit"
	"isle/internal/identity"
	"isle/internal/identity/identitytest"
	"isle/internal/store/sqlite"
)

// oneClient is the machine "ci" with one key, which everybody has, and signs
// with.
type oneClient struct {
	key     isle.ID
	private *ecdsa.PrivateKey
	jwk     string // the public key
}

func newClient() (oneClient, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return oneClient{}, err
	}
	jwk, err := json.Marshal(jose.JSONWebKey{Key: private.Public(), KeyID: "k1", Algorithm: string(jose.ES256), Use: "sig"})
	return oneClient{isle.NewID(), private, string(jwk)}, err
}

// assert is the form with which the client asks for a token by an assertion of
// its own; each is good once.
func (c oneClient) assert(at string) (url.Values, error) {
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: c.private, KeyID: "k1"}}, nil)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	claims, err := json.Marshal(map[string]any{"iss": "ci", "sub": "ci", "aud": at + identity.TokenPath, "iat": now.Unix(), "exp": now.Add(4 * time.Minute).Unix(), "jti": string(isle.NewID())})
	if err != nil {
		return nil, err
	}
	signed, err := s.Sign(claims)
	if err != nil {
		return nil, err
	}
	text, err := signed.CompactSerialize()
	return url.Values{"grant_type": {"client_credentials"}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {text}}, err
}

func (c oneClient) Machine(string) (identity.Machine, bool) {
	return identity.Machine{Name: "ci"}, true
}
func (c oneClient) PublicKeys(string) []identity.Key {
	return []identity.Key{{ID: c.key, Kind: identity.PublicKey, Holder: isle.Actor{Kind: isle.Machine, Name: "ci"}, JWK: c.jwk}}
}

func (c oneClient) Used(context.Context, isle.ID, string) error { return nil }

func (c oneClient) Subject(isle.ID) (identity.Subject, error) {
	return identity.Subject{Actor: isle.Actor{Kind: isle.Machine, Name: "ci"}, Stage: "testing", Key: c.key, Expires: time.Now().Add(time.Hour)}, nil
}

func (c oneClient) Authenticate(context.Context, string, string) (identity.Subject, error) {
	return c.Subject(c.key)
}

// A floor is something of ours beside the least that must be done for it.
type floor struct {
	what, beside string
	times        int // in one round
	ours, plain  func() error
}

// issuing measures SVIDs and access tokens beside the cryptography alone,
// and the durable entry of a token beside one fdatasync.
func issuing(runs int) error {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "isle-bench-issuer-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	store, closeStore, err := openLog(dir)
	if err != nil {
		return err
	}
	defer closeStore()
	at := func() string { return "https://isle.example:7443" }
	issuer, err := identity.OpenIssuer(ctx, identity.IssuerConfig{Store: store, Sealer: identitytest.NewSealer(), URL: at})
	if err != nil {
		return err
	}
	client, err := newClient()
	if err != nil {
		return err
	}
	tokens, err := identity.OpenTokens(ctx, identity.TokensConfig{Issuer: issuer, Clients: client, Store: store, Log: store, URL: at})
	if err != nil {
		return err
	}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {"ci"}, "client_secret": {"isle_x"}}
	first, err := tokens.Grant(ctx, form, "", "", false, "192.0.2.7")
	if err != nil {
		return err
	}
	plain, err := os.Create(filepath.Join(dir, "plain"))
	if err != nil {
		return err
	}
	defer plain.Close()
	rows, err := floors(ctx, issuer, tokens, form, first.AccessToken, plain)
	if err != nil {
		return err
	}
	asserted, err := byAssertion(ctx, tokens, client, at(), rows[len(rows)-1], runs)
	if err != nil {
		return err
	}
	rows = append(rows, asserted)
	fmt.Printf("\n### SVIDs and access tokens\n\n%d interleaved runs each.\n\n| | time | the least | which is | ratio |\n|---|---|---|---|---|\n", runs)
	for _, row := range rows {
		var ours, plain []time.Duration
		for range runs {
			for _, half := range []struct {
				do  func() error
				out *[]time.Duration
			}{{row.ours, &ours}, {row.plain, &plain}} {
				begin := time.Now()
				for range row.times {
					if err := half.do(); err != nil {
						return fmt.Errorf("%s: %w", row.what, err)
					}
				}
				*half.out = append(*half.out, time.Since(begin)/time.Duration(row.times))
			}
		}
		a, b := middle(ours), middle(plain)
		fmt.Printf("| %s | %.0f µs | %.0f µs | %s | %.2f× |\n", row.what, micro(a), micro(b), row.beside, float64(a)/float64(b))
	}
	return nil
}

// byAssertion is how a token is given to who signs an assertion, beside the
// same with a check of that signature more. The assertions are made before.
func byAssertion(ctx context.Context, tokens *identity.Tokens, client oneClient, at string, bySecret floor, runs int) (floor, error) {
	times := max(1, min(20, 900/runs)) // of one machine 1,000 are kept
	forms := make([]url.Values, 0, runs*times)
	for range runs * times {
		f, err := client.assert(at)
		if err != nil {
			return floor{}, err
		}
		forms = append(forms, f)
	}
	sum := sha256.Sum256([]byte(at))
	signature, err := ecdsa.SignASN1(rand.Reader, client.private, sum[:])
	if err != nil {
		return floor{}, err
	}
	return floor{"token issue, by an assertion (private_key_jwt)", "an ES256 signature, the check of one, and one fdatasync", times, func() error {
		f := forms[0]
		forms = forms[1:]
		_, err := tokens.Grant(ctx, f, "", "", false, "192.0.2.7")
		return err
	}, func() error {
		if !ecdsa.VerifyASN1(&client.private.PublicKey, sum[:], signature) {
			return fmt.Errorf("a right signature does not count")
		}
		return bySecret.plain()
	}}, nil
}

// openLog opens an audit log with all that a server's has.
func openLog(dir string) (*sqlite.Store, func(), error) {
	signer, err := audit.OpenSigner(filepath.Join(dir, "key"), true)
	if err != nil {
		return nil, nil, err
	}
	keep, _, err := audit.OpenKeep(filepath.Join(dir, "kept"))
	if err != nil {
		return nil, nil, err
	}
	keep.Arm(signer)
	store, err := sqlite.Open(filepath.Join(dir, "isle.db"), sqlite.Config{Commits: keep.Prepare})
	if err != nil {
		keep.Close()
		return nil, nil, err
	}
	return store, func() { store.Close(); keep.Close() }, nil
}

func floors(ctx context.Context, issuer *identity.Issuer, tokens *identity.Tokens, form url.Values, token string, file *os.File) ([]floor, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(token))
	signature, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		return nil, err
	}
	line := make([]byte, 700) // as long as the entry of a token
	sign := func() error {
		_, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
		return err
	}
	id := issuer.ID(isle.Ref{Name: "pr-7", Stage: "testing"}, "shop", "web")
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"x"}}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Minute)}
	return []floor{
		{"X.509-SVID", "a P-256 key and a certificate for it", 200, func() error {
			_, err := issuer.X509SVID(id)
			return err
		}, func() error {
			leaf, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				return err
			}
			_, err = x509.CreateCertificate(rand.Reader, template, template, leaf.Public(), key)
			return err
		}},
		{"JWT-SVID", "an ES256 signature", 500, func() error {
			_, err := issuer.JWTSVID(id, []string{"db"})
			return err
		}, sign},
		{"token check", "checking an ES256 signature", 500, func() error {
			_, err := tokens.Verify(ctx, token, "")
			return err
		}, func() error {
			if !ecdsa.VerifyASN1(&key.PublicKey, sum[:], signature) {
				return fmt.Errorf("a right signature does not count")
			}
			return nil
		}},
		{"token issue, by API key", "an ES256 signature and one fdatasync", 20, func() error {
			_, err := tokens.Grant(ctx, form, "", "", false, "192.0.2.7")
			return err
		}, func() error {
			if _, err := file.Write(line); err != nil {
				return err
			}
			if err := unix.Fdatasync(int(file.Fd())); err != nil {
				return err
			}
			return sign()
		}},
	}, nil
}
