package recorder

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"isle"
	"isle/internal/image"
)

// A far is a server somewhere, and the store that keeps what it said.
type far struct {
	t      *testing.T
	store  *image.Store
	server *httptest.Server
	dials  atomic.Int64
	away   atomic.Bool
}

func newFar(t *testing.T, h http.HandlerFunc) *far {
	t.Helper()
	store, err := image.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := &far{t: t, store: store, server: httptest.NewUnstartedServer(h)}
	f.server.EnableHTTP2 = true
	f.server.StartTLS()
	t.Cleanup(f.server.Close)
	return f
}

func (f *far) dial(ctx context.Context, host string, port int) (net.Conn, error) {
	f.dials.Add(1)
	if f.away.Load() {
		return nil, errors.New("there is no network")
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", f.server.Listener.Addr().String())
}

// A near is a step with its Recorder, as a program in it sees the network.
type near struct {
	*Recorder
	client *http.Client
	said   []string
	mu     sync.Mutex
}

// arrived is a connection that was opened to somewhere.
type arrived struct {
	net.Conn
	at net.Addr
}

func (a arrived) LocalAddr() net.Addr { return a.at }

func (f *far) record(o Options) *near {
	f.t.Helper()
	n := &near{}
	o.Say = func(m string) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.said = append(n.said, m)
	}
	roots := f.server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	var err error
	if n.Recorder, err = New(Config{Store: f.store, Dial: f.dial, Roots: roots}, o); err != nil {
		f.t.Fatal(err)
	}
	trust := x509.NewCertPool()
	if !trust.AppendCertsFromPEM(n.Trust()) {
		f.t.Fatal("the authority is no certificate")
	}
	n.client = &http.Client{
		Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: trust}, DisableCompression: true,
			DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
				port := 80
				if strings.HasSuffix(address, ":443") {
					port = 443
				}
				return n.connect(f.t, port), nil
			},
		},
	}
	f.t.Cleanup(func() {
		n.client.CloseIdleConnections()
		n.Close()
	})
	return n
}

// connect opens a connection to a port of some address.
func (n *near) connect(t testing.TB, port int) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	there, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	n.Serve(arrived{there, &net.TCPAddr{IP: net.IPv4(198, 18, 1, 0), Port: port}})
	return c
}

// ask makes a request and returns all of its answer but what is about the
// connection.
func (n *near) ask(t *testing.T, method, url, body string, header ...string) string {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := n.client.Do(req)
	if err != nil {
		return "error: " + err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return "error: " + err.Error()
	}
	var out strings.Builder
	fmt.Fprintln(&out, res.Status)
	for _, k := range slices.Sorted(maps.Keys(res.Header)) {
		fmt.Fprintln(&out, k, strings.Join(res.Header[k], "|"))
	}
	return out.String() + string(b)
}

func versions(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Etag", `"one"`)
	w.Header().Set("X-Request-Id", time.Now().String())
	w.Header().Set("Set-Cookie", "who=you")
	switch r.URL.Path {
	case "/moved":
		http.Redirect(w, r, "/whole?x=1", http.StatusFound)
	case "/stream":
		w.(http.Flusher).Flush()
		io.WriteString(w, "as it comes")
	case "/long":
		w.Header().Set("Content-Length", "100000")
		w.Write(bytes.Repeat([]byte("0123456789"), 10000))
	case "/none":
		http.NotFound(w, r)
	case "/empty":
		w.WriteHeader(http.StatusNoContent)
	case "/zipped":
		w.Header().Set("Content-Encoding", "gzip")
		io.WriteString(w, "not really")
	default:
		fmt.Fprintf(w, "%s for %s", r.URL, r.Header.Get("Accept"))
	}
}

