package api

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/api/isle/v1/islev1connect"
	"isle/internal/environment"
)

// forks serves the ForkService.
type forks struct{ Config }

// forkRules are those of the ForkService.
func (cfg Config) forkRules() map[string]rule {
	return map[string]rule{
		islev1connect.ForkServiceForkProcedure:    cfg.asksOfFork,
		islev1connect.ForkServiceRestoreProcedure: cfg.asksOfRestore,
		islev1connect.ForkServiceTreeProcedure: func(ctx context.Context, msg any) []ask {
			if name := msg.(*islev1.TreeRequest).GetEnvironment(); name != "" {
				return []ask{cfg.onEnvironment(ctx, isle.ActionEnvironmentRead, name)}
			}
			return []ask{{isle.ActionEnvironmentList, isle.Resource{Kind: "server", Name: "server"}, ""}}
		},
	}
}

// asksOfFork is the copying of the source, and the launch of each fork.
func (cfg Config) asksOfFork(ctx context.Context, msg any) []ask {
	m := msg.(*islev1.ForkRequest)
	req, err := cfg.forkRequest(m)
	if err != nil { // found wrong by the handler, under the name given
		return []ask{cfg.onEnvironment(ctx, isle.ActionEnvironmentFork, m.GetFrom())}
	}
	plan, err := cfg.Environments.PlanFork(req)
	if err != nil {
		return []ask{cfg.onEnvironment(ctx, isle.ActionEnvironmentFork, m.GetFrom())}
	}
	return cfg.asksToFork(ctx, req, plan)
}

// asksToFork is what a plan does in the stage of its source. To take data out of
// that is an action of its own; what is done in the other stage is a session of
// that one, which the handler asks about.
func (cfg Config) asksToFork(ctx context.Context, req environment.ForkRequest, plan environment.ForkPlan) []ask {
	source := isle.Resource{Kind: "environment", Name: plan.Source.Name, Stage: plan.Source.Stage}
	out := []ask{{isle.ActionEnvironmentFork, source, plan.Project}}
	if req.From != (isle.Ref{}) && req.From != plan.Source { // a snapshot of another one's
		out = append(out, cfg.onEnvironment(ctx, isle.ActionEnvironmentFork, req.From.String()))
	}
	if req.Stage != "" && req.Stage != plan.Source.Stage {
		return append(out, ask{isle.ActionVolumeCross, source, plan.Project})
	}
	for _, ref := range plan.Forks {
		out = append(out, launchOf(ref, plan.Project))
	}
	return out
}

// forkRequest reads what a client asks for.
func (cfg Config) forkRequest(m *islev1.ForkRequest) (environment.ForkRequest, error) {
	req := environment.ForkRequest{Name: m.GetName(), N: int(m.GetCount()), Stage: m.GetToStage(), OneShot: m.GetOneShot(), At: m.GetAt(), Cold: m.GetCold()}
	if m.GetTtl() != nil {
		d := m.GetTtl().AsDuration()
		req.TTL = &d
	}
	if m.GetTimeout() != nil {
		if req.Timeout = m.GetTimeout().AsDuration(); req.Timeout <= 0 || req.Timeout > maxOnFork {
			return req, isle.Errorf(isle.Invalid, "a time-out of %v for on_fork: want more than 0 and at most %v", req.Timeout, maxOnFork)
		}
	}
	if req.At == "" {
		req.From, req.At = cfg.Environments.Whose(m.GetFrom())
	} else if m.GetFrom() != "" {
		var err error
		if req.From, err = isle.ParseRef(m.GetFrom()); err != nil {
			return req, err
		}
	}
	if req.At == "" && req.From == (isle.Ref{}) {
		_, err := isle.ParseRef(m.GetFrom())
		return req, err
	}
	return req, nil
}

// maxOnFork bounds how long a client may give on_fork.
const maxOnFork = time.Hour

