package httpdoor

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	// headTime bounds a request's head, from its first byte on.
	headTime = 15 * time.Second
	// idleTime ends a connection on which no request came.
	idleTime = 5 * time.Minute
	// lastWords is how long a client has to take an answer when its session ends.
	lastWords = 5 * time.Second
	// gone is after how long of waiting it is looked whether the client is there
	// still. Most answers come before.
	gone = 50 * time.Millisecond
	// maxDrain bounds, in bytes, what is read of a body that nobody wanted, to
	// keep its connection.
	maxDrain = 256 << 10
	// maxStreams bounds the requests that one HTTP/2 connection has under way.
	maxStreams = 100
)

// preface begins a connection of HTTP/2 (RFC 9113, section 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// A client is one connection of HTTP/1.1 from a client, and serves one request
// after the other.
type client struct {
	conn    net.Conn
	r       *bufio.Reader
	w       *bufio.Writer
	handler http.Handler
}

// serveConn serves one connection until either side ends it or ctx does. It
// speaks HTTP/1.1, and HTTP/2 where the client begins with its preface.
func serveConn(ctx context.Context, conn net.Conn, handler http.Handler) error {
	c := &client{conn: conn, r: bufio.NewReaderSize(conn, 4<<10), w: bufio.NewWriterSize(conn, 4<<10), handler: handler}
	conn.SetReadDeadline(time.Now().Add(idleTime))
	if b, _ := c.r.Peek(3); string(b) == preface[:3] {
		conn.SetReadDeadline(time.Now().Add(headTime))
		if b, _ := c.r.Peek(len(preface)); string(b) == preface {
			conn.SetReadDeadline(time.Time{})
			return serveH2(ctx, &buffered{conn, c.r}, handler)
		}
	}
	stop := context.AfterFunc(ctx, func() {
		conn.SetReadDeadline(time.Unix(1, 0))
		conn.SetWriteDeadline(time.Now().Add(lastWords))
	})
	defer stop()
	for {
		again, err := c.serveOne(ctx)
		if !again || err != nil {
			return err
		}
	}
}

