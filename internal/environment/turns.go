package environment

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
)

// Turns follow what goes over a connection as HTTP/1.1 (RFC 9112) and tell when
// it is between two turns: every request that began has been sent whole and
// answered whole. There the connection can go on with another server, and who is
// at its other end sees no difference. Nothing is changed on the way.
//
// What is not certain to be HTTP/1, or to go on as it (an upgrade, a body that
// only the end of the connection ends), is opaque from there on: it is never
// between turns.
type turns struct {
	opaque   bool
	requests half
	answers  half
	// waiting are the requests whose answer has not ended: whether it has no body,
	// whatever its header says.
	waiting []bool
	// status is called with the status of each answer; nil: with none.
	status func(int)
	// What is left without an answer says something of the server only where nothing
	// that the client did does. due: the request that waits is the only one, sent when
	// nothing said that the connection ends, which ending says from then on. doubt:
	// the connection may have ended unsaid. begun: there is the header of its answer.
	due, ending, doubt, begun bool
}

// Bounds of what is followed.
const (
	maxTurnHead = 64 << 10 // bytes of a header
	maxWaiting  = 256      // requests sent ahead
)

// A half is one direction of the connection.
type half struct {
	state halfState
	line  []byte // the header, or the line, as far as it has come
	left  int64  // bytes of the body, or of its chunk
}

type halfState int

const (
	inHead    halfState = iota // a header; between messages where nothing of it has come
	inBody                     // left bytes
	atSize                     // the line with the size of a chunk
	inChunk                    // left bytes of it
	inEnd                      // the line end after it
	inTrailer                  // lines up to an empty one
)

// idle reports whether nothing is under way.
func (h *half) idle() bool { return h.state == inHead && len(h.line) == 0 }

// between reports whether the connection is between two turns.
func (t *turns) between() bool {
	return !t.opaque && len(t.waiting) == 0 && t.requests.idle() && t.answers.idle()
}

// owed is how many requests go without an answer if the server ends the connection
// now, and it is the server that is to blame: at most one. A request that was sent
// ahead, after what ends the connection or with something behind it need not be
// answered (RFC 9112, sections 9.3.1, 9.3.2 and 9.6), and one whose answer has begun
// has its status. So nobody has answers fail by what they send.
func (t *turns) owed() int {
	if t.due && !t.begun && len(t.waiting) == 1 && t.requests.idle() {
		return 1
	}
	return 0
}

// elsewhere says that what is sent next goes to another connection.
func (t *turns) elsewhere() { t.ending, t.doubt = false, false }

// sent takes what the client has sent.
func (t *turns) sent(b []byte) {
	t.follow(&t.requests, b, t.request, func() {})
}

// answered takes what the server has sent.
func (t *turns) answered(b []byte) {
	t.follow(&t.answers, b, t.answer, func() { t.waiting, t.begun = t.waiting[1:], false })
}

// follow takes bytes of one direction. begun is called with each header, and says
// what follows it; ended after each message.
func (t *turns) follow(h *half, b []byte, begun func(head []byte) (framing, bool), ended func()) {
	for len(b) > 0 && !t.opaque {
		if h.state == inBody || h.state == inChunk {
			n := min(int64(len(b)), h.left)
			if b, h.left = b[n:], h.left-n; h.left > 0 {
				return
			}
			if h.state == inChunk {
				h.state = inEnd
				continue
			}
			h.state = inHead
			ended()
			continue
		}
		i := bytes.IndexByte(b, '\n') + 1
		if i == 0 {
			i = len(b)
		}
		h.line, b = append(h.line, b[:i]...), b[i:]
		if len(h.line) > maxTurnHead {
			t.giveUp()
			return
		}
		if h.line[len(h.line)-1] == '\n' && !t.lineOf(h, begun, ended) {
			t.giveUp()
		}
	}
}

// giveUp says that the connection is none that can be followed.
func (t *turns) giveUp() { *t = turns{opaque: true} }

