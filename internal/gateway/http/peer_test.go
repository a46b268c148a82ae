package httpdoor

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// A rawDoor leads to a server that says what it likes: speak is given each of
// its connections.
type rawDoor struct {
	*testDoor
	at string
}

func (d rawDoor) Dial(ctx context.Context) (net.Conn, error) {
	d.mu.Lock()
	d.dials++
	d.mu.Unlock()
	return (&net.Dialer{}).DialContext(ctx, "tcp", d.at)
}

func rawUpstream(t *testing.T, speak func(n int, c net.Conn, r *bufio.Reader)) rawDoor {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	t.Cleanup(func() { l.Close(); running.Wait() })
	running.Go(func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				speak(n, c, bufio.NewReader(c))
			})
		}
	})
	return rawDoor{&testDoor{plain: true}, l.Addr().String()}
}

// saying answers each request of a connection with the same bytes.
func saying(answer string) func(int, net.Conn, *bufio.Reader) {
	return func(_ int, c net.Conn, r *bufio.Reader) {
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			io.WriteString(c, answer)
			if strings.Contains(answer, "Connection: close") || !strings.Contains(answer, "\r\n\r\n") {
				return
			}
		}
	}
}

const (
	asked = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	last  = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
)

func TestAResponseIsFramedInOneWayOnly(t *testing.T) {
	for answer, want := range map[string]string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok":                                                           "200 ok",
		"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok":                                                              "200 ok",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok":                                      "200 ok",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\n\r\n":                   "200 ok",
		"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok":                                                           "200 ok",
		"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nok":                                                           "200 ok",
		"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok":                "200 ok",
		"HTTP/1.1 204 No Content\r\n\r\n":                                                                          "204 ",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n":                                                   "304 ",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n":                      "502",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk":                                     "502",
		"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok":                                                        "502",
		"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok":                                                          "502",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n":                                     "502",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n":             "502",
		"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n":                                           "502",
		"HTTP/1.1 200 OK\nContent-Length: 2\n\nok\r\n\r\n":                                                         "502",
		"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok":                                                          "502",
		"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 2\r\n\r\nok":                                        "502",
		"HTTP/1.1 200 OK\r\nX: a\x00\r\nContent-Length: 2\r\n\r\nok":                                               "502",
		"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok":                                                          "502",
		"HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok":                                                           "502",
		"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok":                                                           "502",
		"ICY 200 OK\r\nContent-Length: 2\r\n\r\nok":                                                                "502",
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n":                    "502",
		"HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", maxFields+1) + "Content-Length: 2\r\n\r\nok":            "502",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", MaxHead) + "\r\nContent-Length: 2\r\n\r\nok":                "502",
		strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", maxInformational+1) + "HTTP/1.1 204 No Content\r\n\r\n": "502",
		"":                         "502",
		"HTTP/1.1 200 OK\r\nConte": "502",
	} {
		got := raw(t, insideWith(t, New(Config{}), rawUpstream(t, saying(answer))), last)
		for strings.HasPrefix(got, "HTTP/1.1 103 ") {
			_, got, _ = strings.Cut(got, "\r\n\r\n")
		}
		res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(got)), nil)
		if err != nil {
			t.Errorf("%.100q: %v", answer, err)
			continue
		}
		b, _ := io.ReadAll(res.Body)
		have := strconv.Itoa(res.StatusCode)
		if want != "502" {
			have += " " + string(b)
		}
		if have != want {
			t.Errorf("%.100q became %q, want %q", answer, have, want)
		}
	}
}

func TestAResponseThatIsCutOffDoesNotEndAsIfItWereWhole(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nok",
		"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
		"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokk\r\n0\r\n\r\n",
	} {
		got := raw(t, insideWith(t, New(Config{}), rawUpstream(t, saying(answer))), last)
		res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(got)), nil)
		if err == nil {
			_, err = io.ReadAll(res.Body)
		}
		if err == nil {
			t.Errorf("%q became %q", answer, got)
		}
	}
}

func TestWhatNobodyAskedForIsNoResponseToTheNextRequest(t *testing.T) {
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	for name, answer := range map[string]string{
		"in the same piece": "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood" + evil,
		"after no content":  "HTTP/1.1 204 No Content\r\n\r\n" + evil,
		"after no change":   "HTTP/1.1 304 Not Modified\r\nContent-Length: 44\r\n\r\n" + evil,
	} {
		d := rawUpstream(t, saying(answer))
		got := raw(t, insideWith(t, New(Config{}), d), asked+asked+last)
		if strings.Contains(got, "evil") || strings.Count(got, "HTTP/1.1 ") != 3 || d.dials != 3 {
			t.Errorf("%s: %d connections, %q", name, d.dials, got)
		}
	}
	// A body in the response to HEAD is none.
	d := rawUpstream(t, saying("HTTP/1.1 200 OK\r\nContent-Length: 44\r\n\r\n"+evil))
	if got := raw(t, insideWith(t, New(Config{}), d), strings.Replace(asked, "GET", "HEAD", 1)+strings.Replace(last, "GET", "HEAD", 1)); strings.Contains(got, "evil") || strings.Count(got, "HTTP/1.1 200 ") != 2 {
		t.Errorf("%q", got)
	}
}

