package release

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/environment"
	"isle/internal/image"
	"isle/internal/policy"
	"isle/internal/spec"
)

// A Watch says for how long and by what a stage is watched since it serves the
// release that it points at. It is as the policy was when that was promoted.
type Watch struct {
	Rule string        `json:"rule"`          // where the policy said so
	For  time.Duration `json:"for,omitempty"` // once it serves
	// From and Until are when it is watched; zero: it was promoted to where nothing
	// ran, and is watched from its launch.
	From   time.Time `json:"from,omitzero"`
	Until  time.Time `json:"until,omitzero"`
	Errors float64   `json:"errors"` // the share of answers that may be of 500 and more; 1: any
	Health bool      `json:"health,omitempty"`
}

// pending reports whether a watch begins with the first launch.
func (w Watch) pending() bool { return w.Until.IsZero() }

// begun is a watch from now on.
func (w Watch) begun(now time.Time) Watch {
	w.From, w.Until = now.UTC(), now.UTC().Add(w.For)
	return w
}

// String is what is watched for, for people.
func (w Watch) String() string {
	var s string
	if w.Errors < 1 {
		s = fmt.Sprintf("more than %s of answers failing", percent(w.Errors))
	}
	if w.Health && s != "" {
		s += ", or "
	}
	if w.Health {
		s += "a service that fails"
	}
	return s
}

func percent(share float64) string {
	return strconv.FormatFloat(math.Round(share*1e6)/1e4, 'f', -1, 64) + "%"
}

// WatchesOf are the watches that gates ask for: of what serves from now on, or the
// zero time of what is to be launched.
func WatchesOf(gates []policy.Gate, now time.Time) (out []Watch) {
	for _, g := range gates {
		if g.Watch.For == 0 {
			continue
		}
		w := Watch{Rule: g.String(), For: g.Watch.For, Errors: g.Watch.Errors, Health: g.Watch.Health}
		if !now.IsZero() {
			w = w.begun(now)
		}
		out = append(out, w)
	}
	return out
}

// LongestWatch is for how long gates have a stage watched; 0: they do not.
func LongestWatch(gates []policy.Gate) (longest time.Duration) {
	for _, g := range gates {
		longest = max(longest, g.Watch.For)
	}
	return longest
}

// UpRequest is how a release is launched, with the values of a stage.
func (rel Release) UpRequest(ref isle.Ref, images map[string]image.Image, file spec.File) environment.UpRequest {
	return environment.UpRequest{
		Ref: ref, Project: rel.Manifest.Project, Spec: file, Images: images, Release: rel.Digest,
		Branch: rel.Source.Branch, Commit: rel.Source.Commit, Dirty: rel.Source.Dirty, Repository: rel.Source.Repository,
	}
}

// Watched is what runs; *environment.Manager implements it.
type Watched interface {
	Get(ctx context.Context, ref isle.Ref) (environment.Environment, error)
	Answers(ref isle.Ref) (environment.Answers, bool)
	Up(ctx context.Context, actor isle.Actor, req environment.UpRequest, progress func(environment.Progress)) (environment.UpResult, error)
}

// A WatcherConfig is what a Watcher needs.
type WatcherConfig struct {
	Releases     *Releases
	Environments Watched
	Hold         func() (release func()) // keeps the layers on disk
	Now          func() time.Time        // default time.Now
	Slog         *slog.Logger            // nil discards
}

// A Watcher rolls stages back by themselves: those that are watched since they
// were switched, and in which what serves does not do as it should. What it knows
// of a stage beside the stage's record is only what it has counted, so that
// another server goes on with it.
type Watcher struct {
	cfg  WatcherConfig
	seen map[stageKey]*watching // of whoever calls Look
	work sync.WaitGroup         // rollbacks under way
}

// A watching is what was counted of a stage.
type watching struct {
	instance isle.ID
	samples  []sample // the oldest first
	tries    int      // to roll back
	next     time.Time
	rolling  chan error // what becomes of a rollback under way; nil: none is
}

type sample struct {
	at            time.Time
	total, failed int64
}

const (
	// watchEvery is how often what serves is looked at.
	watchEvery = 500 * time.Millisecond
	// errorWindow is over how long a share of answers is counted, beside all since
	// it serves: what goes wrong late is not outweighed by what went well before.
	errorWindow = 30 * time.Second
	// fewAnswers are too few to say anything of a share of them.
	fewAnswers = 20
	// maxTries and tryAgain bound how often a rollback is tried that fails.
	maxTries = 5
	tryAgain = 5 * time.Second
	// maxBreach bounds what is kept of why there was none, in bytes.
	maxBreach = 2 << 10
)

// watchActor is who rolls back.
func watchActor() isle.Actor { return isle.Actor{Kind: isle.System, Name: "watch"} }

// NewWatcher returns a Watcher, which does nothing before Run.
func NewWatcher(cfg WatcherConfig) *Watcher {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Slog == nil {
		cfg.Slog = slog.New(slog.DiscardHandler)
	}
	if cfg.Hold == nil {
		cfg.Hold = func() func() { return func() {} }
	}
	return &Watcher{cfg: cfg, seen: map[stageKey]*watching{}}
}

