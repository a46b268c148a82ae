package httpdoor

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"isle"
	"isle/internal/gateway"
	"isle/internal/policy"
)

// h2c speaks HTTP/2 without TLS.
func h2c() *http.Client {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{Protocols: &p}}
}

// clients are one of each protocol.
func clients(t *testing.T) map[string]*http.Client {
	one := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	two := h2c()
	for _, c := range []*http.Client{one, two} {
		c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		t.Cleanup(c.CloseIdleConnections)
	}
	return map[string]*http.Client{"HTTP/1.1": one, "HTTP/2.0": two}
}

func TestBodiesAndTrailersPassBothWays(t *testing.T) {
	server := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-After")
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %d %v", r.Proto, len(b), err)
		w.Header().Set("X-After", r.Trailer.Get("X-Sum")+"!")
	})
	for name, c := range clients(t) {
		at := inside(t, New(Config{}), &testDoor{server: server})
		body := io.MultiReader(strings.NewReader(strings.Repeat("x", 1<<20)), strings.NewReader("y"))
		req, _ := http.NewRequest("PUT", "http://"+at+"/", body)
		req.Trailer = http.Header{"X-Sum": {"7"}}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(name, err)
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if string(b) != "HTTP/2.0 1048577 <nil>" || err != nil || res.Trailer.Get("X-After") != "7!" || res.Proto != name {
			t.Errorf("%s: %s %q, %v, trailer %v", name, res.Proto, b, err, res.Trailer)
		}
	}
}

func TestAStreamPassesAsItComes(t *testing.T) {
	for name, c := range clients(t) {
		next, gone := make(chan string), make(chan struct{})
		server := upstream(t, func(w http.ResponseWriter, r *http.Request) {
			defer close(gone)
			w.Header().Set("Content-Type", "text/event-stream")
			http.NewResponseController(w).Flush()
			for {
				select {
				case s := <-next:
					fmt.Fprintf(w, "data: %s\n\n", s)
					http.NewResponseController(w).Flush()
				case <-r.Context().Done():
					return
				}
			}
		})
		res, err := c.Get("http://" + inside(t, New(Config{}), &testDoor{server: server}) + "/")
		if err != nil {
			t.Fatal(name, err)
		}
		r := bufio.NewReader(res.Body)
		for _, s := range []string{"one", "two"} { // the next is not sent before this one is here
			next <- s
			if line, err := r.ReadString('\n'); line != "data: "+s+"\n" {
				t.Fatalf("%s: %q, %v", name, line, err)
			}
			r.ReadString('\n')
		}
		res.Body.Close()
		<-gone // the real thing is told that the client went
	}
}

func TestBothSidesOfAStreamMaySpeakAtOnce(t *testing.T) {
	server := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		rc := http.NewResponseController(w)
		rc.Flush()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintf(w, "echo %s te=%s\n", lines.Text(), r.Header.Get("Te"))
			rc.Flush()
		}
		w.Header().Set("Grpc-Status", "0")
	})
	c := clients(t)["HTTP/2.0"]
	send, w := io.Pipe()
	req, _ := http.NewRequest("POST", "http://"+inside(t, New(Config{}), &testDoor{server: server})+"/svc/M", send)
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(res.Body)
	for _, s := range []string{"a", "b"} {
		io.WriteString(w, s+"\n")
		if line, err := r.ReadString('\n'); line != "echo "+s+" te=trailers\n" {
			t.Fatalf("%q, %v", line, err)
		}
	}
	w.Close()
	io.Copy(io.Discard, r)
	if res.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("trailer %v", res.Trailer)
	}
}

func TestInformationalResponsesPass(t *testing.T) {
	server := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusCreated)
	})
	for name, c := range clients(t) {
		var early atomic.Int32
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			if code == 103 && h.Get("Link") != "" {
				early.Add(1)
			}
			return nil
		}})
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+inside(t, New(Config{}), &testDoor{server: server})+"/", nil)
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(name, err)
		}
		res.Body.Close()
		if res.StatusCode != 201 || early.Load() != 1 {
			t.Errorf("%s: %d after %d early hints", name, res.StatusCode, early.Load())
		}
	}
}

