package environment

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"isle"
	"isle/internal/snapshot"
	"isle/internal/spec"
)

// write puts data into the volume of an environment, as its db would.
func (w *world) write(m *Manager, ref isle.Ref, data string) {
	v, ok := m.volume(ref, "db", "/data")
	if !ok {
		w.t.Errorf("%s has no volume", ref)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	f, err := os.OpenFile(filepath.Join(w.volumeDir, string(v.ID)), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(data)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		w.t.Error(err)
	}
}

func (w *world) read(m *Manager, ref isle.Ref) string {
	v, _ := m.volume(ref, "db", "/data")
	w.mu.Lock()
	defer w.mu.Unlock()
	b, err := os.ReadFile(filepath.Join(w.volumeDir, string(v.ID)))
	if err != nil {
		w.t.Error(err)
	}
	return strings.TrimPrefix(string(b), ">")
}

func forkOf(name string) ForkRequest {
	return ForkRequest{From: isle.Ref{Name: name, Stage: "testing"}}
}

func mustFork(t *testing.T, m *Manager, req ForkRequest) []UpResult {
	t.Helper()
	r, err := m.Fork(t.Context(), root, req, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// reseeds is the shop with an on_fork in its db.
func reseeds(name string, command ...string) UpRequest {
	req := shop(name)
	req.Spec.Services[1].OnFork = command
	return req
}

func TestForksHoldWhatTheirSourceHeldAndNothingOfEachOther(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	src := mustUp(t, m, shop("shop")).Environment
	w.write(m, src.Ref, "a")
	req := forkOf("shop")
	req.N = 3
	var said []string
	forks, err := m.Fork(t.Context(), root, req, func(p Progress) { said = append(said, p.Service+" "+p.Step+" "+p.State) })
	if err != nil {
		t.Fatal(err)
	}
	w.checkRunning(t, m, 4)
	if w.captures != 1 {
		t.Errorf("the source was stopped %d times", w.captures)
	}
	for _, want := range []string{"shop capture done", "shop-f2/db launch start", "shop-f3 fork done"} {
		if !slices.Contains(said, want) {
			t.Errorf("nothing said %q: %q", want, said)
		}
	}
	w.write(m, src.Ref, "b")
	w.write(m, forks[1].Environment.Ref, "c")
	for ref, want := range map[string]string{"shop": "ab", "shop-f1": "a", "shop-f2": "ac", "shop-f3": "a"} {
		if got := w.read(m, isle.Ref{Name: ref, Stage: "testing"}); got != want {
			t.Errorf("%s holds %q, not %q", ref, got, want)
		}
	}
	for _, f := range forks {
		mustDown(t, m, f.Environment.Ref, true)
	}
	w.checkRunning(t, m, 1)
	mustDown(t, m, src.Ref, true)
	w.checkEmpty(t)
}

func TestAForkIsSomebodyElse(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := shop("shop")
	req.Branch, req.Spec.TTL = "main", time.Hour
	src := mustUp(t, m, req).Environment
	other := isle.Actor{Kind: isle.Machine, Name: "ci"}
	res, err := m.Fork(t.Context(), other, forkOf("shop"), nil)
	if err != nil {
		t.Fatal(err)
	}
	again := mustFork(t, m, forkOf("shop-f1"))[0].Environment
	f := res[0].Environment
	if f.Ref.Name != "shop-f1" || again.Ref.Name != "shop-f1-f1" || f.Owner != other || f.Branch != "main" || !f.Expires.After(src.Expires) ||
		f.Parent != src.Instance || f.ParentRef != src.Ref || f.UIDBase == src.UIDBase || f.Generation <= src.Generation || again.Generation <= f.Generation {
		t.Errorf("%+v\n%+v", f, again)
	}
	if len(again.Ancestors) != 1 || again.Ancestors[0].Instance != src.Instance {
		t.Errorf("its ancestors are %+v", again.Ancestors)
	}
	seen := map[string]string{}
	for _, e := range []Environment{src, f, again} {
		for _, s := range e.Services {
			x := w.launches[s.Launch]
			for kind, what := range map[string]string{"machine-id": x.MachineID, "launch": string(s.Launch), "secret": string(s.SecretHash)} {
				if before := seen[kind+what]; before != "" || what == "" {
					t.Errorf("%s and %s/%s have the same %s", before, e.Ref, s.Name, kind)
				}
				seen[kind+what] = e.Ref.String() + "/" + s.Name
			}
			if len(x.MachineID) != 32 || x.Generation != e.Generation || !slices.Contains(x.Hosts, "db") {
				t.Errorf("%+v", x)
			}
		}
	}
	for launch, want := range map[isle.ID]string{src.Services[0].Launch: "db", f.Services[0].Launch: "db-shop-f1", again.Services[1].Launch: "web-shop-f1-f1"} {
		if x := w.launches[launch]; x.Hostname != want {
			t.Errorf("%s is called %s", want, x.Hostname)
		}
	}
	long := Environment{Ref: isle.Ref{Name: strings.Repeat("a", 40)}, Fork: true}
	if h := long.hostname(strings.Repeat("b", 40)); !isle.ValidName(h) {
		t.Errorf("%q is no hostname", h)
	}
}

func TestAForkIsShutUntilOnForkHasSucceeded(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := reseeds("shop", "hang")
	req.Spec.Egress = []spec.Egress{{Host: "api.example.com", Port: 443}}
	src := mustUp(t, m, req).Environment
	if len(w.executed) > 0 {
		t.Fatal("on_fork ran in what is no fork")
	}
	fork := forkOf("shop")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { _, err := m.Fork(ctx, root, fork, nil); done <- err }()
	ref := isle.Ref{Name: "shop-f1", Stage: "testing"}
	waitFor(t, "on_fork runs", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.executed) == 1 })
	e, _ := m.Get(t.Context(), ref)
	if g := w.networks[e.Instance]; len(g.Egress) > 0 || e.Opening != Shut || e.Phase != Starting {
		t.Errorf("%+v, %+v", g, e)
	}
	m.PolicyChanged(t.Context())
	if g := w.networks[e.Instance]; len(g.Egress) > 0 {
		t.Error("a change of policy opened it")
	}
	if len(w.networks[src.Instance].Egress) != 1 {
		t.Error("the source is shut")
	}
	_, err := m.Forward(t.Context(), root, ref, "db", 5432)
	wantCode(t, err, isle.Unavailable, "shut")
	_, err = m.find(ref).dial(t.Context(), "db", 5432)
	wantCode(t, err, isle.Unavailable, "shut")
	doors, _ := m.Doors(t.Context(), root, ref)
	if len(doors) != 1 || doors[0].State != "refused" || !strings.Contains(doors[0].Reason, "shut") {
		t.Errorf("%+v", doors)
	}
	if p, err := m.Exec(t.Context(), root, ref, "db", Exec{Command: []string{"reseed"}}); err != nil {
		t.Error("nobody can look inside:", err)
	} else {
		p.Close()
	}
	// The server dies; on_fork is run again.
	m.Close()
	<-done
	w.mu.Lock()
	w.executed = nil
	w.mu.Unlock()
	m = w.serve(nil)
	waitFor(t, "on_fork runs again", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return slices.Contains(w.executed, "db hang") })
	change := reseeds("shop-f1", "reseed")
	change.Spec.Egress = req.Spec.Egress
	mustUp(t, m, change)
	e, _ = m.Get(t.Context(), ref)
	if e.Opening != Open || e.Phase != Running || len(w.networks[e.Instance].Egress) != 1 || !slices.Contains(w.executed, "db reseed") {
		t.Errorf("%+v", e)
	}
}

