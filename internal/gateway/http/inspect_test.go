package httpdoor_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"isle"
	"isle/internal/approval"
	"isle/internal/gateway"
	"isle/internal/gateway/gatewaytest"
	httpdoor "isle/internal/gateway/http"
)

// inspection is a world whose egress to example.com leads to a server and is
// inspected.
func inspection(t *testing.T, s *httptest.Server, policy string) (*gatewaytest.World, *httpdoor.Inspector) {
	t.Helper()
	i := httpdoor.NewInspector(httpdoor.New(httpdoor.Config{}), bytes.Repeat([]byte("k"), 32))
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	w := gatewaytest.New(t, "bindings: [{role: open-egress, subjects: [{stage: testing}]}]\n"+policy, map[string]gateway.Protocol{"egress": i}, func(c *gateway.Config) {
		c.Roots = roots
		c.Resolve = func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		}
	})
	return w, i
}

// inspected speaks HTTPS through inspected egress, trusting what trust holds.
func inspected(t *testing.T, w *gatewaytest.World, s *httptest.Server, c gateway.Caller, trust []byte, two bool) *http.Client {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(trust) {
		t.Fatal("no certificate to trust")
	}
	port := s.Listener.Addr().(*net.TCPAddr).Port
	out := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: two,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			client, inside := gatewaytest.Pair(t)
			go w.Gateway.Inspect(context.Background(), c, gateway.Egress{Host: "example.com", Port: port, Allowed: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, inside)
			return client, nil
		},
	}}
	t.Cleanup(out.CloseIdleConnections)
	return out
}

func TestInspectedEgressIsDecidedRequestByRequest(t *testing.T) {
	server := upstreamTLS(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		io.WriteString(w, r.Proto+" "+r.Method+" "+r.Host+" "+r.Header.Get("Authorization")+" "+r.Header.Get("X-Forwarded-For")+" "+string(b))
	})
	port := server.Listener.Addr().(*net.TCPAddr).Port
	w, i := inspection(t, server, `approvals:
  - {actions: [http:write], resources: ["egress:*"], approvers: [human:root], when: {paths: ["/pay"]}, hold: error}
`)
	caller := shop()
	trust, err := i.Trust(caller.Instance, []string{"example.com"})
	if err != nil {
		t.Fatal(err)
	}
	url := "https://example.com:" + itoa(port)
	for _, two := range []bool{false, true} {
		c := inspected(t, w, server, caller, trust, two)
		req, _ := http.NewRequest("PUT", url+"/a", strings.NewReader("body"))
		req.Header.Set("Authorization", "Bearer mine")
		req.Header.Set("X-Forwarded-For", "me")
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		if string(b) != "HTTP/2.0 PUT example.com:"+itoa(port)+" Bearer mine me body" || two != (res.ProtoMajor == 2) {
			t.Errorf("%s %s", res.Proto, b)
		}
		res, err = c.Post(url+"/pay", "", nil)
		if err != nil || res.StatusCode != 403 {
			t.Errorf("what waits for a human passes: %v, %v", res, err)
		}
		req, _ = http.NewRequest("GET", url+"/", nil)
		req.Host = "other.example"
		if res, err := c.Do(req); err != nil || res.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("a request for another host: %v, %v", res, err)
		}
	}
	entries := w.Log.Entries(isle.ActionHTTPWrite)
	if len(entries) == 0 || entries[0].Resource.String() != "egress:example.com:"+itoa(port)+"@testing" || entries[0].Summary != "PUT /a" {
		t.Errorf("%+v", entries)
	}
}

func upstreamTLS(t *testing.T, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func itoa(n int) string {
	return strings.TrimPrefix(netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(n)).String(), "0.0.0.0:")
}

