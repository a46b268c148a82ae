package api

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/approval"
	"isle/internal/audit"
	"isle/internal/environment"
	"isle/internal/policy"
	"isle/internal/release"
)

// A passing is one promotion on its way through what stands before it. It is
// asked twice: before anything is launched, and again right before the stage
// points at the release.
type passing struct {
	s    *releases
	plan release.Plan
	p    release.Promotion

	checked []release.Gate   // what was run
	scanned uint64           // up to where the log was looked through for refusals
	refused audit.Entry      // the last one found; without an ID there is none
	others  map[isle.ID]bool // instances that were launched there: whether they are of another release
	uses    []approval.Use   // of what people agreed to, spent
}

func (s *releases) newPassing(p release.Promotion, plan release.Plan) *passing {
	return &passing{s: s, plan: plan, p: p}
}

// rules are the gates of the policy in force now.
func (x *passing) rules() []policy.Gate {
	return x.s.Policy.State().Set.Gates(x.p.Project, x.p.To)
}

// maxOthers bounds how many instances are told apart.
const maxOthers = 10_000

// A check is one that has to succeed, and who asks for it.
type check struct {
	policy.GateCheck
	rule string
}

// checks are those of the policy, and those of the release itself, which adds to
// what is asked of it and takes nothing away.
func (x *passing) checks() (out []check) {
	for _, g := range x.rules() {
		for _, c := range g.Checks {
			out = append(out, check{c, g.String()})
		}
	}
	own := x.plan.Release.Manifest.Spec.Stages
	if own == nil || x.plan.From == "" {
		return out
	}
	for _, c := range own.Checks {
		out = append(out, check{policy.GateCheck(c), x.ownRule()})
	}
	return out
}

// known are the gates that can be told without asking anybody, and those of the
// checks: as they came out, or as not asked yet.
func (x *passing) known(ctx context.Context) (out []release.Gate, err error) {
	rules, checks := x.rules(), x.checks()
	longest, back := time.Duration(0), len(checks) > 0
	for _, g := range rules {
		longest = max(longest, g.Quiet)
		back = back || g.Soak > 0 || g.Quiet > 0
	}
	serving := release.Serving{Stage: x.plan.From}
	if back {
		if serving, err = x.serving(ctx, longest); err != nil {
			return nil, err
		}
	}
	for _, g := range rules {
		out = append(out, x.s.Releases.Gates(g, x.plan, serving)...)
	}
	for _, c := range checks {
		out = append(out, x.check(c, serving))
	}
	return out, nil
}

// check is how the gate of a check stands.
func (x *passing) check(c check, s release.Serving) release.Gate {
	o := release.Gate{Kind: release.GateCheck, Name: c.String(), Rule: c.rule}
	if i := slices.IndexFunc(x.checked, func(r release.Gate) bool { return r.Name == o.Name && r.Rule == o.Rule }); i >= 0 {
		return x.checked[i]
	}
	if s.Since.IsZero() {
		o.State = release.GateUnmet
		o.Text = fmt.Sprintf("there is nothing to run it in, release %s does not serve in %s: %s", x.plan.Release.Digest.Short(), s.Stage, s.Why)
		o.Remedy = fmt.Sprintf("isle up --release %s@%s runs it there", x.p.Project, s.Stage)
		return o
	}
	o.State, o.Text = release.GatePending, fmt.Sprintf("it is run in a copy of %s@%s, for at most %s", x.p.Project, s.Stage, c.Timeout)
	return o
}

// serving is how the release does in the stage before.
func (x *passing) serving(ctx context.Context, longest time.Duration) (out release.Serving, err error) {
	project, d := x.p.Project, x.plan.Release.Digest
	out.Stage = x.plan.From
	st, ok := x.s.Releases.Stage(project, out.Stage)
	if !ok || st.Release != d {
		out.Why = "the stage does not point at it"
		return out, nil
	}
	e, ok := x.s.runsRelease(ctx, project, out.Stage)
	if out.Why = notServing(e, ok, d); out.Why != "" {
		return out, nil
	}
	since := st.Since
	for _, t := range append(startsOf(e), e.Created) {
		if t.After(since) {
			since = t
		}
	}
	out.Since = since
	if longest == 0 {
		return out, nil
	}
	if err := x.scan(ctx, e, st.Since, x.s.Policy.Now().Add(-longest)); err != nil {
		return out, err
	}
	if r := x.refused; r.ID != "" {
		out.At, out.Refused = r.Time, fmt.Sprintf("%s of %s, by %s", r.Action, r.Resource, r.Rule)
	}
	return out, nil
}

