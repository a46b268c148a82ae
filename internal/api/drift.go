package api

import (
	"context"
	"slices"
	"strings"

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
		run := RunningOf(e)
		if run.Undeclared, err = s.Environments.Undeclared(ctx, e.Ref); err != nil {
			return nil, err
		}
		found, err := s.Releases.Drift(ctx, run, req.Msg.GetFull())
		if err != nil {
			return nil, err
		}
		out := &islev1.Checked{Environment: e.Ref.String(), Instance: string(e.Instance), Release: string(e.Release)}
		var entries []audit.Entry
		for _, f := range found {
			out.Drifted = append(out.Drifted, &islev1.Drifted{Kind: f.Kind, Service: f.Service, Message: f.Message, Detail: s.ifKeeper(ctx, f.Detail)})
			entries = append(entries, f.Entry(actorOf(ctx), run))
		}
		if len(entries) > 0 {
			if err := s.Audit.Append(ctx, entries...); err != nil {
				return nil, err
			}
		}
		res.Checked = append(res.Checked, out)
	}
	res.Equal = s.equal(envs, res.GetChecked())
	return connect.NewResponse(res), nil
}

// ifKeeper is a text for those who may read the policy, and "" for others.
func (cfg Config) ifKeeper(ctx context.Context, text string) string {
	who, _ := callerFrom(ctx)
	q := queriesOf(who, ask{isle.ActionPolicyRead, isle.Resource{Kind: "policy", Name: "policy"}, ""})[0]
	if text == "" || !cfg.Policy.Decide(q).Allowed() {
		return ""
	}
	return text
}

// RunningOf is an environment that runs a release, as it is compared with that;
// what is mounted in it is not known yet.
func RunningOf(e environment.Environment) release.Running {
	run := release.Running{Ref: e.Ref, Instance: e.Instance, Project: e.Project, Release: e.Release, Spec: e.Spec, Images: map[string]image.Image{}}
	for _, svc := range e.Services {
		run.Images[svc.Name] = svc.Image
	}
	return run
}

// equal are the stages of projects that run the same release without a finding, in
// the order of promotion.
func (s *releases) equal(envs []environment.Environment, checked []*islev1.Checked) (out []*islev1.Equal) {
	order := s.Policy.State().Set.Stages()
	of := map[string]*islev1.Equal{}
	values := map[string][][]string{}
	for _, stage := range order {
		for i, e := range envs {
			if e.Ref.Stage != stage || e.Ref.Name != e.Project || len(checked[i].GetDrifted()) > 0 {
				continue
			}
			key := e.Project + " " + string(e.Release)
			if of[key] == nil {
				of[key] = &islev1.Equal{Project: e.Project, Release: string(e.Release)}
				out = append(out, of[key])
			}
			of[key].Stages = append(of[key].Stages, stage)
			rel, _ := s.Releases.Use(string(e.Release))
			v, _ := s.Releases.At(rel, stage, false)
			values[key] = append(values[key], v.Lines())
		}
	}
	out = slices.DeleteFunc(out, func(e *islev1.Equal) bool { return len(e.GetStages()) < 2 })
	for _, e := range out {
		all := values[e.GetProject()+" "+e.GetRelease()]
		for i, stage := range e.GetStages() {
			for _, line := range all[i] {
				if slices.ContainsFunc(all, func(other []string) bool { return !slices.Contains(other, line) }) {
					e.Values = append(e.Values, stage+": "+line)
				}
			}
		}
	}
	return out
}

// released are the environments that run a release: one, or all that the caller
// may see.
func (s *releases) released(ctx context.Context, name string) (out []environment.Environment, err error) {
	project := ""
	if !strings.Contains(name, "@") && slices.ContainsFunc(s.Releases.StagesOf(""), func(st release.Stage) bool { return st.Project == name }) {
		name, project = "", name
	}
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
		if e.Release != "" && (project == "" || e.Project == project && e.Ref.Name == project) && s.Policy.Decide(q[0]).Allowed() {
			out = append(out, e)
		}
	}
	return out, nil
}
