package outside

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"isle"
)

func TestWhatAConnectionRefersToLeadsBelowItsName(t *testing.T) {
	d := &door{name: "payments-api"}
	for from, want := range map[string]string{
		"/v1?a=b#c":               "/payments-api/v1?a=b#c",
		"http://payments-api/v1":  "/payments-api/v1",
		"http://PAYMENTS-API/%2f": "/payments-api/%2f",
		"next":                    "next",
		"?page=2":                 "?page=2",
		"https://example.com/v1":  "https://example.com/v1",
		"//example.com/v1":        "//example.com/v1",
		"mailto:a@example.com":    "mailto:a@example.com",
		"http://[":                "http://[",
	} {
		if got := d.outward(from); got != want {
			t.Errorf("%s leads to %s, want %s", from, got, want)
		}
	}
	res := &http.Response{Header: http.Header{"Set-Cookie": {"a=1; Path=/; Domain=example.com; Secure", "b=2; Path=/v1; HttpOnly", "c=3"}}}
	if err := d.modify(res); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(res.Header["Set-Cookie"], ", "); got != "a=1; Path=/payments-api/; Secure, b=2; Path=/payments-api/v1; HttpOnly, c=3; Path=/payments-api/" {
		t.Error(got)
	}
}

func FuzzWhatIsBehindTheNameStaysAsItIs(f *testing.F) {
	for _, s := range []string{"/orders-api/v1", "/orders-api", "/a/%2e%2e/b", "/a//b", "//a/b", "/A/b", "/%61/b", "*", "/a/?x=1", "/a/%", "/a/\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := url.ParseRequestURI(raw)
		if err != nil {
			return
		}
		name, rest, ok := cutConnection(u)
		if !ok {
			return
		}
		if !isle.ValidName(name) {
			t.Errorf("%q is taken for a name", name)
		}
		if got, was := "/"+name+rest.EscapedPath(), u.EscapedPath(); got != was || rest.RawQuery != u.RawQuery || rest.Host != "" || rest.Scheme != "" {
			t.Errorf("%q became %q", was, got)
		}
	})
}

func FuzzCredentialsAreTakenOutOfAHeader(f *testing.F) {
	f.Add("Bearer isle_abc", "")
	f.Add("Basic Y2k6aXNsZV9hYmM=", "")
	f.Add("Bearer theirs", "Bearer isle_abc")
	f.Add("Basic Y2k6", "Basic")
	f.Fuzz(func(t *testing.T, authorization, proxy string) {
		h := http.Header{}
		if authorization != "" {
			h["Authorization"] = []string{authorization}
		}
		if proxy != "" {
			h["Proxy-Authorization"] = []string{proxy}
		}
		credential, err := takeCredential(h)
		if err != nil && credential != "" || len(h["Proxy-Authorization"]) > 0 || proxy == "" && len(h["Authorization"]) > 0 || proxy != "" && h.Get("Authorization") != authorization {
			t.Errorf("%q %v %v", credential, err, h)
		}
		if rest := strings.TrimSpace(authorization); err != nil && len(rest) > 40 && strings.Contains(err.Error(), rest) {
			t.Error("the error repeats what was sent")
		}
	})
}
