package release

import (
	"strings"
	"testing"

	"isle"
	"isle/internal/policy"
	"isle/internal/spec"
)

// reaches gives what a test says to every stage, from now on.
func (w *world) reaches(may ...string) {
	w.config.Reach = func(_, stage string, f spec.File) policy.Reach {
		var out policy.Reach
		for _, name := range f.Uses {
			out.Doors = append(out.Doors, policy.Door{Name: "connection:" + name, May: may, Terms: map[string]string{"address": "db.internal"}})
		}
		return out
	}
	w.open()
}

// drift is what is found of the shop in a stage.
func (w *world) drift(stage string, rel Release) (out []string) {
	w.t.Helper()
	found, err := w.Drift(w.t.Context(), Running{Ref: isle.Ref{Name: "shop", Stage: stage}, Project: "shop", Release: rel.Digest, Spec: rel.Manifest.Spec, Images: rel.Manifest.Images()}, false)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range found {
		out = append(out, f.String())
	}
	return out
}

func TestWhatAStageMayDoIsRecordedWhenItIsPromotedAndAnythingElseIsDrift(t *testing.T) {
	w := newWorld(t, "here")
	w.reaches("postgres:select")
	rel, next := w.create(shop(t, "")), w.another()
	for _, stage := range order[:2] {
		if _, err := w.promote(stage, string(rel.Digest)); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.drift("staging", rel); got != nil {
		t.Error(got)
	}
	entries := w.store.Entries()
	if e := entries[len(entries)-1]; !isle.Digest(e.Details["reach"]).Valid() || !strings.Contains(e.Details["reach_changed"], "connection:orders-db: postgres:select is allowed") {
		t.Errorf("%+v", e.Details)
	}
	w.reaches("postgres:select", "postgres:write") // and the server starts again
	if got := w.drift("staging", rel); len(got) != 1 || got[0] != "roles: connection:orders-db: postgres:write is allowed, and was refused when it was promoted" {
		t.Error(got)
	}
	was, _ := w.Stage("shop", "staging")

	// To promote it again records anew, and is nothing else.
	if p, err := w.promote("staging", ""); err != nil || p.Same || len(p.Reaches) != 1 {
		t.Fatal(p, err)
	}
	if got := w.drift("staging", rel); got != nil {
		t.Error(got)
	}
	if is, _ := w.Stage("shop", "staging"); !is.Since.Equal(was.Since) || len(is.Earlier) != len(was.Earlier) || is.Before != was.Before || is.Reach == was.Reach {
		t.Errorf("it points at the same since then:\n%+v\n%+v", was, is)
	}

	// What was agreed to with another reach is not promoted.
	seen := policy.Reach{}.Digest()
	_, err := w.Promote(t.Context(), alice, Promotion{Project: "shop", To: "testing", Order: order, Release: string(next.Digest), Reach: &seen}, rel.Digest)
	if code(err) != isle.Conflict || !strings.Contains(err.Error(), "policy was changed") {
		t.Error(err)
	}
}

func TestARollbackGoesBackToWhatWasAgreedTo(t *testing.T) {
	w := newWorld(t, "here")
	w.reaches("postgres:select")
	rel, next := w.create(shop(t, "")), w.another()
	if _, err := w.promote("testing", string(rel.Digest)); err != nil {
		t.Fatal(err)
	}
	w.reaches("postgres:select", "postgres:write")
	if _, err := w.promote("testing", string(next.Digest)); err != nil {
		t.Fatal(err)
	}
	if n := len(w.Releases.reaches); n != 2 {
		t.Errorf("%d reaches are kept, and both are gone back to", n)
	}
	if err := w.Rollback(t.Context(), alice, Rollback{Project: "shop", Stage: "testing"}, next.Digest); err != nil {
		t.Fatal(err)
	}
	if got := w.drift("testing", rel); len(got) != 1 || !strings.Contains(got[0], "postgres:write is allowed, and was refused") {
		t.Error(got)
	}
	w.open()
	if n := len(w.Releases.reaches); n != 1 || w.Err() != nil {
		t.Errorf("%d reaches are kept, and one is of use: %v", n, w.Err())
	}
}
