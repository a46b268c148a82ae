package main

import (
	"context"
	"errors"
	"io"
	"time"

	"connectrpc.com/connect"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/mcp"
)

// An agent is what a coding agent's tools act through: the same calls as the
// commands make, for as long as the program runs. A server that went away
// meanwhile is found, or started, again.
type agent struct {
	app  app           // its standard output is not the protocol's
	turn chan struct{} // holds one thing: whoever connects takes it
}

func newAgent(a *app) *agent {
	g := &agent{app: *a, turn: make(chan struct{}, 1)}
	g.app.stdout, g.app.output, g.app.client = a.stderr, "text", nil
	return g
}

func (g *agent) close() {
	if g.app.client != nil {
		g.app.client.Close()
	}
}

// begin returns a client, and a context that ends with ctx, or by end. How long a
// call may take is between the agent and this program; the server is told no
// deadline, so that a time that is over looks the same whoever sees it first.
func (g *agent) begin(ctx context.Context) (c *api.Client, calls context.Context, end context.CancelFunc, err error) {
	select {
	case g.turn <- struct{}{}:
		defer func() { <-g.turn }()
	case <-ctx.Done():
		return nil, nil, nil, ctx.Err()
	}
	if c = g.app.client; c != nil && !g.app.remote() && c.Answers(ctx) != nil {
		c.Close()
		g.app.client = nil
	}
	if c, err = g.app.connect(ctx); err != nil {
		return nil, nil, nil, err
	}
	calls, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	return c, calls, func() { stop(); cancel() }, nil
}

// Up implements mcp.Projects.
func (g *agent) Up(ctx context.Context, up mcp.Up, tell mcp.Tell) (*islev1.UpResult, error) {
	o := upOptions{name: up.Name, stage: up.Stage, ttl: up.TTL, locked: up.Locked, noWait: up.NoWait, cold: up.Cold}
	if o.stage == "" {
		o.stage = isle.DefaultStage
	}
	req, err := o.request()
	if err != nil {
		return nil, err
	}
	p, err := readProject(up.Path)
	if err != nil {
		return nil, err
	}
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	return upProject(ctx, c, p, req, &progress{tell: tell})
}

// Launch implements mcp.Projects.
func (g *agent) Launch(ctx context.Context, run mcp.Run, tell mcp.Tell) (*islev1.Environment, error) {
	o := runOptions{execOptions: execOptions{service: run.Service}, packages: run.Packages, suite: run.Suite, name: run.Name, keep: run.Keep}
	for _, k := range run.Copies {
		o.copies = append(o.copies, k.From+":"+k.To)
	}
	seeds, err := o.seeds()
	if err != nil {
		return nil, err
	}
	p, err := o.project(run.File, seeds)
	if err != nil {
		return nil, err
	}
	req, err := o.request()
	if err != nil {
		return nil, err
	}
	c, calls, end, err := g.begin(ctx)
	if err != nil {
		return nil, err
	}
	show := &progress{tell: tell}
	res, err := upProject(calls, c, p, req, show)
	if err != nil {
		end()
		return nil, err
	}
	// The environment lives as long as the call of its launch does: end stays
	// undone, for ctx to end.
	e := res.GetEnvironment()
	for _, s := range seeds {
		if err := copyIn(calls, c, show, place{ref: refText(e), service: run.Service, path: s.to}, s.from, true); err != nil {
			if run.Keep {
				return nil, isle.Errorf(isle.CodeOf(err), "%s is kept, but could not be filled: %w", refText(e), err)
			}
			end() // takes it down, which this waits for
			g.endSoon(ctx, refText(e))
			return nil, err
		}
	}
	return e, nil
}

// endSoon is End for a launch that failed: that is what is told.
func (g *agent) endSoon(ctx context.Context, environment string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	_ = g.End(ctx, environment)
}

// End implements mcp.Projects.
func (g *agent) End(ctx context.Context, environment string) error {
	err := g.Down(ctx, []string{environment}, true, nil)
	if isle.CodeOf(err) == isle.NotFound {
		return nil // the end of its launch's call took it down already
	}
	return err
}

// List implements mcp.Environments.
func (g *agent) List(ctx context.Context) ([]*islev1.Environment, error) {
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	res, err := c.Environments.List(ctx, connect.NewRequest(&islev1.ListRequest{}))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetEnvironments(), nil
}

// Get implements mcp.Environments.
func (g *agent) Get(ctx context.Context, environment string) (*islev1.Environment, error) {
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	res, err := c.Environments.Get(ctx, connect.NewRequest(&islev1.GetRequest{Environment: environment}))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetEnvironment(), nil
}

// Down implements mcp.Environments.
func (g *agent) Down(ctx context.Context, environments []string, volumes bool, tell mcp.Tell) error {
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if tell == nil {
		tell = func(*islev1.ProgressEvent) {}
	}
	return down(ctx, c, &progress{tell: tell}, &islev1.DownRequest{Environments: environments, Volumes: volumes})
}

