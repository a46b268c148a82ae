package environment

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"isle"
	"isle/internal/spec"
)

// strong is a request for the class that has memory.
func strong(req UpRequest) UpRequest {
	req.Spec.Isolation = spec.Gvisor
	return req
}

// noMemory fails if memory is left that nothing goes on from.
func (w *world) noMemory(t *testing.T) {
	t.Helper()
	if left, err := os.ReadDir(filepath.Join(w.logs, "forks")); len(left) > 0 {
		t.Errorf("memory is left: %v, %v", left, err)
	}
}

func TestForksGoOnFromOneInstantOfTheirSource(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	src := mustUp(t, m, strong(shop("shop"))).Environment
	w.write(m, src.Ref, "a")
	req := forkOf("shop")
	req.N = 3
	var said []string
	forks, err := m.Fork(t.Context(), root, req, func(p Progress) { said = append(said, p.Service+" "+p.Step+" "+p.State) })
	if err != nil {
		t.Fatal(err)
	}
	w.checkRunning(t, m, 4)
	w.noMemory(t)
	if w.captures != 1 || len(w.launched) != 2 || len(w.woken) != 6 {
		t.Errorf("%d captures, launched %v, woken %v", w.captures, w.launched, w.woken)
	}
	for _, want := range []string{"shop capture done", "shop-f2 memory done", "shop-f3 fork done"} {
		if !slices.Contains(said, want) {
			t.Errorf("nothing said %q: %q", want, said)
		}
	}
	for _, f := range forks {
		e := f.Environment
		if got := w.read(m, e.Ref); got != "a" || e.Opening != Open || e.Generation <= src.Generation {
			t.Errorf("%s holds %q: %+v", e.Ref, got, e)
		}
		for _, s := range e.Services {
			x, boot := w.launches[s.Launch], w.sandboxes[s.Launch].boot
			if len(x.Boot) > 0 || x.Hostname != s.Name+"-"+e.Ref.Name || boot.Hostname != x.Hostname || boot.Launch != s.Launch || isle.DigestOf(boot.Secret) != s.SecretHash {
				t.Errorf("%+v, %+v", x, boot)
			}
		}
	}
	// They are as any other: taken up by the next server, and forked themselves.
	m.Close()
	m = w.serve(nil)
	w.checkRunning(t, m, 4)
	of := ForkRequest{From: forks[0].Environment.Ref}
	for range 3 {
		of.From = mustFork(t, m, of)[0].Environment.Ref
	}
	w.checkRunning(t, m, 7)
	if len(w.launched) != 2 {
		t.Errorf("launched %v", w.launched)
	}
	// What ends in one of them is restarted as its policy says.
	mustDown(t, m, src.Ref, true)
	e, _ := m.Get(t.Context(), of.From)
	w.sandboxes[e.Services[0].Launch].kill()
	waitFor(t, "its end is seen", func() bool { e, _ := m.Get(t.Context(), of.From); return e.Phase == Broken })
	all, _ := m.List(t.Context())
	for _, e := range all {
		mustDown(t, m, e.Ref, true)
	}
	w.checkEmpty(t)
}

func TestAForkIsShutWhileItWakesAndUntilOnFork(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := strong(reseeds("shop", "hang"))
	req.Spec.Egress = []spec.Egress{{Host: "api.example.com", Port: 443}}
	mustUp(t, m, req)
	done := make(chan error, 1)
	go func() { _, err := m.Fork(t.Context(), root, forkOf("shop"), nil); done <- err }()
	waitFor(t, "on_fork runs", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.executed) == 1 })
	ref := isle.Ref{Name: "shop-f1", Stage: "testing"}
	e, _ := m.Get(t.Context(), ref)
	if g := w.networks[e.Instance]; len(g.Egress) > 0 || e.Opening != Shut {
		t.Errorf("%+v, %+v", g, e)
	}
	w.noMemory(t)
	mustDown(t, m, ref, false)
	<-done
	open := req
	open.Spec.Services = slices.Clone(req.Spec.Services)
	open.Spec.Services[1].OnFork = nil
	mustUp(t, m, open)
	e = mustFork(t, m, forkOf("shop"))[0].Environment
	if g := w.networks[e.Instance]; len(g.Egress) != 1 || e.Opening != Open {
		t.Errorf("%+v, %+v", g, e)
	}
}

