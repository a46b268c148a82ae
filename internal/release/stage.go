package release

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
	"isle/internal/policy"
)

// keyStage begins the key of a stage's record: the project and the stage follow,
// "stage/shop/production".
const keyStage = "stage/"

// maxStages bounds how many stages of projects have a release.
const maxStages = 10_000

// A Stage is what one stage of a project points at.
type Stage struct {
	Project string      `json:"-"`
	Name    string      `json:"-"`
	Release isle.Digest `json:"release"`
	Values  Values      `json:"values,omitzero"`
	// Reach is the digest of what its environment might do through its doors when it
	// was promoted; "": through none, or nobody has recorded it.
	Reach  isle.Digest `json:"reach,omitempty"`
	Since  time.Time   `json:"since"`
	By     isle.Actor  `json:"by"`
	Before isle.Digest `json:"before,omitempty"` // what it pointed at until then
	// Passed is why a stage before was passed over, where one was.
	Passed string `json:"passed,omitempty"`
	// Earlier are what it pointed at before, the last one last; a rollback goes back
	// to it.
	Earlier []Pointer `json:"earlier,omitempty"`
	// Marks are the releases that it was rolled back from and that nobody has
	// cleared since: they are not promoted to it.
	Marks []Mark `json:"marks,omitempty"`
	// Watches are what it is watched for since it points at Release.
	Watches []Watch `json:"watches,omitempty"`
	// Breach is why it should have been rolled back by a watch, and what kept it
	// from that; "": nothing did.
	Breach string `json:"breach,omitempty"`
}

// Pointer is what the stage points at.
func (s Stage) Pointer() Pointer { return Pointer{s.Release, s.Values, s.Reach} }

type stageKey struct{ project, stage string }

// Stage returns what a stage of a project points at; ok is false where it points
// at nothing.
func (r *Releases) Stage(project, stage string) (s Stage, ok bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	s, ok = r.stages[stageKey{project, stage}]
	return s, ok
}

// StagesOf are the stages that point at a release, in the order of the projects
// and names; at any one where d is "".
func (r *Releases) StagesOf(d isle.Digest) (out []Stage) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, s := range r.stages {
		if d == "" || s.Release == d {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b Stage) int { return strings.Compare(a.Project+"\x00"+a.Name, b.Project+"\x00"+b.Name) })
	return out
}

// loadStage takes the record of a stage in.
func (r *Releases) loadStage(key string, body []byte) bool {
	project, stage, ok := strings.Cut(key, "/")
	var s Stage
	if !ok || json.Unmarshal(body, &s) != nil || !isle.ValidName(project) || !isle.ValidName(stage) || !s.Release.Valid() {
		return false
	}
	s.Project, s.Name = project, stage
	r.stages[stageKey{project, stage}] = s
	return true
}

// A Promotion asks for a stage to point at another release.
type Promotion struct {
	Project string
	To      string
	Order   []string // the stages, the first one first
	// Release is what To is to point at; "": what the stage before it points at.
	Release string
	// Values replace those of the stage; nil: they stay.
	Values *Values
	// BreakGlass is why stages are passed over; "": none may be.
	BreakGlass string
	// Reach is what people were shown that the release may do and reach there; where
	// the policy says otherwise by now the promotion fails. nil: nobody was.
	Reach *isle.Digest
	// Gates are how what stands before it stands. BreakGlass passes over those that
	// are not met.
	Gates []Gate
	// Watch are the gates by which To is watched: from then on where it is Served
	// then, and else from its launch.
	Watch  []policy.Gate
	Served bool
	// Before is what To pointed at when this was planned, and what stands before it
	// was asked: where To points at something else by then, that is a Conflict. nil:
	// seen says it.
	Before *Pointer
}

// A Plan is what a promotion does.
type Plan struct {
	To      string
	From    string // the stage before; "" of the first one
	Release Release
	Before  Stage // Release is "" where it points at nothing yet
	Values  Values
	Reach   policy.Reach         // of its environment in the stage, by the policy of now
	Reaches []policy.ReachChange // since the promotion before
	Skips   string               // what is passed over; "" if nothing
	Same    bool                 // there is nothing to do
}

// again reports whether the stage points at the same already, with the same
// values, so that a promotion does no more than to record what it may do now.
func (p Plan) again() bool {
	return p.Before.Release == p.Release.Digest && p.Before.Values.Digest() == p.Values.Digest()
}

