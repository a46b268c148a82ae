package httpdoor

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// Bounds of what a client may send before its body.
const (
	// MaxHead bounds a request's head in bytes, its first line with it.
	MaxHead = 64 << 10
	// maxFields bounds how many header fields a head has.
	maxFields = 200
	// maxTrailer bounds a chunked body's trailer section in bytes.
	maxTrailer = 8 << 10
	// maxChunkLine bounds the line before a chunk in bytes, its extensions with it.
	maxChunkLine = 1 << 10
)

// A badRequest is what is wrong with a message. Nothing after it on the same
// connection can be read: where it ends is not known.
type badRequest struct {
	status int
	what   string
}

func (e *badRequest) Error() string { return e.what }

func bad(what string) error { return &badRequest{http.StatusBadRequest, what} }

// A head is what stands before a request's body.
type head struct {
	method, target string
	minor          int // of the version HTTP/1.x: 0 or 1
	host           string
	header         http.Header // without Host
	length         int64       // of the body in bytes; -1: chunked
	close          bool        // the client wants no other request here
	expect         bool        // it waits for 100 (Continue)
}

// readHead reads a request's head (RFC 9112). It takes no more than one way to
// write each thing: a server behind must not read another message out of the
// same bytes. So there are no lines that end in LF alone, no folded lines, no
// space before a colon, no two lengths, and no coding but chunked. The error is
// io.EOF where the connection ends before the first byte.
func readHead(r *bufio.Reader) (*head, error) {
	left := MaxHead
	line, err := readLine(r, &left)
	if err == nil && len(line) == 0 { // RFC 9112, section 2.2
		line, err = readLine(r, &left)
	}
	if err != nil {
		if errors.Is(err, io.EOF) && left == MaxHead {
			return nil, io.EOF
		}
		return nil, err
	}
	h := &head{header: make(http.Header, 8)}
	if err := h.requestLine(line); err != nil {
		return nil, err
	}
	hosts := 0
	for n := 0; ; n++ {
		line, err := readLine(r, &left)
		if err != nil {
			return nil, err
		}
		if len(line) == 0 {
			break
		}
		if n == maxFields {
			return nil, &badRequest{http.StatusRequestHeaderFieldsTooLarge, "the request has more than " + strconv.Itoa(maxFields) + " header fields"}
		}
		name, value, err := field(line)
		if err != nil {
			return nil, err
		}
		if name == "Host" {
			hosts++
			h.host = value
			continue
		}
		h.header[name] = append(h.header[name], value)
	}
	if hosts > 1 || hosts == 0 && h.minor == 1 {
		return nil, bad("the request has not exactly one Host")
	}
	if h.host != "" && !validHost(h.host) {
		return nil, bad("the request's Host is no host")
	}
	return h, h.framing()
}

// requestLine reads METHOD SP TARGET SP HTTP/1.x.
func (h *head) requestLine(line []byte) error {
	method, rest, ok := strings.Cut(string(line), " ")
	target, version, ok2 := strings.Cut(rest, " ")
	if !ok || !ok2 || !token(method) || target == "" {
		return bad("the request line is not METHOD TARGET HTTP/1.1")
	}
	switch version {
	case "HTTP/1.1":
		h.minor = 1
	case "HTTP/1.0":
	default:
		return &badRequest{http.StatusHTTPVersionNotSupported, "the request's version is neither HTTP/1.1 nor HTTP/1.0"}
	}
	for _, c := range []byte(target) {
		if c <= ' ' || c >= 0x7f {
			return bad("the request's target has a character that has to be percent-encoded")
		}
	}
	h.method, h.target = method, target
	return nil
}

// field splits a header field's line. The name is in its canonical form.
func field(line []byte) (name, value string, err error) {
	if line[0] == ' ' || line[0] == '\t' {
		return "", "", bad("a header field is folded over lines")
	}
	n, v, ok := bytes.Cut(line, []byte(":"))
	if !ok || !token(string(n)) {
		return "", "", bad("a header field is not NAME: VALUE")
	}
	v = bytes.Trim(v, " \t")
	for _, c := range v {
		if c < ' ' && c != '\t' || c == 0x7f {
			return "", "", bad("a header field's value has a control character")
		}
	}
	return textproto.CanonicalMIMEHeaderKey(string(n)), string(v), nil
}

// framing finds out where the body ends (RFC 9112, section 6), and takes the
// fields that say so, and those that are of this connection only, out.
func (h *head) framing() error {
	coded, lengths := h.header["Transfer-Encoding"], h.header["Content-Length"]
	switch {
	case len(coded) > 0 && len(lengths) > 0:
		return bad("the request says its length twice, by Content-Length and by Transfer-Encoding")
	case len(coded) > 0 && h.minor == 0:
		return bad("a request of HTTP/1.0 has a Transfer-Encoding")
	case len(coded) > 1 || len(coded) == 1 && !strings.EqualFold(coded[0], "chunked"):
		return &badRequest{http.StatusNotImplemented, "the request's Transfer-Encoding is not chunked"}
	case len(coded) == 1:
		h.length = -1
	case len(lengths) > 1:
		return bad("the request has more than one Content-Length")
	case len(lengths) == 1:
		n, err := contentLength(lengths[0])
		if err != nil {
			return err
		}
		h.length = n
	}
	delete(h.header, "Transfer-Encoding")
	h.close = h.minor == 0 || listed(h.header, "Connection", "close")
	if expect := h.header["Expect"]; len(expect) > 0 {
		if len(expect) > 1 || !strings.EqualFold(expect[0], "100-continue") {
			return &badRequest{http.StatusExpectationFailed, "the request expects something that is not 100-continue"}
		}
		h.expect = h.minor == 1 && h.length != 0
		delete(h.header, "Expect")
	}
	return nil
}

func contentLength(s string) (int64, error) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, bad("its Content-Length is no number")
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, bad("its Content-Length is no number")
	}
	return n, nil
}

// listed reports whether a header that is a list has the token.
func listed(h http.Header, name, token string) bool {
	for _, v := range h[name] {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.Trim(t, " \t"), token) {
				return true
			}
		}
	}
	return false
}

// readLine reads to CRLF, which it leaves out. It counts left, in bytes, down.
// The line is valid until the next read.
func readLine(r *bufio.Reader, left *int) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) { // rare: it is put together elsewhere
		line = bytes.Clone(line)
		for errors.Is(err, bufio.ErrBufferFull) && len(line) <= *left {
			var more []byte
			more, err = r.ReadSlice('\n')
			line = append(line, more...)
		}
	}
	if *left -= len(line); *left < 0 || errors.Is(err, bufio.ErrBufferFull) {
		return nil, &badRequest{http.StatusRequestHeaderFieldsTooLarge, "the head of the message is too large"}
	}
	if err != nil {
		if errors.Is(err, io.EOF) && len(line) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	line, ok := bytes.CutSuffix(line, []byte("\r\n"))
	if !ok || bytes.IndexByte(line, '\r') >= 0 {
		return nil, bad("a line does not end in CR LF")
	}
	return line, nil
}

// token reports whether s is a token (RFC 9110, section 5.6.2).
func token(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// validHost reports whether s may stand in Host: letters, digits, and what
// addresses and ports need.
func validHost(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9':
		case strings.IndexByte(".-_:[]", c) >= 0:
		default:
			return false
		}
	}
	return len(s) <= 262
}
