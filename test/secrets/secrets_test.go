// Package secrets looks, from outside of a real server, for what must be found
// nowhere: the values of secrets.
package secrets

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
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

func TestAValueIsFoundNowhereAfterwards(t *testing.T) {
	s, err := lab.New("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	work := t.TempDir()
	look := &lab.Search{Report: t.Errorf, Values: []string{stored, replaced, inFile, refused}}
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
		look.In(strings.Join(args, " "), out)
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
	if err := os.WriteFile(policy, []byte("connections: {orders: {kind: postgres, address: \"db.example.com:1\", stage: testing, credential: {secret: db}}}\n"), 0o600); err != nil {
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
	look.In("the environment", []byte(said("", false, "exec", "bystander", "--", "env")))
	processes(look, server.Process.Pid)
	children := &lab.Search{Report: t.Errorf, Values: append(look.Values, variable)}
	e, err := s.Status("bystander")
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range e.Inside() {
		processes(children, pid)
	}
	if children.Looked == 0 {
		t.Error("found no process of the environment: the search is broken")
	}

	// A successor has what it needs, and nothing more is seen of it.
	server.Process.Signal(syscall.SIGHUP)
	said("", false, "server", "reload")
	said("", false, "secret", "check", "in-variable")
	said("", false, "secret", "check", "db")
	said("", false, "audit", "export", "--file", filepath.Join(s.State, "export"))
	said("", false, "audit", "verify")
	processes(look, server.Process.Pid)
	said("", false, "down", "bystander")
	said("", false, "secret", "rm", "db", "--force")
	look.Values = append(look.Values, variable)
	look.Below(s.State) // the database with its write-ahead log, as it runs
	said("", false, "server", "stop")
	server.Wait()
	look.Below(s.State)
	look.Below(s.State + ".seen")
	look.Below(s.State + ".keys")
	look.In("the server's log", log.Bytes())
	if look.Looked < 100_000 {
		t.Errorf("looked at %d bytes only: the search is broken", look.Looked)
	}
}

// processes looks into a process and all that it started.
func processes(look *lab.Search, pid int) {
	look.Process(pid)
	for _, child := range lab.Descendants(pid) {
		look.Process(child)
	}
}

// Whoever looks has to be able to find.
func TestTheSearchFindsAValueInEachForm(t *testing.T) {
	for _, b := range [][]byte{
		[]byte("x" + stored + "x"), []byte(hex.EncodeToString([]byte("a" + stored))), []byte(base64.StdEncoding.EncodeToString([]byte(stored))),
		[]byte(base64.StdEncoding.EncodeToString([]byte("a" + stored + "b"))), []byte(base64.URLEncoding.EncodeToString([]byte("ab" + stored))),
		must(json.Marshal(map[string]any{"sealed": []byte("abc" + stored)})),
	} {
		found := false
		for _, f := range lab.Forms(stored) {
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
