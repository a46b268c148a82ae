package httpdoor

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// maxIdlePeers bounds how many connections to the real thing a session keeps
	// without a request.
	maxIdlePeers = 16
	// peerBuffer is how much is read from the real thing at once, in bytes, and
	// how long a line of a response's head may be until it is put together
	// elsewhere.
	peerBuffer = 4 << 10
)

// peers are a session's connections of HTTP/1.1 to the real thing, for requests
// without a body, of which most are. Such a request is written and its response
// read by the goroutine that serves the client: net/http's Transport has two
// goroutines more for each connection, and to wake them one after the other
// takes longer than all else that is done. It is what requests with bodies go
// through, which may be sent while the response comes.
type peers struct {
	dial func(ctx context.Context) (net.Conn, error) // TLS handshake included

	mu     sync.Mutex  // guards what follows
	idle   []*peer     // the last used is the last
	timer  *time.Timer // closes what was idle for too long; nil: nothing is idle
	closed bool
}

// A peer is one connection, and serves one request after the other.
type peer struct {
	conn  net.Conn
	raw   syscall.RawConn // of the connection beneath TLS; nil: there is none
	r     *bufio.Reader
	w     *bufio.Writer
	since time.Time // when it became idle; zero: it is new
}

func newPeer(conn net.Conn) *peer {
	p := &peer{conn: conn, r: bufio.NewReaderSize(conn, peerBuffer), w: bufio.NewWriterSize(conn, peerBuffer)}
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if c, ok := conn.(syscall.Conn); ok {
		p.raw, _ = c.SyscallConn()
	}
	return p
}

// take returns an idle connection, or nil.
func (s *peers) take() *peer {
	for {
		s.mu.Lock()
		n := len(s.idle) - 1
		if n < 0 {
			s.mu.Unlock()
			return nil
		}
		p := s.idle[n]
		s.idle[n] = nil
		s.idle = s.idle[:n]
		s.mu.Unlock()
		if time.Since(p.since) < upstreamIdle && p.quiet() {
			return p
		}
		p.conn.Close()
	}
}

// quiet reports whether the other side neither closed the connection nor sent
// anything that nobody asked for, which would be taken for the response to the
// next request.
func (p *peer) quiet() bool {
	if p.raw == nil || p.r.Buffered() > 0 {
		return false
	}
	open := false
	err := p.raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		open = errors.Is(err, syscall.EAGAIN)
		return true
	})
	return err == nil && open
}

// put keeps a connection for the next request.
func (s *peers) put(p *peer) {
	p.since = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.idle) >= maxIdlePeers {
		p.conn.Close()
		return
	}
	s.idle = append(s.idle, p)
	if s.timer == nil {
		s.timer = time.AfterFunc(upstreamIdle, s.sweep)
	}
}

// sweep closes what was idle for too long.
func (s *peers) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = slices.DeleteFunc(s.idle, func(p *peer) bool {
		old := time.Since(p.since) >= upstreamIdle
		if old {
			p.conn.Close()
		}
		return old
	})
	if s.timer = nil; len(s.idle) > 0 && !s.closed {
		s.timer = time.AfterFunc(upstreamIdle-time.Since(s.idle[0].since), s.sweep)
	}
}

func (s *peers) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, p := range s.idle {
		p.conn.Close()
	}
	s.idle = nil
	if s.timer != nil {
		s.timer.Stop()
	}
}

// A plainRequest is a request without a body.
type plainRequest struct {
	method, target, host string
	header               http.Header
	// sending is called before anything is sent.
	sending func()
	// informed is given each informational response but 100 (Continue).
	informed func(status int, h http.Header)
}

// do sends a request and returns its response once the head is there. The
// connection is kept once the response's body was read to its end and closed.
// When ctx ends, so does the connection. A request that changes nothing is sent
// once more where a connection that was used before turns out to be closed.
func (s *peers) do(ctx context.Context, q *plainRequest) (*http.Response, error) {
	for {
		p := s.take()
		used := p != nil
		if !used {
			conn, err := s.dial(ctx)
			if err != nil {
				return nil, err
			}
			p = newPeer(conn)
		}
		res, err := s.exchange(ctx, p, q)
		if err == nil {
			return res, nil
		}
		if again := used && errors.Is(err, errUnanswered) && ctx.Err() == nil; !again || !harmless(q.method) {
			return nil, err
		}
	}
}

