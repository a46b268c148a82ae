package api

import (
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