// serveOne serves the next request, and says whether another may follow.
func (c *client) serveOne(ctx context.Context) (again bool, err error) {
	if c.r.Buffered() == 0 {
		c.conn.SetReadDeadline(time.Now().Add(idleTime))
		if ctx.Err() != nil {
			return false, nil
		}
		if _, err := c.r.Peek(1); err != nil {
			return false, quiet(err)
		}
	}
	c.conn.SetReadDeadline(time.Now().Add(headTime))
	if ctx.Err() != nil {
		return false, nil
	}
	h, err := readHead(c.r)
	c.conn.SetReadDeadline(time.Time{})
	if err != nil {
		c.refuse(err)
		return false, quiet(err)
	}
	res := &response{c: c, head: h, header: make(http.Header, 8), left: -1}
	b := newBody(c.r, h.length, res.proceed)
	req, err := h.request(b)
	if err != nil {
		c.refuse(err)
		return false, err
	}
	if ctx.Err() != nil {
		return false, nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	res.watch = &watch{c: c, body: b, cancel: cancel}
	res.watch.begin()
	done := c.handle(res, req.WithContext(ctx))
	res.watch.end()
	if !done || res.hijacked {
		return false, nil
	}
	if err := res.finish(); err != nil {
		return false, err
	}
	return !res.close && !h.close && c.drain(b), nil
}

// handle reports whether the handler came to its end.
func (c *client) handle(res *response, req *http.Request) (done bool) {
	defer func() {
		if r := recover(); r != nil && r != http.ErrAbortHandler {
			panic(r) // the connection's owner recovers
		}
	}()
	c.handler.ServeHTTP(res, req)
	return true
}

// drain reads what is left of the body, if it is little.
func (c *client) drain(b *body) bool {
	if b.ended.Load() {
		return true
	}
	if !b.stop() { // it is sent on still, though the answer has come
		return false
	}
	if b.begin != nil { // it waits for 100 (Continue) and need not send the body now
		return false
	}
	c.conn.SetReadDeadline(time.Now().Add(headTime))
	n, err := io.Copy(io.Discard, io.LimitReader(rest{b}, maxDrain+1))
	c.conn.SetReadDeadline(time.Time{})
	return err == nil && n <= maxDrain && b.ended.Load()
}

// rest is what is left of a body that was stopped.
type rest struct{ *body }

// Read implements io.Reader.
func (r rest) Read(p []byte) (int, error) { return r.read(p) }

// refuse answers what is no request, and ends.
func (c *client) refuse(err error) {
	var b *badRequest
	if !errors.As(err, &b) {
		return
	}
	c.conn.SetWriteDeadline(time.Now().Add(lastWords))
	res := &response{c: c, head: &head{method: http.MethodGet, minor: 1}, header: make(http.Header), left: -1, close: true}
	problem{Status: b.status, Type: "bad-request", Title: "This is no request that has one meaning", Detail: b.what}.write(res)
	res.finish()
	// The client may be sending still; closing now could take the answer from it.
	if half, ok := c.conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	c.conn.SetReadDeadline(time.Now().Add(time.Second))
	io.Copy(io.Discard, io.LimitReader(c.r, maxDrain))
}

// quiet is err, unless it is how connections end.
func quiet(err error) error {
	var timeout net.Error
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.As(err, &timeout) && timeout.Timeout() {
		return nil
	}
	return err
}

// request makes what handlers take.
func (h *head) request(b *body) (*http.Request, error) {
	r := &http.Request{Method: h.method, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: h.minor, Header: h.header,
		Host: h.host, RequestURI: h.target, ContentLength: h.length, Close: h.close, Body: b}
	if h.length == 0 {
		r.Body = http.NoBody
	}
	target := h.target
	if rest, ok := strings.CutPrefix(target, "http://"); ok { // absolute-form, as to a proxy
		authority, path, _ := strings.Cut(rest, "/")
		if !strings.EqualFold(authority, h.host) || strings.Contains(authority, "?") {
			return nil, bad("the request's target and its Host differ")
		}
		target = "/" + path
	}
	if target[0] != '/' && target != "*" && h.method != http.MethodConnect {
		return nil, bad("the request's target is no path")
	}
	path, query, asked := strings.Cut(target, "?")
	// What the path says is found out by readTarget; here it is kept as it came.
	r.RequestURI = target
	r.URL = &url.URL{Path: path, RawPath: path, RawQuery: query, ForceQuery: asked && query == ""}
	if h.length < 0 {
		r.TransferEncoding = []string{"chunked"}
		r.Trailer = b.declared(h.header)
	}
	return r, nil
}

// declared are the fields that a Trailer header announces. Others in the
// trailer go no further.
func (b *body) declared(h http.Header) http.Header {
	t := make(http.Header)
	for _, v := range h["Trailer"] {
		for name := range strings.SplitSeq(v, ",") {
			if name = http.CanonicalHeaderKey(strings.Trim(name, " \t")); token(name) && inTrailer(name) {
				t[name] = nil
			}
		}
	}
	b.trailer = t
	return t
}

// A watch looks whether the client is there still, while nobody reads from it.
type watch struct {
	c      *client
	body   *body
	cancel context.CancelCauseFunc

	mu      sync.Mutex // guards what follows
	timer   *time.Timer
	ended   bool
	peeking chan struct{} // closed when it does no longer
}

// errGone is the cause that a request ends by when its client did.
var errGone = errors.New("the client went away")

func (w *watch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(gone, w.look)
}

func (w *watch) look() {
	w.mu.Lock()
	if w.ended {
		w.mu.Unlock()
		return
	}
	if !w.body.ended.Load() { // it is read from, which shows the same
		w.timer.Reset(gone)
		w.mu.Unlock()
		return
	}
	peeking := make(chan struct{})
	w.peeking = peeking
	w.mu.Unlock()
	defer close(peeking)
	if _, err := w.c.r.Peek(1); err != nil {
		w.mu.Lock()
		ended := w.ended
		w.mu.Unlock()
		if !ended {
			w.cancel(errGone)
		}
	}
}

// end ends the watch; afterwards the connection may be read from.
func (w *watch) end() {
	w.mu.Lock()
	if w.ended {
		w.mu.Unlock()
		return
	}
	w.ended = true
	w.timer.Stop()
	peeking := w.peeking
	w.mu.Unlock()
	if peeking != nil {
		w.c.conn.SetReadDeadline(time.Unix(1, 0))
		<-peeking
		w.c.conn.SetReadDeadline(time.Time{})
	}
}

// buffered is a connection of which something was read ahead.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// serveH2 serves a connection of HTTP/2, its preface included. What speaks it
// is net/http's server.
func serveH2(ctx context.Context, conn net.Conn, handler http.Handler) error {
	one := &single{conn: conn, closed: make(chan struct{})}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	protocols.SetHTTP1(true) // or the server would not look for the preface
	s := &http.Server{
		Handler: handler, Protocols: &protocols, MaxHeaderBytes: MaxHead, ReadHeaderTimeout: headTime, IdleTimeout: idleTime,
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    silent(),
	}
	stop := context.AfterFunc(ctx, func() {
		soon, cancel := context.WithTimeout(context.Background(), lastWords)
		defer cancel()
		s.Shutdown(soon)
		conn.Close()
	})
	defer stop()
	s.Serve(one)
	<-one.closed
	return nil
}

// single is a listener of one connection.
type single struct {
	conn   net.Conn
	once   sync.Once
	taken  bool
	closed chan struct{} // closed with the connection
}

// Accept returns the connection, and then waits for its end.
func (s *single) Accept() (net.Conn, error) {
	if !s.taken {
		s.taken = true
		return &noted{s.conn, s}, nil
	}
	<-s.closed
	return nil, net.ErrClosed
}

// Close implements net.Listener. It leaves the connection open.
func (s *single) Close() error { return nil }

// Addr implements net.Listener.
func (s *single) Addr() net.Addr { return s.conn.LocalAddr() }

type noted struct {
	net.Conn
	single *single
}

func (n *noted) Close() error {
	err := n.Conn.Close()
	n.single.once.Do(func() { close(n.single.closed) })
	return err
}
