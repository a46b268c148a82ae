// Package secrets looks, from outside of a real server, for what must be found
// nowhere: the values of secrets.
package secrets

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"isle/test/lab"
)

// The values. None is part of another, nor found anywhere by chance.
const (
	stored   = "canary-stored-3b1f8a90c2"
	replaced = "canary-replaced-77d0e4419b"
	variable = "canary-variable-c4a2918e55"
	inFile   = "canary-in-file-0fe96b7d31"
	refused  = "canary-refused-5d82ab03f7"
)

// forms are those in which a value could be found.
func forms(v string) [][]byte {
	var out [][]byte
	for _, s := range []string{v, hex.EncodeToString([]byte(v)), strings.ToUpper(hex.EncodeToString([]byte(v)))} {
		out = append(out, []byte(s))
	}
	for i := range 3 { // base64 of something that holds it, at each offset
		b := base64.StdEncoding.EncodeToString(append(bytes.Repeat([]byte{0}, i), v...))
		out = append(out, []byte(b[4:len(b)-4]))
	}
	return out
}

// A search looks for values in what it is given.
type search struct {
	t      *testing.T
	values []string
	looked int // bytes
}

func (s *search) in(where string, b []byte) {
	s.t.Helper()
	s.looked += len(b)
	for _, v := range s.values {
		for _, f := range forms(v) {
			if bytes.Contains(b, f) {
				s.t.Errorf("%s holds %s, as %q", where, v, f)
			}
		}
	}
}

// below looks into every file below a folder, in their names too.
func (s *search) below(dir string) {
	s.t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		s.in("the name "+path, []byte(path))
		if !e.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		s.in(path, b)
		return err
	})
	if err != nil {
		s.t.Error(err)
	}
}

// processes looks into the arguments and environments of a process and of all
// that it started.
func (s *search) processes(pid int) {
	s.t.Helper()
	for _, f := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), f))
		if err != nil {
			continue // it has ended
		}
		s.in("/proc/"+strconv.Itoa(pid)+"/"+f, b)
	}
	tasks, _ := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	for _, task := range tasks {
		b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "task", task.Name(), "children"))
		for _, child := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(child); err == nil {
				s.processes(n)
			}
		}
	}
}

func TestAValueIsFoundNowhereAfterwards(t *testing.T) {
	s, err := lab.New("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	work := t.TempDir()
	look := &search{t: t, values: []string{stored, replaced, inFile, refused}}
	server := s.Command("server", "--log-level", "debug", "--secret-files", work)
	server.Env = append(server.Env, "ISLE_SECRET_DB="+variable)
	var log bytes.Buffer
	server.Stderr = &log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Isle("server", "stop"); server.Wait() })
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(s.State, "isle.sock")); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	said := func(stdin string, fails bool, args ...string) string {
		t.Helper()
		cmd := s.Command(args...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if (err != nil) != fails {
			t.Errorf("isle %v: %v\n%s", args, err, out)
		}
		look.in(strings.Join(args, " "), out)
		return string(out)
	}
	file := filepath.Join(work, "value")
	if err := os.WriteFile(file, []byte(inFile), 0o600); err != nil {
		t.Fatal(err)
	}
	said(replaced, false, "secret", "set", "db")
	said(stored, false, "secret", "set", "db", "-o", "json")
	said("", false, "secret", "set", "in-file", "--file", file)
	said("", false, "secret", "set", "in-variable", "--env", "ISLE_SECRET_DB")
	said(refused, true, "secret", "set", "No-Name")
	said(strings.Repeat(refused, 4000), true, "secret", "set", "large")
	for _, name := range []string{"db", "in-file", "in-variable"} {
		said("", false, "secret", "check", name)
		said("", false, "secret", "versions", name, "-o", "json")
	}
	policy := filepath.Join(work, "policy.yaml")
	if err := os.WriteFile(policy, []byte("connections: {orders: {kind: tcp, address: \"db.example.com:1\", stage: testing, credential: {secret: db}}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	said("", false, "apply", "-f", policy, "--document", "orders")
	said("", true, "secret", "rm", "db")
	said("", false, "secret", "ls", "-o", "json")
	said("", false, "policy", "show", "--cedar")
	said("", false, "doctor")

	// What runs in an environment, and what carries it, has none.
	project := filepath.Join(work, "project")
	if err := os.Mkdir(project, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(project, "isle.yaml"), []byte("name: bystander\nservices: {one: {}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	said("", false, "up", project)
	look.in("the environment", []byte(said("", false, "exec", "bystander", "--", "env")))
	look.processes(server.Process.Pid)
	children := &search{t: t, values: append(look.values, variable)}
	e, err := s.Status("bystander")
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range inside(t, e) {
		children.processes(pid)
	}
	if children.looked == 0 {
		t.Error("found no process of the environment: the search is broken")
	}

	// A successor has what it needs, and nothing more is seen of it.
	server.Process.Signal(syscall.SIGHUP)
	said("", false, "server", "reload")
	said("", false, "secret", "check", "in-variable")
	said("", false, "secret", "check", "db")
	said("", false, "audit", "export", "--file", filepath.Join(s.State, "export"))
	said("", false, "audit", "verify")
	look.processes(server.Process.Pid)
	said("", false, "down", "bystander")
	said("", false, "secret", "rm", "db", "--force")
	look.values = append(look.values, variable)
	look.below(s.State) // the database with its write-ahead log, as it runs
	said("", false, "server", "stop")
	server.Wait()
	look.below(s.State)
	look.below(s.State + ".seen")
	look.below(s.State + ".keys")
	look.in("the server's log", log.Bytes())
	if look.looked < 100_000 {
		t.Errorf("looked at %d bytes only: the search is broken", look.looked)
	}
}

// inside are the processes of an environment, by their control groups.
func inside(t *testing.T, e lab.Environment) (out []int) {
	all, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		b, _ := os.ReadFile(path)
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil && bytes.Contains(b, []byte(e.Instance)) {
			out = append(out, pid)
		}
	}
	return out
}

// Whoever looks has to be able to find.
func TestTheSearchFindsAValueInEachForm(t *testing.T) {
	for _, b := range [][]byte{
		[]byte("x" + stored + "x"), []byte(hex.EncodeToString([]byte("a" + stored))), []byte(base64.StdEncoding.EncodeToString([]byte(stored))),
		[]byte(base64.StdEncoding.EncodeToString([]byte("a" + stored + "b"))), []byte(base64.URLEncoding.EncodeToString([]byte("ab" + stored))),
		must(json.Marshal(map[string]any{"sealed": []byte("abc" + stored)})),
	} {
		found := false
		for _, f := range forms(stored) {
			found = found || bytes.Contains(b, f)
		}
		if !found {
			t.Errorf("not found in %q", b)
		}
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}
