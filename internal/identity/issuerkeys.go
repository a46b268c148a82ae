package identity

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"isle"
	"isle/internal/ledger"
)

// The kinds of key that an Issuer signs with. No key signs two kinds of thing,
// so that none can be taken for another.
const (
	x509Key   = "x509"   // X.509-SVIDs
	svidKey   = "svid"   // JWT-SVIDs
	accessKey = "access" // access tokens
)

// keyKinds says how long keys of each kind sign, and how long before that they
// are in the bundle: who trusts this server reads the bundle about each
// RefreshHint, and so meets a key there before something that it signed.
var keyKinds = []struct {
	name         string
	signs, ahead time.Duration
}{
	{x509Key, 7 * 24 * time.Hour, 24 * time.Hour},
	{svidKey, 24 * time.Hour, 6 * time.Hour},
	{accessKey, 24 * time.Hour, 6 * time.Hour},
}

const (
	// RefreshHint is how often others should read the bundle again.
	RefreshHint = 5 * time.Minute
	// lasts is how long what a key signed last may still be shown to somebody:
	// until then the key stays in the bundle.
	lasts = max(MaxSVID, AccessToken) + 2*Skew
	// maxKeys bounds the keys of one kind that are in the bundle. More than
	// three come only of a clock that jumps.
	maxKeys = 6
)

// A term is when a key is to sign.
type term struct {
	kind        string
	place       string // "now" or "next", for the log
	made        time.Time
	from, until time.Time
}

// An issuerRecord is what the ledger keeps of a key.
type issuerRecord struct {
	ID     string    `json:"id"` // the RFC 7638 thumbprint (SHA-256, base64url) of its public key
	Kind   string    `json:"kind"`
	Made   time.Time `json:"made"`
	From   time.Time `json:"from"`   // signs from then on
	Until  time.Time `json:"until"`  // to then
	Public []byte    `json:"public"` // of X.509 keys the certificate, else SubjectPublicKeyInfo (DER, RFC 5280)
	Sealed []byte    `json:"sealed"` // the private key, PKCS #8 (DER, RFC 5208)
}

// An issuerKey is a key that is open.
type issuerKey struct {
	issuerRecord
	private     *ecdsa.PrivateKey
	certificate *x509.Certificate // of X.509 keys
	jwt         jose.Signer       // of the others
}

// jwtTypes is the typ of what a kind of key signs: JWT-SVID standard, 2.3, and
// RFC 9068, 2.1.
var jwtTypes = map[string]jose.ContentType{svidKey: "JWT", accessKey: "at+jwt"}

// ready makes the signer of a key that signs JWTs.
func (k *issuerKey) ready() (err error) {
	if typ, ok := jwtTypes[k.Kind]; ok {
		k.jwt, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: k.private, KeyID: k.ID}}, (&jose.SignerOptions{}).WithType(typ))
	}
	return err
}

func (k issuerRecord) recordKey() string { return k.Kind + "/" + k.ID }

// purpose is what the private key is sealed for.
func (k issuerRecord) purpose() string { return issuerLedger + "/" + k.recordKey() }

// gone is when nothing that the key signed counts any more.
func (k issuerRecord) gone() time.Time { return k.Until.Add(lasts) }

// signer is the key of a kind that signs at a time: of those whose time it is
// the one that begins last. nil if there is none.
func signer(keys []*issuerKey, kind string, now time.Time) (found *issuerKey) {
	for _, k := range keys {
		if k.Kind == kind && !now.Before(k.From) && now.Before(k.Until) && (found == nil || k.From.After(found.From)) {
			found = k
		}
	}
	return found
}

// schedule says which keys must be made now, and which are past. It looks at
// nothing but the time and the keys, so that a clock that jumped, in either
// direction, only means other keys: there is always one of each kind whose time
// it is, and one for when that ends, as soon as that is near.
func schedule(keys []*issuerKey, now time.Time) (due []term, past []*issuerKey) {
	now = now.UTC().Truncate(time.Second) // as certificates have it
	for _, kind := range keyKinds {
		var mine []*issuerKey
		current := signer(keys, kind.name, now)
		for _, k := range keys {
			switch {
			case k.Kind != kind.name:
			case !now.Before(k.gone()), current != nil && k.ofAnotherTime(current, now, kind.signs+kind.ahead):
				past = append(past, k)
			default:
				mine = append(mine, k)
			}
		}
		until := now.Add(kind.signs)
		if current != nil {
			until = current.Until
		} else {
			due = append(due, term{kind.name, "now", now, now, until})
		}
		if until.Sub(now) <= kind.ahead && signer(mine, kind.name, until) == nil {
			due = append(due, term{kind.name, "next", now, until, until.Add(kind.signs)})
		}
		past = append(past, leftovers(mine, current, signer(mine, kind.name, until))...)
	}
	return due, past
}

// settled is how long the clock must have gone on before what is of another time
// is given up: one that was wrong for a moment finds its keys again.
const settled = 24 * time.Hour

// ofAnotherTime says whether the clock was wrong when a key was made: it begins
// further ahead than any key is made, and the one that signs now is no newcomer.
func (k issuerRecord) ofAnotherTime(current *issuerKey, now time.Time, furthest time.Duration) bool {
	return k.From.Sub(now) > furthest && now.Sub(current.Made) > settled
}