// Fork implements the RPC. One-shot forks live as long as the call.
func (s *forks) Fork(ctx context.Context, r *connect.Request[islev1.ForkRequest], stream *connect.ServerStream[islev1.ForkEvent]) error {
	req, err := s.forkRequest(r.Msg)
	if err != nil {
		return err
	}
	var made []isle.Ref
	req.May = func(plan environment.ForkPlan) error { // a name, or a tag, may be another's by now
		made = plan.Forks
		stage := req.Stage
		if stage == "" {
			stage = plan.Source.Stage
		}
		if err := s.allowedCopy(ctx, plan, stage, s.asksToFork(ctx, req, plan)...); err != nil {
			return err
		}
		for _, ref := range plan.Forks {
			if ref.Stage != plan.Source.Stage {
				if err := s.allowed(ctx, launchOf(ref, plan.Project)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if req.OneShot {
		defer func() {
			for _, ref := range made {
				(&environments{s.Config}).endOneShot(ctx, ref)
			}
		}()
	}
	tell, work := s.newTeller(ctx, isle.ActionEnvironmentFork, isle.Resource{}, func(e *islev1.ProgressEvent) error {
		return stream.Send(&islev1.ForkEvent{Event: &islev1.ForkEvent_Progress{Progress: e}})
	})
	defer tell.done()
	results, err := s.Environments.Fork(work, actorOf(ctx), req, func(p environment.Progress) { tell.event(progressMessage(p)) })
	if err != nil {
		return err
	}
	out := &islev1.ForkResult{}
	for _, res := range results {
		out.Environments = append(out.Environments, environmentMessage(res.Environment))
	}
	tell.done()
	err = stream.Send(&islev1.ForkEvent{Event: &islev1.ForkEvent_Result{Result: out}})
	if err == nil && req.OneShot {
		<-ctx.Done() // the client hung up, or the server ends
	}
	return err
}

// asksOfRestore is the restoring of an environment, whose data goes, and the
// copying of what the snapshot is of.
func (cfg Config) asksOfRestore(ctx context.Context, msg any) []ask {
	m := msg.(*islev1.RestoreRequest)
	ref, err := isle.ParseRef(m.GetEnvironment())
	if err == nil {
		if plan, err := cfg.Environments.PlanFork(environment.ForkRequest{From: ref, At: m.GetAt()}); err == nil {
			return cfg.asksToRestore(ctx, ref, plan)
		}
	}
	// Found wrong by the handler.
	return []ask{cfg.onEnvironment(ctx, isle.ActionEnvironmentRestore, m.GetEnvironment())}
}

// asksToRestore is what a plan does to the environment.
func (cfg Config) asksToRestore(ctx context.Context, ref isle.Ref, plan environment.ForkPlan) []ask {
	out := []ask{cfg.onEnvironment(ctx, isle.ActionEnvironmentRestore, ref.String())}
	out[0].project = plan.Project
	if plan.Source != ref {
		source := isle.Resource{Kind: "environment", Name: plan.Source.Name, Stage: plan.Source.Stage}
		out = append(out, ask{isle.ActionEnvironmentFork, source, plan.Project})
	}
	return append(out, launchOf(ref, plan.Project))
}

// Restore implements the RPC.
func (s *forks) Restore(ctx context.Context, r *connect.Request[islev1.RestoreRequest], stream *connect.ServerStream[islev1.RestoreEvent]) error {
	ref, err := isle.ParseRef(r.Msg.GetEnvironment())
	if err != nil {
		return err
	}
	if r.Msg.GetAt() == "" {
		return isle.Errorf(isle.Invalid, "no snapshot is named")
	}
	// A tag may name another snapshot by now, and yet another in a moment: what is
	// asked about is what is restored.
	plan, err := s.Environments.PlanFork(environment.ForkRequest{From: ref, At: r.Msg.GetAt()})
	if err != nil {
		return err
	}
	if err := s.allowedCopy(ctx, plan, ref.Stage, s.asksToRestore(ctx, ref, plan)...); err != nil {
		return err
	}
	tell, work := s.newTeller(ctx, isle.ActionEnvironmentRestore, isle.Resource{}, func(e *islev1.ProgressEvent) error {
		return stream.Send(&islev1.RestoreEvent{Event: &islev1.RestoreEvent_Progress{Progress: e}})
	})
	defer tell.done()
	req := environment.RestoreRequest{At: string(plan.Snapshot), Cold: r.Msg.GetCold()}
	res, err := s.Environments.RestoreTo(work, actorOf(ctx), ref, req, func(p environment.Progress) { tell.event(progressMessage(p)) })
	if err != nil {
		return err
	}
	tell.done()
	return stream.Send(&islev1.RestoreEvent{Event: &islev1.RestoreEvent_Result{Result: environmentMessage(res.Environment)}})
}

// Tree implements the RPC: it shows what may be read.
func (s *forks) Tree(ctx context.Context, r *connect.Request[islev1.TreeRequest]) (*connect.Response[islev1.TreeResponse], error) {
	who, _ := callerFrom(ctx)
	all, err := s.Environments.Lineage(ctx, func(kind string, ref isle.Ref, project string) bool {
		action := isle.ActionEnvironmentRead
		if kind == environment.KindSnapshot {
			action = isle.ActionSnapshotRead
		}
		q := queriesOf(who, ask{action, isle.Resource{Kind: kind, Name: ref.Name, Stage: ref.Stage}, project})
		return s.Policy.Decide(q[0]).Allowed()
	})
	if err != nil {
		return nil, err
	}
	if name := r.Msg.GetEnvironment(); name != "" {
		if all, err = s.familyOf(ctx, all, name); err != nil {
			return nil, err
		}
	}
	res := &islev1.TreeResponse{}
	for _, n := range all {
		res.Nodes = append(res.Nodes, &islev1.TreeNode{
			Id: n.ID, Parent: n.Parent, Kind: n.Kind, Name: n.Ref.String(), Gone: n.Gone, Phase: string(n.Phase), Project: n.Project,
			Created: timestamp(n.Created), Tags: n.Tags, Message: n.Message,
		})
	}
	return connect.NewResponse(res), nil
}

// familyOf is the line that an environment came by, and all that came of it.
func (s *forks) familyOf(ctx context.Context, all []environment.Relation, name string) (out []environment.Relation, err error) {
	ref, err := isle.ParseRef(name)
	if err != nil {
		return nil, err
	}
	e, err := s.Environments.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	parents := map[string]string{}
	for _, n := range all {
		parents[n.ID] = n.Parent
	}
	keep := map[string]bool{}
	for id := string(e.Instance); id != ""; id = parents[id] {
		keep[id] = true
	}
	below := map[string]bool{string(e.Instance): true}
	for _, n := range all { // each comes after what it was made of
		below[n.ID] = below[n.ID] || below[n.Parent]
		if keep[n.ID] || below[n.ID] {
			out = append(out, n)
		}
	}
	return out, nil
}