// Run watches until ctx is done, and waits for what it has begun. It is called
// once.
func (w *Watcher) Run(ctx context.Context) {
	defer w.work.Wait()
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			w.Look(ctx)
		}
	}
}

// Look looks at every stage that is watched, once. It waits for no rollback: one
// that takes long keeps no other stage from being watched. It is not called again
// before it has returned.
func (w *Watcher) Look(ctx context.Context) {
	if w.cfg.Releases.Err() != nil {
		return
	}
	now := w.cfg.Now()
	watched := map[stageKey]bool{}
	for _, s := range w.cfg.Releases.StagesOf("") {
		if slices.ContainsFunc(s.Watches, Watch.pending) {
			s = w.begin(ctx, s, now)
		}
		active := slices.DeleteFunc(slices.Clone(s.Watches), func(x Watch) bool { return !now.Before(x.Until) })
		if len(active) == 0 {
			continue
		}
		key := stageKey{s.Project, s.Name}
		watched[key] = true
		if w.seen[key] == nil {
			w.seen[key] = &watching{}
		}
		w.look(ctx, s, active, w.seen[key], now)
	}
	for key := range w.seen {
		if !watched[key] {
			delete(w.seen, key)
		}
	}
}

// begin has a stage watched from now on whose release serves for the first time
// since it was promoted. It returns the stage as it is then.
func (w *Watcher) begin(ctx context.Context, s Stage, now time.Time) Stage {
	e, err := w.cfg.Environments.Get(ctx, isle.Ref{Name: s.Project, Stage: s.Name})
	if err != nil || !serves(e, s) || e.Phase != environment.Running && e.Phase != environment.Unhealthy {
		return s
	}
	next, err := w.cfg.Releases.Watched(ctx, watchActor(), s, now)
	if err != nil { // tried again at once: what is not recorded is not watched
		w.cfg.Slog.Error("a stage whose release serves for the first time is not watched", "project", s.Project, "stage", s.Name, "err", err)
		return s
	}
	return next
}

// serves reports whether an environment runs what its stage points at.
func serves(e environment.Environment, s Stage) bool {
	return e.Project == s.Project && e.Release == s.Release && e.Desired == environment.WantRunning
}

// look looks at one stage.
func (w *Watcher) look(ctx context.Context, s Stage, active []Watch, seen *watching, now time.Time) {
	rule, why := w.breach(ctx, s, active, seen, now)
	if seen.rolling != nil {
		select {
		case err := <-seen.rolling:
			seen.rolling = nil
			if err != nil {
				w.failed(ctx, s, rule, why, seen, err, now)
			}
		default:
		}
		return
	}
	if why == "" || now.Before(seen.next) {
		return
	}
	w.cfg.Slog.Warn("a release that is watched does not do as it should; its stage is rolled back", "project", s.Project, "stage", s.Name, "release", s.Release.Short(), "why", why)
	rolling := make(chan error, 1)
	seen.rolling = rolling
	w.work.Go(func() { rolling <- w.roll(ctx, s, rule, why) })
}

// breach is by which rule, and why, a stage is to be rolled back; "": it is not.
func (w *Watcher) breach(ctx context.Context, s Stage, active []Watch, seen *watching, now time.Time) (rule, why string) {
	ref := isle.Ref{Name: s.Project, Stage: s.Name}
	e, err := w.cfg.Environments.Get(ctx, ref)
	if err != nil || !serves(e, s) {
		return "", "" // it was taken down, or something else was launched
	}
	whole, recent := w.count(ref, seen, now)
	for _, x := range active {
		if x.Health {
			if why := ill(e, cmp.Or(x.From, s.Since)); why != "" {
				return x.Rule, why
			}
		}
		for _, c := range []sample{whole, recent} {
			if c.total >= fewAnswers && float64(c.failed) > x.Errors*float64(c.total) {
				return x.Rule, fmt.Sprintf("%d of %d answers failed, more than %s", c.failed, c.total, percent(x.Errors))
			}
		}
	}
	return "", ""
}

// count is what was answered since the stage is watched, and lately.
func (w *Watcher) count(ref isle.Ref, seen *watching, now time.Time) (whole, recent sample) {
	a, ok := w.cfg.Environments.Answers(ref)
	if !ok {
		return whole, recent
	}
	if a.Instance != seen.instance {
		seen.instance, seen.samples = a.Instance, nil
	}
	is := sample{now, a.Total, a.Failed}
	// The last one from before the window stays: it is what lately begins at.
	for len(seen.samples) > 1 && now.Sub(seen.samples[1].at) >= errorWindow {
		seen.samples = seen.samples[1:]
	}
	var was sample
	if len(seen.samples) > 0 && now.Sub(seen.samples[0].at) >= errorWindow {
		was = seen.samples[0]
	}
	seen.samples = append(seen.samples, is)
	return is, sample{now, is.total - was.total, is.failed - was.failed}
}

