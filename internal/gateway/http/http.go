package httpdoor

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"isle"
	"isle/internal/allowance"
	"isle/internal/gateway"
	"isle/internal/policy"
	"isle/internal/secret"
	"isle/internal/session"
)

// Config is what a Protocol needs. The zero Config is the real thing.
type Config struct {
	// Roots verify who gives access tokens; nil: the system's.
	Roots *x509.CertPool
	// MaskKey is the server's key that the hashes of masked values are made with;
	// nil: one of this process, with which they are others after a restart.
	MaskKey []byte
}

// A Protocol serves connections of kind http. It implements gateway.Protocol and
// gateway.Refuser.
type Protocol struct {
	config Config
	tokens tokens

	mu    sync.Mutex // guards what follows
	rates map[rateKey]*allowance.Table
}

var (
	_ gateway.Protocol = (*Protocol)(nil)
	_ gateway.Refuser  = (*Protocol)(nil)
)

// New returns a Protocol.
func New(c Config) *Protocol {
	if c.MaskKey == nil {
		c.MaskKey = make([]byte, 32)
		rand.Read(c.MaskKey)
	}
	return &Protocol{config: c, tokens: tokens{all: make(map[tokenKey]*access)}, rates: make(map[rateKey]*allowance.Table)}
}

// A door is what the protocol needs of a gateway.Door.
type door interface {
	Caller() gateway.Caller
	Connection() policy.Connection
	Dial(ctx context.Context) (net.Conn, error)
	TLS(ctx context.Context) (*tls.Config, error)
	Secret(ctx context.Context) (secret.Value, error)
	Ask(ctx context.Context, a gateway.Ask) (pass, error)
	Lifts(f *policy.Facts) bool
	Record(e session.Event) error
	Count(in, out int64)
}

// A pass is what the protocol needs of a gateway.Pass.
type pass interface {
	Done(outcome string, rows int64)
	Rule() string
	Approval() isle.ID
}

// opened is a door of the gateway's.
type opened struct{ *gateway.Door }

func (o opened) Ask(ctx context.Context, a gateway.Ask) (pass, error) { return o.Door.Ask(ctx, a) }
func (o opened) Record(e session.Event) error                         { return o.Session().Record(e) }
func (o opened) Count(in, out int64)                                  { o.Session().Count(in, out) }

// Serve implements gateway.Protocol.
func (p *Protocol) Serve(ctx context.Context, client net.Conn, d *gateway.Door) error {
	d.Started()
	s, err := p.open(ctx, opened{d}, false)
	if err != nil {
		p.Refuse(client, err)
		return err
	}
	defer s.close()
	return serveConn(ctx, client, s)
}

// Refuse implements gateway.Refuser: the first request is answered with why.
func (p *Protocol) Refuse(client net.Conn, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), lastWords)
	defer cancel()
	serveConn(ctx, client, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		problemOf(err).closing(w)
	}))
}

// serving is one session: what is made of its connection once, and shared by
// its requests.
type serving struct {
	protocol *Protocol
	door     door
	conn     policy.Connection
	scheme   string // of the real thing
	host     string // as it is called there, with a port that is not the scheme's
	inside   string // what clients call it; "" where they call it host
	name     string // for rules: host without the port
	masking  *masking
	suffix   string // of entity tags of what is masked
	cred     *credential
	rate     *allowance.Table // nil: no bound
	key      string           // who shares the rate
	own      bool             // a Host that is another name is refused

	tls       *tls.Config     // nil: the real thing speaks none
	peers     peers           // HTTP/1.1, for requests without a body
	transport *http.Transport // HTTP/1.1 for the others, and HTTP/2 by ALPN
	prior     *http.Transport // HTTP/2 without TLS, for gRPC
	speaksH2  atomic.Bool     // the real thing chose HTTP/2

	ready atomic.Pointer[tls.Conn] // speaks HTTP/2, for the transport to take

	mu    sync.Mutex // guards facts
	facts map[string]*policy.Facts
}

// open makes a session's serving. Where plain, the real thing speaks no TLS.
func (p *Protocol) open(ctx context.Context, d door, plain bool) (*serving, error) {
	c := d.Connection()
	s := &serving{protocol: p, door: d, conn: c, inside: cmp.Or(d.Caller().As, c.Name), facts: make(map[string]*policy.Facts)}
	tlsConfig, err := d.TLS(ctx)
	if err != nil {
		return nil, err
	}
	if plain {
		tlsConfig = nil
	}
	s.scheme = "https"
	if tlsConfig == nil {
		s.scheme = "http"
	}
	s.host, s.name = hostOf(c, s.scheme)
	if s.masking, err = p.masks(c); err != nil {
		return nil, err
	}
	if s.masking != nil {
		s.suffix = suffixOf(c)
	}
	s.cred = &credential{of: c.Credential, reveal: d.Secret, tokens: &p.tokens, client: tokenClient(p.config.Roots, tlsConfig),
		token: tokenKey{c.Name, c.Credential.TokenURL, c.Credential.ClientID, strings.Join(c.Credential.Scopes, " "), c.Credential.Secret}}
	caller := d.Caller()
	s.rate, s.key = p.rate(c), caller.Actor.String()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return d.Dial(ctx) }
	var both http.Protocols
	both.SetHTTP1(true)
	both.SetHTTP2(true)
	s.peers.dial = s.dialPeer
	if tlsConfig != nil {
		s.tls = tlsConfig.Clone()
		s.tls.NextProtos = []string{"h2", "http/1.1"}
	}
	s.transport = &http.Transport{
		DialContext: dial, DialTLSContext: s.dialTransport, Protocols: &both,
		DisableCompression: true, MaxIdleConnsPerHost: 16, IdleConnTimeout: upstreamIdle,
		ExpectContinueTimeout: time.Second, MaxResponseHeaderBytes: MaxHead,
	}
	if tlsConfig == nil {
		var prior http.Protocols
		prior.SetUnencryptedHTTP2(true)
		s.prior = &http.Transport{DialContext: dial, Protocols: &prior, DisableCompression: true, IdleConnTimeout: upstreamIdle, MaxResponseHeaderBytes: MaxHead}
	}
	return s, nil
}

