package environment

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"isle"
	"isle/internal/spec"
)

func collect(t *testing.T, m *Manager, o LogOptions) (out []string) {
	t.Helper()
	if err := m.Logs(t.Context(), root, shop("shop").Ref, o, func(l LogLine) error {
		out = append(out, l.Service+": "+string(l.Data))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestLogsComeInOrderOfTimeAndFollow(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := shop("shop")
	e := mustUp(t, m, req).Environment
	l := m.find(req.Ref)
	web, db := l.supervisor("web").current(), l.supervisor("db").current()
	at := time.Now().Add(-time.Hour)
	web.Log(at, false, []byte("one\ntwo\n"))
	db.Log(at.Add(time.Second), true, []byte("three\n"))
	web.Log(at.Add(2*time.Second), false, []byte("fo"))
	web.Log(at.Add(3*time.Second), true, []byte("between\n"))
	web.Log(at.Add(4*time.Second), false, []byte("ur\n"))
	web.Log(at.Add(5*time.Second), false, []byte("\xff\x00 no text, no newline"))
	want := []string{"web: one\n", "web: two\n", "db: three\n", "web: between\n", "web: four\n", "web: \xff\x00 no text, no newline"}
	got := collect(t, m, LogOptions{})
	if len(got) != len(want) {
		t.Fatalf("got %q, want %q", got, want)
	}
	for _, line := range want { // "between" and "four" may come either way: four began first
		if !strings.Contains(strings.Join(got, "|"), line) {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	if got := collect(t, m, LogOptions{Tail: 1}); len(got) != 1 || got[0] != want[5] {
		t.Fatalf("%q", got)
	}
	if got := collect(t, m, LogOptions{Services: []string{"db"}}); !reflect.DeepEqual(got, want[2:3]) {
		t.Fatalf("%q", got)
	}
	err := m.Logs(t.Context(), root, req.Ref, LogOptions{Services: []string{"dbb"}}, nil)
	wantCode(t, err, isle.NotFound, "web, db")

	lines := make(chan string, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- m.Logs(context.Background(), root, req.Ref, LogOptions{Follow: true, Tail: 1}, func(l LogLine) error {
			lines <- string(l.Data)
			return nil
		})
	}()
	<-lines
	for i := range 10 {
		db.Log(time.Now(), false, fmt.Appendf(nil, "new %d\n", i))
		if got := <-lines; got != fmt.Sprintf("new %d\n", i) {
			t.Fatalf("%q", got)
		}
	}
	mustDown(t, m, req.Ref, true)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(m.logDir(e.Instance)); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("the logs of what is gone are left")
	}
}

func TestAFloodOfOutputStaysBounded(t *testing.T) {
	w := newWorld(t)
	m := w.serve(func(c *Config) { c.LogSize = 64 << 10 })
	mustUp(t, m, shop("shop"))
	r := m.find(shop("shop").Ref).supervisor("web").current()
	for i := range 3000 {
		r.Log(time.Now(), false, fmt.Appendf(nil, "%d %s\n", i, strings.Repeat("x", 200)))
	}
	r.Log(time.Now(), false, bytes.Repeat([]byte{0}, 200<<10)) // one endless line
	var size int64
	files, err := filepath.Glob(filepath.Join(w.logs, "*", "web.log*"))
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > 2*(6*200+64)<<10 {
		t.Fatalf("%d bytes", size)
	}
	for _, line := range collect(t, m, LogOptions{}) {
		if len(line) > maxLine+len("web: ") {
			t.Fatalf("a line of %d bytes", len(line))
		}
	}
}

func TestAFollowerReadsAcrossRotation(t *testing.T) {
	s := &serviceLog{path: filepath.Join(t.TempDir(), "x", "web.log"), max: 1000}
	r := newLogReader("web", s)
	defer r.close()
	now := time.Now()
	n := 0
	for i := range 500 {
		s.write(now, now, false, fmt.Appendf(nil, "%d\n", i))
		for l := r.peek(); l != nil; l = r.peek() {
			if got := string(r.take().Data); got != fmt.Sprintf("%d\n", n) {
				t.Fatalf("line %d is %q", n, got)
			}
			n++
		}
	}
	if n != 500 || s.generation == 0 {
		t.Fatalf("%d lines, %d rotations", n, s.generation)
	}
	s.close()
	f, err := os.OpenFile(s.path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"t":"2026-01-01T00:00:00Z","d":"ha`) // a server died here
	f.Close()
	s.write(now, now, false, []byte("after\n"))
	if l := r.peek(); l == nil || string(l.Data) != "after\n" {
		t.Fatalf("%+v", l)
	}
}

func TestPublishedPortsStayAndAreReached(t *testing.T) {
	w := newWorld(t)
	w.inside = echo
	m := w.serve(nil)
	req := shop("shop")
	req.Spec.Services[0].Ports = []spec.Port{{Name: "web", Number: 8080}}
	port := mustUp(t, m, req).Environment.Services[1].Ports[0].Host
	address := fmt.Sprintf("127.0.0.1:%d", port)
	talk := func() {
		t.Helper()
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintln(c, "hello")
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "hello\n" {
			t.Fatal(line, err)
		}
	}
	talk()
	m.Close()
	m = w.serve(nil) // the server dies, the port comes back
	w.checkRunning(t, m, 1)
	talk()
	mustDown(t, m, req.Ref, false)
	if _, err := net.Dial("tcp", address); err == nil {
		t.Fatal("the port outlives its environment")
	}
	ln, err := net.Listen("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Up(t.Context(), root, req, nil)
	wantCode(t, err, isle.Conflict, "port in use", address, "port web of service web")
	if _, err := m.Get(t.Context(), req.Ref); err == nil {
		t.Fatal("something was made")
	}
	ln.Close()
	if again := mustUp(t, m, req).Environment.Services[1].Ports[0].Host; again != port {
		t.Fatalf("port %d became %d", port, again)
	}
	req.Spec.Services[0].Ports = append(req.Spec.Services[0].Ports, spec.Port{Name: "admin", Number: 9000})
	r := mustUp(t, m, req)
	if len(r.Replaced) != 1 || r.Replaced[0] != "web: ports applied in place" || len(r.Environment.Services[1].Ports) != 2 {
		t.Fatalf("%+v", r)
	}
}

func TestOneEnvironmentHasABoundOfConnections(t *testing.T) {
	w := newWorld(t)
	w.inside = echo
	m := w.serve(nil)
	req := shop("shop")
	req.Spec.Services[0].Ports = []spec.Port{{Name: "web", Number: 8080}}
	e := mustUp(t, m, req).Environment
	address := fmt.Sprintf("127.0.0.1:%d", e.Services[1].Ports[0].Host)
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for range maxConnections {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		fmt.Fprint(c, "x")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Fatal("one too many was served")
	}
	mustDown(t, m, req.Ref, true) // ends them all
	if _, err := io.ReadAll(open[0]); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
		t.Fatal(err)
	}
}

func TestANameReachesAPort(t *testing.T) {
	inside := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "shop for ", r.Host) })}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go inside.Serve(ln)
	defer inside.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	w := newWorld(t)
	w.inside = func(port int) (io.ReadWriteCloser, error) { return net.Dial("tcp", ln.Addr().String()) }
	m := w.serve(func(c *Config) { c.HTTP = address })
	req := shop("shop")
	req.Spec.Services[0].Ports = []spec.Port{{Name: "web", Number: 8080}}
	p := mustUp(t, m, req).Environment.Services[1].Ports[0]
	_, port, _ := net.SplitHostPort(address)
	if p.URL != "http://web.shop.localhost:"+port+"/" {
		t.Fatalf("%+v", p)
	}
	for host, want := range map[string]string{
		"web.shop.localhost:" + port: "shop for web.shop.localhost:" + port, "web.shop.testing.localhost": "shop for web.shop.testing.localhost",
		"web.shop.staging.localhost": "no environment shop@staging", "db.shop.localhost": "publishes no port db", "evil.example": "want http://",
		"localhost": "want http://",
	} {
		r, _ := http.NewRequest("GET", "http://"+address+"/", nil)
		r.Host = host
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		if !strings.Contains(string(b), want) {
			t.Errorf("%s: %q, want %q", host, b, want)
		}
	}
}

// A countingListener knows how many of its connections were open at once.
type countingListener struct {
	net.Listener
	mu         sync.Mutex
	open, most int
}

type countedConn struct {
	net.Conn
	once   sync.Once
	closed func()
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open++
	l.most = max(l.most, l.open)
	return &countedConn{Conn: c, closed: func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.open--
	}}, nil
}