// harmless reports whether a method changes nothing (RFC 9110, section 9.2.1).
func harmless(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
}

// errUnanswered is what a request comes to whose connection ends before the
// first byte of a response.
var errUnanswered = errors.New("the connection ended before there was a response")

// exchange sends a request over a connection.
func (s *peers) exchange(ctx context.Context, p *peer, q *plainRequest) (res *http.Response, err error) {
	stop := context.AfterFunc(ctx, func() { p.conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if err != nil {
			stop()
			p.conn.Close()
		}
	}()
	q.sending()
	if err := p.send(q); err != nil {
		return nil, err
	}
	if _, err := p.r.Peek(1); err != nil {
		return nil, errUnanswered
	}
	var a *answerHead
	for n := 0; ; n++ {
		if a, err = readAnswer(p.r, q.method); err != nil {
			return nil, err
		}
		if a.status >= 200 {
			break
		}
		switch {
		case a.status == http.StatusSwitchingProtocols:
			return nil, &badResponse{"it switches to another protocol, which was not asked for"}
		case n == maxInformational:
			return nil, &badResponse{"it has more than enough informational responses"}
		case a.status != http.StatusContinue:
			q.informed(a.status, a.header)
		}
	}
	res = &http.Response{StatusCode: a.status, ProtoMajor: 1, ProtoMinor: a.minor, Header: a.header, ContentLength: a.length}
	b := &answerBody{peers: s, peer: p, stop: stop, keep: a.keep}
	switch {
	case a.bodyless || a.length == 0:
		b.ended = true
	case a.untilEnd:
		b.r = p.r
	default:
		framed := newBody(p.r, a.length, nil)
		if a.length < 0 {
			res.Trailer = framed.declared(a.header)
			delete(a.header, "Trailer")
		}
		b.r = framed
	}
	res.Body = b
	return res, nil
}

// send writes a request. What can't stand in one was refused before, as it came.
func (p *peer) send(q *plainRequest) error {
	w := p.w
	w.WriteString(q.method)
	w.WriteByte(' ')
	w.WriteString(q.target)
	w.WriteString(" HTTP/1.1\r\nHost: ")
	w.WriteString(q.host)
	w.WriteString("\r\n")
	for name, values := range q.header {
		switch name {
		case "Host", "Content-Length", "Transfer-Encoding", "Trailer":
			continue
		}
		for _, v := range values {
			if !token(name) || !fieldValue(v) { // nothing of it was sent, but what filled the buffer
				return &badRequest{http.StatusBadRequest, "a header field has a character that can't stand in one"}
			}
			if name == "User-Agent" && v == "" { // how net/http is told to send none
				continue
			}
			w.WriteString(name)
			w.WriteString(": ")
			w.WriteString(v)
			w.WriteString("\r\n")
		}
	}
	switch q.method {
	case http.MethodPost, http.MethodPut, http.MethodPatch: // RFC 9110, section 8.6
		w.WriteString("Content-Length: 0\r\n")
	}
	w.WriteString("\r\n")
	if w.Flush() != nil {
		return errUnanswered
	}
	return nil
}

// An answerBody reads a response's body, and hands the connection back when it
// is closed, if it can serve another request.
type answerBody struct {
	peers *peers
	peer  *peer // nil: closed
	stop  func() bool
	keep  bool      // the connection may serve another request
	r     io.Reader // nil where there is no body
	ended bool
}

// Read implements io.Reader.
func (b *answerBody) Read(p []byte) (int, error) {
	switch {
	case b.peer == nil:
		return 0, http.ErrBodyReadAfterClose
	case b.ended:
		return 0, io.EOF
	}
	n, err := b.r.Read(p)
	b.ended = errors.Is(err, io.EOF)
	return n, wrongAnswer(err)
}

// Close implements io.Closer.
func (b *answerBody) Close() error {
	p := b.peer
	if p == nil {
		return nil
	}
	b.peer = nil
	// Once the context's end has reached the connection it can't be kept.
	if b.stop() && b.ended && b.keep && p.r.Buffered() == 0 {
		b.peers.put(p)
		return nil
	}
	return p.conn.Close()
}
