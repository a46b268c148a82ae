package api

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

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
