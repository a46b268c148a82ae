package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"isle"
	"isle/internal/identity"
)

// Bounds of a connection to the Workload API.
const (
	maxWorkloadStreams  = 64
	workloadFirstWord   = 10 * time.Second // until HTTP/2 is spoken, and of a request's body
	workloadWrite       = 30 * time.Second // of one message to a client that does not read
	workloadIdle        = 10 * time.Minute // without a stream
	workloadHeaderBytes = 8 << 10
)

// A WorkloadAPI serves the SPIFFE Workload API on connections whose workload is
// known: who is at the other end is not asked there. Close ends it.
type WorkloadAPI struct {
	handler http.Handler
	access  func() *WorkloadAccess // nil: nobody asks for access here
	server  *http.Server
	conns   chan net.Conn // handed to the server
	closed  chan struct{}
	served  sync.WaitGroup // Serve calls, and the server itself
	shares  workloadShares

	mu   sync.Mutex // guards done
	done bool
}

// NewWorkloadAPI returns a WorkloadAPI that serves what Serve is given.
func NewWorkloadAPI(cfg WorkloadConfig) *WorkloadAPI {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	w := &WorkloadAPI{handler: workloadHandler(cfg), access: cfg.Access, conns: make(chan net.Conn), closed: make(chan struct{})}
	w.shares.of = map[isle.ID]*workloadShare{}
	w.server = &http.Server{
		Handler: http.HandlerFunc(w.serve),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, workloadKey{}, c.(*workloadConn))
		},
		ReadHeaderTimeout: workloadFirstWord,
		IdleTimeout:       workloadIdle,
		MaxHeaderBytes:    workloadHeaderBytes,
		Protocols:         new(http.Protocols),
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxWorkloadStreams, MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 256 << 10,
			MaxReadFrameSize: 16 << 10, WriteByteTimeout: workloadWrite},
		ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	w.server.Protocols.SetUnencryptedHTTP2(true)
	w.server.Protocols.SetHTTP1(cfg.Access != nil)                  // curl, and whatever speaks JSON
	w.served.Go(func() { _ = w.server.Serve(workloadListener{w}) }) // ends with Close, and with nothing else
	return w
}

// Serve serves a connection of the caller and returns when it has ended.
func (w *WorkloadAPI) Serve(conn net.Conn, caller WorkloadCaller) {
	w.mu.Lock()
	if w.done {
		w.mu.Unlock()
		conn.Close()
		return
	}
	w.served.Add(1)
	w.mu.Unlock()
	defer w.served.Done()
	share := w.shares.enter(caller.Instance)
	if share == nil {
		conn.Close()
		return
	}
	defer w.shares.leave(share)
	c := &workloadConn{Conn: conn, caller: caller, share: share, ended: make(chan struct{})}
	select {
	case w.conns <- c:
		<-c.ended
	case <-w.closed:
		conn.Close()
	}
}

// Close ends every connection, and returns when they have ended.
func (w *WorkloadAPI) Close() error {
	w.mu.Lock()
	again := w.done
	w.done = true
	w.mu.Unlock()
	if again {
		return nil
	}
	close(w.closed)
	err := w.server.Close()
	w.served.Wait()
	return err
}

// serve sees to what every call has in common.
func (w *WorkloadAPI) serve(rw http.ResponseWriter, r *http.Request) {
	forAccess := w.access != nil && (r.URL.Path == accessPath || strings.HasPrefix(r.URL.Path, accessPath+"/"))
	if t := r.Header.Get("Content-Type"); !forAccess && t != "application/grpc" && t != "application/grpc+proto" {
		http.Error(rw, "the Workload API is gRPC", http.StatusUnsupportedMediaType)
		return
	}
	fail := func(code connect.Code, text string) {
		_ = connect.NewErrorWriter().Write(rw, r, connect.NewError(code, errors.New(text)))
	}
	// SPIFFE Workload Endpoint standard, 4.3: it keeps a server from being made
	// to fetch documents for others.
	if v := r.Header.Values("workload.spiffe.io"); len(v) != 1 || v[0] != "true" {
		fail(connect.CodeInvalidArgument, "the request lacks the header workload.spiffe.io: true, which says that it is meant")
		return
	}
	if workloadFrom(r.Context()).ID == (identity.SPIFFEID{}) {
		fail(connect.CodePermissionDenied, "no identity is issued")
		return
	}
	c, ok := r.Context().Value(workloadKey{}).(*workloadConn)
	if !ok {
		return
	}
	service := c.caller.ID.Service
	if !c.share.open.take(service) {
		fail(connect.CodeResourceExhausted, "the service, or its environment, has as many open calls of the Workload API as it may")
		return
	}
	defer c.share.open.leave(service)
	if !c.share.calls.wait(r.Context().Done(), workloadCall) {
		return
	}
	b := &boundedWriter{ResponseWriter: rw, control: http.NewResponseController(rw)}
	_ = b.control.SetReadDeadline(time.Now().Add(workloadFirstWord)) // it never fails here
	if forAccess {
		w.access().serve(b, r, c.caller)
		return
	}
	w.handler.ServeHTTP(b, r)
}

// A boundedWriter gives each write a deadline: a client that does not read ends
// its stream. Between writes there is none.
type boundedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

// Unwrap is for http.ResponseController.
func (b *boundedWriter) Unwrap() http.ResponseWriter { return b.ResponseWriter }

func (b *boundedWriter) bounded(write func()) {
	_ = b.control.SetWriteDeadline(time.Now().Add(workloadWrite))
	write()
	_ = b.control.SetWriteDeadline(time.Time{})
}

// Write implements io.Writer.
func (b *boundedWriter) Write(p []byte) (n int, err error) {
	b.bounded(func() { n, err = b.ResponseWriter.Write(p) })
	return n, err
}

// Flush implements http.Flusher.
func (b *boundedWriter) Flush() { b.bounded(func() { _ = b.control.Flush() }) }

// A workloadConn is a connection and who is at its other end.
type workloadConn struct {
	net.Conn
	caller WorkloadCaller
	share  *workloadShare
	once   sync.Once
	ended  chan struct{} // closed by Close
}

// Read implements net.Conn. What comes faster than the environment's share waits.
func (c *workloadConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.share.bytes.wait(c.ended, time.Duration(n)*workloadByte) {
		return n, net.ErrClosed
	}
	return n, err
}

// Close implements net.Conn.
func (c *workloadConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.ended) })
	return err
}

// A workloadListener accepts what Serve was given.
type workloadListener struct{ w *WorkloadAPI }

// Accept implements net.Listener.
func (l workloadListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.w.conns:
		return c, nil
	case <-l.w.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. Accept ends with the WorkloadAPI.
func (workloadListener) Close() error { return nil }

// Addr implements net.Listener.
func (workloadListener) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

type workloadKey struct{}

// workloadFrom returns who calls.
func workloadFrom(ctx context.Context) WorkloadCaller {
	if c, ok := ctx.Value(workloadKey{}).(*workloadConn); ok {
		return c.caller
	}
	return WorkloadCaller{}
}
