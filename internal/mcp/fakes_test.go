package mcp

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/approval"
)

// A world is a server that is not there.
type world struct {
	mu       sync.Mutex // guards what follows
	ended    []string   // one-shot environments
	started  chan struct{}
	killed   chan struct{} // a command that waits ended with its context
	files    map[string]*tar.Header
	content  map[string][]byte
	requests map[string]*islev1.Approval
	decide   chan struct{}
	down     [][]string
	captured []*islev1.Snapshot
	without  []string // tools that were called to do without memory
}

func newWorld() *world {
	return &world{
		started: make(chan struct{}, 100), killed: make(chan struct{}, 100), decide: make(chan struct{}),
		files: map[string]*tar.Header{}, content: map[string][]byte{}, requests: map[string]*islev1.Approval{},
	}
}

func shop() *islev1.Environment {
	code := int32(0)
	return &islev1.Environment{
		Name: "shop", Stage: isle.DefaultStage, Project: "shop", Phase: "running", Owner: "human:ana", Expires: timestamppb.New(time.Unix(2e9, 0)),
		Services: []*islev1.Service{{Name: "web", Phase: "running", ExitCode: &code, Message: "first\nsecond", Ports: []*islev1.Port{{Name: "http", Number: 80, Host: 4080, Url: "http://127.0.0.1:4080"}}}},
		Volumes:  []*islev1.Volume{{Service: "web", Path: "/data", Size: 100, Used: 7}},
	}
}

func (w *world) Up(ctx context.Context, up Up, tell Tell) (*islev1.UpResult, error) {
	if up.Path == "missing" {
		return nil, isle.Errorf(isle.NotFound, "there is no isle.yaml in missing").WithHint("write one with `isle init`")
	}
	if up.Path == "slow" {
		tell(&islev1.ProgressEvent{Service: "web", Step: "packages", State: "progress", Message: "python3", Done: 1, Total: 2})
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if up.Path == "warm" {
		w.note("up", up.Cold)
		return &islev1.UpResult{Environment: shop(), Changed: true, Warm: "sha256:1"}, nil
	}
	return &islev1.UpResult{Environment: shop(), Changed: true, Replaced: []string{"web: app/shop.py changed"}, Lock: []byte("lock")}, nil
}

func (w *world) Launch(_ context.Context, run Run, _ Tell) (*islev1.Environment, error) {
	if len(run.Packages) == 0 && run.File == "" {
		return nil, isle.Errorf(isle.Invalid, "isle run takes --packages or a file")
	}
	return &islev1.Environment{Name: "run-1", Stage: isle.DefaultStage}, nil
}

func (w *world) End(ctx context.Context, environment string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = append(w.ended, environment)
	return ctx.Err()
}

func (w *world) List(context.Context) ([]*islev1.Environment, error) {
	return []*islev1.Environment{shop()}, nil
}

func (w *world) Get(_ context.Context, environment string) (*islev1.Environment, error) {
	switch environment {
	case "shop":
		return shop(), nil
	case "held":
		return nil, isle.Errorf(isle.Held, "it awaits approval: request 06h02av97g1jqhfhft3lgoj9cg, until tomorrow")
	case "panic":
		panic("the world ends")
	}
	return nil, isle.Errorf(isle.Refused, "human:ana may not read %s", environment).WithHint("ask for a role")
}

func (w *world) Down(_ context.Context, environments []string, _ bool, _ Tell) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = append(w.down, environments)
	return nil
}

func (w *world) Logs(_ context.Context, req *islev1.LogsRequest, each func(*islev1.LogLine) bool) error {
	for i := range req.GetTail() {
		if !each(&islev1.LogLine{Service: "web", Data: fmt.Appendf(nil, "line %d\n", i)}) {
			return nil
		}
	}
	return nil
}

func (w *world) Doors(context.Context, string) ([]*islev1.Door, error) {
	return []*islev1.Door{{Destination: "orders-db", Kind: "connection", State: "refused", Reason: "no binding", Count: 2}}, nil
}