func TestAStepCannotTellAReplayFromTheRecording(t *testing.T) {
	f := newFar(t, versions)
	all := func(n *near) (out []string) {
		for _, at := range []string{"/", "/moved", "/stream", "/long", "/none", "/empty", "/zipped", "/a%2Fb?q=%20&q=2", "/x?"} {
			out = append(out, n.ask(t, "GET", "https://example.com"+at, ""))
		}
		return append(out,
			n.ask(t, "HEAD", "https://example.com/head", ""), n.ask(t, "HEAD", "https://example.com/long", ""),
			n.ask(t, "GET", "https://example.com/", "", "Accept", "text/html"),
			n.ask(t, "GET", "https://example.com/long", "", "Range", "bytes=5-9"),
			n.ask(t, "GET", "https://example.com/parts", "", "Range", "bytes=1-3"),
			n.ask(t, "GET", "https://example.com/", "", "If-None-Match", `"one"`))
	}
	first := f.record(Options{})
	want := all(first)
	for _, s := range want {
		if strings.Contains(s, "Cookie") || strings.Contains(s, "X-Request-Id") || strings.Contains(s, "error") {
			t.Errorf("the step saw\n%s", s)
		}
	}
	if !strings.HasPrefix(want[12], "206") || !strings.HasSuffix(want[12], "\n56789") || !strings.HasPrefix(want[14], "304") {
		t.Errorf("a part and a condition are answered\n%s\n%s", want[12], want[14])
	}
	first.Close()
	materials := first.Materials()
	f.away.Store(true)
	dials := f.dials.Load()
	again := f.record(Options{Locked: materials, Frozen: true})
	for i, got := range all(again) {
		if got != want[i] {
			t.Errorf("recorded:\n%s\nreplayed:\n%s", want[i], got)
		}
	}
	again.Close()
	if f.dials.Load() != dials || again.Fresh() != 0 {
		t.Errorf("%d connections in a replay, %d new answers", f.dials.Load()-dials, again.Fresh())
	}
	if err := again.Judge(nil); err != nil {
		t.Error(err)
	}
	if a, b := fmt.Sprint(materials), fmt.Sprint(again.Materials()); a != b {
		t.Errorf("recorded %s\nreplayed %s", a, b)
	}
	for _, m := range materials {
		if err := m.Check(); err != nil {
			t.Error(err)
		}
	}
}

func TestWhatCannotBeRecordedIsRefusedWithItsReason(t *testing.T) {
	f := newFar(t, versions)
	n := f.record(Options{})
	for want, got := range map[string]string{
		"only GET and HEAD":                n.ask(t, "POST", "https://example.com/", ""),
		"only GET and HEAD can be":         n.ask(t, "PUT", "https://example.com/", "x"),
		"a request with a body":            n.ask(t, "GET", "https://example.com/", "x"),
		"has a credential (Authorization)": n.ask(t, "GET", "https://example.com/", "", "Authorization", "Bearer s3cr3t"),
		"has a credential (Cookie)":        n.ask(t, "GET", "https://example.com/", "", "Cookie", "s3cr3t=1"),
	} {
		if !strings.HasPrefix(got, "4") || !strings.Contains(got, want) {
			t.Errorf("want %q, got\n%s", want, got)
		}
	}
	n.Close()
	err := n.Judge(isle.Errorf(isle.Failed, "it ended with exit code 1"))
	if isle.CodeOf(err) != isle.Failed || !strings.Contains(err.Error(), "POST https://example.com/: only GET") {
		t.Errorf("the step's error is %v", err)
	}
	if n.Judge(nil) != nil {
		t.Error("a step that went on without it has failed")
	}
	if said := strings.Join(append(n.said, err.Error()), "\n"); strings.Contains(said, "s3cr3t") || f.dials.Load() != 0 || len(n.Materials()) != 0 {
		t.Errorf("%d connections, %d answers, and it said\n%s", f.dials.Load(), len(n.Materials()), said)
	}
}

func TestAQueryIsInTheLockAndInNoMessage(t *testing.T) {
	f := newFar(t, versions)
	n := f.record(Options{})
	n.ask(t, "GET", "https://example.com/x?token=s3cr3t", "")
	n.ask(t, "POST", "https://example.com/x?token=s3cr3t", "")
	n.Close()
	if said := strings.Join(n.said, "\n"); strings.Contains(said, "s3cr3t") || !strings.Contains(said, "https://example.com/x?…") {
		t.Errorf("it said\n%s", said)
	}
	if m := n.Materials(); len(m) != 1 || m[0].URL != "https://example.com/x?token=s3cr3t" {
		t.Errorf("the materials are %v", m)
	}
}

func TestAnAnswerThatEndsEarlyIsAFailure(t *testing.T) {
	f := newFar(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000000")
		w.Write(make([]byte, 1000))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	n := f.record(Options{})
	if got := n.ask(t, "GET", "https://example.com/cut", ""); !strings.HasPrefix(got, "error") {
		t.Errorf("the step got\n%.200s", got)
	}
	n.Close()
	if m := n.Materials(); len(m) != 1 || m[0].Status != 502 || n.Fresh() != 0 {
		t.Errorf("the materials are %v", m)
	}
}

func TestAFailureIsTriedAgainUnlessTheLockIsFrozen(t *testing.T) {
	var down atomic.Bool
	down.Store(true)
	f := newFar(t, func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			http.Error(w, "later", http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "now")
	})
	n := f.record(Options{})
	bad := n.ask(t, "GET", "https://example.com/", "")
	n.Close()
	locked := n.Materials()
	if len(locked) != 1 || locked[0].Status != 503 {
		t.Fatalf("the materials are %v", locked)
	}
	frozen := f.record(Options{Locked: locked, Frozen: true})
	if got := frozen.ask(t, "GET", "https://example.com/", ""); got != bad {
		t.Errorf("frozen it is\n%s\nnot\n%s", got, bad)
	}
	down.Store(false)
	again := f.record(Options{Locked: locked})
	if got := again.ask(t, "GET", "https://example.com/", ""); !strings.HasSuffix(got, "\nnow") {
		t.Errorf("again it is\n%s", got)
	}
	again.Close()
	if m := again.Materials(); len(m) != 1 || m[0].Status != 200 {
		t.Errorf("the materials are %v", m)
	}
}

