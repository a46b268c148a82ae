package api

import (
	"context"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/environment"
)

// Fork, of a shop in testing that has data.
func (r *rooms) Fork(_ context.Context, actor isle.Actor, req environment.ForkRequest, _ func(environment.Progress)) (out []environment.UpResult, err error) {
	plan, err := r.PlanFork(req)
	if err != nil {
		return nil, err
	}
	if err := req.May(plan.Forks); err != nil {
		return nil, err
	}
	r.reach("Fork")
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ref := range plan.Forks {
		e := environment.Environment{Ref: ref, Owner: actor, OneShot: req.OneShot, Project: plan.Project, Fork: true}
		r.envs[ref] = e
		out = append(out, environment.UpResult{Environment: e})
	}
	return out, nil
}

func (r *rooms) PlanFork(req environment.ForkRequest) (environment.ForkPlan, error) {
	stage := req.Stage
	if stage == "" {
		stage = "testing"
	}
	source := isle.Ref{Name: "shop", Stage: "testing"}
	if req.From != source {
		return environment.ForkPlan{}, isle.Errorf(isle.NotFound, "there is no environment %s", req.From)
	}
	return environment.ForkPlan{Source: source, Project: "shop", Forks: []isle.Ref{{Name: "shop-f1", Stage: stage}}}, nil
}

// Parent is the shop, where main is one of the branches.
func (r *rooms) Parent(_ environment.UpRequest, branches []string) (environment.Environment, bool) {
	return environment.Environment{Ref: isle.Ref{Name: "shop", Stage: "testing"}, Project: "shop", Branch: "main"}, slices.Contains(branches, "main")
}

func (r *rooms) Unlike(_ environment.Environment, req environment.UpRequest) string {
	if req.Dirty {
		return "the packages of web differ"
	}
	return ""
}

func (r *rooms) Whose(name string) (isle.Ref, string) {
	ref, err := isle.ParseRef(name)
	if err != nil {
		return isle.Ref{}, name
	}
	return ref, ""
}

// fork makes a call to its end.
func fork(t *testing.T, c *Client, req *islev1.ForkRequest) (*islev1.ForkResult, error) {
	t.Helper()
	stream, err := c.Forks.Fork(t.Context(), connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	for stream.Receive() {
		if r := stream.Msg().GetResult(); r != nil {
			return r, nil
		}
	}
	return nil, stream.Err()
}

func TestWhoForksMayCopyTheSourceAndLaunchTheFork(t *testing.T) {
	for _, x := range []struct {
		name, actions, launch, to string // what is granted in any stage, and in testing
		allowed                   bool
	}{
		{"both", "environment:fork, environment:launch", "", "", true},
		{"no copy", "environment:launch", "", "", false},
		{"no launch", "environment:fork", "", "", false},
		{"no launch of that name", "environment:fork", "environment:shop@testing", "", false},
		{"another stage", "environment:fork, environment:launch", "", "staging", false},
		{"another stage, granted", "environment:fork, environment:launch, 'volume:cross-stage'", "", "staging", true},
		{"another stage, without its launch", "environment:fork, 'volume:cross-stage'", "environment:shop-f1@testing", "staging", false},
	} {
		t.Run(x.name, func(t *testing.T) {
			r := &rooms{}
			a := newPolicy(t)
			roles := "  copier: {actions: [" + x.actions + "], resources: ['environment:shop', 'environment:shop-f1']}\n"
			bindings := "  - {role: copier, subjects: [human:ann]}\n"
			if x.launch != "" {
				roles += "  launcher: {actions: [environment:launch], resources: ['" + x.launch + "']}\n"
				bindings += "  - {role: launcher, subjects: [human:ann]}\n"
			}
			apply(t, a, "roles:\n"+roles+"bindings:\n  - {role: admin, subjects: [human:root]}\n"+bindings)
			_, err := fork(t, serveAs(t, r, a, "ann"), &islev1.ForkRequest{From: "shop", ToStage: x.to})
			if x.allowed != (err == nil) || !x.allowed && isle.CodeOf(err) != isle.Refused || r.seen("Fork") != x.allowed {
				t.Errorf("%v, forked: %v", err, r.seen("Fork"))
			}
		})
	}
}

func TestAForkThatMakesNoSenseIsSaid(t *testing.T) {
	c := serveAs(t, &rooms{}, newPolicy(t), Root)
	for code, req := range map[isle.Code]*islev1.ForkRequest{
		isle.NotFound: {From: "missing"},
		isle.Invalid:  {From: "shop", Timeout: durationpb.New(2 * time.Hour)},
	} {
		if _, err := fork(t, c, req); isle.CodeOf(err) != code {
			t.Errorf("%v: %v", req, err)
		}
	}
}
