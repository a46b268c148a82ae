package api

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/api/isle/v1/islev1connect"
	"isle/internal/audit"
	"isle/internal/authority"
	"isle/internal/identity"
	"isle/internal/policy"
	"isle/internal/spec"
)

// Policy is the policy in force; *authority.Authority implements it.
type Policy interface {
	// Decide answers a query by the policy in force, for now.
	Decide(q policy.Query) policy.Answer
	// State is the policy in force. Its Over says when another one is.
	State() *authority.State
	// Now is the time that Decide decides as of. It never goes back.
	Now() time.Time
	// Await waits until what was asked at a time may have another answer.
	Await(ctx context.Context, s *authority.State, asked time.Time, also <-chan struct{}) bool
	Apply(ctx context.Context, actor isle.Actor, req authority.Request) (authority.Result, error)
}

// An ask is one thing that a call does to one resource.
type ask struct {
	action   isle.Action
	resource isle.Resource
	project  string // of the resource, where it has one
}

// A rule says what a procedure does and to what, from its first message.
type rule func(ctx context.Context, msg any) []ask

// rules has one entry for each procedure. A procedure without one is refused,
// so a new call cannot be served before it is said what it does.
func (cfg Config) rules() map[string]rule {
	always := func(action isle.Action, kind, name string) rule {
		return func(context.Context, any) []ask { return []ask{{action, isle.Resource{Kind: kind, Name: name}, ""}} }
	}
	server := func(action isle.Action) rule { return always(action, "server", "server") }
	images := func(action isle.Action) rule { return always(action, "image", "*") }
	source := func(action isle.Action) rule {
		return func(_ context.Context, msg any) []ask {
			project := projectOf(msg.(interface{ GetSource() *islev1.Source }).GetSource())
			return []ask{{action, isle.Resource{Kind: "image", Name: project}, project}}
		}
	}
	in := func(action isle.Action, of func(msg any) string) rule {
		return func(ctx context.Context, msg any) []ask { return []ask{cfg.onEnvironment(ctx, action, of(msg))} }
	}
	named := func(msg any) string { return msg.(interface{ GetEnvironment() string }).GetEnvironment() }
	secret := func(action isle.Action) rule {
		return func(_ context.Context, msg any) []ask {
			name := msg.(interface{ GetName() string }).GetName()
			return []ask{{action, isle.Resource{Kind: "secret", Name: clipped(name)}, ""}}
		}
	}
	rules := map[string]rule{
		islev1connect.EnvironmentServiceUpProcedure:        cfg.asksOfUp,
		islev1connect.EnvironmentServiceDownProcedure:      cfg.asksOfDown,
		islev1connect.EnvironmentServiceListProcedure:      server(isle.ActionEnvironmentList),
		islev1connect.EnvironmentServiceGetProcedure:       in(isle.ActionEnvironmentRead, named),
		islev1connect.EnvironmentServiceExtendProcedure:    in(isle.ActionEnvironmentExtend, named),
		islev1connect.EnvironmentServiceLogsProcedure:      in(isle.ActionEnvironmentLogs, named),
		islev1connect.EnvironmentServiceCopyOutProcedure:   in(isle.ActionEnvironmentCopy, named),
		islev1connect.EnvironmentServiceListFilesProcedure: in(isle.ActionEnvironmentCopy, named),
		islev1connect.EnvironmentServiceDiffProcedure:      in(isle.ActionEnvironmentDiff, named),
		islev1connect.EnvironmentServiceDoorsProcedure:     in(isle.ActionEnvironmentRead, named),
		islev1connect.EnvironmentServiceExecProcedure: in(isle.ActionEnvironmentExec, func(msg any) string {
			return msg.(*islev1.ExecInput).GetStart().GetEnvironment()
		}),
		islev1connect.EnvironmentServiceCopyInProcedure: in(isle.ActionEnvironmentCopy, func(msg any) string {
			return msg.(*islev1.CopyInRequest).GetStart().GetEnvironment()
		}),
		islev1connect.EnvironmentServicePortForwardProcedure: in(isle.ActionEnvironmentPort, func(msg any) string {
			return msg.(*islev1.PortInput).GetStart().GetEnvironment()
		}),

		islev1connect.BuildServiceLockProcedure:    source(isle.ActionImageLock),
		islev1connect.BuildServiceBuildProcedure:   source(isle.ActionImageBuild),
		islev1connect.BuildServiceMissingProcedure: images(isle.ActionImageRead),
		islev1connect.BuildServicePutProcedure:     images(isle.ActionImageImport),
		islev1connect.BuildServiceExportProcedure:  images(isle.ActionImageExport),
		islev1connect.BuildServiceImportProcedure:  images(isle.ActionImageImport),

		islev1connect.BuildServiceListCachesProcedure:  images(isle.ActionImageRead),
		islev1connect.BuildServicePruneCachesProcedure: server(isle.ActionServerCollect),
		islev1connect.BuildServiceExportCacheProcedure: func(_ context.Context, msg any) []ask {
			if project := clipped(msg.(*islev1.ExportCacheRequest).GetProject()); project != "" {
				return []ask{{isle.ActionImageExport, isle.Resource{Kind: "image", Name: project}, project}}
			}
			return []ask{{isle.ActionImageExport, isle.Resource{Kind: "image", Name: "*"}, ""}}
		},
		islev1connect.BuildServiceImportCacheProcedure: images(isle.ActionImageImport),

		islev1connect.ServerServiceInfoProcedure:    server(isle.ActionServerRead),
		islev1connect.ServerServiceDoctorProcedure:  server(isle.ActionServerRead),
		islev1connect.ServerServiceCollectProcedure: server(isle.ActionServerCollect),
		islev1connect.ServerServiceAuditProcedure:   always(isle.ActionAuditRead, "audit", "log"),
		islev1connect.ServerServiceStopProcedure:    server(isle.ActionServerStop),
		// What clients need to see that the server is the one they know: hashes.
		islev1connect.ServerServiceCheckpointProcedure: server(isle.ActionServerRead),

		islev1connect.SecretServiceSetSecretProcedure:    secret(isle.ActionSecretSet),
		islev1connect.SecretServiceListSecretsProcedure:  always(isle.ActionSecretRead, "secret", "*"),
		islev1connect.SecretServiceDeleteSecretProcedure: secret(isle.ActionSecretDelete),
		islev1connect.SecretServiceCheckSecretProcedure:  secret(isle.ActionSecretCheck),

		islev1connect.PolicyServiceShowProcedure:    always(isle.ActionPolicyRead, "policy", "policy"),
		islev1connect.PolicyServiceExplainProcedure: always(isle.ActionPolicyRead, "policy", "policy"),
		islev1connect.PolicyServiceRolesProcedure:   always(isle.ActionPolicyRead, "policy", "policy"),
		islev1connect.PolicyServiceApplyProcedure: func(_ context.Context, msg any) []ask {
			action := isle.ActionPolicyApply
			if msg.(*islev1.ApplyRequest).GetDryRun() {
				action = isle.ActionPolicyRead
			}
			return []ask{{action, isle.Resource{Kind: "policy", Name: "policy"}, ""}}
		},
	}
	maps.Copy(rules, cfg.identityRules())
	maps.Copy(rules, cfg.sessionRules())
	maps.Copy(rules, cfg.approvalRules())
	maps.Copy(rules, cfg.connectionRules())
	maps.Copy(rules, cfg.forkRules())
	maps.Copy(rules, cfg.snapshotRules())
	maps.Copy(rules, cfg.releaseRules())
	maps.Copy(rules, cfg.imageRules())
	return rules
}

