package httpdoor

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// raw sends bytes to a door and returns what comes back until it is closed.
// raw sends bytes, and gives all that comes back until the connection is closed. A
// client that ends its side is taken to have gone, so it does that only when nothing
// comes any more: what it sent was not whole, or the connection is kept.
func raw(t *testing.T, at, send string) string {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, send); err != nil {
		t.Fatal(err)
	}
	const still = 2 * time.Second
	end := time.AfterFunc(still, func() { c.(*net.TCPConn).CloseWrite() })
	defer end.Stop()
	var all []byte
	for b := make([]byte, 64<<10); ; {
		n, err := c.Read(b)
		all = append(all, b[:n]...)
		if err == io.EOF {
			return string(all)
		}
		if err != nil {
			t.Fatal(err)
		}
		end.Reset(still)
	}
}

// What two servers could read as two different things is passed on by neither.
func TestARequestWithTwoMeaningsReachesNobody(t *testing.T) {
	reached := make(chan string, 100)
	server := upstream(t, func(_ http.ResponseWriter, r *http.Request) { reached <- r.Method + " " + r.RequestURI })
	at := inside(t, New(Config{}), &testDoor{server: server})
	for name, send := range map[string]string{
		"both lengths":                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"both lengths, other order":   "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
		"two lengths":                 "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
		"two equal lengths":           "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
		"a list of lengths":           "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nabcd",
		"a signed length":             "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd",
		"an empty length":             "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\nabcd",
		"a length in hexadecimal":     "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\nabcd",
		"a length that overflows":     "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551620\r\n\r\nabcd",
		"another coding":              "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"chunked twice":               "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunked, hidden":             "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
		"chunked, quoted":             "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
		"chunked in HTTP/1.0":         "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"a space before the colon":    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
		"a folded line":               "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
		"a folded first line":         "GET / HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n",
		"LF alone":                    "GET / HTTP/1.1\nHost: a\n\n",
		"LF alone in one line":        "GET / HTTP/1.1\r\nHost: a\r\nX: b\nY: c\r\n\r\n",
		"CR alone":                    "GET / HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n",
		"NUL in a value":              "GET / HTTP/1.1\r\nHost: a\r\nX: b\x00c\r\n\r\n",
		"no name":                     "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
		"no colon":                    "GET / HTTP/1.1\r\nHost: a\r\nnothing\r\n\r\n",
		"a bracket in a name":         "GET / HTTP/1.1\r\nHost: a\r\nX(y): b\r\n\r\n",
		"no host":                     "GET / HTTP/1.1\r\n\r\n",
		"two hosts":                   "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"a host with a path":          "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
		"another host in the target":  "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"a host with a user":          "GET http://a@b/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"HTTP/1.2":                    "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
		"HTTP/0.9":                    "GET /\r\n",
		"a tab in the first line":     "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"two spaces":                  "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
		"a space in the target":       "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
		"CONNECT":                     "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
		"TRACE":                       "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
		"a fragment":                  "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
		"another method in a field":   "POST / HTTP/1.1\r\nHost: a\r\nX-HTTP-Method-Override: DELETE\r\nContent-Length: 0\r\n\r\n",
		"a method with an underscore": "POST / HTTP/1.1\r\nHost: a\r\nX_HTTP_Method_Override: DELETE\r\nContent-Length: 0\r\n\r\n",
		"a large head":                "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", MaxHead) + "\r\n\r\n",
		"many fields":                 "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", maxFields+1) + "\r\n",
		"another expectation":         "POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\nContent-Length: 0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			got := raw(t, at, send+"GET /smuggled HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
			if !strings.HasPrefix(got, "HTTP/1.1 4") && !strings.HasPrefix(got, "HTTP/1.1 5") || !strings.Contains(got, "urn:isle:problem:") {
				t.Errorf("answered %.200q", got)
			}
			select {
			case r := <-reached:
				// After a request that was read to its end the next one is served.
				if r != "GET /smuggled" || !strings.Contains(got, "Connection: close") && strings.Count(got, "HTTP/1.1 ") != 2 {
					t.Errorf("%s reached the server", r)
				}
				if name != "CONNECT" && name != "TRACE" && name != "a fragment" && !strings.HasPrefix(name, "another method") && !strings.HasPrefix(name, "a method") {
					t.Errorf("%s was served after it", r)
				}
			default:
			}
		})
	}
}

