package recorder

import (
	"bufio"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// Ports are the ports of every address at which a step is answered.
func (r *Recorder) Ports() []int { return []int{80, 443, 8080, 8443} }

// Serve answers a connection that a step opened to conn.LocalAddr(), and owns it.
// It returns at once.
func (r *Recorder) Serve(conn net.Conn) {
	r.mu.Lock()
	full := r.open >= maxOpen
	if !full {
		r.open++
	}
	r.mu.Unlock()
	if full {
		conn.Close()
		return
	}
	c := &counted{Conn: conn, left: sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.open--
	})}
	go r.sniff(c) // ends in 30 seconds, or with the connection
}

// sniff tells TLS from HTTP: a handshake begins with a record of type 22
// (RFC 8446, section 5.1), which is no letter.
func (r *Recorder) sniff(c *counted) {
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	c.in = bufio.NewReaderSize(c.Conn, 4<<10)
	first, err := c.in.Peek(1)
	if err != nil {
		c.Close()
		return
	}
	c.SetReadDeadline(time.Time{})
	var conn net.Conn = c
	if first[0] == 22 {
		conn = tls.Server(c, opened(r.authority, c.LocalAddr()))
	}
	r.conns.add(conn)
}

// counted is a connection that is counted until it is closed, and some of which
// was read.
type counted struct {
	net.Conn
	in   *bufio.Reader
	left func()
}

func (c *counted) Read(p []byte) (int, error) { return c.in.Read(p) }

func (c *counted) Close() error {
	c.left()
	return c.Conn.Close()
}

// accepted is a listener of connections that come from elsewhere.
type accepted struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newAccepted() *accepted {
	return &accepted{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (a *accepted) add(c net.Conn) {
	select {
	case a.conns <- c:
	case <-a.closed:
		c.Close()
	}
}

// Accept implements net.Listener.
func (a *accepted) Accept() (net.Conn, error) {
	select {
	case c := <-a.conns:
		return c, nil
	case <-a.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (a *accepted) Close() error {
	a.once.Do(func() { close(a.closed) })
	return nil
}

// Addr implements net.Listener.
func (a *accepted) Addr() net.Addr { return &net.TCPAddr{} }

func onlyHTTP1() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	return p
}

// silent takes what net/http says of clients that speak no HTTP.
func silent() *log.Logger { return log.New(io.Discard, "", 0) }
