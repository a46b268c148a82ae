package release

import (
	"context"
	"slices"
	"strings"
	"time"

	"isle"
	"isle/internal/audit"
)

const (
	// maxEarlier bounds how far back a stage can be rolled.
	maxEarlier = 64
	// maxMarks is how many releases may be marked in a stage to which something is
	// promoted. Rolling it back marks at most maxEarlier more.
	maxMarks = 128
	// maxReason bounds why a stage is rolled back, in bytes.
	maxReason = 500
)

// A Pointer is what a stage pointed at.
type Pointer struct {
	Release isle.Digest `json:"release"`
	Values  Values      `json:"values,omitzero"`
	Reach   isle.Digest `json:"reach,omitempty"` // as of a Stage
}

// A Mark says that a stage was rolled back from a release.
type Mark struct {
	Release isle.Digest `json:"release"`
	By      isle.Actor  `json:"by"`
	Time    time.Time   `json:"time"`
	Reason  string      `json:"reason,omitempty"`
}

// after are the earlier pointers of a stage once it points at something else.
func (s Stage) after() []Pointer {
	if s.Release == "" {
		return nil
	}
	out := append(slices.Clone(s.Earlier), s.Pointer())
	return out[max(0, len(out)-maxEarlier):]
}

// is reports whether a stage points at that.
func (s Stage) is(p Pointer) bool {
	return s.Release == p.Release && s.Values.Digest() == p.Values.Digest()
}

// mark is a stage with one more mark.
func (s Stage) mark(m Mark) Stage {
	m.Reason = strings.ToValidUTF8(m.Reason[:min(len(m.Reason), maxReason)], "")
	s.Marks = append(slices.DeleteFunc(slices.Clone(s.Marks), func(o Mark) bool { return o.Release == m.Release }), m)
	return s
}

// marked is the mark of a release in a stage.
func (s Stage) marked(d isle.Digest) (Mark, bool) {
	i := slices.IndexFunc(s.Marks, func(m Mark) bool { return m.Release == d })
	if i < 0 {
		return Mark{}, false
	}
	return s.Marks[i], true
}

// allows refuses to bring back what the stage was rolled back from.
func (s Stage) allows(project string, d isle.Digest) error {
	m, ok := s.marked(d)
	if !ok {
		return nil
	}
	if s.Release == d {
		return isle.Errorf(isle.Refused, "release %s did not do as it should in stage %s of %s, as %s saw on %s: nothing promotes it", d.Short(), s.Name, project, m.By.Name, m.Time.Format(time.DateOnly)).
			WithHint("a person who has found out why clears it: isle release clear %s@%s %s", project, s.Name, d.Short())
	}
	return isle.Errorf(isle.Refused, "stage %s of %s was rolled back from release %s, by %s on %s: nothing brings it back there", s.Name, project, d.Short(), m.By.Name, m.Time.Format(time.DateOnly)).
		WithHint("a person who has found out why clears it: isle release clear %s@%s %s", project, s.Name, d.Short())
}

// A Rollback asks for a stage to point at what it pointed at before.
type Rollback struct {
	Project string
	Stage   string
	To      string // a release that it pointed at; "": the last one
	Reason  string // for people
	// Restore says that the data goes back too: it need not be fit for To.
	Restore bool
	Rule    string // by which it is done, where nobody asked for it
	// Want is what it was planned to go back to, which is what is launched: where it
	// would be something else by then, that is a Conflict. nil: nothing was launched.
	Want *Pointer
}

// A Return is what a rollback does.
type Return struct {
	From    Stage // as it is now
	Release Release
	Values  Values
	// Data is why Release cannot use the data as From's release leaves it; "": it
	// can.
	Data  string
	stage Stage // as it is then
}

// Pointer is what the stage points at then.
func (p Return) Pointer() Pointer { return p.stage.Pointer() }

// PlanRollback says what a rollback would do, and changes nothing. It fails with
// NotFound where the stage never pointed at that release, and as a launch would.
// Whether the data fits is in Data.
func (r *Releases) PlanRollback(ctx context.Context, b Rollback) (plan Return, err error) {
	if err := r.Err(); err != nil {
		return plan, err
	}
	s, ok := r.Stage(b.Project, b.Stage)
	if !ok {
		return plan, isle.Errorf(isle.NotFound, "stage %s of %s points at no release", clip(b.Stage), clip(b.Project)).WithHint("isle release stages shows those that do")
	}
	if len(s.Earlier) == 0 && b.To == "" {
		return plan, isle.Errorf(isle.Conflict, "stage %s of %s pointed at nothing before release %s", s.Name, s.Project, s.Release.Short()).
			WithHint("promote another release: isle promote %s --to %s", s.Project, s.Name)
	}
	plan.From = s
	i := len(s.Earlier) - 1
	if b.To == "" {
		for i >= 0 && (s.is(s.Earlier[i]) || s.allows(s.Project, s.Earlier[i].Release) != nil) {
			i--
		}
		if i < 0 {
			return plan, isle.Errorf(isle.Conflict, "stage %s of %s pointed at nothing before release %s but what it was rolled back from", s.Name, s.Project, s.Release.Short()).
				WithHint("isle release stages shows that, and a person clears it: isle release clear %s@%s RELEASE", s.Project, s.Name)
		}
	} else {
		d, err := r.find(b.To)
		if err != nil {
			return plan, err
		}
		if err := s.allows(s.Project, d); err != nil {
			return plan, err
		}
		for i >= 0 && (s.Earlier[i].Release != d || s.is(s.Earlier[i])) {
			i--
		}
		if i < 0 {
			return plan, isle.Errorf(isle.NotFound, "stage %s of %s never pointed at release %s before release %s", s.Name, s.Project, d.Short(), s.Release.Short()).
				WithHint("promote it: isle promote %s --to %s", s.Project, s.Name)
		}
	}
	to := s.Earlier[i]
	if plan.Release, _, err = r.Launch(ctx, string(to.Release)); err != nil {
		return plan, err
	}
	plan.Values = to.Values
	if now, err := r.Look(string(s.Release)); err == nil && now.Broken == nil {
		plan.Data = now.Manifest.Spec.Schema.Leaves(plan.Release.Manifest.Spec.Schema)
	}
	plan.stage = Stage{Project: s.Project, Name: s.Name, Release: to.Release, Values: to.Values, Reach: to.Reach, Before: s.Release, Earlier: s.Earlier[:i:i], Marks: s.Marks}
	return plan, nil
}

