package mcp

import (
	"archive/tar"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/jsonschema-go/jsonschema"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

func TestEveryToolSaysWhatItTakesGivesAndDoes(t *testing.T) {
	s := agentOf(t, newWorld(), nil)
	list, err := s.ListTools(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tool := range list.Tools {
		names = append(names, tool.Name)
		if len(tool.Description) < 40 || tool.Annotations == nil || tool.Annotations.Title == "" {
			t.Errorf("%s: description %q, annotations %v", tool.Name, tool.Description, tool.Annotations)
		}
		for _, schema := range []any{tool.InputSchema, tool.OutputSchema} {
			b, _ := json.Marshal(schema)
			if strings.Contains(string(b), `"null"`) {
				t.Errorf("%s: a value of two types, which not every agent understands: %s", tool.Name, b)
			}
			var is jsonschema.Schema
			if err := json.Unmarshal(b, &is); err != nil {
				t.Fatal(err)
			}
			if _, err := is.Resolve(nil); err != nil {
				t.Errorf("%s: %v", tool.Name, err)
			}
		}
		var in struct {
			Properties map[string]struct{ Description string }
		}
		b, _ := json.Marshal(tool.InputSchema)
		if err := json.Unmarshal(b, &in); err != nil {
			t.Fatal(err)
		}
		for name, p := range in.Properties {
			if p.Description == "" {
				t.Errorf("%s: nothing says what %s is", tool.Name, name)
			}
		}
	}
	slices.Sort(names)
	for _, name := range []string{"up", "run", "exec", "read_file", "write_file", "list_files", "snapshot", "snapshots", "fork", "restore", "tree", "ls", "status", "logs", "down", "doors", "request", "request_status", "read_output"} {
		if !slices.Contains(names, name) {
			t.Errorf("there is no tool %s in %v", name, names)
		}
	}
}

func TestWhatOnlyReadsAndWhatDestroysIsSaid(t *testing.T) {
	s := agentOf(t, newWorld(), nil)
	list, err := s.ListTools(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]string{"ls": "reads", "read_file": "reads", "doors": "reads", "up": "adds", "run": "adds", "request": "adds", "exec": "destroys", "down": "destroys", "write_file": "destroys"}
	for _, tool := range list.Tools {
		a, kind := tool.Annotations, "adds"
		switch {
		case a.ReadOnlyHint:
			kind = "reads"
		case a.DestructiveHint == nil || *a.DestructiveHint:
			kind = "destroys"
		}
		if want, ok := kinds[tool.Name]; ok && want != kind {
			t.Errorf("%s %s, and should be said to be what %s", tool.Name, kind, want)
		}
	}
}

func TestACommandsOutputAndExitCodeArePassed(t *testing.T) {
	s := agentOf(t, newWorld(), nil)
	text, fields, failed := use(t, s, "exec", map[string]any{"environment": "shop", "command": []string{"exit", "3"}})
	r := first(t, fields)
	if failed || r["exit_code"] != 3.0 || r["stderr"] != "it failed\n" || !strings.Contains(text, "exit code 3") || !strings.Contains(text, "it failed") {
		t.Errorf("%v %q %v", failed, text, r)
	}
	if _, fields, _ = use(t, s, "exec", map[string]any{"environment": "shop", "command": []string{"cat"}, "stdin": "some text"}); first(t, fields)["stdout"] != "some text" {
		t.Errorf("stdin came back as %v", fields)
	}
	text, _, failed = use(t, s, "exec", map[string]any{"environment": "shop", "command": []string{"missing"}})
	if !failed || !strings.Contains(text, "could not be started: missing") {
		t.Errorf("%v %q", failed, text)
	}
}

func TestSeveralCommandsRunOneAfterAnotherUntilOneFails(t *testing.T) {
	s := agentOf(t, newWorld(), nil)
	_, fields, _ := use(t, s, "exec", map[string]any{"environment": "shop", "commands": [][]string{{"echo", "a"}, {"exit", "2"}, {"echo", "b"}}})
	if n := len(fields["results"].([]any)); n != 2 || fields["not_run"] != 1.0 {
		t.Errorf("%d ran: %v", n, fields)
	}
	_, fields, _ = use(t, s, "exec", map[string]any{"environment": "shop", "at_once": true, "commands": [][]string{{"echo", "a"}, {"exit", "2"}, {"echo", "b"}}})
	if n := len(fields["results"].([]any)); n != 3 || fields["not_run"] != nil {
		t.Errorf("%d ran: %v", n, fields)
	}
}

func TestACommandThatTakesTooLongIsKilledAndItsOutputShown(t *testing.T) {
	w := newWorld()
	s := agentOf(t, w, nil)
	text, fields, failed := use(t, s, "exec", map[string]any{"environment": "shop", "command": []string{"sleep"}, "timeout": 0.05})
	<-w.killed
	r := first(t, fields)
	if !failed || r["timed_out"] != true || r["exit_code"] != -1.0 || r["stdout"] != "before\n" || !strings.Contains(text, "its time was over") {
		t.Errorf("%v %q %v", failed, text, r)
	}
}

func TestACancelledCallEndsItsCommand(t *testing.T) {
	w := newWorld()
	s := agentOf(t, w, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.CallTool(ctx, &mcp.CallToolParams{Name: "run", Arguments: map[string]any{"packages": []string{"a"}, "command": []string{"sleep"}}})
		done <- err
	}()
	<-w.started
	cancel()
	<-w.killed
	if err := <-done; err == nil {
		t.Error("the call came back as if nothing was")
	}
	use(t, s, "ls", nil) // and the next is served
}

func TestWhatAnAgentBeganEndsWithItsInput(t *testing.T) {
	w := newWorld()
	in, out, done := serve(t, w)
	go func() {
		buf := make([]byte, 4096)
		for {
			if _, err := out.Read(buf); err != nil {
				return
			}
		}
	}()
	fmt.Fprintln(in, `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`)
	fmt.Fprintln(in, `{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	fmt.Fprintln(in, `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"run","arguments":{"packages":["a"],"command":["sleep"]}}}`)
	<-w.started
	in.Close()
	<-w.killed
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.ended, []string{"run-1"}) {
		t.Errorf("torn down: %v", w.ended)
	}
}

func TestAnEnvironmentOfOneCommandIsTornDownUnlessItIsKept(t *testing.T) {
	w := newWorld()
	s := agentOf(t, w, nil)
	use(t, s, "run", map[string]any{"packages": []string{"a"}, "command": []string{"exit", "1"}})
	text, fields, _ := use(t, s, "run", map[string]any{"packages": []string{"a"}, "command": []string{"echo"}, "keep": true})
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.ended, []string{"run-1"}) {
		t.Errorf("torn down: %v", w.ended)
	}
	if fields["kept"] != true || !strings.Contains(text, "run-1 is kept") {
		t.Errorf("%q %v", text, fields)
	}
}

func TestLongOutputIsCutInTheMiddleAndReadOn(t *testing.T) {
	s := agentOf(t, newWorld(), nil)
	var whole strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&whole, "%d\n", i)
	}
	text, fields, _ := use(t, s, "exec", map[string]any{"environment": "shop", "command": []string{"lines", "5000"}, "max_output": 1000})
	r := first(t, fields)
	if len(text) > 1500 || !strings.Contains(text, "\n0\n1\n") || !strings.HasSuffix(text, "4998\n4999") || r["stdout_bytes"] != float64(whole.Len()) {
		t.Errorf("%d bytes: %q", len(text), text)
	}
	cursor := r["stdout_cursor"].(string)
	head, _, _ := strings.Cut(r["stdout"].(string), "\n[…")
	got := head
	for cursor != "" {
		_, more, failed := use(t, s, "read_output", map[string]any{"cursor": cursor, "max_output": 3000})
		if failed {
			t.Fatal(more)
		}
		got += more["text"].(string)
		cursor, _ = more["cursor"].(string)
	}
	if got != whole.String() {
		t.Errorf("what was read on is not what was written: %d bytes of %d", len(got), whole.Len())
	}
}

func TestOutputThatIsNoTextIsReadInBase64(t *testing.T) {
	s := agentOf(t, newWorld(), nil)
	_, fields, _ := use(t, s, "exec", map[string]any{"environment": "shop", "command": []string{"bytes"}})
	if r := first(t, fields); r["stdout_binary"] != true || r["stdout"] != "\uFFFD\uFFFDa" {
		t.Errorf("%v", r)
	}
}

func TestErrorsHaveACodeAndWhatToDo(t *testing.T) {
	s := agentOf(t, newWorld(), nil)
	for _, c := range []struct {
		tool string
		args map[string]any
		want []string
		code string
	}{
		{"status", map[string]any{"environment": "other"}, []string{"refused: human:ana may not read other", "next: ask for a role"}, "refused"},
		{"status", map[string]any{"environment": "held"}, []string{"approval: 06h02av97g1jqhfhft3lgoj9cg", "next: wait with request_status"}, "held"},
		{"status", map[string]any{"environment": "panic"}, []string{"internal: the tool status failed"}, "internal"},
		{"up", map[string]any{"path": "missing"}, []string{"not_found: there is no isle.yaml", "next: write one"}, "not_found"},
		{"up", map[string]any{"path": "slow", "timeout": 0.05}, []string{"unavailable: it took longer than the call may"}, "unavailable"},
		{"exec", map[string]any{"environment": "shop"}, []string{"want one of command, script and commands"}, "invalid"},
		{"exec", map[string]any{"environment": "shop", "command": []string{"a"}, "timeout": -1}, []string{"want more than 0"}, "invalid"},
		{"read_output", map[string]any{"cursor": "1.0"}, []string{"is not kept any more"}, "not_found"},
		{"read_file", map[string]any{"environment": "shop", "path": "relative"}, []string{"want an absolute one"}, "invalid"},
		{"read_file", map[string]any{"environment": "shop", "path": "/none"}, []string{"there is no /none in the service"}, "not_found"},
		{"down", map[string]any{"environments": []string{}}, []string{"0 environments"}, "invalid"},
	} {
		text, fields, failed := use(t, s, c.tool, c.args)
		fault, _ := fields["error"].(map[string]any)
		if !failed || fault["code"] != c.code {
			t.Errorf("%s %v: failed %v, %v", c.tool, c.args, failed, fields)
		}
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s %v: %q is not in %q", c.tool, c.args, want, text)
			}
		}
	}
	for name, args := range map[string]map[string]any{"exec": {"environment": "shop", "comand": []string{"a"}}, "status": {}, "request": {"what": "window", "name": "x", "why": "y"}} {
		if text, _, failed := use(t, s, name, args); !failed || !strings.Contains(text, "validating") {
			t.Errorf("%s %v: %q", name, args, text)
		}
	}
}

func TestWhatIsWrittenIsWhatIsRead(t *testing.T) {
	w := newWorld()
	s := agentOf(t, w, nil)
	for _, c := range []struct{ content, encoding string }{
		{"hello, wörld\n", encodingText},
		{base64.StdEncoding.EncodeToString([]byte{0, 1, 2, 0xff}), encodingBase64},
		{"", encodingText},
	} {
		if text, _, failed := use(t, s, "write_file", map[string]any{"environment": "shop", "path": "/data/f", "content": c.content, "encoding": c.encoding, "mode": "0750"}); failed {
			t.Fatal(text)
		}
		_, fields, _ := use(t, s, "read_file", map[string]any{"environment": "shop", "path": "/data/f"})
		if fields["content"] != c.content || fields["encoding"] != c.encoding || fields["mode"] != "0750" {
			t.Errorf("%q: %v", c.content, fields)
		}
	}
}

func TestAFileIsReadInPiecesThatEndWithWholeCharacters(t *testing.T) {
	w := newWorld()
	s := agentOf(t, w, nil)
	whole := strings.Repeat("ä€x", 500)
	use(t, s, "write_file", map[string]any{"environment": "shop", "path": "/data/f", "content": whole})
	got, next := "", 0.0
	for range 1000 {
		_, fields, failed := use(t, s, "read_file", map[string]any{"environment": "shop", "path": "/data/f", "offset": next, "limit": 7})
		if failed || fields["encoding"] != encodingText {
			t.Fatal(fields)
		}
		got += fields["content"].(string)
		var more bool
		if next, more = fields["next"].(float64); !more {
			break
		}
	}
	if got != whole {
		t.Errorf("%d bytes of %d", len(got), len(whole))
	}
}

func TestLinksInsideAreFollowedAndDoNotGoOnForEver(t *testing.T) {
	w := newWorld()
	s := agentOf(t, w, nil)
	use(t, s, "write_file", map[string]any{"environment": "shop", "path": "/data/f", "content": "x"})
	w.files["/a/link"] = &tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "../data/f"}
	w.files["/a/loop"] = &tar.Header{Typeflag: tar.TypeSymlink, Name: "loop", Linkname: "loop"}
	w.files["/a"] = &tar.Header{Typeflag: tar.TypeDir, Name: "a/"}
	if _, fields, _ := use(t, s, "read_file", map[string]any{"environment": "shop", "path": "/a/link"}); fields["content"] != "x" || fields["path"] != "/data/f" {
		t.Errorf("%v", fields)
	}
	if text, _, failed := use(t, s, "read_file", map[string]any{"environment": "shop", "path": "/a/loop"}); !failed || !strings.Contains(text, "symbolic links") {
		t.Errorf("%q", text)
	}
	if text, _, failed := use(t, s, "read_file", map[string]any{"environment": "shop", "path": "/a"}); !failed || !strings.Contains(text, "is a folder") {
		t.Errorf("%q", text)
	}
}

func TestCopiesSayWhatTheyAreOf(t *testing.T) {
	s := agentOf(t, newWorld(), nil)
	text, fields, failed := use(t, s, "fork", map[string]any{"from": "shop", "name": "try", "count": 2})
	if failed || len(fields["environments"].([]any)) != 2 || !strings.HasPrefix(text, "try-1 is running, until 2033-05-18T03:33:20Z, a copy of shop\n") {
		t.Errorf("%q", text)
	}
	if text, _, failed = use(t, s, "fork", map[string]any{"from": "shop", "count": 65}); !failed || !strings.Contains(text, "want 1 to 64") {
		t.Errorf("%q", text)
	}
}

func TestLineageIsShownAndAnEarlierStateBroughtBack(t *testing.T) {
	s := agentOf(t, newWorld(), nil)
	text, _, _ := use(t, s, "tree", nil)
	if want := "environment shop, running\n  snapshot shop, sha256:1, tagged good: before it\n    environment try, gone\n"; text != want {
		t.Errorf("%q", text)
	}
	if text, _, failed := use(t, s, "restore", map[string]any{"environment": "shop", "at": "good"}); failed || !strings.HasPrefix(text, "shop is running") {
		t.Errorf("%q", text)
	}
	if text, _, failed := use(t, s, "restore", map[string]any{"environment": "shop", "at": "bad"}); !failed || !strings.HasPrefix(text, "not_found: ") {
		t.Errorf("%q", text)
	}
}

func TestAStateIsCapturedAndListed(t *testing.T) {
	s := agentOf(t, newWorld(), nil)
	if text, _, _ := use(t, s, "snapshots", nil); text != "there are no snapshots" {
		t.Errorf("%q", text)
	}
	const want = "snapshot sha256:1 of shop, tagged good, made 2033-05-18T03:33:20Z by human:ana: before it"
	text, fields, failed := use(t, s, "snapshot", map[string]any{"environment": "shop", "message": "before\nit", "tag": "good"})
	if failed || text != want || fields["snapshot"] != "sha256:1" || fields["volumes"].([]any)[0] != "web:/data" {
		t.Errorf("%q %v", text, fields)
	}
	if text, _, _ := use(t, s, "snapshots", map[string]any{"environment": "shop"}); text != want+"\n" {
		t.Errorf("%q", text)
	}
	if text, _, failed := use(t, s, "snapshot", map[string]any{"environment": "nonsuch"}); !failed || !strings.HasPrefix(text, "not_found: ") {
		t.Errorf("%q", text)
	}
}

func TestALongFolderIsListedInPieces(t *testing.T) {
	s := agentOf(t, newWorld(), nil)
	after, seen, text := "", 0, ""
	for range 4 {
		var fields map[string]any
		if text, fields, _ = use(t, s, "list_files", map[string]any{"environment": "shop", "path": "/data", "after": after}); fields["total"] != 1236.0 {
			t.Fatal(text)
		}
		seen += len(fields["files"].([]any))
		if after, _ = fields["next"].(string); after == "" {
			break
		}
	}
	if seen != 1236 || !strings.HasSuffix(text, "0777          0 2033-05-18T03:33:20Z link -> f0001\n0755          0 2033-05-18T03:33:20Z sub/\n") {
		t.Errorf("%d files, the last %q", seen, text[max(0, len(text)-120):])
	}
}

func TestARequestIsWaitedFor(t *testing.T) {
	w := newWorld()
	s := agentOf(t, w, nil)
	text, fields, failed := use(t, s, "request", map[string]any{"what": "door", "name": "orders-db", "why": "ticket 7"})
	if failed || fields["state"] != "pending" || !strings.Contains(text, "held: request 06h02av97g1jqhfhft3lgoj9cg awaits approval by human:bo") {
		t.Errorf("%q %v", text, fields)
	}
	id := fields["approval"]
	if _, fields, failed = use(t, s, "request_status", map[string]any{"approval": id, "wait": 0.05}); failed || fields["state"] != "pending" {
		t.Errorf("nobody has decided: %v", fields)
	}
	go func() { w.decide <- struct{}{} }()
	if text, _, _ = use(t, s, "request_status", map[string]any{"approval": id, "wait": 60}); !strings.Contains(text, "is denied: denied: not on a Friday") {
		t.Errorf("%q", text)
	}
}

func TestALongCallTellsItsProgress(t *testing.T) {
	told := make(chan string, 100)
	s := agentOf(t, newWorld(), &mcp.ClientOptions{ProgressNotificationHandler: func(_ context.Context, req *mcp.ProgressNotificationClientRequest) {
		told <- req.Params.Message
	}})
	ctx, cancel := context.WithCancel(t.Context())
	params := &mcp.CallToolParams{Name: "up", Arguments: map[string]any{"path": "slow"}}
	params.SetProgressToken("p")
	var wg sync.WaitGroup
	wg.Go(func() { s.CallTool(ctx, params) })
	if m := <-told; m != "web packages: python3 (1 of 2 bytes)" {
		t.Errorf("told %q", m)
	}
	cancel()
	wg.Wait()
}

func TestDownTearsEachStageDownByItself(t *testing.T) {
	w := newWorld()
	s := agentOf(t, w, nil)
	use(t, s, "down", map[string]any{"environments": []string{"a", "b@staging", "c"}})
	w.mu.Lock()
	defer w.mu.Unlock()
	if fmt.Sprint(w.down) != "[[a c] [b@staging]]" {
		t.Errorf("%v", w.down)
	}
}

func TestWhatIsShownOfEnvironmentsIsShort(t *testing.T) {
	s := agentOf(t, newWorld(), nil)
	text, fields, _ := use(t, s, "status", map[string]any{"environment": "shop"})
	want := "shop is running, until 2033-05-18T03:33:20Z\n  service web: running, exit code 0: first second\n    port http (80 inside) at 127.0.0.1:4080, http://127.0.0.1:4080\n  volume /data of web: 7 of 100 bytes used"
	if text != want || fields["environment"] != "shop" {
		t.Errorf("%q\n%q\n%v", text, want, fields)
	}
	if text, _, _ = use(t, s, "up", nil); !strings.HasPrefix(text, "replaced web: app/shop.py changed\nshop is running") {
		t.Errorf("%q", text)
	}
	if text, _, _ = use(t, s, "doors", map[string]any{"environment": "shop"}); text != "refused connection orders-db, tried 2 times: no binding\n" {
		t.Errorf("%q", text)
	}
	if text, fields, _ = use(t, s, "logs", map[string]any{"environment": "shop", "tail": 2}); text != "web | line 0\nweb | line 1\n" || fields["lines"] != 2.0 {
		t.Errorf("%q", text)
	}
}

func TestWhatIsToDoWithoutMemoryIsPassedOn(t *testing.T) {
	w := newWorld()
	s := agentOf(t, w, nil)
	for _, c := range []struct {
		tool, flag string
		arguments  map[string]any
	}{
		{"up", "cold", map[string]any{"path": "warm"}},
		{"fork", "cold", map[string]any{"from": "shop"}},
		{"restore", "cold", map[string]any{"environment": "shop", "at": "good"}},
		{"snapshot", "no_memory", map[string]any{"environment": "shop"}},
	} {
		for _, without := range []bool{false, true} {
			w.without = nil
			c.arguments[c.flag] = without
			text, _, failed := use(t, s, c.tool, c.arguments)
			if failed || slices.Contains(w.without, c.tool) != without {
				t.Errorf("%s, %s %v: %v, %q", c.tool, c.flag, without, w.without, text)
			}
			if c.tool == "up" && !strings.HasPrefix(text, "warm start from snapshot sha256:1\nshop is running") {
				t.Errorf("%q", text)
			}
		}
	}
}
