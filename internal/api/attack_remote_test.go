package api

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"isle"
	"isle/internal/identity"
)

// from is an HTTP/2 client of one connection from an address of loopback.
func from(t *testing.T, address string) *http.Client {
	t.Helper()
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext:     (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}).DialContext,
		Protocols:       new(http.Protocols),
	}
	tr.Protocols.SetHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// Whoever sends requests without a credential, and sends them slowly, takes no
// more of the server's memory than it has for them, and nobody else's place.
func TestSlowRequestsWithoutACredentialAreBoundedForEachSource(t *testing.T) {
	reading := make(chan struct{})
	s := startRemote(t, &rooms{}, newPolicy(t), newRing(), selfSigned(t, time.Now().Add(time.Hour)), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			reading <- struct{}{}
		}
		io.Copy(io.Discard, r.Body)
	}))
	slow := from(t, "127.0.0.2")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range maxBriefEach {
		body, end := io.Pipe()
		defer end.Close()
		req, _ := http.NewRequestWithContext(ctx, "POST", s.URL+"/oauth/token", body)
		go func() {
			if res, err := slow.Do(req); err == nil {
				res.Body.Close()
			}
		}()
		<-reading
	}
	get := func(c *http.Client) int {
		res, err := c.Get(s.URL + "/oauth/token")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	if got := get(slow); got != http.StatusServiceUnavailable {
		t.Errorf("one more: %d", got)
	}
	if got := get(from(t, "127.0.0.3")); got != http.StatusOK {
		t.Errorf("somebody else: %d", got)
	}
	cancel()
	for again := time.Now().Add(time.Minute); get(slow) != http.StatusOK; {
		if time.Now().After(again) {
			t.Fatal("who ends them has no place again")
		}
	}
}

// A call may be open for long, and one that says nothing too. A key that opens
// ever more is told that it has enough, and others are not.
func TestOpenCallsAreBoundedForEachKey(t *testing.T) {
	keys := newRing()
	keys.give("ci", identity.Subject{Actor: isle.Actor{Kind: isle.Machine, Name: "ci"}, Stage: "testing"})
	keys.give("cd", identity.Subject{Actor: isle.Actor{Kind: isle.Machine, Name: "cd"}, Stage: "testing"})
	waiting, ended := make(chan struct{}), make(chan struct{})
	remote := NewRemote(RemoteConfig{Credentials: keys, API: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		waiting <- struct{}{}
		<-ended
	})})
	call := func(token string) int {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("POST", "/isle.v1.EnvironmentService/Exec", strings.NewReader(""))
		r.Header.Set("Authorization", "Bearer "+token)
		remote.ServeHTTP(w, r)
		return w.Code
	}
	done := make(chan int, maxOpenEach+1)
	for range maxOpenEach {
		go func() { done <- call("ci") }()
		<-waiting
	}
	if got := call("ci"); got != http.StatusServiceUnavailable {
		t.Errorf("one more: %d", got)
	}
	go func() { done <- call("cd") }()
	<-waiting
	close(ended)
	for range maxOpenEach + 1 {
		if got := <-done; got != http.StatusOK {
			t.Errorf("%d", got)
		}
	}
	go func() { <-waiting }()
	if got := call("ci"); got != http.StatusOK {
		t.Errorf("afterwards: %d", got)
	}
}

// A request is read whole before anybody is asked whether it may be made. Who may
// do nothing sends no more at once than there is room for, nor little that becomes
// much.
func TestARequestThatIsRefusedAnywayIsNotHeldWithoutBound(t *testing.T) {
	keys := newRing()
	keys.give("ci", identity.Subject{Actor: isle.Actor{Kind: isle.Machine, Name: "ci"}, Stage: "testing"})
	s := startRemote(t, &rooms{}, newPolicy(t), keys, selfSigned(t, time.Now().Add(time.Hour)), nil)
	post := func(path, encoding, contentType string, body io.Reader) (int, string) {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", s.URL+path, body)
		req.Header.Set("Authorization", "Bearer ci")
		req.Header.Set("Content-Type", contentType)
		if encoding != "" {
			req.Header.Set("Content-Encoding", encoding)
		}
		res, err := from(t, "127.0.0.1").Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b)
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	io.Copy(z, io.LimitReader(strings.NewReader(`{"server":"`+strings.Repeat("x", 8<<20)+`"}`), 8<<20))
	z.Close()
	if code, b := post("/isle.v1.IdentityService/WhoAmI", "gzip", "application/json", &zipped); code != http.StatusNotImplemented || !strings.Contains(b, "unknown compression") {
		t.Errorf("%d bytes that are 8 MiB: %d %s", zipped.Len(), code, b)
	}
	piece := append([]byte{0, 0, 0x60, 0, 0}, make([]byte, 6<<20)...) // one message of 6 MiB
	if _, b := post("/isle.v1.EnvironmentService/Exec", "", "application/connect+proto", bytes.NewReader(piece)); !strings.Contains(b, "resource_exhausted") {
		t.Errorf("a message of a stream: %s", b)
	}
	r := &remote{RemoteConfig: RemoteConfig{Credentials: keys}, known: places{all: 10, each: 10}, held: places{all: 100, each: 10}}
	r.API = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, err := io.ReadAll(req.Body)
		if connect.CodeOf(err) == connect.CodeResourceExhausted && err != nil {
			w.WriteHeader(http.StatusTooManyRequests)
		}
	})
	for _, c := range []struct {
		path string
		n    int
		want int
	}{
		{"/isle.v1.EnvironmentService/Up", 10, http.StatusOK}, {"/isle.v1.EnvironmentService/Up", 11, http.StatusTooManyRequests},
		{"/isle.v1.EnvironmentService/Up", 10, http.StatusOK}, {"/isle.v1.BuildService/Put", 1000, http.StatusOK}, // what was held is free again
	} {
		w, req := httptest.NewRecorder(), httptest.NewRequest("POST", c.path, strings.NewReader(strings.Repeat("x", c.n)))
		req.Header.Set("Authorization", "Bearer ci")
		if r.serve(w, req); w.Code != c.want {
			t.Errorf("%d bytes for %s: %d, want %d", c.n, c.path, w.Code, c.want)
		}
	}
}
