package environment

import (
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"

	"isle"
)

// Answers count what an instance has answered over HTTP through its published
// ports, by number and by name, since this server knows it.
type Answers struct {
	Instance isle.ID
	Total    int64
	// Failed are those of them with a status of 500 and more, and requests that
	// were never answered. Not among them is what whoever asks has brought about: an
	// answer of 501 or 505 is to a method or a version that nobody has, and a request
	// that is not whole has none.
	Failed int64
}

// answers are those of a live instance.
type answers struct{ total, failed atomic.Int64 }

// add counts an answer with its status.
func (a *answers) add(status int) {
	a.total.Add(1)
	if status >= http.StatusInternalServerError && status != http.StatusNotImplemented && status != http.StatusHTTPVersionNotSupported {
		a.failed.Add(1)
	}
}

// lost counts requests that nobody answers.
func (a *answers) lost(n int) {
	a.total.Add(int64(n))
	a.failed.Add(int64(n))
}

// Answers are those of the instance that serves under a name; ok is false if none
// does. What is not HTTP/1 in the clear is not read and not counted.
func (m *Manager) Answers(ref isle.Ref) (out Answers, ok bool) {
	l := m.find(ref)
	if l == nil {
		return out, false
	}
	return Answers{l.instance, l.answers.total.Load(), l.answers.failed.Load()}, true
}

// A counted passes requests by name on, and counts what becomes of each.
type counted struct {
	next http.RoundTripper
	*answers
}

// RoundTrip implements http.RoundTripper. What fails before a connection was asked
// for, or before the request was sent whole, says something of the request only.
func (c counted) RoundTrip(r *http.Request) (*http.Response, error) {
	var asked, got atomic.Bool
	ctx := httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		GetConn: func(string) { asked.Store(true) },
		GotConn: func(httptrace.GotConnInfo) { got.Store(true) },
	})
	body := &sentBody{ReadCloser: r.Body}
	out := r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		out.Body = body
	} else {
		body.whole.Store(true)
	}
	res, err := c.next.RoundTrip(out)
	switch {
	case err == nil:
		c.add(res.StatusCode)
	case r.Context().Err() == nil && asked.Load() && (body.whole.Load() || !got.Load()): // else whoever asked went away, or sent what is none
		c.lost(1)
	}
	return res, err
}

// A sentBody knows whether it was read to its end.
type sentBody struct {
	io.ReadCloser
	whole atomic.Bool
}

// Read implements io.Reader.
func (b *sentBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.whole.Store(true)
	}
	return n, err
}
