package environment

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"isle"
	"isle/internal/snapshot"
)

func mustSnapshot(t *testing.T, m *Manager, ref isle.Ref, req SnapshotRequest) snapshot.Snapshot {
	t.Helper()
	s, err := m.Snapshot(t.Context(), root, ref, req)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestARestoreBringsBackWhatWasAndKeepsTheName(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := shop("shop")
	req.Branch = "main"
	before := mustUp(t, m, req).Environment
	w.write(m, before.Ref, "a")
	first := mustSnapshot(t, m, before.Ref, SnapshotRequest{Message: "before", Tag: "good"})
	w.write(m, before.Ref, "b")
	second := mustSnapshot(t, m, before.Ref, SnapshotRequest{})
	if first.Manifest.Parent != "" || second.Manifest.Parent != first.Digest || first.Manifest.Message != "before" || first.Manifest.Author != root {
		t.Errorf("%+v\n%+v", first.Manifest, second.Manifest)
	}
	var said []string
	r, err := m.RestoreTo(t.Context(), root, before.Ref, RestoreRequest{At: "good"}, func(p Progress) { said = append(said, p.Service+" "+p.Step+" "+p.State) })
	if err != nil {
		t.Fatal(err)
	}
	e := r.Environment
	if e.Instance == before.Instance || e.Ref != before.Ref || e.Branch != "main" || e.Origin != first.Digest || e.Staged || e.Fork || e.Generation == 0 {
		t.Errorf("%+v", e)
	}
	if !slices.Contains(said, "db health done") {
		t.Errorf("said %q", said)
	}
	w.checkRunning(t, m, 1)
	if got := w.read(m, before.Ref); got != "a" {
		t.Errorf("it holds %q", got)
	}
	if x := w.launches[e.Services[0].Launch]; x.Hostname != "db" || x.Generation != e.Generation {
		t.Errorf("%+v", x)
	}
	third := mustSnapshot(t, m, before.Ref, SnapshotRequest{})
	if third.Manifest.Parent != first.Digest {
		t.Error("its snapshots follow another one")
	}
	m.Close()
	m = w.serve(nil)
	w.checkRunning(t, m, 1)
	if got := w.read(m, before.Ref); got != "a" {
		t.Errorf("it holds %q", got)
	}
	if n := len(w.files); n != 4 { // its own, and the snapshots'
		t.Errorf("%d volumes are there", n)
	}
	// What is down is brought back too, instead of the volumes that are kept.
	mustDown(t, m, before.Ref, false)
	if _, err := m.RestoreTo(t.Context(), root, before.Ref, RestoreRequest{At: second.Digest.Short()}, nil); err != nil {
		t.Fatal(err)
	}
	if got := w.read(m, before.Ref); got != "ab" || len(m.volumesOf(before.Ref)) != 1 {
		t.Errorf("it holds %q", got)
	}
}

func TestARestoreThatDoesNotComeUpLeavesWhatServes(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	e := mustUp(t, m, shop("shop")).Environment
	w.write(m, e.Ref, "a")
	bad := shop("bad")
	bad.Spec.Services[0].Command = []string{"fail"}
	m.Up(t.Context(), root, bad, nil)
	mustSnapshot(t, m, bad.Ref, SnapshotRequest{Tag: "broken"}) // of what fails, too
	mustDown(t, m, bad.Ref, true)
	_, err := m.RestoreTo(t.Context(), root, e.Ref, RestoreRequest{At: "broken"}, nil)
	wantCode(t, err, isle.Failed, "is as it was", "service web ended with exit code 1", "boom")
	w.checkRunning(t, m, 1)
	now, _ := m.Get(t.Context(), e.Ref)
	if now.Instance != e.Instance || w.read(m, e.Ref) != "a" || len(m.staged) > 0 || len(w.volumes) != 1 {
		t.Errorf("%+v", now)
	}
	w.noSpace = isle.Errorf(isle.Exhausted, "no space left")
	_, err = m.RestoreTo(t.Context(), root, e.Ref, RestoreRequest{At: "broken"}, nil)
	wantCode(t, err, isle.Exhausted, "no space left")
	w.checkRunning(t, m, 1)
	if len(w.volumes) != 1 || len(w.files) != 2 {
		t.Error("volumes are left")
	}
	_, err = m.RestoreTo(t.Context(), root, isle.Ref{Name: "shop", Stage: "staging"}, RestoreRequest{At: "broken"}, nil)
	wantCode(t, err, isle.Refused, "is of stage testing")
	_, err = m.RestoreTo(t.Context(), root, e.Ref, RestoreRequest{At: "missing"}, nil)
	wantCode(t, err, isle.NotFound)
	other := shop("other")
	other.Project = "other"
	mustUp(t, m, other)
	w.noSpace = nil
	_, err = m.RestoreTo(t.Context(), root, other.Ref, RestoreRequest{At: "broken"}, nil)
	wantCode(t, err, isle.Conflict, "of project other")
}

func TestWhatIsMadeOfASnapshotSkipsNoOnFork(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	e := mustUp(t, m, reseeds("shop", "reseed")).Environment
	mustSnapshot(t, m, e.Ref, SnapshotRequest{Tag: "good"})
	if _, err := m.RestoreTo(t.Context(), root, e.Ref, RestoreRequest{At: "good"}, nil); err != nil || len(w.executed) > 0 {
		t.Fatal("on_fork ran where an environment went back to what it was:", err)
	}
	mustFork(t, m, ForkRequest{At: "good", Name: "copy"})
	if len(w.executed) != 1 {
		t.Error("on_fork did not run in a fork of a snapshot")
	}
	if _, err := m.RestoreTo(t.Context(), root, isle.Ref{Name: "copy", Stage: "testing"}, RestoreRequest{At: "good"}, nil); err != nil || len(w.executed) != 2 {
		t.Error("on_fork did not run in what took over another one's state:", err)
	}
	mustDown(t, m, e.Ref, true) // a snapshot outlives its environment
	if f := mustFork(t, m, ForkRequest{At: "good"})[0].Environment; f.Ref.Name != "shop-f1" || f.ParentRef != e.Ref {
		t.Errorf("%+v", f)
	}
	mustUp(t, m, reseeds("shop", "refuse"))
	m.Fork(t.Context(), root, ForkRequest{From: e.Ref, Name: "shut"}, nil)
	_, err := m.Snapshot(t.Context(), root, isle.Ref{Name: "shut", Stage: "testing"}, SnapshotRequest{})
	wantCode(t, err, isle.Conflict, "on_fork has not succeeded")
}

// Each environment holds exactly what was written to it and to what it was
// copied from before that, after anything, in any order, wherever the server
// dies.
func TestEachEnvironmentHoldsExactlyItsOwnWrites(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			newHistory(t, seed).play(30) // every other one of the class that has memory
		})
	}
}

