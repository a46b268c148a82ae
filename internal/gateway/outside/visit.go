package outside

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"isle"
	"isle/internal/gateway"
	"isle/internal/identity"
)

// A visit is one connection of a visitor, from before it is known what comes. It
// is the net.Conn below TLS.
type visit struct {
	net.Conn
	l      *Listener
	source string    // an address without its port
	secure *tls.Conn // over it; nil: not by this listener
	ctx    context.Context
	cancel context.CancelCauseFunc

	first  []byte // what was looked at and not read; of one goroutine at a time
	closed sync.Once

	mu        sync.Mutex // guards what follows
	standings []*identity.Standing
	doors     map[doorKey]*door
	over      bool
}

func newVisit(l *Listener, conn net.Conn) *visit {
	v := &visit{Conn: conn, l: l, source: sourceOf(conn.RemoteAddr()), doors: map[doorKey]*door{}}
	v.ctx, v.cancel = context.WithCancelCause(l.ctx)
	return v
}

// peek looks at the first byte.
func (v *visit) peek() (byte, error) {
	var b [1]byte
	if _, err := v.Conn.Read(b[:]); err != nil {
		return 0, err
	}
	v.first = b[:]
	return b[0], nil
}

// Read implements net.Conn.
func (v *visit) Read(p []byte) (int, error) {
	if len(v.first) > 0 && len(p) > 0 {
		n := copy(p, v.first)
		v.first = v.first[n:]
		return n, nil
	}
	return v.Conn.Read(p)
}

// Close implements net.Conn. It ends all that the visit opened.
func (v *visit) Close() (err error) {
	v.closed.Do(func() {
		err = v.Conn.Close()
		v.end(errLeft)
		v.l.leave(v)
	})
	return err
}

var errLeft = isle.Errorf(isle.Unavailable, "the client left")

// end ends the sessions of a visit, and stops following who opened them.
func (v *visit) end(cause error) {
	v.cancel(cause)
	v.mu.Lock()
	standings, doors := v.standings, v.doors
	v.standings, v.doors, v.over = nil, nil, true
	v.mu.Unlock()
	for _, d := range doors {
		d.transport.CloseIdleConnections()
	}
	for _, s := range standings {
		s.Close()
	}
}

// prove says who shows a credential. Beyond a rate, a source whose credentials do
// not count is told to wait; one that counts is let in all the while.
func (v *visit) prove(ctx context.Context, credential string) (identity.Subject, error) {
	c := &v.l.config
	if claimed := identity.Claimed(credential, v.certificates()); claimed != "" {
		err := isle.Errorf(isle.Refused, "a workload's credential counts only inside its own airlock").
			WithHint("what runs outside proves itself as a machine: see `isle identity create --help`")
		e := identity.Unproven(err.Message, v.source).With("claimed", claimed)
		e.Rule = identity.WorkloadRule
		c.Refused(e, v.source)
		return identity.Subject{}, v.deny(err)
	}
	s, err := c.Credentials.Authenticate(ctx, credential, v.source)
	switch {
	case err == nil:
	case isle.CodeOf(err) == isle.Refused, isle.CodeOf(err) == isle.Invalid:
		return identity.Subject{}, v.deny(err)
	default:
		c.Slog.Error("gateway: a credential could not be looked at", "source", v.source, "err", err)
		return identity.Subject{}, isle.Errorf(isle.Unavailable, "the gateway cannot say now who asks").WithHint("try again; see the server's log")
	}
	if s.Actor.Kind == isle.Human {
		groups, member := c.Person(s.Actor.Name)
		if !member {
			return identity.Subject{}, errNoMember
		}
		s.Groups = groups
	}
	if !c.Proven(v.Conn) {
		return identity.Subject{}, isle.Errorf(isle.Exhausted, "the gateway has as many connections as it takes").WithHint("close some, or try again later")
	}
	return s, nil
}

var (
	errNoMember  = isle.Errorf(isle.Refused, "only root and members of the server's group may speak to it")
	errRegrouped = isle.Errorf(isle.Refused, "your groups of the operating system have changed").WithHint("connect again")
)

// deny is err, or that the source is to wait.
func (v *visit) deny(err error) error {
	if !v.l.config.Try(v.source) {
		return isle.Errorf(isle.Exhausted, "too many credentials from %s that count for nothing", v.source).WithHint("wait some seconds")
	}
	return err
}

// certificates are those that the visitor showed.
func (v *visit) certificates() []*x509.Certificate {
	if v.secure == nil {
		return nil
	}
	return v.secure.ConnectionState().PeerCertificates
}

// caller is a subject as who opens a connection. Whether they still are who they
// were is followed until the visit ends.
func (v *visit) caller(s identity.Subject) gateway.Caller { return v.callerBy(s, v.follow(s)) }

func (v *visit) callerBy(s identity.Subject, standing *identity.Standing) gateway.Caller {
	return gateway.Caller{
		Actor: s.Actor, Owner: s.Owner.String(), Groups: s.Groups, Stage: s.Stage, Source: v.source, Key: s.Key,
		Check: standing.Check, Over: standing.Over,
	}
}

// follow follows whether a subject counts.
func (v *visit) follow(s identity.Subject) *identity.Standing {
	c := &v.l.config
	var look func() error
	if s.Actor.Kind == isle.Human {
		look = func() error {
			groups, member := c.Person(s.Actor.Name)
			switch {
			case !member:
				return errNoMember
			case !slices.Equal(groups, s.Groups):
				return errRegrouped
			}
			return nil
		}
	}
	standing := identity.Stand(func() error {
		if !s.Expires.IsZero() && !c.Now().Before(s.Expires) {
			return isle.Errorf(isle.Refused, "the credential has expired").WithHint("connect again with another")
		}
		return c.Credentials.Check(s)
	}, c.Credentials.Over, look)
	v.mu.Lock()
	over := v.over
	if !over {
		v.standings = append(v.standings, standing)
	}
	v.mu.Unlock()
	if over {
		standing.Close()
	}
	return standing
}

// unfollow ends the following of one, before the visit ends.
func (v *visit) unfollow(standing *identity.Standing) {
	v.mu.Lock()
	v.standings = slices.DeleteFunc(v.standings, func(s *identity.Standing) bool { return s == standing })
	v.mu.Unlock()
	standing.Close()
}

// sourceOf is an address without its port, and without what only looks different.
func sourceOf(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return "?"
	}
	return ap.Addr().Unmap().WithZone("").String()
}

// A queue is a net.Listener of connections that are put into it.
type queue struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newQueue() *queue { return &queue{conns: make(chan net.Conn), done: make(chan struct{})} }

// put reports whether somebody took the connection.
func (q *queue) put(c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.done:
		return false
	}
}

// Accept implements net.Listener.
func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// Addr implements net.Listener.
func (q *queue) Addr() net.Addr { return &net.TCPAddr{} }

// idle is how long a session of HTTP is kept for a next request.
const idle = 90 * time.Second
