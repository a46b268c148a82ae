package httpdoor

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"isle/internal/policy"
)

func TestAnAccessTokenIsFetchedOnceAndAgainWhenItNoLongerCounts(t *testing.T) {
	var fetched, valid atomic.Int32
	valid.Store(1)
	hold := make(chan struct{})
	server := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			<-hold
			id, secret, _ := r.BasicAuth()
			r.ParseForm()
			if id != "isle%3Ashop" || secret != "s%26cret" || r.Form.Get("grant_type") != "client_credentials" || r.Form.Get("scope") != "read write" {
				http.Error(w, `{"error":"invalid_client"}`, http.StatusUnauthorized)
				return
			}
			fmt.Fprintf(w, `{"access_token":"t%d","token_type":"bearer","expires_in":3600}`, fetched.Add(1))
			return
		}
		if r.Header.Get("Authorization") != fmt.Sprintf("Bearer t%d", valid.Load()) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		io.WriteString(w, "in")
	})
	d := &testDoor{server: server, secret: "s&cret", conn: policy.Connection{Credential: policy.Credential{Kind: "oauth", Secret: "s", ClientID: "isle:shop",
		Scopes: []string{"read", "write"}, TokenURL: server.URL + "/token"}}}
	p := New(Config{})
	at := inside(t, p, d)
	var all sync.WaitGroup
	for range 8 { // each a session of its own
		all.Go(func() {
			res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + at + "/")
			if err != nil || res.StatusCode != 200 {
				t.Errorf("%v, %v", res, err)
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	close(hold)
	all.Wait()
	if fetched.Load() != 1 {
		t.Errorf("%d tokens were fetched for 8 sessions", fetched.Load())
	}
	valid.Store(2) // the first was revoked
	res, body := get(t, http.DefaultClient, "http://"+at+"/")
	if res.StatusCode != 200 || body != "in" || fetched.Load() != 2 {
		t.Errorf("%d after %d tokens", res.StatusCode, fetched.Load())
	}
	valid.Store(9) // none counts
	if res, _ := get(t, http.DefaultClient, "http://"+at+"/"); res.StatusCode != 401 || fetched.Load() > 4 {
		t.Errorf("%d after %d tokens", res.StatusCode, fetched.Load())
	}
}

func TestWithoutAnAccessTokenNothingIsSent(t *testing.T) {
	issuer := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/refused":
			http.Error(w, `{"error":"invalid_client","error_description":"<secret detail>"}`, http.StatusUnauthorized)
		case "/mac":
			io.WriteString(w, `{"access_token":"t","token_type":"mac"}`)
		case "/broken":
			io.WriteString(w, "{")
		case "/moved":
			http.Redirect(w, r, "/mac", http.StatusTemporaryRedirect)
		case "/lines":
			io.WriteString(w, `{"access_token":"a\r\nX: y","token_type":"Bearer"}`)
		}
	}))
	defer issuer.Close()
	server := upstream(t, func(http.ResponseWriter, *http.Request) { t.Error("it reached the server") })
	for path, says := range map[string]string{"/refused": "401 invalid_client", "/mac": "of type Bearer", "/broken": "no JSON", "/moved": "answers 307", "/lines": "of type Bearer"} {
		d := &testDoor{server: server, secret: "x", conn: policy.Connection{Name: "api" + path[1:], Credential: policy.Credential{Kind: "oauth", Secret: "s", ClientID: "c", TokenURL: issuer.URL + path}}}
		res, body := get(t, http.DefaultClient, "http://"+inside(t, New(Config{}), d)+"/")
		if res.StatusCode != 503 || !strings.Contains(body, says) || strings.Contains(body, "secret detail") {
			t.Errorf("%s: %d %s", path, res.StatusCode, body)
		}
	}
}

func TestNoAccessTokenComesFromTheMachinesOwnMetadata(t *testing.T) {
	server := upstream(t, func(http.ResponseWriter, *http.Request) { t.Error("it was reached") })
	d := &testDoor{server: server, secret: "s3cr3t-of-client", conn: policy.Connection{Credential: policy.Credential{
		Kind: "oauth", TokenURL: "https://169.254.169.254:1/token", ClientID: "c", Secret: "test"}}}
	res, err := clients(t)["HTTP/1.1"].Get("http://" + inside(t, New(Config{}), d) + "/")
	if err != nil || res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%v, %v", res, err)
	}
	for _, a := range []string{"169.254.169.254:443", "[fe80::1]:443", "[::ffff:169.254.169.254]:80", "0.0.0.0:443"} {
		if noMetadata("tcp", a, nil) == nil {
			t.Errorf("%s is dialed", a)
		}
	}
	if err := noMetadata("tcp", "127.0.0.1:443", nil); err != nil {
		t.Error(err)
	}
}
