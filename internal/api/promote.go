package api

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/policy"
	"isle/internal/release"
	"isle/internal/snapshot"
)

// asksOfPromote is the promotion to the stage; to look at what it would change
// takes no more than to see the release.
func (cfg Config) asksOfPromote(ctx context.Context, msg any) []ask {
	m := msg.(*islev1.PromoteRequest)
	project := clipped(m.GetProject())
	if m.GetDryRun() {
		return []ask{releaseOf(isle.ActionReleaseRead, project)}
	}
	promote := promoteOf(project, clipped(m.GetStage()))
	stage := promote.resource
	out := []ask{promote}
	if _, ok := cfg.runsRelease(ctx, project, stage.Stage); ok { // it is launched there
		out = append(out, launchOf(isle.Ref{Name: project, Stage: stage.Stage}, project))
	}
	if m.GetBreakGlass() != "" {
		out = append(out, ask{isle.ActionReleaseSkip, stage, project})
	}
	return out
}

// promoteOf is the promotion of a project to a stage.
func promoteOf(project, stage string) ask {
	return ask{isle.ActionReleasePromote, isle.Resource{Kind: "release", Name: project, Stage: stage}, project}
}

// maxReason bounds why a stage is passed over, in bytes.
const maxReason = 500

// Promote implements the RPC.
func (s *releases) Promote(ctx context.Context, req *connect.Request[islev1.PromoteRequest], stream *connect.ServerStream[islev1.PromoteEvent]) error {
	m := req.Msg
	p, err := s.promotion(m)
	if err != nil {
		return err
	}
	defer s.Blobs.Hold()()
	plan, err := s.Releases.Plan(ctx, p)
	if err != nil {
		return s.refused(ctx, isle.ActionReleasePromote, p.Project, p.To, plan.Release.Digest, notBroughtBack, err)
	}
	res := &islev1.PromoteResponse{
		Release: s.message(plan.Release), From: plan.From, Before: string(plan.Before.Release), Changed: !plan.Same, PassedOver: plan.Skips, Values: plan.Values.Lines(),
		Doors: plan.Reach.Lines(), Reach: s.reachLines(ctx, plan.Reaches),
	}
	if err := s.difference(ctx, plan, m.GetFiles(), res); err != nil {
		return err
	}
	if m.GetDryRun() {
		if !plan.Same {
			gates, err := s.newPassing(p, plan).look(ctx)
			if err != nil {
				return err
			}
			res.Gates = gateMessages(gates)
		}
	} else if err := s.promote(ctx, p, plan, isle.Digest(m.GetSeen()), res, func(e *islev1.ProgressEvent) error {
		return stream.Send(&islev1.PromoteEvent{Event: &islev1.PromoteEvent_Progress{Progress: e}})
	}); err != nil {
		return err
	}
	return stream.Send(&islev1.PromoteEvent{Event: &islev1.PromoteEvent_Result{Result: res}})
}

// watchMargin is how much longer than it is watched what served before is kept.
const watchMargin = time.Minute

// promote carries a plan out. What stands before it is asked before anything is
// launched, and again right before the stage points at the release.
func (s *releases) promote(ctx context.Context, p release.Promotion, plan release.Plan, seen isle.Digest, res *islev1.PromoteResponse, send func(*islev1.ProgressEvent) error) error {
	if err := plan.Stale(seen); err != nil { // before anything is launched for nothing
		return err
	}
	before, reach := plan.Before.Pointer(), plan.Reach.Digest()
	p.Release, p.Values, p.Before, p.Reach = string(plan.Release.Digest), &plan.Values, &before, &reach // nothing but what was planned
	x := s.newPassing(p, plan)
	pass := x.pass
	switch {
	case plan.Same: // it passed when it was promoted
		pass = func(context.Context) ([]release.Gate, error) { return nil, nil }
	case p.BreakGlass != "":
		pass = func(ctx context.Context) ([]release.Gate, error) {
			gates, request, err := x.breakGlass(ctx)
			res.ReviewedAs = string(request)
			return gates, err
		}
	default:
		tell, work := s.newTeller(ctx, isle.ActionEnvironmentFork, isle.Resource{}, send)
		err := x.prepare(work, tell.event)
		tell.done()
		if err != nil {
			return err
		}
	}
	c := carried{release: plan.Release, values: plan.Values, stage: p.To, still: func() error { // of two the second is told before anything is launched for it
		now := plan
		if now.Before, _ = s.Releases.Stage(p.Project, p.To); now.Before.Release == plan.Release.Digest {
			return nil
		}
		return now.Stale(seen)
	}}
	p.Watch = x.rules()
	if _, p.Served = s.runsRelease(ctx, p.Project, p.To); p.Served {
		if longest := release.LongestWatch(p.Watch); longest > 0 { // what it would be rolled back to is there as long
			c.keep = longest + watchMargin
		}
	}
	var err error
	res.Switch, err = s.carry(ctx, c, send, func(ctx context.Context) error {
		gates, err := pass(ctx)
		if err == nil {
			p.Gates, res.Gates = gates, gateMessages(gates)
			_, err = s.Releases.Promote(ctx, actorOf(ctx), p, seen)
		}
		x.done(err)
		return err
	})
	return err
}

