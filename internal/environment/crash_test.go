package environment

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"isle"
	"isle/internal/spec"
)

// A story is something that happens to an environment, in which a server may
// die at any step. It must not fail the test: what it asks for may be refused
// by the dead server.
type story struct {
	name   string
	points []string // that it passes
	before func(t *testing.T, m *Manager)
	act    func(t *testing.T, w *world, m *Manager)
}

func stories() []story {
	changed := func() UpRequest {
		req := shop("shop")
		req.Images["db"], req.Images["web"] = img("db 2"), img("web 2")
		return req
	}
	start := func(t *testing.T, m *Manager) { mustUp(t, m, shop("shop")) }
	return []story{
		{
			"up", []string{"up.begin", "up.recorded", "up.network", "up.prepared", "up.volume", "up.launching", "up.launched", "setup.done", "setup.recorded", "up.healthy", "up.concluding"},
			func(*testing.T, *Manager) {},
			func(t *testing.T, _ *world, m *Manager) { m.Up(t.Context(), root, shop("shop"), nil) },
		},
		{
			"replace", []string{"replace.begin", "replace.recorded", "replace.stopped", "up.network", "up.prepared", "up.launching", "up.launched", "up.healthy", "up.concluding"}, start,
			func(t *testing.T, _ *world, m *Manager) { m.Up(t.Context(), root, changed(), nil) },
		},
		{
			"down", []string{"down.recorded", "down.stopped", "down.network", "down.removed", "down.forgotten"}, start,
			func(t *testing.T, _ *world, m *Manager) {
				m.Down(t.Context(), root, shop("shop").Ref, false, nil)
			},
		},
		{
			"down --volumes", []string{"down.recorded", "down.stopped", "down.network", "down.removed", "down.volume", "down.forgotten"}, start,
			func(t *testing.T, _ *world, m *Manager) { m.Down(t.Context(), root, shop("shop").Ref, true, nil) },
		},
		{
			"delete volumes", []string{"volume.recorded", "volume.deleted"},
			func(t *testing.T, m *Manager) {
				mustUp(t, m, shop("shop"))
				mustDown(t, m, shop("shop").Ref, false)
			},
			func(t *testing.T, _ *world, m *Manager) { m.Down(t.Context(), root, shop("shop").Ref, true, nil) },
		},
		{
			"fork", []string{"fork.recorded", "fork.captured", "fork.copied", "up.network", "up.launching", "up.launched", "up.healthy", "fork.on_fork", "fork.opened", "up.concluding"},
			func(t *testing.T, m *Manager) { mustUp(t, m, reseeds("shop", "reseed")) },
			func(t *testing.T, _ *world, m *Manager) {
				req := forkOf("shop")
				req.N = 2
				m.Fork(t.Context(), root, req, nil)
			},
		},
		{
			"wake", []string{"fork.recorded", "fork.captured", "fork.copied", "up.network", "up.prepared", "fork.waking", "fork.restored", "fork.woken", "fork.on_fork", "fork.opened", "up.concluding"},
			func(t *testing.T, m *Manager) { mustUp(t, m, strong(reseeds("shop", "reseed"))) },
			func(t *testing.T, _ *world, m *Manager) {
				req := forkOf("shop")
				req.N = 2
				m.Fork(t.Context(), root, req, nil)
			},
		},
		{
			"restore memory", []string{"restore.recorded", "restore.copied", "up.network", "up.prepared", "fork.waking", "fork.restored", "fork.woken", "restore.up", "restore.swapped", "down.stopped", "down.network", "restore.dropped"},
			func(t *testing.T, m *Manager) {
				mustUp(t, m, strong(shop("shop")))
				mustSnapshot(t, m, shop("shop").Ref, SnapshotRequest{Tag: "good"})
			},
			func(t *testing.T, _ *world, m *Manager) {
				m.RestoreTo(t.Context(), root, shop("shop").Ref, RestoreRequest{At: "good"}, nil)
			},
		},
		{
			"keep ready", []string{"ready.captured", "ready.kept"},
			func(*testing.T, *Manager) {},
			func(t *testing.T, _ *world, m *Manager) { m.Up(t.Context(), root, warm("shop"), nil) },
		},
		{
			"warm start", []string{"warm.recorded", "warm.copied", "up.network", "up.prepared", "fork.waking", "fork.restored", "fork.woken", "fork.on_fork", "fork.opened", "up.concluding"},
			leaveReady,
			func(t *testing.T, _ *world, m *Manager) { m.Up(t.Context(), root, warm("shop"), nil) },
		},
		{
			"warm start that fails", []string{"warm.withdrawing", "warm.withdrawn"}, leaveReady,
			func(t *testing.T, w *world, m *Manager) {
				w.mu.Lock()
				w.broken = errors.New("it does not fit")
				w.mu.Unlock()
				m.Up(t.Context(), root, warm("shop"), nil)
			},
		},
		{
			"snapshot", []string{"snapshot.captured"}, start,
			func(t *testing.T, _ *world, m *Manager) {
				m.Snapshot(t.Context(), root, shop("shop").Ref, SnapshotRequest{})
			},
		},
		{
			"restore", []string{"restore.recorded", "restore.copied", "up.network", "up.launching", "up.launched", "up.healthy", "restore.up", "restore.swapped", "down.stopped", "down.network", "restore.dropped"},
			func(t *testing.T, m *Manager) {
				mustUp(t, m, shop("shop"))
				mustSnapshot(t, m, shop("shop").Ref, SnapshotRequest{Tag: "good"})
			},
			func(t *testing.T, _ *world, m *Manager) {
				m.RestoreTo(t.Context(), root, shop("shop").Ref, RestoreRequest{At: "good"}, nil)
			},
		},
		{
			"restart", []string{"exit.removed", "restart.recorded", "up.launching", "up.launched"},
			func(t *testing.T, m *Manager) {
				req := shop("shop")
				req.Spec.Services[0].Restart, req.Spec.Services[1].Restart = "always", "always"
				mustUp(t, m, req)
			},
			func(t *testing.T, w *world, m *Manager) {
				e, _ := m.Get(t.Context(), shop("shop").Ref)
				w.mu.Lock()
				s := w.sandboxes[e.Services[1].Launch]
				w.mu.Unlock()
				s.kill()
				for range 500 { // until it is back or the server is dead
					now, _ := m.Get(t.Context(), e.Ref)
					w.mu.Lock()
					dead := w.life.dead
					w.mu.Unlock()
					if dead || now.Services[1].Restarts > 0 && now.Phase == Running {
						break
					}
					time.Sleep(time.Millisecond)
				}
			},
		},
	}
}

