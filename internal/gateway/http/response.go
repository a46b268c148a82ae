package httpdoor

import (
	"errors"
	"io"
	"log"
	"net/http"
	"strconv"
	"strings"
)

// A response is what one request over HTTP/1.1 is answered. It implements
// http.ResponseWriter with net/http's conventions: informational statuses may
// come first, and trailers are header fields whose names have
// http.TrailerPrefix, set after the body.
type response struct {
	c        *client
	head     *head
	watch    *watch
	header   http.Header
	status   int   // 0: not sent
	left     int64 // what a Content-Length promised, less what came; -1: none did
	chunked  bool
	bodyless bool
	close    bool // nothing may follow
	hijacked bool
	err      error
}

// Header implements http.ResponseWriter.
func (r *response) Header() http.Header { return r.header }

// proceed tells the client, if it waits for that, to send the body.
func (r *response) proceed() {
	if r.head.expect && r.status == 0 {
		r.c.w.WriteString("HTTP/1.1 100 Continue\r\n\r\n")
		r.c.w.Flush()
	}
}

// WriteHeader implements http.ResponseWriter.
func (r *response) WriteHeader(status int) {
	if r.status != 0 || r.hijacked {
		return
	}
	if status >= 100 && status < 200 && status != http.StatusSwitchingProtocols {
		if r.head.minor == 1 {
			r.line(status)
			r.fields(r.header)
			r.c.w.WriteString("\r\n")
			r.flush()
		}
		return
	}
	r.status = status
	r.bodyless = r.head.method == http.MethodHead || status == http.StatusNoContent || status == http.StatusNotModified || status < 200
	length := r.header.Get("Content-Length")
	n, err := strconv.ParseInt(length, 10, 64)
	delete(r.header, "Transfer-Encoding")
	switch {
	case r.bodyless:
		if status == http.StatusNoContent || status < 200 {
			delete(r.header, "Content-Length")
		}
	case length != "" && err == nil && n >= 0:
		r.left = n
	case r.head.minor == 1:
		delete(r.header, "Content-Length")
		r.chunked = true
	default:
		delete(r.header, "Content-Length")
		r.close = true
	}
	r.close = r.close || r.head.close || status != http.StatusSwitchingProtocols && listed(r.header, "Connection", "close")
	if status != http.StatusSwitchingProtocols {
		delete(r.header, "Connection")
	}
	r.line(status)
	r.fields(r.header)
	if r.chunked {
		r.c.w.WriteString("Transfer-Encoding: chunked\r\n")
	}
	if r.close && status != http.StatusSwitchingProtocols {
		r.c.w.WriteString("Connection: close\r\n")
	}
	r.c.w.WriteString("\r\n")
}

func (r *response) line(status int) {
	w := r.c.w
	w.WriteString("HTTP/1.1 ")
	w.Write(strconv.AppendInt(w.AvailableBuffer(), int64(status), 10))
	w.WriteByte(' ')
	w.WriteString(http.StatusText(status))
	w.WriteString("\r\n")
}

func (r *response) fields(h http.Header) {
	w := r.c.w
	for name, values := range h {
		if strings.HasPrefix(name, http.TrailerPrefix) || !token(name) {
			continue
		}
		for _, v := range values {
			w.WriteString(name)
			w.WriteString(": ")
			if strings.ContainsAny(v, "\r\n\x00") {
				v = strings.NewReplacer("\r", " ", "\n", " ", "\x00", " ").Replace(v)
			}
			w.WriteString(v)
			w.WriteString("\r\n")
		}
	}
}

// Write implements http.ResponseWriter.
func (r *response) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	switch {
	case r.err != nil:
		return 0, r.err
	case r.hijacked:
		return 0, http.ErrHijacked
	case r.bodyless:
		return 0, http.ErrBodyNotAllowed
	case len(p) == 0:
		return 0, nil
	case r.left >= 0 && int64(len(p)) > r.left:
		r.err = http.ErrContentLength
		return 0, r.err
	}
	w := r.c.w
	if r.chunked {
		w.Write(strconv.AppendInt(w.AvailableBuffer(), int64(len(p)), 16))
		w.WriteString("\r\n")
	}
	n, err := w.Write(p)
	if r.chunked && err == nil {
		_, err = w.WriteString("\r\n")
	}
	if r.left >= 0 {
		r.left -= int64(n)
	}
	r.err = err
	return n, err
}

// FlushError implements what http.ResponseController asks for.
func (r *response) FlushError() error {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	return r.flush()
}

func (r *response) flush() error {
	if err := r.c.w.Flush(); err != nil && r.err == nil {
		r.err = err
	}
	return r.err
}

// errShort is what a body is that ended before its Content-Length.
var errShort = errors.New("the body is shorter than its Content-Length")

// finish ends the response. An error means that the client can't tell where it
// ends, so its connection has to.
func (r *response) finish() error {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	if r.err != nil {
		return r.err
	}
	if r.left > 0 {
		return errShort
	}
	if r.chunked {
		r.c.w.WriteString("0\r\n")
		for name, values := range r.header {
			if name, ok := strings.CutPrefix(name, http.TrailerPrefix); ok && inTrailer(name) {
				r.fields(http.Header{name: values})
			}
		}
		r.c.w.WriteString("\r\n")
	}
	return r.flush()
}

// hijack hands the connection over, after what was written is sent: to copy
// bytes both ways.
func (r *response) hijack() (io.Reader, error) {
	r.watch.end()
	r.hijacked = true
	return r.c.r, r.c.w.Flush()
}

// silent is a log for what net/http says of clients that misbehave: they are
// told, and nobody else.
func silent() *log.Logger { return log.New(io.Discard, "", 0) }
