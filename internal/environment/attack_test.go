package environment

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/spec"
)

// What an error says is read by whoever forks, what an entry says by whoever may
// read the log of the other stage, and neither need be allowed to see the data.
func TestWhatAForkOfAnotherStageSaysIsToldToNobody(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*UpRequest)
		says   []string
	}{
		"on_fork fails":   {func(r *UpRequest) { r.Spec.Services[1].OnFork = []string{"refuse"} }, []string{"no seed"}},
		"a service fails": {func(r *UpRequest) { r.Spec.Services[0].Command = []string{"fail"} }, []string{"boom"}},
		"a check fails": {func(r *UpRequest) {
			r.Spec.Services[0].Command = []string{"never"}
			r.Spec.Services[0].Healthcheck = &spec.Healthcheck{TCP: 1, Start: 100 * time.Millisecond}
		}, []string{"Godot", "connection refused"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			m := w.serve(nil)
			req := reseeds("shop", "reseed")
			c.change(&req)
			m.Up(t.Context(), root, req, nil) // what fails is copied too
			w.mu.Lock()
			before := len(w.entries)
			w.mu.Unlock()
			for stage, stays := range map[string]bool{"testing": true, "staging": false} {
				var said strings.Builder
				copied := forkOf("shop")
				copied.Stage = stage
				_, err := m.Fork(t.Context(), root, copied, func(p Progress) {
					e, _ := m.Get(t.Context(), isle.Ref{Name: "shop-f1", Stage: stage})
					fmt.Fprintln(&said, p, e.Trouble, e.Services)
				})
				if err == nil {
					t.Fatal("it came up")
				}
				fmt.Fprintln(&said, err)
				w.mu.Lock()
				for _, e := range w.entries[before:] {
					if strings.HasSuffix(e.Environment, "@"+stage) {
						fmt.Fprintln(&said, e.Summary, e.Details)
					}
				}
				w.mu.Unlock()
				for _, word := range c.says {
					if strings.Contains(said.String(), word) != stays {
						t.Errorf("in stage %s what is said has %q, or lacks it: %s", stage, word, said.String())
					}
				}
			}
		})
	}
}

