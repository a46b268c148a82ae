package recorder

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"strings"
	"testing"

	"isle"
)

// Where the server is, and what names mean there, is no business of who wrote the
// step: it may be told nothing of it by asking for what it may not have.
func TestAStepLearnsNothingOfTheNetworkAroundTheServer(t *testing.T) {
	f := newFar(t, versions)
	n := f.record(Options{})
	n.config.Dial = func(_ context.Context, host string, _ int) (net.Conn, error) {
		if host == "b.example" {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Source: &net.TCPAddr{IP: net.IPv4(10, 9, 8, 7), Port: 4444}, Err: os.ErrDeadlineExceeded}
		}
		return nil, isle.Errorf(isle.Refused, "egress to %s is refused: it resolves to 10.9.8.7, a private address", host)
	}
	var got []string
	for range 2 {
		got = append(got, n.ask(t, "GET", "https://a.example/", "")+n.ask(t, "GET", "http://b.example/", ""))
	}
	n.Close()
	if strings.Contains(got[0], "10.9.8.7") || !strings.HasPrefix(got[0], "502") {
		t.Errorf("the step is told\n%s", got[0])
	}
	told := strings.Join(n.said, "\n")
	if strings.Count(told, "10.9.8.7") != 2 {
		t.Errorf("people are told\n%s", told)
	}

	// Nor of why what is locked cannot be had.
	whole := f.record(Options{})
	whole.ask(t, "GET", "https://a.example/", "")
	whole.Close()
	locked := whole.Materials()
	if err := os.Remove(f.store.BlobPath(locked[0].Digest)); err != nil {
		t.Fatal(err)
	}
	again := f.record(Options{Locked: locked, Frozen: true})
	again.config.Dial = n.config.Dial
	if got := again.ask(t, "GET", "https://a.example/", ""); strings.Contains(got, "10.9.8.7") || !strings.HasPrefix(got, "502") {
		t.Errorf("a frozen step is told\n%s", got)
	}
	again.Close()
	if err := again.Judge(nil); isle.CodeOf(err) != isle.Conflict || !strings.Contains(err.Error(), "10.9.8.7") {
		t.Errorf("people are told %v", err)
	}
}

// A certificate is kept for each name that a step says in a handshake.
func TestNamesInHandshakesAreHosts(t *testing.T) {
	a, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	get := opened(a, &net.TCPAddr{IP: net.IPv4(198, 18, 1, 0), Port: 443}).GetCertificate
	for _, name := range []string{strings.Repeat("a", 60_000), "a..b", "-\x00", "a b", "*.example.com", strings.Repeat("a.", 200) + "a"} {
		if _, err := get(&tls.ClientHelloInfo{ServerName: name}); err == nil {
			t.Errorf("there is a certificate for %.40q", name)
		}
	}
	for _, name := range []string{"example.com", "EXAMPLE.com", "my_host.example", ""} {
		if _, err := get(&tls.ClientHelloInfo{ServerName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
