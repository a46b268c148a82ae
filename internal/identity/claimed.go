package identity

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"strings"
)

// WorkloadRule is the rule that refuses what proves a workload to whoever is not
// in its airlock.
const WorkloadRule = "built in: a workload's credential counts only inside its own airlock"

// spiffeScheme begins a SPIFFE ID.
const spiffeScheme = "spiffe://"

// Claimed is the SPIFFE ID that somebody claims to be, by a JWT-SVID as their
// token or an X.509-SVID as their certificate; "" if they claim none. Nothing of
// it is verified: whoever claims it from elsewhere is refused.
func Claimed(token string, certificates []*x509.Certificate) string {
	if len(certificates) > 0 {
		for _, u := range certificates[0].URIs {
			if strings.EqualFold(u.Scheme, "spiffe") {
				return u.String()
			}
		}
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return ""
	}
	var claims struct {
		Subject string `json:"sub"`
	}
	if json.Unmarshal(b, &claims) != nil || len(claims.Subject) < len(spiffeScheme) || !strings.EqualFold(claims.Subject[:len(spiffeScheme)], spiffeScheme) {
		return ""
	}
	return claims.Subject
}
