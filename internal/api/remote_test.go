package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/environment"
	"isle/internal/identity"
)

// selfSigned makes a certificate for loopback that ends at a time.
func selfSigned(t *testing.T, end time.Time, uris ...*url.URL) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: end.Add(-48 * time.Hour), NotAfter: end,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, URIs: uris,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// A gate is the API from elsewhere in a test.
type remoteServer struct {
	*httptest.Server
	pin     string
	mu      sync.Mutex
	refused []audit.Entry
}

func (s *remoteServer) entries() []audit.Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]audit.Entry(nil), s.refused...)
}

func startRemote(t *testing.T, r *rooms, p Policy, keys Credentials, cert tls.Certificate, endpoints http.Handler) *remoteServer {
	t.Helper()
	if r.envs == nil {
		r.envs = map[isle.Ref]environment.Environment{}
	}
	s := &remoteServer{pin: PinOf(cert.Leaf)}
	log := slog.New(slog.DiscardHandler)
	handler := NewRemote(RemoteConfig{
		API: New(Config{
			Environments: r, Builder: r, Blobs: r, Audit: r, Signer: signer(t), Host: r, Policy: p, Credentials: keys, Log: log,
			TrustDomain: func() string { return "example.org" },
		}),
		Credentials: keys, Endpoints: endpoints, Group: "isle", Log: log,
		Refused: func(e audit.Entry, source string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.refused = append(s.refused, e)
		},
	})
	s.Server = httptest.NewUnstartedServer(handler)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *remoteServer) client(t *testing.T, token string) *Client {
	t.Helper()
	c, err := NewRemoteClient(Remote{URL: s.URL, Pin: s.pin, Token: func() (string, error) { return token, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// serveRemote serves over TLS and returns a client with a token.
func serveRemote(t *testing.T, r *rooms, p Policy, keys Credentials, token string) *Client {
	t.Helper()
	return startRemote(t, r, p, keys, selfSigned(t, time.Now().Add(time.Hour)), nil).client(t, token)
}

func whoAmI(c *Client) (*islev1.WhoAmIResponse, error) {
	res, err := c.Identities.WhoAmI(context.Background(), connect.NewRequest(&islev1.WhoAmIRequest{}))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

func TestACallerFromElsewhereIsWhoTheirCredentialProves(t *testing.T) {
	r, keys := &rooms{}, newRing()
	end := time.Now().Add(time.Hour)
	keys.give("machine-key", identity.Subject{Actor: ci, Stage: "staging", Expires: end})
	c := serveRemote(t, r, newPolicy(t), keys, "machine-key")
	if err := c.Answers(t.Context()); err != nil {
		t.Fatal(err)
	}
	who, err := whoAmI(c)
	if err != nil || who.GetActor() != "machine:ci" || who.GetStage() != "staging" || who.GetTrustDomain() != "example.org" || !who.GetExpires().AsTime().Equal(end) {
		t.Fatalf("%v %v", who, err)
	}
	if keys.asked[0] != "127.0.0.1" {
		t.Errorf("its source is %q", keys.asked[0])
	}
}

func TestAPersonFromElsewhereHasToBeAMemberStill(t *testing.T) {
	r, keys := &rooms{}, newRing()
	keys.give("in", identity.Subject{Actor: isle.Actor{Kind: isle.Human, Name: "ann"}, Groups: []string{"devs", "isle"}})
	keys.give("out", identity.Subject{Actor: isle.Actor{Kind: isle.Human, Name: "eve"}, Groups: []string{"devs"}})
	keys.give("root", identity.Subject{Actor: isle.Actor{Kind: isle.Human, Name: Root}})
	s := startRemote(t, r, newPolicy(t), keys, selfSigned(t, time.Now().Add(time.Hour)), nil)
	for token, member := range map[string]bool{"in": true, "out": false, "root": true} {
		if _, err := whoAmI(s.client(t, token)); (err == nil) != member {
			t.Errorf("%s: %v", token, err)
		}
	}
}

func TestACredentialThatCountsForNothingIsToldSo(t *testing.T) {
	r, keys := &rooms{}, newRing()
	s := startRemote(t, r, newPolicy(t), keys, selfSigned(t, time.Now().Add(time.Hour)), nil)
	const secret = "isle_thisIsASecret"
	c := s.client(t, secret)
	_, err := whoAmI(c)
	e, ok := err.(*isle.Error)
	if !ok || e.Code != isle.Refused || !strings.Contains(e.Hint, "isle login") {
		t.Errorf("unary: %v", err)
	}
	stream, err := c.Environments.Logs(t.Context(), connect.NewRequest(&islev1.LogsRequest{Environment: "shop"}))
	if err == nil {
		for stream.Receive() {
		}
		err = stream.Err()
	}
	if isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "isle login "+s.URL) {
		t.Errorf("stream: %v", err)
	}
	if _, err := c.Fetch(t.Context(), audit.CheckpointPath); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "isle login") {
		t.Errorf("tiles: %v", err)
	}
	if len(r.reached) > 0 || len(s.entries()) > 0 { // whoever looked at it has recorded it
		t.Errorf("reached %v, entries %v", r.reached, s.entries())
	}
}

func TestTheRefusalOfACredentialIsAsRFC6750HasIt(t *testing.T) {
	s := startRemote(t, &rooms{}, newPolicy(t), newRing(), selfSigned(t, time.Now().Add(time.Hour)), nil)
	for authorization, want := range map[string]string{
		"":                            `Bearer realm="isle"`,
		"Bearer wrong":                `Bearer realm="isle", error="invalid_token", error_description="the credential is unknown"`,
		"bearer wrong":                `Bearer realm="isle", error="invalid_token", error_description="the credential is unknown"`,
		"Bearer ":                     `Bearer realm="isle", error="invalid_token", error_description="the token has characters that no token has, or is empty"`,
		"Basic cm9vdDpyb290":          `Bearer realm="isle", error="invalid_token", error_description="the Authorization header is not a Bearer token"`,
		"Bearer a\"b, error=\"none\"": `Bearer realm="isle", error="invalid_token", error_description="the token has characters that no token has, or is empty"`,
	} {
		req, _ := http.NewRequest(http.MethodPost, s.URL+"/isle.v1.ServerService/Info", strings.NewReader("{}"))
		req.Header.Set("Content-Type", "application/json")
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		res, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusUnauthorized || res.Header.Get("WWW-Authenticate") != want || !strings.Contains(string(body), `"code":"unauthenticated"`) {
			t.Errorf("%q: %s, %q, %s", authorization, res.Status, res.Header.Get("WWW-Authenticate"), body)
		}
	}
	got := s.entries()
	if len(got) != 3 { // of what is none; whoever has shown nothing is not recorded
		t.Errorf("%d entries", len(got))
	}
	for _, e := range got {
		b, err := e.Encode()
		if err != nil || strings.Contains(string(b), "cm9vdDpyb290") || e.Rule != ended || e.Action != isle.ActionIdentityUse || e.Decision != isle.Deny || e.Details["source"] != "127.0.0.1" {
			t.Errorf("%s %v", b, err)
		}
	}
}

func TestWhoeverTriesOnAndOnIsToldToWaitAndTheirNeighbourIsNot(t *testing.T) {
	keys := newRing()
	keys.give("right", identity.Subject{Actor: ci})
	s := startRemote(t, &rooms{}, newPolicy(t), keys, selfSigned(t, time.Now().Add(time.Hour)), nil)
	wrong, held := s.client(t, "wrong"), 0
	for range 3 * triesBurst {
		_, err := whoAmI(wrong)
		switch isle.CodeOf(err) {
		case isle.Exhausted:
			held++
		case isle.Refused:
		default:
			t.Fatal(err)
		}
	}
	if held < triesBurst {
		t.Errorf("%d of %d were told to wait", held, 3*triesBurst)
	}
	if _, err := whoAmI(s.client(t, "right")); err != nil {
		t.Errorf("one with a credential that counts, from the same address: %v", err)
	}
}

func TestTriesAreBoundedAndComeBack(t *testing.T) {
	now := time.Unix(1000, 0)
	x := NewTries()
	x.now = func() time.Time { return now }
	for i := range triesBurst + 1 {
		if x.Take("2001:db8::1") != (i < triesBurst) {
			t.Errorf("try %d", i)
		}
	}
	if x.Take("2001:db8::ffff:2") {
		t.Error("another address of the same /64 begins anew")
	}
	if !x.Take("2001:db8:0:1::1") {
		t.Error("another /64 pays for it")
	}
	now = now.Add(triesEvery)
	if !x.Take("2001:db8::1") || x.Take("2001:db8::1") {
		t.Error("after a while there is one more, and no more")
	}
	for i := range 2 * maxTriers {
		x.Take(net.IPv4(10, byte(i>>16), byte(i>>8), byte(i)).String())
	}
	if n := x.table.Len(); n > maxTriers {
		t.Errorf("%d sources are remembered", n)
	}
	now = now.Add(time.Hour)
	if ok := x.Take("192.0.2.1"); !ok || x.table.Len() > 10 {
		t.Errorf("%d are remembered an hour later", x.table.Len())
	}
}

func TestAWorkloadsCredentialCountsOnlyInItsAirlock(t *testing.T) {
	const id = "spiffe://example.org/shop/testing/shop/web"
	keys := newRing()
	keys.give("right", identity.Subject{Actor: ci})
	s := startRemote(t, &rooms{}, newPolicy(t), keys, selfSigned(t, time.Now().Add(time.Hour)), nil)
	enc := base64.RawURLEncoding.EncodeToString
	_, err := whoAmI(s.client(t, enc([]byte(`{"alg":"ES256"}`))+"."+enc([]byte(`{"sub":"`+id+`"}`))+".c2ln"))
	if isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "only inside its own airlock") {
		t.Errorf("a JWT-SVID: %v", err)
	}
	u, _ := url.Parse(id)
	svid := selfSigned(t, time.Now().Add(time.Hour), u)
	c := s.client(t, "right")
	c.transport.TLSClientConfig.Certificates = []tls.Certificate{svid}
	if _, err := whoAmI(c); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "only inside its own airlock") {
		t.Errorf("an X.509-SVID beside a key that counts: %v", err)
	}
	got := s.entries()
	if len(got) != 2 || got[0].Rule != identity.WorkloadRule || got[1].Rule != identity.WorkloadRule || got[0].Details["claimed"] != id || got[1].Details["claimed"] != id || len(keys.asked) != 0 {
		t.Errorf("%+v, asked %v", got, keys.asked)
	}
}

func TestEndpointsAreAskedWithoutACredential(t *testing.T) {
	seen := []string{}
	s := startRemote(t, &rooms{}, newPolicy(t), newRing(), selfSigned(t, time.Now().Add(time.Hour)), http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.URL.Path)
	}))
	for _, p := range []string{"/oauth/token", "/.well-known/jwks.json", "/oauth", "/"} {
		res, err := s.Client().Get(s.URL + p)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	if strings.Join(seen, " ") != "/oauth/token /.well-known/jwks.json /oauth/" {
		t.Errorf("%v", seen)
	}
}

