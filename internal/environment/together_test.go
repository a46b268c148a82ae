package environment

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"isle"
	"isle/internal/snapshot"
	"isle/internal/spec"
)

// TestWhateverIsDoneAtOnceNothingIsLeft does all at once what may be done to a
// few environments and snapshots, with callers that leave in the middle.
func TestWhateverIsDoneAtOnceNothingIsLeft(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	snapshots := m.cfg.Snapshots.(*snapshot.Snapshots)
	names := []string{"a", "b", "c", "d"}
	seed := uint64(time.Now().UnixNano())
	t.Logf("the seed is %d", seed)
	ref := func(r *rand.Rand) isle.Ref { return isle.Ref{Name: names[r.IntN(len(names))], Stage: "testing"} }
	taken := func(r *rand.Rand) string {
		all, err := snapshots.List()
		if err != nil || len(all) == 0 {
			return "none"
		}
		return string(all[r.IntN(len(all))].Digest)
	}
	acts := []func(ctx context.Context, r *rand.Rand) error{
		func(ctx context.Context, r *rand.Rand) error {
			req := shop(ref(r).Name)
			if r.IntN(2) == 0 {
				req = reseeds(req.Ref.Name, "reseed")
			}
			req.Project, req.Spec.Name = "shop", "shop"
			if r.IntN(2) == 0 {
				req.Spec.Isolation = spec.Gvisor // its copies go on from memory
			}
			_, err := m.Up(ctx, root, req, nil)
			return err
		},
		func(ctx context.Context, r *rand.Rand) error {
			return m.Down(ctx, root, ref(r), r.IntN(2) == 0, nil)
		},
		func(ctx context.Context, r *rand.Rand) error {
			req := ForkRequest{From: ref(r), Cold: r.IntN(2) == 0, OneShot: r.IntN(4) == 0}
			if r.IntN(3) > 0 {
				req.Name = ref(r).Name
			} else {
				req.N = 1 + r.IntN(2)
			}
			if r.IntN(4) == 0 {
				req.Stage = "staging"
			}
			_, err := m.Fork(ctx, root, req, nil)
			return err
		},
		func(ctx context.Context, r *rand.Rand) error {
			_, err := m.Snapshot(ctx, root, ref(r), SnapshotRequest{})
			return err
		},
		func(ctx context.Context, r *rand.Rand) error {
			_, err := m.RestoreTo(ctx, root, ref(r), RestoreRequest{At: taken(r)}, nil)
			return err
		},
		func(ctx context.Context, r *rand.Rand) error {
			_, err := m.Fork(ctx, root, ForkRequest{At: taken(r), Name: ref(r).Name}, nil)
			return err
		},
		func(ctx context.Context, r *rand.Rand) error {
			_, err := snapshots.Remove(ctx, root, taken(r), true)
			return err
		},
		func(_ context.Context, r *rand.Rand) error {
			m.PlanFork(ForkRequest{From: ref(r)})
			m.InUse(context.Background())
			_, err := m.Lineage(context.Background(), anybody)
			return err
		},
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	counts := map[string]int{}
	for i := range 8 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for range 40 {
				ctx, cancel := context.WithCancel(t.Context())
				if r.IntN(3) == 0 {
					time.AfterFunc(time.Duration(r.IntN(20))*time.Millisecond, cancel)
				}
				n := r.IntN(len(acts))
				err := acts[n](ctx, r)
				cancel()
				mu.Lock()
				counts[fmt.Sprintf("%d %s", n, code(err))]++
				mu.Unlock()
				if code(err) == isle.Internal && ctx.Err() == nil {
					t.Errorf("act %d: %v", n, err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(3 * time.Minute):
		t.Fatal("they wait for each other")
	}
	t.Log(counts)
	waitFor(t, "what goes on without its caller is over", func() bool {
		m.locks.mu.Lock()
		defer m.locks.mu.Unlock()
		return len(m.locks.refs) == 0
	})
	envs, _ := m.List(t.Context())
	for _, e := range envs {
		mustDown(t, m, e.Ref, true)
	}
	for _, kept := range m.Kept(t.Context()) {
		mustDown(t, m, kept, true)
	}
	list, err := snapshots.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if _, err := snapshots.Remove(t.Context(), root, string(s.Digest), true); err != nil {
			t.Error(err)
		}
	}
	waitFor(t, "nothing is left", func() bool {
		m.mu.Lock()
		staged, known := len(m.staged), len(m.volumes)
		m.mu.Unlock()
		m.locks.mu.Lock()
		held := len(m.locks.refs)
		m.locks.mu.Unlock()
		w.mu.Lock()
		defer w.mu.Unlock()
		return staged+known+held+len(w.sandboxes)+len(w.networks)+len(w.prepared)+len(w.envs)+len(w.volumes)+len(w.files) == 0
	})
	if left, err := os.ReadDir(m.cfg.Forks); err == nil && len(left) > 0 {
		t.Errorf("memory is left: %v", left)
	}
}

func code(err error) isle.Code {
	if err == nil {
		return ""
	}
	return isle.CodeOf(err)
}