// Logs implements mcp.Environments.
func (g *agent) Logs(ctx context.Context, req *islev1.LogsRequest, each func(*islev1.LogLine) bool) error {
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	stream, err := c.Environments.Logs(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		if !each(stream.Msg()) {
			return nil
		}
	}
	return stream.Err()
}

// Doors implements mcp.Environments.
func (g *agent) Doors(ctx context.Context, environment string) ([]*islev1.Door, error) {
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	res, err := c.Environments.Doors(ctx, connect.NewRequest(&islev1.DoorsRequest{Environment: environment}))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetDoors(), nil
}

// Exec implements mcp.Services.
func (g *agent) Exec(ctx context.Context, start *islev1.ExecStart, stdin []byte, out func(stderr bool, b []byte)) (*islev1.ExecExit, error) {
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return nil, err
	}
	stream := c.Environments.Exec(ctx)
	// HTTP/2 looks at ctx only once the request has ended.
	context.AfterFunc(ctx, func() { stream.CloseRequest() })
	fed := make(chan struct{})
	defer func() { end(); <-fed }()
	if err := stream.Send(&islev1.ExecInput{Input: &islev1.ExecInput_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		close(fed)
		return nil, err
	}
	go func() { // ends when all is sent, or with the call
		defer close(fed)
		for len(stdin) > 0 {
			n := min(len(stdin), 32<<10)
			if stream.Send(&islev1.ExecInput{Input: &islev1.ExecInput_Stdin{Stdin: stdin[:n]}}) != nil {
				return
			}
			stdin = stdin[n:]
		}
		stream.CloseRequest() // the end of its input, too
	}()
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil, isle.Errorf(isle.Unavailable, "the server ended the command without saying how").WithHint("see `isle status %s`", start.GetEnvironment())
		}
		if err != nil {
			return nil, err
		}
		switch o := m.GetOutput().(type) {
		case *islev1.ExecOutput_Stdout:
			out(false, o.Stdout)
		case *islev1.ExecOutput_Stderr:
			out(true, o.Stderr)
		case *islev1.ExecOutput_Exit:
			return o.Exit, nil
		}
	}
}

// ListFiles implements mcp.Services.
func (g *agent) ListFiles(ctx context.Context, req *islev1.ListFilesRequest) ([]*islev1.File, error) {
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	res, err := c.Environments.ListFiles(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetFiles(), nil
}

// CopyOut implements mcp.Services.
func (g *agent) CopyOut(ctx context.Context, req *islev1.CopyOutRequest, tar io.Writer) error {
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return copyOut(ctx, c, place{req.GetEnvironment(), req.GetService(), req.GetPath()}, tar)
}

// CopyIn implements mcp.Services.
func (g *agent) CopyIn(ctx context.Context, start *islev1.CopyInStart, tar io.Reader) error {
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return sendTar(ctx, c, place{start.GetEnvironment(), start.GetService(), start.GetDir()}, start.GetBaseline(), func(w io.Writer) error {
		_, err := io.Copy(w, tar)
		return err
	})
}

// Fork implements mcp.Forks.
func (g *agent) Fork(ctx context.Context, req *islev1.ForkRequest, tell mcp.Tell) ([]*islev1.Environment, error) {
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	res, err := fork(ctx, c, req, &progress{tell: tell})
	if err != nil {
		return nil, err
	}
	return res.GetEnvironments(), nil
}

// Snapshot implements mcp.Forks.
func (g *agent) Snapshot(ctx context.Context, req *islev1.CreateSnapshotRequest) (*islev1.Snapshot, error) {
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	return snapshot(ctx, c, req)
}

// Snapshots implements mcp.Forks.
func (g *agent) Snapshots(ctx context.Context, environment string) ([]*islev1.Snapshot, error) {
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	res, err := c.Snapshots.ListSnapshots(ctx, connect.NewRequest(&islev1.ListSnapshotsRequest{Environment: environment}))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetSnapshots(), nil
}

// Restore implements mcp.Forks.
func (g *agent) Restore(ctx context.Context, req *islev1.RestoreRequest, tell mcp.Tell) (*islev1.Environment, error) {
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	return restore(ctx, c, req, &progress{tell: tell})
}

// Tree implements mcp.Forks.
func (g *agent) Tree(ctx context.Context, environment string) ([]*islev1.TreeNode, error) {
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	res, err := c.Forks.Tree(ctx, connect.NewRequest(&islev1.TreeRequest{Environment: environment}))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetNodes(), nil
}

// Request implements mcp.Access.
func (g *agent) Request(ctx context.Context, req *islev1.AccessRequest) (*islev1.Approval, error) {
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	res, err := c.Approvals.RequestAccess(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetApproval(), nil
}

// Approval implements mcp.Access.
func (g *agent) Approval(ctx context.Context, id string) (*islev1.Approval, error) {
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	res, err := c.Approvals.GetApproval(ctx, connect.NewRequest(&islev1.GetApprovalRequest{Id: id}))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetApproval(), nil
}

// Decided implements mcp.Access.
func (g *agent) Decided(ctx context.Context, id string) (*islev1.Approval, error) {
	c, ctx, end, err := g.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	return decided(ctx, c, id)
}
