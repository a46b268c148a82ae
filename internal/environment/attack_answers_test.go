package environment

import (
	"bufio"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// A watch rolls a stage back by what its answers are. Who visits it does not make
// answers fail, whatever they send: of a request counts that nobody has answered it
// only where it was whole, and nothing else on the connection says why.
func TestNoVisitorMakesAnswersFail(t *testing.T) {
	const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	const last = "GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Close\r\n\r\n"
	const ok, bye = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
	type said struct{ sent, answered string }
	for name, c := range map[string]struct {
		said []said
		owed int
	}{
		"a request that nobody answers":                    {[]said{{get, ""}}, 1},
		"the next one":                                     {[]said{{get, ok}, {get, ""}}, 1},
		"one with a body":                                  {[]said{{"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", ""}}, 1},
		"only that it goes on":                             {[]said{{get, "HTTP/1.1 103 Early Hints\r\n\r\n"}}, 1},
		"half a header":                                    {[]said{{get[:20], ""}}, 0},
		"half a body":                                      {[]said{{"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nhi", ""}}, 0},
		"sent ahead of an answer":                          {[]said{{get + get + get, ok}}, 0},
		"sent ahead, after what is none":                   {[]said{{"GET /\xff HTTP/1.1\r\n\r\n" + get + get, bye}}, 0},
		"after what ends the connection":                   {[]said{{last + get, ok}}, 0},
		"after what ended the connection":                  {[]said{{last, ok}, {get, ""}}, 0},
		"after an answer that ends it":                     {[]said{{get, bye}, {get, ""}}, 0},
		"after a request of HTTP/1.0":                      {[]said{{"GET / HTTP/1.0\r\n\r\n", ok}, {get, ""}}, 0},
		"with what is none after it":                       {[]said{{get + "\x00\x00", ""}}, 0},
		"with what is none on lines after it":              {[]said{{get + "\x00\r\n\r\n", ""}}, 0},
		"read so slowly that the rest of it is not sent":   {[]said{{get, ok[:len(ok)-1]}}, 0},
		"whose answer was broken off after it was counted": {[]said{{get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe"}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var tr turns
			for _, s := range c.said {
				tr.sent([]byte(s.sent))
				tr.answered([]byte(s.answered))
			}
			if got := tr.owed(); got != c.owed {
				t.Errorf("%d answers are owed, want %d", got, c.owed)
			}
		})
	}
}

// named is an instance's port by name, and what it counts.
func named(t *testing.T, inside http.Handler) (*live, string) {
	t.Helper()
	behind := httptest.NewUnstartedServer(inside)
	behind.Config.ErrorLog = log.New(io.Discard, "", 0)
	behind.Start()
	t.Cleanup(behind.Close)
	l := &live{transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", behind.Listener.Addr().String())
	}}}
	t.Cleanup(l.transport.CloseIdleConnections)
	front := httptest.NewServer(l.proxy("web", 80))
	t.Cleanup(front.Close)
	return l, front.Listener.Addr().String()
}

func TestNoVisitorMakesAnswersByNameFail(t *testing.T) {
	inside := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/dies" {
			io.Copy(io.Discard, r.Body)
			panic(http.ErrAbortHandler)
		}
		io.Copy(w, r.Body)
	})
	for name, c := range map[string]struct {
		request string
		ends    bool
		failed  int64
	}{
		"it is answered":                 {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", false, 0},
		"nobody answers":                 {"GET /dies HTTP/1.1\r\nHost: x\r\n\r\n", false, 1},
		"nobody answers what was sent":   {"POST /dies HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi", false, 1},
		"a chunk that is none":           {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", false, 0},
		"a chunk that is none, later":    {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n-1\r\n", false, 0},
		"a protocol that is none":        {"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: \xff\r\n\r\n", false, 0},
		"a body that ends too early":     {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhi", true, 0},
		"a method that is not known":     {"FOO / HTTP/1.1\r\nHost: x\r\n\r\n", false, 0},
		"a method that is none, by name": {"CONNECT / HTTP/1.1\r\nHost: x\r\n\r\n", false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			l, address := named(t, inside)
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, c.request)
			if c.ends {
				conn.(*net.TCPConn).CloseWrite()
			}
			if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
			if got := l.answers.failed.Load(); got != c.failed {
				t.Errorf("%d answers failed, want %d", got, c.failed)
			}
		})
	}
	l, address := named(t, inside)
	l.transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return nil, io.ErrUnexpectedEOF }
	res, err := http.Post("http://"+address+"/", "text/plain", io.MultiReader(http.NoBody))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if got := l.answers.failed.Load(); got != 1 {
		t.Errorf("nobody could be asked, and %d answers failed", got)
	}
}

// What says that a request is none of the server's says nothing of the server.
func TestWhatARequestAsksForThatNobodyHasIsNoFailure(t *testing.T) {
	var a answers
	for _, status := range []int{http.StatusNotImplemented, http.StatusHTTPVersionNotSupported} {
		a.add(status)
	}
	if a.total.Load() != 2 || a.failed.Load() != 0 {
		t.Errorf("%d of %d failed", a.failed.Load(), a.total.Load())
	}
}