// lineOf takes a line that is whole, which in a header is its last; false: the
// connection can't be followed.
func (t *turns) lineOf(h *half, begun func(head []byte) (framing, bool), ended func()) bool {
	line, ok := bytes.CutSuffix(h.line, []byte("\r\n"))
	if !ok {
		return false
	}
	if h.state == inHead {
		head, whole := bytes.CutSuffix(line, []byte("\r\n"))
		if !whole {
			return len(line) > 0
		}
		h.line = nil
		f, ok := begun(head)
		switch {
		case !ok:
			return false
		case f.chunked:
			h.state = atSize
		case f.length > 0:
			h.state, h.left = inBody, f.length
		case !f.interim:
			ended()
		}
		return true
	}
	empty := len(line) == 0
	switch h.state {
	case atSize:
		size, _, _ := strings.Cut(string(line), ";")
		n, err := strconv.ParseUint(strings.TrimRight(size, " \t"), 16, 62)
		if err != nil {
			return false
		}
		if h.state, h.left = inChunk, int64(n); n == 0 {
			h.state = inTrailer
		}
	case inEnd:
		if !empty {
			return false
		}
		h.state = atSize
	case inTrailer:
		if empty {
			h.state = inHead
			h.line = nil
			ended()
			return true
		}
	}
	h.line = h.line[:0]
	return true
}

// framing is how long the message of a header is (RFC 9112, section 6.3).
type framing struct {
	chunked bool
	length  int64
	known   bool // one of both was said
	interim bool // it is no answer yet: another header follows
	last    bool // the connection ends with it
}

// request takes the header of a request.
func (t *turns) request(head []byte) (framing, bool) {
	first, fields, _ := strings.Cut(string(head), "\r\n")
	method, rest, ok := strings.Cut(first, " ")
	_, version, ok2 := strings.Cut(rest, " ")
	if !ok || !ok2 || len(version) != 8 || !strings.HasPrefix(version, "HTTP/1.") || method == http.MethodConnect || len(t.waiting) == maxWaiting {
		return framing{}, false
	}
	t.due = len(t.waiting) == 0 && !t.ending && !t.doubt
	t.waiting = append(t.waiting, method == http.MethodHead)
	f, ok := framingOf(fields)
	t.ending = t.ending || f.last || version == "HTTP/1.0"
	return f, ok
}

// answer takes the header of an answer.
func (t *turns) answer(head []byte) (framing, bool) {
	first, fields, _ := strings.Cut(string(head), "\r\n")
	if len(first) < 12 || !strings.HasPrefix(first, "HTTP/1.") || first[8] != ' ' || len(first) > 12 && first[12] != ' ' || len(t.waiting) == 0 {
		return framing{}, false
	}
	status, err := strconv.ParseUint(first[9:12], 10, 16)
	f, ok := framingOf(fields)
	if err == nil && status >= 200 && t.status != nil {
		t.status(int(status))
	}
	if status >= 200 {
		t.begun, t.doubt = true, false
	}
	t.ending = t.ending || f.last
	switch {
	case err != nil || !ok || status < 100 || status == http.StatusSwitchingProtocols:
		return framing{}, false
	case status < 200:
		return framing{interim: true}, true
	case t.waiting[0] || status == http.StatusNoContent || status == http.StatusNotModified:
		return framing{}, true
	case !f.known: // as long as the connection
		return framing{}, false
	}
	return f, true
}

// framingOf reads the fields of a header that say how long the message is.
func framingOf(fields string) (f framing, ok bool) {
	for field := range strings.SplitSeq(fields, "\r\n") {
		name, value, colon := strings.Cut(field, ":")
		if field == "" {
			continue
		}
		if !colon || name == "" || strings.ContainsAny(name, " \t\n") || strings.ContainsAny(field, "\r\x00") {
			return f, false
		}
		value = strings.Trim(value, " \t")
		switch {
		case strings.EqualFold(name, "Transfer-Encoding"):
			if f.known || !strings.EqualFold(value, "chunked") {
				return f, false
			}
			f.known, f.chunked = true, true
		case strings.EqualFold(name, "Content-Length"):
			n, err := strconv.ParseUint(value, 10, 62)
			if f.known || err != nil || value[0] == '+' {
				return f, false
			}
			f.known, f.length = true, int64(n)
		case strings.EqualFold(name, "Connection"):
			for option := range strings.SplitSeq(value, ",") {
				f.last = f.last || strings.EqualFold(strings.Trim(option, " \t"), "close")
			}
		}
	}
	return f, true
}
