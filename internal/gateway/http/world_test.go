package httpdoor_test

import (
	"bufio"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"isle"
	"isle/internal/gateway"
	"isle/internal/gateway/gatewaytest"
	httpdoor "isle/internal/gateway/http"
)

// document is a policy with the connection crm, to a server, of which more is
// said in more.
func document(s *httptest.Server, more string) string {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	indented := strings.ReplaceAll(strings.TrimSpace(string(ca)), "\n", "\n        ")
	return fmt.Sprintf(`
connections:
  crm:
    kind: http
    address: "%s"
    stage: testing
    tls:
      name: example.com
      ca: |
        %s
%s
roles:
  reader: {actions: [connection:open, http:read], resources: [connection:crm]}
  writer: {actions: [http:write], resources: [connection:crm]}
bindings:
  - {role: reader, subjects: [{project: shop, stage: testing}]}
  - {role: writer, subjects: [{project: shop, stage: testing, name: shop}]}
`, s.Listener.Addr(), indented, more)
}

func world(t *testing.T, s *httptest.Server, more, approvals string) *gatewaytest.World {
	t.Helper()
	return gatewaytest.New(t, document(s, more)+approvals, map[string]gateway.Protocol{"http": httpdoor.New(httpdoor.Config{})})
}

// client speaks HTTP over a connection of a caller's.
func client(t *testing.T, w *gatewaytest.World, c gateway.Caller) *http.Client {
	conn, _ := w.Connect(c, "crm")
	out := &http.Client{Transport: &http.Transport{
		DisableCompression: true,
		DialContext:        func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}
	t.Cleanup(out.CloseIdleConnections)
	return out
}

func shop() gateway.Caller { return gatewaytest.Workload("shop", "testing") }

func do(t *testing.T, c *http.Client, method, path, body string, header ...string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequest(method, "http://crm"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b), res.Header
}

func TestPolicyDecidesEachRequestAndTheLogHasWhatChangesSomething(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization"))
	}))
	defer server.Close()
	w := world(t, server, `    credential: {kind: bearer, secret: crm}
    rules:
      - {effect: deny, methods: [DELETE], reason: "nothing is deleted here"}
      - {effect: deny, paths: ["/admin*"], reason: "that is for people"}`, "")
	w.SetSecret("crm", "t0ken")
	c := client(t, w, shop())
	if status, body, _ := do(t, c, "GET", "/customers/17", ""); status != 200 || body != "GET /customers/17 Bearer t0ken" {
		t.Errorf("%d %s", status, body)
	}
	if status, body, _ := do(t, c, "POST", "/customers/17", "x"); status != 200 || !strings.HasPrefix(body, "POST ") {
		t.Errorf("%d %s", status, body)
	}
	entries := w.Log.Entries(isle.ActionHTTPWrite)
	if len(entries) != 1 || entries[0].Summary != "POST /customers/…" || entries[0].Resource.Name != "crm" {
		t.Errorf("%+v", entries)
	}
	for _, r := range [][2]string{{"DELETE", "/customers/17"}, {"GET", "/admin"}, {"GET", "/x/%2e%2e/admin"}, {"GET", "/adm%69n/users"}, {"GET", "/x//y"}, {"GET", "/x%2f..%2fadmin"}, {"GET", "/x;y/admin"}} {
		status, body, h := do(t, c, r[0], r[1], "")
		if status != 403 || h.Get("Content-Type") != "application/problem+json" || !strings.Contains(body, "rule at") {
			t.Errorf("%s: %d %s", r, status, body)
		}
	}
	// One that may only read.
	other := client(t, w, func() gateway.Caller {
		c := gatewaytest.Workload("shop", "testing")
		c.Place.Environment, c.Ref.Name, c.Actor.Name = "viewer", "viewer", "viewer@testing"
		return c
	}())
	if status, body, _ := do(t, other, "POST", "/customers", "x"); status != 403 || !strings.Contains(body, "http:write") {
		t.Errorf("%d %s", status, body)
	}
	// One of another stage may nothing at all.
	if status, body, _ := do(t, client(t, w, gatewaytest.Workload("shop", "production")), "GET", "/", ""); status != 403 {
		t.Errorf("%d %s", status, body)
	}
	if b, _ := json.Marshal(w.Log.Entries("")); strings.Contains(string(b), "t0ken") {
		t.Error("the log has the credential")
	}
}