// asksOfUp is the launch of the environment that is meant: a derived name is
// settled first, as the handler does.
func (cfg Config) asksOfUp(ctx context.Context, msg any) []ask {
	m := msg.(*islev1.UpRequest)
	project := cfg.projectOfUp(m)
	ref, err := (&environments{cfg}).refOf(ctx, m, project)
	if err != nil { // found wrong by the handler, under the name given
		ref = isle.Ref{Name: clipped(m.GetName()), Stage: clipped(m.GetStage())}
		if ref.Stage == "" {
			ref.Stage = isle.DefaultStage
		}
	}
	return []ask{launchOf(ref, project)}
}

func launchOf(ref isle.Ref, project string) ask {
	return ask{isle.ActionEnvironmentLaunch, isle.Resource{Kind: "environment", Name: ref.Name, Stage: ref.Stage}, project}
}

// asksOfDown is the teardown of each environment, and of its data where that is
// to go too.
func (cfg Config) asksOfDown(ctx context.Context, msg any) (out []ask) {
	m := msg.(*islev1.DownRequest)
	for _, name := range m.GetEnvironments() {
		out = append(out, cfg.asksToEnd(ctx, name, m.GetVolumes())...)
	}
	if m.GetAll() || out == nil {
		// Which ones those are, and whether they may be ended, the handler finds
		// out: they are of several stages, each of them a session of its own.
		out = append(out, ask{isle.ActionEnvironmentList, isle.Resource{Kind: "server", Name: "server"}, ""})
	}
	return out
}

