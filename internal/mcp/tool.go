package mcp

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

// A result is what a tool gives: its fields are the structured content.
type result interface {
	// text is the same for who reads only text.
	text() string
}

// A failing result is one that may be no success although the tool did its work.
type failing interface{ failed() bool }

// A hint says what kind of tool one is.
type hint int

const (
	reads    hint = iota // changes nothing
	adds                 // changes something, and destroys nothing
	destroys             // may overwrite or delete
)

// A tool is how one is shown to an agent.
type tool struct {
	name, title, description string
	hint                     hint
	repeatable               bool // doing it again changes nothing more
	outside                  bool // it reaches what Isle does not hold
	tune                     func(in map[string]*jsonschema.Schema)
}

// A fault is an error in a result.
type fault struct {
	Code     string `json:"code" jsonschema:"invalid, not_found, conflict, refused (by policy: do not try to get around it), held (awaits a human), unavailable, exhausted, failed, untrusted or internal"`
	Message  string `json:"message" jsonschema:"what happened, and to what"`
	Hint     string `json:"hint,omitempty" jsonschema:"what to do next"`
	Approval string `json:"approval,omitempty" jsonschema:"of held: the request that awaits approval; wait for it with request_status"`
}

// A faulty is the structured content of a call that failed.
type faulty struct {
	Error fault `json:"error"`
}

// add gives the agent a tool.
func add[In any, Out result](s *Server, t tool, do func(ctx context.Context, c *call, in In) (Out, error)) {
	in, out := schemaOf[In](), schemaOf[Out]()
	if t.tune != nil {
		t.tune(in.Properties)
	}
	// What a client is given must fit the schema, also where it is an error.
	out.Required = nil
	out.Properties["error"] = schemaOf[fault]()
	out.Properties["error"].Description = "why the call failed; nothing else is there then"
	no := new(bool)
	destructive := t.hint == destroys
	shown := &mcp.Tool{
		Name: t.name, Title: t.title, Description: t.description, InputSchema: in, OutputSchema: out,
		Annotations: &mcp.ToolAnnotations{Title: t.title, ReadOnlyHint: t.hint == reads, DestructiveHint: &destructive, IdempotentHint: t.repeatable || t.hint == reads, OpenWorldHint: no},
	}
	if t.outside {
		yes := true
		shown.Annotations.OpenWorldHint = &yes
	}
	mcp.AddTool(s.mcp, shown, func(ctx context.Context, req *mcp.CallToolRequest, in In) (res *mcp.CallToolResult, structured any, err error) {
		c := newCall(ctx, req)
		defer c.end()
		defer func() { // a call that goes wrong ends nobody else's
			if p := recover(); p != nil {
				s.cfg.Log.Error("a tool panicked", "tool", t.name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				res, structured = failure(ctx, isle.Errorf(isle.Internal, "the tool %s failed in a way that it should not", t.name))
				err = nil
			}
		}()
		out, err := do(ctx, c, in)
		if err != nil {
			res, structured = failure(ctx, err)
			return res, structured, nil
		}
		f, ok := any(out).(failing)
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: out.text()}}, IsError: ok && f.failed()}, out, nil
	})
}

// schemaOf is the schema of a type. A list is a list and not also null: not every
// agent understands a value of two types.
func schemaOf[T any]() *jsonschema.Schema {
	s, err := jsonschema.For[T](nil)
	if err != nil {
		panic(fmt.Sprintf("the types of tools have schemas: %v", err)) // seen by every test
	}
	plain(s)
	return s
}

func plain(s *jsonschema.Schema) {
	if s == nil {
		return
	}
	if len(s.Types) == 2 && s.Types[0] == "null" {
		s.Type, s.Types = s.Types[1], nil
	}
	plain(s.Items)
	for _, p := range s.Properties {
		plain(p)
	}
}

