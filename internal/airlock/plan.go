package airlock

import (
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"isle"
	"isle/internal/environment"
	"isle/internal/initproto"
	"isle/internal/spec"
)

var (
	homeAddress = netip.MustParseAddrPort(initproto.HomeAddress)
	dnsAddress  = netip.MustParseAddrPort(Nameserver + ":53")

	// synthetic is the benchmarking range of RFC 2544: never in the internet,
	// and so never what a grant means. 198.18.1.0 to 198.18.255.254 stand for
	// granted names.
	synthetic = netip.MustParsePrefix("198.18.0.0/15")
)

const (
	firstName = 198<<24 | 18<<16 | 1<<8
	names     = 255<<8 - 1 // how many addresses there are for names
	// MaxGrants is how many destinations an environment can have, each port of a
	// connection being one.
	MaxGrants = 512
)

// A grant is one destination outside that an environment may reach, or one port
// of a connection.
type grant struct {
	host    string
	port    int
	allowed []netip.Prefix
	inspect bool           // requests are looked into
	address netip.AddrPort // where it is inside
	// connection is the kind of the connection that host leads to; "" of egress.
	// name is what it is called outside.
	connection, stage, name string
}

// socket is the name of the grant's socket.
func (g *grant) socket() string {
	if g.connection != "" {
		return "connection/" + g.address.String()
	}
	return "egress/" + g.address.String()
}

func (g *grant) String() string { return g.host + ":" + strconv.Itoa(g.port) }

// door is the destination that is counted: all ports of a connection are one.
func (g *grant) door() string {
	if g.connection != "" {
		return g.name
	}
	return g.String()
}

// A plan is what one airlock opens. It does not change.
type plan struct {
	grants []*grant
	names  map[string]netip.Addr // granted DNS names, lower case without the last dot

	bySocket map[string]*grant
}

// find is the address that a granted name has inside.
func (p *plan) find(name string) (netip.Addr, bool) {
	a, ok := p.names[name]
	return a, ok
}

// newPlan checks what is asked for, and gives each name an address: by the
// name's hash, so that it stays the same from launch to launch and from one
// environment to the next.
func newPlan(grants environment.Grants) (*plan, error) {
	if n := len(grants.Egress) + len(grants.Connections); n > MaxGrants {
		return nil, isle.Errorf(isle.Invalid, "egress and uses have %d destinations, at most %d can be granted to one environment", n, MaxGrants)
	}
	p := &plan{names: make(map[string]netip.Addr), bySocket: make(map[string]*grant)}
	seen := make(map[string]bool)
	hosts := make(map[string]bool) // of egress
	for _, e := range grants.Egress {
		g, err := newGrant(e)
		if err != nil {
			return nil, err
		}
		hosts[g.host] = true
		if !seen[g.String()] {
			seen[g.String()] = true
			p.grants = append(p.grants, g)
		}
	}
	for _, c := range grants.Connections {
		if hosts[c.Inside()] {
			return nil, isle.Errorf(isle.Invalid, "connection %s has the name of an egress host, and a name means one thing inside", c.Inside())
		}
		for _, port := range c.Ports {
			g, err := newDoor(c, port)
			if err != nil {
				return nil, err
			}
			if !seen[g.String()] {
				seen[g.String()] = true
				p.grants = append(p.grants, g)
			}
		}
	}
	if len(p.grants) > MaxGrants {
		return nil, isle.Errorf(isle.Invalid, "the connections have %d ports, at most %d can be granted to one environment", len(p.grants), MaxGrants)
	}
	var sorted []string
	for _, g := range p.grants {
		if !g.address.Addr().IsValid() && !slices.Contains(sorted, g.host) {
			sorted = append(sorted, g.host)
		}
	}
	slices.Sort(sorted)
	taken := make(map[uint32]bool)
	for _, name := range sorted {
		h := fnv.New32a()
		h.Write([]byte(name))
		at := h.Sum32() % names
		for taken[at] {
			at = (at + 1) % names
		}
		taken[at] = true
		n := firstName + at
		p.names[name] = netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	}
	for _, g := range p.grants {
		if a, ok := p.names[g.host]; ok {
			g.address = netip.AddrPortFrom(a, uint16(g.port))
		}
		p.bySocket[g.socket()] = g
	}
	return p, nil
}

