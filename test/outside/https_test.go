package outside

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// pays makes the connection payments-api lead to a server that says what it was
// asked, and by whom it was told that it comes.
func pays(t *testing.T) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		switch r.URL.Path {
		case "/moved":
			http.SetCookie(w, &http.Cookie{Name: "session", Value: "1", Path: "/"})
			http.Redirect(w, r, "/v1/new?a=b", http.StatusFound)
			return
		}
		fmt.Fprintf(w, "%s %s auth=%q proxy=%q body=%q", r.Method, r.URL.RequestURI(), r.Header.Get("Authorization"), r.Header.Get("Proxy-Authorization"), b)
	}))
	t.Cleanup(s.Close)
	file := fmt.Sprintf(policy, shared.pg.Addr(), shared.pg.CA, "127.0.0.1:1") +
		"  payments-api: {kind: http, address: \"" + s.Listener.Addr().String() + "\", stage: testing, tls: off}\n"
	if err := shared.apply(file); err != nil {
		t.Fatal(err)
	}
}

func TestHTTPSFindsAConnectionByTheFirstSegmentOfItsPath(t *testing.T) {
	pays(t)
	key := shared.machine(t, "pays", "--role", "everything")
	for _, h2 := range []bool{false, true} {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots(t)}, ForceAttemptHTTP2: h2}
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		ask := func(method, path, body string, headers ...string) (int, string, http.Header) {
			t.Helper()
			req, err := http.NewRequestWithContext(t.Context(), method, "https://"+shared.gateway+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(headers); i += 2 {
				req.Header.Set(headers[i], headers[i+1])
			}
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			if err != nil || res.ProtoMajor == 2 != h2 {
				t.Errorf("%v over %s", err, res.Proto)
			}
			return res.StatusCode, string(b), res.Header
		}
		bearer := []string{"Authorization", "Bearer " + key}
		if code, body, _ := ask("POST", "/payments-api/v1/pay?to=x", "ten", bearer...); code != 200 || body != `POST /v1/pay?to=x auth="" proxy="" body="ten"` {
			t.Errorf("%d %s", code, body)
		}
		if code, body, _ := ask("GET", "/payments-api/v1", "", "Proxy-Authorization", "Bearer "+key, "Authorization", "Bearer theirs"); code != 200 || !strings.Contains(body, `auth="Bearer theirs" proxy=""`) {
			t.Errorf("%d %s", code, body)
		}
		if code, _, h := ask("GET", "/payments-api/moved", "", bearer...); code != 302 || h.Get("Location") != "/payments-api/v1/new?a=b" || h.Get("Set-Cookie") != "session=1; Path=/payments-api/" {
			t.Errorf("%d %v", code, h)
		}
		if code, _, h := ask("GET", "/payments-api", "", bearer...); code != 308 || h.Get("Location") != "/payments-api/" {
			t.Errorf("%d %v", code, h)
		}
		for name, c := range map[string]struct {
			path, header string
			code         int
		}{
			"nobody":        {"/payments-api/v1", "", 401},
			"a wrong key":   {"/payments-api/v1", "Bearer isle_wrong", 401},
			"no connection": {"/nothing/v1", "Bearer " + key, 404},
			"another kind":  {"/orders-db/v1", "Bearer " + key, 404},
			"no name":       {"/", "Bearer " + key, 404},
		} {
			if code, body, _ := ask("GET", c.path, "", "Authorization", c.header); code != c.code || strings.Contains(body, key) {
				t.Errorf("%s: %d %s", name, code, body)
			}
		}
	}
	look := shared.machine(t, "looksonly", "--role", "reader")
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "https://"+shared.gateway+"/payments-api/v1", nil)
	req.SetBasicAuth("looksonly", look)
	res, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots(t)}, DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusForbidden {
		t.Errorf("%d %s", res.StatusCode, b)
	}
}