// leftovers are the keys, of one kind, that a clock that jumped has left behind
// beyond a number: the first made go first, never the one that signs nor the next.
func leftovers(keys []*issuerKey, now, next *issuerKey) (out []*issuerKey) {
	keys = slices.SortedStableFunc(slices.Values(keys), func(a, b *issuerKey) int { return a.Made.Compare(b.Made) })
	for _, k := range keys {
		if len(keys)-len(out) > maxKeys && k != now && k != next {
			out = append(out, k)
		}
	}
	return out
}

// makeKey makes a P-256 key for a term.
func makeKey(t term, trustDomain string) (*issuerKey, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "a new key of the issuer: %w", err)
	}
	k := &issuerKey{private: private}
	k.Kind, k.Made, k.From, k.Until = t.kind, t.made, t.from, t.until
	if k.ID, err = thumbprint(private.Public()); err != nil {
		return nil, err
	}
	if t.kind != x509Key {
		if k.Public, err = x509.MarshalPKIXPublicKey(private.Public()); err != nil {
			return nil, isle.Errorf(isle.Internal, "a new key of the issuer: %w", err)
		}
		return k, k.ready()
	}
	// X509-SVID standard, 3 and 4: a signing certificate has the trust domain's
	// ID, without a path, and may sign certificates and lists of revoked ones.
	// It counts from when it is in the bundle, with leaves that begin before
	// they are made, to when its last leaf has ended.
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{organization}, CommonName: clipName(trustDomain), SerialNumber: k.ID},
		NotBefore: t.made.Add(-2 * Skew), NotAfter: k.gone(),
		URIs: []*url.URL{{Scheme: "spiffe", Host: trustDomain}}, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	if k.Public, err = x509.CreateCertificate(rand.Reader, template, template, private.Public(), private); err != nil {
		return nil, isle.Errorf(isle.Internal, "a new certificate of the issuer: %w", err)
	}
	k.certificate, err = x509.ParseCertificate(k.Public)
	return k, err
}

// organization is the O of every certificate that is made here.
const organization = "Isle"

// clipName cuts a name to what a common name may have (RFC 5280, appendix A).
func clipName(s string) string { return s[:min(len(s), 64)] }

// serial returns 128 random bits, never zero (RFC 5280, 4.1.2.2).
func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] &= 0x7f
	b[15] |= 1
	return new(big.Int).SetBytes(b[:])
}

// thumbprint is the RFC 7638 thumbprint of a public key: SHA-256, base64url.
func thumbprint(public crypto.PublicKey) (string, error) {
	sum, err := (&jose.JSONWebKey{Key: public}).Thumbprint(crypto.SHA256)
	if err != nil {
		return "", isle.Errorf(isle.Internal, "a key's thumbprint: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

// seal returns the record of a key.
func (k *issuerKey) seal(s Sealer) (ledger.Record, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return ledger.Record{}, err
	}
	defer clear(der)
	if k.Sealed, err = s.Seal(k.purpose(), der); err != nil {
		return ledger.Record{}, err
	}
	body, err := json.Marshal(k.issuerRecord)
	return ledger.Record{Key: k.recordKey(), Body: body}, err
}

// openKeys opens the keys of a ledger.
func openKeys(s Sealer, records []ledger.Record, trustDomain string) (keys []*issuerKey, err error) {
	for _, r := range records {
		if r.Key == domainKey {
			continue
		}
		k := &issuerKey{}
		if err := json.Unmarshal(r.Body, &k.issuerRecord); err != nil || k.recordKey() != r.Key {
			return nil, isle.Errorf(isle.Unavailable, "the issuer's record %s cannot be read; another version of the program may have written it", r.Key)
		}
		if err := k.open(s, trustDomain); err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func keyIDs(records []ledger.Record) (out []string) {
	for _, r := range records {
		if r.Key != domainKey {
			out = append(out, r.Key)
		}
	}
	return out
}

// open opens the private key, and sees that it is that of the public part.
func (k *issuerKey) open(s Sealer, trustDomain string) error {
	der, err := s.Open(k.purpose(), k.Sealed)
	if err != nil {
		return err
	}
	defer clear(der)
	damaged := func() error {
		return isle.Errorf(isle.Unavailable, "the issuer's key %s is damaged: its parts do not belong together", k.recordKey())
	}
	private, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return damaged()
	}
	var ok bool
	if k.private, ok = private.(*ecdsa.PrivateKey); !ok {
		return damaged()
	}
	var public any
	if k.Kind == x509Key {
		if k.certificate, err = x509.ParseCertificate(k.Public); err != nil || len(k.certificate.URIs) != 1 || k.certificate.URIs[0].String() != "spiffe://"+trustDomain {
			return damaged()
		}
		public = k.certificate.PublicKey
	} else if public, err = x509.ParsePKIXPublicKey(k.Public); err != nil {
		return damaged()
	}
	id, err := thumbprint(k.private.Public())
	if err != nil || id != k.ID || !k.private.PublicKey.Equal(public) {
		return damaged()
	}
	return k.ready()
}

// newState is the state of keys.
func newState(domain domainRecord, keys []*issuerKey) *issuerState {
	s := &issuerState{domain: domain, keys: slices.Clone(keys), over: make(chan struct{})}
	slices.SortStableFunc(s.keys, func(a, b *issuerKey) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), a.From.Compare(b.From), strings.Compare(a.ID, b.ID))
	})
	s.bundle, s.tokens = bundleOf(domain, s.keys)
	return s
}