// What did not run when its environment was captured is not in memory.
func TestAServiceThatHadEndedHasEndedInACopyToo(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := strong(shop("shop"))
	req.Spec.Services[0].Command = []string{"done"}
	req.Spec.Services = append(req.Spec.Services, spec.Service{Name: "bad", Command: []string{"fail"}, Restart: "no"})
	req.Images["bad"] = img("bad")
	m.Up(t.Context(), root, req, nil)
	src, _ := m.Get(t.Context(), req.Ref)
	if err := m.find(src.Ref).wait(t.Context(), func(e Environment) bool { s, _ := e.service("web"); return s.Phase == Exited }); err != nil {
		t.Fatal(err)
	}
	mustSnapshot(t, m, src.Ref, SnapshotRequest{Tag: "s"})
	copies := []Environment{mustFork(t, m, forkOf("shop"))[0].Environment, mustFork(t, m, ForkRequest{At: "s"})[0].Environment}
	for _, e := range copies {
		var phases []string
		for _, s := range e.Services {
			phases = append(phases, s.Name+" "+string(s.Phase))
			if s.Phase != Running && (s.ExitCode == nil || !strings.Contains(s.Message, "exit code")) {
				t.Errorf("%+v", s)
			}
		}
		slices.Sort(phases)
		if got := strings.Join(phases, ", "); got != "bad failed, db running, web exited" {
			t.Errorf("%s: %s", e.Ref, got)
		}
	}
	if !slices.Equal(w.woken, []string{"db", "db"}) || len(w.launched) != 3 {
		t.Errorf("woken %v, launched %v", w.woken, w.launched)
	}
}

func TestAServiceThatWaitsForItsNextLaunchIsLaunchedInACopy(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := strong(shop("shop"))
	req.Spec.Services[0].Restart = "always"
	src := mustUp(t, m, req).Environment
	l := m.find(src.Ref)
	l.launching.Lock() // it is not back before it is captured
	w.mu.Lock()
	web, _ := src.service("web")
	s := w.sandboxes[web.Launch]
	w.mu.Unlock()
	s.kill()
	if err := l.wait(t.Context(), func(e Environment) bool { s, _ := e.service("web"); return s.Phase == Starting && s.Restarts == 1 }); err != nil {
		t.Fatal(err)
	}
	done := make(chan []UpResult, 1)
	go func() { r, _ := m.Fork(t.Context(), root, forkOf("shop"), nil); done <- r }()
	time.Sleep(10 * time.Millisecond) // either order is right
	l.launching.Unlock()
	r := <-done
	if len(r) != 1 || r[0].Environment.Phase != Running {
		t.Fatalf("%+v", r)
	}
	w.checkRunning(t, m, 2)
}

func TestAForkThatDoesNotGoOnIsUndone(t *testing.T) {
	for what, spoil := range map[string]func(*world){
		"isle-init dies":            func(*world) {},
		"memory cannot be restored": func(w *world) { w.broken = isle.Errorf(isle.Failed, "no such memory") },
		"the runtime is another":    func(w *world) { w.broken = isle.Errorf(isle.Conflict, "another build") },
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			m := w.serve(nil)
			req := strong(shop("shop"))
			if what == "isle-init dies" {
				req.Spec.Services[0].Command = []string{"dies"}
			}
			src := mustUp(t, m, req).Environment
			mustSnapshot(t, m, src.Ref, SnapshotRequest{Tag: "good"})
			spoil(w)
			two := forkOf("shop")
			two.N = 2
			_, err := m.Fork(t.Context(), root, two, nil)
			if err == nil || !strings.Contains(err.Error(), "taken away") {
				t.Errorf("got %v", err)
			}
			if _, err := m.RestoreTo(t.Context(), root, src.Ref, RestoreRequest{At: "good"}, nil); err == nil || !strings.Contains(err.Error(), "is as it was") {
				t.Errorf("got %v", err)
			}
			w.checkRunning(t, m, 1)
			w.noMemory(t)
			if len(w.volumes) != 1 || len(w.files) != 2 {
				t.Error("volumes are left")
			}
			if _, err := m.cfg.Snapshots.(interface {
				Remove(ctx context.Context, actor isle.Actor, name string, force bool) (isle.Digest, error)
			}).Remove(t.Context(), root, "good", false); err != nil {
				t.Error("something holds the snapshot:", err)
			}
		})
	}
}

