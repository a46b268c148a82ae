package api

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/authority"
	"isle/internal/environment"
	"isle/internal/policy"
	"isle/internal/release"
	"isle/internal/spec"
)

// A scant is a machine on which the disk is full once a copy is half made, or on
// which what runs in it never ends.
type scant struct {
	Environments
	copies map[isle.Ref]environment.Environment
	forked error
	hangs  chan struct{}
}

func (s *scant) Fork(_ context.Context, actor isle.Actor, req environment.ForkRequest, _ func(environment.Progress)) ([]environment.UpResult, error) {
	ref := isle.Ref{Name: "shop-f1", Stage: "testing"}
	if err := req.May(environment.ForkPlan{Release: isle.DigestOf([]byte("release")), Source: req.From, Forks: []isle.Ref{ref}}); err != nil {
		return nil, err
	}
	s.copies[ref] = environment.Environment{Ref: ref, OneShot: true, Owner: actor}
	return nil, s.forked
}

func (s *scant) Get(_ context.Context, ref isle.Ref) (environment.Environment, error) {
	if e, ok := s.copies[ref]; ok {
		return e, nil
	}
	return environment.Environment{}, isle.Errorf(isle.NotFound, "there is no environment %s", ref)
}

func (s *scant) Down(_ context.Context, _ isle.Actor, ref isle.Ref, volumes bool, _ func(environment.Progress)) error {
	if volumes {
		delete(s.copies, ref)
	}
	return nil
}

func (s *scant) Exec(ctx context.Context, _ isle.Actor, _ isle.Ref, _ string, _ environment.Exec) (environment.Process, error) {
	<-ctx.Done() // what answers inside hangs before anything is started
	close(s.hangs)
	return nil, ctx.Err()
}

// checking is a promotion of the shop to staging with checks.
func checking(t *testing.T, s *scant, checks string) *passing {
	t.Helper()
	set, err := policy.Compile(policy.Document{Name: "main", Format: policy.YAML, Body: []byte("gates:\n  - {stages: [staging], checks: " + checks + "}")})
	if err != nil {
		t.Fatal(err)
	}
	s.copies = map[isle.Ref]environment.Environment{}
	x := &passing{s: &releases{Config: Config{Environments: s, Log: slog.New(slog.DiscardHandler), Policy: gated{set: set}}}, p: release.Promotion{Project: "shop", To: "staging"}}
	x.plan = release.Plan{To: "staging", From: "testing", Release: release.Release{Digest: isle.DigestOf([]byte("release")), Manifest: release.Manifest{Project: "shop"}}}
	x.plan.Release.Manifest.Spec = spec.File{Name: "shop"}
	return x
}

func TestACheckForWhichThereIsNoSpaceIsNotMetAndLeavesNoCopy(t *testing.T) {
	s := &scant{forked: isle.Errorf(isle.Exhausted, "cannot copy volume /data: no space left on device").WithHint("isle gc")}
	x := checking(t, s, "[{run: first}, {run: second}]")
	x.runChecks(t.Context(), func(*islev1.ProgressEvent) {})
	if len(x.checked) != 2 {
		t.Fatal(x.checked)
	}
	for _, g := range x.checked {
		if g.State != release.GateUnmet || g.Claim || !strings.Contains(g.Text, "shop could not be copied to run it in: cannot copy volume /data: no space left on device") || g.Remedy != "isle gc" {
			t.Errorf("%+v", g)
		}
	}
	if err := release.Shut(x.plan, x.checked); isle.CodeOf(err) != isle.Refused {
		t.Error(err)
	}
	if len(s.copies) != 0 {
		t.Errorf("what was half copied is there still: %v", s.copies)
	}
}

func TestACheckThatHangsBeforeItBeginsIsEndedInItsTime(t *testing.T) {
	s := &scant{hangs: make(chan struct{})}
	x := checking(t, s, "[{run: waits, timeout: 10ms}]")
	x.runChecks(t.Context(), func(*islev1.ProgressEvent) {})
	<-s.hangs
	if g := x.checked[0]; g.State != release.GateUnmet || !strings.Contains(g.Text, "it did not end within 10ms, and was ended") {
		t.Errorf("%+v", g)
	}
	if len(s.copies) != 0 {
		t.Errorf("the copy is there still: %v", s.copies)
	}
}

// gated is a policy in force.
type gated struct {
	Policy
	set *policy.Set
}

func (g gated) State() *authority.State { return &authority.State{Set: g.set} }
