package release

import (
	"context"
	"strings"
	"testing"
	"time"

	"isle"
	"isle/internal/environment"
)

// running is what runs in the stage of a test.
type running struct {
	w       *world
	env     environment.Environment
	answers environment.Answers
	err     error // of Up
	ups     []environment.UpRequest
}

func (r *running) Get(context.Context, isle.Ref) (environment.Environment, error) { return r.env, nil }

func (r *running) Answers(isle.Ref) (environment.Answers, bool) { return r.answers, true }

func (r *running) Up(ctx context.Context, _ isle.Actor, req environment.UpRequest, _ func(environment.Progress)) (environment.UpResult, error) {
	r.ups = append(r.ups, req)
	if r.err != nil {
		return environment.UpResult{}, r.err
	}
	if err := req.Last(ctx); err != nil {
		return environment.UpResult{}, err
	}
	r.env.Release, r.env.Instance = req.Release, isle.NewID()
	r.answers = environment.Answers{Instance: r.env.Instance}
	return environment.UpResult{}, nil
}

// A guarded is a stage that was just switched from one release to the next, and is
// watched.
type guarded struct {
	*world
	t        *testing.T
	now      time.Time
	runs     *running
	watcher  *Watcher
	one, two Release
}

func guard(t *testing.T, watch string) *guarded {
	t.Helper()
	g := &guarded{world: newWorld(t, "here"), t: t}
	g.now = g.config.Now()
	g.config.Now = func() time.Time { return g.now }
	g.open()
	g.one, g.two = g.of(0, nil), g.of(1, nil)
	for _, r := range []Release{g.one, g.two} {
		seen, _ := g.Stage("shop", "testing")
		p := Promotion{Project: "shop", To: "testing", Order: []string{"testing"}, Release: string(r.Digest), Served: true}
		if r.Digest == g.two.Digest {
			p.Watch = compiled(t, "  - {stages: [staging], watch: "+watch+"}")
		}
		if _, err := g.Promote(t.Context(), alice, p, seen.Release); err != nil {
			t.Fatal(err)
		}
	}
	instance := isle.NewID()
	g.runs = &running{w: g.world, answers: environment.Answers{Instance: instance}, env: environment.Environment{
		Instance: instance, Ref: isle.Ref{Name: "shop", Stage: "testing"}, Project: "shop", Release: g.two.Digest, Desired: environment.WantRunning,
		Services: []environment.Service{{Name: "web", Phase: environment.Running, Started: g.now.Add(-time.Second), Restarts: 3}},
	}}
	g.start()
	return g
}

// start is what a server does that begins.
func (g *guarded) start() {
	g.open()
	g.watcher = NewWatcher(WatcherConfig{Releases: g.Releases, Environments: g.runs, Now: g.config.Now})
}

// look looks after some time, and waits for what was begun.
func (g *guarded) look(after time.Duration) Stage {
	g.t.Helper()
	g.now = g.now.Add(after)
	g.watcher.Look(g.t.Context())
	g.watcher.work.Wait()
	s, _ := g.Stage("shop", "testing")
	return s
}

// answered has some more answers come.
func (g *guarded) answered(total, failed int64) {
	g.runs.answers.Total += total
	g.runs.answers.Failed += failed
}

func TestAWatchCountsAnswersAltogetherAndLately(t *testing.T) {
	g := guard(t, "{for: 1h, errors: 10%}")
	g.answered(19, 19)
	if s := g.look(time.Second); s.Release != g.two.Digest {
		t.Fatal("19 answers are too few to say anything")
	}
	g.answered(10_000, 0)
	for range 100 {
		g.answered(100, 10)
		if s := g.look(time.Second); s.Release != g.two.Digest {
			t.Fatal("10% may fail")
		}
	}
	g.start() // another server goes on, and counts from there
	g.answered(100, 5)
	g.look(time.Second)
	for range 40 {
		g.look(time.Second)
	}
	g.answered(20, 3)
	s := g.look(time.Second)
	if s.Release != g.one.Digest {
		t.Fatal("three of the last twenty failed, and nothing was done")
	}
	if len(s.Marks) != 1 || s.Marks[0].By != watchActor() || !strings.Contains(s.Marks[0].Reason, "3 of 20 answers failed, more than 10%") || len(s.Watches) != 0 {
		t.Errorf("%+v", s)
	}
	if up := g.runs.ups[0]; !up.Back || up.Release != g.one.Digest {
		t.Errorf("%+v", up)
	}
}

func TestAWatchIsOverInTimeAndLeavesAloneWhatIsAnothers(t *testing.T) {
	g := guard(t, "{for: 1h, errors: 0%}")
	g.answered(100, 100)
	desired := g.runs.env.Desired
	g.runs.env.Desired = environment.WantDown
	if s := g.look(time.Second); s.Release != g.two.Digest {
		t.Error("what was taken down is rolled back")
	}
	g.runs.env.Desired, g.runs.env.Release = desired, g.one.Digest
	if s := g.look(time.Second); s.Release != g.two.Digest {
		t.Error("what serves is another release, and its answers count")
	}
	g.runs.env.Release = g.two.Digest
	if s := g.look(time.Hour); s.Release != g.two.Digest {
		t.Error("the time was over")
	}
}

func TestAWatchOfHealthSeesWhatEndsOnceItServes(t *testing.T) {
	g := guard(t, "{for: 1h, health: true}")
	g.answered(100, 100)
	if s := g.look(time.Second); s.Release != g.two.Digest {
		t.Fatal("it was started again before it served, or errors count that nobody asked about")
	}
	g.runs.env.Services[0].Restarts, g.runs.env.Services[0].Started = 4, g.now
	if s := g.look(time.Second); s.Release != g.one.Digest || !strings.Contains(s.Marks[0].Reason, "service web ended") {
		t.Errorf("%+v", s)
	}
	g = guard(t, "{for: 1h, health: true}")
	g.runs.env.Services[0].Phase = environment.Unhealthy
	if s := g.look(time.Second); s.Release != g.one.Digest {
		t.Error("its check fails, and nothing was done")
	}
}