// notServing is why an environment does not serve a release; "": it does.
func notServing(e environment.Environment, runs bool, d isle.Digest) string {
	switch {
	case !runs:
		return "no release runs there"
	case e.Release != d:
		return "release " + e.Release.Short() + " runs there"
	}
	for _, svc := range e.Services {
		if svc.Phase != environment.Running && svc.Phase != environment.Exited {
			return fmt.Sprintf("service %s is %s", svc.Name, svc.Phase)
		}
	}
	return ""
}

// startsOf are when the services of an environment that run were last started.
func startsOf(e environment.Environment) (out []time.Time) {
	for _, svc := range e.Services {
		if svc.Phase == environment.Running {
			out = append(out, svc.Started)
		}
	}
	return out
}

// scan looks through the log for what was refused, since a time, to a release that
// a stage points at from pointed on: to the instance that runs it now, and to those
// before it, or whoever may launch would have a refusal forgotten by launching the
// release again. What was looked at before is not looked at again.
func (x *passing) scan(ctx context.Context, e environment.Environment, pointed, since time.Time) error {
	if x.scanned == 0 {
		first, err := x.s.Config.Audit.FirstSince(ctx, since)
		if err != nil {
			return err
		}
		x.scanned = first
	}
	refusal, launch := []byte(`"decision":"`+string(isle.Deny)+`"`), []byte(`"action":"`+string(isle.ActionEnvironmentLaunch)+`"`)
	place := []byte(`"` + e.Ref.String() + `"`)
	for {
		page, err := x.s.Config.Audit.Encoded(ctx, x.scanned, auditPage)
		if err != nil {
			return err
		}
		for _, b := range page {
			if !bytes.Contains(b, place) || !bytes.Contains(b, refusal) && !bytes.Contains(b, launch) {
				continue
			}
			r, err := audit.Decode(b)
			if err != nil {
				return isle.Errorf(isle.Internal, "an entry of the audit log cannot be read: %w", err).WithHint("see `isle audit verify`")
			}
			x.take(r, e, pointed)
		}
		x.scanned += uint64(len(page))
		if len(page) < auditPage {
			return nil
		}
	}
}

// take takes in one entry that scan has found.
func (x *passing) take(r audit.Entry, e environment.Environment, pointed time.Time) {
	switch {
	case r.Environment != e.Ref.String() || r.Instance == "":
	case r.Action == isle.ActionEnvironmentLaunch && r.Decision == isle.Allow:
		x.launched(r.Instance, r.Release != e.Release)
		// What the first instance of the release takes the place of is none of it.
		if was := isle.ID(r.Details["replaces"]); r.Release == e.Release && r.Time.Before(pointed) && was != e.Instance {
			if _, seen := x.others[was]; !seen {
				x.launched(was, true)
			}
		}
	case r.Decision == isle.Deny && r.Actor.Kind == isle.Workload:
		other, seen := x.others[r.Instance]
		if r.Instance == e.Instance || seen && !other || !seen && !r.Time.Before(pointed) {
			x.refused = r
		}
	}
}

// launched notes whether an instance is of another release.
func (x *passing) launched(i isle.ID, other bool) {
	if x.others == nil {
		x.others = map[isle.ID]bool{}
	}
	if _, seen := x.others[i]; seen || len(x.others) < maxOthers {
		x.others[i] = other
	}
}

// holds are the rules of the policy by which people have to agree. It fails with
// Refused where whoever promotes may not any more.
func (x *passing) holds(ctx context.Context) ([]*policy.Approval, error) {
	who, _ := callerFrom(ctx)
	q := queriesOf(who, promoteOf(x.p.Project, x.p.To))[0]
	a := x.s.Policy.Decide(q)
	if a.Decision == isle.Deny {
		return nil, x.s.guard.refuse(ctx, q, a, "")
	}
	return a.Holds, nil
}

// request is what people are asked to agree to: this release, in this stage, with
// these values, in the place of that.
func (x *passing) request(ctx context.Context, h *policy.Approval) approval.Request {
	who, _ := callerFrom(ctx)
	r := approval.Request{
		Actor: who.actor, Connection: x.p.Project, Kind: approval.KindRelease, Stage: x.p.To, Actions: []isle.Action{isle.ActionReleasePromote},
		Rule: h.String(), Approvers: h.Approvers, Quorum: h.Quorum, Separate: h.Separate, NoWait: true, Timeout: h.Timeout, ValidFor: h.ValidFor, Uses: h.Uses, Notify: h.Notify,
		Text: x.text(), Shape: fmt.Sprintf("promote release %s to %s", x.plan.Release.Digest.Short(), x.p.To), Why: x.p.BreakGlass,
	}
	if m, ok := x.s.machine(who.actor); ok {
		r.Owner = m.Owner.String()
	}
	r.Estimate = x.estimate()
	return r
}

