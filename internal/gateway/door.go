package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"isle"
	"isle/internal/approval"
	"isle/internal/policy"
	"isle/internal/secret"
	"isle/internal/session"
)

// A Door is one caller's session of one connection, as a protocol has it. Its
// methods may be called from any goroutine.
type Door struct {
	gateway    *Gateway
	caller     Caller
	name       string            // of the connection
	egress     *Egress           // of what is inspected; nil of connections
	connection policy.Connection // as it was when the door was opened
	protocol   Protocol
	session    *session.Live
	opened     []*policy.Approval // the rules under which a human approved that it is opened
	behalf     []isle.Actor       // on whose behalf the caller acts, for entries

	ctx      context.Context // ends with the door
	cancel   context.CancelCauseFunc
	starting *time.Timer  // ends the door, unless Started is called
	waiting  atomic.Int32 // requests that wait for an approval

	standing atomic.Pointer[standing]
	over     atomic.Pointer[<-chan struct{}] // the caller's, as watch has it

	deciding sync.Mutex // held over a change of standing
}

// Caller is who came.
func (d *Door) Caller() Caller { return d.caller }

// Connection is what the caller opened, as the policy said when it did. Where
// anything of it but its rules changes, the door ends.
func (d *Door) Connection() policy.Connection { return d.connection }

// Session is what records what passes.
func (d *Door) Session() *session.Live { return d.session }

// Started says that the client is through its handshake.
func (d *Door) Started() { d.starting.Stop() }

// Lifts reports whether an allow rule of the connection, as it stands now, fits
// facts: what masks refuse passes then.
func (d *Door) Lifts(f *policy.Facts) bool {
	s, err := d.current()
	if err != nil {
		return false
	}
	c, ok := s.state.Set.Connection(d.name)
	return ok && c.Lifts(f)
}

// end ends the door; the first cause counts.
func (d *Door) end(cause error) { d.cancel(cause) }

// setConnection takes the connection, and who the caller acts for.
func (d *Door) setConnection(c policy.Connection) {
	d.connection = c
	for _, who := range append(d.caller.Chain, d.caller.Owner) {
		kind, name, ok := strings.Cut(who, ":")
		if ok && (len(d.behalf) == 0 || d.behalf[len(d.behalf)-1].String() != who) {
			d.behalf = append(d.behalf, isle.Actor{Kind: isle.ActorKind(kind), Name: name})
		}
	}
}

// same reports whether what a door was opened to is still what it was. Rules
// are asked of the policy in force, and positions mean nothing.
func same(a, b policy.Connection) bool {
	plain := func(c policy.Connection) policy.Connection {
		c.Rules, c.At = nil, policy.Position{}
		masks := make([]policy.Mask, len(c.Mask))
		for i, m := range c.Mask {
			m.At = policy.Position{}
			masks[i] = m
		}
		c.Mask = masks
		return c
	}
	return reflect.DeepEqual(plain(a), plain(b))
}

// TLS says how to speak to the real thing: with its certificate verified, and
// with the one of the connection's credential where that is of that kind. It is
// nil where the connection says tls: off, and for services of environments,
// whose line is this server's own.
func (d *Door) TLS(ctx context.Context) (*tls.Config, error) {
	c := &d.connection
	if c.TLS.Off || c.Environment != "" {
		return nil, nil
	}
	name := c.TLS.Name
	if name == "" {
		name, _, _ = net.SplitHostPort(c.Address)
	}
	out := &tls.Config{ServerName: name, MinVersion: tls.VersionTLS12}
	if d.egress != nil {
		out.RootCAs = d.gateway.config.Roots
	}
	if c.TLS.CA != "" {
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM([]byte(c.TLS.CA)) {
			return nil, isle.Errorf(isle.Invalid, "connection %s: tls.ca holds no certificate", c.Name)
		}
	}
	if c.Credential.Kind != "certificate" {
		return out, nil
	}
	v, err := d.Secret(ctx)
	if err != nil {
		return nil, err
	}
	defer v.Destroy()
	pair, err := tls.X509KeyPair(v.Reveal(), v.Reveal())
	if err != nil {
		// What the parser says of it may quote what it read.
		return nil, isle.Errorf(isle.Invalid, "connection %s: the secret %s is no certificate with its key", c.Name, c.Credential.Secret).
			WithHint("set it to a PEM file that holds both: `isle secret set %s < FILE`", c.Credential.Secret)
	}
	out.Certificates = []tls.Certificate{pair}
	return out, nil
}

// Secret is the value of the connection's credential, taken now. The protocol
// calls its Destroy soon.
func (d *Door) Secret(ctx context.Context) (secret.Value, error) {
	name := d.connection.Credential.Secret
	switch {
	case name == "":
		return secret.Value{}, isle.Errorf(isle.Invalid, "connection %s has no credential", d.connection.Name)
	case d.gateway.config.Secrets == nil:
		return secret.Value{}, isle.Errorf(isle.Unavailable, "connection %s: secrets can't be had", d.connection.Name)
	}
	v, err := d.gateway.config.Secrets.Resolve(ctx, name)
	if err != nil {
		return secret.Value{}, isle.Errorf(isle.CodeOf(err), "connection %s can't be opened: %w", d.connection.Name, err)
	}
	return v, nil
}

// request is what a human is asked, under a rule.
func (d *Door) request(rule *policy.Approval) approval.Request {
	c, conn := &d.caller, &d.connection
	r := approval.Request{
		Actor: c.Actor, Owner: c.Owner, Chain: c.Chain, Ref: c.Ref, Instance: c.Instance, Source: c.Source,
		Connection: conn.Name, Kind: conn.Kind, Stage: conn.Stage, Address: addressOf(conn), Database: conn.Database, Role: conn.Credential.User,
		Rule: rule.String(), Approvers: rule.Approvers, Quorum: rule.Quorum, Separate: rule.Separate, NoWait: rule.NoWait,
		Timeout: rule.Timeout, ValidFor: rule.ValidFor, Uses: rule.Uses, Notify: rule.Notify,
	}
	if d.session != nil {
		r.Session = d.session.ID()
		i := d.session.Info() // what the protocol found out of the other end
		r.Address, r.Database, r.Role = i.Address, i.Database, i.Role
	}
	return r
}
