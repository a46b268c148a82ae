package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"isle"
)

func prefixes(all ...string) []netip.Prefix {
	var p []netip.Prefix
	for _, s := range all {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

// resolver answers one name after the other with what it is told.
func resolver(answers ...string) func(context.Context, string) ([]netip.Addr, error) {
	return func(context.Context, string) ([]netip.Addr, error) {
		var all []netip.Addr
		for _, a := range answers {
			all = append(all, netip.MustParseAddr(a))
		}
		return all, nil
	}
}

func TestAnAddressThatIsNotPublicIsNeverDialedUnlessTheGrantNamesIt(t *testing.T) {
	for _, a := range []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.9.9.9", "169.254.169.254", "172.16.0.1", "172.31.255.255",
		"192.0.2.1", "192.168.1.1", "198.18.0.1", "198.19.255.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "255.255.255.255",
		"::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1",
		"2002:a00:1::", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1",
	} {
		g := New(Config{Resolve: resolver(a), Timeout: 100 * time.Millisecond})
		_, err := g.Dial(context.Background(), isle.NewID(), "api.example.com", 9, prefixes("192.0.0.0/30"))
		var e *isle.Error
		if isle.CodeOf(err) != isle.Refused || !errors.As(err, &e) || e.Hint == "" || !strings.Contains(err.Error(), "api.example.com:9") {
			t.Errorf("%s: %v; want it refused, with what to do", a, err)
		}
	}
}

func TestAPublicAddressIsNotGuarded(t *testing.T) {
	g := New(Config{Own: func(netip.Addr) (bool, error) { return false, nil }})
	for _, a := range []string{"1.1.1.1", "172.32.0.1", "100.128.0.1", "198.20.0.1", "2606:4700::1111", "2a00:1450::1"} {
		if reason, err := g.guard(netip.MustParseAddr(a)); reason != "" || err != nil {
			t.Errorf("%s is called %s, %v", a, reason, err)
		}
	}
}

func TestThisMachineIsRefusedByItsPublicAddressToo(t *testing.T) {
	g := New(Config{Resolve: resolver("1.1.1.1"), Own: func(a netip.Addr) (bool, error) { return a == netip.MustParseAddr("1.1.1.1"), nil }})
	if _, err := g.Dial(context.Background(), isle.NewID(), "api.example.com", 9, nil); isle.CodeOf(err) != isle.Refused {
		t.Errorf("%v, want it refused", err)
	}
	for a, want := range map[string]bool{"127.0.0.1": true, "127.8.8.8": true, "192.0.2.1": false} {
		if own, err := deliveredHere(netip.MustParseAddr(a)); own != want || err != nil {
			t.Errorf("%s: delivered here: %v, %v; want %v", a, own, err, want)
		}
	}
}

func server(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello")
			c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func TestTheAddressThatWasCheckedIsDialed(t *testing.T) {
	port := server(t)
	asked := 0
	rebinding := func(context.Context, string) ([]netip.Addr, error) {
		asked++
		if asked > 1 {
			return []netip.Addr{netip.MustParseAddr("127.0.0.2")}, nil
		}
		return []netip.Addr{netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("127.0.0.1")}, nil
	}
	g := New(Config{Resolve: rebinding})
	id := isle.NewID()
	c, err := g.Dial(context.Background(), id, "api.example.com", port, prefixes("127.0.0.1/32"))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.RemoteAddr().(*net.TCPAddr).IP.String(); got != "127.0.0.1" || asked != 1 {
		t.Errorf("dialed %s after asking %d times", got, asked)
	}
	if b, err := io.ReadAll(c); string(b) != "hello" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	c.Close()
	if _, err := g.Dial(context.Background(), id, "api.example.com", port, prefixes("127.0.0.1/32")); isle.CodeOf(err) != isle.Refused {
		t.Errorf("after the name moved: %v, want it refused", err)
	}
}

func TestAnAddressNamesItself(t *testing.T) {
	port := server(t)
	c, err := New(Config{}).Dial(context.Background(), isle.NewID(), "127.0.0.1", port, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestWhatDoesNotAnswerIsUnavailable(t *testing.T) {
	g := New(Config{Resolve: func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }})
	if _, err := g.Dial(context.Background(), isle.NewID(), "gone.example.com", 80, nil); isle.CodeOf(err) != isle.Unavailable {
		t.Errorf("a name that does not resolve: %v", err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	id := isle.NewID()
	if _, err := g.Dial(context.Background(), id, "127.0.0.1", port, nil); isle.CodeOf(err) != isle.Unavailable {
		t.Errorf("a port without a server: %v", err)
	}
}

// What no role lifts, no grant lifts either: not the one that names the
// address, nor the one whose host is the address, nor another form of it.
func TestWhatIsClosedIsNotDialedWhateverTheGrantSays(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	me := isle.NewID()
	closed := func(instance isle.ID, to netip.AddrPort) string {
		if instance == me && to.Addr().IsLoopback() && int(to.Port()) == port {
			return "of another stage"
		}
		return ""
	}
	for _, answer := range []string{"127.0.0.1", "::ffff:127.0.0.1"} {
		g := New(Config{Resolve: resolver(answer), Closed: closed})
		for _, host := range []string{"127.0.0.1", "any.example"} {
			if _, err := g.Dial(t.Context(), me, host, port, prefixes("127.0.0.0/8")); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "of another stage") {
				t.Errorf("%s at %s: %v", host, answer, err)
			}
			c, err := g.Dial(t.Context(), isle.NewID(), host, port, prefixes("127.0.0.0/8"))
			if err != nil {
				t.Errorf("somebody else: %v", err)
				continue
			}
			c.Close()
		}
	}
}