func TestAClientThatExpectsToContinueIsToldTo(t *testing.T) {
	server := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	})
	d := &testDoor{server: server}
	at := inside(t, New(Config{}), d)
	got := raw(t, at, "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab")
	if !strings.HasPrefix(got, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ") || !strings.HasSuffix(got, "ab") {
		t.Errorf("%q", got)
	}
	// One that is refused does not send its body.
	d.decide = func(gateway.Ask) (pass, error) { return nil, isle.Errorf(isle.Refused, "no") }
	got = raw(t, at, "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 403 ") {
		t.Errorf("%q", got)
	}
}

func TestAWebSocketPasses(t *testing.T) {
	server := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Sec-Websocket-Key") != "k" || r.ProtoMajor != 1 {
			http.Error(w, "no", 400)
			return
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello ")
		io.Copy(c, rw)
	})
	d := &testDoor{server: server}
	at := inside(t, New(Config{}), d)
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// The first bytes come with the request.
	io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: k\r\n\r\nearly ")
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != 101 || res.Header.Get("Sec-Websocket-Accept") != "x" {
		t.Fatal(res, err)
	}
	io.WriteString(c, "late")
	b := make([]byte, len("hello early late"))
	if _, err := io.ReadFull(r, b); string(b) != "hello early late" {
		t.Fatalf("%q, %v", b, err)
	}
	c.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v after the end", rest, err)
	}
	if a := d.asks[0].Facts.Actions; len(a) != 2 {
		t.Errorf("a WebSocket asks for %v: what passes in it may change anything", a)
	}
	// HTTP/2 is not upgraded to: Java's client asks for it each time.
	got := raw(t, at, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 400 ") {
		t.Errorf("%q", got)
	}
}

func TestOneConnectionServesManyRequests(t *testing.T) {
	server := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "2")
		if r.Method != "HEAD" {
			io.WriteString(w, "ok")
		}
	})
	d := &testDoor{server: server}
	at := inside(t, New(Config{}), d)
	got := raw(t, at, strings.Repeat("HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 50))
	if strings.Count(got, "HTTP/1.1 200 OK") != 100 || strings.Count(got, "\r\n\r\nok") != 50 || d.dials != 1 {
		t.Errorf("%d dials, %.300q", d.dials, got)
	}
}

func TestWhatLeadsToTheRealThingLeadsToTheConnection(t *testing.T) {
	server := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Location", "https://example.com/next?x=1")
		h.Add("Set-Cookie", "a=b; Domain=example.com; Path=/; Secure; HttpOnly")
		h.Set("Strict-Transport-Security", "max-age=1")
		h.Set("Alt-Svc", `h3=":443"`)
		h.Set("Connection", "X-Private")
		h.Set("X-Private", "1")
		w.WriteHeader(http.StatusFound)
	})
	for name, c := range clients(t) {
		res, _ := get(t, c, "http://"+inside(t, New(Config{}), &testDoor{server: server})+"/")
		h := res.Header
		if res.StatusCode != 302 || h.Get("Location") != "http://payments-api/next?x=1" || h.Get("Set-Cookie") != "a=b; Path=/; HttpOnly" ||
			h.Get("Strict-Transport-Security")+h.Get("Alt-Svc") != "" {
			t.Errorf("%s: %d %v", name, res.StatusCode, h)
		}
	}
	res, _ := get(t, clients(t)["HTTP/1.1"], "http://"+inside(t, New(Config{}), &testDoor{server: server, as: "payments"})+"/")
	if got := res.Header.Get("Location"); got != "http://payments/next?x=1" {
		t.Errorf("who calls it payments is led to %s", got)
	}
	s := &serving{inside: "payments-api", host: "example.com:8443"}
	for in, want := range map[string]string{
		"https://example.com:8443/a": "http://payments-api/a", "//example.com:8443/a": "http://payments-api/a", "/a": "/a",
		"https://other.example/a": "https://other.example/a", "https://example.com:9/": "https://example.com:9/", "5; url=https://example.com/b": "5; url=http://payments-api/b",
	} {
		if got := s.back(in); got != want {
			t.Errorf("%s leads to %s, want %s", in, got, want)
		}
	}
}

