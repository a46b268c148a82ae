package airlock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/environment"
	"isle/internal/gateway"
	"isle/internal/spec"
)

// A house is an Airlocks with a gateway of its own and a server outside.
type house struct {
	*Airlocks
	t       testing.TB
	config  Config
	port    int // of the echo server, on 127.0.0.1 outside
	homes   chan net.Conn
	mu      sync.Mutex
	refused []Refusal
	connect func(ctx context.Context, instance isle.ID, name string, port int, conn net.Conn) error // set before a door is used
}

func newHouse(t testing.TB) *house {
	t.Helper()
	h := &house{t: t, homes: make(chan net.Conn, 2000)}
	h.port = echoServer(t)
	g := gateway.New(gateway.Config{Resolve: func(_ context.Context, host string) ([]netip.Addr, error) {
		if strings.HasPrefix(host, "nowhere.") {
			return nil, errors.New("no such host")
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}})
	h.config = Config{
		Dir:  filepath.Join(t.TempDir(), "netns"),
		Home: func(_ isle.ID, c net.Conn) { h.homes <- c },
		Refused: func(r Refusal) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.refused = append(h.refused, r)
		},
		Egress: g,
		Connect: func(ctx context.Context, instance isle.ID, name string, port int, conn net.Conn) error {
			return h.connect(ctx, instance, name, port, conn)
		},
	}
	h.Airlocks = h.start(h.config)
	t.Cleanup(func() {
		ids, err := h.List(context.Background())
		if err != nil {
			t.Error(err)
		}
		for _, id := range ids {
			if err := h.Close(context.Background(), id); err != nil {
				t.Error(err)
			}
		}
		h.Stop()
		if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), h.config.Dir) {
			t.Errorf("a mount is left: %v\n%s", err, mounts)
		}
	})
	return h
}

func (h *house) start(c Config) *Airlocks {
	h.t.Helper()
	a, err := New(c)
	if err != nil {
		h.t.Fatal(err)
	}
	return a
}

// granted is a grant of the echo server under a name.
func (h *house) granted(name string) spec.Egress {
	return spec.Egress{Host: name, Port: h.port, Addresses: []string{"127.0.0.0/8"}}
}

func (h *house) enter(egress ...spec.Egress) (isle.ID, string) {
	h.t.Helper()
	id := isle.NewID()
	ns, err := h.Open(context.Background(), id, granting(egress...))
	if err != nil {
		h.t.Fatal(err)
	}
	return id, ns
}

// door waits for a door of a state.
func (h *house) door(id isle.ID, destination, protocol, state string) environment.Door {
	h.t.Helper()
	var all []environment.Door
	for range 300 {
		all = h.Doors(id)
		for _, d := range all {
			if d.Destination == destination && d.Protocol == protocol && d.State == state {
				return d
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	h.t.Fatalf("no %s door %s %s; there are %+v", state, protocol, destination, all)
	return environment.Door{}
}

// echoServer serves on 127.0.0.1 until the test ends: what comes goes back.
func echoServer(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				io.Copy(c, c)
				c.(*net.TCPConn).CloseWrite()
			})
		}
	})
	return l.Addr().(*net.TCPAddr).Port
}

// inside runs f in the sandbox's namespace. What f does must stay on its
// goroutine.
func inside(t testing.TB, ns string, f func() error) {
	t.Helper()
	if err := within(ns, f); err != nil {
		t.Fatal(err)
	}
}

var dialer = net.Dialer{Timeout: 5 * time.Second}

// lookup asks the airlock's DNS from inside.
func lookup(network, name string, kind uint16) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	c := &dns.Client{Net: network, Timeout: 5 * time.Second}
	r, _, err := c.Exchange(q, dnsAddress.String())
	return r, err
}

func addressOf(name string) (string, error) {
	r, err := lookup("udp", name, dns.TypeA)
	if err != nil {
		return "", err
	}
	if len(r.Answer) != 1 {
		return "", fmt.Errorf("%s: %d answers, %s", name, len(r.Answer), dns.RcodeToString[r.Rcode])
	}
	return r.Answer[0].(*dns.A).A.String(), nil
}

func echo(address string) error {
	c, err := dialer.Dial("tcp4", address)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	back, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if string(back) != "hello" {
		return fmt.Errorf("echo said %q", back)
	}
	return nil
}

