package api

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/environment"
	"isle/internal/release"
)

// runsRelease returns the environment of a project in a stage, if a release runs
// in it. What was launched of a file there is somebody's who works on it.
func (cfg Config) runsRelease(ctx context.Context, project, stage string) (environment.Environment, bool) {
	if cfg.Environments == nil {
		return environment.Environment{}, false
	}
	e, err := cfg.Environments.Get(ctx, isle.Ref{Name: project, Stage: stage})
	return e, err == nil && e.Project == project && e.Release != "" && e.Desired == environment.WantRunning
}

// A carried release is what a stage is to run.
type carried struct {
	release release.Release
	values  release.Values
	stage   string
	back    bool          // by an instance of it that was kept, where there is one
	keep    time.Duration // of what it takes the place of, at least
	still   func() error  // whether it is still to, once it is its turn
}

// carry switches what runs in a stage, if a release does, and calls point, once,
// before the other instance serves: the stage points at it then.
func (s *releases) carry(ctx context.Context, c carried, send func(*islev1.ProgressEvent) error, point func(context.Context) error) (*islev1.Switch, error) {
	project := c.release.Manifest.Project
	e, ok := s.runsRelease(ctx, project, c.stage)
	if !ok {
		return nil, point(ctx)
	}
	if err := s.allowedRelease(ctx, launchOf(e.Ref, project)); err != nil { // it may be there since a moment ago
		return nil, err
	}
	rel, images, err := s.Releases.Launch(ctx, string(c.release.Digest))
	if err != nil {
		return nil, err
	}
	file, err := c.values.Apply(rel.Manifest.Spec)
	if err != nil {
		return nil, err
	}
	asked, points := false, false
	up := rel.UpRequest(e.Ref, images, file)
	up.Back, up.Keep, up.Still = c.back, c.keep, c.still
	up.Last = func(last context.Context) error {
		if err := last.Err(); err != nil {
			return err
		}
		asked = true
		err := point(ctx)
		points = err == nil
		return err
	}
	launch, launching := s.newTeller(ctx, isle.ActionEnvironmentLaunch, isle.Resource{}, send)
	defer launch.done()
	res, err := s.Environments.Up(launching, actorOf(ctx), up, func(p environment.Progress) { launch.event(progressMessage(p)) })
	if err == nil && !asked { // there was nothing to switch
		return switchMessage(res), point(ctx)
	}
	if err != nil && points {
		return nil, isle.Errorf(isle.CodeOf(err), "stage %s of %s points at release %s, and what served goes on: %w", c.stage, project, rel.Digest.Short(), err).
			WithHint("isle promote %s --to %s again switches; isle drift %s shows what serves", project, c.stage, e.Ref)
	}
	if err != nil {
		return nil, err
	}
	return switchMessage(res), nil
}

func switchMessage(res environment.UpResult) *islev1.Switch {
	x := res.Switch
	if x == nil {
		return nil
	}
	out := &islev1.Switch{
		Environment: res.Environment.Ref.String(), Instance: string(res.Environment.Instance), Before: string(x.Before), Took: durationpb.New(x.Took),
		Pause: durationpb.New(x.Pause), Kept: x.Kept, Snapshot: string(x.Snapshot),
	}
	if !x.Until.IsZero() {
		out.Until = timestamppb.New(x.Until)
	}
	return out
}
