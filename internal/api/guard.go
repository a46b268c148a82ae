package api

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/api/isle/v1/islev1connect"
	"isle/internal/audit"
	"isle/internal/spec"
)

// Authorize answers whether an actor may do an action to a resource, and names
// the rule that decided.
type Authorize func(ctx context.Context, a isle.Actor, action isle.Action, r isle.Resource) (d isle.Decision, rule string, err error)

// A rule says what a procedure does and to what, from its first message.
type rule struct {
	action    isle.Action
	resources func(msg any) []isle.Resource
}

// rules has one entry for each procedure. A procedure without one is refused,
// so a new call cannot be served before it is said what it does.
func rules() map[string]rule {
	server := func(any) []isle.Resource { return []isle.Resource{{Kind: "server", Name: "server"}} }
	images := func(any) []isle.Resource { return []isle.Resource{{Kind: "image", Name: "*"}} }
	all := func(any) []isle.Resource { return []isle.Resource{{Kind: "environment", Name: "*"}} }
	source := func(msg any) []isle.Resource {
		m := msg.(interface{ GetSource() *islev1.Source })
		return []isle.Resource{{Kind: "image", Name: projectOf(m.GetSource())}}
	}
	named := func(msg any) []isle.Resource {
		return []isle.Resource{environmentResource(msg.(interface{ GetEnvironment() string }).GetEnvironment())}
	}
	return map[string]rule{
		islev1connect.EnvironmentServiceUpProcedure: {isle.ActionEnvironmentLaunch, func(msg any) []isle.Resource {
			m := msg.(*islev1.UpRequest)
			name, stage := m.GetName(), m.GetStage()
			if name == "" {
				name = projectOf(m.GetSource())
			}
			if stage == "" {
				stage = isle.DefaultStage
			}
			return []isle.Resource{{Kind: "environment", Name: name, Stage: stage}}
		}},
		islev1connect.EnvironmentServiceDownProcedure: {isle.ActionEnvironmentDown, func(msg any) []isle.Resource {
			m := msg.(*islev1.DownRequest)
			if m.GetAll() {
				return all(msg)
			}
			var rs []isle.Resource
			for _, e := range m.GetEnvironments() {
				rs = append(rs, environmentResource(e))
			}
			if rs == nil { // nothing named: still somebody asked
				return all(msg)
			}
			return rs
		}},
		islev1connect.EnvironmentServiceListProcedure:   {isle.ActionEnvironmentList, all},
		islev1connect.EnvironmentServiceGetProcedure:    {isle.ActionEnvironmentRead, named},
		islev1connect.EnvironmentServiceExtendProcedure: {isle.ActionEnvironmentExtend, named},
		islev1connect.EnvironmentServiceExecProcedure: {isle.ActionEnvironmentExec, func(msg any) []isle.Resource {
			return named(msg.(*islev1.ExecInput).GetStart())
		}},
		islev1connect.EnvironmentServiceLogsProcedure: {isle.ActionEnvironmentLogs, named},
		islev1connect.EnvironmentServiceCopyInProcedure: {isle.ActionEnvironmentCopy, func(msg any) []isle.Resource {
			return named(msg.(*islev1.CopyInRequest).GetStart())
		}},
		islev1connect.EnvironmentServiceCopyOutProcedure: {isle.ActionEnvironmentCopy, named},
		islev1connect.EnvironmentServiceDiffProcedure:    {isle.ActionEnvironmentDiff, named},
		islev1connect.EnvironmentServicePortForwardProcedure: {isle.ActionEnvironmentPort, func(msg any) []isle.Resource {
			return named(msg.(*islev1.PortInput).GetStart())
		}},
		islev1connect.EnvironmentServiceDoorsProcedure: {isle.ActionEnvironmentRead, named},

		islev1connect.BuildServiceLockProcedure:    {isle.ActionImageLock, source},
		islev1connect.BuildServiceBuildProcedure:   {isle.ActionImageBuild, source},
		islev1connect.BuildServiceMissingProcedure: {isle.ActionImageRead, images},
		islev1connect.BuildServicePutProcedure:     {isle.ActionImageImport, images},
		islev1connect.BuildServiceExportProcedure:  {isle.ActionImageExport, images},
		islev1connect.BuildServiceImportProcedure:  {isle.ActionImageImport, images},

		islev1connect.ServerServiceInfoProcedure:    {isle.ActionServerRead, server},
		islev1connect.ServerServiceDoctorProcedure:  {isle.ActionServerRead, server},
		islev1connect.ServerServiceCollectProcedure: {isle.ActionServerCollect, server},
		islev1connect.ServerServiceAuditProcedure: {isle.ActionAuditRead, func(any) []isle.Resource {
			return []isle.Resource{{Kind: "audit", Name: "log"}}
		}},
		islev1connect.ServerServiceStopProcedure: {isle.ActionServerStop, server},
	}
}