func TestAConnectionThatTheOtherSideClosedIsNotUsed(t *testing.T) {
	var requests atomic.Int32
	d := rawUpstream(t, func(n int, c net.Conn, r *bufio.Reader) {
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			// The first connection takes a second request and says nothing.
			if requests.Add(1) == 2 && n == 0 {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	at := insideWith(t, New(Config{}), d)
	if got := raw(t, at, asked+asked+last); strings.Count(got, "HTTP/1.1 200 ") != 3 || requests.Load() != 4 || d.dials != 2 {
		t.Errorf("%d requests over %d connections: %q", requests.Load(), d.dials, got)
	}
	// What may change something is sent once only, and nobody knows what came of it.
	requests.Store(0)
	d2 := rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		for {
			if _, err := http.ReadRequest(r); err != nil || requests.Add(1) > 1 {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	got := raw(t, insideWith(t, New(Config{}), d2), asked+strings.Replace(last, "GET", "DELETE", 1))
	if !strings.Contains(got, "HTTP/1.1 502 ") || requests.Load() != 2 {
		t.Errorf("%d requests: %q", requests.Load(), got)
	}
	if p := d2.passes; len(p) != 2 || p[1].outcome != "unknown" {
		t.Errorf("%+v", p)
	}
}

func TestAConnectionIsKeptBetweenRequests(t *testing.T) {
	server := upstreamH1(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/trailer" {
			w.Header().Set("Trailer", "X-After")
			io.WriteString(w, "body")
			w.Header().Set("X-After", "!")
			return
		}
		io.WriteString(w, r.Proto+" "+r.Host+" "+r.RequestURI+" "+r.Header.Get("User-Agent"))
	})
	d := &testDoor{server: server}
	c := clients(t)["HTTP/2.0"]
	at := "http://" + inside(t, New(Config{}), d)
	for range 3 {
		if _, body := get(t, c, at+"/a%20b?q=%2F"); body != "HTTP/1.1 example.com /a%20b?q=%2F Go-http-client/2.0" {
			t.Errorf("%q", body)
		}
		if res, body := get(t, c, at+"/trailer"); body != "body" || res.Trailer.Get("X-After") != "!" {
			t.Errorf("%q, %v", body, res.Trailer)
		}
	}
	if d.dials != 1 {
		t.Errorf("%d connections over TLS for requests one after the other", d.dials)
	}
}

func TestIdleConnectionsAreBounded(t *testing.T) {
	var s peers
	var open atomic.Int32
	for range 3 * maxIdlePeers {
		near, far := net.Pipe()
		open.Add(1)
		go func() { // ends when near is closed
			io.Copy(io.Discard, far)
			far.Close()
			open.Add(-1)
		}()
		s.put(newPeer(near))
	}
	if len(s.idle) != maxIdlePeers {
		t.Errorf("%d are kept", len(s.idle))
	}
	s.close()
	near, far := net.Pipe()
	s.put(newPeer(near))
	if _, err := far.Read(make([]byte, 1)); err != io.EOF || len(s.idle) != 0 {
		t.Errorf("after the end one is kept: %v", err)
	}
}

// What is taken for a response is to net/http the same one.
func FuzzResponses(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n",
		"HTTP/1.0 404 \r\nConnection: close\r\n\r\nno", "HTTP/1.1 304 x\r\nContent-Length: 3\r\n\r\n", "HTTP/1.1 103\r\n\r\n",
	} {
		f.Add(s, "GET")
		f.Add(s, "HEAD")
	}
	f.Fuzz(func(t *testing.T, answer, method string) {
		r := bufio.NewReader(strings.NewReader(answer))
		a, err := readAnswer(r, method)
		if err != nil || !token(method) {
			return
		}
		res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(answer)), &http.Request{Method: method})
		if err != nil {
			return // it is stricter about what trailers are announced
		}
		if res.StatusCode != a.status || res.ContentLength != a.length && !a.bodyless {
			t.Fatalf("%d %d, net/http has %d %d", a.status, a.length, res.StatusCode, res.ContentLength)
		}
		if a.bodyless {
			return
		}
		src := io.Reader(r)
		if !a.untilEnd {
			src = newBody(r, a.length, nil)
		}
		ours, err := io.ReadAll(src)
		theirs, err2 := io.ReadAll(res.Body)
		if err == nil && (err2 != nil || string(ours) != string(theirs)) {
			t.Fatalf("%q, net/http has %q, %v", ours, theirs, err2)
		}
	})
}

// What is answered before its body is whole leaves one reader of the client's
// connection, and the request after it whole.
func TestABodyThatIsAnsweredEarlyIsReadByOneOnly(t *testing.T) {
	const pieces, piece = 400, 100
	d := rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			io.Copy(io.Discard, req.Body)
		}
	})
	addr := insideWith(t, New(Config{}), d)
	for range 5 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: "+strconv.Itoa(pieces*piece)+"\r\n\r\n")
		r := bufio.NewReader(c)
		got := func(what string) bool {
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				return false // it was closed, as it may be
			}
			b, err := io.ReadAll(res.Body)
			if res.StatusCode != 200 || string(b) != "ok" || err != nil {
				t.Errorf("%s: %d %q %v", what, res.StatusCode, b, err)
			}
			return true
		}
		if !got("the early answer") {
			t.Error("there was none")
		}
		for range pieces {
			if _, err := io.WriteString(c, strings.Repeat("x", piece)); err != nil {
				break // closed
			}
		}
		if _, err := io.WriteString(c, asked); err == nil {
			got("the next answer")
		}
		c.Close()
	}
}