const (
	// handshakeTime bounds the TLS handshake with the real thing.
	handshakeTime = 10 * time.Second
	// upstreamIdle is how long a session keeps a connection to the real thing
	// without a request.
	upstreamIdle = 90 * time.Second
)

// connect dials the real thing, and goes through the TLS handshake where it
// speaks TLS.
func (s *serving) connect(ctx context.Context) (net.Conn, error) {
	conn, err := s.door.Dial(ctx)
	if err != nil || s.tls == nil {
		return conn, err
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	config := s.tls
	if ctx.Value(onlyH1{}) != nil {
		config = s.tls.Clone()
		config.NextProtos = nil
	}
	c := tls.Client(conn, config)
	if err := c.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// onlyH1 is the key of a context whose connection must not speak HTTP/2.
type onlyH1 struct{}

// errH2 is why a connection is none of the peers.
var errH2 = errors.New("the other side speaks HTTP/2")

// dialPeer dials for the peers. A connection that turns out to speak HTTP/2 is
// left to the transport.
func (s *serving) dialPeer(ctx context.Context) (net.Conn, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	if c, ok := conn.(*tls.Conn); ok && c.ConnectionState().NegotiatedProtocol == "h2" {
		s.speaksH2.Store(true)
		if old := s.ready.Swap(c); old != nil {
			old.Close()
		}
		return nil, errH2
	}
	return conn, nil
}

// dialTransport dials for the transport.
func (s *serving) dialTransport(ctx context.Context, _, _ string) (net.Conn, error) {
	if ctx.Value(onlyH1{}) == nil {
		if c := s.ready.Swap(nil); c != nil {
			return c, nil
		}
	}
	return s.connect(ctx)
}

func (s *serving) close() {
	s.peers.close()
	if c := s.ready.Swap(nil); c != nil {
		c.Close()
	}
	s.transport.CloseIdleConnections()
	if s.prior != nil {
		s.prior.CloseIdleConnections()
	}
}

// hostOf is what the real thing is called in requests, and its name for rules.
func hostOf(c policy.Connection, scheme string) (host, name string) {
	port := strconv.Itoa(c.Port)
	if name = c.Service; c.Address != "" {
		name, port, _ = net.SplitHostPort(c.Address)
	}
	if c.TLS.Name != "" { // what it calls itself
		name = c.TLS.Name
	}
	if host = name; strings.Contains(name, ":") {
		host = "[" + name + "]"
	}
	if !(port == "0" || scheme == "https" && port == "443" || scheme == "http" && port == "80") {
		host += ":" + port
	}
	return strings.ToLower(host), strings.ToLower(name)
}

// tokenClient asks for access tokens. It goes to the URL that the policy names
// and nowhere else: redirects are not followed.
func tokenClient(roots *x509.CertPool, upstream *tls.Config) *http.Client {
	c := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if upstream != nil && upstream.RootCAs != nil {
		c.RootCAs = upstream.RootCAs
	}
	dialer := &net.Dialer{Timeout: handshakeTime, Control: noMetadata}
	return &http.Client{
		Transport:     &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: c, TLSHandshakeTimeout: handshakeTime, DisableKeepAlives: true, MaxResponseHeaderBytes: maxGrant},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// noMetadata refuses to dial where clouds answer for the machine itself, to which
// a name may come to lead.
func noMetadata(_, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if a := to.Addr().Unmap(); a.IsLinkLocalUnicast() || a.IsUnspecified() || a.IsMulticast() {
		return isle.Errorf(isle.Refused, "no access token comes from a link-local address")
	}
	return nil
}

// A rateKey tells rates apart.
type rateKey struct {
	connection string
	perSecond  float64
	burst      int
}

// maxCallers bounds whose rates one connection tells apart.
const maxCallers = 4096

// rate is the bound that a connection puts on its callers' requests, over all of
// their sessions; nil for none.
func (p *Protocol) rate(c policy.Connection) *allowance.Table {
	if c.Limits.PerSecond <= 0 {
		return nil
	}
	key := rateKey{c.Name, c.Limits.PerSecond, max(c.Limits.Burst, 1)}
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.rates[key]
	if t == nil {
		for k := range p.rates { // those of before the policy changed
			if k.connection == key.connection {
				delete(p.rates, k)
			}
		}
		t = &allowance.Table{Rate: allowance.Rate{Burst: key.burst, Every: time.Duration(float64(time.Second) / key.perSecond)}, Max: maxCallers}
		p.rates[key] = t
	}
	return t
}

// url is where a request goes. The path stands in Opaque, so that it goes out as
// it is.
func (s *serving) url(t target, query string, asked bool) *url.URL {
	return &url.URL{Scheme: s.scheme, Host: s.host, Opaque: t.forward, RawQuery: query, ForceQuery: asked}
}
