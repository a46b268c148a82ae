package environment

import (
	"strings"
	"testing"

	"isle"
)

func anybody(string, isle.Ref, string) bool { return true }

// draw is a lineage in lines, children below parents.
func draw(t *testing.T, m *Manager, visible func(string, isle.Ref, string) bool) string {
	t.Helper()
	all, err := m.Lineage(t.Context(), visible)
	if err != nil {
		t.Fatal(err)
	}
	depth := map[string]int{"": -1}
	var b strings.Builder
	for _, r := range all {
		d, ok := depth[r.Parent]
		if !ok {
			t.Fatalf("%+v comes before its parent", r)
		}
		depth[r.ID] = d + 1
		b.WriteString(strings.Repeat(" ", d+1) + r.Kind[:1] + ":" + r.Ref.String())
		if r.Gone {
			b.WriteString(" gone")
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestALineageGoesOnOverWhatIsGone(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	mustUp(t, m, shop("shop"))
	mustFork(t, m, ForkRequest{From: refNamed("shop"), Name: "a"})
	mustFork(t, m, ForkRequest{From: refNamed("a"), Name: "b"})
	mustSnapshot(t, m, refNamed("b"), SnapshotRequest{Tag: "good"})
	mustFork(t, m, ForkRequest{At: "good", Name: "c"})
	want := "e:shop\n e:a\n  e:b\n   s:b\n    e:c\n"
	if got := draw(t, m, anybody); got != want {
		t.Errorf("%s is not\n%s", got, want)
	}
	mustDown(t, m, refNamed("a"), true)
	mustDown(t, m, refNamed("b"), true)
	want = "e:shop\n e:a gone\n  e:b gone\n   s:b\n    e:c\n"
	if got := draw(t, m, anybody); got != want {
		t.Errorf("%s is not\n%s", got, want)
	}
	if got, want := draw(t, m, func(_ string, ref isle.Ref, _ string) bool { return ref.Name != "a" }), "e:b gone\n s:b\n  e:c\ne:shop\n"; got != want {
		t.Errorf("%s is not\n%s", got, want)
	}
	if _, err := w.life.taken.Remove(t.Context(), root, "good", true); err != nil {
		t.Fatal(err)
	}
	mustDown(t, m, refNamed("shop"), true)
	want = "e:shop gone\n e:a gone\n  e:b gone\n   s:b gone\n    e:c\n"
	if got := draw(t, m, anybody); got != want {
		t.Errorf("%s is not\n%s", got, want)
	}
}
