package api

import (
	"context"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/environment"
	"isle/internal/image"
	"isle/internal/release"
)

// Drift implements the RPC.
func (s *releases) Drift(ctx context.Context, req *connect.Request[islev1.DriftRequest]) (*connect.Response[islev1.DriftResponse], error) {
	envs, err := s.released(ctx, req.Msg.GetEnvironment())
	if err != nil {
		return nil, err
	}
	defer s.Blobs.Hold()()
	res := &islev1.DriftResponse{}
	for _, e := range envs {
		run := release.Running{Ref: e.Ref, Release: e.Release, Spec: e.Spec, Images: map[string]image.Image{}}
		for _, svc := range e.Services {
			run.Images[svc.Name] = svc.Image
		}
		found, err := s.Releases.Drift(ctx, run, req.Msg.GetFull())
		if err != nil {
			return nil, err
		}
		out := &islev1.Checked{Environment: e.Ref.String(), Instance: string(e.Instance), Release: string(e.Release)}
		var entries []audit.Entry
		for _, f := range found {
			out.Drifted = append(out.Drifted, &islev1.Drifted{Kind: f.Kind, Service: f.Service, Message: f.Message})
			resource := isle.Resource{Kind: "release", Name: e.Project, Stage: e.Ref.Stage}
			entry := audit.NewEvent(actorOf(ctx), isle.ActionReleaseDrift, resource, isle.Allow, f.Message).In(e.Ref, e.Instance).With("kind", f.Kind).With("service", f.Service)
			entry.Release, entry.Result = e.Release, string(isle.Failed)
			entries = append(entries, entry)
		}
		if len(entries) > 0 {
			if err := s.Audit.Append(ctx, entries...); err != nil {
				return nil, err
			}
		}
		res.Checked = append(res.Checked, out)
	}
	return connect.NewResponse(res), nil
}

// released are the environments that run a release: one, or all that the caller
// may see.
func (s *releases) released(ctx context.Context, name string) (out []environment.Environment, err error) {
	if name != "" {
		ref, err := isle.ParseRef(name)
		if err != nil {
			return nil, err
		}
		e, err := s.Environments.Get(ctx, ref)
		if err != nil {
			return nil, err
		}
		if e.Release == "" {
			return nil, isle.Errorf(isle.Conflict, "environment %s runs no release: there is nothing to compare it with", ref).WithHint("isle up --release launches one")
		}
		return []environment.Environment{e}, nil
	}
	all, err := s.Environments.List(ctx)
	if err != nil {
		return nil, err
	}
	who, _ := callerFrom(ctx)
	for _, e := range all {
		q := queriesOf(who, s.onEnvironment(ctx, isle.ActionEnvironmentRead, e.Ref.String()))
		if e.Release != "" && s.Policy.Decide(q[0]).Allowed() {
			out = append(out, e)
		}
	}
	return out, nil
}
