package httpdoor

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"isle"
	"isle/internal/gateway"
	"isle/internal/identity/identitytest"
	"isle/internal/ledger/ledgertest"
	"isle/internal/policy"
	"isle/internal/secret"
	"isle/internal/session"
)

// A testDoor leads to a server of the test's, past policy.
type testDoor struct {
	conn   policy.Connection
	server *httptest.Server
	secret string
	plain  bool                                        // no TLS
	as     string                                      // what clients call it; "": by its name
	name   string                                      // that TLS verifies; "": that of the server
	dial   func(ctx context.Context) (net.Conn, error) // nil: to the server
	decide func(a gateway.Ask) (pass, error)

	mu     sync.Mutex // guards what follows
	asks   []gateway.Ask
	events []session.Event
	passes []*testPass
	dials  int
}

type testPass struct {
	mu      sync.Mutex
	outcome string
}

func (p *testPass) Done(outcome string, _ int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.outcome = outcome
}
func (*testPass) Rule() string      { return "test" }
func (*testPass) Approval() isle.ID { return "" }

func (d *testDoor) Caller() gateway.Caller {
	return gateway.Caller{Actor: isle.Actor{Kind: isle.Workload, Name: "shop@testing"}, As: d.as}
}
func (d *testDoor) Connection() policy.Connection {
	c := d.conn
	if c.Name == "" {
		c.Name = "payments-api"
	}
	if c.Address == "" {
		c.Address = "example.com:443"
	}
	return c
}
func (d *testDoor) Dial(ctx context.Context) (net.Conn, error) {
	d.mu.Lock()
	d.dials++
	d.mu.Unlock()
	if d.dial != nil {
		return d.dial(ctx)
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", d.server.Listener.Addr().String())
}
func (d *testDoor) TLS(context.Context) (*tls.Config, error) {
	if d.plain {
		return nil, nil
	}
	pool := x509.NewCertPool()
	pool.AddCert(d.server.Certificate())
	return &tls.Config{RootCAs: pool, ServerName: cmp.Or(d.name, "example.com")}, nil
}
func (d *testDoor) Secret(ctx context.Context) (secret.Value, error) {
	return testSecret(ctx, d.secret)
}
func (d *testDoor) Lifts(f *policy.Facts) bool { return d.conn.Lifts(f) }
func (d *testDoor) Ask(_ context.Context, a gateway.Ask) (pass, error) {
	d.mu.Lock()
	d.asks = append(d.asks, a)
	d.mu.Unlock()
	if d.decide != nil {
		return d.decide(a)
	}
	p := &testPass{}
	d.mu.Lock()
	d.passes = append(d.passes, p)
	d.mu.Unlock()
	return p, nil
}
func (d *testDoor) Record(e session.Event) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, e)
	return nil
}
func (d *testDoor) Count(int64, int64) {}

// testSecret makes a Value the way that one is made: by storing and taking it.
func testSecret(ctx context.Context, value string) (secret.Value, error) {
	store := ledgertest.New()
	s, err := secret.Open(ctx, secret.Config{Store: store, Sealer: identitytest.NewSealer(), Log: store})
	if err != nil {
		return secret.Value{}, err
	}
	if _, err := s.Set(ctx, isle.Actor{Kind: isle.Human, Name: "ann"}, "test", []byte(value)); err != nil {
		return secret.Value{}, err
	}
	return s.Resolve(ctx, "test")
}

// inside serves a door to clients of a port of its own, and returns its address.
func inside(t *testing.T, p *Protocol, d *testDoor) string {
	t.Helper()
	return insideWith(t, p, d)
}

// insideWith is inside for doors that differ from a testDoor.
func insideWith(t *testing.T, p *Protocol, d door) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); l.Close(); running.Wait() })
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				s, err := p.open(ctx, d, false)
				if err != nil {
					p.Refuse(c, err)
					return
				}
				defer s.close()
				serveConn(ctx, c, s)
			})
		}
	})
	return l.Addr().String()
}

// upstream is a server with TLS and HTTP/2.
func upstream(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// upstreamH1 is a server with TLS that speaks HTTP/1.1 only.
func upstreamH1(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	return s
}

func get(t *testing.T, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

func TestARequestInsideBecomesOneOverTLSOutside(t *testing.T) {
	server := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		io.WriteString(w, r.Proto+" "+r.Method+" "+r.Host+" "+r.RequestURI+" "+string(b))
	})
	d := &testDoor{server: server}
	at := inside(t, New(Config{}), d)
	res, body := get(t, http.DefaultClient, "http://"+at+"/a/../b?q=1")
	if res.StatusCode != 200 || body != "HTTP/2.0 GET example.com /b?q=1 " {
		t.Errorf("%d %q", res.StatusCode, body)
	}
	post, err := http.Post("http://"+at+"/x", "text/plain", io.MultiReader(strings.NewReader("he"), strings.NewReader("llo")))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(post.Body)
	if string(b) != "HTTP/2.0 POST example.com /x hello" {
		t.Errorf("%q", b)
	}
}