// A history is a random sequence of what happens to environments, with what each
// of them must hold.
type history struct {
	t     *testing.T
	w     *world
	m     *Manager
	r     *rand.Rand
	armed atomic.Pointer[string] // the fault point to die at
	holds map[string]string      // environment -> content
	kept  map[string]string      // of those that are down
	snaps map[isle.Digest]string

	memory bool // copies go on from memory
}

func (h *history) shop(name string) UpRequest {
	if h.memory {
		return strong(reseeds(name, "reseed"))
	}
	return reseeds(name, "reseed")
}

func newHistory(t *testing.T, seed uint64) *history {
	h := &history{t: t, w: newWorld(t), r: rand.New(rand.NewPCG(seed, 1)), holds: map[string]string{}, kept: map[string]string{}, snaps: map[isle.Digest]string{}}
	h.memory = seed%2 == 1
	h.start()
	mustUp(t, h.m, h.shop("e0"))
	h.holds["e0"] = ""
	return h
}

func (h *history) start() {
	h.m = h.w.serve(func(c *Config) {
		lf := h.w.life
		c.Grace = 10 * time.Millisecond
		c.Fault = func(at string) {
			if p := h.armed.Load(); p != nil && *p == at {
				lf.crash()
			}
		}
	})
}

func refNamed(name string) isle.Ref { return isle.Ref{Name: name, Stage: "testing"} }

func pick[V any](r *rand.Rand, from map[string]V) string {
	names := sortedNames(from)
	if len(names) == 0 {
		return ""
	}
	return names[r.IntN(len(names))]
}

func (h *history) play(steps int) {
	for i := range steps {
		crash := h.r.IntN(4) == 0
		if crash {
			points := FaultPoints()
			h.armed.Store(&points[h.r.IntN(len(points))])
		}
		h.step(i)
		if crash {
			h.armed.Store(nil)
			h.w.life.crash()
			h.m.Close()
			h.start()
		}
		h.check(crash)
	}
}

