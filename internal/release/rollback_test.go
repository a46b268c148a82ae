package release

import (
	"slices"
	"strings"
	"testing"

	"isle"
	"isle/internal/spec"
)

// of is a release of the shop with a schema, and a limit of its own.
func (w *world) of(pids int, s *spec.DataSchema) Release {
	req := shop(w.t, "")
	req.Spec.Limits.PIDs += pids
	req.Spec.Schema = s
	return w.create(req)
}

// back rolls a stage back, as one does who has just looked.
func (w *world) back(b Rollback) error {
	w.t.Helper()
	b.Project, b.Stage = "shop", "testing"
	seen, _ := w.Stage("shop", "testing")
	return w.Rollback(w.t.Context(), alice, b, seen.Release)
}

func TestARollbackGoesBackStepByStepAndMarksWhatItLeaves(t *testing.T) {
	w := newWorld(t, "here")
	one, two, three := w.of(0, nil), w.of(1, nil), w.of(2, nil)
	for _, r := range []Release{one, two, three} {
		if _, err := w.promote("testing", string(r.Digest)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Rollback(t.Context(), alice, Rollback{Project: "shop", Stage: "testing"}, one.Digest); code(err) != isle.Conflict {
		t.Errorf("somebody was first: %v", err)
	}
	for _, want := range []isle.Digest{two.Digest, one.Digest} {
		if err := w.back(Rollback{Reason: "slow"}); err != nil {
			t.Fatal(err)
		}
		w.open() // as the next server finds it
		if s, _ := w.Stage("shop", "testing"); s.Release != want {
			t.Fatalf("it points at %s", s.Release.Short())
		}
	}
	if err := w.back(Rollback{}); code(err) != isle.Conflict || !strings.Contains(err.Error(), "nothing before") {
		t.Error(err)
	}
	s, _ := w.Stage("shop", "testing")
	if len(s.Marks) != 2 || s.Marks[0].Release != three.Digest || s.Marks[1].Reason != "slow" {
		t.Errorf("marks: %+v", s.Marks)
	}
	if _, err := w.promote("testing", string(three.Digest)); code(err) != isle.Refused {
		t.Errorf("promoted again: %v", err)
	}
	robot := isle.Actor{Kind: isle.Machine, Name: "ci"}
	if _, err := w.Clear(t.Context(), robot, "shop", "testing", string(three.Digest)); code(err) != isle.Refused {
		t.Errorf("a machine clears: %v", err)
	}
	if _, err := w.Clear(t.Context(), alice, "shop", "testing", string(three.Digest)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.promote("testing", string(three.Digest)); err != nil {
		t.Error(err)
	}
	if err := w.back(Rollback{To: string(two.Digest)}); code(err) != isle.Refused {
		t.Errorf("back to what was rolled back from: %v", err)
	}
}

// Who rolls back twice does not come to what the first time was from.
func TestARollbackBringsNothingBackThatIsMarked(t *testing.T) {
	w := newWorld(t, "here")
	one, two := w.of(0, nil), w.of(1, nil)
	for _, r := range []Release{one, two, one, two} {
		if _, err := w.promote("testing", string(r.Digest)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.back(Rollback{}); err != nil {
		t.Fatal(err)
	}
	for _, b := range []Rollback{{}, {To: string(two.Digest)}} {
		if err := w.back(b); err == nil {
			t.Errorf("%+v is done", b)
		}
		if s, _ := w.Stage("shop", "testing"); s.Release != one.Digest || len(s.Marks) != 1 {
			t.Fatalf("after %+v it points at %s, with the marks %+v", b, s.Release.Short(), s.Marks)
		}
	}
	if _, err := w.Clear(t.Context(), alice, "shop", "testing", string(two.Digest)); err != nil {
		t.Fatal(err)
	}
	if err := w.back(Rollback{}); err != nil {
		t.Fatal(err)
	}
	if s, _ := w.Stage("shop", "testing"); s.Release != two.Digest {
		t.Errorf("it points at %s", s.Release.Short())
	}
}

func TestDataThatCouldNotBeUsedIsNotGoneBackOn(t *testing.T) {
	for name, c := range map[string]struct {
		before, now *spec.DataSchema
		fits        bool
	}{
		"nothing is said":          {nil, nil, true},
		"nothing is said any more": {&spec.DataSchema{Version: 3, CompatibleWith: 3}, nil, true},
		"compatible":               {&spec.DataSchema{Version: 2, CompatibleWith: 2}, &spec.DataSchema{Version: 3, CompatibleWith: 2}, true},
		"not compatible":           {&spec.DataSchema{Version: 2, CompatibleWith: 2}, &spec.DataSchema{Version: 3, CompatibleWith: 3}, false},
		"the first schema":         {nil, &spec.DataSchema{Version: 1, CompatibleWith: 1}, false},
		"the first, compatible":    {nil, &spec.DataSchema{Version: 1}, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "here")
			for i, s := range []*spec.DataSchema{c.before, c.now} {
				if _, err := w.promote("testing", string(w.of(i, s).Digest)); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.back(Rollback{}); (err == nil) != c.fits || err != nil && code(err) != isle.Conflict {
				t.Error(err)
			}
			if err := w.back(Rollback{Restore: true}); !c.fits && err != nil {
				t.Errorf("with its data: %v", err)
			}
		})
	}
}

func TestDriftNamesWhatDiffers(t *testing.T) {
	if !equal([]spec.Egress{}, []spec.Egress(nil)) || equal([]string{"[]"}, []string{"null"}) {
		t.Error("nothing is not nothing, or text is taken for it")
	}
	w := newWorld(t, "here")
	rel := w.of(0, nil)
	if _, err := w.promote("testing", string(rel.Digest)); err != nil {
		t.Fatal(err)
	}
	kinds := func(change func(*Running)) (out []string) {
		run := Running{Ref: isle.Ref{Name: "shop", Stage: "testing"}, Release: rel.Digest, Spec: rel.Manifest.Spec, Images: rel.Manifest.Images()}
		run.Spec.Services = slices.Clone(run.Spec.Services)
		change(&run)
		found, err := w.Drift(t.Context(), run, true)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			out = append(out, f.Kind)
		}
		return out
	}
	for name, c := range map[string]struct {
		change func(*Running)
		want   []string
	}{
		"nothing":    {func(*Running) {}, nil},
		"a variable": {func(r *Running) { r.Spec.Services[1].Env = map[string]string{"A": "other"} }, []string{DriftSetting}},
		"one service more": {func(r *Running) {
			r.Spec.Services = append(r.Spec.Services, spec.Service{Name: "more", Command: []string{"sh"}})
		}, []string{DriftSetting}},
		"text that looks empty": {func(r *Running) {
			r.Spec.Services[1].Command = []string{"sh", "-c", "null", "[]"}
		}, []string{DriftSetting}},
		"a list that is empty": {func(r *Running) { r.Spec.Services[1].OnFork = []string{} }, nil},
		"a door":               {func(r *Running) { r.Spec.Uses = append(slices.Clone(r.Spec.Uses), "more") }, []string{DriftSetting}},
		"an image":             {func(r *Running) { r.Images["web"] = r.Images["db"] }, []string{DriftImage}},
		"no service":           {func(r *Running) { delete(r.Images, "web") }, []string{DriftImage}},
		"a release":            {func(r *Running) { r.Release = isle.DigestOf([]byte("gone")) }, []string{DriftRelease}},
		"other bytes":          {func(r *Running) { l := r.Images["web"].Layers; w.images.damaged[l[len(l)-1].Digest] = true }, []string{DriftBytes}},
	} {
		clear(w.images.damaged)
		if got := kinds(c.change); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v", name, got)
		}
	}
	clear(w.images.damaged)
	if _, err := w.promote("testing", string(w.another().Digest)); err != nil {
		t.Fatal(err)
	}
	if got := kinds(func(*Running) {}); !slices.Equal(got, []string{DriftStage}) {
		t.Errorf("the stage points elsewhere: %v", got)
	}
}

func TestWhatAStageGoesBackToIsNotRemoved(t *testing.T) {
	w := newWorld(t, "here")
	one, two, three := w.of(0, nil), w.of(1, nil), w.of(2, nil)
	for _, r := range []Release{one, two, three} {
		if _, err := w.promote("testing", string(r.Digest)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Remove(t.Context(), alice, string(two.Digest)); code(err) != isle.Conflict || !strings.Contains(err.Error(), "goes back to release") {
		t.Errorf("what a rollback brings back: %v", err)
	}
	if err := w.back(Rollback{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Remove(t.Context(), alice, string(three.Digest)); code(err) != isle.Conflict || !strings.Contains(err.Error(), "nobody has cleared") {
		t.Errorf("what was rolled back from: %v", err)
	}
	if _, err := w.Remove(t.Context(), alice, string(one.Digest)); code(err) != isle.Conflict {
		t.Errorf("what the next rollback brings back: %v", err)
	}
	if _, err := w.Clear(t.Context(), alice, "shop", "testing", string(three.Digest)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Remove(t.Context(), alice, string(three.Digest)); err != nil {
		t.Error(err)
	}
	if err := w.back(Rollback{}); err != nil {
		t.Errorf("it is not gone back to: %v", err)
	}
}
