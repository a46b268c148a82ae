package httpdoor

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// maxInformational is how many informational responses one request may have.
const maxInformational = 8

// An answerHead is what stands before a response's body.
type answerHead struct {
	status   int
	minor    int // of the version HTTP/1.x: 0 or 1
	header   http.Header
	length   int64 // of the body in bytes; -1: chunked or until the connection ends
	untilEnd bool  // the body ends with the connection
	bodyless bool
	keep     bool // another request may follow on the connection
}

// readAnswer reads the head of a response to a request with the method (RFC
// 9112). It is as strict as readHead: what a client might read another response
// out of is none.
func readAnswer(r *bufio.Reader, method string) (*answerHead, error) {
	a, err := readAnswerHead(r)
	if err != nil {
		return nil, wrongAnswer(cut(err))
	}
	if err := a.framing(method); err != nil {
		return nil, err
	}
	return a, nil
}

func readAnswerHead(r *bufio.Reader) (*answerHead, error) {
	left := MaxHead
	line, err := readLine(r, &left)
	if err != nil {
		return nil, err
	}
	a := &answerHead{header: make(http.Header, 8)}
	if err := a.statusLine(string(line)); err != nil {
		return nil, err
	}
	for n := 0; ; n++ {
		line, err := readLine(r, &left)
		if err != nil {
			return nil, err
		}
		if len(line) == 0 {
			return a, nil
		}
		if n == maxFields {
			return nil, &badResponse{"it has more than " + strconv.Itoa(maxFields) + " header fields"}
		}
		name, value, err := field(line)
		if err != nil {
			return nil, err
		}
		a.header[name] = append(a.header[name], value)
	}
}

// statusLine reads HTTP/1.x SP STATUS SP REASON. Servers are known to leave out
// the reason with the space before it. It says nothing, and goes no further.
func (a *answerHead) statusLine(line string) error {
	rest, ok := strings.CutPrefix(line, "HTTP/1.")
	if !ok || len(rest) < 5 || rest[0] != '0' && rest[0] != '1' || rest[1] != ' ' || len(rest) > 5 && rest[5] != ' ' {
		return &badResponse{"it does not begin with HTTP/1.1 and a status"}
	}
	a.minor = int(rest[0] - '0')
	for _, c := range []byte(rest[2:5]) {
		if c < '0' || c > '9' {
			return &badResponse{"its status is no number"}
		}
		a.status = a.status*10 + int(c-'0')
	}
	if a.status < 100 || a.status > 599 {
		return &badResponse{"its status is none"}
	}
	return nil
}

// framing finds out where the body ends (RFC 9112, section 6.3).
func (a *answerHead) framing(method string) error {
	coded, lengths := a.header["Transfer-Encoding"], a.header["Content-Length"]
	delete(a.header, "Transfer-Encoding")
	switch {
	case len(coded) > 0 && len(lengths) > 0:
		return &badResponse{"it says its length twice, by Content-Length and by Transfer-Encoding"}
	case len(coded) > 0 && a.minor == 0:
		return &badResponse{"it is of HTTP/1.0 and has a Transfer-Encoding"}
	case len(coded) > 1 || len(coded) == 1 && !strings.EqualFold(coded[0], "chunked"):
		return &badResponse{"its Transfer-Encoding is not chunked"}
	}
	a.length = -1
	if len(lengths) > 0 {
		for _, l := range lengths[1:] { // the same twice is one
			if l != lengths[0] {
				return &badResponse{"it has two lengths"}
			}
		}
		n, err := contentLength(lengths[0])
		if err != nil {
			return &badResponse{"its Content-Length is no number"}
		}
		a.length, a.header["Content-Length"] = n, lengths[:1]
	}
	a.keep = a.minor == 1 && !listed(a.header, "Connection", "close")
	switch {
	case a.status < 200 || a.status == http.StatusNoContent || a.status == http.StatusNotModified:
		a.bodyless, a.length = true, 0
	case method == http.MethodHead:
		a.bodyless = true
	case len(coded) == 0 && len(lengths) == 0:
		a.untilEnd, a.keep = true, false
	}
	return nil
}

// wrongAnswer is err, of reading a response: what is no message is the fault of
// the real thing, and not of the client.
func wrongAnswer(err error) error {
	var b *badRequest
	if errors.As(err, &b) {
		return &badResponse{"it is no response that has one meaning: " + b.what}
	}
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	return err
}