func TestTheClientClaimsNothing(t *testing.T) {
	got := make(chan http.Header, 1)
	server := upstream(t, func(_ http.ResponseWriter, r *http.Request) { got <- r.Header })
	d := &testDoor{server: server, secret: "real", conn: policy.Connection{Credential: policy.Credential{Kind: "header", Header: "X-Api-Key", Secret: "s"}}}
	at := inside(t, New(Config{}), d)
	raw(t, at, "GET / HTTP/1.1\r\nHost: a\r\nX-Api-Key: fake\r\nX_Api_Key: fake\r\nx-api_key: fake\r\nX-Forwarded-For: fake\r\nForwarded: fake\r\nX_Forwarded_Host: fake\r\n"+
		"X-Original-URL: fake\r\nConnection: X-Hop, close\r\nX-Hop: fake\r\nProxy-Authorization: fake\r\nKeep-Alive: fake\r\nTE: gzip\r\nX-Mine: kept\r\n\r\n")
	h := <-got
	if h.Get("X-Api-Key") != "real" || h.Get("X-Mine") != "kept" || strings.Contains(fmt.Sprint(h), "fake") || h.Get("Te") != "" || h.Get("User-Agent") != "" {
		t.Errorf("%v", h)
	}
	// Nor does it take the credential away by calling it its connection's.
	raw(t, at, "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Api-Key, close\r\n\r\n")
	if h := <-got; h.Get("X-Api-Key") != "real" {
		t.Errorf("%v", h)
	}
}

func TestCredentialsAreInjected(t *testing.T) {
	got := make(chan string, 1)
	server := upstream(t, func(_ http.ResponseWriter, r *http.Request) { got <- strings.Join(r.Header["Authorization"], "|") })
	for kind, want := range map[string]string{"bearer": "Bearer s3cret", "basic": "Basic YW5uOnMzY3JldA==", "": "Bearer mine"} {
		d := &testDoor{server: server, secret: "s3cret\n", conn: policy.Connection{Credential: policy.Credential{Kind: kind, User: "ann", Secret: "s"}}}
		raw(t, inside(t, New(Config{}), d), "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer mine\r\n\r\n")
		if have := <-got; kind != "basic" && have != want || kind == "basic" && have != "Basic YW5uOnMzY3JldAo=" && have != want {
			t.Errorf("%s: %q, want %q", kind, have, want)
		}
		for _, e := range d.events {
			if strings.Contains(fmt.Sprintf("%s %s", e.Text, e.Data), "s3cret") || strings.Contains(string(e.Text), "mine") {
				t.Errorf("%s: the recording has %s", kind, e.Text)
			}
		}
	}
}

func TestARefusalIsAProblemThatSaysWhatToDo(t *testing.T) {
	server := upstream(t, func(http.ResponseWriter, *http.Request) { t.Error("it reached the server") })
	d := &testDoor{server: server}
	for name, c := range clients(t) {
		at := inside(t, New(Config{}), d)
		for code, want := range map[isle.Code]struct {
			status int
			kind   string
		}{isle.Refused: {403, "refused"}, isle.Held: {403, "held"}, isle.Unavailable: {503, "unavailable"}} {
			d.decide = func(gateway.Ask) (pass, error) {
				return nil, isle.Errorf(code, "workload:shop may not http:write connection:payments-api").WithHint("ask ann")
			}
			res, body := get(t, c, "http://"+at+"/")
			if res.StatusCode != want.status || res.Header.Get("Content-Type") != "application/problem+json" ||
				!strings.Contains(body, `"type":"urn:isle:problem:`+want.kind+`"`) || !strings.Contains(body, `"hint":"ask ann"`) {
				t.Errorf("%s, %s: %d %v %s", name, code, res.StatusCode, res.Header, body)
			}
		}
	}
}