func TestAWatchGivesUpWhatCannotBeAndSaysSo(t *testing.T) {
	g := guard(t, "{for: 1h, errors: 0%}")
	g.runs.err = isle.Errorf(isle.Failed, "no more memory")
	g.answered(100, 100)
	var s Stage
	for range 40 {
		s = g.look(time.Second)
	}
	if len(g.runs.ups) != maxTries || s.Release != g.two.Digest || len(s.Watches) != 0 || !strings.Contains(s.Breach, "100 of 100 answers failed") || !strings.Contains(s.Breach, "no more memory") {
		t.Errorf("after %d tries: %+v", len(g.runs.ups), s)
	}
	g.open()
	if s, _ := g.Stage("shop", "testing"); s.Breach == "" {
		t.Error("the next server does not know")
	}
	if err := g.back(Rollback{}); err != nil {
		t.Fatal(err)
	}
	if s, _ := g.Stage("shop", "testing"); s.Breach != "" {
		t.Errorf("it stands with what it was rolled back to: %s", s.Breach)
	}
}

// first is a stage that was promoted to where nothing runs, and in which nothing
// was before.
func first(t *testing.T, watch string) *guarded {
	t.Helper()
	g := &guarded{world: newWorld(t, "here"), t: t}
	g.now = g.config.Now()
	g.config.Now = func() time.Time { return g.now }
	g.open()
	g.one = g.of(0, nil)
	p := Promotion{Project: "shop", To: "testing", Order: order, Release: string(g.one.Digest), Watch: compiled(t, "  - {stages: [staging], watch: "+watch+"}")}
	if _, err := g.Promote(t.Context(), alice, p, ""); err != nil {
		t.Fatal(err)
	}
	instance := isle.NewID()
	g.runs = &running{w: g.world, answers: environment.Answers{Instance: instance}, env: environment.Environment{
		Instance: instance, Ref: isle.Ref{Name: "shop", Stage: "testing"}, Project: "shop", Release: g.one.Digest, Desired: environment.WantRunning, Phase: environment.Starting,
		Services: []environment.Service{{Name: "web", Phase: environment.Starting}},
	}}
	g.start()
	return g
}

func TestAFirstLaunchIsWatchedFromWhenItServes(t *testing.T) {
	g := first(t, "{for: 1h, errors: 10%, health: true}")
	if s := g.look(100 * time.Hour); len(s.Watches) != 1 || !s.Watches[0].Until.IsZero() {
		t.Fatalf("it does not serve yet: %+v", s)
	}
	g.runs.env.Phase, g.runs.env.Services[0] = environment.Running, environment.Service{Name: "web", Phase: environment.Running, Restarts: 2, Started: g.now.Add(-time.Second)}
	s := g.look(0)
	if !s.Watches[0].Until.Equal(g.now.Add(time.Hour)) {
		t.Fatalf("%+v", s)
	}
	entries := g.store.Entries()
	if e := entries[len(entries)-1]; e.Action != isle.ActionReleaseWatch || e.Release != g.one.Digest || e.Actor != watchActor() {
		t.Errorf("%+v", e)
	}
	g.start() // the next server goes on
	if s := g.look(59 * time.Minute); len(s.Marks) != 0 {
		t.Fatalf("it was started again before it served: %+v", s)
	}

	// There is nothing to go back to: it runs on, and nothing promotes it.
	g.answered(100, 11)
	s = g.look(time.Second)
	if s = g.look(0); s.Release != g.one.Digest || len(s.Watches) != 0 || len(s.Marks) != 1 || !strings.Contains(s.Breach, "11 of 100 answers failed") || !strings.Contains(s.Breach, "nothing was in testing before, and it runs on") {
		t.Fatalf("%+v", s)
	}
	if len(g.runs.ups) != 0 {
		t.Error(g.runs.ups)
	}
	if _, err := g.promote("staging", ""); code(err) != isle.Refused || !strings.Contains(err.Error(), "did not do as it should in stage testing") {
		t.Errorf("it goes on to the next stage: %v", err)
	}
	if _, err := g.promote("testing", string(g.one.Digest)); code(err) != isle.Refused {
		t.Errorf("it is promoted again: %v", err)
	}
	if s, err := g.Clear(t.Context(), alice, "shop", "testing", string(g.one.Digest)); err != nil || s.Breach != "" {
		t.Fatal(s, err)
	}
	if _, err := g.promote("staging", ""); err != nil {
		t.Errorf("somebody has looked at it: %v", err)
	}
}

func TestALaunchAfterAPromotionToWhereNothingRanIsRolledBack(t *testing.T) {
	g := first(t, "{for: 1h, errors: 10%}")
	g.two = g.of(1, nil)
	p := Promotion{Project: "shop", To: "testing", Order: order, Release: string(g.two.Digest), Watch: compiled(t, "  - {stages: [staging], watch: {for: 1h, errors: 10%}}")}
	if _, err := g.Promote(t.Context(), alice, p, g.one.Digest); err != nil {
		t.Fatal(err)
	}
	g.runs.env.Release, g.runs.env.Phase = g.two.Digest, environment.Running
	g.look(0)
	g.answered(100, 100)
	if s := g.look(time.Second); s.Release != g.one.Digest || len(s.Marks) != 1 || s.Marks[0].Release != g.two.Digest {
		t.Errorf("%+v", s)
	}
}