func TestARequestWaitsForItsApprovalAndIsSentOnce(t *testing.T) {
	var got atomic.Int32
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got.Add(1)
		b, _ := io.ReadAll(r.Body)
		io.WriteString(w, "did "+string(b))
	}))
	defer server.Close()
	const approvals = `
approvals:
  - {actions: [http:write], resources: [connection:crm], approvers: [human:root], when: {paths: ["/refund*"]}, timeout: 1m}
  - {actions: [http:write], resources: [connection:crm], approvers: [human:root], when: {paths: ["/later"]}, hold: error}
`
	w := world(t, server, "", approvals)
	c := client(t, w, shop())
	type answer struct {
		status int
		body   string
	}
	answered := make(chan answer, 1)
	go func() {
		s, b, _ := do(t, c, "POST", "/refund?order=7", `{"amount": 10}`)
		answered <- answer{s, b}
	}()
	r := w.Held()
	if text := string(r.Text); !strings.HasPrefix(text, "POST https://") || !strings.Contains(text, "/refund?order=7\n") || !strings.HasSuffix(text, "\n"+`{"amount": 10}`) {
		t.Errorf("whoever approves sees %q", text)
	}
	if got.Load() != 0 {
		t.Error("it was sent before it was approved")
	}
	w.Decide(r, true, "")
	if a := <-answered; a.status != 200 || a.body != `did {"amount": 10}` || got.Load() != 1 {
		t.Errorf("%+v, sent %d times", a, got.Load())
	}
	// Another body is another request.
	go func() {
		s, b, _ := do(t, c, "POST", "/refund?order=7", `{"amount": 99}`)
		answered <- answer{s, b}
	}()
	w.Decide(w.Held(), false, "too much")
	if a := <-answered; a.status != 403 || !strings.Contains(a.body, "too much") || got.Load() != 1 {
		t.Errorf("%+v, sent %d times", a, got.Load())
	}
	s, b, h := do(t, c, "POST", "/later", "")
	var p struct {
		Type     string
		Approval isle.ID
	}
	if err := json.Unmarshal([]byte(b), &p); err != nil || s != 403 || p.Type != "urn:isle:problem:held" || !p.Approval.Valid() || h.Get("Retry-After") == "" {
		t.Errorf("%d %s %v", s, b, err)
	}
}

func TestMaskedFieldsLeaveMaskedWhateverIsAskedFor(t *testing.T) {
	const canary = "canary@example.com"
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Etag", `"v1"`)
		h.Set("Digest", "sha-256=x")
		body := `{"id": 1, "customer": {"email": "` + canary + `"}}`
		switch r.URL.Path {
		case "/json":
			h.Set("Content-Type", "application/vnd.api+json; charset=utf-8")
		case "/ndjson":
			h.Set("Content-Type", "application/x-ndjson")
			body += "\n" + body + "\n"
		case "/sse":
			h.Set("Content-Type", "text/event-stream")
			body = "data: " + body + "\n\n"
		case "/csv":
			h.Set("Content-Type", "text/csv")
		case "/none":
			h["Content-Type"] = nil
		case "/wrong":
			h.Set("Content-Type", "application/json")
			body = "<" + body
		case "/late":
			h.Set("Content-Type", "application/json")
			body = `["` + strings.Repeat("x", 1<<20) + `", ` + body
		case "/gzip":
			h.Set("Content-Type", "application/json")
			h.Set("Content-Encoding", "gzip")
		case "/part":
			h.Set("Content-Type", "application/json")
			w.WriteHeader(206)
		case "/utf16":
			h.Set("Content-Type", "application/json; charset=utf-16")
		case "/picture":
			h.Set("Content-Type", "image/png")
			body = "picture"
		case "/asked":
			h.Set("Content-Type", "application/json")
			body = fmt.Sprintf(`[%q, %q, %q]`, r.Header.Get("Accept-Encoding"), r.Header.Get("Range"), r.Header.Get("If-None-Match"))
		}
		io.WriteString(w, body)
	}))
	defer server.Close()
	w := world(t, server, `    mask: [{column: $..email, show: partial}]
    rules: [{effect: allow, paths: [/picture]}]
    results: true`, "")
	c := client(t, w, shop())
	tag := ""
	for path, want := range map[string]int{"/json": 200, "/ndjson": 200, "/sse": 200, "/picture": 200, "/csv": 403, "/none": 403, "/wrong": 502, "/gzip": 403, "/part": 403, "/utf16": 403} {
		status, body, h := do(t, c, "GET", path, "", "Accept-Encoding", "gzip")
		if status != want || strings.Contains(body, "canary") || status == 200 && path != "/picture" && !strings.Contains(body, `"c***@e*****.com"`) {
			t.Errorf("%s: %d %s", path, status, body)
		}
		if h.Get("Digest") != "" && path != "/picture" {
			t.Errorf("%s: %v is of another text", path, h)
		}
		if path == "/json" {
			tag = h.Get("Etag")
		}
	}
	if tag == `"v1"` || tag == "" {
		t.Errorf("the tag %s is that of what is not masked", tag)
	}
	if _, body, _ := do(t, c, "GET", "/asked", "", "Range", "bytes=0-5", "If-None-Match", tag, "Accept-Encoding", "br"); body != `["identity", "", "\"v1\""]` {
		t.Errorf("the server was asked %s", body)
	}
	if status, body, h := do(t, c, "HEAD", "/json", ""); status != 200 || body != "" || h.Get("Content-Length") != "" {
		t.Errorf("%d %v", status, h)
	}
	// What turns out too late to be no JSON is broken off.
	conn, served := w.Connect(shop(), "crm")
	io.WriteString(conn, "GET /late HTTP/1.1\r\nHost: crm\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err == nil {
		_, err = io.ReadAll(res.Body)
	}
	if err == nil {
		t.Error("a document that can't be read ends as if it were whole")
	}
	conn.Close()
	<-served
	status, body, _ := do(t, client(t, w, shop()), "GET", "/ws", "", "Connection", "Upgrade", "Upgrade", "websocket")
	if status != 403 || !strings.Contains(body, "WebSocket") {
		t.Errorf("%d %s", status, body)
	}
}
