// Package stages takes the shop of the examples through its stages: its database
// released by itself, its page behind a connection to that, and real load on what
// is in production.
package stages

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"isle/test/lab"
)

// patience bounds every wait. What takes this long does not come.
const patience = 2 * time.Minute

// A shop is a copy of the example, and the server that runs it.
type shop struct {
	*testing.T
	*lab.Server
	dir string
}

// open starts a server and gives it the policy of the example, with shorter waits.
func open(t *testing.T) *shop {
	t.Helper()
	server, err := lab.New("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	s := &shop{T: t, Server: server, dir: t.TempDir()}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(server.State, "server.log"))
			t.Logf("the end of the server's log:\n%s", log[max(0, len(log)-4000):])
		}
		server.Close()
	})
	if err := os.CopyFS(s.dir, os.DirFS("../../examples/shop")); err != nil {
		t.Fatal(err)
	}
	return s
}

// must runs the command line in the shop's folder.
func (s *shop) must(args ...string) string {
	s.Helper()
	out, err := s.isle(args...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// isle is must where it may fail.
func (s *shop) isle(args ...string) (string, error) {
	cmd := s.Command(args...)
	cmd.Dir = s.dir
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("isle %s: %w\n%s", strings.Join(args, " "), err, said.String())
	}
	return string(out), nil
}

// read decodes what a command says.
func (s *shop) read(into any, args ...string) {
	s.Helper()
	if err := json.Unmarshal([]byte(s.must(append(args, "-o", "json")...)), into); err != nil {
		s.Fatal(err)
	}
}

// edit changes a file of the shop. Each old text has to be there.
func (s *shop) edit(name string, oldnew ...string) {
	s.Helper()
	path := filepath.Join(s.dir, name)
	b, err := os.ReadFile(path)
	if err != nil {
		s.Fatal(err)
	}
	text := string(b)
	for i := 0; i < len(oldnew); i += 2 {
		if !strings.Contains(text, oldnew[i]) {
			s.Fatalf("%s has no %q", name, oldnew[i])
		}
		text = strings.ReplaceAll(text, oldnew[i], oldnew[i+1])
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		s.Fatal(err)
	}
}

// release seals what a file says, and returns the digest.
func (s *shop) release(file string) string {
	s.Helper()
	s.must("lock", file)
	var out struct{ Release struct{ Digest string } }
	s.read(&out, "release", "create", file)
	return out.Release.Digest
}

// A switched is how a stage was switched.
type switched struct {
	Instance, Before string
	Took, Pause      float64
	Kept             bool
	Snapshot         string
}

// A gate is one that a promotion had to pass.
type gate struct {
	Kind, State, Text string
	Claim             bool
}

// A promoted is what became of a promotion.
type promoted struct {
	Release string
	Changed bool
	Switch  switched
	Gates   []gate
}

// promote points a stage of a project at a release, and waits for gates that time
// alone passes.
func (s *shop) promote(project, stage string, args ...string) (out promoted, err error) {
	s.Helper()
	values := "-"
	if project == "storefront" && stage != "testing" {
		values = "storefront." + stage + ".yaml"
	}
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		said, err := s.isle(append([]string{"promote", project, "--to", stage, "--values", values, "-o", "json"}, args...)...)
		if err == nil {
			return out, json.Unmarshal([]byte(said), &out)
		}
		if time.Now().After(end) || exit(err) != 3 || !strings.Contains(err.Error(), "has served in") && !strings.Contains(err.Error(), "the last thing that was refused") {
			return out, err
		}
	}
}

// eventually runs a command of an environment until it succeeds.
func (s *shop) eventually(environment string, command ...string) {
	s.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		_, err := s.isle(append([]string{"exec", environment, "--"}, command...)...)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			s.Fatal(err)
		}
	}
}

// exit is the exit code of a command; -1: there is none.
func exit(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return -1
}

// address is that of the page in a stage.
func (s *shop) address(environment string) string {
	s.Helper()
	e, err := s.Status(environment)
	if err != nil {
		s.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", e.Port("web"))
}
