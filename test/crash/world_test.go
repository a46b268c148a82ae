// Package crash kills. It kills the real server at every step that the rooms
// name, and at random; isle-init, the container runtime and the command line
// too. Then it looks: each environment runs whole or is gone, and once
// everything is down nothing of it is left on the machine.
package crash

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"isle/test/lab"
)

// patience bounds every wait. What takes this long does not come.
const patience = 2 * time.Minute

// A world is a state folder, the server that the command line starts for it,
// and a project.
type world struct {
	*lab.Server
	dir  string // of the project
	name string // its own: two servers that keep one name compete for its port

	class    string // of isolation; "": what a file leaves out
	prepare  string // what the server keeps ready; "": nothing
	knocking bool   // the service tries to connect home, all the time

	mu         sync.Mutex
	namespaces map[uint64]bool // inode numbers of network namespaces seen pinned
}

// project has a service with data, which counts, and one with a port.
const project = `name: NAME
services:
  db:
    packages: [busybox]
    restart: always
    volumes: {/data: {size: 16MiB}}
    setup: [sh, -c, "! test -e /data/made && echo whole > /data/made && sync"]
    command: |
      n=$(cat /data/count 2>/dev/null || echo 0)
      busybox nc -ll -p 5432 -e true &
      KNOCK
      while true; do
        n=$((n+1)); echo $n > /data/count.new; mv /data/count.new /data/count; echo count $n
        if [ -e /data/end ]; then rm /data/end; exit 3; fi
        busybox sleep 0.05
      done
    env: {GENERATION: "1"}
    healthcheck: {tcp: 5432, interval: 100ms}
  web:
    packages: [busybox]
    depends_on: [db]
    command: ["sh", "-c", "[ $GENERATION -gt 0 ] || exit 1; mkdir /tmp/www; echo hello $GENERATION > /tmp/www/index.html; exec busybox httpd -f -p 8080 -h /tmp/www"]
    env: {GENERATION: "1"}
    healthcheck: {tcp: 8080, interval: 100ms}
    ports: {web: 8080}
`

// knock connects home as nobody, and notes how that ends.
const knock = `mkdir -p /data/knocks; while true; do if busybox nc -w 10 198.18.0.1 1 </dev/null 2>&1 | grep -q refused; then echo 1 >> /data/knocks/refused; else echo 1 >> /data/knocks/heard; fi; busybox sleep 0.01; done &`

// packages is a state in which the packages of all projects have been built.
var packages string

// TestMain builds them: what is killed here is not the build of packages, which
// takes longer than any story.
func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	s, err := lab.New("../../bin")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer s.Close()
	dir, err := os.MkdirTemp("", "isle-crash-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = os.WriteFile(filepath.Join(dir, "isle.yaml"), []byte("name: packages\nservices:\n  one:\n    packages: [busybox]\n    command: [busybox]\n"), 0o600)
	}
	if err == nil {
		_, err = s.Isle("build", dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	packages = s.State
	return m.Run()
}

// newState makes a state folder in which packages are built.
func newState(t *testing.T) *lab.Server {
	t.Helper()
	s, err := lab.Bare("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	lab.SeedBuilt(packages, s.State)
	return s
}

// newWorld makes one, and builds the project's images.
func newWorld(t *testing.T) *world {
	t.Helper()
	s := newState(t)
	w := &world{Server: s, dir: t.TempDir(), namespaces: map[uint64]bool{}}
	w.name = w.group()
	t.Cleanup(func() {
		w.disarm()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(w.State, "server.log"))
			t.Logf("the end of the server's log:\n%s", log[max(0, len(log)-4000):])
		}
		w.Close()
	})
	w.generation(t, 1)
	w.must(t, "build", w.dir)
	return w
}