func TestABrokenChunkEndsItsRequest(t *testing.T) {
	got := make(chan error, 1)
	server := upstream(t, func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		got <- err
	})
	at := inside(t, New(Config{}), &testDoor{server: server})
	const start = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	for name, send := range map[string]string{
		"no number":             "x\r\n",
		"LF alone":              "1\na\r\n0\r\n\r\n",
		"more than it says":     "1\r\nab\r\n0\r\n\r\n",
		"a size that overflows": "10000000000000000\r\na\r\n",
		"a negative size":       "-1\r\na\r\n",
		"a space before":        " 1\r\na\r\n0\r\n\r\n",
		"a space behind":        "1 \r\na\r\n0\r\n\r\n",
		"its end is missing":    "1\r\na\r\n0\r\n",
		"a trailer that frames": "0\r\nContent-Length: 5\r\n\r\n",
		"a long line":           "1;" + strings.Repeat("x", maxChunkLine) + "\r\na\r\n0\r\n\r\n",
		"a large trailer":       "0\r\nX: " + strings.Repeat("x", maxTrailer) + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			answer := raw(t, at, start+send)
			if strings.HasPrefix(answer, "HTTP/1.1 2") || strings.Count(answer, "HTTP/1.1 ") > 1 {
				t.Errorf("answered %.200q", answer)
			}
			select {
			case err := <-got:
				if err == nil {
					t.Error("the server took the body for whole")
				}
			default: // it was not sent on
			}
		})
	}
}

func TestWhatIsInOrderPasses(t *testing.T) {
	server := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		io.WriteString(w, r.Method+" "+r.RequestURI+" "+string(b)+r.Trailer.Get("X-Sum")+"\n")
	})
	at := inside(t, New(Config{}), &testDoor{server: server})
	got := raw(t, at, "\r\nGET /1 HTTP/1.1\r\nHost: payments-api\r\n\r\n"+
		"POST /2 HTTP/1.1\r\nHost: payments-api:80\r\nContent-Length: 2\r\n\r\nab"+
		"POST /3 HTTP/1.1\r\nhost: payments-api\r\ntransfer-encoding: Chunked\r\nTrailer: X-Sum\r\n\r\n1;ext=\"x\"\r\na\r\n02\r\nbc\r\n0\r\nX-Sum: 7\r\nX-Other: 8\r\n\r\n"+
		"GET http://payments-api/4?a?b HTTP/1.1\r\nHost: payments-api\r\n\r\n"+
		"GET /5 HTTP/1.0\r\n\r\n"+
		"GET /not-served HTTP/1.1\r\nHost: payments-api\r\n\r\n")
	r := bufio.NewReader(strings.NewReader(got))
	var bodies []string
	for {
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			break
		}
		b, _ := io.ReadAll(res.Body)
		bodies = append(bodies, string(b))
	}
	want := "GET /1 \nPOST /2 ab\nPOST /3 abc7\nGET /4?a?b \nGET /5 \n"
	if strings.Join(bodies, "") != want {
		t.Errorf("%q\nwant %q", bodies, want)
	}
}

func FuzzReadHead(f *testing.F) {
	f.Add([]byte("POST /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nX: y\r\n\r\nabcd"))
	f.Add([]byte("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReaderSize(strings.NewReader(string(b)), 64)
		h, err := readHead(r)
		if err != nil {
			return
		}
		// What is read strictly net/http reads alike.
		req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(string(b))))
		if err != nil {
			// It is stricter about versions, hosts and targets.
			return
		}
		if req.Method != h.method || req.ContentLength != h.length {
			t.Errorf("%q: read %s %d, net/http %s %d", b, h.method, h.length, req.Method, req.ContentLength)
		}
		want, wantErr := io.ReadAll(req.Body)
		got, gotErr := io.ReadAll(newBody(r, h.length, nil))
		if gotErr == nil && (wantErr != nil || string(got) != string(want)) {
			t.Errorf("%q: body %q, net/http %q, %v", b, got, want, wantErr)
		}
	})
}
