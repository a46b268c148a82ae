package api

import (
	"bytes"
	"context"
	"encoding/json"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/environment"
)

// isReleased says whether what a plan launches in a stage is what that stage points
// at: the release, with the values that the stage has for it now, and its images. A
// copy of another stage's is none, nor is one of what was released before.
func (cfg Config) isReleased(plan environment.ForkPlan, stage string) bool {
	if plan.Release == "" || plan.Source.Stage != stage {
		return false
	}
	rel, err := cfg.Releases.Use(string(plan.Release))
	if err != nil {
		return false
	}
	values, err := cfg.Releases.At(rel, stage, true)
	if err != nil {
		return false
	}
	file, err := values.Apply(rel.Manifest.Spec)
	if err != nil || rel.Manifest.Project != plan.Project {
		return false
	}
	for _, s := range rel.Manifest.Services {
		if plan.Images[s.Name] != s.Digest {
			return false
		}
	}
	want, err := json.Marshal(file)
	have, herr := json.Marshal(plan.Spec)
	return err == nil && herr == nil && bytes.Equal(want, have)
}

// copiesRelease is isReleased for what a request would come to now. The handler
// asks again about what it comes to.
func (cfg Config) copiesRelease(msg any) bool {
	var req environment.ForkRequest
	var err error
	switch m := msg.(type) {
	case *islev1.ForkRequest:
		req, err = cfg.forkRequest(m)
	case *islev1.RestoreRequest:
		req.At = m.GetAt()
		req.From, err = isle.ParseRef(m.GetEnvironment())
	default:
		return false
	}
	if err != nil {
		return false
	}
	plan, err := cfg.Environments.PlanFork(req)
	if err != nil {
		return false
	}
	stage := req.Stage
	if stage == "" {
		stage = plan.Source.Stage
	}
	return cfg.isReleased(plan, stage)
}

// allowedCopy is allowed where what is launched in a stage may be its release.
func (cfg Config) allowedCopy(ctx context.Context, plan environment.ForkPlan, stage string, asks ...ask) error {
	who, _ := callerFrom(ctx)
	queries := queriesOf(who, asks...)
	if cfg.isReleased(plan, stage) {
		ofRelease(queries)
	}
	_, err := cfg.guard.may(ctx, who, queries, "")
	return err
}