func TestWhatTheStoreLacksIsFetchedAgainAndHasToBeTheSame(t *testing.T) {
	var count atomic.Int64
	f := newFar(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/new" {
			fmt.Fprint(w, count.Add(1))
			return
		}
		io.WriteString(w, "always")
	})
	n := f.record(Options{})
	n.ask(t, "GET", "https://example.com/same", "")
	n.ask(t, "GET", "https://example.com/new", "")
	n.Close()
	locked := n.Materials()
	for _, m := range locked {
		if err := os.Remove(f.store.BlobPath(m.Digest)); err != nil {
			t.Fatal(err)
		}
	}
	again := f.record(Options{Locked: locked, Frozen: true})
	if got := again.ask(t, "GET", "https://example.com/same", ""); !strings.HasSuffix(got, "\nalways") {
		t.Errorf("what is the same is answered\n%s", got)
	}
	if err := again.Judge(nil); err != nil {
		t.Error(err)
	}
	if got := again.ask(t, "GET", "https://example.com/new", ""); !strings.HasPrefix(got, "502") {
		t.Errorf("what is another is answered\n%s", got)
	}
	again.Close()
	if err := again.Judge(nil); isle.CodeOf(err) != isle.Conflict || !strings.Contains(err.Error(), "https://example.com/new has ") {
		t.Errorf("the step's error is %v", err)
	}
}

func TestAFrozenStepHasFailedIfItAskedForMoreWhateverItSays(t *testing.T) {
	f := newFar(t, versions)
	n := f.record(Options{Frozen: true})
	if got := n.ask(t, "GET", "http://example.com/x", ""); !strings.HasPrefix(got, "504") {
		t.Errorf("it is answered\n%s", got)
	}
	n.Close()
	if err := n.Judge(nil); isle.CodeOf(err) != isle.Conflict || !strings.Contains(err.Error(), "http://example.com/x") || f.dials.Load() != 0 {
		t.Errorf("%v, after %d connections", err, f.dials.Load())
	}
}

func TestOneAddressIsAskedOnceHoweverOftenAtOnce(t *testing.T) {
	var count atomic.Int64
	f := newFar(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, count.Add(1)) })
	n := f.record(Options{})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if got := n.ask(t, "GET", "https://example.com/", ""); !strings.HasSuffix(got, "\n1") {
				t.Errorf("it is answered\n%s", got)
			}
		})
	}
	wg.Wait()
}

func TestAnotherStepsAnswersAreAsGood(t *testing.T) {
	f := newFar(t, versions)
	n := f.record(Options{})
	n.ask(t, "GET", "https://example.com/", "")
	n.Close()
	dials := f.dials.Load()
	again := f.record(Options{Others: n.Materials()})
	again.ask(t, "GET", "https://example.com/", "")
	again.Close()
	if len(again.Materials()) != 1 || again.Fresh() != 0 || f.dials.Load() != dials {
		t.Errorf("%v, %d of them new", again.Materials(), again.Fresh())
	}
}

func TestAnAddressIsFollowedToWhereItLeads(t *testing.T) {
	f := newFar(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/round" {
			http.Redirect(w, r, "/round", http.StatusFound)
			return
		}
		versions(w, r)
	})
	n := f.record(Options{})
	m, err := n.Get(t.Context(), "https://example.com/moved")
	if err != nil || m.URL != "https://example.com/whole?x=1" || len(n.Materials()) != 2 {
		t.Errorf("%v, %v, of %v", m, err, n.Materials())
	}
	for at, want := range map[string]string{"/none": "404 Not Found", "/round": "leads on and on"} {
		if _, err := n.Get(t.Context(), "https://example.com"+at); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", at, err)
		}
	}
	if _, err := n.Get(t.Context(), "https://you:s3cr3t@example.com/"); err == nil || strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("with a password: %v", err)
	}
}

// A step may end as soon as it has what it asked for, and so may its network: what
// it has by then is recorded.
func TestWhatAStepHasWholeIsRecorded(t *testing.T) {
	f := newFar(t, versions)
	for range 200 {
		n := f.record(Options{})
		if got := n.ask(t, "GET", "https://example.com/long", ""); !strings.HasPrefix(got, "200") {
			t.Fatalf("it is answered\n%.200s", got)
		}
		if len(n.Materials()) != 1 {
			t.Fatal("a step has an answer that no lock will have")
		}
		n.Close()
	}
}

