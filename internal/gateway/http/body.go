package httpdoor

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

// A body reads a request's body off its connection, to its end and not beyond
// it. One goroutine reads at a time: whoever sends it on may go on reading after
// the answer came, until stop.
type body struct {
	ended atomic.Bool

	mu      sync.Mutex // guards what follows, and is held over a read
	over    bool       // whoever got it may not read any more
	r       *bufio.Reader
	begin   func()      // before the first read; may be nil
	trailer http.Header // filled at the end of a chunked one
	chunked bool
	left    int64 // of the body, or of a chunk
	opened  bool  // a chunk was begun before
	err     error // io.EOF after the end
}

func newBody(r *bufio.Reader, length int64, begin func()) *body {
	b := &body{r: r, begin: begin, left: length}
	if length < 0 {
		b.chunked, b.left, b.trailer = true, 0, make(http.Header)
	}
	if length == 0 {
		b.fail(io.EOF)
	}
	return b
}

// Read implements io.Reader. What is no body fails with a badRequest.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return 0, http.ErrBodyReadAfterClose
	}
	return b.read(p)
}

// stop takes the body from whoever got it. It reports false where a read goes on:
// then nobody else may read from the connection any more.
func (b *body) stop() bool {
	if !b.mu.TryLock() {
		return false
	}
	defer b.mu.Unlock()
	b.over = true
	return true
}

// read is Read by the one who may; mu is held, or the body was stopped.
func (b *body) read(p []byte) (int, error) {
	if b.begin != nil {
		b.begin()
		b.begin = nil
	}
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	if b.chunked && b.left == 0 {
		if err := b.nextChunk(); err != nil {
			return 0, b.fail(err)
		}
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	switch {
	case err != nil:
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return n, b.fail(err)
	case b.left == 0 && !b.chunked:
		return n, b.fail(io.EOF)
	}
	return n, nil
}

func (b *body) fail(err error) error {
	b.err = err
	if errors.Is(err, io.EOF) {
		b.ended.Store(true)
	}
	return err
}

// Close leaves what is left on the connection, which then serves no more.
func (b *body) Close() error { return nil }

// nextChunk reads the line before a chunk (RFC 9112, section 7.1), and after
// the last one the trailer section, which ends the body with io.EOF.
func (b *body) nextChunk() error {
	if b.opened {
		left := 2
		if line, err := readLine(b.r, &left); err != nil {
			return cut(err)
		} else if len(line) > 0 {
			return bad("a chunk is longer than it says")
		}
	}
	b.opened = true
	left := maxChunkLine
	line, err := readLine(b.r, &left)
	if err != nil {
		return cut(err)
	}
	size, digits := int64(0), 0
	for ; digits < len(line); digits++ {
		d := hexDigit(line[digits])
		if d < 0 {
			break
		}
		if digits == 15 {
			return bad("a chunk is too large")
		}
		size = size<<4 | int64(d)
	}
	// Extensions say nothing that has to be kept; only their shape is looked at.
	if rest := line[digits:]; digits == 0 || len(rest) > 0 && rest[0] != ';' {
		return bad("a chunk does not begin with its size")
	}
	if size > 0 {
		b.left = size
		return nil
	}
	left = maxTrailer
	for {
		line, err := readLine(b.r, &left)
		if err != nil {
			return cut(err)
		}
		if len(line) == 0 {
			return io.EOF
		}
		name, value, err := field(line)
		if err != nil {
			return err
		}
		if !inTrailer(name) {
			return bad("the trailer has " + name + ", which must come before the body")
		}
		if _, announced := b.trailer[name]; announced {
			b.trailer[name] = append(b.trailer[name], value)
		}
	}
}

// inTrailer reports whether a field may come after the body (RFC 9110, section
// 6.5.1): none that frames, routes, or says who asks.
func inTrailer(name string) bool {
	switch name {
	case "Transfer-Encoding", "Content-Length", "Content-Encoding", "Content-Type", "Content-Range", "Host", "Trailer",
		"Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie", "Connection", "Te", "Upgrade", "Expect", "Max-Forwards", "Cache-Control":
		return false
	}
	return true
}

// cut is err where a connection must not end.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