func TestAnApprovalIsBoundToTheWholeRequest(t *testing.T) {
	got := make(chan string, 1)
	server := upstream(t, func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- fmt.Sprint(r.ContentLength, " ", string(b))
	})
	d := &testDoor{server: server}
	var text []byte
	d.decide = func(a gateway.Ask) (pass, error) {
		more, err := a.More()
		text = append(a.Text, more...)
		return &testPass{}, err
	}
	at := inside(t, New(Config{}), d)
	req, _ := http.NewRequest("POST", "http://"+at+"/pay/../refund?id=7", io.MultiReader(strings.NewReader(`{"amount":1}`)))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Cookie", "session=secret")
	if _, err := http.DefaultClient.Do(req); err != nil {
		t.Fatal(err)
	}
	want := "POST https://example.com/refund?id=7\nContent-Type: application/json\nCookie: sha256:"
	if !strings.HasPrefix(string(text), want) || !strings.HasSuffix(string(text), "\n\n"+`{"amount":1}`) || strings.Contains(string(text), "secret") {
		t.Errorf("%q", text)
	}
	if s := <-got; s != `12 {"amount":1}` {
		t.Errorf("the server got %q", s)
	}
	res, err := http.Post("http://"+at+"/", "text/plain", strings.NewReader(strings.Repeat("x", MaxHeld+1)))
	if err != nil || res.StatusCode != 403 {
		t.Errorf("%v, %v: more than a human is shown passes", res, err)
	}
}

func TestAClientThatGoesWithdrawsWhatItAskedFor(t *testing.T) {
	server := upstream(t, func(http.ResponseWriter, *http.Request) {})
	for name, begin := range map[string]func(at string) io.Closer{
		"HTTP/1.1": func(at string) io.Closer {
			c, err := net.Dial("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab")
			return c
		},
		"HTTP/2.0": func(at string) io.Closer {
			ctx, cancel := context.WithCancel(t.Context())
			req, _ := http.NewRequestWithContext(ctx, "POST", "http://"+at+"/", strings.NewReader("ab"))
			go clients(t)["HTTP/2.0"].Do(req)
			return closer(cancel)
		},
	} {
		waiting, over := make(chan struct{}), make(chan error, 1)
		p := New(Config{})
		d := &testDoor{server: server}
		held := heldDoor{d, waiting, over}
		at := insideWith(t, p, held)
		c := begin(at)
		<-waiting
		c.Close()
		select {
		case <-over:
		case <-time.After(20 * time.Second):
			t.Errorf("%s: what the client asked for still waits", name)
		}
	}
}

type closer func()

func (c closer) Close() error { c(); return nil }

// A heldDoor holds every request until its context ends.
type heldDoor struct {
	*testDoor
	waiting chan struct{}
	over    chan error
}

func (d heldDoor) Ask(ctx context.Context, a gateway.Ask) (pass, error) {
	if _, err := a.More(); err != nil {
		return nil, err
	}
	close(d.waiting)
	<-ctx.Done()
	d.over <- context.Cause(ctx)
	return nil, context.Cause(ctx)
}

func TestASessionThatIsEndedSaysWhy(t *testing.T) {
	waiting, over := make(chan struct{}), make(chan error, 1)
	server := upstream(t, func(http.ResponseWriter, *http.Request) {})
	p := New(Config{})
	d := heldDoor{&testDoor{server: server}, waiting, over}
	d.conn = policy.Connection{Name: "payments-api", Address: "example.com:443"}
	near, far := net.Pipe()
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s, err := p.open(ctx, d, false)
		if err != nil {
			t.Error(err)
			return
		}
		serveConn(ctx, far, s)
		far.Close()
	}()
	go io.WriteString(near, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	go func() {
		<-waiting
		cancel(isle.Errorf(isle.Unavailable, "ann ended the session"))
	}()
	b, _ := io.ReadAll(near)
	<-done
	if !strings.HasPrefix(string(b), "HTTP/1.1 503 ") || !strings.Contains(string(b), "ann ended the session") {
		t.Errorf("%q", b)
	}
}