// The server dies at every step of every story; the next one finds each
// environment running whole or gone, and nothing that no record names. It may
// die again while it reconciles.
func TestKilledAtAnyStepEverythingIsFinishedOrUndone(t *testing.T) {
	for _, s := range stories() {
		for i, point := range s.points {
			for j, second := range []string{"", "reconcile.read", "reconcile.swept", "reconcile.adopted"} {
				if j > 0 && (i+j)%3 != 0 {
					continue // a third of the pairs shows as much
				}
				t.Run(s.name+"/"+point+"/"+second, func(t *testing.T) {
					t.Parallel()
					crashAt(t, s, point, second)
				})
			}
		}
	}
}

func crashAt(t *testing.T, s story, point, second string) {
	w := newWorld(t)
	var armed, hit atomic.Bool
	dieAt := func(p string) func(*Config) {
		return func(c *Config) {
			lf := w.life
			c.Fault = func(at string) {
				if at == p && armed.Load() {
					hit.Store(true)
					lf.crash()
				}
			}
		}
	}
	m := w.serve(dieAt(point))
	s.before(t, m)
	armed.Store(true)
	acted := make(chan struct{})
	go func() { defer close(acted); s.act(t, w, m) }()
	waitFor(t, "the story passes "+point, hit.Load)
	m.Close()
	<-acted
	if second != "" {
		w.serve(dieAt(second)).Close()
	}
	m = w.serve(nil)
	w.mu.Lock()
	n := len(w.envs)
	w.mu.Unlock()
	if n > 0 {
		w.checkRunning(t, m, n)
	} else {
		w.checkEmpty(t)
	}
	w.mu.Lock()
	w.checkFiles(t)
	w.mu.Unlock()
	if (s.name == "replace" || s.name == "restore" || s.name == "restore memory" || s.name == "snapshot") && n != 1 {
		t.Error("the environment is gone")
	}
	// Of two copies that go on from memory one may have got there.
	most, least := 1, 0
	switch after := slices.Index(s.points, point); {
	case s.name == "fork" && after > slices.Index(s.points, "fork.captured"):
		most, least = 3, 3
	case s.name == "warm start", s.name == "keep ready":
		least = 1
	case s.name == "wake" && after >= slices.Index(s.points, "fork.woken"):
		most, least = 3, 2
	}
	if n > most || n < least {
		t.Errorf("%d environments are there", n)
	}
	if left, err := os.ReadDir(filepath.Join(w.logs, "forks")); len(left) > 0 {
		t.Errorf("memory is left: %v, %v", left, err)
	}
	all, _ := m.List(t.Context())
	for _, e := range all {
		if e.Opening != Open {
			t.Errorf("%s is not open", e.Ref)
		}
		if e.Ref != shop("shop").Ref {
			mustDown(t, m, e.Ref, true)
		}
	}
	again := shop("shop")
	if n > 0 {
		e, _ := m.Get(t.Context(), again.Ref)
		again.Spec.Isolation = e.Spec.Isolation
	}
	mustUp(t, m, again) // and it can be used
	w.checkRunning(t, m, 1)
	mustDown(t, m, shop("shop").Ref, true)
	w.checkEmpty(t)
	if len(w.files)-len(w.life.taken.Volumes())+len(w.volumes) > 0 {
		t.Error("volumes are left")
	}
}