// Exec knows a few commands.
func (w *world) Exec(ctx context.Context, start *islev1.ExecStart, stdin []byte, out func(bool, []byte)) (*islev1.ExecExit, error) {
	c := start.GetCommand()
	switch c[0] {
	case "echo":
		out(false, []byte(strings.Join(c[1:], " ")+"\n"))
	case "cat":
		out(false, stdin)
	case "exit":
		code, _ := strconv.Atoi(c[1])
		out(true, []byte("it failed\n"))
		return &islev1.ExecExit{Code: int32(code)}, nil
	case "missing":
		return &islev1.ExecExit{Code: 127, Reason: "missing: not in the image"}, nil
	case "lines":
		n, _ := strconv.Atoi(c[1])
		for i := range n {
			out(false, fmt.Appendf(nil, "%d\n", i))
		}
	case "bytes":
		out(false, []byte{0xff, 0x00, 'a'})
	case "sleep":
		out(false, []byte("before\n"))
		w.started <- struct{}{}
		<-ctx.Done()
		w.killed <- struct{}{}
		return nil, context.Canceled
	default:
		return nil, isle.Errorf(isle.Invalid, "the world has no %s", c[0])
	}
	return &islev1.ExecExit{}, nil
}

func (w *world) ListFiles(_ context.Context, req *islev1.ListFilesRequest) ([]*islev1.File, error) {
	var out []*islev1.File
	for i := range 1234 {
		out = append(out, &islev1.File{Name: fmt.Sprintf("f%04d", i), Type: "file", Size: int64(i), Mode: 0o644, Time: timestamppb.New(time.Unix(2e9, 0))})
	}
	return append(out, &islev1.File{Name: "link", Type: "link", Target: "f0001", Mode: 0o777, Time: timestamppb.New(time.Unix(2e9, 0))}, &islev1.File{Name: "sub", Type: "dir", Mode: 0o755, Time: timestamppb.New(time.Unix(2e9, 0))}), nil
}

func (w *world) CopyOut(_ context.Context, req *islev1.CopyOutRequest, out io.Writer) error {
	w.mu.Lock()
	h, b := w.files[req.GetPath()], w.content[req.GetPath()]
	w.mu.Unlock()
	if h == nil {
		return isle.Errorf(isle.NotFound, "there is no %s in the service", req.GetPath())
	}
	t := tar.NewWriter(out)
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	if _, err := t.Write(b); err != nil {
		return err
	}
	return t.Close()
}

func (w *world) CopyIn(_ context.Context, start *islev1.CopyInStart, in io.Reader) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := tar.NewReader(in)
	h, err := t.Next()
	if err != nil {
		return err
	}
	b, err := io.ReadAll(t)
	at := strings.TrimSuffix(start.GetDir(), "/") + "/" + h.Name
	w.files[at], w.content[at] = h, b
	return err
}

// note remembers what was asked to do without memory.
func (w *world) note(what string, without bool) {
	if without {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.without = append(w.without, what)
	}
}

func (w *world) Fork(_ context.Context, req *islev1.ForkRequest, _ Tell) (out []*islev1.Environment, err error) {
	w.note("fork", req.GetCold())
	for i := range req.GetCount() {
		e := shop()
		e.Name, e.ParentName = fmt.Sprintf("%s-%d", req.GetName(), i+1), req.GetFrom()
		out = append(out, e)
	}
	return out, nil
}

