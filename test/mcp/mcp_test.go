// Package mcp_test is a coding agent at work: the SDK's own client starts the
// real `isle mcp`, which finds or starts a real server with real environments.
package mcp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"isle/test/lab"
)

// server is what all tests share.
var server *lab.Server

func TestMain(m *testing.M) {
	var err error
	if server, err = lab.New("../../bin"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	server.Close()
	os.Exit(code)
}

// An agent is a session with an isle mcp of its own.
type agent struct {
	*mcp.ClientSession
	process *exec.Cmd
}

// patience bounds what would go on for ever where a test fails.
const patience = time.Minute

// start starts an agent that works in a folder.
func start(t *testing.T, s *lab.Server, dir string, options *mcp.ClientOptions) *agent {
	t.Helper()
	cmd := s.Command("mcp")
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	session, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, options).Connect(t.Context(), &mcp.CommandTransport{Command: cmd}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // a call that a failed test has left would hold it up for ever
		kill := time.AfterFunc(patience, func() { cmd.Process.Kill() })
		defer kill.Stop()
		session.Close()
	})
	return &agent{session, cmd}
}

// A said is what a tool said.
type said struct {
	text   string
	failed bool
	fields map[string]any
}

// result is the fields of the i-th command's result.
func (s said) result(i int) map[string]any {
	list, _ := s.fields["results"].([]any)
	if i >= len(list) {
		return nil
	}
	m, _ := list[i].(map[string]any)
	return m
}

// use uses a tool.
func (a *agent) use(t *testing.T, tool string, args map[string]any) said {
	t.Helper()
	res, err := a.CallTool(t.Context(), &mcp.CallToolParams{Name: tool, Arguments: args})
	if err != nil {
		t.Fatalf("%s: %v", tool, err)
	}
	s := said{failed: res.IsError}
	s.fields, _ = res.StructuredContent.(map[string]any)
	for _, c := range res.Content {
		if text, ok := c.(*mcp.TextContent); ok {
			s.text += text.Text
		}
	}
	return s
}

// must is use of a tool that does not fail.
func (a *agent) must(t *testing.T, tool string, args map[string]any) said {
	t.Helper()
	s := a.use(t, tool, args)
	if s.failed {
		t.Fatalf("%s %v: %s", tool, args, s.text)
	}
	return s
}

// within waits for something, half a minute at most.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

const projectFile = `name: NAME
isolation: container
services:
  one:
    packages: [busybox]
    copy: [{from: page/, to: /page}]
    command: [sh, -c, "echo ready; exec sleep 1000000"]
    volumes: {/data: {size: 16MiB}}
limits: {cpus: 1, memory: 128MiB, pids: 128}
`