func TestWhatInspectionIsTrustedForIsNarrow(t *testing.T) {
	server := upstreamTLS(t, func(http.ResponseWriter, *http.Request) {})
	w, i := inspection(t, server, "")
	caller := shop()
	trust, _ := i.Trust(caller.Instance, []string{"example.com"})
	port := server.Listener.Addr().(*net.TCPAddr).Port
	get := func(c gateway.Caller, trust []byte) error {
		res, err := inspected(t, w, server, c, trust, true).Get("https://example.com:" + itoa(port))
		if err == nil {
			res.Body.Close()
		}
		return err
	}
	if err := get(caller, trust); err != nil {
		t.Error(err)
	}
	// Another instance is opened with another authority.
	var unknown x509.UnknownAuthorityError
	if err := get(shop(), trust); !errors.As(err, &unknown) {
		t.Errorf("another instance: %v", err)
	}
	// One that is trusted for other hosts is not for this one.
	narrow, _ := i.Trust(caller.Instance, []string{"other.example"})
	var invalid x509.CertificateInvalidError
	if err := get(caller, narrow); !errors.As(err, &invalid) || invalid.Reason != x509.CANotAuthorizedForThisName {
		t.Errorf("trusted for another host: %v", err)
	}
	// It is the same after a restart, and another with another key of the server.
	again, _ := httpdoor.NewInspector(httpdoor.New(httpdoor.Config{}), bytes.Repeat([]byte("k"), 32)).Trust(caller.Instance, []string{"example.com"})
	if err := get(caller, again); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	other, _ := httpdoor.NewInspector(httpdoor.New(httpdoor.Config{}), bytes.Repeat([]byte("l"), 32)).Trust(caller.Instance, []string{"example.com"})
	if err := get(caller, other); !errors.As(err, &unknown) {
		t.Errorf("with another key: %v", err)
	}
	if _, err := httpdoor.NewInspector(nil, nil).Trust(caller.Instance, []string{"example.com"}); isle.CodeOf(err) != isle.Unavailable {
		t.Errorf("without a key: %v", err)
	}
}

func TestInspectionVerifiesTheOtherEnd(t *testing.T) {
	server := upstreamTLS(t, func(http.ResponseWriter, *http.Request) { t.Error("it was reached") })
	w, i := inspection(t, server, "")
	caller := shop()
	trust, _ := i.Trust(caller.Instance, []string{"evil.example"})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(trust)
	client, inside := gatewaytest.Pair(t)
	served := make(chan error, 1)
	go func() { // the server's certificate is not for this name
		served <- w.Gateway.Inspect(context.Background(), caller, gateway.Egress{Host: "evil.example", Port: server.Listener.Addr().(*net.TCPAddr).Port, Allowed: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, inside)
	}()
	c := tls.Client(client, &tls.Config{RootCAs: pool, ServerName: "evil.example"})
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(c)
	if !strings.HasPrefix(string(b), "HTTP/1.1 502 ") || !strings.Contains(string(b), "certificate") {
		t.Errorf("%q", b)
	}
	<-served
}

func TestInspectedTLSIsForTheGrantedNameAndPolicyMayForbidIt(t *testing.T) {
	server := upstreamTLS(t, func(http.ResponseWriter, *http.Request) { t.Error("it was reached") })
	w, i := inspection(t, server, "")
	caller := shop()
	trust, _ := i.Trust(caller.Instance, []string{"example.com"})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(trust)
	try := func(name string) error {
		client, inside := gatewaytest.Pair(t)
		served := make(chan error, 1)
		go func() {
			served <- w.Gateway.Inspect(context.Background(), caller, gateway.Egress{Host: "example.com", Port: 443, Allowed: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, inside)
		}()
		client.SetDeadline(time.Now().Add(20 * time.Second))
		if err := tls.Client(client, &tls.Config{RootCAs: pool, ServerName: name, InsecureSkipVerify: true}).Handshake(); err == nil {
			t.Errorf("TLS to %q is opened", name)
		}
		client.Close()
		return <-served
	}
	if err := try("evil.example"); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "evil.example") {
		t.Error(err)
	}
	if err := try(""); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "no SNI") {
		t.Error(err)
	}
	w.Apply("bindings: []\n")
	if err := try("example.com"); isle.CodeOf(err) != isle.Refused {
		t.Errorf("without a grant: %v", err)
	}
}

func TestInspectedEgressThatHasToBeApprovedOpensOnceItIs(t *testing.T) {
	server := upstreamTLS(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "reached") })
	port := server.Listener.Addr().(*net.TCPAddr).Port
	w, i := inspection(t, server, `approvals:
  - {actions: [egress:connect], resources: ["egress:*"], approvers: [human:root]}
`)
	caller := shop()
	trust, _ := i.Trust(caller.Instance, []string{"example.com"})
	got := make(chan string, 1)
	go func() { // ends with the answer
		res, err := inspected(t, w, server, caller, trust, false).Get("https://example.com:" + itoa(port))
		if err != nil {
			got <- err.Error()
			return
		}
		b, _ := io.ReadAll(res.Body)
		got <- string(b)
	}()
	r := w.Held()
	name := "example.com:" + itoa(port)
	if len(r.Actions) != 1 || r.Actions[0] != isle.ActionEgressConnect || r.Kind != approval.Egress || r.Resource().String() != "egress:"+name+"@testing" || string(r.Text) != "connect to "+name {
		t.Errorf("whoever approves is asked %+v, %s", r, r.Text)
	}
	w.Decide(r, true, "")
	if text := <-got; text != "reached" {
		t.Error(text)
	}
}
