package crash

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// template is the version of the program that others are made from.
const template = "the-version-of-no-program"

// program links the program of the version template.
func program(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "isle")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.linked="+template, "-o", path, "./cmd/isle")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(b, []byte(template)); n != 1 {
		t.Fatalf("the program says its version %d times", n)
	}
	return b
}

// versioned is a version of the length of template.
func versioned(version string) string { return version + template[len(version):] }

// install puts the program, as that of a version, to where the world's server is
// from. Linking it anew for each version would take longer than all else.
func (w *world) install(t *testing.T, program []byte, version string) {
	t.Helper()
	next := filepath.Join(w.Bin, "isle.next")
	if err := os.WriteFile(next, bytes.Replace(program, []byte(template), []byte(versioned(version)), 1), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, filepath.Join(w.Bin, "isle")); err != nil {
		t.Fatal(err)
	}
}

// A caller does something again and again, and keeps what went wrong.
type caller struct {
	what string
	do   func() error

	times  int
	errors []error
}

// call has the callers call until stop is closed.
func call(callers []*caller, stop <-chan struct{}) *sync.WaitGroup {
	var all sync.WaitGroup
	for _, c := range callers {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(2 * time.Millisecond):
				}
				c.times++
				if err := c.do(); err != nil {
					c.errors = append(c.errors, err)
				}
			}
		})
	}
	return &all
}

// A server becomes the program that is installed, with the same process, and
// nobody who comes meanwhile is turned away: not at a published port, by number
// or name, not at the socket, and not from inside.
func TestAnUpgradeRefusesNoConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	init, err := os.ReadFile(filepath.Join(w.Bin, "isle-init"))
	if err != nil {
		t.Fatal(err)
	}
	w.must(t, "server", "stop")
	w.Bin = t.TempDir()
	if err := os.WriteFile(filepath.Join(w.Bin, "isle-init"), init, 0o755); err != nil {
		t.Fatal(err)
	}
	isle := program(t)
	w.install(t, isle, "old")
	w.knocking = true
	w.generation(t, 1)
	up(t, w)
	before := w.running(t, 1)
	pid := w.server()

	names, err := os.ReadFile(filepath.Join(w.State, "names.address"))
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(w.State, "isle.sock")
	callers := []*caller{
		{what: "port", do: func() error { return get(before.Port("web"), "hello 1") }},
		{what: "name", do: func() error {
			req, err := http.NewRequest("GET", "http://"+strings.TrimSpace(string(names))+"/", nil)
			if err != nil {
				return err
			}
			req.Host = "web." + w.name + ".localhost"
			res, err := client.Do(req)
			if err == nil {
				res.Body.Close()
				if res.StatusCode != http.StatusOK {
					err = errors.New(res.Status)
				}
			}
			return err
		}},
		{what: "socket", do: func() error {
			c, err := net.Dial("unix", socket)
			if err == nil {
				err = c.Close()
			}
			return err
		}},
	}
	stop := make(chan struct{})
	calls := call(callers, stop)
	for _, version := range []string{"new", "newest"} {
		w.install(t, isle, version)
		if out := w.must(t, "server", "reload"); !strings.Contains(out, versioned(version)+" now") {
			t.Errorf("reload says %q", out)
		}
		if now := w.server(); now != pid {
			t.Errorf("the server was process %d and is %d", pid, now)
		}
		reached := w.count(t)
		eventually(t, "the line home is there again", func() error {
			counts := w.counts(t)
			if len(counts) == 0 || counts[len(counts)-1] < reached {
				return fmt.Errorf("%d is not logged", reached)
			}
			return nil
		})
	}
	close(stop)
	calls.Wait()
	for _, c := range callers {
		if len(c.errors) > 0 || c.times == 0 {
			t.Errorf("%s: %d of %d failed: %v", c.what, len(c.errors), c.times, c.errors[:min(3, len(c.errors))])
		}
	}
	if knocks := w.knocks("refused"); knocks != 0 {
		t.Errorf("home refused %d connections from inside", knocks)
	}
	if w.knocks("heard") == 0 {
		t.Error("nobody knocked")
	}

	after := w.running(t, 1)
	for _, s := range before.Services {
		if after.Launch(s.Name) != s.Launch {
			t.Errorf("%s was launched again", s.Name)
		}
	}
	w.brokenProgramIsNotTaken(t, pid)
	w.kill(t) // and a knock that is refused would have been noticed
	eventually(t, "home refuses", func() error {
		if w.knocks("refused") == 0 {
			return errors.New("it does not")
		}
		return nil
	})
	w.clear(t)
}

// brokenProgramIsNotTaken has the server asked to become what does not run.
func (w *world) brokenProgramIsNotTaken(t *testing.T, pid int) {
	t.Helper()
	path := filepath.Join(w.Bin, "isle")
	good := path + ".good"
	if err := os.Rename(path, good); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("not a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(pid, syscall.SIGHUP)
	eventually(t, "it is said that the program does not run", func() error {
		log, err := os.ReadFile(filepath.Join(w.State, "server.log"))
		if err == nil && !strings.Contains(string(log), "does not run; going on with this one") {
			err = errors.New("nothing is said")
		}
		return err
	})
	if err := os.Rename(good, path); err != nil {
		t.Fatal(err)
	}
	if now := w.server(); now != pid {
		t.Errorf("the server was process %d and is %d", pid, now)
	}
	w.running(t, 1)
}

// knocks is how many connections home a service that knocks saw end so.
func (w *world) knocks(how string) int {
	for _, p := range w.launched() {
		if b, err := os.ReadFile(p.path("root/data/knocks/" + how)); err == nil {
			return strings.Count(string(b), "\n")
		}
	}
	return 0
}
