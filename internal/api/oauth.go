package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"isle"
	"isle/internal/identity"
)

// IdentityEndpoints is what NewIdentityEndpoints needs.
type IdentityEndpoints struct {
	Tokens *identity.Tokens // nil: no tokens are given
	Issuer *identity.Issuer
	// URL is the server's as others call it; "" as long as there is none.
	URL func() string
	Log *slog.Logger // nil discards
}

// Where the documents are that others trust this server by.
const (
	oauthMetadataPath  = "/.well-known/oauth-authorization-server" // RFC 8414
	openIDMetadataPath = "/.well-known/openid-configuration"       // OpenID Connect Discovery 1.0
	keysPath           = "/.well-known/jwks.json"                  // RFC 7517
	bundlePath         = "/.well-known/spiffe-bundle"              // SPIFFE Federation, 4
)

const (
	// maxGrant bounds the body of a request for a token in bytes.
	maxGrant = 32 << 10
	// grantTimeout bounds how long a client may take to send it, and the answer.
	grantTimeout = 15 * time.Second
	// again is after how many seconds a client that was sent away may come again.
	again = "30"
)

// NewIdentityEndpoints serves what machines and others outside come to without
// a credential: the token endpoint, and the documents by which SVIDs and access
// tokens are checked. It is for a TLS listener.
func NewIdentityEndpoints(cfg IdentityEndpoints) http.Handler {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	mux.HandleFunc(identity.TokenPath, cfg.token)
	mux.HandleFunc(oauthMetadataPath, cfg.public("application/json", cfg.oauthMetadata))
	mux.HandleFunc(openIDMetadataPath, cfg.public("application/json", cfg.openIDMetadata))
	mux.HandleFunc(keysPath, cfg.public("application/jwk-set+json", cfg.open(cfg.Issuer.TokenKeys)))
	mux.HandleFunc(bundlePath, cfg.public("application/json", cfg.open(func() []byte { return cfg.Issuer.Bundle().Document })))
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		answerOAuth(w, http.StatusNotFound, "not_found", "there is nothing here")
	})
	return mux
}

// public serves a document that everybody may read and keep for a while, as long
// as there is one.
func (cfg IdentityEndpoints) public(contentType string, document func() []byte) http.HandlerFunc {
	keep := "public, max-age=" + strconv.Itoa(int(identity.RefreshHint/time.Second))
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			answerOAuth(w, http.StatusMethodNotAllowed, identity.InvalidRequest, "this is read with GET")
			return
		}
		body := document()
		if body == nil {
			w.Header().Set("Retry-After", again)
			answerOAuth(w, http.StatusServiceUnavailable, identity.TemporarilyUnavailable, "this is not to be had now")
			return
		}
		sum := sha256.Sum256(body)
		h := w.Header()
		h.Set("Content-Type", contentType)
		h.Set("Cache-Control", keep)
		h.Set("ETag", `"`+hex.EncodeToString(sum[:16])+`"`)
		h.Set("X-Content-Type-Options", "nosniff")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	}
}

// open gives a document of an issuer that is open: that a closed one has no keys
// does not mean that those it had count no more.
func (cfg IdentityEndpoints) open(document func() []byte) func() []byte {
	if cfg.Issuer.Err() != nil {
		return func() []byte { return nil }
	}
	return document
}

// clientAlgorithms are those of assertions (RFC 7518, 3.1, and RFC 8037).
var clientAlgorithms = []string{"ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA"}

// oauthMetadata is RFC 8414, 2.
func (cfg IdentityEndpoints) oauthMetadata() []byte {
	at := cfg.URL()
	if at == "" || cfg.Tokens == nil {
		return nil
	}
	return document(struct {
		Issuer     string   `json:"issuer"`
		Token      string   `json:"token_endpoint"`
		Keys       string   `json:"jwks_uri"`
		Responses  []string `json:"response_types_supported"` // none: there is no authorization endpoint
		Grants     []string `json:"grant_types_supported"`
		Methods    []string `json:"token_endpoint_auth_methods_supported"`
		Algorithms []string `json:"token_endpoint_auth_signing_alg_values_supported"`
	}{
		at, at + identity.TokenPath, at + keysPath, []string{}, []string{"client_credentials"},
		[]string{"client_secret_basic", "client_secret_post", "private_key_jwt"}, clientAlgorithms,
	})
}

