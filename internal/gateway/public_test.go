package gateway

import (
	"net/netip"
	"strings"
	"testing"

	"isle"
)

// Where a build goes is said by whoever writes its files, so that an address that
// names itself is no permission, in whatever form.
func TestWhoAsksForNoGrantReachesPublicAddressesAlone(t *testing.T) {
	port := server(t)
	for _, host := range []string{
		"127.0.0.1", "::ffff:127.0.0.1", "::1", "0.0.0.0", "10.0.0.1", "169.254.169.254", "192.168.1.1", "198.18.0.1", "203.0.113.7", "fe80::1", "fd00::1",
		"64:ff9b::7f00:1", "224.0.0.1", "localhost",
	} {
		c, err := New(Config{}).DialPublic(t.Context(), host, port, nil)
		if err == nil {
			c.Close()
		}
		if isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "--build-network") {
			t.Errorf("%s: %v", host, err)
		}
	}
	g := New(Config{Resolve: resolver("10.0.0.1", "127.0.0.1")})
	c, err := g.DialPublic(t.Context(), "any.example", port, prefixes("127.0.0.0/8"))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	own := New(Config{Resolve: resolver("127.0.0.1"), Listening: func(to netip.AddrPort) bool { return int(to.Port()) == port }})
	if _, err := own.DialPublic(t.Context(), "any.example", port, prefixes("127.0.0.0/8")); isle.CodeOf(err) != isle.Refused {
		t.Errorf("where the server itself listens: %v", err)
	}
	for _, host := range []string{"0.0.0.0", "::", "::ffff:0.0.0.0"} { // which is loopback
		if _, err := g.DialPublic(t.Context(), host, port, prefixes("0.0.0.0/0", "::/0")); isle.CodeOf(err) != isle.Refused {
			t.Errorf("%s, of networks that may be reached: %v", host, err)
		}
	}
}
