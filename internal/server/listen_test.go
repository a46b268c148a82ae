package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"isle"
	"isle/internal/api"
	"isle/internal/identity"
)

// one is a credential that counts; entered is told of each that is looked at.
type one struct {
	credential string
	entered    func() (left func())
}

func (o *one) Authenticate(_ context.Context, credential, _ string) (identity.Subject, error) {
	if o.entered != nil {
		defer o.entered()()
		time.Sleep(time.Millisecond)
	}
	if credential != o.credential {
		return identity.Subject{}, isle.Errorf(isle.Refused, "unknown")
	}
	return identity.Subject{Actor: isle.Actor{Kind: isle.Machine, Name: "ci"}}, nil
}
func (o *one) Check(identity.Subject) error { return nil }
func (o *one) Over() <-chan struct{}        { return nil }

// listening is a server of callers from elsewhere, and nothing else.
func listening(t *testing.T, change func(*Config)) (*Server, *elsewhere) {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{State: filepath.Join(dir, "state"), Keys: filepath.Join(dir, "keys"), Listen: "127.0.0.1:0"}
	if err := os.Mkdir(cfg.State, 0o700); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&cfg)
	}
	log := slog.New(slog.DiscardHandler)
	s := &Server{cfg: cfg, log: log, handover: &Handover{inherited: map[string]*os.File{}, held: map[string]fileListener{}}}
	s.rooms = &rooms{
		server: s, credentials: &one{credential: "right"}, refusals: newRefusals(&notebook{}, log, nil),
		handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }),
	}
	if err := s.listenRemote(); err != nil {
		t.Fatal(err)
	}
	e := s.remote.Load()
	failed := make(chan error, 1)
	srv := s.serveRemote(e, t.Context(), failed)
	t.Cleanup(func() { srv.Close(); s.rooms.refusals.close() })
	return s, e
}

// ask makes one request with a new connection.
func ask(t *testing.T, e *elsewhere, cfg *tls.Config, token string) (*http.Response, error) {
	t.Helper()
	if cfg == nil {
		roots := x509.NewCertPool()
		shown, _ := e.cert.get(nil)
		roots.AddCert(shown.Leaf)
		cfg = &tls.Config{RootCAs: roots}
	}
	tr := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 20 * time.Second}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequest(http.MethodGet, "https://"+e.info().Address+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := (&http.Client{Transport: tr, Timeout: 30 * time.Second}).Do(req)
	if err == nil {
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
	return res, err
}

func TestElsewhereIsServedOverTLSAsItShouldBe(t *testing.T) {
	_, e := listening(t, nil)
	res, err := ask(t, e, nil, "right")
	if err != nil || res.StatusCode != http.StatusOK || res.ProtoMajor != 2 || res.TLS.Version != tls.VersionTLS13 {
		t.Fatalf("%+v %v", res, err)
	}
	if res, err := ask(t, e, nil, "wrong"); err != nil || res.StatusCode != http.StatusUnauthorized {
		t.Errorf("%+v %v", res, err)
	}
	for name, cfg := range map[string]*tls.Config{
		"TLS 1.1":         {MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"CBC":             {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
		"without secrecy": {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}},
	} {
		cfg.InsecureSkipVerify = true
		if _, err := ask(t, e, cfg, "right"); err == nil {
			t.Errorf("%s is spoken", name)
		}
	}
	if res, err := ask(t, e, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}, "right"); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("TLS 1.2: %v", err)
	}
	res, err = http.Get("http://" + e.info().Address + "/x")
	if err == nil {
		res.Body.Close()
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("without TLS: %s", res.Status)
		}
	}
}

func TestAThousandHandshakesThatAreNeverFinishedStopNobody(t *testing.T) {
	_, e := listening(t, nil)
	proven := newClient(t, e)
	if err := proven(); err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		conn, err := net.Dial("tcp", e.info().Address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%2 == 0 {
			conn.Write([]byte{22, 3, 1, 0, 200, 1}) // the beginning of a hello
		}
	}
	for range 5 {
		if res, err := ask(t, e, nil, "right"); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("a new connection: %v", err)
		}
	}
	if err := proven(); err != nil {
		t.Errorf("one that was open before: %v", err)
	}
	g := e.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := g.waiting.Len(); n > maxWaitingEach+1 {
		t.Errorf("%d wait", n)
	}
}

