package identity

import (
	"crypto/x509"
	"encoding/json"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// A Bundle is what others need to check the SVIDs of a trust domain. It never
// changes; what it holds is shared.
type Bundle struct {
	TrustDomain string
	X509        [][]byte // DER of each root
	JWKS        []byte   // the keys of JWT-SVIDs (RFC 7517)
	Sequence    uint64   // grows with each change
	RefreshHint time.Duration
	Document    []byte // all of it in one: SPIFFE Trust Domain and Bundle, 4
}

// bundleOf makes the bundle of keys, and the JWK set of all that sign JWTs.
func bundleOf(domain domainRecord, keys []*issuerKey) (b Bundle, tokens []byte) {
	b = Bundle{TrustDomain: domain.TrustDomain, Sequence: domain.Sequence, RefreshHint: RefreshHint}
	roots, svids, all := []jose.JSONWebKey{}, []jose.JSONWebKey{}, []jose.JSONWebKey{}
	for _, k := range keys {
		public := k.private.Public()
		switch k.Kind {
		case x509Key:
			b.X509 = append(b.X509, k.certificate.Raw)
			roots = append(roots, jose.JSONWebKey{Key: public, Use: "x509-svid", Certificates: []*x509.Certificate{k.certificate}})
			continue
		case svidKey:
			svids = append(svids, jose.JSONWebKey{Key: public, Use: "jwt-svid", KeyID: k.ID})
		}
		all = append(all, jose.JSONWebKey{Key: public, Use: "sig", KeyID: k.ID, Algorithm: string(jose.ES256)})
	}
	type set struct {
		Keys []jose.JSONWebKey `json:"keys"`
	}
	b.JWKS = encode(set{svids})
	b.Document = encode(struct {
		Keys     []jose.JSONWebKey `json:"keys"`
		Sequence uint64            `json:"spiffe_sequence"`
		Hint     int64             `json:"spiffe_refresh_hint"` // seconds
	}{append(roots, svids...), b.Sequence, int64(b.RefreshHint / time.Second)})
	return b, encode(set{all})
}

// encode encodes what has no part that cannot be: public keys that were parsed
// or made here, text and numbers.
func encode(v any) []byte {
	out, err := json.Marshal(v)
	if err != nil {
		panic("identity: a public key cannot be encoded: " + err.Error())
	}
	return out
}
