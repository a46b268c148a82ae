package release

import (
	"slices"
	"testing"
	"time"

	"isle"
	"isle/internal/policy"
)

func TestOnlyWhatNoRuleKeepsAndNothingNamesIsCollected(t *testing.T) {
	w := newWorld(t, "here")
	now := w.config.Now()
	w.config.Now = func() time.Time { return now }
	var inUse isle.Digest
	w.config.InUse = func(d isle.Digest) []string {
		if d == inUse {
			return []string{"shop@testing"}
		}
		return nil
	}
	w.open()
	var all []Release
	for i := range 8 {
		req := shop(t, "")
		req.Spec.Limits.PIDs += i
		all = append(all, w.create(req))
		now = now.Add(24 * time.Hour)
	}
	stale := func(rules ...policy.Keep) (out []int) {
		for _, d := range w.Stale(func(project string) []policy.Keep { return rules }) {
			out = append(out, slices.IndexFunc(all, func(r Release) bool { return r.Digest == d }))
		}
		slices.Sort(out)
		return out
	}
	for _, c := range []struct {
		name  string
		rules []policy.Keep
		want  []int
	}{
		{"no rule", nil, nil},
		{"the last ones", []policy.Keep{{Last: 3}}, []int{0, 1, 2, 3, 4}},
		{"the young ones", []policy.Keep{{For: 36 * time.Hour}}, []int{0, 1, 2, 3, 4, 5, 6}},
		{"either", []policy.Keep{{For: 36 * time.Hour}, {Last: 2}}, []int{0, 1, 2, 3, 4, 5}},
	} {
		if got := stale(c.rules...); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}

	// What a stage points at and goes back to, what is marked, what runs, what
	// somebody keeps, and what a rule of a stage counts.
	for _, i := range []int{0, 1, 2, 3} {
		if _, err := w.promote("testing", string(all[i].Digest)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Rollback(t.Context(), alice, Rollback{Project: "shop", Stage: "testing"}, all[3].Digest); err != nil {
		t.Fatal(err)
	}
	inUse = all[4].Digest
	if _, err := w.Keep(t.Context(), alice, string(all[5].Digest), now.Add(90*24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	w.open()
	young := policy.Keep{For: time.Hour}
	if got := stale(young); !slices.Equal(got, []int{0, 6, 7}) {
		t.Error(got)
	}
	if got := stale(young, policy.Keep{Stages: []string{"testing"}, Last: 3}); !slices.Equal(got, []int{6, 7}) {
		t.Error(got)
	}
	if _, err := w.Remove(t.Context(), alice, string(all[5].Digest)); code(err) != isle.Conflict {
		t.Errorf("somebody keeps it: %v", err)
	}
	now = now.Add(91 * 24 * time.Hour)
	if got := stale(young); !slices.Equal(got, []int{0, 5, 6, 7}) {
		t.Error("its time is over:", got)
	}

	// What is named by the time that it would be removed stays.
	due := w.Stale(func(string) []policy.Keep { return []policy.Keep{young} })
	inUse = all[6].Digest
	if n, err := w.Collect(t.Context(), alice, due); err != nil || n != 3 {
		t.Error(n, err)
	}
	if _, err := w.Look(string(all[6].Digest)); err != nil {
		t.Error(err)
	}
	entries := w.store.Entries()
	if e := entries[len(entries)-1]; e.Action != isle.ActionReleaseRemove || e.Summary != "no rule keeps it, and nothing names it" {
		t.Errorf("%+v", e)
	}
}

func TestAReleaseIsKeptNoMoreOnceSomebodySaysSo(t *testing.T) {
	w := newWorld(t, "here")
	rel := w.create(shop(t, ""))
	if _, err := w.Keep(t.Context(), alice, string(rel.Digest), time.Time{}); code(err) != isle.NotFound {
		t.Error(err)
	}
	for _, until := range []time.Time{w.config.Now().Add(time.Hour), {}} {
		if _, err := w.Keep(t.Context(), alice, string(rel.Digest), until); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Remove(t.Context(), alice, string(rel.Digest)); err != nil {
		t.Error(err)
	}
}
