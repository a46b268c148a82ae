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
		islev1connect.ForkServiceForkProcedure: cfg.asksOfFork,
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
	req := environment.ForkRequest{Name: m.GetName(), N: int(m.GetCount()), Stage: m.GetToStage(), OneShot: m.GetOneShot(), At: m.GetAt()}
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
	plan, err := s.Environments.PlanFork(req)
	if err != nil {
		return err
	}
	var made []isle.Ref
	req.May = func(refs []isle.Ref) error { // a name may be another by now
		plan.Forks, made = refs, refs
		if err := s.allowed(ctx, s.asksToFork(ctx, req, plan)...); err != nil {
			return err
		}
		for _, ref := range refs {
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
	defer tell.cancel(nil)
	results, err := s.Environments.Fork(work, actorOf(ctx), req, func(p environment.Progress) { tell.event(progressMessage(p)) })
	if err != nil {
		return err
	}
	out := &islev1.ForkResult{}
	for _, res := range results {
		out.Environments = append(out.Environments, environmentMessage(res.Environment))
	}
	err = stream.Send(&islev1.ForkEvent{Event: &islev1.ForkEvent_Result{Result: out}})
	if err == nil && req.OneShot {
		<-ctx.Done() // the client hung up, or the server ends
	}
	return err
}
