package environment

import (
	"bytes"
	"strings"
	"testing"

	"isle"
	"isle/internal/ledger/ledgertest"
	"isle/internal/seal"
	"isle/internal/snapshot"
	"isle/internal/spec"
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

func TestWhatAFileSaysOfItselfIsNoLineage(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	e := mustUp(t, m, shop("shop")).Environment
	first := mustSnapshot(t, m, e.Ref, SnapshotRequest{})
	here := m.cfg.Snapshots.(*snapshot.Snapshots)

	key, err := seal.NewKey("mallory", bytes.Repeat([]byte{2}, 32))
	if err != nil {
		t.Fatal(err)
	}
	there, err := snapshot.Open(t.Context(), snapshot.Config{Dir: t.TempDir(), Volumes: (*fakeVolumes)(&life{world: w}), Store: ledgertest.New(), Key: key})
	if err != nil {
		t.Fatal(err)
	}
	d, err := there.Draft()
	if err != nil {
		t.Fatal(err)
	}
	x := first.Manifest
	x.Volumes, x.Message, x.Release = nil, "the next one", string(isle.DigestOf([]byte("a release")))
	x.Isolation, x.Services = "container", x.Services[:1]
	x.Spec = spec.File{Name: "shop", Isolation: "container", Limits: spec.Limits{CPUs: 1, Memory: 1 << 30, PIDs: 99}, Services: []spec.Service{
		{Name: x.Services[0].Name, Suite: "bookworm", Restart: "no"},
	}}
	forged, err := d.Seal(t.Context(), root, x)
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := there.Export(t.Context(), string(forged.Digest), &file); err != nil {
		t.Fatal(err)
	}
	if _, err := here.Import(t.Context(), root, &file, func(snapshot.Manifest) error { return nil }); err != nil {
		t.Fatal(err)
	}
	o, err := m.use(t.Context(), isle.Ref{}, string(forged.Digest))
	if err != nil {
		t.Fatal(err)
	}
	o.release()
	if o.rec.Release != "" {
		t.Errorf("a copy of it would run the release %s", o.rec.Release.Short())
	}
	second := mustSnapshot(t, m, e.Ref, SnapshotRequest{})
	if second.Manifest.Parent != first.Digest {
		t.Errorf("a snapshot follows %s, which somebody has brought along", second.Manifest.Parent.Short())
	}
	all, err := m.Lineage(t.Context(), anybody)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if r.ID == string(forged.Digest) && r.Parent != "" {
			t.Errorf("it is shown below %s", r.Parent)
		}
	}
}