// generation writes the project as of a generation: with another one both
// services are to be replaced.
func (w *world) generation(t *testing.T, n int) {
	t.Helper()
	file := strings.ReplaceAll(project, "NAME", w.name)
	if w.knocking {
		file = strings.ReplaceAll(file, "KNOCK", knock)
	} else {
		file = strings.ReplaceAll(file, "KNOCK", "")
	}
	file = strings.ReplaceAll(file, `GENERATION: "1"`, fmt.Sprintf(`GENERATION: "%d"`, n))
	if err := os.WriteFile(filepath.Join(w.dir, "isle.yaml"), []byte(w.isolated(file)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// isolated is a file with the world's class of isolation.
func (w *world) isolated(file string) string {
	if w.class == "" {
		return file
	}
	return file + "isolation: " + w.class + "\n"
}

func (w *world) faultFile() string { return filepath.Join(w.State, "fault") }

// arm has the server die at a point; the file vanishes as it does.
func (w *world) arm(t *testing.T, point string) {
	t.Helper()
	next := w.faultFile() + ".new"
	if err := os.WriteFile(next, []byte(point), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, w.faultFile()); err != nil {
		t.Fatal(err)
	}
}

func (w *world) disarm() { os.Remove(w.faultFile()) }

// isle runs the command line. What it starts dies where it is told to.
func (w *world) isle(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	return w.isleContext(ctx, args...)
}

func (w *world) isleContext(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(w.Bin, "isle"), args...)
	cmd.Env = append(append(os.Environ(), lab.Environ(w.State)...), "ISLE_FAULT=@"+w.faultFile(), "ISLE_PREPARE="+w.prepare)
	cmd.WaitDelay = patience
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("isle %s: %w\n%s", strings.Join(args, " "), err, said.String())
	}
	return out.String(), nil
}

// must is isle where it has to succeed.
func (w *world) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := w.isle(args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// server is the process of the world's server, 0 if none runs.
func (w *world) server() int {
	for _, p := range processes() {
		argv := strings.Split(string(p.file("cmdline")), "\x00")
		if len(argv) > 3 && argv[1] == "server" && argv[2] == "--state" && argv[3] == w.State && !p.dead() {
			return p.pid
		}
	}
	return 0
}

// kill ends the server without a word, if there is one.
func (w *world) kill(t *testing.T) {
	t.Helper()
	pid := w.server()
	if pid == 0 {
		return
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.dead(t, pid)
}

// dead waits until a process is.
func (w *world) dead(t *testing.T, pid int) {
	t.Helper()
	eventually(t, fmt.Sprintf("process %d ends", pid), func() error {
		if p := (process{pid}); !p.dead() {
			return fmt.Errorf("it runs")
		}
		return nil
	})
}

// eventually waits until f has no error. It asks less often the longer it waits:
// what asks runs a command or looks through all processes.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	pause := 10 * time.Millisecond
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(pause) {
		if err = f(); err == nil {
			return
		}
		pause = min(pause*3/2, 200*time.Millisecond)
	}
	t.Fatalf("%s: not within %v: %v", what, patience, err)
}

// running waits until the project's environment is what its file says: healthy, with
// its data whole, and answering at its port with the generation.
func (w *world) running(t *testing.T, generation int) lab.Environment {
	t.Helper()
	name := w.name
	var e lab.Environment
	eventually(t, name+" runs", func() (err error) {
		out, err := w.isle("status", name, "-o", "json")
		if err != nil {
			return err
		}
		if e, err = decode(out); err != nil {
			return err
		}
		for _, s := range e.Services {
			if s.Phase != "running" {
				return fmt.Errorf("%s is %s", s.Name, s.Phase)
			}
		}
		if e.Phase != "running" {
			return fmt.Errorf("it is %s", e.Phase)
		}
		return nil
	})
	w.note(e.Instance)
	if got := w.must(t, "exec", name, "-s", "db", "--", "cat", "/data/made"); got != "whole" {
		t.Fatalf("the data is %q", got)
	}
	if err := get(e.Port("web"), fmt.Sprintf("hello %d", generation)); err != nil {
		t.Fatal(err)
	}
	return e
}

// note remembers the network namespaces of an instance.
func (w *world) note(instance string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, pin := range []string{"sandbox", "airlock"} {
		var st syscall.Stat_t
		if syscall.Stat(filepath.Join(w.State, "airlocks", instance, pin), &st) == nil {
			w.namespaces[st.Ino] = true
		}
	}
}

// gone reports whether the project's environment is not there.
func (w *world) gone(t *testing.T) bool {
	t.Helper()
	return !strings.Contains(w.must(t, "ls", "-o", "json"), `"`+w.name+`"`)
}

// client has a connection for each request.
var client = http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}

// get fetches from a port of the machine.
func get(port int, want string) error {
	res, err := client.Get("http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) + "/")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && strings.TrimSpace(string(body)) != want {
		err = fmt.Errorf("port %d answers %q, not %q", port, body, want)
	}
	return err
}
