package environment

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/image"
	"isle/internal/spec"
)

var root = isle.Actor{Kind: isle.Human, Name: "root"}

func img(seed string) image.Image {
	return image.Image{Format: 1, Architecture: "amd64", Layers: []image.Layer{{Digest: isle.DigestOf([]byte(seed)), Size: 1, Kind: "packages"}}}
}

// shop is a request for the example: web depends on db, which has a volume and
// a setup.
func shop(name string) UpRequest {
	check := &spec.Healthcheck{TCP: 5432, Interval: time.Second, Timeout: time.Second, Start: 20 * time.Second, Retries: 3}
	return UpRequest{
		Ref: isle.Ref{Name: name, Stage: "testing"}, Project: "shop",
		Spec: spec.File{Name: "shop", Isolation: "container", Services: []spec.Service{
			{Name: "web", Command: []string{"run"}, DependsOn: []string{"db"}, Restart: "no"},
			{Name: "db", Command: []string{"run"}, Setup: []string{"initdb"}, Healthcheck: check, Restart: "no",
				Volumes: []spec.Volume{{Path: "/data", Size: 1 << 20}}},
		}, Limits: spec.Limits{CPUs: 1, Memory: 1 << 20, PIDs: 10}},
		Images: map[string]image.Image{"web": img("web"), "db": img("db")},
	}
}

