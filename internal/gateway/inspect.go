package gateway

import (
	"context"
	"net"
	"net/netip"
	"strconv"

	"isle"
	"isle/internal/approval"
	"isle/internal/policy"
)

// kindEgress is what a door calls the kind of inspected egress, and its protocol
// in Config.Protocols. No connection is of it.
const kindEgress = approval.Egress

// An Egress is a destination that an environment was granted.
type Egress struct {
	Host    string
	Port    int
	Allowed []netip.Prefix // networks that are not public, to which Host may resolve
}

// name is the destination as policy names it.
func (e *Egress) name() string { return net.JoinHostPort(e.Host, strconv.Itoa(e.Port)) }

// Inspect lets an environment use a destination that its grant says is
// inspected, as Serve does a connection: TLS ends here, and each request is
// decided and recorded. The protocol is the one called "egress".
func (g *Gateway) Inspect(ctx context.Context, c Caller, e Egress, client net.Conn) error {
	return g.serve(ctx, c, e.name(), &e, client)
}

// Egress is the destination of a door that Inspect opened; false of connections.
func (d *Door) Egress() (Egress, bool) {
	if d.egress == nil {
		return Egress{}, false
	}
	return *d.egress, true
}

// find is what the door leads to, under a policy. A destination is no connection
// of the policy's: it looks like one, of which nothing is said.
func (d *Door) find(set *policy.Set) (policy.Connection, bool) {
	if d.egress == nil {
		return set.Connection(d.name)
	}
	return policy.Connection{Name: d.name, Kind: kindEgress, Address: d.name, Stage: d.caller.Place.Stage}, true
}

// opening is the action that the door is opened by.
func (d *Door) opening() isle.Action {
	if d.egress == nil {
		return isle.ActionConnectionOpen
	}
	return isle.ActionEgressConnect
}

// what is what a human is asked to let be opened.
func (d *Door) what() string {
	if d.egress == nil {
		return "open a session of connection " + d.name
	}
	return "connect to " + d.name
}