// newClient returns a request over one connection that stays open.
func newClient(t *testing.T, e *elsewhere) func() error {
	c, err := api.NewRemoteClient(api.Remote{URL: e.info().URL, Pin: e.info().Pin, Token: func() (string, error) { return "right", nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return func() error { _, err := c.Fetch(t.Context(), "x"); return err }
}

func TestProvenConnectionsAreBoundedForEachSource(t *testing.T) {
	g := newGate(nil, callers)
	enter := func(source string) *gated {
		a, b := net.Pipe()
		t.Cleanup(func() { a.Close(); b.Close() })
		c := &gated{Conn: a, gate: g, source: source}
		if old := g.enter(c); old != nil {
			old.Close()
		}
		return c
	}
	var last *gated
	for i := range maxProvenEach {
		last = enter("192.0.2.1")
		for range 2 { // each request says so
			if !last.prove() {
				t.Fatalf("connection %d", i)
			}
		}
	}
	if enter("192.0.2.1").prove() {
		t.Error("one too many is taken")
	}
	if !enter("192.0.2.2").prove() {
		t.Error("another source pays for it")
	}
	last.Close()
	last.Close()
	if !enter("192.0.2.1").prove() {
		t.Error("one that ends makes no room")
	}
	first := enter("198.51.100.1")
	for i := range 2 * maxWaiting {
		enter("203.0.113." + string(rune('0'+i%10)))
	}
	if n := g.waiting.Len(); n > maxWaiting || !first.closed {
		t.Errorf("%d wait, and the oldest is closed: %v", n, first.closed)
	}
	for e := g.waiting.Front(); e != nil; e = g.waiting.Front() {
		e.Value.(*gated).Close()
	}
	if len(g.sources) != 2 {
		t.Errorf("%d sources are counted", len(g.sources))
	}
}

func TestTheKeyStaysWhileItsCertificateIsRenewed(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "keys", "key")
	log := slog.New(slog.DiscardHandler)
	c, err := openOwnCertificate(cert, key, []string{"localhost", "127.0.0.1"}, log)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(key)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	pin, first := c.pin(), c.shown
	again, err := openOwnCertificate(cert, key, []string{"localhost", "127.0.0.1"}, log)
	if err != nil || !again.shown.Leaf.Equal(first.Leaf) {
		t.Errorf("a start makes another: %v", err)
	}
	renamed, err := openOwnCertificate(cert, key, []string{"localhost", "isle.example.org"}, log)
	if err != nil || renamed.pin() != pin || renamed.shown.Leaf.VerifyHostname("isle.example.org") != nil {
		t.Errorf("another name: %v", err)
	}
	later := time.Now().Add(certificateLife * 3 / 4)
	c.now = func() time.Time { return later }
	shown, err := c.get(nil)
	if err != nil || shown.Leaf.Equal(first.Leaf) || api.PinOf(shown.Leaf) != pin || shown.Leaf.NotAfter.Before(later.Add(certificateLife/2)) {
		t.Errorf("it is not renewed: %v", err)
	}
	early := time.Now().Add(-30 * 24 * time.Hour) // the clock was put back
	c.now = func() time.Time { return early }
	if shown, _ := c.get(nil); shown.Leaf.NotBefore.After(early) || api.PinOf(shown.Leaf) != pin {
		t.Error("it holds only from later on")
	}

	if err := os.Chmod(key, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := openOwnCertificate(cert, key, nil, log); isle.CodeOf(err) != isle.Refused {
		t.Errorf("a key that others may read: %v", err)
	}
	if err := os.WriteFile(key, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Chmod(key, 0o600)
	if _, err := openOwnCertificate(cert, key, nil, log); isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), key) {
		t.Errorf("a key that is none: %v", err)
	}
}

func TestACertificateFromFilesIsReadAgainWhenItChanges(t *testing.T) {
	dir := t.TempDir()
	made := func(name string) (cert, key string) {
		t.Helper()
		cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
		if _, err := openOwnCertificate(cert, key, []string{"127.0.0.1"}, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	cert, key := made("a")
	newCert, newKey := made("b")
	_, e := listening(t, func(c *Config) { c.TLSCert, c.TLSKey = cert, key })
	pin := e.info().Pin
	if res, err := ask(t, e, nil, "right"); err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(err)
	}
	now := time.Now()
	e.cert.now = func() time.Time { now = now.Add(time.Minute); return now }
	if err := os.Rename(newCert, cert); err != nil { // half of a change
		t.Fatal(err)
	}
	if _, err := ask(t, e, &tls.Config{InsecureSkipVerify: true}, "right"); err != nil || e.info().Pin != pin {
		t.Errorf("half of a change: %v", err)
	}
	if err := os.Rename(newKey, key); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(t, e, &tls.Config{InsecureSkipVerify: true}, "right"); err != nil || e.info().Pin == pin {
		t.Errorf("the change is not seen: %v", err)
	}
	os.Chmod(key, 0o604)
	if _, err := openCertificate(cert, key, nil); isle.CodeOf(err) != isle.Refused {
		t.Errorf("a key that everybody may read: %v", err)
	}
	os.Chmod(key, 0o600)
	os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), 0o644)
	if _, err := openCertificate(cert, key, nil); isle.CodeOf(err) != isle.Invalid {
		t.Errorf("a certificate that is none: %v", err)
	}
}

func TestHowAServerIsReachedFromElsewhereIsChecked(t *testing.T) {
	for _, c := range []Config{
		{Listen: "7443"}, {TLSCert: "a", TLSKey: "b"}, {URL: "https://a"}, {Listen: ":7443", TLSCert: "a"}, {Listen: ":7443", URL: "http://a"}, {Listen: ":7443", URL: "https://a/b"},
	} {
		if err := c.checkRemote(); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for _, c := range []Config{{}, {Listen: ":7443"}, {Listen: "[::1]:0", URL: "https://isle.example.org", TLSCert: "a", TLSKey: "b"}} {
		if err := c.checkRemote(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	var nowhere *elsewhere
	if nowhere.info() != (api.RemoteInfo{}) || nowhere.check().State != api.CheckOK {
		t.Error("a server that listens to nobody says otherwise")
	}
	nowhere.close()
}

// A client that resets what it has just asked for, on and on, costs a bounded
// number of calls, and others go on (CVE-2023-44487).
func TestRapidResetsStopNobody(t *testing.T) {
	s, e := listening(t, nil)
	var busy, most, seen atomic.Int64
	s.rooms.credentials.(*one).entered = func() func() {
		seen.Add(1)
		for n := busy.Add(1); ; {
			m := most.Load()
			if n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		return func() { busy.Add(-1) }
	}
	conn, err := tls.Dial("tcp", e.info().Address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// RFC 9113, section 4.1, and RFC 7541, section 6.2.2: literals, not indexed.
	frame := func(kind, flags byte, stream uint32, payload []byte) []byte {
		head := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags, 0, 0, 0, 0}
		binary.BigEndian.PutUint32(head[5:], stream)
		return append(head, payload...)
	}
	var fields []byte
	for _, f := range []string{":method", "GET", ":scheme", "https", ":path", "/x", ":authority", "a", "authorization", "Bearer right"} {
		if strings.HasPrefix(f, ":") || f == "authorization" {
			fields = append(fields, 0)
		}
		fields = append(append(fields, byte(len(f))), f...)
	}
	const headers, reset, settings, endOfStreamAndHeaders, cancelled = 1, 3, 4, 5, 8
	io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	conn.Write(frame(settings, 0, 0, nil))
	go io.Copy(io.Discard, conn) // ends with the connection
	for i := range uint32(20_000) {
		id := 2*i + 1
		if _, err := conn.Write(append(frame(headers, endOfStreamAndHeaders, id, fields), frame(reset, 0, id, []byte{0, 0, 0, cancelled})...)); err != nil {
			break // it was told to calm down
		}
	}
	if seen.Load() == 0 {
		t.Error("none of them was one")
	}
	if res, err := ask(t, e, nil, "right"); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("somebody else: %v", err)
	}
	if n := most.Load(); n > 150 {
		t.Errorf("%d calls at once of one connection that may have 100", n)
	}
}
