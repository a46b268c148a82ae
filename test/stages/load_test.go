package stages

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// A wrk is the load that Debian's package of that name makes, over connections
// that stay.
type wrk struct {
	cmd  *exec.Cmd
	said bytes.Buffer
}

// startWrk asks a page until it is ended.
func startWrk(t *testing.T, url string) *wrk {
	t.Helper()
	w := &wrk{cmd: exec.Command("wrk", "-t", "1", "-c", "4", "-d", "1h", "--timeout", "120s", url)}
	w.cmd.Stdout, w.cmd.Stderr = &w.said, &w.said
	if err := w.cmd.Start(); err != nil {
		t.Fatalf("%v: wrk is a package of Debian's", err)
	}
	t.Cleanup(func() { w.cmd.Process.Kill(); w.cmd.Wait() })
	return w
}

// end ends it and returns how many requests it made, and what it says of those
// that failed: "" if none did.
func (w *wrk) end(t *testing.T) (requests int, failed string) {
	t.Helper()
	w.cmd.Process.Signal(os.Interrupt)
	if err := w.cmd.Wait(); err != nil {
		t.Fatalf("wrk: %v\n%s", err, w.said.String())
	}
	for line := range strings.Lines(w.said.String()) {
		line = strings.TrimSpace(line)
		switch {
		case strings.Contains(line, " requests in "):
			fmt.Sscanf(line, "%d requests", &requests)
		case strings.HasPrefix(line, "Socket errors"), strings.HasPrefix(line, "Non-2xx"):
			failed += line + "\n"
		}
	}
	return requests, failed
}

// A visitor asks the page for its heading again and again, over a connection of
// its own each time, and never again what has failed.
type visitor struct {
	stop chan struct{}
	gone sync.WaitGroup

	mu     sync.Mutex
	asked  int
	failed []error
	seen   map[string]int // by heading
}

func startVisitor(t *testing.T, address string) *visitor {
	v := &visitor{stop: make(chan struct{}), seen: map[string]int{}}
	v.gone.Go(func() {
		for {
			select {
			case <-v.stop:
				return
			default:
			}
			h, err := heading(address)
			v.mu.Lock()
			v.asked++
			v.seen[h]++
			if err != nil {
				v.failed = append(v.failed, err)
			}
			v.mu.Unlock()
		}
	})
	t.Cleanup(func() { v.end() })
	return v
}

func (v *visitor) end() *visitor {
	select {
	case <-v.stop:
	default:
		close(v.stop)
	}
	v.gone.Wait()
	return v
}

// heading is that of the page, by which its releases are told apart.
func heading(address string) (string, error) {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	res, err := c.Get("http://" + address + "/")
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return "", err
	}
	_, rest, ok := strings.Cut(string(b), "<h1>")
	h, _, end := strings.Cut(rest, "</h1>")
	if res.StatusCode != http.StatusOK || !ok || !end {
		return "", fmt.Errorf("%s: %.200q", res.Status, b)
	}
	return h, nil
}

// sees waits until the page has been of a release for some requests.
func (v *visitor) sees(want string) error {
	count := func() int {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.seen[want]
	}
	before := count()
	for end := time.Now().Add(patience); count() < before+5; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("the page does not say %q", want)
		}
	}
	return nil
}