func TestAGrantedNameIsReachedThroughTheGateway(t *testing.T) {
	h := newHouse(t)
	id, ns := h.enter(h.granted("api.example.com"))
	inside(t, ns, func() error {
		a, err := addressOf("API.example.com")
		if err != nil {
			return err
		}
		for range 3 {
			if err := echo(hostPort(a, h.port)); err != nil {
				return err
			}
		}
		return nil
	})
	d := h.door(id, fmt.Sprintf("api.example.com:%d", h.port), "tcp", "open")
	if d.Count != 3 {
		t.Errorf("counted %d connections, want 3", d.Count)
	}
}

func TestAGrantedPrivateAddressStillNeedsItsNetworkNamed(t *testing.T) {
	h := newHouse(t)
	id, ns := h.enter(spec.Egress{Host: "api.example.com", Port: h.port})
	inside(t, ns, func() error {
		a, err := addressOf("api.example.com")
		if err != nil {
			return err
		}
		if err := echo(hostPort(a, h.port)); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ENOTCONN) {
			return fmt.Errorf("a loopback address was dialed: %v", err)
		}
		return nil
	})
	d := h.door(id, fmt.Sprintf("api.example.com:%d", h.port), "tcp", "refused")
	if !strings.Contains(d.Reason, "loopback") {
		t.Errorf("reason %q does not say why", d.Reason)
	}
}

func TestWhatIsNotGrantedIsRefusedAtOnceAndRecorded(t *testing.T) {
	h := newHouse(t)
	id, ns := h.enter(h.granted("api.example.com"))
	var synthetic string
	inside(t, ns, func() error {
		var err error
		if synthetic, err = addressOf("api.example.com"); err != nil {
			return err
		}
		for _, a := range []string{"203.0.113.9:80", "169.254.169.254:80", "198.51.100.1:443", "198.19.255.1:22", synthetic + ":80", "198.18.0.1:2"} {
			if _, err := dialer.Dial("tcp4", a); !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("dial %s: %v, want connection refused", a, err)
			}
		}
		for _, a := range []string{"203.0.113.9:53", "198.18.0.1:54"} {
			c, err := dialer.Dial("udp4", a)
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(5 * time.Second))
			c.Write([]byte("x"))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("datagram to %s: %v, want port unreachable", a, err)
			}
		}
		return nil
	})
	for _, want := range []door{{"203.0.113.9:80", "tcp"}, {"169.254.169.254:80", "tcp"}, {"198.19.255.1:22", "tcp"}, {synthetic + ":80", "tcp"}, {"203.0.113.9:53", "udp"}} {
		if d := h.door(id, want.destination, want.protocol, "refused"); d.Count != 1 || d.First.IsZero() || d.Reason == "" {
			t.Errorf("%+v: want one attempt with a time and a reason", d)
		}
	}
	told := func() int {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.refused)
	}
	for range 300 {
		if told() == 8 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d refusals were told, want 8", told())
}

func TestDNSKnowsGrantedNamesOnly(t *testing.T) {
	h := newHouse(t)
	id, ns := h.enter(h.granted("api.example.com"))
	inside(t, ns, func() error {
		for _, network := range []string{"udp", "tcp"} {
			for _, c := range []struct {
				name    string
				kind    uint16
				rcode   int
				answers int
			}{
				{"api.example.com", dns.TypeA, dns.RcodeSuccess, 1},
				{"api.example.com", dns.TypeAAAA, dns.RcodeSuccess, 0},
				{"api.example.com", dns.TypeTXT, dns.RcodeSuccess, 0},
				{"localhost", dns.TypeA, dns.RcodeSuccess, 1},
				{"localhost", dns.TypeAAAA, dns.RcodeSuccess, 1},
				{"secret-bytes.evil.example", dns.TypeA, dns.RcodeNameError, 0},
				{"www.api.example.com", dns.TypeA, dns.RcodeNameError, 0},
			} {
				r, err := lookup(network, c.name, c.kind)
				if err != nil {
					return fmt.Errorf("%s %s: %w", network, c.name, err)
				}
				if r.Rcode != c.rcode || len(r.Answer) != c.answers {
					return fmt.Errorf("%s %s %s: %s with %d answers", network, c.name, dns.TypeToString[c.kind], dns.RcodeToString[r.Rcode], len(r.Answer))
				}
			}
		}
		return nil
	})
	if d := h.door(id, "dns:secret-bytes.evil.example", "dns", "refused"); d.Count != 2 {
		t.Errorf("counted %d questions, want 2", d.Count)
	}
}