// project makes a project's folder.
func project(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "page"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "isle.yaml"), strings.ReplaceAll(projectFile, "NAME", name))
	write(t, filepath.Join(dir, "page", "index.html"), "first\n")
	return dir
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestAnAgentWorksOnAProject(t *testing.T) {
	dir := project(t, "worked")
	a := start(t, server, dir, nil)
	up := a.must(t, "up", nil) // of the folder that it was started in
	if !strings.HasPrefix(up.text, "worked is running") || up.fields["changed"] != true || up.fields["lock_changed"] != true {
		t.Fatalf("%s %v", up.text, up.fields)
	}
	if _, err := os.Stat(filepath.Join(dir, "isle.lock")); err != nil {
		t.Error(err)
	}
	if again := a.must(t, "up", map[string]any{"path": dir}); again.fields["changed"] != false || !strings.HasPrefix(again.text, "nothing to do: worked") {
		t.Errorf("%s", again.text)
	}

	env := map[string]any{"environment": "worked"}
	with := func(more map[string]any) map[string]any {
		out := map[string]any{"environment": "worked"}
		for k, v := range more {
			out[k] = v
		}
		return out
	}
	if r := a.must(t, "exec", with(map[string]any{"script": "cat /page/index.html; echo to stderr >&2; exit 3"})).result(0); r["exit_code"] != 3.0 || r["stdout"] != "first\n" || r["stderr"] != "to stderr\n" {
		t.Errorf("%v", r)
	}
	if r := a.must(t, "exec", with(map[string]any{"command": []string{"cat"}, "stdin": "typed"})).result(0); r["stdout"] != "typed" {
		t.Errorf("%v", r)
	}
	if s := a.use(t, "exec", with(map[string]any{"command": []string{"nonsuch"}})); !s.failed || s.result(0)["exit_code"] != 127.0 || !strings.Contains(s.text, "nonsuch") {
		t.Errorf("%s", s.text)
	}

	a.must(t, "write_file", with(map[string]any{"path": "/data/new/run.sh", "content": "#!/bin/sh\necho $0 ran\n", "mode": "0755"}))
	if r := a.must(t, "exec", with(map[string]any{"command": []string{"/data/new/run.sh"}})).result(0); r["stdout"] != "/data/new/run.sh ran\n" {
		t.Errorf("%v", r)
	}
	a.must(t, "write_file", with(map[string]any{"path": "/data/new/bytes", "content": "AAEC/w==", "encoding": "base64"}))
	if s := a.must(t, "read_file", with(map[string]any{"path": "/data/new/bytes"})); s.fields["encoding"] != "base64" || s.fields["content"] != "AAEC/w==" || s.fields["size"] != 4.0 {
		t.Errorf("%v", s.fields)
	}
	if s := a.must(t, "list_files", with(map[string]any{"path": "/data/new"})); s.fields["total"] != 2.0 || !strings.Contains(s.text, "0755") || !strings.Contains(s.text, " run.sh\n") {
		t.Errorf("%s", s.text)
	}
	if s := a.use(t, "write_file", with(map[string]any{"path": "/page/index.html", "content": "x"})); !s.failed || s.fields["error"] == nil {
		t.Errorf("the image was written to: %s", s.text)
	}

	if s := a.must(t, "logs", env); s.text != "one | ready\n" {
		t.Errorf("%q", s.text)
	}
	if s := a.must(t, "doors", env); !strings.Contains(s.text, "may reach nothing outside") {
		t.Errorf("%s", s.text)
	}
	if s := a.must(t, "ls", nil); !strings.Contains(s.text, "worked is running") {
		t.Errorf("%s", s.text)
	}

	// What may go wrong is tried in a copy.
	if s := a.must(t, "fork", map[string]any{"from": "worked", "name": "tried"}); !strings.Contains(s.text, "tried is running") || !strings.Contains(s.text, "a copy of worked") {
		t.Errorf("%s", s.text)
	}
	if r := a.must(t, "exec", map[string]any{"environment": "tried", "script": "cat /data/new/run.sh && rm -r /data/new"}).result(0); r["exit_code"] != 0.0 || r["stdout"] != "#!/bin/sh\necho $0 ran\n" {
		t.Errorf("%v", r)
	}
	if s := a.must(t, "tree", nil); !strings.Contains(s.text, "environment worked, running\n") || !strings.Contains(s.text, "  environment tried, running\n") {
		t.Errorf("%s", s.text)
	}
	// What is to be changed is captured first, and brought back.
	made := a.must(t, "snapshot", map[string]any{"environment": "worked", "message": "before", "tag": "before-it"})
	if list := a.must(t, "snapshots", env); list.text != made.text+"\n" || !strings.Contains(list.text, "tagged before-it, made ") {
		t.Errorf("%s, then %s", made.text, list.text)
	}
	a.must(t, "exec", with(map[string]any{"script": "rm -r /data/new"}))
	if s := a.must(t, "restore", map[string]any{"environment": "worked", "at": "before-it"}); !strings.HasPrefix(s.text, "worked is running") {
		t.Errorf("%s", s.text)
	}
	if r := a.must(t, "exec", with(map[string]any{"command": []string{"cat", "/data/new/run.sh"}})).result(0); r["stdout"] != "#!/bin/sh\necho $0 ran\n" {
		t.Errorf("%v", r)
	}
	if s := a.use(t, "restore", map[string]any{"environment": "worked", "at": "nonsuch"}); !s.failed || s.fields["error"] == nil {
		t.Errorf("%s", s.text)
	}
	a.must(t, "down", map[string]any{"environments": []string{"tried"}, "volumes": true})

	// A change of the project's files, and up again: the volume is still there.
	write(t, filepath.Join(dir, "page", "index.html"), "second\n")
	if s := a.must(t, "up", nil); !strings.HasPrefix(s.text, "replaced one: ") || len(s.fields["replaced"].([]any)) != 1 {
		t.Errorf("%s", s.text)
	}
	if r := a.must(t, "exec", with(map[string]any{"command": []string{"cat", "/page/index.html", "/data/new/run.sh"}})).result(0); r["stdout"] != "second\n#!/bin/sh\necho $0 ran\n" {
		t.Errorf("%v", r)
	}
	if s := a.must(t, "status", env); !strings.Contains(s.text, "volume /data of one") {
		t.Errorf("%s", s.text)
	}
	a.must(t, "down", map[string]any{"environments": []string{"worked"}, "volumes": true})
	if s := a.use(t, "status", env); !s.failed || !strings.HasPrefix(s.text, "not_found: ") {
		t.Errorf("%s", s.text)
	}
}