func TestAClientBelievesNobodyButTheServerItKnows(t *testing.T) {
	keys := newRing()
	keys.give("k", identity.Subject{Actor: ci})
	cert := selfSigned(t, time.Now().Add(time.Hour))
	s := startRemote(t, &rooms{}, newPolicy(t), keys, cert, nil)
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	token := func() (string, error) { return "k", nil }
	for name, c := range map[string]struct {
		server *remoteServer
		remote Remote
		want   string
	}{
		"its pin":         {s, Remote{Pin: s.pin}, ""},
		"its certificate": {s, Remote{Roots: roots}, ""},
		"nothing":         {s, Remote{}, "nobody who is trusted vouches"},
		"another's pin":   {s, Remote{Pin: PinOf(selfSigned(t, time.Now().Add(time.Hour)).Leaf)}, "another key than the one that is trusted"},
		"expired, by pin": {startRemote(t, &rooms{}, newPolicy(t), keys, selfSigned(t, time.Now().Add(-time.Hour)), nil), Remote{}, "and not now"},
	} {
		r := c.remote
		r.URL, r.Token = c.server.URL, token
		if strings.HasPrefix(name, "expired") {
			r.Pin = c.server.pin
		}
		before := len(keys.asked)
		client, err := NewRemoteClient(r)
		if err != nil {
			t.Fatal(err)
		}
		answers := client.Answers(t.Context())
		_, err = whoAmI(client)
		client.Close()
		if c.want == "" {
			if err != nil || answers != nil {
				t.Errorf("%s: %v, %v", name, answers, err)
			}
			continue
		}
		for _, err := range []error{answers, err} {
			if isle.CodeOf(err) != isle.Untrusted || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if len(keys.asked) != before {
			t.Errorf("%s: the credential was sent", name)
		}
	}
	if pin, trusted, err := Peek(t.Context(), Remote{URL: s.URL}); pin != s.pin || trusted || err != nil {
		t.Errorf("%s %v %v", pin, trusted, err)
	}
	if _, trusted, _ := Peek(t.Context(), Remote{URL: s.URL, Roots: roots}); !trusted {
		t.Error("its own certificate does not vouch for it")
	}
}

func TestAClientSaysWhyThereIsNobody(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	c, err := NewRemoteClient(Remote{URL: "https://" + address})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Answers(t.Context()); isle.CodeOf(err) != isle.NotFound || !strings.Contains(err.Error(), "--listen") {
		t.Error(err)
	}
	if _, err := whoAmI(c); isle.CodeOf(err) != isle.NotFound {
		t.Error(err)
	}
}

func TestACredentialIsNotSentWhereAServerSaysTo(t *testing.T) {
	keys := newRing()
	s := startRemote(t, &rooms{}, newPolicy(t), keys, selfSigned(t, time.Now().Add(time.Hour)), nil)
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("it was sent")
		}
	}))
	defer other.Close()
	s.Config.Handler = http.RedirectHandler(other.URL, http.StatusTemporaryRedirect)
	if _, err := whoAmI(s.client(t, "k")); err == nil {
		t.Error("it succeeded")
	}
}