func TestEveryFaultPointIsPassedBySomeStory(t *testing.T) {
	known := []string{"spare.network", "spare.stocked", "expire.recorded", "exit.recorded", "reconcile.read", "reconcile.swept", "reconcile.adopted"}
	for _, s := range slices.Concat(stories(), switches()) {
		known = append(known, s.points...)
	}
	for _, p := range FaultPoints() {
		if !slices.Contains(known, p) {
			t.Errorf("%s is crashed at by no test", p)
		}
	}
	for _, p := range known {
		if !slices.Contains(FaultPoints(), p) {
			t.Errorf("%s is not listed", p)
		}
	}
}

func TestEnvironmentsOutliveTheServer(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := shop("shop")
	before := mustUp(t, m, req).Environment
	m.Close()
	m = w.serve(nil)
	w.checkRunning(t, m, 1)
	after, _ := m.Get(t.Context(), req.Ref)
	for i := range before.Services {
		if before.Services[i].Launch != after.Services[i].Launch {
			t.Errorf("%s was launched again", before.Services[i].Name)
		}
	}
	if r := mustUp(t, m, req); r.Changed {
		t.Errorf("up had something to do: %+v", r)
	}
	// A service that dies is seen to, now as before.
	w.mu.Lock()
	s := w.sandboxes[after.Services[0].Launch]
	w.mu.Unlock()
	s.kill()
	waitFor(t, "its end is seen", func() bool { e, _ := m.Get(t.Context(), req.Ref); return e.Phase == Broken })
}

// What watches a release, and what counts how long it has served, is told of a
// start by the record that the next server reads.
func TestAServerThatDiesAtARestartLeavesWhenItWas(t *testing.T) {
	w := newWorld(t)
	var hit atomic.Bool
	m := w.serve(func(c *Config) {
		lf := w.life
		c.Fault = func(at string) {
			if at == "restart.recorded" {
				hit.Store(true)
				lf.crash()
			}
		}
	})
	req := shop("shop")
	req.Spec.Services[0].Restart = "always"
	before := mustUp(t, m, req).Environment
	was, _ := before.service(req.Spec.Services[0].Name)
	w.mu.Lock()
	s := w.sandboxes[was.Launch]
	w.mu.Unlock()
	s.kill()
	waitFor(t, "it is started again", hit.Load)
	m.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	rec := w.envs[before.Instance]
	is, _ := rec.service(was.Name)
	if is.Restarts != 1 || !is.Started.After(was.Started) {
		t.Errorf("%d restarts, the last one at %v, and the one before at %v", is.Restarts, is.Started, was.Started)
	}
}

func TestWhatDiedWhileTheServerWasAwayFollowsItsPolicy(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := shop("shop")
	req.Spec.Services[0].Restart = "on-failure"
	e := mustUp(t, m, req).Environment
	m.Close()
	for _, s := range e.Services {
		w.sandboxes[s.Launch].kill()
	}
	m = w.serve(nil)
	waitFor(t, "web is back", func() bool {
		e, _ := m.Get(t.Context(), req.Ref)
		web, _ := e.service("web")
		db, _ := e.service("db")
		return db.Phase == Broken && db.Message == diedAway && web.Phase != Running && web.Message != ""
	})
	mustUp(t, m, req)
	w.checkRunning(t, m, 1)
}