// leadsElsewhere reports whether a socket is another connection's in the next plan.
func (p *plan) leadsElsewhere(next *plan, socket string) bool {
	is, will := p.bySocket[socket], next.bySocket[socket]
	return is != nil && will != nil && is.name != will.name
}

// newDoor checks one port of a connection. Its name comes from a policy, and
// is a label of DNS.
func newDoor(c environment.ConnectionDoor, port int) (*grant, error) {
	switch {
	case !isle.ValidName(c.Inside()) || localName(c.Inside()) || c.Kind == "":
		return nil, isle.Errorf(isle.Invalid, "connection %q: the name can't be found inside", c.Inside())
	case port < 1 || port > 65535:
		return nil, isle.Errorf(isle.Invalid, "connection %s: port %d is not between 1 and 65535", c.Name, port)
	}
	return &grant{host: c.Inside(), name: c.Name, port: port, connection: c.Kind, stage: c.Stage}, nil
}

// newGrant checks one destination. Its address is set if it names itself.
func newGrant(e spec.Egress) (*grant, error) {
	g := &grant{host: strings.ToLower(strings.TrimSuffix(e.Host, ".")), port: e.Port, inspect: e.Inspect}
	if e.Port < 1 || e.Port > 65535 {
		return nil, isle.Errorf(isle.Invalid, "egress %s: port %d is not between 1 and 65535", e.Host, e.Port)
	}
	for _, s := range e.Addresses {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			if a, aerr := netip.ParseAddr(s); aerr == nil {
				p, err = netip.PrefixFrom(a, a.BitLen()), nil
			}
		}
		if err != nil {
			return nil, isle.Errorf(isle.Invalid, "egress %s: %q is not a network: want an address and a length, as 10.1.0.0/16", g, s)
		}
		g.allowed = append(g.allowed, p.Masked())
	}
	a, err := netip.ParseAddr(g.host)
	switch {
	case err != nil && !validName(g.host):
		return nil, isle.Errorf(isle.Invalid, "egress %q: want a DNS name or an IPv4 address", e.Host)
	case err != nil && localName(g.host):
		return nil, isle.Errorf(isle.Invalid, "egress %s: an environment's localhost is its own", g).
			WithHint("to reach a service of the host, grant another name of it, with addresses: [127.0.0.1/32]")
	case err != nil:
		return g, nil
	case !a.Is4():
		return nil, isle.Errorf(isle.Invalid, "egress %s: environments speak IPv4; grant a DNS name instead", g)
	case a.IsLoopback():
		return nil, isle.Errorf(isle.Invalid, "egress %s: an environment's loopback addresses are its own", g).
			WithHint("to reach a service of the host, grant a name of it, with addresses: [127.0.0.1/32]")
	case synthetic.Contains(a) || a.IsMulticast() || a.As4()[0] == 0 || a.As4()[0] >= 240:
		return nil, isle.Errorf(isle.Invalid, "egress %s: the address is reserved and can't be reached", g)
	}
	g.address = netip.AddrPortFrom(a, uint16(g.port))
	return g, nil
}

// validName reports whether s, in lower case, can be a host's DNS name (RFC
// 1123, and underscores as they occur).
func validName(s string) bool {
	if s == "" || len(s) > 253 || !utf8.ValidString(s) {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range label {
			if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return true
}

// localName reports whether s is localhost or below it (RFC 6761, section 6.3).
func localName(s string) bool { return s == "localhost" || strings.HasSuffix(s, ".localhost") }