func TestACommandIsTriedWhereNothingIsReachedAndNothingIsLeft(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "in.txt"), "from here\n")
	a := start(t, server, dir, nil)
	s := a.must(t, "run", map[string]any{
		"packages": []string{"busybox"}, "copies": []map[string]string{{"from": dir, "to": "/work"}}, "workdir": "/work",
		"commands": [][]string{{"cat", "in.txt"}, {"sh", "-c", "echo changed > in.txt; wget -q -T 3 -O- http://192.0.2.1/ || echo reached nothing"}, {"sh", "-c", "exit 4"}, {"echo", "not this"}},
	})
	if s.result(0)["stdout"] != "from here\n" || !strings.Contains(s.text, "reached nothing") || s.result(2)["exit_code"] != 4.0 || s.fields["not_run"] != 1.0 {
		t.Errorf("%s", s.text)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "in.txt")); err != nil || string(b) != "from here\n" {
		t.Errorf("%q, %v: what is outside was changed", b, err)
	}
	if s := a.must(t, "ls", nil); strings.Contains(s.text, "run-") {
		t.Errorf("%s", s.text)
	}
	// What is kept is worked on.
	s = a.must(t, "run", map[string]any{"packages": []string{"busybox"}, "keep": true, "name": "kept", "command": []string{"true"}})
	if s.fields["kept"] != true {
		t.Errorf("%v", s.fields)
	}
	a.must(t, "exec", map[string]any{"environment": "kept", "command": []string{"true"}})
	a.must(t, "down", map[string]any{"environments": []string{"kept"}, "volumes": true})
}

func TestMuchOutputIsBoundedAndReadOn(t *testing.T) {
	a := start(t, server, t.TempDir(), nil)
	s := a.must(t, "run", map[string]any{"packages": []string{"busybox"}, "command": []string{"seq", "1", "200000"}, "max_output": 4096})
	r := s.result(0)
	if len(s.text) > 5000 || r["stdout_bytes"] != 1288895.0 || !strings.HasSuffix(strings.TrimSpace(s.text), "\n200000") {
		t.Fatalf("%d bytes shown, %v written", len(s.text), r["stdout_bytes"])
	}
	more := a.must(t, "read_output", map[string]any{"cursor": r["stdout_cursor"], "max_output": 200000})
	if text := more.fields["text"].(string); len(text) != 200000 || !strings.Contains(text, "\n1000\n1001\n") {
		t.Errorf("%d bytes more", len(text))
	}
}

// running says how many processes of a command there are on this machine.
func running(command string) (n int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range all {
		b, _ := os.ReadFile(name)
		if strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " ") == command {
			n++
		}
	}
	return n
}

func TestATimeOutAndACancellationKillWhatRuns(t *testing.T) {
	dir := project(t, "killed")
	a := start(t, server, dir, nil)
	a.must(t, "up", nil)
	t.Cleanup(func() { server.Isle("down", "killed", "--volumes") })

	s := a.use(t, "exec", map[string]any{"environment": "killed", "script": "echo begun; exec sleep 314159", "timeout": 1})
	if r := s.result(0); !s.failed || r["timed_out"] != true || r["stdout"] != "begun\n" {
		t.Errorf("%s", s.text)
	}
	within(t, "the command is killed at its time-out", func() bool { return running("sleep 314159") == 0 })

	told := make(chan string, 100)
	b := start(t, server, dir, &mcp.ClientOptions{ProgressNotificationHandler: func(_ context.Context, req *mcp.ProgressNotificationClientRequest) {
		select {
		case told <- req.Params.Message:
		default:
		}
	}})
	for _, tool := range []struct {
		name string
		args map[string]any
	}{
		{"exec", map[string]any{"environment": "killed", "script": "echo begun; exec sleep 271828"}},
		{"run", map[string]any{"packages": []string{"busybox"}, "name": "cancelled", "script": "echo begun; exec sleep 271828"}},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		params := &mcp.CallToolParams{Name: tool.name, Arguments: tool.args}
		params.SetProgressToken(tool.name)
		var wg sync.WaitGroup
		wg.Go(func() {
			if res, err := b.CallTool(ctx, params); err == nil {
				t.Errorf("%s came back: %+v", tool.name, res.Content)
			}
		})
		for m := ""; !strings.Contains(m, "the last: begun"); {
			select {
			case m = <-told:
			case <-time.After(patience):
				t.Fatalf("%s never said that it has begun", tool.name)
			}
		}
		cancel()
		wg.Wait()
		within(t, tool.name+" is killed when it is cancelled", func() bool { return running("sleep 271828") == 0 })
	}
	within(t, "what was cancelled is torn down", func() bool { return !strings.Contains(b.must(t, "ls", nil).text, "cancelled") })
	b.must(t, "exec", map[string]any{"environment": "killed", "command": []string{"true"}}) // and what it ran in goes on
}