// Plan says what a promotion would do, and changes nothing. It fails with
// Refused where a stage would be passed over without a reason, with Untrusted and
// as a launch would where the release could not be launched.
func (r *Releases) Plan(ctx context.Context, p Promotion) (plan Plan, err error) {
	if r.shelf.Err() != nil {
		return plan, r.shelf.Err()
	}
	plan.To = p.To
	i := slices.Index(p.Order, p.To)
	if i < 0 {
		return plan, isle.Errorf(isle.Invalid, "there is no stage %q to promote to", clip(p.To)).WithHint("the stages are %s; the policy orders them with `stages:`", strings.Join(p.Order, ", "))
	}
	if !isle.ValidName(p.Project) {
		return plan, isle.Errorf(isle.Invalid, "%q is no project", clip(p.Project))
	}
	name := p.Release
	if i > 0 {
		plan.From = p.Order[i-1]
		from, ok := r.Stage(p.Project, plan.From)
		switch {
		case !ok && name == "":
			return plan, isle.Errorf(isle.Conflict, "nothing is in %s: stage %s of %s points at no release", plan.From, plan.From, p.Project).
				WithHint("isle promote %s --to %s", p.Project, plan.From)
		case name == "":
			name = string(from.Release)
		}
		if plan.Release, err = r.Use(name); err != nil {
			return plan, err
		}
		if err := from.allows(p.Project, plan.Release.Digest); err != nil && from.Release == plan.Release.Digest {
			return plan, err
		}
		if d := plan.Release.Digest; d != from.Release {
			plan.Skips = plan.From
			if p.BreakGlass == "" {
				return plan, isle.Errorf(isle.Refused, "release %s is not what stage %s of %s points at: no stage is passed over", d.Short(), plan.From, p.Project).
					WithHint("promote it there first: isle promote %s --to %s --release %s; in an emergency say why with --break-glass REASON", p.Project, plan.From, d.Short())
			}
		}
	} else if name == "" {
		return plan, isle.Errorf(isle.Invalid, "which release is promoted to %s, the first stage, has to be said", p.To).WithHint("isle promote %s --to %s --release RELEASE; isle release ls %s lists them", p.Project, p.To, p.Project)
	}
	if plan.Release, _, err = r.Launch(ctx, name); err != nil {
		return plan, err
	}
	if plan.Release.Manifest.Project != p.Project { // whose it is, who may not see it is not told
		return plan, isle.Errorf(isle.Invalid, "release %s is none of project %s", plan.Release.Digest.Short(), p.Project)
	}
	plan.Before, _ = r.Stage(p.Project, p.To)
	plan.Values = plan.Before.Values
	if p.Values != nil {
		plan.Values = *p.Values
	}
	if err := plan.Values.enough(plan.Release, p.To); err != nil {
		return plan, err
	}
	file, err := plan.Values.Apply(plan.Release.Manifest.Spec)
	if err != nil {
		return plan, err
	}
	plan.Reach = r.reachNow(p.Project, p.To, file)
	was, _ := r.Reach(plan.Before.Reach)
	plan.Reaches = plan.Reach.Changes(was)
	if err := plan.Before.allows(p.Project, plan.Release.Digest); err != nil {
		return plan, err
	}
	plan.Same = plan.again() && plan.Before.Reach == plan.Reach.Digest()
	return plan, nil
}

// Stale fails with Conflict where the stage points at another release than whoever
// promotes has seen, and there is something to do.
func (p Plan) Stale(seen isle.Digest) error {
	b := p.Before
	if p.Same || b.Release == seen {
		return nil
	}
	return isle.Errorf(isle.Conflict, "stage %s of %s points at %s by now, promoted by %s: nothing was changed", p.To, p.Release.Manifest.Project, short(b.Release), b.By.Name).
		WithHint("look at what would change now: isle promote %s --to %s --dry-run", p.Release.Manifest.Project, p.To)
}

// resourceAt is a stage of a project as what an action is done to.
func resourceAt(project, stage string) isle.Resource {
	return isle.Resource{Kind: "release", Name: project, Stage: stage}
}