func TestNobodyGetsTheUidsOfWhatHasNotEnded(t *testing.T) {
	w := newWorld(t)
	m := w.serve(spares(1))
	free := func(instance isle.ID, base uint32) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.pickUIDs(instance) == base
	}
	stuck := func(err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.stuck = err
	}
	ready(t, m, spec.Container, 1)
	w.mu.Lock()
	spare := w.stocks[0]
	w.full, w.stuck = errors.New("no space left"), errors.New("a process does not end")
	w.mu.Unlock()
	if _, err := m.Up(t.Context(), root, shop("shop"), nil); err == nil {
		t.Fatal("an environment came up that could not be recorded")
	}
	if free(spare.Shared.Instance, spare.UIDBase) {
		t.Error("the uids of a spare that could not be removed are free")
	}
	w.fullLog(nil)
	stuck(nil)
	before := mustUp(t, m, shop("shop")).Environment
	mustSnapshot(t, m, before.Ref, SnapshotRequest{Tag: "good"})
	stuck(errors.New("a process does not end"))
	after, err := m.RestoreTo(t.Context(), root, before.Ref, RestoreRequest{At: "good"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if free(before.Instance, before.UIDBase) {
		t.Error("the uids of what a restore took the place of are free, and it has not ended")
	}
	stuck(nil)
	if _, err := m.RestoreTo(t.Context(), root, before.Ref, RestoreRequest{At: "good"}, nil); err != nil {
		t.Fatal(err)
	}
	if e := after.Environment; !free(e.Instance, e.UIDBase) {
		t.Error("the uids of what has ended are taken still")
	}
	// A replacement that does not come up.
	bad := shop("bad")
	bad.Spec.Services[0].Command = []string{"fail"}
	m.Up(t.Context(), root, bad, nil)
	mustSnapshot(t, m, bad.Ref, SnapshotRequest{Tag: "bad"})
	stuck(errors.New("a process does not end"))
	if _, err := m.RestoreTo(t.Context(), root, before.Ref, RestoreRequest{At: "bad"}, nil); err == nil {
		t.Fatal("it came up")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.leaving) != 2 {
		t.Errorf("the uids of %v are taken", m.leaving)
	}
}

// The kernel of a sandbox may be in the hands of whoever is inside: one that does
// not answer has its launch fail, and nobody else waits for it.
func TestASandboxThatDoesNotAnswerKeepsNobodysTurn(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	m.patience = 50 * time.Millisecond
	req := shop("shop")
	req.Spec.Services[0].Command = []string{"mute sandbox"}
	_, err := m.Up(t.Context(), root, req, nil)
	wantCode(t, err, isle.Failed, "service web could not be launched", "did not answer within 50ms")
	req = strong(shop("other"))
	req.Spec.Services[0].Command = []string{"stuck"}
	mustUp(t, m, req)
	_, err = m.Fork(t.Context(), root, forkOf("other"), nil)
	wantCode(t, err, isle.Failed, "was taken away", "did not answer within 50ms")
	w.noMemory(t)
	if len(m.launches) > 0 {
		t.Errorf("%d turns are taken", len(m.launches))
	}
}

// What is in memory without its volume could not go on.
func TestAServiceWhoseSetupEndsDuringACaptureIsStartedAnew(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	e := mustUp(t, m, strong(shop("shop"))).Environment
	v, _ := m.volume(e.Ref, "db", "/data")
	v.Ready = false
	m.remember([]Volume{v}, nil)
	o, err := m.origin(t.Context(), forkOf("shop"))
	if err != nil {
		t.Fatal(err)
	}
	defer o.release()
	v.Ready = true
	m.remember([]Volume{v}, nil)
	if why := m.restless(o); why != "setup of service db has not ended" {
		t.Errorf("its memory is gone on from without its volume: %q", why)
	}
}

func TestTheLogSaysWhatWasCopiedFromWhereAndWhatItReplaced(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	src := mustUp(t, m, strong(reseeds("shop", "reseed"))).Environment
	made := mustSnapshot(t, m, src.Ref, SnapshotRequest{Tag: "good"})
	entry := func(action isle.Action) audit.Entry {
		t.Helper()
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, e := range slices.Backward(w.entries) {
			if e.Action == action && e.Kind != audit.Outcome && e.Actor == root {
				return e
			}
		}
		t.Fatalf("no entry of %s", action)
		return audit.Entry{}
	}
	has := func(action isle.Action, details map[string]string) {
		t.Helper()
		if e := entry(action); !maps.Equal(e.Details, details) {
			t.Errorf("%s: %v, not %v", action, e.Details, details)
		}
	}
	fork := mustFork(t, m, forkOf("shop"))[0].Environment
	has(isle.ActionEnvironmentFork, map[string]string{"to": "shop-f1", "memory": "true"})
	far := forkOf("shop")
	far.Stage = "staging"
	mustFork(t, m, far)
	has(isle.ActionEnvironmentFork, map[string]string{"to": "shop-f1@staging"})
	has(isle.ActionVolumeCross, map[string]string{"to": "shop-f1@staging"})
	if e := entry(isle.ActionVolumeCross); e.Resource != resource(src.Ref) || e.Instance != src.Instance {
		t.Errorf("%+v", e)
	}
	if _, err := m.RestoreTo(t.Context(), root, fork.Ref, RestoreRequest{At: "good"}, nil); err != nil {
		t.Fatal(err)
	}
	has(isle.ActionEnvironmentRestore, map[string]string{"snapshot": string(made.Digest), "memory": "true", "project": "shop", "of": "shop", "replaces": string(fork.Instance)})
}