// step does one thing. What a crash makes of it is one of two: it happened, or
// it did not.
func (h *history) step(i int) {
	ctx, e := h.t.Context(), pick(h.r, h.holds)
	switch h.r.IntN(6) {
	case 0, 1:
		if e != "" {
			text := fmt.Sprintf("%d;", i)
			h.w.write(h.m, refNamed(e), text)
			h.holds[e] += text
		}
	case 2:
		if e != "" && len(h.holds) < 6 {
			req := ForkRequest{From: refNamed(e), N: 1 + h.r.IntN(2), Name: fmt.Sprintf("e%d", i)}
			h.m.Fork(ctx, root, req, nil)
			for _, name := range []string{req.Name, req.Name + "-1", req.Name + "-2"} {
				if h.recorded(name) {
					h.holds[name] = h.holds[e]
				}
			}
		}
	case 3:
		if e != "" {
			if s, err := h.m.Snapshot(ctx, root, refNamed(e), SnapshotRequest{}); err == nil {
				h.snaps[s.Digest] = h.holds[e]
			}
		}
	case 4:
		if e != "" && len(h.snaps) > 0 {
			all := []isle.Digest{}
			for d := range h.snaps {
				all = append(all, d)
			}
			slices.Sort(all)
			d := all[h.r.IntN(len(all))]
			before := h.instance(e)
			h.m.RestoreTo(ctx, root, refNamed(e), RestoreRequest{At: string(d)}, nil)
			if h.instance(e) != before {
				h.holds[e] = h.snaps[d]
			}
		}
	case 5:
		switch kept := pick(h.r, h.kept); {
		case kept != "" && h.r.IntN(2) == 0:
			h.m.Up(ctx, root, h.shop(kept), nil)
			h.holds[kept] = h.kept[kept]
			delete(h.kept, kept)
		case e != "":
			volumes := h.r.IntN(2) == 0
			h.m.Down(ctx, root, refNamed(e), volumes, nil)
			if h.recorded(e) {
				h.kept[e] = h.holds[e]
			}
			delete(h.holds, e)
		}
	}
}

// recorded says whether volumes of that name are in the store, made.
func (h *history) recorded(name string) bool {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	for _, v := range h.w.volumes {
		if v.Ref == refNamed(name) && v.For == "" && v.Ready {
			return true
		}
	}
	return false
}

// instance is that which serves under a name, in the store.
func (h *history) instance(name string) isle.ID {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	for _, e := range h.w.envs {
		if e.Ref == refNamed(name) && !e.Staged {
			return e.Instance
		}
	}
	return ""
}

// check compares what is with what should be. A teardown that a crash cut off
// may have deleted volumes or not.
func (h *history) check(crashed bool) {
	h.t.Helper()
	if crashed {
		for name := range h.kept {
			if !h.recorded(name) {
				delete(h.kept, name)
			}
		}
		all, _ := h.m.List(h.t.Context())
		for _, e := range all {
			if text, ok := h.kept[e.Ref.Name]; ok { // the teardown did not begin, or up did
				h.holds[e.Ref.Name] = text
				delete(h.kept, e.Ref.Name)
			}
		}
		for name := range h.holds {
			if h.instance(name) == "" { // up did not begin
				h.kept[name] = h.holds[name]
				delete(h.holds, name)
				if !h.recorded(name) {
					delete(h.kept, name)
				}
			}
		}
	}
	h.w.checkRunning(h.t, h.m, len(h.holds))
	for name, want := range h.holds {
		if got := h.w.read(h.m, refNamed(name)); got != want {
			h.t.Fatalf("%s holds %q, not %q", name, got, want)
		}
	}
	for d := range h.snaps {
		if _, err := h.w.life.taken.Verify(h.t.Context(), string(d)); err != nil {
			h.t.Fatalf("snapshot %s: %v", d.Short(), err)
		}
	}
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.w.checkFiles(h.t)
	for _, v := range h.w.volumes {
		if v.For != "" {
			h.t.Fatal("a staged volume is left")
		}
	}
}

func TestNothingIsCapturedForATagThatIsTaken(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	ref := mustUp(t, m, shop("shop")).Environment.Ref
	mustSnapshot(t, m, ref, SnapshotRequest{Tag: "good"})
	captures := w.captures
	_, err := m.Snapshot(t.Context(), root, ref, SnapshotRequest{Tag: "good"})
	wantCode(t, err, isle.Conflict, "the tag good is on snapshot")
	if w.captures != captures {
		t.Error("it was stopped all the same")
	}
}