// Promote points a stage at a release. seen is what it must point at until then,
// "" for nothing: where another promotion was first that is a Conflict. It is one
// change of the ledger with its entry: there is no half of it.
func (r *Releases) Promote(ctx context.Context, actor isle.Actor, p Promotion, seen isle.Digest) (Plan, error) {
	r.shelf.Lock()
	defer r.shelf.Unlock()
	plan, err := r.Plan(ctx, p)
	if err != nil {
		return plan, err
	}
	if p.Before != nil && !plan.Before.is(*p.Before) {
		return plan, isle.Errorf(isle.Conflict, "stage %s of %s points at %s by now, promoted by %s, or has other values: nothing was changed", p.To, p.Project, short(plan.Before.Release), plan.Before.By.Name).
			WithHint("look at what would change now: isle promote %s --to %s --dry-run", p.Project, p.To)
	}
	if plan.Same {
		return plan, nil
	}
	if len(plan.Before.Marks) >= maxMarks { // none is forgotten for another
		return plan, isle.Errorf(isle.Exhausted, "stage %s of %s was rolled back from %d releases that nobody has cleared since: nothing is promoted to it", p.To, p.Project, len(plan.Before.Marks)).
			WithHint("isle release stages shows them, and a person clears some: isle release clear %s@%s RELEASE", p.Project, p.To)
	}
	if err := plan.Stale(seen); err != nil {
		return plan, err
	}
	if p.Reach != nil && *p.Reach != plan.Reach.Digest() {
		return plan, isle.Errorf(isle.Conflict, "the policy was changed meanwhile, and release %s would reach in stage %s of %s what nobody has looked at: nothing was changed", plan.Release.Digest.Short(), p.To, p.Project).
			WithHint("look at what would change now: isle promote %s --to %s --dry-run", p.Project, p.To)
	}
	shut := Shut(plan, p.Gates)
	if shut != nil && p.BreakGlass == "" {
		return plan, shut
	}
	r.mu.RLock()
	n := len(r.stages)
	r.mu.RUnlock()
	if plan.Before.Release == "" && n >= maxStages {
		return plan, isle.Errorf(isle.Exhausted, "%d stages have a release, as many as may", n)
	}
	s := Stage{
		Project: p.Project, Name: p.To, Release: plan.Release.Digest, Values: plan.Values, Since: r.cfg.Now().UTC(), By: actor, Before: plan.Before.Release,
		Earlier: plan.Before.after(), Marks: plan.Before.Marks, Reach: plan.Reach.Digest(),
	}
	from := s.Since
	if !p.Served {
		from = time.Time{}
	}
	s.Watches = WatchesOf(p.Watch, from)
	if b := plan.Before; plan.again() { // it has served since then, and goes back to the same
		s.Since, s.Before, s.Earlier, s.Watches, s.Breach, s.Passed = b.Since, b.Before, b.Earlier, b.Watches, b.Breach, b.Passed
	}
	e := audit.NewEvent(actor, isle.ActionReleasePromote, resourceAt(p.Project, p.To), isle.Allow, "").With("before", string(s.Before)).With("from", plan.From)
	e.Release = s.Release
	if d := s.Values.Digest(); d != plan.Before.Values.Digest() {
		e = e.With("values", string(d)).With("values_changed", changed(plan.Before.Values, s.Values))
	}
	if s.Reach != plan.Before.Reach {
		e = e.With("reach", string(s.Reach)).With("reach_changed", reachText(plan.Reaches))
	}
	if plan.Skips != "" {
		s.Passed = p.BreakGlass
		e = e.With("passed_over", plan.Skips).With("break_glass", p.BreakGlass)
	}
	if met := recorded(p.Gates, GateMet); met != "" {
		e = e.With("gates", met)
	}
	if over := PassedOver(p.Gates); over != "" {
		s.Passed = p.BreakGlass
		e = e.With("gates_passed_over", over).With("break_glass", p.BreakGlass)
	}
	r.cfg.Fault("promote.checked")
	if err := r.pointTo(ctx, s, plan.Reach, e); err != nil {
		return plan, err
	}
	r.cfg.Fault("promote.recorded")
	return plan, nil
}

// point stores what a stage points at, with the entry that belongs to it; the
// shelf is locked.
func (r *Releases) point(ctx context.Context, s Stage, e audit.Entry) error {
	return r.pointTo(ctx, s, policy.Reach{}, e)
}

// pointTo is point where what the stage reaches may not be recorded yet.
func (r *Releases) pointTo(ctx context.Context, s Stage, reach policy.Reach, e audit.Entry) error {
	b, err := json.Marshal(s)
	for err == nil && len(b) > ledger.MaxBody && len(s.Earlier) > 1 { // values can be large: it goes less far back then
		s.Earlier = s.Earlier[1:]
		b, err = json.Marshal(s)
	}
	if err != nil {
		return isle.Errorf(isle.Internal, "cannot encode a stage's record: %w", err)
	}
	put, remove, reaches := r.reachRecords(s, reach)
	if err := r.shelf.Change(ctx, append(put, ledger.Record{Key: keyStage + s.Project + "/" + s.Name, Body: b}), remove, e); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	stages := maps.Clone(r.stages)
	stages[stageKey{s.Project, s.Name}] = s
	r.stages, r.reaches = stages, reaches
	return nil
}

// short is a digest for people, where there is one.
func short(d isle.Digest) string {
	if d == "" {
		return "no release"
	}
	return "release " + d.Short()
}

// At is how a release is launched in a stage: what the stage points at, with its
// values. In a stage that points at another one, or is ordered and points at none
// while it must, that is a Conflict. must says that nothing is launched in the
// stage that was not promoted to it.
func (r *Releases) At(rel Release, stage string, must bool) (Values, error) {
	project := rel.Manifest.Project
	s, ok := r.Stage(project, stage)
	switch {
	case ok && s.Release == rel.Digest:
		return s.Values, nil
	case ok:
		return Values{}, isle.Errorf(isle.Conflict, "stage %s of %s points at %s, and not at %s", stage, project, short(s.Release), rel.Digest.Short()).
			WithHint("promote it there: isle promote %s --to %s", project, stage)
	case must:
		return Values{}, isle.Errorf(isle.Conflict, "nothing was promoted to stage %s of %s", stage, project).
			WithHint("isle promote %s --to %s, after the stages before it; the first one is told which: --release %s", project, stage, rel.Digest.Short())
	}
	return Values{}, Values{}.enough(rel, stage)
}