// visible are the environments that the caller may see, and with kept those of
// which only volumes are left.
func (cfg Config) visible(ctx context.Context, kept bool) (refs []isle.Ref, err error) {
	list, err := cfg.Environments.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		refs = append(refs, e.Ref)
	}
	if kept {
		refs = append(refs, cfg.Environments.Kept(ctx)...)
	}
	who, _ := callerFrom(ctx)
	return slices.DeleteFunc(refs, func(ref isle.Ref) bool {
		q := queriesOf(who, cfg.onEnvironment(ctx, isle.ActionEnvironmentRead, ref.String()))
		return !cfg.Policy.Decide(q[0]).Allowed()
	}), nil
}

func (cfg Config) asksToEnd(ctx context.Context, name string, volumes bool) []ask {
	a := cfg.onEnvironment(ctx, isle.ActionEnvironmentDown, name)
	if !volumes {
		return []ask{a}
	}
	v := a
	v.action, v.resource.Kind = isle.ActionVolumeDelete, "volume"
	return []ask{a, v}
}

// onEnvironment is an action on NAME[@STAGE]. A reference that cannot be read is
// refused, or found wrong later, under the name given.
func (cfg Config) onEnvironment(ctx context.Context, action isle.Action, name string) ask {
	ref, err := isle.ParseRef(name)
	if err != nil {
		return ask{action, isle.Resource{Kind: "environment", Name: clipped(name), Stage: isle.DefaultStage}, ""}
	}
	a := ask{action, isle.Resource{Kind: "environment", Name: ref.Name, Stage: ref.Stage}, ""}
	if e, err := cfg.Environments.Get(ctx, ref); err == nil {
		a.project = e.Project
	} else if kept, err := cfg.Environments.VolumesOf(ctx, ref); err == nil && len(kept) > 0 {
		a.project = kept[0].Project // volumes outlive their environment, and stay its project's
	}
	return a
}

// clipped is a name that is none, as far as it is of use: what is refused is
// written down, and an entry has a bound.
func clipped(name string) string { return strings.ToValidUTF8(name[:min(len(name), 100)], "") }

// projectOf is the project that a source is of, "?" where it cannot be read.
func projectOf(s *islev1.Source) string {
	f, err := spec.Parse(s.GetSpecName(), s.GetSpec())
	if err != nil {
		return "?"
	}
	return f.Name
}

// A guard is the interceptor that every call passes: it gives errors their
// form on the wire, sets the deadline of unary calls, lets nothing through that
// was not authorized, and ends what is no longer.
type guard struct {
	policy      Policy
	credentials Credentials // nil: there are none
	log         Log
	slog        *slog.Logger
	refused     func(audit.Entry) // nil: each is appended
	rules       map[string]rule
	released    func(msg any) bool // that what a copy launches is a release; nil: none is

	reading reading
}

// Log is where audit entries go.
type Log interface {
	// Append makes the entries durable before it returns.
	Append(ctx context.Context, entries ...audit.Entry) error
	// AppendSoon writes the entries before it returns and makes them durable
	// soon: those of what changes nothing.
	AppendSoon(ctx context.Context, entries ...audit.Entry) error
}

// reads says whether an action changes nothing and shows something: it is
// recorded before it is done. Server:read is not: what it shows is what a client
// needs to speak to the server at all, and every command begins with it.
func reads(a isle.Action) bool {
	switch a {
	case isle.ActionImageRead, isle.ActionEnvironmentList, isle.ActionEnvironmentRead, isle.ActionEnvironmentLogs, isle.ActionAuditRead, isle.ActionPolicyRead, isle.ActionSecretRead,
		isle.ActionIdentityRead, isle.ActionTokenRead, isle.ActionSessionRead, isle.ActionRecordingRead, isle.ActionApprovalRead, isle.ActionSnapshotRead,
		isle.ActionReleaseRead, isle.ActionReleaseHistory:
		return true
	}
	return false
}