func TestWhatAnAgentBeganEndsWithIt(t *testing.T) {
	for name, end := range map[string]func(a *agent){
		"killed":  func(a *agent) { a.process.Process.Kill() },
		"stopped": func(a *agent) { a.process.Process.Signal(syscall.SIGTERM) },
	} {
		t.Run(name, func(t *testing.T) {
			// Of the class whose processes the machine sees.
			dir := project(t, name)
			a := start(t, server, dir, nil)
			done := make(chan struct{})
			go func() {
				defer close(done)
				a.CallTool(t.Context(), &mcp.CallToolParams{Name: "run", Arguments: map[string]any{"file": dir, "name": name, "command": []string{"sleep", "161803"}}})
			}()
			within(t, "the command runs", func() bool { return running("sleep 161803") > 0 })
			end(a)
			<-done
			within(t, "nothing is left of it", func() bool {
				out, err := server.Isle("ls")
				return err == nil && !strings.Contains(out, name) && running("sleep 161803") == 0
			})
		})
	}
}

func TestManyCallsGoOnAtOnce(t *testing.T) {
	dir := project(t, "many")
	a := start(t, server, dir, nil)
	a.must(t, "up", nil)
	t.Cleanup(func() { server.Isle("down", "many", "--volumes") })
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			// Each waits for all: in turn, none would end.
			script := fmt.Sprintf("touch /data/%d; while [ $(ls /data | grep -v lost | wc -l) -lt 30 ]; do sleep 0.1; done; echo %d", i, i)
			res, err := a.CallTool(t.Context(), &mcp.CallToolParams{Name: "exec", Arguments: map[string]any{"environment": "many", "script": script, "timeout": 120}})
			if err != nil || res.IsError {
				t.Errorf("%d: %v %+v", i, err, res)
			}
		})
	}
	wg.Wait()
}

func TestAServerThatWentAwayIsFoundAgain(t *testing.T) {
	s, err := lab.Bare("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	a := start(t, s, t.TempDir(), nil)
	a.must(t, "ls", nil) // starts one
	if _, err := s.Isle("server", "stop"); err != nil {
		t.Fatal(err)
	}
	a.must(t, "ls", nil)
}

func TestStandardOutputIsTheProtocolOnly(t *testing.T) {
	s, err := lab.Bare("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	cmd := s.Command("mcp")
	cmd.Dir = t.TempDir()
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := []string{
		`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2024-11-05","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`,
		`{"jsonrpc":"2.0","method":"notifications/initialized"}`,
		`no JSON at all`,
		`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"ls"}}`,
		`{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"up","arguments":{"path":"/nonsuch"}}}`,
		`{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":"nonsuch"}}`,
	}
	io.WriteString(in, strings.Join(lines, "\n")+"\n")
	answered := map[string]bool{}
	for r := bufio.NewScanner(out); len(answered) < 5 && r.Scan(); {
		var m struct {
			JSONRPC string
			ID      any
		}
		if err := json.Unmarshal(r.Bytes(), &m); err != nil || m.JSONRPC != "2.0" {
			t.Errorf("on standard output: %q", r.Text())
		}
		answered[fmt.Sprint(m.ID)] = true
	}
	in.Close()
	rest, _ := io.ReadAll(out)
	if err := cmd.Wait(); err != nil || len(rest) > 0 || len(answered) != 5 {
		t.Errorf("%v; at the end %q; answered: %v", err, rest, answered)
	}
}