// ill is why an instance does not do well; "": it does. What was started again
// before the stage was switched to it is no reason.
func ill(e environment.Environment, since time.Time) string {
	for _, svc := range e.Services {
		switch {
		case svc.Phase == environment.Unhealthy, svc.Phase == environment.Broken:
			return fmt.Sprintf("service %s is %s: %s", svc.Name, svc.Phase, svc.Message)
		case svc.Restarts > 0 && svc.Started.After(since):
			return fmt.Sprintf("service %s ended, and was started again", svc.Name)
		}
	}
	return ""
}

// failed is what is done about a rollback that has failed: it is tried again, and
// where that fails again and again, or can never be, it is recorded and the stage
// stays as it is.
func (w *Watcher) failed(ctx context.Context, s Stage, rule, why string, seen *watching, err error, now time.Time) {
	log := w.cfg.Slog.With("project", s.Project, "stage", s.Name, "release", s.Release.Short())
	seen.tries++
	seen.next = now.Add(tryAgain)
	log.Error("a stage that is watched could not be rolled back", "try", seen.tries, "err", err)
	code := isle.CodeOf(err)
	if never := code == isle.Conflict || code == isle.Refused || code == isle.NotFound || code == isle.Untrusted; !never && seen.tries < maxTries {
		return
	}
	if why == "" { // it does well again by now
		why = "it did not do as it should"
	}
	why += "; it could not be rolled back: " + err.Error()
	if len(s.Earlier) == 0 {
		why = strings.TrimSuffix(why, err.Error()) + "nothing was in " + s.Name + " before, and it runs on"
	}
	if err := w.cfg.Releases.GiveUp(ctx, watchActor(), s, rule, why); err != nil {
		log.Error("that could not be recorded", "err", err)
	}
}

// roll points the stage at what it pointed at before, and switches what runs.
func (w *Watcher) roll(ctx context.Context, s Stage, rule, why string) error {
	r := w.cfg.Releases
	b := Rollback{Project: s.Project, Stage: s.Name, Reason: "by watch: " + why, Rule: rule}
	defer w.cfg.Hold()()
	plan, err := r.PlanRollback(ctx, b)
	if err != nil {
		return err
	}
	if err := plan.Unfit("", time.Time{}); err != nil {
		return err
	}
	want := plan.Pointer()
	b.To, b.Want = string(plan.Release.Digest), &want
	rel, images, err := r.Launch(ctx, b.To)
	if err != nil {
		return err
	}
	file, err := plan.Values.Apply(rel.Manifest.Spec)
	if err != nil {
		return err
	}
	up := rel.UpRequest(isle.Ref{Name: s.Project, Stage: s.Name}, images, file)
	up.Back = true
	up.Last = func(last context.Context) error {
		if err := last.Err(); err != nil {
			return err
		}
		return r.Rollback(ctx, watchActor(), b, s.Release)
	}
	_, err = w.cfg.Environments.Up(ctx, watchActor(), up, func(environment.Progress) {})
	return err
}

// Watched records that a stage is watched from now on.
func (r *Releases) Watched(ctx context.Context, actor isle.Actor, seen Stage, now time.Time) (Stage, error) {
	r.shelf.Lock()
	defer r.shelf.Unlock()
	s, ok := r.Stage(seen.Project, seen.Name)
	if !ok || s.Release != seen.Release || !slices.ContainsFunc(s.Watches, Watch.pending) {
		return s, nil
	}
	s.Watches = slices.Clone(s.Watches)
	e := audit.NewEvent(actor, isle.ActionReleaseWatch, resourceAt(s.Project, s.Name), isle.Allow, "it was launched for the first time since it was promoted")
	for i, w := range s.Watches {
		if w.pending() {
			s.Watches[i] = w.begun(now)
			e = e.With("until", s.Watches[i].Until.Format(time.RFC3339))
			e.Rule = w.Rule
		}
	}
	e.Release = s.Release
	return s, r.point(ctx, s, e)
}

// GiveUp records that a stage should have been rolled back and was not. It is
// watched no more, and its release is marked as if it had been rolled back from:
// nothing promotes it on, or here again, before a person has looked at it.
func (r *Releases) GiveUp(ctx context.Context, actor isle.Actor, seen Stage, rule, why string) error {
	r.shelf.Lock()
	defer r.shelf.Unlock()
	s, ok := r.Stage(seen.Project, seen.Name)
	if !ok || s.Release != seen.Release {
		return nil
	}
	s.Watches, s.Breach = nil, strings.ToValidUTF8(why[:min(len(why), maxBreach)], "")
	s = s.mark(Mark{s.Release, actor, r.cfg.Now().UTC(), why})
	e := audit.NewEvent(actor, isle.ActionReleaseRollback, resourceAt(s.Project, s.Name), isle.Allow, why)
	e.Release, e.Result, e.Rule = s.Release, string(isle.Failed), rule
	return r.point(ctx, s, e)
}
