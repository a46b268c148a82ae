package release

import (
	"strings"
	"testing"
	"time"

	"isle"
)

// valuesOf are values with one variable of the shop.
func valuesOf(a string) *Values {
	return &Values{Env: map[string]map[string]string{"web": {"A": a}}}
}

// Who promotes what is there already passes no gate, since nothing changes. If it
// is something else by then, that is no way back past the gates.
func TestAPromotionThatWasToChangeNothingChangesNothing(t *testing.T) {
	w := newWorld(t, "here")
	one, two := w.of(0, nil), w.of(1, nil)
	promote := func(rel Release, v *Values, before *Pointer) error {
		seen, _ := w.Stage("shop", "testing")
		_, err := w.Promote(t.Context(), alice, Promotion{Project: "shop", To: "testing", Order: order, Release: string(rel.Digest), Values: v, Before: before}, seen.Release)
		return err
	}
	if err := promote(one, valuesOf("old"), nil); err != nil {
		t.Fatal(err)
	}
	planned, err := w.Plan(t.Context(), Promotion{Project: "shop", To: "testing", Order: order, Release: string(one.Digest), Values: valuesOf("old")})
	if err != nil || !planned.Same {
		t.Fatal(planned, err)
	}
	before := planned.Before.Pointer()
	for name, next := range map[string]struct {
		rel Release
		v   *Values
	}{"other values": {one, valuesOf("new")}, "another release": {two, valuesOf("new")}} {
		if err := promote(next.rel, next.v, nil); err != nil {
			t.Fatal(err)
		}
		if err := promote(one, valuesOf("old"), &before); code(err) != isle.Conflict {
			t.Errorf("%s: %v", name, err)
		}
		if s, _ := w.Stage("shop", "testing"); s.Release != next.rel.Digest || s.Values.Env["web"]["A"] != "new" {
			t.Fatalf("%s: it points at %s with %v", name, s.Release.Short(), s.Values.Lines())
		}
	}
}