func TestAnEnvironmentReachesNeitherItsHostNorItsNeighbour(t *testing.T) {
	h := newHouse(t)
	_, here := h.enter()
	_, there := h.enter()
	var neighbour net.Listener
	inside(t, there, func() (err error) {
		neighbour, err = net.Listen("tcp4", "0.0.0.0:80") // also: ports below 1024 are anyone's
		return err
	})
	defer neighbour.Close()
	targets := []string{fmt.Sprintf("127.0.0.1:%d", h.port), "198.19.255.2:80", "198.19.255.1:80"}
	if own, err := net.InterfaceAddrs(); err == nil {
		for _, a := range own {
			if n := a.(*net.IPNet); n.IP.To4() != nil {
				targets = append(targets, hostPort(n.IP.String(), h.port))
			}
		}
	}
	inside(t, here, func() error {
		for _, a := range targets {
			if _, err := dialer.Dial("tcp4", a); !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("dial %s: %v, want connection refused", a, err)
			}
		}
		return nil
	})
}

func TestIPv6AndMulticastLeadNowhereAndLoopbackWorks(t *testing.T) {
	h := newHouse(t)
	_, ns := h.enter()
	inside(t, ns, func() error {
		for _, a := range []string{"[2001:db8::1]:80", "[fe80::1]:80"} {
			if c, err := dialer.Dial("tcp6", a); err == nil {
				c.Close()
				return fmt.Errorf("dialed %s", a)
			}
		}
		if c, err := dialer.Dial("udp4", "224.0.0.251:5353"); err == nil {
			c.Close()
			return errors.New("there is a way to multicast")
		}
		l, err := net.Listen("tcp6", "[::1]:443")
		if err != nil {
			return fmt.Errorf("a server can't bind ::1: %w", err)
		}
		defer l.Close()
		c, err := dialer.Dial("tcp6", "[::1]:443")
		if err != nil {
			return err
		}
		return c.Close()
	})
}

func TestHomeGetsTheConnectionsOfItsInstance(t *testing.T) {
	h := newHouse(t)
	_, ns := h.enter()
	inside(t, ns, func() error {
		c, err := dialer.Dial("tcp4", homeAddress.String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("x"))
		return err
	})
	c := <-h.homes
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

func TestAFloodIsBoundedAndLeavesServiceRunning(t *testing.T) {
	h := newHouse(t)
	id, ns := h.enter(h.granted("api.example.com"))
	const datagrams = 20000
	inside(t, ns, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for i := range datagrams {
			unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Addr: [4]byte{203, 0, 113, byte(i)}, Port: 1000 + i})
		}
		a, err := addressOf("api.example.com")
		if err != nil {
			return err
		}
		return echo(hostPort(a, h.port))
	})
	h.door(id, others, "any", "refused")
	if n := len(h.Doors(id)); n > maxRefused+maxNames+3 {
		t.Errorf("%d doors are kept", n)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.refused); n > maxRefused+maxNames+20 {
		t.Errorf("%d refusals were told", n)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	h := newHouse(t)
	id, ns := h.enter()
	var all []net.Conn
	defer func() {
		for _, c := range all {
			c.Close()
		}
	}()
	reset := false
	inside(t, ns, func() error {
		for range homeConnections + 1 {
			c, err := dialer.Dial("tcp4", homeAddress.String())
			if errors.Is(err, syscall.ECONNRESET) && len(all) == homeConnections {
				reset = true
				return nil
			}
			if err != nil {
				return err
			}
			all = append(all, c)
		}
		last := all[len(all)-1]
		last.SetDeadline(time.Now().Add(5 * time.Second))
		_, err := last.Read(make([]byte, 1))
		reset = errors.Is(err, syscall.ECONNRESET)
		return nil
	})
	if !reset {
		t.Error("the connection beyond the bound was not reset")
	}
	h.door(id, homeAddress.String(), "tcp", "refused")
}

func hostPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// granting are grants of egress alone.
func granting(egress ...spec.Egress) environment.Grants { return environment.Grants{Egress: egress} }
