package environment

import (
	"strings"
	"testing"

	"isle"
	"isle/internal/image"
)

// of is the request of a work tree.
func of(req UpRequest, branch, commit string) UpRequest {
	req.Branch, req.Commit, req.Repository = branch, strings.Repeat(commit, 40), "repository"
	return req
}

func TestAnotherCommitOfTheSameFilesIsNotedAndReplacesNothing(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	first := mustUp(t, m, of(shop("shop"), "main", "a")).Environment
	before := len(w.launched)
	req := of(shop("shop"), "main", "b")
	req.Dirty = true
	r := mustUp(t, m, req)
	if r.Changed || len(r.Replaced) > 0 || len(w.launched) != before {
		t.Errorf("something was done: %+v", r)
	}
	if e := r.Environment; e.Commit != req.Commit || !e.Dirty || e.Branch != "main" || e.Repository != "repository" || e.Instance != first.Instance {
		t.Errorf("it is noted as %+v", e)
	}
	if stored := w.envs[first.Instance]; stored.Commit != req.Commit || !stored.Dirty {
		t.Errorf("stored is %+v", stored)
	}
	noted := func() (n int) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, e := range w.entries {
			if e.Details["commit"] == req.Commit && e.Action == isle.ActionEnvironmentLaunch {
				n++
			}
		}
		return n
	}
	if noted() != 1 {
		t.Errorf("the log has it %d times", noted())
	}
	mustUp(t, m, req)
	if noted() != 1 {
		t.Error("what is as it was is noted again")
	}
	mustDown(t, m, first.Ref, true)
	w.checkEmpty(t)
}

func TestANewBranchHasTheParentThatRunsWhereItDoes(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	mustUp(t, m, of(shop("demo"), "main", "a"))
	main := mustUp(t, m, of(shop("shop"), "main", "a")).Environment
	feature := mustUp(t, m, of(shop("shop-feature"), "feature", "a")).Environment
	elsewhere := of(shop("shop-clone"), "clone", "a")
	elsewhere.Repository = "another"
	mustUp(t, m, elsewhere)
	mustUp(t, m, shop("plain"))
	staging := of(shop("shop-staged"), "staged", "a")
	staging.Ref.Stage = "staging"
	mustUp(t, m, staging)
	w.write(m, feature.Ref, "feature's")

	want := of(shop("shop-new"), "new", "b")
	for _, c := range []struct {
		branches string
		want     isle.Ref
	}{
		{"main", main.Ref}, // and not the one that is called otherwise
		{"feature main", feature.Ref},
		{"gone main", main.Ref},
		{"clone staged", isle.Ref{}},
		{"new", isle.Ref{}},
		{"", isle.Ref{}},
	} {
		e, ok := m.Parent(want, strings.Split(c.branches, " "))
		if e.Ref != c.want || ok != (c.want != isle.Ref{}) {
			t.Errorf("of %s it is %v, %v", c.branches, e.Ref, ok)
		}
	}

	if why := m.Unlike(feature, want); why != "" {
		t.Fatalf("it can't be copied: %s", why)
	}
	req := forkOf("shop-feature")
	req.Name, req.Branch = "shop-new", "new"
	fork := mustFork(t, m, req)[0].Environment
	if fork.Branch != "new" || fork.Commit != feature.Commit || fork.Repository != "repository" || w.read(m, fork.Ref) != "feature's" {
		t.Errorf("the fork is %+v", fork)
	}
	if why := m.Unlike(feature, want); !strings.Contains(why, "there already") {
		t.Errorf("while it is there: %q", why)
	}
	mustDown(t, m, fork.Ref, false)
	if why := m.Unlike(feature, want); !strings.Contains(why, "volumes are kept") {
		t.Errorf("with volumes of its own: %q", why)
	}
	other := of(shop("shop-third"), "third", "b")
	other.Spec.Limits.PIDs++
	if why := m.Unlike(feature, other); !strings.Contains(why, "environment file") {
		t.Errorf("of another file: %q", why)
	}
	other = of(shop("shop-third"), "third", "b")
	other.Images["db"] = img("newer")
	if why := m.Unlike(feature, other); why != "the packages of db differ" {
		t.Errorf("of other packages: %q", why)
	}
}

func TestOnlyCopiedFilesAndWhatIsMadeOfThemMayDiffer(t *testing.T) {
	// Layers are written KIND:CONTENT.
	of := func(layers string) image.Image {
		out := image.Image{Format: 1, Architecture: "amd64"}
		for l := range strings.FieldsSeq(layers) {
			kind, _, _ := strings.Cut(l, ":")
			out.Layers = append(out.Layers, image.Layer{Digest: isle.DigestOf([]byte(l)), Kind: kind})
		}
		return out
	}
	for _, c := range []struct{ from, to, want string }{
		{"packages:1 system:1 copy:1 run:1 system:2", "packages:1 system:1 copy:1 run:1 system:2", ""},
		{"packages:1 system:1 copy:1 run:1 system:2", "packages:1 system:1 copy:2 run:2 system:3", ""},
		{"packages:1 copy:1 copy:2", "packages:1 copy:1 copy:3", ""},
		{"packages:1 system:1", "packages:2 system:1", "packages"},
		{"packages:1 system:1", "packages:1 system:2", "packages"},
		{"packages:1 copy:1", "packages:2 copy:2", "packages"},
		{"packages:1 run:1", "packages:1 run:2", "steps"},
		{"packages:1 run:1 copy:1", "packages:1 run:2 copy:2", "steps"},
		{"packages:1 copy:1", "packages:1", "steps"},
		{"packages:1 copy:1", "packages:1 run:1", "steps"},
	} {
		if got := differs(of(c.from), of(c.to)); got != c.want {
			t.Errorf("%s and %s differ in %q, not %q", c.from, c.to, got, c.want)
		}
	}
	if got := differs(of("packages:1"), image.Image{}); got == "" {
		t.Error("no image is like one")
	}
}