func TestAnOnForkThatFailsLeavesAShutForkToLookAt(t *testing.T) {
	for command, says := range map[string][]string{
		"refuse": {"fork shop-f1 stays shut", "on_fork of service db", "exit code 3", "no seed", "isle down shop-f1"},
		"hang":   {"did not end within 10ms"},
	} {
		w := newWorld(t)
		m := w.serve(nil)
		mustUp(t, m, reseeds("shop", command))
		req := forkOf("shop")
		if command == "hang" {
			req.Timeout = 10 * time.Millisecond
		}
		_, err := m.Fork(t.Context(), root, req, nil)
		wantCode(t, err, isle.Failed, says...)
		ref := isle.Ref{Name: "shop-f1", Stage: "testing"}
		e, _ := m.Get(t.Context(), ref)
		if e.Phase != Broken || e.Opening != Shut || e.Trouble == "" {
			t.Fatalf("%+v", e)
		}
		m.Close()
		w.executed = nil
		m = w.serve(nil) // what failed is not tried by itself
		if e, _ = m.Get(t.Context(), ref); e.Phase != Broken || len(w.executed) > 0 {
			t.Errorf("%+v %v", e, w.executed)
		}
		mustDown(t, m, ref, false)
		if kept := m.volumesOf(ref); len(kept) > 0 {
			t.Error("what was never opened can be taken up without on_fork")
		}
	}
}

