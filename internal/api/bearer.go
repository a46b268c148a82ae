package api

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"

	"isle"
)

// MaxCredential bounds a bearer token in bytes.
const MaxCredential = 8 << 10

// bearer reads the credential of a request (RFC 6750, section 2.1). It is "" if
// the request has none; an error, Invalid, says nothing of what was sent.
func bearer(h http.Header) (string, error) {
	values := h["Authorization"]
	switch {
	case len(values) == 0:
		return "", nil
	case len(values) > 1:
		return "", isle.Errorf(isle.Invalid, "the request has %d Authorization headers", len(values))
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", isle.Errorf(isle.Invalid, "the Authorization header is not a Bearer token")
	}
	token = strings.TrimLeft(token, " ")
	if len(token) > MaxCredential {
		return "", isle.Errorf(isle.Invalid, "the token has %d bytes, at most %d", len(token), MaxCredential)
	}
	if !token68(token) {
		return "", isle.Errorf(isle.Invalid, "the token has characters that no token has, or is empty")
	}
	return token, nil
}

// token68 reports whether s is one: RFC 9110, section 11.2.
func token68(s string) bool {
	body := strings.TrimRight(s, "=")
	for _, c := range []byte(body) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-._~+/", c) >= 0:
		default:
			return false
		}
	}
	return body != ""
}

// spiffeScheme begins a SPIFFE ID.
const spiffeScheme = "spiffe://"

// workloadOf is the SPIFFE ID that a request claims to be, by a JWT-SVID as its
// token or an X.509-SVID as its certificate; "" if it claims none. Nothing of it
// is verified: whoever claims it is refused.
func workloadOf(r *http.Request, token string) string {
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		for _, u := range r.TLS.PeerCertificates[0].URIs {
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