// failure is the result of a call that failed; ctx is the call's.
func failure(ctx context.Context, err error) (*mcp.CallToolResult, any) {
	flat := api.Flatten(err)
	f := fault{Code: string(flat.Code), Message: flat.Message, Hint: flat.Hint}
	switch {
	case !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded):
	case ctx.Err() != nil:
		f = fault{Code: string(isle.Unavailable), Message: "the call was cancelled"}
	default:
		f = fault{Code: string(isle.Unavailable), Message: "it took longer than the call may", Hint: "call again with a longer timeout; what was done until then stays done"}
	}
	if flat.Code == isle.Held {
		f.Approval = heldRequest(flat.Message)
		if f.Approval != "" && f.Hint == "" {
			f.Hint = fmt.Sprintf("wait with request_status of %s, then call again", f.Approval)
		}
	}
	text := fmt.Sprintf("%s: %s", f.Code, f.Message)
	if f.Approval != "" {
		text += "\napproval: " + f.Approval
	}
	if f.Hint != "" {
		text += "\nnext: " + f.Hint
	}
	return &mcp.CallToolResult{IsError: true, Content: []mcp.Content{&mcp.TextContent{Text: text}}}, faulty{f}
}

// heldRequest is the ID of the request that an error's message names, "" if it
// names none.
func heldRequest(message string) string {
	_, rest, ok := strings.Cut(message, "request ")
	if !ok {
		return ""
	}
	end := strings.IndexFunc(rest, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
	if end >= 0 {
		rest = rest[:end]
	}
	if len(rest) != 26 {
		return ""
	}
	return rest
}

// pace is how often progress is told at most, and patience how often while there
// is nothing new: a client may give up a call that it hears nothing of.
const (
	pace     = 250 * time.Millisecond
	patience = 5 * time.Second
)

// A call is one use of a tool. It tells the agent of progress, if it asked to be
// told.
type call struct {
	ctx     context.Context
	token   any
	session *mcp.ServerSession
	began   time.Time
	stop    chan struct{}
	done    chan struct{}

	mu      sync.Mutex // guards what follows
	message string     // the last one
	fresh   bool       // it was not told yet
}

// newCall begins a call. Its goroutine ends with end.
func newCall(ctx context.Context, req *mcp.CallToolRequest) *call {
	c := &call{ctx: ctx, session: req.Session, began: time.Now(), stop: make(chan struct{}), done: make(chan struct{})}
	if req.Params != nil {
		c.token = req.Params.GetProgressToken()
	}
	if c.token == nil {
		close(c.done)
		return c
	}
	go c.tell()
	return c
}

// end ends a call's progress.
func (c *call) end() {
	close(c.stop)
	<-c.done
}

// say sets what the call is doing.
func (c *call) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.message, c.fresh = clip(fmt.Sprintf(format, args...), 200), true
}

// event is a Tell.
func (c *call) event(e *islev1.ProgressEvent) {
	text := strings.TrimSpace(e.GetService() + " " + e.GetStep())
	if m := e.GetMessage(); m != "" {
		text += ": " + oneLine(m)
	}
	switch {
	case e.GetState() == "failed":
		text += ": failed"
	case e.GetTotal() > 0:
		text += fmt.Sprintf(" (%d of %d bytes)", e.GetDone(), e.GetTotal())
	}
	c.say("%s", text)
}

// tell tells the agent what goes on until the call ends.
func (c *call) tell() {
	defer close(c.done)
	t := time.NewTicker(pace)
	defer t.Stop()
	var told time.Time
	for step := 1.0; ; {
		select {
		case <-c.stop:
			return
		case <-c.ctx.Done():
			return
		case <-t.C:
		}
		c.mu.Lock()
		message, fresh := c.message, c.fresh
		c.fresh = false
		c.mu.Unlock()
		if !fresh && time.Since(told) < patience {
			continue
		}
		told = time.Now()
		if !fresh {
			message = strings.TrimSpace(fmt.Sprintf("%s (%s)", message, time.Since(c.began).Truncate(time.Second)))
		}
		p := &mcp.ProgressNotificationParams{ProgressToken: c.token, Progress: step, Message: message}
		if c.session.NotifyProgress(c.ctx, p) != nil {
			return // nobody listens
		}
		step++
	}
}

// seconds reads a time-out that an agent gave; 0 is the usual one.
func seconds(given float64, usual, most time.Duration) (time.Duration, error) {
	switch {
	case given == 0:
		return usual, nil
	case given < 0 || given > most.Seconds():
		return 0, isle.Errorf(isle.Invalid, "a time-out of %g seconds: want more than 0 and at most %g", given, most.Seconds())
	}
	return time.Duration(given * float64(time.Second)), nil
}