func TestMemoryDoesNotLeaveItsStage(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	mustUp(t, m, strong(reseeds("shop", "reseed")))
	req := forkOf("shop")
	req.Stage = "staging"
	var said []string
	if _, err := m.Fork(t.Context(), root, req, func(p Progress) { said = append(said, p.Step+": "+p.Message) }); err != nil {
		t.Fatal(err)
	}
	if len(w.woken) > 0 || !slices.Contains(said, "memory: services are started anew: memory does not leave its stage") {
		t.Errorf("woken %v, said %q", w.woken, said)
	}
	w.noMemory(t)
}

func TestASnapshotBringsBackWhatRan(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	src := mustUp(t, m, strong(shop("shop"))).Environment
	w.write(m, src.Ref, "a")
	s := mustSnapshot(t, m, src.Ref, SnapshotRequest{Tag: "good"})
	x := s.Manifest
	if x.Memory == nil || x.Memory.Runtime != w.build || len(x.Memory.Files) != 1 {
		t.Fatalf("%+v", x.Memory)
	}
	for _, svc := range x.Services {
		if rec, _ := src.service(svc.Name); svc.Launch != rec.Launch || svc.SecretHash != rec.SecretHash || svc.Phase != "running" {
			t.Errorf("%+v", svc)
		}
	}
	w.write(m, src.Ref, "b")
	r, err := m.RestoreTo(t.Context(), root, src.Ref, RestoreRequest{At: "good"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if w.read(m, src.Ref) != "a" || len(w.woken) != 2 || r.Environment.Generation <= x.Generation {
		t.Errorf("woken %v: %+v", w.woken, r.Environment)
	}
	w.checkRunning(t, m, 1)
	if _, err := m.RestoreTo(t.Context(), root, src.Ref, RestoreRequest{At: "good", Cold: true}, nil); err != nil || len(w.woken) != 2 {
		t.Errorf("woken %v, %v", w.woken, err)
	}
	mustFork(t, m, ForkRequest{At: "good", Cold: true})
	none := mustSnapshot(t, m, src.Ref, SnapshotRequest{NoMemory: true})
	if none.Manifest.Memory != nil || none.Manifest.Services[0].SecretHash != "" {
		t.Errorf("%+v", none.Manifest)
	}
	mustFork(t, m, ForkRequest{At: string(none.Digest)})
	if len(w.woken) != 2 {
		t.Errorf("woken %v", w.woken)
	}
	// Whoever has another build of the runtime is told before anything is made.
	before := len(w.entries)
	w.build = isle.DigestOf([]byte("another"))
	_, err = m.Fork(t.Context(), root, ForkRequest{At: "good"}, nil)
	wantCode(t, err, isle.Conflict, "another build")
	_, err = m.RestoreTo(t.Context(), root, src.Ref, RestoreRequest{At: "good"}, nil)
	wantCode(t, err, isle.Conflict, "another build")
	captures := w.captures
	_, err = m.Fork(t.Context(), root, forkOf("shop"), nil) // what runs is of the build of before
	wantCode(t, err, isle.Conflict, "another build")
	if len(w.entries) != before || w.captures != captures {
		t.Errorf("something was recorded, or captured: %d entries, %d captures", len(w.entries)-before, w.captures-captures)
	}
	w.noMemory(t)
	w.checkRunning(t, m, 3)
}
