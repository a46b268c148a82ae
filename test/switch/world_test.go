// Package switchover shows what becomes of requests while a stage goes from one
// release to another, and back.
package switchover

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"isle/test/lab"
)

// patience bounds every wait. What takes this long does not come.
const patience = 2 * time.Minute

var (
	server  *lab.Server
	program string
)

func TestMain(m *testing.M) {
	os.Exit(lab.Main(m, "inside", func(_, built string) (end func(), err error) {
		if server, err = lab.Bare("../../bin"); err != nil {
			return nil, err
		}
		program = built
		return server.Close, nil
	}))
}

// A project is one that the server runs in the first stage, in a class.
type project struct {
	*testing.T
	*lab.Server
	name, dir, class, more string
}

func newProject(t *testing.T, name, class string) *project {
	p := &project{T: t, Server: server, name: name, dir: t.TempDir(), class: class}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(server.State, "server.log"))
			t.Logf("the end of the server's log:\n%s", log[max(0, len(log)-4000):])
			t.Log(p.Isle("audit", "search", "--environment", name, "-o", "json"))
		}
		p.Isle("down", name, "--volumes")
	})
	return p
}

// must runs the command line.
func (p *project) must(args ...string) string {
	p.Helper()
	out, err := p.Isle(args...)
	if err != nil {
		p.Fatal(err)
	}
	return out
}

// release seals a version of the project and returns its digest.
func (p *project) release(version string) string {
	p.Helper()
	code, err := os.ReadFile(program)
	if err != nil {
		p.Fatal(err)
	}
	start := "60s"
	if version == "deaf" { // there is nothing to wait for
		start = "3s"
	}
	file := fmt.Sprintf(`name: %s
isolation: %s
services:
  web:
    copy: [{from: inside, to: /inside}]
    command: [/inside]
    env: {VERSION: %q}
    healthcheck: {http: "http://localhost:8080/", interval: 100ms, timeout: 10s, start: %s}
    ports: {web: 8080}
%s`, p.name, p.class, version, start, p.more)
	for name, b := range map[string][]byte{"isle.yaml": []byte(file), "inside": code} {
		if err := os.WriteFile(filepath.Join(p.dir, name), b, 0o755); err != nil {
			p.Fatal(err)
		}
	}
	p.must("lock", p.dir)
	var out struct{ Release struct{ Digest string } }
	if err := json.Unmarshal([]byte(p.must("release", "create", p.dir, "-o", "json")), &out); err != nil {
		p.Fatal(err)
	}
	return out.Release.Digest
}

// address is that of the published port.
func (p *project) address() string {
	p.Helper()
	e, err := p.Status(p.name)
	if err != nil {
		p.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", e.Port("web"))
}

// A switched is how a stage was switched.
type switched struct {
	Instance, Before string
	Took, Pause      float64
	Kept             bool
	Snapshot         string
}

// promote points the first stage at a release.
func (p *project) promote(digest string) switched {
	p.Helper()
	var out struct{ Switch switched }
	if err := json.Unmarshal([]byte(p.must("promote", p.name, "--to", "testing", "--release", digest, "-o", "json")), &out); err != nil {
		p.Fatal(err)
	}
	return out.Switch
}

// rollback goes back to the release before.
func (p *project) rollback() switched {
	p.Helper()
	var out struct{ Switch switched }
	if err := json.Unmarshal([]byte(p.must("rollback", p.name+"@testing", "-o", "json")), &out); err != nil {
		p.Fatal(err)
	}
	return out.Switch
}

// data asks for what was written, or has the version that serves write.
func (p *project) data(method string) (string, error) {
	req, err := http.NewRequest(method, "http://"+p.address()+"/data", nil)
	if err != nil {
		return "", err
	}
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	res, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, b)
	}
	return string(b), err
}

// says asks once, over a connection of its own.
func (p *project) says() string {
	p.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	res, err := c.Get("http://" + p.address() + "/")
	if err != nil {
		p.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		p.Fatal(err)
	}
	word, _, _ := strings.Cut(string(b), " ")
	return word
}

// A load asks all the time, over connections that stay and over new ones, and
// never again what has failed.
type load struct {
	stop    chan struct{}
	asking  sync.WaitGroup
	asked   atomic.Int64
	mu      sync.Mutex
	failed  []error
	answers map[string]int // by version
}

func (p *project) load(clients int) *load {
	p.Helper()
	l := &load{stop: make(chan struct{}), answers: map[string]int{}}
	address := p.address()
	for n := range clients {
		l.asking.Go(func() { l.client(address, n) })
	}
	p.Cleanup(func() { l.end() })
	return l
}

// end stops asking, and returns what has failed.
func (l *load) end() []error {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.asking.Wait()
	return l.failed
}

// client asks until the end. Every other one begins a connection for each
// request.
func (l *load) client(address string, n int) {
	var c net.Conn
	var r *bufio.Reader
	defer func() {
		if c != nil {
			c.Close()
		}
	}()
	for i := 0; ; i++ {
		select {
		case <-l.stop:
			return
		default:
		}
		var err error
		if c == nil {
			if c, err = net.Dial("tcp", address); err == nil {
				r = bufio.NewReader(c)
			}
		}
		var version string
		if err == nil {
			version, err = ask(c, r, i)
		}
		l.asked.Add(1)
		l.mu.Lock()
		if err != nil {
			l.failed = append(l.failed, fmt.Errorf("client %d, request %d: %w", n, i, err))
		} else {
			l.answers[version]++
		}
		l.mu.Unlock()
		if err != nil || n%2 == 0 {
			if c != nil {
				c.Close()
			}
			c = nil
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// ask makes one request: some send a body, some take a while.
func ask(c net.Conn, r *bufio.Reader, i int) (version string, err error) {
	c.SetDeadline(time.Now().Add(patience))
	body := ""
	if i%3 == 1 {
		body = strings.Repeat("x", i%7*1000)
	}
	path := "/"
	if i%5 == 2 {
		path = "/?ms=20"
	}
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: inside\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body); err != nil {
		return "", err
	}
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return "", err
	}
	var n int
	if _, err := fmt.Sscanf(string(b), "%s %d\n", &version, &n); err != nil || res.StatusCode != http.StatusOK || n != len(body) {
		return "", errors.Join(err, fmt.Errorf("%d: %q", res.StatusCode, b))
	}
	return version, nil
}