func TestDataLeavesItsStageOnlyThroughOnFork(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	mustUp(t, m, shop("shop"))
	req := forkOf("shop")
	req.Stage = "staging"
	_, err := m.Fork(t.Context(), root, req, nil)
	wantCode(t, err, isle.Refused, "no on_fork")
	mustUp(t, m, reseeds("shop", "refuse"))
	_, err = m.Fork(t.Context(), root, req, nil)
	wantCode(t, err, isle.Failed, "taken away", "stays in stage testing")
	w.checkRunning(t, m, 1)
	if len(w.files) != 1 || len(w.volumes) != 1 {
		t.Error("its volume is left")
	}
	mustUp(t, m, reseeds("shop", "hang"))
	done := make(chan error, 1)
	go func() { _, err := m.Fork(t.Context(), root, req, nil); done <- err }()
	waitFor(t, "on_fork runs", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return slices.Contains(w.executed, "db hang") })
	ref := isle.Ref{Name: "shop-f1", Stage: "staging"}
	_, err = m.Exec(t.Context(), root, ref, "db", Exec{Command: []string{"cat"}})
	wantCode(t, err, isle.Conflict, "nobody enters")
	wantCode(t, m.CopyOut(t.Context(), root, ref, "db", "/data", nil), isle.Conflict, "nobody enters")
	wantCode(t, m.Logs(t.Context(), root, ref, LogOptions{}, nil), isle.Conflict, "nobody enters")
	mustDown(t, m, ref, false)
	<-done
	if len(w.files) != 1 {
		t.Error("its volume is left")
	}
	mustUp(t, m, reseeds("shop", "reseed"))
	if f := mustFork(t, m, req)[0].Environment; f.Ref != ref || !f.Crossed || f.Opening != Open {
		t.Errorf("%+v", f)
	}
}

