package server

import (
	"net"
	"net/netip"
	"testing"
)

func TestTheServerKnowsWhereItListens(t *testing.T) {
	h := adopt()
	port := map[string]uint16{}
	for key, address := range map[string]string{"one": "127.0.0.1:0", "all": ":0", "unix": ""} {
		l, err := h.Listen(key, func() (net.Listener, error) {
			if address == "" {
				return net.Listen("unix", t.TempDir()+"/s")
			}
			return net.Listen("tcp", address)
		})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if a, ok := l.Addr().(*net.TCPAddr); ok {
			port[key] = uint16(a.Port)
		}
	}
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	at := func(address string, port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr(address), port)
	}
	for to, want := range map[netip.AddrPort]bool{
		at("127.0.0.1", port["one"]):                   true,
		at("::ffff:127.0.0.1", port["one"]):            true,
		at("127.0.0.2", port["one"]):                   false,
		at("127.0.0.2", port["all"]):                   true,
		at("::1", port["all"]):                         true,
		netip.MustParseAddrPort(other.Addr().String()): false,
	} {
		if h.listens(to) != want {
			t.Errorf("%s: want %v", to, want)
		}
	}
}