// estimate is how the checks came out, for who approves. What a release calls its own
// checks is in quotes: it is text of whoever made it.
func (x *passing) estimate() string {
	var run []string
	for _, g := range x.checked {
		if g.Rule == x.ownRule() {
			g.Name = strconv.Quote(g.Name)
		}
		run = append(run, g.String())
	}
	return strings.Join(run, "; ")
}

// ownRule is who asks for the checks that a release has of its own.
func (x *passing) ownRule() string { return "release " + x.plan.Release.Digest.Short() }

// text says what is promoted, to the byte.
func (x *passing) text() []byte {
	var b strings.Builder
	rel := x.plan.Release
	fmt.Fprintf(&b, "promote release %s\nof project %s\nto stage %s\n", rel.Digest, x.p.Project, x.p.To)
	if d := x.plan.Before.Release; d != "" {
		fmt.Fprintf(&b, "in the place of release %s\n", d)
	}
	if d := x.plan.Values.Digest(); d != "" {
		fmt.Fprintf(&b, "with values %s\n", d)
		for _, l := range x.plan.Values.Lines() {
			fmt.Fprintf(&b, "  %s\n", oneLine(l))
		}
	}
	if d := x.plan.Reach.Digest(); d != "" { // in which is where they lead, too
		fmt.Fprintf(&b, "with doors %s\n", d)
		for _, l := range x.plan.Reach.Lines() {
			fmt.Fprintf(&b, "  %s\n", oneLine(l))
		}
	}
	if x.plan.Skips != "" {
		fmt.Fprintf(&b, "past stage %s: %s\n", x.plan.Skips, oneLine(x.p.BreakGlass))
	}
	return []byte(b.String())
}

