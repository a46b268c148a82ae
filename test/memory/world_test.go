// Package memory has real environments of the class gvisor copied with their
// memory: forks, snapshots and restores go on from one instant, each as somebody
// else.
package memory

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"isle/test/lab"
)

// server is shared by all tests that need none of their own.
var server *lab.Server

// inside is the path of the program that runs in environments.
var inside string

// patience bounds what is waited for.
const patience = 2 * time.Minute

// shop counts, in two services.
const shop = `
name: NAME
isolation: gvisor
services:
  db:
    copy: [{from: inside, to: /inside}]
    volumes: {/data: {size: 32MiB}}
    command: [/inside, db]
    healthcheck: {tcp: 5432}
    restart: always
  web:
    copy: [{from: inside, to: /inside}]
    depends_on: [db]
    command: [/inside, web]
    healthcheck: {tcp: 8080}
limits: {cpus: 1, memory: 512MiB, pids: 256}
`

func TestMain(m *testing.M) {
	os.Exit(lab.Main(m, "inside", func(_, program string) (func(), error) {
		var err error
		inside = program
		if server, err = lab.New("../../bin"); err != nil {
			return nil, err
		}
		return server.Close, nil
	}))
}

// A world is a server, and what a test does with it.
type world struct {
	*lab.Server
	t *testing.T
}

func on(t *testing.T, s *lab.Server) world { return world{s, t} }

// must runs the command line.
func (w world) must(args ...string) string {
	w.t.Helper()
	out, err := w.Isle(args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// refused runs a command that has to fail, saying each of the words.
func (w world) refused(words []string, args ...string) {
	w.t.Helper()
	_, err := w.Isle(args...)
	if err == nil {
		w.t.Fatalf("isle %v succeeded", args)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			w.t.Errorf("isle %v: nothing of %q in: %v", args, word, err)
		}
	}
}

// up brings up an environment of a file, which is gone after the test with all
// that was made of it.
func (w world) up(name, file string) {
	w.t.Helper()
	w.t.Cleanup(func() { w.down(name) })
	if _, err := w.Up(filepath.Join(w.t.TempDir(), name), strings.ReplaceAll(file, "NAME", name), inside); err != nil {
		w.t.Fatal(err)
	}
}

// down takes down what begins with a name, and the snapshots of it.
func (w world) down(name string) {
	for _, e := range w.list() {
		if strings.HasPrefix(e, name) {
			if _, err := w.Isle("down", e, "--volumes"); err != nil {
				w.t.Error(err)
			}
		}
	}
	for _, s := range w.snapshots(name) {
		if _, err := w.Isle("snapshot", "rm", "--force", s); err != nil {
			w.t.Error(err)
		}
	}
}

// noMemory fails if memory is left that nothing goes on from.
func (w world) noMemory() {
	w.t.Helper()
	if left, err := os.ReadDir(filepath.Join(w.State, "forks")); len(left) > 0 {
		w.t.Errorf("memory is left: %v, %v", left, err)
	}
}

func (w world) list() (names []string) {
	w.t.Helper()
	var all []struct{ Name string }
	w.decode(&all, "ls", "-o", "json")
	for _, e := range all {
		names = append(names, e.Name)
	}
	return names
}

func (w world) snapshots(name string) (digests []string) {
	w.t.Helper()
	var all []struct{ Digest string }
	w.decode(&all, "snapshot", "ls", name, "-o", "json")
	for _, s := range all {
		digests = append(digests, s.Digest)
	}
	return digests
}

func (w world) decode(into any, args ...string) {
	w.t.Helper()
	if err := json.Unmarshal([]byte(w.must(args...)), into); err != nil {
		w.t.Fatalf("isle %v: %v", args, err)
	}
}

// ask says a line to a service and returns the answer.
func (w world) ask(name, service, what string) string {
	w.t.Helper()
	port := map[string]string{"db": "5432", "web": "8080"}[service]
	return w.must("exec", name, "-s", service, "--", "/inside", "ask", port, what)
}

// A seen is what web sees.
type seen struct {
	Number, Connections   int
	Hostname, Environment string
}

func (w world) state(name string) (s seen) {
	w.t.Helper()
	said := w.ask(name, "web", "state")
	if err := json.Unmarshal([]byte(said), &s); err != nil {
		w.t.Fatalf("%v: %s", err, said)
	}
	return s
}

// goesOn waits until web has got beyond a number, over the connection that it has
// had all the time, and looks at what db has written down: every number, once.
func (w world) goesOn(name string, beyond int) seen {
	w.t.Helper()
	var s seen
	w.eventually(name+" goes on", func() error {
		if s = w.state(name); s.Number <= beyond {
			return fmt.Errorf("it is at %d, not beyond %d", s.Number, beyond)
		}
		return nil
	})
	if s.Connections != 1 {
		w.t.Errorf("web of %s has had %d connections to db", name, s.Connections)
	}
	if got := w.ask(name, "db", "log"); got != "gapless" {
		w.t.Errorf("the log of %s: %s", name, got)
	}
	return s
}

func (w world) eventually(what string, f func() error) {
	w.t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	w.t.Fatalf("%s: not within %v: %v", what, patience, err)
}