// What is launched by a rollback is what the stage points at after it.
func TestARollbackGoesBackToWhatWasPlanned(t *testing.T) {
	w := newWorld(t, "here")
	one, two := w.of(0, nil), w.of(1, nil)
	for _, p := range []struct {
		rel Release
		v   string
	}{{one, "first"}, {one, "second"}, {two, "x"}, {one, "second"}, {two, "x"}} {
		seen, _ := w.Stage("shop", "testing")
		if _, err := w.Promote(t.Context(), alice, Promotion{Project: "shop", To: "testing", Order: order, Release: string(p.rel.Digest), Values: valuesOf(p.v)}, seen.Release); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.back(Rollback{}); err != nil { // two is marked from now on
		t.Fatal(err)
	}
	plan, err := w.PlanRollback(t.Context(), Rollback{Project: "shop", Stage: "testing"})
	if err != nil || plan.Values.Env["web"]["A"] != "first" {
		t.Fatalf("%v, %v", plan.Values, err)
	}
	want := plan.Pointer()
	if err := w.back(Rollback{To: string(plan.Release.Digest), Want: &want}); err != nil {
		t.Fatal(err)
	}
	if s, _ := w.Stage("shop", "testing"); s.Release != one.Digest || s.Values.Env["web"]["A"] != "first" {
		t.Errorf("planned was %v, and it has %v", plan.Values, s.Values)
	}
	other := Pointer{Release: one.Digest, Values: *valuesOf("other")}
	if _, err := w.promote("testing", string(w.of(2, nil).Digest)); err != nil {
		t.Fatal(err)
	}
	if err := w.back(Rollback{To: string(one.Digest), Want: &other}); code(err) != isle.Conflict {
		t.Errorf("it goes back to something else than was planned: %v", err)
	}
}

// A machine that may promote and roll back gets no mark cleared by having others
// made.
func TestNoMarkIsPushedOutByOthers(t *testing.T) {
	w := newWorld(t, "here")
	robot := isle.Actor{Kind: isle.Machine, Name: "ci"}
	good, bad := w.of(0, nil), w.of(1, nil)
	for _, r := range []Release{good, bad} {
		if _, err := w.promote("testing", string(r.Digest)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.back(Rollback{Reason: "it loses baskets"}); err != nil {
		t.Fatal(err)
	}
	var err error
	for i := 2; i < 500; i++ {
		seen, _ := w.Stage("shop", "testing")
		if _, err = w.Promote(t.Context(), robot, Promotion{Project: "shop", To: "testing", Order: order, Release: string(w.of(i, nil).Digest)}, seen.Release); err != nil {
			break
		}
		seen, _ = w.Stage("shop", "testing")
		if err := w.Rollback(t.Context(), robot, Rollback{Project: "shop", Stage: "testing"}, seen.Release); err != nil {
			t.Fatal(err)
		}
	}
	if code(err) != isle.Exhausted || !strings.Contains(err.Error(), "clear") {
		t.Errorf("releases are marked without end: %v", err)
	}
	if _, err := w.promote("testing", string(bad.Digest)); code(err) != isle.Refused {
		t.Errorf("what was rolled back from is promoted again: %v", err)
	}
}

// Values as large as may be, again and again, do not have a stage stay where it is.
func TestAStageWithLargeValuesMovesOn(t *testing.T) {
	w := newWorld(t, "here")
	rel := w.of(0, nil)
	for i := range 80 {
		seen, _ := w.Stage("shop", "testing")
		p := Promotion{Project: "shop", To: "testing", Order: order, Release: string(rel.Digest), Values: valuesOf(strings.Repeat("\x01", 16_000) + strings.Repeat("x", i))}
		if _, err := w.Promote(t.Context(), alice, p, seen.Release); err != nil {
			t.Fatalf("after %d: %v", i, err)
		}
	}
	if err := w.back(Rollback{Reason: strings.Repeat("\x01", 10_000)}); err != nil {
		t.Fatal(err)
	}
	w.open()
	if s, ok := w.Stage("shop", "testing"); !ok || len(s.Values.Env["web"]["A"]) != 16_078 {
		t.Errorf("%v, %d", ok, len(s.Values.Env["web"]["A"]))
	}
}

// Who signs says when they made it, and not that it stays young.
func TestAProvenanceOfTomorrowMakesNothingYounger(t *testing.T) {
	now := time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)
	far := newWorld(t, "far")
	far.config.Now = func() time.Time { return now.Add(1000 * time.Hour) }
	far.open()
	rel := far.create(shop(t, ""))
	var b strings.Builder
	if err := far.Export(t.Context(), string(rel.Digest), false, &b); err != nil {
		t.Fatal(err)
	}
	here := newWorld(t, "here")
	here.config.Now = func() time.Time { return now }
	here.open()
	if _, err := here.Trust(t.Context(), alice, far.config.Key.Verifier()); err != nil {
		t.Fatal(err)
	}
	rel, err := here.Import(t.Context(), alice, strings.NewReader(b.String()), func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(48 * time.Hour)
	g := here.Gates(compiled(t, "  - {stages: [staging], fresh: 24h}")[0], Plan{To: "staging", Release: rel}, Serving{})[0]
	if g.State != GateUnmet || !strings.Contains(g.Text, "48h0m0s ago") {
		t.Errorf("%+v", g)
	}
}

// Which gates were met is in the log as it was: no command of a release's own
// checks looks like another gate.
func TestACheckDoesNotLookLikeAnotherGateInTheLog(t *testing.T) {
	got := recorded([]Gate{{Kind: GateCheck, Name: "web: true` (the environment's own claim), approvals, soak, check `web: x", State: GateMet, Claim: true}}, GateMet)
	if strings.Count(got, "`") > 2 || strings.Contains(got, "true`") {
		t.Error(got)
	}
}

// Who promotes what begins some digest is not told whose it is.
func TestAPromotionDoesNotSayWhoseAnotherReleaseIs(t *testing.T) {
	w := newWorld(t, "here")
	req := shop(t, "")
	req.Spec.Name = "bank"
	rel := w.create(req)
	if _, err := w.promote("testing", string(rel.Digest)); code(err) != isle.Invalid || strings.Contains(err.Error(), "bank") {
		t.Error(err)
	}
}