// Unfit is the error of a rollback whose data does not fit. saved is the snapshot
// of it as Release had left it; "" if there is none.
func (p Return) Unfit(saved isle.Digest, since time.Time) error {
	if p.Data == "" {
		return nil
	}
	err := isle.Errorf(isle.Conflict, "stage %s of %s is not rolled back from release %s to %s, which could not use its data: %s", p.From.Name, p.From.Project,
		p.From.Release.Short(), p.Release.Digest.Short(), p.Data)
	if saved == "" {
		return err.WithHint("no snapshot of the data as release %s left it is here: bring the data back by other means, or mend release %s", p.Release.Digest.Short(), p.From.Release.Short())
	}
	return err.WithHint("isle rollback %[1]s@%[2]s --restore brings snapshot %[3]s back with it, of %[4]s: what was written since is in a snapshot then, and not in the stage; isle diff %[3]s %[1]s@%[2]s shows it",
		p.From.Project, p.From.Name, saved.Short(), since.Local().Format(time.DateTime))
}

// Stale fails with Conflict where the stage points at another release than whoever
// rolls back has seen.
func (p Return) Stale(seen isle.Digest) error {
	s := p.From
	if s.Release == seen {
		return nil
	}
	return isle.Errorf(isle.Conflict, "stage %s of %s points at %s by now, by %s: nothing was changed", s.Name, s.Project, short(s.Release), s.By.Name).
		WithHint("look at what would change now: isle rollback %s@%s --dry-run", s.Project, s.Name)
}

// Rollback points a stage at what it pointed at before, with the values of then,
// and marks the release that it is rolled back from. seen is what it must point at
// until then: where somebody was first that is a Conflict.
func (r *Releases) Rollback(ctx context.Context, actor isle.Actor, b Rollback, seen isle.Digest) error {
	r.shelf.Lock()
	defer r.shelf.Unlock()
	plan, err := r.PlanRollback(ctx, b)
	if err != nil {
		return err
	}
	if err := plan.Stale(seen); err != nil {
		return err
	}
	if b.Want != nil && !plan.stage.is(*b.Want) {
		return isle.Errorf(isle.Conflict, "stage %s of %s would go back to other values of release %s by now: nothing was changed", b.Stage, b.Project, plan.Release.Digest.Short()).
			WithHint("look at what would change now: isle rollback %s@%s --dry-run", b.Project, b.Stage)
	}
	if err := plan.Unfit("", time.Time{}); err != nil && !b.Restore {
		return err
	}
	s := plan.stage
	s.Since, s.By = r.cfg.Now().UTC(), actor
	if s.Release != seen { // it may be the values alone
		s = s.mark(Mark{seen, actor, s.Since, b.Reason})
	}
	e := audit.NewEvent(actor, isle.ActionReleaseRollback, resourceAt(s.Project, s.Name), isle.Allow, b.Reason).With("from", string(seen))
	e.Release, e.Rule = s.Release, b.Rule
	if d := s.Values.Digest(); d != plan.From.Values.Digest() {
		e = e.With("values", string(d)).With("values_changed", changed(plan.From.Values, s.Values))
	}
	if plan.Data != "" {
		e = e.With("data", "restored with it")
	}
	r.cfg.Fault("rollback.checked")
	if err := r.point(ctx, s, e); err != nil {
		return err
	}
	r.cfg.Fault("rollback.recorded")
	return nil
}

// Clear takes the mark of a release away, so that it can be promoted to the stage
// again. Only a person does: no automation undoes what a rollback has done.
func (r *Releases) Clear(ctx context.Context, actor isle.Actor, project, stage, name string) (Stage, error) {
	if actor.Kind != isle.Human {
		return Stage{}, isle.Errorf(isle.Refused, "what a stage was rolled back from is cleared by a person, and %s is none", actor).WithHint("isle release clear %s@%s %s", clip(project), clip(stage), clip(name))
	}
	r.shelf.Lock()
	defer r.shelf.Unlock()
	d, err := r.find(name)
	if err != nil {
		return Stage{}, err
	}
	s, _ := r.Stage(project, stage)
	if _, ok := s.marked(d); !ok {
		return s, isle.Errorf(isle.NotFound, "stage %s of %s was not rolled back from release %s, or that was cleared", clip(stage), clip(project), d.Short())
	}
	s.Marks = slices.DeleteFunc(slices.Clone(s.Marks), func(m Mark) bool { return m.Release == d })
	if s.Release == d { // it is as good as any other from now on
		s.Breach = ""
	}
	e := audit.NewEvent(actor, isle.ActionReleaseClear, resourceAt(s.Project, s.Name), isle.Allow, "")
	e.Release = d
	return s, r.point(ctx, s, e)
}