// What the machine could not keep is in no lock: the step that went on without it
// would be found by everybody, and the next time it would go on otherwise.
func TestAStepThatWasAnsweredLessThanItAskedForHasFailed(t *testing.T) {
	f := newFar(t, versions)
	n := f.record(Options{})
	n.mu.Lock()
	n.bytes = maxBytes
	n.mu.Unlock()
	if got := n.ask(t, "GET", "https://example.com/stream", ""); !strings.HasPrefix(got, "507") {
		t.Errorf("it is answered\n%s", got)
	}
	n.Close()
	if err := n.Judge(nil); isle.CodeOf(err) != isle.Exhausted || !strings.Contains(err.Error(), "GiB") {
		t.Errorf("a step that goes on without it ends with %v", err)
	}
}

func TestALockThatSaysAnotherSizeOfABodyIsRefused(t *testing.T) {
	f := newFar(t, versions)
	n := f.record(Options{})
	n.ask(t, "GET", "https://example.com/long", "")
	n.Close()
	for _, gone := range []bool{false, true} {
		locked := n.Materials()
		locked[0].Size = 1
		if gone {
			if err := os.Remove(f.store.BlobPath(locked[0].Digest)); err != nil {
				t.Fatal(err)
			}
		}
		again := f.record(Options{Locked: locked, Frozen: true})
		if got := again.ask(t, "GET", "https://example.com/long", ""); !strings.HasPrefix(got, "502") {
			t.Errorf("it is answered\n%.200s", got)
		}
		again.Close()
		if err := again.Judge(nil); isle.CodeOf(err) != isle.Conflict || !strings.Contains(err.Error(), "100000 bytes") {
			t.Errorf("the step's error is %v", err)
		}
	}
}

// What is noted of answers is in a file that has to be read again.
func TestAddressesAndHeadersOfAnswersAreBounded(t *testing.T) {
	long := strings.Repeat("x", 7<<10)
	f := newFar(t, func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"Link", "Vary", "Etag", "Content-Language", "Content-Disposition"} {
			w.Header().Set(name, long)
		}
		io.WriteString(w, "x")
	})
	n := f.record(Options{})
	n.mu.Lock()
	n.noted = maxNoted - 200<<10
	n.mu.Unlock()
	got, all := 0, 0
	for all < 20 && got == all {
		if strings.HasPrefix(n.ask(t, "GET", fmt.Sprintf("https://example.com/%d?%s", all, long), ""), "200") {
			got++
		}
		all++
	}
	n.Close()
	if got == all || got < 3 || isle.CodeOf(n.Judge(nil)) != isle.Exhausted {
		t.Errorf("%d of %d answers of 42 KiB are noted where 200 KiB may be, and the step ends with %v", got, all, n.Judge(nil))
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	n := newFar(t, versions).record(Options{})
	var open []net.Conn
	for range maxOpen + 1 {
		open = append(open, n.connect(t, 80))
	}
	last := open[maxOpen]
	last.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := last.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("one too many: %v", err)
	}
	for _, c := range open {
		c.Close()
	}
}

// What arrives is read by net/http and crypto/tls; this is for what is between
// them, and for what is made of a request.
func FuzzARecorderOutlivesWhatArrives(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", "GET http://a/b HTTP/1.1\r\nHost: c\r\n\r\n", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
		"POST /a/git-upload-pack HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-git-upload-pack-request\r\nContent-Length: 4\r\n\r\n0000",
		"POST /a/git-upload-pack HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-git-upload-pack-request\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n3\r\n\x1f\x8b\x08\r\n0\r\n\r\n",
		"GET /\x00 HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET / HTTP/1.0\r\n\r\n", "\x16\x03\x01\x00\x05hello", "HEAD //x HTTP/1.1\r\nHost: a:99999\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nAccept: \xff\r\n\r\n", "GET /\xff?\xfe HTTP/1.1\r\nHost: a\r\nAccept: a\tb\r\nUser-Agent: \xff\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: b\r\n\r\n",
		"GET http://u:p@a/b#c HTTP/1.1\r\nHost: a\r\n\r\n", "GET /a%0d%0ab HTTP/1.1\r\nHost: xn--a:25\r\n\r\n", "GET /%zz HTTP/1.1\r\nHost: [fe80::1%25eth0]\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	store, err := image.Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	none := func(context.Context, string, int) (net.Conn, error) { return nil, errors.New("none") }
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := New(Config{Store: store, Dial: none}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		n := &near{Recorder: r}
		c := n.connect(t, 80)
		c.SetDeadline(time.Now().Add(time.Minute))
		c.Write(b)
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, bufio.NewReader(c))
		c.Close()
		r.Close()
		for _, m := range r.Materials() {
			if err := m.Check(); err != nil {
				t.Errorf("%q made a material that no lock has: %v", b, err)
			}
		}
	})
}
