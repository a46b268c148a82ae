package server

import (
	"container/list"
	"context"
	"net"
	"sync"

	"isle/internal/api"
	"isle/internal/identity"
)

// Bounds of the connections from elsewhere.
const (
	// maxWaiting is how many are open that have not shown a credential that
	// counts, handshakes included; maxWaitingEach how many of one source. One
	// more ends the oldest of them, so that whoever opens many and does nothing
	// with them is in nobody's way.
	maxWaiting     = 512
	maxWaitingEach = 64
	// maxProven is how many are open that have shown one; maxProvenEach how many
	// of one source. One more is refused.
	maxProven     = 1024
	maxProvenEach = 256
)

// bounds are those of one gate.
type bounds struct{ waiting, waitingEach, proven, provenEach int }

// callers are those of the API from elsewhere.
var callers = bounds{maxWaiting, maxWaitingEach, maxProven, maxProvenEach}

// A gate is a listener that bounds open connections. None waits to be accepted
// for another's sake.
type gate struct {
	net.Listener
	bounds bounds

	mu      sync.Mutex // guards what follows
	waiting list.List  // of *gated, oldest first
	sources map[string]*sourceCount
	proven  int
}

type sourceCount struct{ waiting, proven int }

func newGate(l net.Listener, b bounds) *gate {
	return &gate{Listener: l, bounds: b, sources: map[string]*sourceCount{}}
}

// A gated is a connection through a gate.
type gated struct {
	net.Conn
	gate   *gate
	source string

	// What follows is guarded by the gate's mu.
	place  *list.Element // among those that wait; nil if it is not
	proven bool
	closed bool
}

// Accept implements net.Listener.
func (g *gate) Accept() (net.Conn, error) {
	conn, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &gated{Conn: conn, gate: g, source: identity.Neighbours(api.SourceOf(conn.RemoteAddr().String()))}
	if old := g.enter(c); old != nil {
		old.Close()
	}
	return c, nil
}

// enter takes a connection in, and returns one that has to go for it.
func (g *gate) enter(c *gated) (old *gated) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.sources[c.source]
	if n == nil {
		n = &sourceCount{}
		g.sources[c.source] = n
	}
	switch {
	case n.waiting >= g.bounds.waitingEach:
		old = g.oldest(c.source)
	case g.waiting.Len() >= g.bounds.waiting:
		old = g.oldest("")
	}
	n.waiting++
	c.place = g.waiting.PushBack(c)
	return old
}

// oldest is that of the connections that wait, of one source or of any. mu is
// held.
func (g *gate) oldest(source string) *gated {
	for e := g.waiting.Front(); e != nil; e = e.Next() {
		if c := e.Value.(*gated); source == "" || c.source == source {
			return c
		}
	}
	return nil
}

// prove says that a connection has shown a credential that counts. It is false
// where there are too many of those, and the connection waits on.
func (c *gated) prove() bool {
	g := c.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.sources[c.source]
	switch {
	case c.proven:
		return true
	case c.closed:
		return false
	case g.proven >= g.bounds.proven, n.proven >= g.bounds.provenEach:
		return false
	}
	g.waiting.Remove(c.place)
	c.place, c.proven = nil, true
	n.waiting--
	n.proven++
	g.proven++
	return true
}

// Close implements net.Conn.
func (c *gated) Close() error {
	c.leave()
	return c.Conn.Close()
}

func (c *gated) leave() {
	g := c.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	n := g.sources[c.source]
	if c.proven {
		n.proven--
		g.proven--
	} else {
		g.waiting.Remove(c.place)
		n.waiting--
	}
	if *n == (sourceCount{}) {
		delete(g.sources, c.source)
	}
}

type gatedKey struct{}

// withConn is an http.Server.ConnContext that remembers the connection.
func withConn(ctx context.Context, conn net.Conn) context.Context {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS's
		conn = t.NetConn()
	}
	if c, ok := conn.(*gated); ok {
		return context.WithValue(ctx, gatedKey{}, c)
	}
	return ctx
}

// proveConn is what api.RemoteConfig.Proven is.
func proveConn(ctx context.Context) bool {
	c, ok := ctx.Value(gatedKey{}).(*gated)
	return ok && c.prove()
}