// environmentResource names NAME[@STAGE] as it was asked for; a reference that
// cannot be read is refused or found wrong later, under the name given.
func environmentResource(s string) isle.Resource {
	ref, err := isle.ParseRef(s)
	if err != nil {
		if len(s) > 100 {
			s = s[:100]
		}
		return isle.Resource{Kind: "environment", Name: s}
	}
	return isle.Resource{Kind: "environment", Name: ref.Name, Stage: ref.Stage}
}

// projectOf is the project that a source is of, "?" where it cannot be read.
func projectOf(s *islev1.Source) string {
	f, err := spec.Parse(s.GetSpecName(), s.GetSpec())
	if err != nil {
		return "?"
	}
	return f.Name
}

// A guard is the interceptor that every call passes: it gives errors their
// form on the wire, sets the deadline of unary calls, and lets nothing through
// that was not authorized.
type guard struct {
	authorize Authorize
	log       Log
	slog      *slog.Logger
	rules     map[string]rule
}

// Log is where audit entries go.
type Log interface {
	// Append makes the entries durable before it returns.
	Append(ctx context.Context, entries ...audit.Entry) error
}

// unaryTimeout bounds a call that is not a stream. Collect walks the whole
// store, hence minutes.
const unaryTimeout = 5 * time.Minute

// check asks whether the call may go on.
func (g *guard) check(ctx context.Context, procedure string, msg any) error {
	actor, ok := ActorFrom(ctx)
	if !ok {
		return isle.Errorf(isle.Refused, "nobody is known at the other end of this connection").WithHint("use the server's unix socket")
	}
	r, ok := g.rules[procedure]
	if !ok {
		return isle.Errorf(isle.Refused, "%s has no rule that says what it does", procedure)
	}
	for _, res := range r.resources(msg) {
		decision, name, err := g.authorize(ctx, actor, r.action, res)
		if err != nil {
			return isle.Errorf(isle.Internal, "cannot decide whether %s may %s %s: %w", actor, r.action, res, err)
		}
		if decision == isle.Allow {
			continue
		}
		entry := audit.Entry{
			Version: audit.Version, ID: isle.NewID(), Kind: audit.Event, Actor: actor, Action: r.action, Resource: res,
			Decision: decision, Rule: name, Result: string(isle.Refused),
		}
		if res.Kind == "environment" && res.Stage != "" {
			entry.Environment = res.Name + "@" + res.Stage
		}
		if err := g.log.Append(ctx, entry); err != nil {
			g.slog.Error("a refusal could not be recorded", "actor", actor, "action", r.action, "resource", res, "err", err)
		}
		if name == OnlyRoot {
			return isle.Errorf(isle.Refused, "%s; you are %s", OnlyRoot, actor.Name).WithHint("run the command as root, for example with sudo")
		}
		return isle.Errorf(isle.Refused, "%s may not %s %s: %s", actor, r.action, res, name).WithHint("ask whoever owns the policy")
	}
	return nil
}

// WrapUnary implements connect.Interceptor.
func (g *guard) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if err := g.check(ctx, req.Spec().Procedure, req.Any()); err != nil {
			return nil, toWire(err)
		}
		ctx, cancel := context.WithTimeout(ctx, unaryTimeout)
		defer cancel()
		res, err := next(ctx, req)
		if err != nil {
			g.note(req.Spec().Procedure, err)
			return nil, toWire(err)
		}
		return res, nil
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (g *guard) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (g *guard) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		err := next(ctx, &guardedConn{StreamingHandlerConn: conn, ctx: ctx, guard: g})
		if err != nil {
			g.note(conn.Spec().Procedure, err)
		}
		return toWire(err)
	}
}

// note logs what is our fault; everything else is the caller's to read.
func (g *guard) note(procedure string, err error) {
	if flat := Flatten(err); flat.Code == isle.Internal && connect.CodeOf(err) == connect.CodeUnknown {
		g.slog.Error("internal error", "procedure", procedure, "err", err)
	}
}

// A guardedConn checks a stream's first message before the handler sees it,
// and sends nothing before that.
type guardedConn struct {
	connect.StreamingHandlerConn
	ctx   context.Context // of the call, which the connection belongs to
	guard *guard

	mu      sync.Mutex // guards what follows
	checked bool
	err     error
}

// Receive implements connect.StreamingHandlerConn.
func (c *guardedConn) Receive(msg any) error {
	if err := c.StreamingHandlerConn.Receive(msg); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.checked {
		c.checked = true
		c.err = c.guard.check(c.ctx, c.Spec().Procedure, msg)
	}
	return c.err
}

// Send implements connect.StreamingHandlerConn.
func (c *guardedConn) Send(msg any) error {
	c.mu.Lock()
	checked, err := c.checked, c.err
	c.mu.Unlock()
	if !checked {
		err = isle.Errorf(isle.Internal, "%s answers before it was authorized", c.Spec().Procedure)
	}
	if err != nil {
		return err
	}
	return c.StreamingHandlerConn.Send(msg)
}