func TestWhatIsWrittenBeforeOnForkStaysInItsStage(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	src := mustUp(t, m, reseeds("shop", "reseed")).Environment.Ref
	w.tree = spec.Tree{Entries: []spec.TreeEntry{{Path: ".", Type: spec.TypeDir}, {Path: "bob", Type: spec.TypeFile, Digest: isle.DigestOf(nil)}}}
	if err := m.CopyIn(t.Context(), root, src, "db", "/data", true, strings.NewReader("")); err != nil {
		t.Fatal(err)
	}
	for stage, stays := range map[string]bool{"testing": true, "staging": false} {
		req := forkOf("shop")
		req.Stage = stage
		before := m.cfg.Now()
		forks, err := m.Fork(t.Context(), root, req, func(p Progress) {
			if p.Step == "on_fork" && p.State == "start" {
				m.find(isle.Ref{Name: "shop-f1", Stage: stage}).log("web").write(before, before, false, []byte("bob lives in Elm Street\n"))
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		l := m.find(forks[0].Environment.Ref)
		l.log("web").write(before, before, false, []byte("bob again, told late\n"))
		l.log("web").write(m.cfg.Now(), m.cfg.Now(), false, []byte("open\n"))
		var lines []string
		if err := m.Logs(t.Context(), root, l.ref, LogOptions{Services: []string{"web"}}, func(x LogLine) error { lines = append(lines, string(x.Data)); return nil }); err != nil {
			t.Fatal(err)
		}
		if has := strings.Contains(strings.Join(lines, ""), "bob"); has != stays || !slices.Contains(lines, "open\n") {
			t.Errorf("in stage %s the logs are %q", stage, lines)
		}
		if v, ok := m.volume(l.ref, "db", "/data"); !ok || stays != (v.Baseline != "") {
			t.Errorf("in stage %s the names of files before: %q", stage, v.Baseline)
		}
	}
}

func TestWhatCannotBeForkedIsSaidAndLeavesNothing(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	_, err := m.Fork(t.Context(), root, forkOf("shop"), nil)
	wantCode(t, err, isle.NotFound, "shop")
	mustUp(t, m, shop("shop"))
	mustUp(t, m, shop("other"))
	taken := forkOf("shop")
	taken.Name = "other"
	_, err = m.Fork(t.Context(), root, taken, nil)
	wantCode(t, err, isle.Conflict, "the name other is taken")
	mustDown(t, m, taken.From, false)
	_, err = m.Fork(t.Context(), root, forkOf("shop"), nil)
	wantCode(t, err, isle.NotFound, "its volumes are kept")
	mustUp(t, m, shop("shop"))
	w.noSpace = isle.Errorf(isle.Exhausted, "no space left")
	three := forkOf("shop")
	three.N = 3
	_, err = m.Fork(t.Context(), root, three, nil)
	wantCode(t, err, isle.Exhausted, "no space left")
	w.checkRunning(t, m, 2)
	if len(w.files) != 2 || len(w.volumes) != 2 {
		t.Error("volumes are left")
	}
	w.noSpace = nil
	three.May = func(p ForkPlan) error {
		if len(p.Forks) != 3 || p.Source != three.From || p.Project != "shop" {
			t.Errorf("asked about %v", p)
		}
		return isle.Errorf(isle.Refused, "no")
	}
	_, err = m.Fork(t.Context(), root, three, nil)
	wantCode(t, err, isle.Refused)
	three.May, three.Name = nil, "x"
	var names []string
	for _, r := range mustFork(t, m, three) {
		names = append(names, r.Environment.Ref.Name)
	}
	if !slices.Equal(names, []string{"x-1", "x-2", "x-3"}) {
		t.Error(names)
	}
	w.checkRunning(t, m, 5)
}

func TestAOneShotForkEndsWithItsClient(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	mustUp(t, m, reseeds("shop", "hang"))
	req := forkOf("shop")
	req.OneShot = true
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		waitFor(t, "on_fork runs", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.executed) == 1 })
		cancel()
	}()
	if _, err := m.Fork(ctx, root, req, nil); err == nil {
		t.Error("it was made")
	}
	w.checkRunning(t, m, 1)
	if len(w.files) != 1 {
		t.Error("its volume is left")
	}
}

func TestWhoForksIsAskedAboutWhatIsReallyCopied(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	mine := mustSnapshot(t, m, mustUp(t, m, shop("mine")).Environment.Ref, SnapshotRequest{Tag: "latest"})
	other := mustSnapshot(t, m, mustUp(t, m, shop("other")).Environment.Ref, SnapshotRequest{})
	req := ForkRequest{At: "latest"}
	if p, err := m.PlanFork(req); err != nil || p.Source.Name != "mine" || p.Snapshot != mine.Digest {
		t.Fatal(p, err)
	}
	if _, err := m.cfg.Snapshots.(*snapshot.Snapshots).Tag(t.Context(), root, string(other.Digest), "latest", true); err != nil { // as somebody else does now
		t.Fatal(err)
	}
	req.May = func(p ForkPlan) error {
		if p.Source.Name != "other" || p.Snapshot != other.Digest || p.Instance != other.Manifest.Instance {
			t.Errorf("asked about %+v", p)
		}
		return isle.Errorf(isle.Refused, "no")
	}
	_, err := m.Fork(t.Context(), root, req, nil)
	wantCode(t, err, isle.Refused)
	w.checkRunning(t, m, 2)
}

func TestNothingIsMadeOfASnapshotWhoseImagesAreGone(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	src := mustUp(t, m, shop("shop")).Environment
	mustSnapshot(t, m, src.Ref, SnapshotRequest{Tag: "good"})
	mustDown(t, m, src.Ref, true)
	w.imageless = map[isle.Digest]bool{img("db").Digest(): true}
	before := len(w.entries)
	_, err := m.Fork(t.Context(), root, ForkRequest{At: "good", Name: "copy"}, nil)
	wantCode(t, err, isle.NotFound, "the image "+img("db").Digest().Short()+" of service db")
	_, err = m.RestoreTo(t.Context(), root, src.Ref, RestoreRequest{At: "good"}, nil)
	wantCode(t, err, isle.NotFound, "of service db")
	if len(w.entries) != before {
		t.Error("something was recorded")
	}
	w.checkEmpty(t)
	w.imageless = nil
	mustFork(t, m, ForkRequest{At: "good", Name: "copy"}) // the name is free
}
