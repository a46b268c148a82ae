package release

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"isle"
)

var order = []string{"testing", "staging", "production"}

// promote points a stage at a release, as one does who has just looked.
func (w *world) promote(to, rel string) (Plan, error) {
	w.t.Helper()
	seen, _ := w.Stage("shop", to)
	return w.Promote(w.t.Context(), alice, Promotion{Project: "shop", To: to, Order: order, Release: rel}, seen.Release)
}

// another is a release of the shop that differs in a limit.
func (w *world) another() Release {
	req := shop(w.t, "")
	req.Spec.Limits.PIDs += 7
	return w.create(req)
}

func TestADigestGoesThroughEveryStageInOrder(t *testing.T) {
	w := newWorld(t, "here")
	rel, next := w.create(shop(t, "")), w.another()
	if _, err := w.promote("testing", ""); code(err) != isle.Invalid || !strings.Contains(err.Error(), "--release") {
		t.Error(err)
	}
	if _, err := w.promote("staging", ""); code(err) != isle.Conflict || !strings.Contains(err.Error(), "testing") {
		t.Error(err)
	}
	if _, err := w.promote("nowhere", ""); code(err) != isle.Invalid {
		t.Error(err)
	}
	for i, stage := range order {
		name := ""
		if i == 0 {
			name = string(rel.Digest)
		}
		if p, err := w.promote(stage, name); err != nil || p.Same || p.Release.Digest != rel.Digest {
			t.Fatal(stage, p, err)
		}
		if p, err := w.promote(stage, name); err != nil || !p.Same {
			t.Fatal("again:", p, err)
		}
	}
	if _, err := w.promote("production", string(next.Digest)); code(err) != isle.Refused {
		t.Errorf("staging was passed over: %v", err)
	}
	if got, _ := w.Stage("shop", "production"); got.Release != rel.Digest {
		t.Error("it moved all the same")
	}
	w.open()
	if s := w.StagesOf(rel.Digest); len(s) != 3 {
		t.Error(s)
	}
	if _, err := w.Remove(t.Context(), alice, string(rel.Digest)); code(err) != isle.Conflict {
		t.Error(err)
	}
	if got, err := w.Look("shop@production"); err != nil || got.Digest != rel.Digest {
		t.Error(got, err)
	}
	if _, err := w.Look("bank@production"); code(err) != isle.NotFound {
		t.Error(err)
	}
}

func TestAStageIsPassedOverForAReasonThatIsKept(t *testing.T) {
	w := newWorld(t, "here")
	rel := w.create(shop(t, ""))
	p := Promotion{Project: "shop", To: "production", Order: order, Release: string(rel.Digest), BreakGlass: "the site is down"}
	plan, err := w.Promote(t.Context(), alice, p, "")
	if err != nil || plan.Skips != "staging" {
		t.Fatal(plan, err)
	}
	if s, _ := w.Stage("shop", "production"); s.Passed != p.BreakGlass {
		t.Error(s)
	}
	entries := w.store.Entries()
	if e := entries[len(entries)-1]; e.Details["break_glass"] != p.BreakGlass || e.Details["passed_over"] != "staging" || e.Release != rel.Digest || e.Resource.Stage != "production" {
		t.Errorf("%+v", e)
	}
}

func TestOfTwoWhoPromoteAtOnceOneIsToldThatTheOtherWasFirst(t *testing.T) {
	w := newWorld(t, "here")
	first := w.create(shop(t, ""))
	if _, err := w.promote("testing", string(first.Digest)); err != nil {
		t.Fatal(err)
	}
	var releases []Release
	for i := range 4 {
		req := shop(t, "")
		req.Spec.Limits.PIDs += i + 1
		releases = append(releases, w.create(req))
	}
	errs := make([]error, len(releases))
	var all sync.WaitGroup
	for i, rel := range releases {
		all.Go(func() {
			_, errs[i] = w.Promote(t.Context(), alice, Promotion{Project: "shop", To: "testing", Order: order, Release: string(rel.Digest)}, first.Digest)
		})
	}
	all.Wait()
	won := -1
	for i, err := range errs {
		switch {
		case err == nil && won < 0:
			won = i
		case err == nil:
			t.Error("two were first")
		case code(err) != isle.Conflict || !strings.Contains(err.Error(), "by alice"):
			t.Error(err)
		}
	}
	if s, _ := w.Stage("shop", "testing"); won < 0 || s.Release != releases[won].Digest || s.Before != first.Digest {
		t.Error(won, s)
	}
}

func TestACrashOfAPromotionLeavesTheOldOrTheNew(t *testing.T) {
	for point, moved := range map[string]bool{"promote.checked": false, "promote.recorded": true} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t, "here")
			old, next := w.create(shop(t, "")), w.another()
			if _, err := w.promote("testing", string(old.Digest)); err != nil {
				t.Fatal(err)
			}
			died := errors.New("died")
			w.config.Fault = func(at string) {
				if at == point {
					panic(died)
				}
			}
			w.open()
			func() {
				defer func() {
					if r := recover(); r != died {
						t.Error(r)
					}
				}()
				w.promote("testing", string(next.Digest))
			}()
			w.config.Fault = nil
			w.open()
			want := old.Digest
			if moved {
				want = next.Digest
			}
			if s, _ := w.Stage("shop", "testing"); s.Release != want {
				t.Error(s)
			}
			if p, err := w.promote("testing", string(next.Digest)); err != nil || p.Same != moved {
				t.Error(p, err)
			}
		})
	}
}