// unaryTimeout bounds a call that is not a stream. Collect walks the whole
// store, hence minutes.
const unaryTimeout = 5 * time.Minute

// check asks whether the call may go on. It returns what was asked, for calls
// that last longer than the answer.
func (g *guard) check(ctx context.Context, procedure string, msg any) ([]policy.Query, error) {
	who, ok := callerFrom(ctx)
	if !ok {
		return nil, isle.Errorf(isle.Refused, "nobody is known at the other end of this connection").WithHint("use the server's unix socket")
	}
	r, ok := g.rules[procedure]
	if !ok {
		return nil, isle.Errorf(isle.Refused, "%s has no rule that says what it does", procedure)
	}
	queries := queriesOf(who, r(ctx, msg)...)
	if launchesRelease(msg) {
		ofRelease(queries)
	}
	if g.released != nil && g.released(msg) {
		ofRelease(queries)
	}
	answers, err := g.stands(ctx, who, queries, "")
	if err != nil {
		return nil, err
	}
	return queries, g.recordReads(ctx, queries, answers)
}

// launchesRelease says of a request that its handler launches what was released,
// and nothing else.
func launchesRelease(msg any) bool {
	switch m := msg.(type) {
	case *islev1.UpRequest:
		return m.GetRelease() != ""
	case *islev1.PromoteRequest, *islev1.RollbackRequest:
		return true
	}
	return false
}

// recordReads writes what is read, before it is, with the answer that let it be.
func (g *guard) recordReads(ctx context.Context, queries []policy.Query, answers []policy.Answer) error {
	var entries []audit.Entry
	for i, q := range queries {
		if reads(q.Action) {
			entries = append(entries, entryOf(q, answers[i], ""))
		}
	}
	return g.log.AppendSoon(ctx, entries...)
}

// entryOf is what is recorded of a query.
func entryOf(q policy.Query, a policy.Answer, summary string) audit.Entry {
	e := audit.NewEvent(q.Actor, q.Action, q.Resource, a.Decision, summary)
	e.Rule = a.Rule
	if q.Resource.Kind == "environment" && q.Resource.Stage != "" {
		e.Environment = e.Resource.Name + "@" + e.Resource.Stage
	}
	if q.Resource.Stage != "" && q.Stage != q.Resource.Stage {
		e = e.With("session", q.Stage)
	}
	return e
}

// mayReadLog is check for the log's tiles, which are no procedures.
func (g *guard) mayReadLog(ctx context.Context, entries bool) error {
	who, ok := callerFrom(ctx)
	if !ok {
		return isle.Errorf(isle.Refused, "nobody is known at the other end of this connection").WithHint("use the server's unix socket")
	}
	queries := queriesOf(who, ask{isle.ActionAuditRead, isle.Resource{Kind: "audit", Name: "log"}, ""})
	answers, err := g.stands(ctx, who, queries, "")
	if err != nil || !entries {
		return err
	}
	return g.reading.record(who.actor, time.Now(), func() error { return g.recordReads(ctx, queries, answers) })
}

// queriesOf are the questions of one call. Its session is in the stage that the
// caller is confined to, whatever is asked; else in that of the first resource
// that has one.
func queriesOf(who caller, asks ...ask) []policy.Query {
	stage := who.stage()
	for _, a := range asks {
		if stage == "" {
			stage = a.resource.Stage
		}
	}
	out := make([]policy.Query, len(asks))
	for i, a := range asks {
		// Nothing is called so: somebody gave a credential in place of a name. What
		// is asked is written down, and read by many.
		a.resource.Name = identity.Redacted(a.resource.Name)
		out[i] = policy.Query{Actor: who.actor, Groups: who.groups, Stage: stage, Action: a.action, Resource: a.resource, Project: a.project}
	}
	return out
}