// openIDMetadata is OpenID Connect Discovery 1.0, 3, as far as those need it
// who check a JWT-SVID by its issuer; there is nobody to log in here.
func (cfg IdentityEndpoints) openIDMetadata() []byte {
	at := cfg.URL()
	if at == "" {
		return nil
	}
	return document(struct {
		Issuer     string   `json:"issuer"`
		Keys       string   `json:"jwks_uri"`
		Responses  []string `json:"response_types_supported"`
		Subjects   []string `json:"subject_types_supported"`
		Algorithms []string `json:"id_token_signing_alg_values_supported"`
		Claims     []string `json:"claims_supported"`
	}{at, at + keysPath, []string{"id_token"}, []string{"public"}, []string{"ES256"}, []string{"iss", "sub", "aud", "exp", "iat", "jti"}})
}

// document encodes text and lists of it, which can always be.
func document(v any) []byte {
	b, _ := json.Marshal(v)
	return b
}

// token is the token endpoint (RFC 6749, 3.2).
func (cfg IdentityEndpoints) token(w http.ResponseWriter, r *http.Request) {
	// RFC 6749, 5.1: of errors too, which may say what a credential is not.
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Pragma", "no-cache")
	switch mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); {
	case cfg.Tokens == nil:
		answerOAuth(w, http.StatusNotFound, "not_found", "no tokens are given here")
		return
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", "POST")
		answerOAuth(w, http.StatusMethodNotAllowed, identity.InvalidRequest, "a token is asked for with POST")
		return
	case err != nil || mediaType != "application/x-www-form-urlencoded":
		answerOAuth(w, http.StatusUnsupportedMediaType, identity.InvalidRequest, "the body is application/x-www-form-urlencoded")
		return
	case r.URL.RawQuery != "":
		// What is in a URL ends up in logs (RFC 6749, 2.3.1).
		answerOAuth(w, http.StatusBadRequest, identity.InvalidRequest, "parameters belong in the body, not in the URL")
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(grantTimeout)) // what has none of its own is a test's
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxGrant))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		answerOAuth(w, http.StatusRequestEntityTooLarge, identity.InvalidRequest, "the body has more than "+strconv.Itoa(maxGrant)+" bytes")
		return
	}
	form, parseErr := url.ParseQuery(string(body))
	if err != nil || parseErr != nil {
		answerOAuth(w, http.StatusBadRequest, identity.InvalidRequest, "the body is no form")
		return
	}
	user, password, basic := r.BasicAuth()
	if r.Header.Get("Authorization") != "" && !basic {
		w.Header().Set("WWW-Authenticate", `Basic realm="isle"`)
		answerOAuth(w, http.StatusUnauthorized, identity.InvalidClient, "the Authorization header is for Basic authentication here")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), grantTimeout)
	defer cancel()
	response, err := cfg.Tokens.Grant(ctx, form, user, password, basic, sourceOf(r))
	if err != nil {
		cfg.refuseGrant(w, err)
		return
	}
	answerJSON(w, http.StatusOK, response)
}

// refuseGrant answers a GrantError with its status (RFC 6749, 5.2).
func (cfg IdentityEndpoints) refuseGrant(w http.ResponseWriter, err error) {
	var refused *identity.GrantError
	if !errors.As(err, &refused) {
		refused = &identity.GrantError{OAuth: identity.ServerError, Description: "the token could not be given"}
	}
	status := http.StatusBadRequest
	switch refused.OAuth {
	case identity.InvalidClient:
		status = http.StatusUnauthorized
		w.Header().Set("WWW-Authenticate", `Basic realm="isle"`)
	case identity.TemporarilyUnavailable:
		status = http.StatusServiceUnavailable
		if isle.CodeOf(err) == isle.Exhausted {
			status = http.StatusTooManyRequests
		}
		w.Header().Set("Retry-After", again)
		cfg.Log.Warn("no token could be given", "error", errors.Unwrap(refused))
	case identity.ServerError:
		status = http.StatusInternalServerError
		cfg.Log.Error("no token could be given", "error", errors.Unwrap(refused))
	}
	answerOAuth(w, status, refused.OAuth, refused.Description)
}

// answerOAuth answers with an error (RFC 6749, 5.2).
func answerOAuth(w http.ResponseWriter, status int, code, description string) {
	answerJSON(w, status, struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}{code, description})
}

func answerJSON(w http.ResponseWriter, status int, v any) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-store")
	}
	w.WriteHeader(status)
	_, _ = w.Write(append(document(v), '\n')) // who does not read it has gone
}

// sourceOf is the address of who asks, without the port.
func sourceOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return "?"
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Unmap().WithZone("").String()
	}
	return "?"
}