// reachLines are changes of what a stage may do and reach, for people.
func (s *releases) reachLines(ctx context.Context, changes []policy.ReachChange) (out []string) {
	for _, c := range changes {
		line := c.Message
		if d := s.ifKeeper(ctx, c.Detail); d != "" {
			line += " (" + d + ")"
		}
		out = append(out, line)
	}
	return out
}

// promotion is what a request asks for.
func (s *releases) promotion(m *islev1.PromoteRequest) (p release.Promotion, err error) {
	if len(m.GetBreakGlass()) > maxReason {
		return p, isle.Errorf(isle.Invalid, "the reason has %d bytes, at most %d", len(m.GetBreakGlass()), maxReason)
	}
	p = release.Promotion{
		Project: m.GetProject(), To: m.GetStage(), Order: s.Policy.State().Set.Stages(), Release: m.GetRelease(), BreakGlass: m.GetBreakGlass(),
	}
	switch {
	case m.GetKeepValues():
	case len(m.GetValues()) == 0:
		p.Values = &release.Values{}
	default:
		name := clipped(m.GetValuesName())
		if name == "" {
			name = "values." + clipped(m.GetStage()) + ".yaml"
		}
		v, err := release.ParseValues(name, m.GetValues())
		if err != nil {
			return p, err
		}
		p.Values = &v
	}
	return p, nil
}

// difference says what the release of a plan has that the one before does not.
func (s *releases) difference(ctx context.Context, plan release.Plan, files bool, res *islev1.PromoteResponse) error {
	if plan.Before.Release == "" {
		return nil
	}
	before, err := s.Releases.Look(string(plan.Before.Release))
	if err == nil {
		err = before.Broken
	}
	if err != nil { // it is no reason not to leave it
		return nil
	}
	was, err := (&released{before, plan.Before.Values}).state(ctx, s.Blobs, "")
	if err != nil {
		return err
	}
	is, err := (&released{plan.Release, plan.Values}).state(ctx, s.Blobs, "")
	if err != nil {
		return err
	}
	d, err := snapshot.Compare(was, is)
	if err != nil {
		return err
	}
	for _, c := range d.Packages {
		res.Packages = append(res.Packages, &islev1.PackageChange{Service: c.Service, Name: c.Name, From: c.From, To: c.To})
	}
	for _, c := range d.Configuration {
		res.Configuration = append(res.Configuration, &islev1.SettingChange{Key: c.Key, From: c.From, To: c.To})
	}
	old := before.Manifest.Images()
	for _, svc := range plan.Release.Manifest.Services {
		if was, ok := old[svc.Name]; !ok || was.Digest() != svc.Digest {
			res.Images = append(res.Images, svc.Name)
		}
	}
	if files {
		res.Difference, err = s.imagesDiffer(ctx, old, plan.Release.Manifest.Images())
	}
	return err
}

// ListStages implements the RPC.
func (s *releases) ListStages(ctx context.Context, req *connect.Request[islev1.ListStagesRequest]) (*connect.Response[islev1.ListStagesResponse], error) {
	if _, err := s.Releases.Keys(); err != nil { // the ledger is in doubt
		return nil, err
	}
	who, _ := callerFrom(ctx)
	res := &islev1.ListStagesResponse{Order: s.Policy.State().Set.Stages()}
	for _, st := range s.Releases.StagesOf("") {
		if of := req.Msg.GetProject(); of != "" && of != st.Project {
			continue
		}
		if q := queriesOf(who, releaseOf(isle.ActionReleaseRead, st.Project)); !s.Policy.Decide(q[0]).Allowed() {
			continue
		}
		out := &islev1.Stage{
			Project: st.Project, Name: st.Name, Release: string(st.Release), Since: timestamppb.New(st.Since), By: st.By.String(), Before: string(st.Before),
			Values: st.Values.Lines(), Passed: st.Passed,
		}
		for _, m := range st.Marks {
			out.Marks = append(out.Marks, &islev1.Mark{Release: string(m.Release), By: m.By.String(), Time: timestamppb.New(m.Time), Reason: m.Reason})
		}
		out.Breach = st.Breach
		if reach, ok := s.Releases.Reach(st.Reach); ok {
			out.Doors = reach.Lines()
		}
		for _, w := range st.Watches {
			switch {
			case w.Until.IsZero():
				out.Watches = append(out.Watches, &islev1.Watch{Rule: w.Rule, Errors: w.Errors, Health: w.Health, Text: w.For.String() + " from its first launch, for " + w.String()})
			case s.Policy.Now().Before(w.Until):
				out.Watches = append(out.Watches, &islev1.Watch{Rule: w.Rule, Until: timestamppb.New(w.Until), Errors: w.Errors, Health: w.Health, Text: w.String()})
			}
		}
		for _, p := range st.Earlier {
			out.Earlier = append(out.Earlier, string(p.Release))
		}
		res.Stages = append(res.Stages, out)
	}
	return connect.NewResponse(res), nil
}