// may asks all of the queries, and refuses at the first that is not allowed. It
// returns the answer to each. doing says what is cut short by that, "" if nothing.
func (g *guard) may(ctx context.Context, who caller, queries []policy.Query, doing string) ([]policy.Answer, error) {
	answers := make([]policy.Answer, len(queries))
	for i, q := range queries {
		a := policy.Answer{Decision: isle.Deny, Rule: strangers, Final: true}
		if who.member {
			a = g.policy.Decide(q)
		}
		switch {
		case a.Allowed():
			audit.Allowed(ctx, q.Actor, q.Action, q.Resource, a.Rule)
		case a.Decision != isle.Hold || !waits(q.Action):
			return nil, g.refuse(ctx, q, a, doing)
		}
		answers[i] = a
	}
	return answers, nil
}

// strangers is the rule that keeps out who may not speak to the server at all.
const strangers = "built in: members only"

// refuse records a refusal and says it.
func (g *guard) refuse(ctx context.Context, q policy.Query, a policy.Answer, doing string) error {
	if e := entryOf(q, a, doing); g.refused != nil {
		g.refused(e)
	} else if err := g.log.Append(context.WithoutCancel(ctx), e); err != nil {
		g.slog.Error("a refusal could not be recorded", "actor", q.Actor, "action", q.Action, "resource", q.Resource, "err", err)
	}
	if a.Rule == strangers {
		return isle.Errorf(isle.Refused, "%s; you are %s", OnlyMembers, q.Actor.Name).WithHint(becomeMember)
	}
	text := q.Actor.String() + " may not " + string(q.Action) + " " + q.Resource.String()
	if doing != "" {
		text = doing + ": " + text + " any more"
	}
	err := isle.Errorf(isle.Refused, "%s: %s", text, a.Rule)
	switch {
	case a.Message != "":
		return err.WithHint("%s", a.Message)
	case a.Final:
		return err.WithHint("no role lifts this; see `isle policy explain %s %s %s`", q.Actor, q.Action, q.Resource)
	}
	q.Now = g.policy.Now()
	if grant := g.policy.State().Set.Grant(q); grant != "" {
		return err.WithHint("ask whoever keeps the policy for the binding %s", grant)
	}
	return err.WithHint("ask whoever keeps the policy; see `isle policy explain %s %s %s`", q.Actor, q.Action, q.Resource)
}

// revoked is why a call was cut short.
type revoked struct{ error }

func (r revoked) Unwrap() error { return r.error }

// WrapUnary implements connect.Interceptor.
func (g *guard) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		ctx = audit.WithDecisions(ctx)
		queries, err := g.check(ctx, req.Spec().Procedure, req.Any())
		if err != nil {
			return nil, toWire(err)
		}
		ctx, cancel := context.WithTimeout(ctx, unaryTimeout)
		defer cancel()
		if who, _ := callerFrom(ctx); who.subject != nil {
			var end context.CancelCauseFunc
			ctx, end = context.WithCancelCause(ctx)
			defer end(nil)
			go g.watch(ctx, who, queries, end) // ends with the call
		}
		res, err := next(ctx, req)
		if err != nil {
			if r, ok := errors.AsType[revoked](context.Cause(ctx)); ok {
				err = r.error
			}
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
		ctx, cancel := context.WithCancelCause(audit.WithDecisions(ctx))
		defer cancel(nil) // ends the watch
		err := next(ctx, &guardedConn{StreamingHandlerConn: conn, ctx: ctx, cancel: cancel, guard: g})
		if r, ok := errors.AsType[revoked](context.Cause(ctx)); ok {
			err = r.error
		}
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
	ctx    context.Context // of the call, which the connection belongs to
	cancel context.CancelCauseFunc
	guard  *guard

	mu      sync.Mutex // guards what follows
	checked bool
	err     error
}

// Receive implements connect.StreamingHandlerConn.
func (c *guardedConn) Receive(msg any) error {
	if err := c.StreamingHandlerConn.Receive(msg); err != nil {
		return err
	}
	if r, ok := errors.AsType[revoked](context.Cause(c.ctx)); ok {
		return r.error // what comes after the end of a grant counts for nothing
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.checked {
		c.checked = true
		var queries []policy.Query
		if queries, c.err = c.guard.check(c.ctx, c.Spec().Procedure, msg); c.err == nil {
			who, _ := callerFrom(c.ctx)
			go c.guard.watch(c.ctx, who, queries, c.cancel) // ends with the call
		}
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
	if r, ok := errors.AsType[revoked](context.Cause(c.ctx)); ok {
		err = r.error
	}
	if err != nil {
		return err
	}
	return c.StreamingHandlerConn.Send(msg)
}