// oneLine is a text as it is, and in quotes where it would look like more lines of
// what is asked, or not be shown as it is.
func oneLine(s string) string {
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// agreed are the gates of approvals. find looks one up, or asks for it.
func (x *passing) agreed(ctx context.Context, find func(approval.Request) (approval.Request, bool, error)) (out []release.Gate, err error) {
	holds, err := x.holds(ctx)
	if err != nil {
		return nil, err
	}
	for _, h := range holds {
		r, ok, err := find(x.request(ctx, h))
		if err != nil {
			return nil, err
		}
		out = append(out, agreement(h, r, ok))
	}
	return out, nil
}

// agreement is how one rule's approval stands.
func agreement(h *policy.Approval, r approval.Request, asked bool) release.Gate {
	g := release.Gate{Kind: release.GateApprovals, Rule: h.String(), State: release.GateAwaits}
	var by []string
	for _, v := range r.Decisions {
		by = append(by, v.Actor.String())
	}
	who := strings.Join(h.Approvers, ", ")
	if h.Quorum > 1 {
		who = fmt.Sprintf("%d of %s", h.Quorum, who)
	}
	if h.Separate {
		who += ", and not who asks"
	}
	switch {
	case !asked:
		g.Text, g.Remedy = "nobody was asked yet; it takes "+who, "promote it, which asks them"
	case r.State == approval.Denied:
		g.State, g.Text = release.GateAwaits, fmt.Sprintf("request %s was %s: %s", r.ID, r.Ending, lastReason(r))
		g.Remedy = "promote it again, which asks them again"
	case r.State == approval.Approved:
		g.State, g.Text = release.GateMet, fmt.Sprintf("approved by %s as request %s, until %s", strings.Join(by, ", "), r.ID, r.Until.Format(time.RFC3339))
	default:
		g.Text = fmt.Sprintf("request %s waits for %s, until %s", r.ID, who, r.Expires.Format(time.RFC3339))
		if len(by) > 0 {
			g.Text += ", approved by " + strings.Join(by, ", ") + " so far"
		}
		g.Remedy = fmt.Sprintf("once it is approved promote it again, just so: isle approvals approve %s", r.ID)
	}
	return g
}

func lastReason(r approval.Request) string {
	if n := len(r.Decisions); n > 0 && r.Decisions[n-1].Reason != "" {
		return r.Decisions[n-1].Reason
	}
	return "without a reason"
}

// look is how everything stands, and changes nothing.
func (x *passing) look(ctx context.Context) ([]release.Gate, error) {
	gates, err := x.known(ctx)
	if err != nil {
		return nil, err
	}
	people, err := x.agreed(ctx, func(r approval.Request) (approval.Request, bool, error) { return x.s.Approvals.Find(ctx, r) })
	return append(gates, people...), err
}

// prepare asks everything that has to be asked before something is launched: it
// runs the checks, if all else is met, and then asks the people.
func (x *passing) prepare(ctx context.Context, say func(*islev1.ProgressEvent)) error {
	gates, err := x.known(ctx)
	if err != nil {
		return err
	}
	if err := release.Shut(x.plan, gates); err != nil {
		return x.refuse(ctx, gates, err)
	}
	x.runChecks(ctx, say)
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if gates, err = x.known(ctx); err != nil {
		return err
	}
	if err := release.Shut(x.plan, gates); err != nil {
		return x.refuse(ctx, gates, err)
	}
	people, err := x.agreed(ctx, func(r approval.Request) (approval.Request, bool, error) {
		r, err := x.s.Approvals.Ask(ctx, r)
		return r, true, err
	})
	if err != nil {
		return err
	}
	return release.Shut(x.plan, people)
}

// pass asks again what may have changed, and spends what people agreed to. With
// that the stage may point at the release, at once.
func (x *passing) pass(ctx context.Context) ([]release.Gate, error) {
	gates, err := x.known(ctx)
	if err != nil {
		return nil, err
	}
	if err := release.Shut(x.plan, gates); err != nil {
		return nil, x.refuse(ctx, gates, err)
	}
	if i := slices.IndexFunc(gates, func(g release.Gate) bool { return g.State == release.GatePending }); i >= 0 {
		return nil, isle.Errorf(isle.Conflict, "the policy asks for another check since: %s", gates[i]).WithHint("promote it again")
	}
	holds, err := x.holds(ctx)
	if err != nil {
		return nil, err
	}
	for _, h := range holds {
		use, err := x.s.Approvals.Acquire(ctx, x.request(ctx, h), nil)
		if err != nil {
			return nil, err
		}
		x.uses = append(x.uses, use)
		gates = append(gates, release.Gate{Kind: release.GateApprovals, Rule: h.String(), State: release.GateMet, Text: "approved as request " + string(use.Approval())})
	}
	return gates, nil
}

// done records what became of what people agreed to.
func (x *passing) done(err error) {
	outcome := "promoted"
	if err != nil {
		outcome = "error " + Flatten(err).Message
	}
	for _, u := range x.uses {
		if derr := u.Done(outcome); derr != nil {
			x.s.Log.Error("what became of an approved promotion could not be recorded; it is closed as unknown", "request", u.Approval(), "err", derr)
		}
	}
	x.uses = nil
}

// refuse records that a promotion did not pass, by the first gate that is shut.
func (x *passing) refuse(ctx context.Context, gates []release.Gate, err error) error {
	rule := ""
	if i := slices.IndexFunc(gates, func(g release.Gate) bool { return g.State == release.GateUnmet }); i >= 0 {
		rule = gates[i].Rule
	}
	return x.s.refused(ctx, isle.ActionReleasePromote, x.p.Project, x.p.To, x.plan.Release.Digest, rule, err)
}

// breakGlass has a promotion go past the gates that are not met, and has that
// listed until somebody else has reviewed it.
func (x *passing) breakGlass(ctx context.Context) (gates []release.Gate, request isle.ID, err error) {
	if gates, err = x.look(ctx); err != nil {
		return nil, "", err
	}
	over := release.PassedOver(gates)
	if x.plan.Skips != "" {
		over = strings.TrimSuffix("stage "+x.plan.Skips+", "+over, ", ")
	}
	if over == "" { // nothing is passed over: what people agreed to is spent, as ever
		gates, err = x.pass(ctx)
		return gates, "", err
	}
	// Who would have had to agree reviews it; where nobody is named, whoever keeps
	// the policy.
	holds, err := x.holds(ctx)
	if err != nil {
		return nil, "", err
	}
	h := &policy.Approval{}
	for _, o := range holds {
		h.Approvers, h.Notify = append(h.Approvers, o.Approvers...), append(h.Notify, o.Notify...)
	}
	r := x.request(ctx, h)
	r, err = x.s.Approvals.PassedOver(ctx, r, fmt.Sprintf("promote release %s to %s past %s", x.plan.Release.Digest.Short(), x.p.To, over))
	return gates, r.ID, err
}

// watchedFor is what the stage of an environment is watched for, where that runs
// the stage's release, and why it should have been rolled back.
func (cfg Config) watchedFor(e environment.Environment) (watched, breach string) {
	if cfg.Releases == nil || e.Release == "" || e.Ref.Name != e.Project {
		return "", ""
	}
	st, ok := cfg.Releases.Stage(e.Project, e.Ref.Stage)
	if !ok || st.Release != e.Release {
		return "", ""
	}
	var out []string
	for _, w := range st.Watches {
		if cfg.Policy.Now().Before(w.Until) {
			out = append(out, fmt.Sprintf("until %s for %s", w.Until.Format(time.RFC3339), w))
		}
	}
	return strings.Join(out, "; "), st.Breach
}

func gateMessages(gates []release.Gate) (out []*islev1.Gate) {
	for _, g := range gates {
		out = append(out, &islev1.Gate{Kind: g.Kind, Name: g.Name, Rule: g.Rule, State: g.State, Text: g.Text, Remedy: g.Remedy, Claim: g.Claim})
	}
	return out
}
