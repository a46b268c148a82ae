package api

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/environment"
	"isle/internal/release"
)

// asksOfRollback is the rollback of the stage, and the launch or the restoring of
// what runs there; to look at what it would change takes no more than to see the
// release.
func (cfg Config) asksOfRollback(ctx context.Context, msg any) []ask {
	m := msg.(*islev1.RollbackRequest)
	project := clipped(m.GetProject())
	if m.GetDryRun() {
		return []ask{releaseOf(isle.ActionReleaseRead, project)}
	}
	stage := clipped(m.GetStage())
	out := []ask{{isle.ActionReleaseRollback, isle.Resource{Kind: "release", Name: project, Stage: stage}, project}}
	ref := isle.Ref{Name: project, Stage: stage}
	if _, ok := cfg.runsRelease(ctx, project, stage); ok {
		out = append(out, launchOf(ref, project))
		if m.GetRestore() {
			out = append(out, cfg.onEnvironment(ctx, isle.ActionEnvironmentRestore, ref.String()))
		}
	}
	return out
}

// Rollback implements the RPC.
func (s *releases) Rollback(ctx context.Context, req *connect.Request[islev1.RollbackRequest], stream *connect.ServerStream[islev1.RollbackEvent]) error {
	m := req.Msg
	if len(m.GetReason()) > maxReason {
		return isle.Errorf(isle.Invalid, "the reason has %d bytes, at most %d", len(m.GetReason()), maxReason)
	}
	b := release.Rollback{Project: m.GetProject(), Stage: m.GetStage(), To: m.GetRelease(), Reason: m.GetReason(), Restore: m.GetRestore()}
	defer s.Blobs.Hold()()
	plan, err := s.Releases.PlanRollback(ctx, b)
	if err != nil {
		return s.refused(ctx, isle.ActionReleaseRollback, b.Project, b.Stage, plan.Release.Digest, notBroughtBack, err)
	}
	res := &islev1.RollbackResponse{Release: s.message(plan.Release), Before: string(plan.From.Release), Values: plan.Values.Lines(), Data: plan.Data}
	if m.GetDryRun() {
		return stream.Send(&islev1.RollbackEvent{Event: &islev1.RollbackEvent_Result{Result: res}})
	}
	e, runs := s.runsRelease(ctx, b.Project, b.Stage)
	saved, since := savedOf(e, plan.Release.Digest)
	if err := plan.Unfit(saved, since); err != nil && (!b.Restore || saved == "") {
		return err
	}
	seen := isle.Digest(m.GetSeen())
	if seen == "" {
		seen = plan.From.Release
	}
	want := plan.Pointer()
	b.To, b.Want = string(plan.Release.Digest), &want // nothing but what was planned
	point := func(ctx context.Context) error { return s.Releases.Rollback(ctx, actorOf(ctx), b, seen) }
	send := func(e *islev1.ProgressEvent) error {
		return stream.Send(&islev1.RollbackEvent{Event: &islev1.RollbackEvent_Progress{Progress: e}})
	}
	switch {
	case b.Restore && runs && saved != "":
		res.Saved, err = s.restoreWith(ctx, e, plan, saved, send, point)
		res.Restored = string(saved)
	case b.Restore:
		return isle.Errorf(isle.NotFound, "there is no snapshot of the data of stage %s of %s as release %s left it", b.Stage, b.Project, plan.Release.Digest.Short()).
			WithHint("without --restore the stage is rolled back, and its data stays as it is")
	default:
		still := func() error { // who waits for somebody's promotion is not in time
			now := plan
			now.From, _ = s.Releases.Stage(b.Project, b.Stage)
			return now.Stale(seen)
		}
		res.Switch, err = s.carry(ctx, carried{release: plan.Release, values: plan.Values, stage: b.Stage, back: true, still: still}, send, point)
	}
	if err != nil {
		return err
	}
	return stream.Send(&islev1.RollbackEvent{Event: &islev1.RollbackEvent_Result{Result: res}})
}

// savedOf is the last snapshot of an environment's data as a release had left it;
// "" if there is none.
func savedOf(e environment.Environment, d isle.Digest) (at isle.Digest, since time.Time) {
	for _, s := range e.Saved {
		if s.Release == d {
			at, since = s.Snapshot, s.Time
		}
	}
	return at, since
}

// restoreWith brings what runs in a stage back to a snapshot of it, with the
// release of then. Requests wait meanwhile, and what it holds goes into a snapshot
// first, which it returns.
func (s *releases) restoreWith(ctx context.Context, e environment.Environment, plan release.Return, saved isle.Digest, send func(*islev1.ProgressEvent) error, point func(context.Context) error) (string, error) {
	project := plan.Release.Manifest.Project
	if err := s.allowedRelease(ctx, launchOf(e.Ref, project), s.onEnvironment(ctx, isle.ActionEnvironmentRestore, e.Ref.String())); err != nil {
		return "", err
	}
	goOn, err := s.Environments.HoldRequests(ctx, e.Ref)
	if err != nil {
		return "", err
	}
	defer goOn()
	before, err := s.Capture(ctx, actorOf(ctx), e.Ref, environment.SnapshotRequest{
		Message: "before the rollback to release " + plan.Release.Digest.Short(), NoMemory: true,
	})
	if err != nil {
		return "", err
	}
	tell, work := s.newTeller(ctx, isle.ActionEnvironmentRestore, isle.Resource{}, send)
	defer tell.done()
	_, err = s.Environments.RestoreTo(work, actorOf(ctx), e.Ref, environment.RestoreRequest{At: string(saved), Last: func(last context.Context) error {
		if err := last.Err(); err != nil {
			return err
		}
		return point(ctx)
	}}, func(p environment.Progress) { tell.event(progressMessage(p)) })
	return string(before.Digest), err
}

// ClearRelease implements the RPC.
func (s *releases) ClearRelease(ctx context.Context, req *connect.Request[islev1.ClearReleaseRequest]) (*connect.Response[islev1.ClearReleaseResponse], error) {
	m := req.Msg
	rel, err := s.Releases.Look(m.GetRelease())
	if err != nil {
		return nil, err
	}
	if _, err := s.Releases.Clear(ctx, actorOf(ctx), m.GetProject(), m.GetStage(), string(rel.Digest)); err != nil {
		return nil, s.refused(ctx, isle.ActionReleaseClear, m.GetProject(), m.GetStage(), rel.Digest, personsAlone, err)
	}
	return connect.NewResponse(&islev1.ClearReleaseResponse{Release: string(rel.Digest)}), nil
}
