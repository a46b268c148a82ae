package api

import (
	"context"
	"slices"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/environment"
	"isle/internal/release"
)

// upRelease is Up of what was released: nothing is locked or built, and what runs
// is what was sealed.
func (s *environments) upRelease(ctx context.Context, m *islev1.UpRequest, stream *connect.ServerStream[islev1.UpEvent]) error {
	if m.GetSource() != nil || m.GetOneShot() || len(m.GetParentBranches()) > 0 {
		return isle.Errorf(isle.Invalid, "a release is launched as it is: there is no file to send with it, and it does not run once")
	}
	rel, err := s.Releases.Use(m.GetRelease())
	if err != nil {
		return s.refusedLaunch(ctx, m, err)
	}
	project := rel.Manifest.Project
	ref, err := s.refOf(ctx, m, project)
	if err != nil {
		return err
	}
	if err := s.allowedRelease(ctx, launchOf(ref, project)); err != nil { // it may be another by now
		return err
	}
	defer s.Blobs.Hold()()
	_, images, err := s.Releases.Launch(ctx, string(rel.Digest))
	if err != nil {
		return s.refusedLaunch(ctx, m, err)
	}
	set := s.Policy.State().Set
	// Into a stage with something before it nothing comes but by promotion, which
	// asks that.
	must := set.Protected(ref.Stage) || slices.Index(set.Stages(), ref.Stage) > 0 || set.Guarded(project, ref.Stage)
	values, err := s.Releases.At(rel, ref.Stage, must)
	if err != nil {
		return err
	}
	file, err := values.Apply(rel.Manifest.Spec)
	if err != nil {
		return err
	}
	up := rel.UpRequest(ref, images, file)
	up.Still = func() error { // who promotes or rolls back may be first
		now, err := s.Releases.At(rel, ref.Stage, must)
		if err == nil && now.Digest() != values.Digest() {
			err = isle.Errorf(isle.Conflict, "stage %s of %s has other values by now", ref.Stage, project).WithHint("launch it again: isle up --release %s@%s", project, ref.Stage)
		}
		return err
	}
	up.Last = func(context.Context) error { return up.Still() }
	up.NoWait, up.Cold = m.GetNoWait(), m.GetCold()
	if m.GetTtl() != nil {
		d := m.GetTtl().AsDuration()
		up.TTL = &d
	}
	launch, launching := s.newTeller(ctx, isle.ActionEnvironmentLaunch, isle.Resource{}, func(e *islev1.ProgressEvent) error {
		return stream.Send(&islev1.UpEvent{Event: &islev1.UpEvent_Progress{Progress: e}})
	})
	defer launch.done()
	res, err := s.Environments.Up(launching, actorOf(ctx), up, func(p environment.Progress) { launch.event(progressMessage(p)) })
	if err != nil {
		return err
	}
	launch.done()
	if err := s.agree(ctx, ref, rel); err != nil {
		return err
	}
	return stream.Send(&islev1.UpEvent{Event: &islev1.UpEvent_Result{Result: upMessage(res)}})
}

// agree records what the stage of an environment may do and reach now, if whoever
// launches it may promote to the stage without asking anybody: it is a promotion
// of the same.
func (s *environments) agree(ctx context.Context, ref isle.Ref, rel release.Release) error {
	project := rel.Manifest.Project
	who, _ := callerFrom(ctx)
	a := s.Policy.Decide(queriesOf(who, promoteOf(project, ref.Stage))[0])
	if ref.Name != project || !a.Allowed() {
		return nil
	}
	return s.Releases.Agree(ctx, actorOf(ctx), a.Rule, project, ref.Stage, rel.Digest)
}

// allowedRelease is allowed where what is launched is a release.
func (cfg Config) allowedRelease(ctx context.Context, asks ...ask) error {
	who, _ := callerFrom(ctx)
	queries := queriesOf(who, asks...)
	ofRelease(queries)
	_, err := cfg.guard.may(ctx, who, queries, "")
	return err
}
