package gatewayload

import (
	"io"
	"net"
	"sync"
	"testing"
)

// A line is what lies between the gateway and a server: it can be cut, stopped,
// and closed in one direction.
type line struct {
	addr string

	mu      sync.Mutex
	moves   *sync.Cond
	held    map[string]bool // "up", "down": nothing passes
	pairs   map[[2]*net.TCPConn]struct{}
	running sync.WaitGroup
}

func newLine(t *testing.T, to string) *line {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &line{addr: l.Addr().String(), held: map[string]bool{}, pairs: map[[2]*net.TCPConn]struct{}{}}
	n.moves = sync.NewCond(&n.mu)
	t.Cleanup(func() {
		l.Close()
		n.hold()
		n.cut()
		n.running.Wait()
	})
	n.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", to)
			if err != nil {
				c.(*net.TCPConn).SetLinger(0)
				c.Close()
				continue
			}
			n.carry(c.(*net.TCPConn), up.(*net.TCPConn))
		}
	})
	return n
}

// carry passes bytes both ways until both have ended.
func (n *line) carry(c, up *net.TCPConn) {
	pair := [2]*net.TCPConn{c, up}
	n.mu.Lock()
	n.pairs[pair] = struct{}{}
	n.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { n.copy(up, c, "up") })
	both.Go(func() { n.copy(c, up, "down") })
	n.running.Go(func() {
		both.Wait()
		n.mu.Lock()
		delete(n.pairs, pair)
		n.mu.Unlock()
		c.Close()
		up.Close()
	})
}

func (n *line) copy(dst, src *net.TCPConn, direction string) {
	b := make([]byte, 64<<10)
	for {
		read, err := src.Read(b)
		n.mu.Lock()
		for n.held[direction] {
			n.moves.Wait()
		}
		n.mu.Unlock()
		if _, werr := dst.Write(b[:read]); werr != nil {
			src.SetLinger(0)
			src.Close()
			return
		}
		if err == io.EOF {
			dst.CloseWrite()
			return
		}
		if err != nil {
			dst.SetLinger(0)
			dst.Close()
			return
		}
	}
}

// hold stops these directions, and lets the others pass.
func (n *line) hold(directions ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.held)
	for _, d := range directions {
		n.held[d] = true
	}
	n.moves.Broadcast()
}

// cut resets all that is open.
func (n *line) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for p := range n.pairs {
		for _, c := range p {
			c.SetLinger(0)
			c.Close()
		}
	}
}

// half closes what leads to the gateway, as a server does that says nothing more.
func (n *line) half() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for p := range n.pairs {
		p[0].CloseWrite()
	}
}

// open is how many connections there are.
func (n *line) open() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.pairs)
}
