package api

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"isle/internal/api/isle/v1/islev1connect"
)

// Bounds of what a caller may send.
const (
	maxMessage = 48 << 20  // bytes of one message: the largest lock, and then some
	maxPiece   = 4 << 20   // bytes of one message of a stream that callers send: of data, or a command
	maxTrees   = 1000      // copied trees of one file
	maxChunk   = 256 << 10 // bytes of one message of a stream of data, as the server sends it
	// uploadIdle is how long an upload may send nothing, and how long any
	// stream may take to say its first word.
	uploadIdle = 30 * time.Second
)

// uploads are the procedures whose whole request is data.
func uploads(path string) bool {
	switch path {
	case islev1connect.BuildServicePutProcedure, islev1connect.BuildServiceImportProcedure, islev1connect.EnvironmentServiceCopyInProcedure, islev1connect.SnapshotServiceImportSnapshotProcedure:
		return true
	}
	return false
}

// pieces are the procedures whose request is a stream: no message of theirs is
// kept.
func pieces(path string) bool {
	switch path {
	case islev1connect.EnvironmentServiceExecProcedure, islev1connect.EnvironmentServicePortForwardProcedure, islev1connect.ConnectionServiceConnectProcedure:
		return true
	}
	return uploads(path)
}

// A weighedBody takes room for what is read of it, which is kept whole before
// anybody is asked whether the caller may send it.
type weighedBody struct {
	io.ReadCloser
	take func(n int) bool
}

// Read implements io.Reader.
func (b *weighedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 && !b.take(n) {
		return 0, connect.NewError(connect.CodeResourceExhausted, errors.New("the server holds as much of your requests as it may at once: end some, or try again later"))
	}
	return n, err
}

// impatient gives every request's body a deadline: for its first bytes always,
// and between bytes where it is an upload. An Exec may then be silent for
// hours.
func impatient(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != nil && r.Body != http.NoBody {
			body := &deadlineBody{ReadCloser: r.Body, control: http.NewResponseController(w), renew: uploads(r.URL.Path)}
			r.Body = body
			defer body.end()
		}
		next.ServeHTTP(w, r)
	})
}

type deadlineBody struct {
	io.ReadCloser
	control *http.ResponseController
	renew   bool
	begun   bool

	mu    sync.Mutex // guards ended
	ended bool
}

// end says that the call is over. Its response writer is not to be touched
// again: net/http takes an HTTP/2 one apart, and a read that is still going on
// in another goroutine (an Exec's input) would meet a nil pointer.
func (b *deadlineBody) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
}

// deadline sets the deadline of reads while the call goes on.
func (b *deadlineBody) deadline(t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ended {
		_ = b.control.SetReadDeadline(t) // a writer without deadlines (tests) has no hostile caller
	}
}

// Read implements io.Reader. One goroutine reads a body at a time.
func (b *deadlineBody) Read(p []byte) (int, error) {
	if b.renew || !b.begun {
		b.deadline(time.Now().Add(uploadIdle))
	}
	n, err := b.ReadCloser.Read(p)
	if n > 0 && !b.begun && !b.renew || err != nil {
		b.deadline(time.Time{}) // over HTTP/1.1 it would otherwise end the call
	}
	b.begun = b.begun || n > 0
	return n, err
}