func (w *world) Snapshot(_ context.Context, req *islev1.CreateSnapshotRequest) (*islev1.Snapshot, error) {
	w.note("snapshot", req.GetNoMemory())
	if req.GetEnvironment() != "shop" {
		return nil, isle.Errorf(isle.NotFound, "environment %s is not up", req.GetEnvironment())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &islev1.Snapshot{
		Digest: fmt.Sprintf("sha256:%d", len(w.captured)+1), Environment: "shop", Author: "human:ana", Created: timestamppb.New(time.Unix(2e9, 0)), Message: req.GetMessage(),
		Volumes: []*islev1.SnapshotVolume{{Service: "web", Path: "/data"}}, Used: 7, Trusted: true,
	}
	if req.GetTag() != "" {
		s.Tags = []string{req.GetTag()}
	}
	w.captured = append(w.captured, s)
	return s, nil
}

func (w *world) Snapshots(context.Context, string) ([]*islev1.Snapshot, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.captured, nil
}

func (w *world) Restore(_ context.Context, req *islev1.RestoreRequest, _ Tell) (*islev1.Environment, error) {
	w.note("restore", req.GetCold())
	if req.GetAt() != "good" {
		return nil, isle.Errorf(isle.NotFound, "there is no snapshot %s", req.GetAt())
	}
	return shop(), nil
}

func (w *world) Tree(context.Context, string) ([]*islev1.TreeNode, error) {
	return []*islev1.TreeNode{
		{Id: "a", Kind: "environment", Name: "shop", Phase: "running"},
		{Id: "sha256:1", Parent: "a", Kind: "snapshot", Name: "shop", Tags: []string{"good"}, Message: "before\nit"},
		{Id: "b", Parent: "sha256:1", Kind: "environment", Name: "try", Gone: true},
	}, nil
}

func (w *world) Request(_ context.Context, req *islev1.AccessRequest) (*islev1.Approval, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &islev1.Approval{
		Id: "06h02av97g1jqhfhft3lgoj9cg", State: approval.Pending, Why: req.GetWhy(), Approvers: []string{"human:bo"}, Expires: timestamppb.New(time.Unix(2e9, 0)),
		Access: &islev1.Access{What: req.GetWhat(), Name: req.GetName(), Subject: "human:ana", For: req.GetFor()},
	}
	w.requests[r.Id] = r
	return r, nil
}

func (w *world) Approval(_ context.Context, id string) (*islev1.Approval, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.requests[id]; r != nil {
		return r, nil
	}
	return nil, isle.Errorf(isle.NotFound, "there is no request %s", id)
}

func (w *world) Decided(ctx context.Context, id string) (*islev1.Approval, error) {
	select {
	case <-w.decide:
	case <-ctx.Done():
		return nil, context.Canceled
	}
	return &islev1.Approval{Id: id, State: "denied", Ending: "denied", Decisions: []*islev1.ApprovalVerdict{{Actor: "human:bo", Reason: "not on a Friday"}}}, nil
}

// serve serves a world at the ends of a wire that are returned. It ends with the
// test, at the latest.
func serve(t testing.TB, w *world) (in io.WriteCloser, out io.Reader, done <-chan error) {
	t.Helper()
	fromAgent, toServer := io.Pipe()
	fromServer, toAgent := io.Pipe()
	s := New(Config{Projects: w, Environments: w, Services: w, Forks: w, Access: w, Version: "test", Log: slog.New(slog.DiscardHandler)})
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan struct{})
	go func() {
		err := s.Serve(ctx, fromAgent, toAgent)
		toAgent.Close()
		ended <- err
		close(gone)
	}()
	t.Cleanup(func() { cancel(); toServer.Close(); fromServer.Close(); <-gone })
	return toServer, fromServer, ended
}

// agentOf is an agent of a world: the SDK's own client.
func agentOf(t *testing.T, w *world, options *mcp.ClientOptions) *mcp.ClientSession {
	t.Helper()
	in, out, _ := serve(t, w)
	c := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, options)
	session, err := c.Connect(t.Context(), &mcp.IOTransport{Reader: io.NopCloser(out), Writer: in}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { session.Close() })
	return session
}

// use uses a tool and returns its text and its fields.
func use(t *testing.T, s *mcp.ClientSession, name string, args map[string]any) (text string, fields map[string]any, failed bool) {
	t.Helper()
	res, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: name, Arguments: args})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	var b bytes.Buffer
	for _, c := range res.Content {
		b.WriteString(c.(*mcp.TextContent).Text)
	}
	fields, _ = res.StructuredContent.(map[string]any)
	return b.String(), fields, res.IsError
}

// first is the first result of a command.
func first(t *testing.T, fields map[string]any) map[string]any {
	t.Helper()
	results, _ := fields["results"].([]any)
	if len(results) == 0 {
		t.Fatalf("no result in %v", fields)
	}
	return results[0].(map[string]any)
}
