package server

import (
	"context"
	"strings"

	"isle/internal/api"
	"isle/internal/environment"
	"isle/internal/release"
)

// openSampler makes what looks for drift all the time.
func (r *rooms) openSampler() {
	r.sampler = release.NewSampler(release.SamplerConfig{
		Releases: r.releases, Running: r.runningReleases, Sample: r.images.Sample, Pace: r.server.cfg.DriftSample, Append: r.store.Append, Slog: r.server.log,
	})
}

// runningReleases are the environments that run releases and have started.
func (r *rooms) runningReleases(ctx context.Context) (out []release.Running, err error) {
	all, err := r.manager.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if e.Release == "" || e.Phase != environment.Running && e.Phase != environment.Unhealthy {
			continue
		}
		run := api.RunningOf(e)
		if run.Undeclared, err = r.manager.Undeclared(ctx, e.Ref); err != nil { // it was taken down meanwhile, or is on the way
			continue
		}
		out = append(out, run)
	}
	return out, nil
}

// maxSaid bounds how many findings a check says.
const maxSaid = 3

// checkDrift says what runs otherwise than it was released.
func (r *rooms) checkDrift() api.Check {
	found, doing, err := r.sampler.State()
	c := api.Check{Name: "drift", State: api.CheckOK, Message: doing}
	switch {
	case len(found) > 0:
		c.State, c.Remedy = api.CheckWarning, "isle drift --full compares all of it; isle up --release launches what was released"
		c.Message = strings.Join(found[:min(len(found), maxSaid)], "; ")
		if len(found) > maxSaid {
			c.Message += "; and more"
		}
	case err != nil:
		flat := api.Flatten(err)
		c.State, c.Message, c.Remedy = api.CheckWarning, flat.Message, flat.Hint
	case r.server.cfg.DriftSample <= 0:
		c.Message = "nothing is looked at; isle server --drift-sample does, isle drift looks once"
	}
	return c
}
