package environment

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

// A turn's end is seen in whatever pieces it comes.
func TestTurns(t *testing.T) {
	const get, post = "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n"
	for name, c := range map[string]struct {
		sent, answered  string
		between, opaque bool
	}{
		"nothing":                   {"", "", true, false},
		"a request":                 {get, "", false, false},
		"half a request":            {get[:9], "", false, false},
		"a length":                  {get, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", true, false},
		"half a body":               {get, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh", false, false},
		"chunks":                    {get, chunked, true, false},
		"half a trailer":            {get, chunked[:len(chunked)-2], false, false},
		"a body sent":               {post, "HTTP/1.1 204 No Content\r\n\r\n", true, false},
		"answered before it is":     {post[:len(post)-1], "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false, false},
		"to go on":                  {post, "HTTP/1.1 100 Continue\r\n\r\n", false, false},
		"gone on":                   {post, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true, false},
		"a head":                    {"HEAD / HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", true, false},
		"two ahead, one answered":   {get + get, chunked, false, false},
		"two ahead, both answered":  {get + get, chunked + chunked, true, false},
		"an upgrade":                {get, "HTTP/1.1 101 Switching Protocols\r\n\r\n", false, true},
		"a body to the end":         {get, "HTTP/1.0 200 OK\r\n\r\nhello", false, true},
		"a tunnel":                  {"CONNECT x:1 HTTP/1.1\r\n\r\n", "", false, true},
		"HTTP/2":                    {"PRI * HTTP/2.0\r\n\r\n", "", false, true},
		"another protocol":          {"\x00\x00\x00\x08\x04\xd2\x16\x2f\n", "", false, true},
		"who speaks before asked":   {"", "220 hello\r\n\r\n", false, true},
		"two lengths":               {"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", "", false, true},
		"a length and chunks":       {"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", "", false, true},
		"lines that end otherwise":  {"GET / HTTP/1.1\nHost: x\n\n", "", false, true},
		"a header without an end":   {"GET / HTTP/1.1\r\nX: " + strings.Repeat("x", maxTurnHead), "", false, true},
		"a return within a field":   {"POST / HTTP/1.1\r\nX: a\rTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc", "", false, true},
		"a folded field":            {"GET / HTTP/1.1\r\nX: a\r\n b: c\r\n\r\n", "", false, true},
		"a chunk without an end":    {get, strings.Replace(chunked, "hello\r\n", "hello!", 1), false, true},
		"a size that is none":       {get, strings.Replace(chunked, "5;", "-5;", 1), false, true},
		"an answer without request": {get, chunked + chunked, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			for size := 1; size <= 7; size += 3 {
				var tr turns
				for b := []byte(c.sent); len(b) > 0; b = b[min(size, len(b)):] {
					tr.sent(b[:min(size, len(b))])
				}
				for b := []byte(c.answered); len(b) > 0; b = b[min(size, len(b)):] {
					tr.answered(b[:min(size, len(b))])
				}
				if tr.between() != c.between || tr.opaque != c.opaque {
					t.Fatalf("in pieces of %d: between %v, opaque %v; want %v, %v", size, tr.between(), tr.opaque, c.between, c.opaque)
				}
			}
		})
	}
}

// FuzzTurns: what net/http reads as whole requests and answers, and nothing more,
// is between turns, or opaque; in pieces it is as whole.
func FuzzTurns(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"), 3)
	f.Add([]byte("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"), []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 1)
	f.Fuzz(func(t *testing.T, sent, answered []byte, size int) {
		var whole, pieces turns
		whole.sent(sent)
		whole.answered(answered)
		size = max(1, min(size, 100))
		for b := sent; len(b) > 0; b = b[min(size, len(b)):] {
			pieces.sent(b[:min(size, len(b))])
		}
		for b := answered; len(b) > 0; b = b[min(size, len(b)):] {
			pieces.answered(b[:min(size, len(b))])
		}
		if whole.between() != pieces.between() || whole.opaque != pieces.opaque {
			t.Fatalf("whole: %+v, in pieces: %+v", whole, pieces)
		}
		if !whole.between() {
			return
		}
		// What it takes for whole turns net/http takes for as many.
		requests, answers := bufio.NewReader(bytes.NewReader(sent)), bufio.NewReader(bytes.NewReader(answered))
		for {
			if _, err := requests.Peek(1); err != nil {
				break
			}
			req, err := http.ReadRequest(requests)
			if err != nil {
				return // it refuses more
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			for interim := true; interim; {
				res, err := http.ReadResponse(answers, req)
				if err != nil {
					return
				}
				if _, err := io.Copy(io.Discard, res.Body); err != nil {
					return
				}
				interim = res.StatusCode < 200
			}
		}
		if _, err := answers.Peek(1); err == nil {
			t.Fatal("net/http sees more answers than requests")
		}
	})
}