func TestAfterARebootEverythingDesiredIsStarted(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	mustUp(t, m, shop("a"))
	mustUp(t, m, shop("b"))
	m.Close()
	w.reboot()
	m = w.serve(func(c *Config) { c.Boot = "boot-2" })
	w.checkRunning(t, m, 2)
	for id, n := range w.files {
		if n != 1 {
			t.Errorf("volume %s was made %d times", id, n)
		}
	}
	for _, ref := range []string{"a", "b"} {
		mustDown(t, m, shop(ref).Ref, true)
	}
	w.checkEmpty(t)
}

func TestAOneShotWithoutItsClientIsTornDown(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := shop("once")
	req.OneShot = true
	mustUp(t, m, req)
	m.Close()
	m = w.serve(nil)
	w.checkEmpty(t)
	if len(w.volumes)+len(w.files) > 0 {
		t.Error("its volumes are left")
	}
	var now atomic.Int64
	now.Store(time.Now().UnixNano())
	m.Close()
	m = w.serve(func(c *Config) { c.Now = func() time.Time { return time.Unix(0, now.Load()) } })
	mustUp(t, m, req)
	m.expire()
	if _, err := m.Get(t.Context(), req.Ref); err != nil {
		t.Fatal("it was torn down at once")
	}
	now.Add(int64(idleOneShot + time.Second))
	m.expire()
	waitFor(t, "it is gone", func() bool { _, err := m.Get(t.Context(), req.Ref); return err != nil })
	w.checkEmpty(t)
}

func TestWhatNoRecordNamesIsRemoved(t *testing.T) {
	w := newWorld(t)
	stranger := isle.NewID()
	w.prepared[stranger] = spec.Limits{}
	w.networks[stranger] = Grants{}
	w.files[isle.NewID()] = 1
	w.sandboxes[isle.NewID()] = &sandbox{w: w, instance: stranger, stop: make(chan struct{}), killed: make(chan struct{})}
	w.serve(nil)
	w.checkEmpty(t)
	if len(w.files) > 0 {
		t.Error("a volume's file is left")
	}
}

func TestAnEndOfLifeKeepsVolumesSevenDays(t *testing.T) {
	w := newWorld(t)
	var now atomic.Int64
	now.Store(time.Now().UnixNano())
	m := w.serve(func(c *Config) { c.Now = func() time.Time { return time.Unix(0, now.Load()) } })
	req := shop("shop")
	req.Spec.TTL = time.Hour
	mustUp(t, m, req)
	end, err := m.Extend(t.Context(), root, req.Ref, time.Hour, false)
	if err != nil || !end.Equal(time.Unix(0, now.Load()).Add(2*time.Hour)) {
		t.Fatal(end, err)
	}
	now.Add(int64(90 * time.Minute))
	m.expire()
	if _, err := m.Get(context.Background(), req.Ref); err != nil {
		t.Fatal("it ended too early")
	}
	gone := func() bool { _, err := m.Get(t.Context(), req.Ref); return err != nil }
	now.Add(int64(time.Hour))
	m.expire()
	waitFor(t, "it is gone", gone)
	w.checkEmpty(t)
	v := m.volumesOf(req.Ref)
	if len(v) != 1 || !v[0].DeleteAfter.Equal(time.Unix(0, now.Load()).Add(keepVolumes)) {
		t.Fatalf("%+v", v)
	}
	mustUp(t, m, req) // clears the date
	if v = m.volumesOf(req.Ref); !v[0].DeleteAfter.IsZero() {
		t.Fatalf("%+v", v)
	}
	now.Add(int64(2 * time.Hour))
	m.expire()
	waitFor(t, "it is gone again", gone)
	now.Add(int64(keepVolumes + time.Minute))
	waitFor(t, "the volume is gone", func() bool { m.expire(); return len(m.volumesOf(req.Ref)) == 0 })
	w.checkEmpty(t)
	if len(w.files) > 0 {
		t.Error("the file is left")
	}
	never := shop("never")
	mustUp(t, m, never)
	if end, err := m.Extend(t.Context(), root, never.Ref, 0, true); err != nil || !end.IsZero() {
		t.Fatal(end, err)
	}
}