func TestWhatIsNotTrustedAnyMoreIsNotPromoted(t *testing.T) {
	w := newWorld(t, "here")
	rel := w.create(shop(t, ""))
	if _, err := w.promote("testing", string(rel.Digest)); err != nil {
		t.Fatal(err)
	}
	w.config.Key = keyOf(t, "other")
	w.open()
	if _, err := w.promote("staging", ""); code(err) != isle.Untrusted {
		t.Error(err)
	}
	w.config.Key = keyOf(t, "here")
	w.open()
	w.images.damaged[rel.Manifest.Services[0].Image.Layers[0].Digest] = true
	if _, err := w.promote("staging", ""); code(err) != isle.Invalid {
		t.Error(err)
	}
	if _, ok := w.Stage("shop", "staging"); ok {
		t.Error("it was promoted all the same")
	}
}

func TestOnlyValuesDifferInAStage(t *testing.T) {
	w := newWorld(t, "here")
	rel := w.create(shop(t, ""))
	v, err := ParseValues("values.testing.yaml", []byte("env: {web: {A: other}}\nlimits: {cpus: 0.5, memory: 1GiB, pids: 99}\nuses: {orders-db: orders-db-testing}\n"))
	if err != nil {
		t.Fatal(err)
	}
	p := Promotion{Project: "shop", To: "testing", Order: order, Release: string(rel.Digest), Values: &v}
	if _, err := w.Promote(t.Context(), alice, p, ""); err != nil {
		t.Fatal(err)
	}
	entries := w.store.Entries()
	if e := entries[len(entries)-1]; e.Details["values"] != string(v.Digest()) || e.Details["values_changed"] != "limits.cpus, limits.memory, limits.pids, services.web.env.A, uses.orders-db" {
		t.Errorf("%+v", e.Details)
	}
	w.open()
	at, err := w.At(rel, "testing", true)
	if err != nil {
		t.Fatal(err)
	}
	f, err := at.Apply(rel.Manifest.Spec)
	if err != nil {
		t.Fatal(err)
	}
	web, _ := f.Service("web")
	if web.Env["A"] != "other" || web.Env["B"] != "2" || f.Limits.CPUs != 0.5 || f.Limits.Memory != 1<<30 || f.Limits.PIDs != 99 || f.Uses[0] != "orders-db-testing" || f.UsesAs["orders-db-testing"] != "orders-db" {
		t.Errorf("%+v", f)
	}
	if was, _ := rel.Manifest.Spec.Service("web"); was.Env["A"] != "1" || rel.Manifest.Spec.Uses[0] != "orders-db" {
		t.Error("the release itself was changed")
	}
	if p, err := w.promote("testing", string(rel.Digest)); err != nil || !p.Same {
		t.Error("without values the stage did not keep its own:", p, err)
	}
	p.Values = &Values{}
	if plan, err := w.Promote(t.Context(), alice, p, rel.Digest); err != nil || plan.Same {
		t.Error(plan, err)
	}
	if at, err := w.At(rel, "testing", true); err != nil || at.Digest() != "" {
		t.Error(at, err)
	}
	for _, wrong := range []string{"env: {web: {C: x}}", "env: {nowhere: {A: x}}", "uses: {other: x}", "limits: {memory: 1KiB}"} {
		v, err := ParseValues("v", []byte(wrong))
		if err != nil {
			t.Fatal(wrong, err)
		}
		p.Values = &v
		if _, err := w.Plan(t.Context(), p); code(err) != isle.Invalid {
			t.Errorf("%s: %v", wrong, err)
		}
	}
}

func TestALaunchIsOfWhatTheStagePointsAt(t *testing.T) {
	w := newWorld(t, "here")
	rel, next := w.create(shop(t, "")), w.another()
	if _, err := w.At(rel, "production", true); code(err) != isle.Conflict {
		t.Error(err)
	}
	if _, err := w.At(rel, "anywhere", false); err != nil {
		t.Error(err)
	}
	if _, err := w.promote("testing", string(rel.Digest)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.At(next, "testing", false); code(err) != isle.Conflict || !strings.Contains(err.Error(), "isle promote") {
		t.Error(err)
	}
}

func TestAFileOfValuesIsReadWithPlaces(t *testing.T) {
	for text, want := range map[string]string{
		"env: {web: {A: [1]}}":     "values.x.yaml:1:16",
		"replicas: 3":              `no value "replicas"`,
		"limits: {disk: 1GiB}":     `no limit "disk"`,
		"limits: {memory: -1}":     "no limit of memory",
		"uses: {db: 'not a name'}": "no connection",
		"- a":                      "mapping",
	} {
		if _, err := ParseValues("values.x.yaml", []byte(text)); code(err) != isle.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func FuzzParseValues(f *testing.F) {
	f.Add([]byte("env: {web: {A: other}}\nlimits: {cpus: 0.5, memory: 1GiB, pids: 99}\nuses: {a: b}\n"))
	f.Add([]byte("a: &a [*a]"))
	file := shop(f, "").Spec
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := ParseValues("v", b)
		if err != nil {
			return
		}
		if out, err := v.Apply(file); err == nil && out.Check() != nil {
			t.Errorf("%q makes a file that is none", b)
		}
	})
}
