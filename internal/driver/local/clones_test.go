package local

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"isle"
	"isle/internal/environment"
)

// A world is volumes and what each should hold: the content of its files. One of
// them may be mounted by a launch.
type world struct {
	*bench
	rand    *rand.Rand
	holds   map[isle.ID]map[string]string
	running *environment.Launch
	mounted isle.ID
}

// one is some volume; "" where there is none that fits.
func (w *world) one(fits func(isle.ID) bool) isle.ID {
	ids := slices.DeleteFunc(slices.Sorted(maps.Keys(w.holds)), func(id isle.ID) bool { return !fits(id) })
	if len(ids) == 0 {
		return ""
	}
	return ids[w.rand.IntN(len(ids))]
}

func (w *world) idle(id isle.ID) bool { return id != w.mounted }
func (w *world) any(isle.ID) bool     { return true }

// inside calls fn with the folder of a volume, as the launch sees it that has it
// mounted, or else mounted for the call.
func (w *world) inside(id isle.ID, fn func(dir string) error) {
	w.t.Helper()
	run := func() error {
		return inPrivateMounts(w.private, w.hide, func() error {
			if err := os.Mkdir("v", 0o755); err != nil {
				return err
			}
			if err := w.volumes.attach(w.t.Context(), id, "v", nil); err != nil {
				return err
			}
			return fn(filepath.Join("v", volumeRoot))
		})
	}
	if id == w.mounted {
		dir := fmt.Sprintf("/proc/%d/root/data", w.pid(w.running.Instance, w.running.ID))
		run = func() error {
			return onOwnThread(func() error { return asOwner(testUIDs, func() error { return fn(dir) }) })
		}
	}
	if err := run(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) write() {
	id, name := w.one(w.any), fmt.Sprint("f", w.rand.IntN(6))
	content := make([]byte, w.rand.IntN(300<<10))
	for i := range content {
		content[i] = byte(w.rand.Uint32())
	}
	w.inside(id, func(dir string) error { return os.WriteFile(filepath.Join(dir, name), content, 0o644) })
	w.holds[id][name] = string(content)
}

func (w *world) clone() {
	from, to := w.one(w.any), isle.NewID()
	if from == w.mounted || w.rand.IntN(3) == 0 {
		if _, err := w.Capture(w.t.Context(), environment.Capture{Instance: w.running.Instance, Volumes: []environment.Clone{{From: from, To: to}}}); err != nil {
			w.t.Fatal(err)
		}
	} else if _, err := w.volumes.Clone(w.t.Context(), from, to); err != nil {
		w.t.Fatal(err)
	}
	w.sound(to)
	w.holds[to] = maps.Clone(w.holds[from])
	w.check(to)
}

func (w *world) delete() {
	id := w.one(w.idle)
	if id == "" {
		return
	}
	if err := w.volumes.Delete(w.t.Context(), id); err != nil {
		w.t.Fatal(err)
	}
	delete(w.holds, id)
}

// relaunch gives the launch's place to one with another volume.
func (w *world) relaunch() {
	if err := w.Kill(w.t.Context(), w.running.Instance, w.running.ID); err != nil {
		w.t.Fatal(err)
	}
	w.launch(w.one(w.any))
}

func (w *world) launch(id isle.ID) {
	instance := isle.NewID()
	if w.running != nil {
		instance = w.running.Instance
	}
	l := w.launchOf(instance)
	l.Volumes = []environment.Mount{{Volume: id, Path: "/data"}}
	w.up(&l)
	w.report(l)
	w.running, w.mounted = &l, id
	w.inside(id, func(dir string) error { return nil })
}

// check compares a volume with what it should hold.
func (w *world) check(id isle.ID) {
	w.t.Helper()
	got := map[string]string{}
	w.inside(id, func(dir string) error {
		entries, err := os.ReadDir(dir)
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				return err
			}
			got[e.Name()] = string(b)
		}
		return err
	})
	if !maps.Equal(got, w.holds[id]) {
		w.t.Errorf("volume %s holds %d files, and not the %d that were written to it", id, len(got), len(w.holds[id]))
	}
}

func TestEveryCloneHoldsItsOwnBytesWhateverIsDone(t *testing.T) {
	install(t, "mke2fs", "mkfs.xfs")
	for name, kinds := range map[string][]storeKind{"store": storeKinds(), "copies": nil} {
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			w := &world{bench: storeBench(t, kinds...), rand: rand.New(rand.NewPCG(seed, 0)), holds: map[isle.ID]map[string]string{}}
			for range 2 {
				w.holds[w.volume(16<<20)] = map[string]string{}
			}
			w.launch(w.one(w.any))
			steps := []func(){w.write, w.write, w.write, w.clone, w.clone, w.delete, w.relaunch}
			for range 60 {
				if steps[w.rand.IntN(len(steps))](); t.Failed() {
					return
				}
			}
			for id := range w.holds {
				w.check(id)
			}
			ids, err := w.volumes.List(t.Context())
			if err != nil || !slices.Equal(ids, slices.Sorted(maps.Keys(w.holds))) {
				t.Errorf("there are %v, %v", ids, err)
			}
		})
	}
}
