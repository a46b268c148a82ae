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
	if r.moved != nil {
		plan = *r.moved
	}
	if req.May != nil {
		if err := req.May(plan); err != nil {
			return nil, err
		}
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
	plan := environment.ForkPlan{Source: source, Project: "shop", Forks: []isle.Ref{{Name: "shop-f1", Stage: stage}}}
	if req.At != "" {
		plan.Snapshot = isle.DigestOf([]byte(req.At))
	}
	return plan, nil
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

func (r *rooms) RestoreTo(_ context.Context, _ isle.Actor, ref isle.Ref, req environment.RestoreRequest, _ func(environment.Progress)) (environment.UpResult, error) {
	r.reach("RestoreTo")
	r.reach("RestoreTo " + req.At)
	return environment.UpResult{Environment: environment.Environment{Ref: ref}}, nil
}

// Lineage is a shop with a fork of which another was made, and a stranger.
func (r *rooms) Lineage(_ context.Context, visible func(string, isle.Ref, string) bool) (out []environment.Relation, err error) {
	for _, x := range []environment.Relation{
		{ID: "1", Ref: isle.Ref{Name: "shop", Stage: "testing"}, Project: "shop"},
		{ID: "2", Parent: "1", Ref: isle.Ref{Name: "shop-f1", Stage: "testing"}, Project: "shop"},
		{ID: "3", Parent: "2", Ref: isle.Ref{Name: "shop-f1-f1", Stage: "testing"}, Project: "shop"},
		{ID: "4", Parent: "1", Ref: isle.Ref{Name: "shop-f2", Stage: "testing"}, Project: "shop"},
		{ID: "5", Ref: isle.Ref{Name: "secret", Stage: "staging"}, Project: "secret"},
	} {
		x.Kind = environment.KindEnvironment
		if visible(x.Kind, x.Ref, x.Project) {
			out = append(out, x)
		}
	}
	return out, nil
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

func TestATreeShowsTheLineOfOneAndWhatMayBeRead(t *testing.T) {
	r := &rooms{envs: map[isle.Ref]environment.Environment{}}
	for name, id := range map[string]isle.ID{"shop-f1": "2", "shop": "1"} {
		ref := isle.Ref{Name: name, Stage: "testing"}
		r.envs[ref] = environment.Environment{Ref: ref, Instance: id, Project: "shop"}
	}
	a := newPolicy(t)
	apply(t, a, "roles:\n  looker: {actions: [environment:read, environment:list], resources: ['environment:shop', 'environment:shop-f1', 'environment:shop-f1-f1', 'environment:shop-f2', 'server:server']}\nbindings:\n  - {role: admin, subjects: [human:root]}\n  - {role: looker, subjects: [human:ann]}\n")
	for _, x := range []struct{ who, name, want string }{
		{"root", "", "12345"}, {"root", "shop-f1", "123"}, {"root", "shop", "1234"}, {"ann", "", "1234"},
	} {
		res, err := serveAs(t, r, a, x.who).Forks.Tree(t.Context(), connect.NewRequest(&islev1.TreeRequest{Environment: x.name}))
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, n := range res.Msg.GetNodes() {
			got += n.GetId()
		}
		if got != x.want {
			t.Errorf("%s sees %s of %q, not %s", x.who, got, x.name, x.want)
		}
	}
}

func TestWhoRestoresMayReplaceWhatIsThere(t *testing.T) {
	for actions, allowed := range map[string]bool{
		"environment:restore, environment:launch": true, "environment:restore": false, "environment:launch, environment:fork": false,
	} {
		r := &rooms{}
		a := newPolicy(t)
		apply(t, a, "roles:\n  r: {actions: ["+actions+"], resources: ['environment:shop']}\nbindings:\n  - {role: admin, subjects: [human:root]}\n  - {role: r, subjects: [human:ann]}\n")
		stream, err := serveAs(t, r, a, "ann").Forks.Restore(t.Context(), connect.NewRequest(&islev1.RestoreRequest{Environment: "shop", At: "good"}))
		if err != nil {
			t.Fatal(err)
		}
		for stream.Receive() {
		}
		if err := stream.Err(); allowed != (err == nil) || r.seen("RestoreTo") != allowed {
			t.Errorf("%s: %v", actions, err)
		}
		if allowed && !r.seen("RestoreTo "+string(isle.DigestOf([]byte("good")))) {
			t.Error("a tag is restored, which may be another snapshot's by now")
		}
		stream.Close()
	}
}

func TestWhatIsCopiedIsWhatTheCallerMayCopy(t *testing.T) {
	r := &rooms{}
	a := newPolicy(t)
	apply(t, a, "roles:\n  copier: {actions: [environment:fork, environment:launch], resources: ['environment:shop', 'environment:shop-f1', 'environment:vault-f1']}\n"+
		"bindings:\n  - {role: admin, subjects: [human:root]}\n  - {role: copier, subjects: [human:ann]}\n")
	c := serveAs(t, r, a, "ann")
	// The tag that she may copy is moved before it is copied.
	r.moved = &environment.ForkPlan{Source: isle.Ref{Name: "vault", Stage: "testing"}, Project: "vault", Forks: []isle.Ref{{Name: "vault-f1", Stage: "testing"}}}
	if _, err := fork(t, c, &islev1.ForkRequest{From: "shop", At: "latest"}); isle.CodeOf(err) != isle.Refused || r.seen("Fork") {
		t.Errorf("what she may not copy is copied: %v", err)
	}
}
