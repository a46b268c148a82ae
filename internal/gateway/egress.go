package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"isle"
)

// Dial connects an instance to a host (a DNS name or an address) and port that
// it was granted. An address that the host resolves to is dialed if it is
// public or within allowed; a host that is an address names itself. The error's
// code is isle.Refused where no address may be dialed, isle.Unavailable where
// the name does not resolve or nothing answers.
func (g *Gateway) Dial(ctx context.Context, instance isle.ID, host string, port int, allowed []netip.Prefix) (net.Conn, error) {
	literal, _ := netip.ParseAddr(host)
	named := func(a netip.Addr) bool { return a == literal || within(allowed, a) }
	remedy := func(a netip.Addr) string {
		return fmt.Sprintf("if that is meant, name it in the grant: {host: %s, port: %d, addresses: [%s/%d]}", host, port, a, a.BitLen())
	}
	return g.dial(ctx, instance, host, port, named, remedy)
}

// DialPublic connects to a host and port that nobody granted: what is not public
// and not within allowed is refused, an address that is its own name too, and so
// is where this server itself listens, and the address of no one machine, which is
// this one. Errors are as of Dial.
func (g *Gateway) DialPublic(ctx context.Context, host string, port int, allowed []netip.Prefix) (net.Conn, error) {
	named := func(a netip.Addr) bool {
		return within(allowed, a) && !a.Unmap().IsUnspecified() && !g.config.Listening(netip.AddrPortFrom(a, uint16(port)))
	}
	return g.dial(ctx, "", host, port, named, func(netip.Addr) string {
		return "whoever runs the server can allow a network that is not public: isle server --build-network"
	})
}

// dial connects to the first address of a host that is public or named, and may
// be reached. An instance of "" is none.
func (g *Gateway) dial(ctx context.Context, instance isle.ID, host string, port int, named func(netip.Addr) bool, remedy func(netip.Addr) string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, g.config.Timeout)
	defer cancel()
	addresses, err := g.resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	var open []netip.Addr
	var refusal error
	for _, a := range addresses {
		reason, err := g.guard(a)
		if err != nil {
			return nil, isle.Errorf(isle.Internal, "egress to %s: could not tell whether %s is this machine: %w", host, a, err)
		}
		if reason != "" && !named(a) {
			refusal = isle.Errorf(isle.Refused, "egress to %s:%d is refused: it resolves to %s, %s", host, port, a, reason).WithHint("%s", remedy(a))
			continue
		}
		if reason := g.config.Closed(instance, netip.AddrPortFrom(a, uint16(port))); reason != "" {
			refusal = isle.Errorf(isle.Refused, "egress to %s:%d is refused: it is %s, %s", host, port, a, reason)
			continue
		}
		open = append(open, a)
	}
	if len(open) == 0 {
		return nil, refusal
	}
	c, err := dialFirst(ctx, host, port, open)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// resolve returns at least one address, IPv4 first, none twice.
func (g *Gateway) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	all, err := g.config.Resolve(ctx, host)
	if err == nil && len(all) == 0 {
		err = errors.New("no address")
	}
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "egress to %s: the name does not resolve: %w", host, err)
	}
	var v4, v6 []netip.Addr
	seen := make(map[netip.Addr]bool)
	for _, a := range all {
		a = a.Unmap()
		if seen[a] {
			continue
		}
		seen[a] = true
		if a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	return append(v4, v6...), nil
}

// dialFirst dials one address after the other, each for its share of the time
// that is left, and returns the first connection.
func dialFirst(ctx context.Context, host string, port int, addresses []netip.Addr) (*net.TCPConn, error) {
	var d net.Dialer
	d.SetMultipathTCP(false)
	var failure error
	for i, a := range addresses {
		share := ctx
		if deadline, ok := ctx.Deadline(); ok {
			var cancel context.CancelFunc
			share, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(addresses)-i))
			defer cancel()
		}
		c, err := d.DialContext(share, "tcp", netip.AddrPortFrom(a, uint16(port)).String())
		if err == nil {
			return c.(*net.TCPConn), nil
		}
		if failure == nil {
			failure = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, isle.Errorf(isle.Unavailable, "egress to %s:%d: no connection: %w", host, port, failure)
}