func TestLimitsHold(t *testing.T) {
	server := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/big" {
			w.Write(make([]byte, 101))
		}
		if r.URL.Path == "/endless" {
			for range 10 {
				w.Write(make([]byte, 50))
				http.NewResponseController(w).Flush()
			}
		}
	})
	d := &testDoor{server: server, conn: policy.Connection{Limits: policy.HTTPLimits{Body: 10, Response: 100}}}
	for name, c := range clients(t) {
		at := inside(t, New(Config{}), d)
		res, err := c.Post("http://"+at+"/", "", strings.NewReader("12345678901"))
		if err != nil || res.StatusCode != 413 {
			t.Errorf("%s: a body that says to be too large: %v, %v", name, res, err)
		}
		res, err = c.Post("http://"+at+"/", "", io.MultiReader(strings.NewReader("12345678901")))
		if err != nil || res.StatusCode != 413 {
			t.Errorf("%s: a body that is too large: %v, %v", name, res, err)
		}
		if res, _ := get(t, c, "http://"+at+"/big"); res.StatusCode != 502 {
			t.Errorf("%s: a response that says to be too large: %d", name, res.StatusCode)
		}
		res, err = c.Get("http://" + at + "/endless")
		if err == nil {
			_, err = io.ReadAll(res.Body)
		}
		if err == nil {
			t.Errorf("%s: a response that is too large ends as if it were whole", name)
		}
	}
	d = &testDoor{server: server, conn: policy.Connection{Limits: policy.HTTPLimits{PerSecond: 0.001, Burst: 2}}}
	p := New(Config{})
	for i, want := range []int{200, 200, 429} { // over all of its sessions
		res, _ := get(t, http.DefaultClient, "http://"+inside(t, p, d)+"/")
		if res.StatusCode != want || want == 429 && res.Header.Get("Retry-After") != "1000" {
			t.Errorf("request %d: %d, %v", i, res.StatusCode, res.Header)
		}
	}
}

func TestWhatIsBehindAndDoesNotAnswerIsAProblem(t *testing.T) {
	server := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			<-r.Context().Done()
		case "/cut":
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "12345")
			http.NewResponseController(w).Flush()
		}
		panic(http.ErrAbortHandler)
	})
	d := &testDoor{server: server}
	short := &testDoor{server: server, conn: policy.Connection{StatementTimeout: 200 * time.Millisecond}}
	for name, c := range clients(t) {
		at := inside(t, New(Config{}), d)
		if res, body := get(t, c, "http://"+at+"/"); res.StatusCode != 502 || !strings.Contains(body, "no-answer") {
			t.Errorf("%s: %d %s", name, res.StatusCode, body)
		}
		if res, body := get(t, c, "http://"+inside(t, New(Config{}), short)+"/slow"); res.StatusCode != 504 || !strings.Contains(body, "200ms") {
			t.Errorf("%s: %d %s", name, res.StatusCode, body)
		}
		res, err := c.Get("http://" + at + "/cut")
		if err == nil {
			_, err = io.ReadAll(res.Body)
		}
		if err == nil {
			t.Errorf("%s: a response that was cut off ends as if it were whole", name)
		}
	}
	d = &testDoor{server: server, conn: policy.Connection{}}
	d.plain = true // it speaks TLS
	if res, _ := get(t, http.DefaultClient, "http://"+inside(t, New(Config{}), d)+"/"); res.StatusCode < 400 {
		t.Errorf("%d", res.StatusCode)
	}
}

func TestWhatCanNotBeServedIsToldInHTTP(t *testing.T) {
	for name, c := range clients(t) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			if conn, err := l.Accept(); err == nil {
				New(Config{}).Refuse(conn, isle.Errorf(isle.Refused, "shop may not connection:open").WithHint("ask ann"))
				conn.Close()
			}
		}()
		res, body := get(t, c, "http://"+l.Addr().String()+"/")
		if res.StatusCode != 403 || !strings.Contains(body, "ask ann") {
			t.Errorf("%s: %d %s", name, res.StatusCode, body)
		}
		c.CloseIdleConnections()
		<-done
		l.Close()
	}
}