func TestAServersAddressHasOneForm(t *testing.T) {
	for in, want := range map[string]string{
		"https://Isle.Example.org": "https://isle.example.org:443", "https://[2001:db8::1]:7443/": "https://[2001:db8::1]:7443", "https://h:7443": "https://h:7443",
		"http://h:1": "", "https://": "", "https://u:p@h:1": "", "https://h:1/x": "", "https://h:1?q": "", "https://h:99999": "", "h:7443": "", "/run/isle.sock": "",
	} {
		got, err := ServerURL(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", in, got, err)
		}
		if err != nil && strings.Contains(err.Error(), "u:p") {
			t.Errorf("the error repeats a password: %v", err)
		}
	}
}

func FuzzBearer(f *testing.F) {
	f.Add("Bearer abc")
	f.Add("bearer  a.b.c==")
	f.Add("Basic cm9vdA==")
	f.Add("Bearer e30.eyJzdWIiOiJzcGlmZmU6Ly9hL2IifQ.c2ln")
	f.Fuzz(func(t *testing.T, value string) {
		token, err := bearer(http.Header{"Authorization": {value}})
		if err != nil {
			if rest := strings.TrimSpace(value); len(rest) > 40 && strings.Contains(err.Error(), rest) {
				t.Error("the error repeats what was sent")
			}
			return
		}
		if token == "" || len(token) > MaxCredential || strings.ContainsAny(token, " \t\r\n\",\\") || !strings.HasSuffix(value, token) {
			t.Errorf("%q is taken for the token %q", value, token)
		}
		identity.Claimed(token, nil)
	})
}
