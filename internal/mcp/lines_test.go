package mcp

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
)

// A wire speaks to a server line by line.
type wire struct {
	in  io.WriteCloser
	out *bufio.Reader
}

type answer struct {
	ID    any
	Error *struct {
		Code    int
		Message string
	}
	Result json.RawMessage
}

func wireOf(t testing.TB, w *world) *wire {
	in, out, _ := serve(t, w)
	v := &wire{in, bufio.NewReaderSize(out, 1<<20)}
	v.say(`{"jsonrpc":"2.0","id":"hello","method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`)
	if a := v.hear(t); a.Error != nil || a.ID != "hello" {
		t.Fatalf("%+v", a)
	}
	v.say(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	return v
}

func (v *wire) say(line string) { io.WriteString(v.in, line+"\n") }

func (v *wire) hear(t testing.TB) (a answer) {
	t.Helper()
	line, err := v.out.ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(line, &a); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	return a
}

// ping shows that the server is there, and that nothing else was said before.
func (v *wire) ping(t testing.TB) {
	t.Helper()
	v.say(`{"jsonrpc":"2.0","id":"ping","method":"ping"}`)
	if a := v.hear(t); a.ID != "ping" || a.Error != nil {
		t.Fatalf("%+v", a)
	}
}

func TestWhatIsNoMessageIsAnsweredAndSurvived(t *testing.T) {
	v := wireOf(t, newWorld())
	for _, c := range []struct {
		line string
		id   any
		code int
	}{
		{`hello`, nil, jsonrpc.CodeParseError},
		{`{"jsonrpc":"2.0","id":1,"method":`, nil, jsonrpc.CodeParseError},
		{strings.Repeat("[", 100_000), nil, jsonrpc.CodeParseError},
		{strings.Repeat(`{"a":`, 20_000) + "1" + strings.Repeat("}", 20_000), nil, jsonrpc.CodeParseError},
		{`17`, nil, jsonrpc.CodeInvalidRequest},
		{`{}`, nil, jsonrpc.CodeInvalidRequest},
		{`[]`, nil, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"1.0","id":3,"method":"ping"}`, 3.0, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":{"a":1},"method":"ping"}`, nil, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":4,"method":"no/such"}`, 4.0, jsonrpc.CodeMethodNotFound},
		{`{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"no_such_tool"}}`, 5.0, jsonrpc.CodeInvalidParams},
		{`{"jsonrpc":"2.0","id":6,"method":"tools/call","params":[1,2]}`, 6.0, jsonrpc.CodeInvalidParams},
	} {
		go v.say(c.line)
		a := v.hear(t)
		if a.Error == nil || a.Error.Code != c.code || a.ID != c.id {
			t.Errorf("%.60s: %+v %+v", c.line, a, a.Error)
		}
		v.ping(t)
	}
	v.say("")      // blank lines are nothing
	v.say("   \r") // and so are these
	v.ping(t)
	v.say(`[{"jsonrpc":"2.0","id":7,"method":"ping"}]`)
	if a := v.hear(t); a.ID != 7.0 || a.Error != nil {
		t.Errorf("a batch: %+v", a)
	}
}

func TestAMessageThatIsTooLargeIsRefusedByItsID(t *testing.T) {
	v := wireOf(t, newWorld())
	huge := strings.Repeat("x", maxCall)
	go v.say(`{"method":"tools/call","params":{"name":"write_file","arguments":{"environment":"shop","path":"/data/f","content":"` + huge + `"}},"jsonrpc":"2.0","id":9}`)
	if a := v.hear(t); a.ID != 9.0 || a.Error == nil || !strings.Contains(a.Error.Message, "at most 4194304 bytes") {
		t.Errorf("%+v", a)
	}
	v.ping(t)
	go func() { // more than is read of a line
		for range maxLine/maxCall + 1 {
			io.WriteString(v.in, huge)
		}
		io.WriteString(v.in, "\n")
	}()
	if a := v.hear(t); a.ID != nil || a.Error == nil {
		t.Errorf("%+v", a)
	}
	v.ping(t)
}

func TestThousandsOfCallsAreBoundedAndAnsweredEachOnce(t *testing.T) {
	w := newWorld()
	v := wireOf(t, w)
	const calls = 3000
	for i := range maxCalls {
		v.say(fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"exec","arguments":{"environment":"shop","command":["sleep"]}}}`, i))
		<-w.started
	}
	go func() {
		for i := maxCalls; i < calls; i++ {
			v.say(fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"ls"}}`, i))
		}
	}()
	for i := maxCalls; i < calls; i++ {
		if a := v.hear(t); a.ID != float64(i) || a.Error == nil || a.Error.Code != codeBusy || !strings.HasPrefix(a.Error.Message, "exhausted: ") {
			t.Fatalf("call %d: %+v", i, a)
		}
	}
	v.say(`{"jsonrpc":"2.0","id":0,"method":"ping"}`) // an ID that is in use
	if a := v.hear(t); a.ID != nil || a.Error == nil {
		t.Errorf("%+v", a)
	}
	// A cancellation gets through all the same.
	for i := range maxCalls {
		v.say(fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%d}}`, i))
		<-w.killed
	}
	seen := map[any]bool{}
	for range maxCalls {
		seen[v.hear(t).ID] = true
	}
	if len(seen) != maxCalls {
		t.Errorf("%d calls were answered, not %d", len(seen), maxCalls)
	}
	v.ping(t)
}

func FuzzLines(f *testing.F) {
	for _, s := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"ping"}`, `[{"jsonrpc":"2.0","id":1,"method":"ping"},1]`, "x\n\n{}", `{"jsonrpc":"2.0","id":"a","result":{}}`,
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read_output","arguments":{"cursor":"1.9"}}}`,
		`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"exec","arguments":{"environment":"shop","command":["lines","9"],"max_output":300}}}`, "\x00\xff", `{"id":-0,"jsonrpc":"2.0"}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, lines string) {
		v := wireOf(t, newWorld())
		go func() {
			v.say(lines)
			v.say(`{"jsonrpc":"2.0","id":"the end","method":"ping"}`)
		}()
		for { // whatever comes, each line out is one message, and the server goes on
			if v.hear(t).ID == "the end" {
				return
			}
		}
	})
}