func mustUp(t *testing.T, m *Manager, req UpRequest) UpResult {
	t.Helper()
	r, err := m.Up(t.Context(), root, req, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustDown(t *testing.T, m *Manager, ref isle.Ref, volumes bool) {
	t.Helper()
	if err := m.Down(t.Context(), root, ref, volumes, nil); err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, err error, code isle.Code, parts ...string) {
	t.Helper()
	if err == nil || isle.CodeOf(err) != code {
		t.Fatalf("got %v, want an error of code %s", err, code)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Fatalf("%q does not say %q", err, p)
		}
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 20_000 {
		if done() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("waited in vain until %s", what)
}

// empty fails if anything runs that no environment owns.
func (w *world) checkEmpty(t *testing.T) {
	t.Helper()
	waitFor(t, "outcomes are written", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.openIntents()) == 0
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.sandboxes)+len(w.prepared)+len(w.networks)+len(w.envs) > 0 {
		t.Fatalf("left behind: %d sandboxes, %d control groups, %d airlocks, %d records", len(w.sandboxes), len(w.prepared), len(w.networks), len(w.envs))
	}
	w.checkFiles(t)
}

// checkFiles fails if a volume's file is neither an environment's nor a
// snapshot's; w.mu is held.
func (w *world) checkFiles(t *testing.T) {
	t.Helper()
	snapshots := w.life.taken.Volumes()
	for id := range w.files {
		if _, ok := w.volumes[id]; !ok && !slices.Contains(snapshots, id) {
			t.Fatalf("volume %s is nobody's", id)
		}
	}
}

// running fails unless every environment runs whole and nothing else does.
func (w *world) checkRunning(t *testing.T, m *Manager, n int) {
	t.Helper()
	waitFor(t, "everything runs", func() bool {
		all, _ := m.List(t.Context())
		for _, e := range all {
			if e.Phase != Running {
				return false
			}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		want := 0
		for _, e := range all {
			want += len(e.Services)
			for _, s := range e.Services {
				if sb := w.sandboxes[s.Launch]; sb == nil || sb.isGone() {
					return false
				}
			}
		}
		return len(all) == n && len(w.envs) == n && len(w.networks) == n && len(w.prepared) == n && len(w.sandboxes) == want
	})
}

func TestUpStartsInOrderAndDownLeavesNothing(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	var said []string
	r, err := m.Up(t.Context(), root, shop("shop"), func(p Progress) { said = append(said, p.Service+" "+p.Step+" "+p.State) })
	if err != nil {
		t.Fatal(err)
	}
	if !r.Changed || r.Environment.Phase != Running || len(r.Replaced) != 0 {
		t.Fatalf("%+v", r)
	}
	w.checkRunning(t, m, 1)
	if !slices.Equal(w.launched, []string{"db", "web"}) {
		t.Fatalf("launched %v", w.launched)
	}
	if !slices.Contains(said, "web health done") {
		t.Fatalf("said %v", said)
	}
	if v := m.volumesOf(r.Environment.Ref); len(v) != 1 || !v[0].Ready {
		t.Fatalf("%+v", v)
	}
	mustDown(t, m, r.Environment.Ref, false)
	w.checkEmpty(t)
	if len(w.files) != 1 {
		t.Fatal("down did not keep the volume")
	}
	wantCode(t, m.Down(t.Context(), root, r.Environment.Ref, false, nil), isle.NotFound, "kept")
	again := mustUp(t, m, shop("shop"))
	if again.Environment.Instance == r.Environment.Instance {
		t.Fatal("an instance ID was used again")
	}
	for id, n := range w.files {
		if n != 1 {
			t.Fatalf("volume %s was made %d times", id, n)
		}
	}
	mustDown(t, m, r.Environment.Ref, true)
	w.checkEmpty(t)
	if len(w.files)+len(w.volumes) != 0 {
		t.Fatal("down --volumes kept a volume")
	}
	wantCode(t, m.Down(t.Context(), root, isle.Ref{Name: "shpo", Stage: "testing"}, false, nil), isle.NotFound)
}

func TestNothingToDoTouchesNoDisk(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	mustUp(t, m, shop("shop"))
	waitFor(t, "it is quiet", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.openIntents()) == 0 })
	before := w.writes
	if r := mustUp(t, m, shop("shop")); r.Changed {
		t.Fatalf("%+v", r)
	}
	if w.writes != before {
		t.Fatal("it was written")
	}
}

func TestOnlyWhatChangedIsReplaced(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	first := mustUp(t, m, shop("shop")).Environment
	req := shop("shop")
	req.Images["web"] = img("web 2")
	req.Reasons = map[string]string{"web": "app/shop.py changed"}
	req.Spec.Egress = []spec.Egress{{Host: "api.example.com", Port: 443}}
	req.Spec.Limits.PIDs = 20
	r := mustUp(t, m, req)
	if want := []string{"web: app/shop.py changed", "egress: applied in place", "limits: applied in place"}; !slices.Equal(r.Replaced, want) {
		t.Fatalf("replaced %q, want %q", r.Replaced, want)
	}
	old, _ := first.service("db")
	db, _ := r.Environment.service("db")
	oldWeb, _ := first.service("web")
	web, _ := r.Environment.service("web")
	if db.Launch != old.Launch || web.Launch == oldWeb.Launch {
		t.Fatal("not just web was replaced")
	}
	w.checkRunning(t, m, 1)
	if w.prepared[first.Instance].PIDs != 20 || len(w.networks[first.Instance].Egress) != 1 {
		t.Fatal("limits and egress were not applied")
	}
	req.Spec.Services[1].Env = map[string]string{"A": "1"}
	if r = mustUp(t, m, req); len(r.Replaced) != 1 || !strings.HasPrefix(r.Replaced[0], "db: env") {
		t.Fatalf("%q", r.Replaced)
	}
	req.Spec.Services = req.Spec.Services[1:] // web goes
	delete(req.Images, "web")
	if r = mustUp(t, m, req); len(r.Replaced) != 1 || !strings.HasPrefix(r.Replaced[0], "web: removed") {
		t.Fatalf("%q", r.Replaced)
	}
	w.checkRunning(t, m, 1)
	if n := w.files[m.volumesOf(req.Ref)[0].ID]; n != 1 {
		t.Fatalf("the volume was made %d times", n)
	}
}

func TestAFailureShowsTheLastLinesAndCanBeTriedAgain(t *testing.T) {
	for command, says := range map[string]string{
		"fail": "ended with exit code 1", "missing": "executable file not found", "unlaunchable": "could not be launched: exec format error",
		"never": "did not become healthy within 300ms: connection refused",
	} {
		t.Run(command, func(t *testing.T) {
			w := newWorld(t)
			m := w.serve(func(c *Config) { c.Settle = 200 * time.Millisecond })
			req := shop("shop")
			req.Spec.Services[0].Command = []string{command}
			if command == "never" {
				req.Spec.Services[0].Healthcheck = &spec.Healthcheck{TCP: 1, Start: 300 * time.Millisecond}
			}
			_, err := m.Up(t.Context(), root, req, nil)
			wantCode(t, err, isle.Failed, "web", says, "isle logs shop")
			if command == "fail" {
				wantCode(t, err, isle.Failed, "boom")
			}
			e, _ := m.Get(t.Context(), req.Ref)
			if db, _ := e.service("db"); e.Phase != Broken || db.Phase != Running {
				t.Fatalf("%+v", e)
			}
			if len(w.sandboxes) != 1 {
				t.Fatalf("%d sandboxes run, only db should", len(w.sandboxes))
			}
			req.Spec.Services[0].Command = []string{"run"}
			req.Spec.Services[0].Healthcheck = nil
			if r := mustUp(t, m, req); r.Environment.Phase != Running || !strings.HasPrefix(r.Replaced[0], "web: ") {
				t.Fatalf("%+v", r)
			}
			mustDown(t, m, req.Ref, true)
			w.checkEmpty(t)
		})
	}
}

func TestWhatDependsOnAFailureIsNotStarted(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := shop("shop")
	req.Spec.Services[1].Setup = []string{"fail"}
	_, err := m.Up(t.Context(), root, req, nil)
	wantCode(t, err, isle.Failed, "db", "setup ended with exit code 1", "initdb: no")
	e, _ := m.Get(t.Context(), req.Ref)
	if web, _ := e.service("web"); web.Phase != Pending || !strings.Contains(web.Message, "depends on db") {
		t.Fatalf("%+v", web)
	}
	if len(w.sandboxes) != 0 {
		t.Fatal("something runs")
	}
	_, err = m.Exec(t.Context(), root, req.Ref, "web", Exec{Command: []string{"true"}})
	wantCode(t, err, isle.Unavailable, "depends on db")
	req.Spec.Services[1].Setup = []string{"initdb"}
	mustUp(t, m, req)
	for _, n := range w.files {
		if n != 2 {
			t.Fatalf("the half-made volume was made %d times", n)
		}
	}
}

func TestANameBelongsToOneProject(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	mustUp(t, m, shop("shop"))
	other := shop("shop")
	other.Project = "bank"
	_, err := m.Up(t.Context(), root, other, nil)
	wantCode(t, err, isle.Conflict, "project shop", "--name")
	mustDown(t, m, other.Ref, false)
	_, err = m.Up(t.Context(), root, other, nil)
	wantCode(t, err, isle.Conflict, "volumes of project shop", "--volumes")
	mustDown(t, m, other.Ref, true)
	mustUp(t, m, other)
}

func TestTheRestartPolicyIsFollowed(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := shop("shop")
	req.Spec.Services = req.Spec.Services[:1]
	web := &req.Spec.Services[0]
	web.DependsOn, web.Restart = nil, "on-failure"
	e := mustUp(t, m, req).Environment
	w.mu.Lock()
	s := w.sandboxes[e.Services[0].Launch]
	w.mu.Unlock()
	s.kill() // isle-init and all
	waitFor(t, "it is restarted", func() bool {
		now, _ := m.Get(t.Context(), req.Ref)
		return now.Phase == Running && now.Services[0].Restarts == 1 && now.Services[0].Launch != s.boot.Launch
	})
	w.checkRunning(t, m, 1)
	mustDown(t, m, req.Ref, true)

	web.Command = []string{"fail"}
	_, err := m.Up(t.Context(), root, req, nil)
	if err == nil { // it may have counted as up for a moment; then it is restarted for ever
		mustDown(t, m, req.Ref, true)
	} else {
		wantCode(t, err, isle.Failed, "exit code 1")
	}

	web.Restart, web.Command = "no", []string{"done"}
	req.Ref.Name = "job"
	if r := mustUp(t, m, req); r.Environment.Phase != Exited || *r.Environment.Services[0].ExitCode != 0 {
		t.Fatalf("%+v", r.Environment)
	}
}

func TestDownInterruptsUp(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := shop("shop")
	req.Spec.Services[1].Command = []string{"never"}
	result := make(chan error, 1)
	go func() { _, err := m.Up(t.Context(), root, req, nil); result <- err }()
	waitFor(t, "db starts", func() bool {
		e, _ := m.Get(t.Context(), req.Ref)
		db, ok := e.service("db")
		return ok && db.Phase == Starting
	})
	mustDown(t, m, req.Ref, true)
	wantCode(t, <-result, isle.Conflict, "interrupted")
	w.checkEmpty(t)
}

func TestAClientThatLeavesDoesNotStopUp(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := shop("shop")
	ctx, leave := context.WithCancel(t.Context())
	if _, err := m.Up(ctx, root, req, func(p Progress) {
		if p.Service == "db" {
			leave()
		}
	}); err == nil {
		t.Log("it was done before the client had left")
	}
	w.checkRunning(t, m, 1)
	req.Ref.Name, req.OneShot = "once", true
	ctx, leave = context.WithCancel(t.Context())
	_, err := m.Up(ctx, root, req, func(p Progress) { leave() })
	if err == nil {
		t.Fatal("it succeeded")
	}
	waitFor(t, "the one-shot is gone", func() bool { _, err := m.Get(t.Context(), req.Ref); return err != nil })
	w.checkRunning(t, m, 1)
}

func TestNoWaitReturnsOnceTheFirstAreLaunched(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := shop("shop")
	req.NoWait = true
	mustUp(t, m, req)
	p, err := m.Exec(t.Context(), root, req.Ref, "web", Exec{Command: []string{"true"}}) // waits for it
	if err != nil {
		t.Fatal(err)
	}
	if out, err := p.Next(); err != nil || out.Exit.Code != 3 {
		t.Fatal(out, err)
	}
	w.checkRunning(t, m, 1)
}

func TestAHundredAtOnce(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if _, err := m.Up(t.Context(), root, shop(fmt.Sprintf("e%d", i)), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.checkRunning(t, m, 100)
	uids := map[uint32]bool{}
	all, _ := m.List(t.Context())
	for _, e := range all {
		uids[e.UIDBase] = true
		if e.UIDBase%uidsPerEnv != 0 || e.UIDBase < firstUID {
			t.Fatalf("uid base %#x", e.UIDBase)
		}
	}
	if len(uids) != 100 {
		t.Fatal("two environments share uids")
	}
	for i := range 100 {
		wg.Go(func() {
			if err := m.Down(t.Context(), root, isle.Ref{Name: fmt.Sprintf("e%d", i), Stage: "testing"}, true, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.checkEmpty(t)
}

func TestEveryActionHasIntentAndOutcome(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := shop("shop")
	mustUp(t, m, req)
	p, err := m.Exec(t.Context(), root, req.Ref, "", Exec{Command: []string{"psql", "-c", "select 1"}})
	if err != nil {
		t.Fatal(err)
	}
	p.Next()
	p.Close()
	mustDown(t, m, req.Ref, true)
	w.checkEmpty(t)
	seen := map[string]bool{}
	for _, e := range w.entries {
		seen[string(e.Kind)+" "+string(e.Action)+" "+e.Result] = true
		if _, err := e.Encode(); err != nil {
			t.Error(err)
		}
		if e.Environment != "shop@testing" {
			t.Errorf("%+v", e)
		}
		if e.Kind == audit.Intent && e.Action == isle.ActionEnvironmentExec && e.Summary != "psql -c select 1" {
			t.Errorf("%+v", e)
		}
	}
	for _, want := range []string{
		"intent environment:launch ", "outcome environment:launch ok", "intent environment:exec ", "outcome environment:exec failed",
		"intent environment:down ", "outcome environment:down ok",
	} {
		if !seen[want] {
			t.Errorf("no entry %q in %v", want, seen)
		}
	}
}

func TestARevocationStopsUpAndAClientThatLeavesDoesNot(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := shop("shop")
	req.Spec.Services[1].Command = []string{"never"}
	ctx, cancel := context.WithCancelCause(t.Context())
	result := make(chan error, 1)
	go func() { _, err := m.Up(ctx, root, req, nil); result <- err }()
	waitFor(t, "db starts", func() bool {
		e, _ := m.Get(t.Context(), req.Ref)
		db, ok := e.service("db")
		return ok && db.Phase == Starting
	})
	cancel(isle.Errorf(isle.Refused, "the key was revoked"))
	if err := <-result; err == nil {
		t.Error("it succeeded")
	}
	if o := m.locks.try(t.Context(), req.Ref); o == nil {
		t.Error("the launch goes on")
	} else {
		o.release()
	}
	mustDown(t, m, req.Ref, true)
	w.checkEmpty(t)
}
