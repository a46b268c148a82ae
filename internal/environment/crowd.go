package environment

import (
	"context"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"isle"
)

// A visiting is a connection to published ports as one of a crowd: whose it is, and
// when something last went over it.
type visiting struct {
	who  string       // "" where nobody knows
	last atomic.Int64 // nanoseconds since 1970
}

// heard notes that something goes over it.
func (v *visiting) heard() { v.last.Store(time.Now().UnixNano()) }

// displaced is who of a crowd that has no room goes for somebody who comes: of the
// one who has the most connections the one over which nothing went for the longest
// time. Nobody holds all the places of others, and nobody loses one to somebody who
// has as many: then it is one of their own, if that is wanted, or ok is false.
func displaced[K comparable](crowd map[K]*visiting, who string, own bool) (out K, ok bool) {
	count := map[string]int{}
	for _, v := range crowd {
		count[v.who]++
	}
	most := who
	for name := range maps.Keys(count) {
		if n := count[name]; n > count[most] || n == count[most] && most != who && name < most {
			most = name
		}
	}
	if count[most] <= count[who]+1 {
		if most = who; !own {
			return out, false
		}
	}
	var last int64
	for k, v := range crowd {
		if at := v.last.Load(); v.who == most && (!ok || at < last) {
			out, last, ok = k, at, true
		}
	}
	return out, ok
}

// A nameListener takes the connections to published ports by name, of which there are
// maxNameConnections at most.
type nameListener struct {
	net.Listener
	visits Visits // nil: nobody asks whose they are

	mu    sync.Mutex
	conns map[*nameConn]*visiting
}

// A nameConn is one of them.
type nameConn struct {
	net.Conn
	visiting
	of  *nameListener
	may func(ctx context.Context, ref isle.Ref, project string) error // nil: everybody may
}

// Accept implements net.Listener.
func (l *nameListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		n := &nameConn{Conn: c, of: l}
		n.heard()
		if l.visits != nil {
			who, may := l.visits.Visit(c.RemoteAddr(), c.LocalAddr())
			n.who, n.may = who(), may
		}
		if l.join(n) {
			return n, nil
		}
		c.Close()
	}
}

// join counts a connection in; false: there is no room.
func (l *nameListener) join(n *nameConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) >= maxNameConnections-1 { // and n
		goes, ok := displaced(l.conns, n.who, true) // most of them rest
		if !ok {
			return false
		}
		delete(l.conns, goes)
		goes.Conn.Close()
	}
	l.conns[n] = &n.visiting
	return true
}

// Read implements net.Conn.
func (n *nameConn) Read(b []byte) (int, error) {
	n.heard()
	return n.Conn.Read(b)
}

// Write implements net.Conn.
func (n *nameConn) Write(b []byte) (int, error) {
	n.heard()
	return n.Conn.Write(b)
}

// Close implements net.Conn.
func (n *nameConn) Close() error {
	n.of.mu.Lock()
	delete(n.of.conns, n)
	n.of.mu.Unlock()
	return n.Conn.Close()
}
