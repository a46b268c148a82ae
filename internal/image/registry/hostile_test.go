package registry

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"isle"
	"isle/internal/image/oci"
)

// Where a registry's answers lead to is another server, which has no claim to
// what the registry is told (compare CVE-2020-15157).
func TestWhoARegistryLeadsToAsksForNoCredential(t *testing.T) {
	var leaked atomic.Bool
	var elsewhere *httptest.Server
	elsewhere = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if r.Header.Get("Authorization") != "" || strings.Contains(string(b), "s3cret") {
			leaked.Store(true)
		}
		if r.URL.Path == "/token" {
			io.WriteString(w, `{"token":"t"}`)
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+elsewhere.URL+`/token",service="s"`)
		http.Error(w, "who?", http.StatusUnauthorized)
	}))
	t.Cleanup(elsewhere.Close)
	for _, cred := range []Credential{{Username: "anna", Password: "s3cret"}, {IdentityToken: "s3cret"}} {
		s, c := newShelf(t), newClient(t)
		layer, _ := s.stock("shop", "1", "hello", oci.Here().Architecture)
		s.front = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, string(isle.DigestOf(layer))) {
				http.Redirect(w, r, elsewhere.URL+"/blob", http.StatusTemporaryRedirect)
				return
			}
			next.ServeHTTP(w, r)
		}
		if _, err := pull(t, c, s.ref("shop:1"), cred); err == nil {
			t.Error("what is elsewhere behind a login was pulled")
		}
	}
	if leaked.Load() {
		t.Error("another server asked for the registry's credential and got it")
	}
}

// A token's server is asked with what proves the caller; where it sends them on to
// is nobody that the registry named.
func TestARefreshTokenIsNotSentOnElsewhere(t *testing.T) {
	var leaked atomic.Bool
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		leaked.Store(leaked.Load() || strings.Contains(string(b), "s3cret"))
		io.WriteString(w, `{"token":"t"}`)
	}))
	t.Cleanup(elsewhere.Close)
	s, c := newShelf(t), newClient(t)
	s.stock("shop", "1", "hello", oci.Here().Architecture)
	s.front = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case r.URL.Path == "/token":
			http.Redirect(w, r, elsewhere.URL+"/token", http.StatusTemporaryRedirect)
		case r.Header.Get("Authorization") == "":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.server.URL+`/token",service="s"`)
			http.Error(w, "who?", http.StatusUnauthorized)
		default:
			next.ServeHTTP(w, r)
		}
	}
	_, err := pull(t, c, s.ref("shop:1"), Credential{IdentityToken: "s3cret"})
	if err == nil || leaked.Load() {
		t.Errorf("the token went elsewhere: %v, and the pull ended with %v", leaked.Load(), err)
	}
}
