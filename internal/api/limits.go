package api

import (
	"io"
	"net/http"
	"time"

	"isle/internal/api/isle/v1/islev1connect"
)

// Bounds of what a caller may send.
const (
	maxMessage = 48 << 20  // bytes of one message: the largest lock, and then some
	maxTrees   = 1000      // copied trees of one file
	maxChunk   = 256 << 10 // bytes of one message of a stream of data, as the server sends it
	// uploadIdle is how long an upload may send nothing, and how long any
	// stream may take to say its first word.
	uploadIdle = 30 * time.Second
)

// uploads are the procedures whose whole request is data.
func uploads(path string) bool {
	switch path {
	case islev1connect.BuildServicePutProcedure, islev1connect.BuildServiceImportProcedure, islev1connect.EnvironmentServiceCopyInProcedure:
		return true
	}
	return false
}

// impatient gives every request's body a deadline: for its first bytes always,
// and between bytes where it is an upload. An Exec may then be silent for
// hours.
func impatient(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = &deadlineBody{ReadCloser: r.Body, control: http.NewResponseController(w), renew: uploads(r.URL.Path)}
		}
		next.ServeHTTP(w, r)
	})
}

type deadlineBody struct {
	io.ReadCloser
	control *http.ResponseController
	renew   bool
	begun   bool
}

// Read implements io.Reader. One goroutine reads a body at a time.
func (b *deadlineBody) Read(p []byte) (int, error) {
	watch := b.renew || !b.begun
	if watch {
		_ = b.control.SetReadDeadline(time.Now().Add(uploadIdle)) // a writer without deadlines (tests) has no hostile caller
	}
	n, err := b.ReadCloser.Read(p)
	if n > 0 && !b.begun && !b.renew || err != nil {
		_ = b.control.SetReadDeadline(time.Time{}) // over HTTP/1.1 it would otherwise end the call
	}
	b.begun = b.begun || n > 0
	return n, err
}