func (c *countedConn) Close() error {
	c.once.Do(c.closed)
	return c.Conn.Close()
}

func TestSilentConnectionsToTheNamesDoNotTakeTheServersDescriptors(t *testing.T) {
	var names *countingListener
	w := newWorld(t)
	w.serve(func(c *Config) {
		c.HTTP = "127.0.0.1:0"
		c.Listen = func(_, network, address string) (net.Listener, error) {
			ln, err := net.Listen(network, address)
			names = &countingListener{Listener: ln}
			return names, err
		}
	})
	var silent []net.Conn
	for range maxNameConnections + 200 {
		c, err := net.Dial("tcp", names.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, c)
	}
	for _, c := range silent {
		c.Close()
	}
	answer, err := http.Get("http://" + names.Addr().String()) // after all of them
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	names.mu.Lock()
	defer names.mu.Unlock()
	if names.most > maxNameConnections {
		t.Errorf("%d were open at once, at most %d may be", names.most, maxNameConnections)
	}
}

func TestDiffComparesWithWhatAVolumeBeganAs(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := shop("shop")
	mustUp(t, m, req)
	file := func(path, content string) spec.TreeEntry {
		return spec.TreeEntry{Path: path, Type: "file", Size: int64(len(content)), Digest: isle.DigestOf([]byte(content))}
	}
	w.tree = spec.Tree{Entries: []spec.TreeEntry{{Path: "lost+found", Type: "dir"}, {Path: "d", Type: "dir"}, file("d/a", "1"), file("d/b", "1")}}
	changes, err := m.Diff(t.Context(), root, req.Ref, "")
	if err != nil || len(changes) != 3 || changes[0].Kind != "added" {
		t.Fatal(changes, err)
	}
	if err := m.CopyIn(t.Context(), root, req.Ref, "db", "/data/x", true, strings.NewReader("")); err != nil {
		t.Fatal(err)
	}
	wantCode(t, m.CopyIn(t.Context(), root, req.Ref, "db", "/tmp", true, strings.NewReader("")), isle.Invalid, "no volume")
	wantCode(t, m.CopyIn(t.Context(), root, req.Ref, "db", "data", false, strings.NewReader("")), isle.Invalid)
	if changes, err = m.Diff(t.Context(), root, req.Ref, "db"); err != nil || len(changes) != 0 {
		t.Fatal(changes, err)
	}
	w.tree = spec.Tree{Entries: []spec.TreeEntry{{Path: "d", Type: "dir"}, file("d/a", "2"), file("d/c", "3")}}
	want := []Change{
		{"db", "/data", "d/a", "modified", 1}, {"db", "/data", "d/b", "deleted", 1}, {"db", "/data", "d/c", "added", 1},
	}
	m.Close()
	m = w.serve(nil)
	if changes, err = m.Diff(t.Context(), root, req.Ref, "db"); err != nil || !reflect.DeepEqual(changes, want) {
		t.Fatalf("%+v %v", changes, err)
	}
	mustDown(t, m, req.Ref, true)
	if left, _ := filepath.Glob(filepath.Join(w.logs, "baselines", "*")); len(left) > 0 {
		t.Fatal("the baseline outlives its volume")
	}
}

func FuzzParseHost(f *testing.F) {
	f.Add("web.shop.localhost:7080")
	f.Add("..localhost")
	f.Fuzz(func(t *testing.T, host string) { parseHost(host) })
}
