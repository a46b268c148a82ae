package environment

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// sealed is a digest of a file and images.
func sealed(f spec.File, images map[string]image.Image) (isle.Digest, error) {
	b, err := json.Marshal(struct {
		File   spec.File
		Images map[string]image.Image
	}{f, images})
	return isle.DigestOf(b), err
}

// warm is a shop whose ready state is kept, and whose copies have something to do.
func warm(name string) UpRequest {
	req := strong(reseeds(name, "reseed"))
	req.Spec.Warm = true
	return req
}

// kept waits until it is known what became of the ready state of an environment.
func kept(t *testing.T, m *Manager, ref isle.Ref) (note string) {
	t.Helper()
	waitFor(t, "its ready state is kept, or not", func() bool {
		e, err := m.Get(t.Context(), ref)
		note = e.Kept
		return err != nil || note != ""
	})
	return note
}

// leaveReady leaves a ready state and nothing else.
func leaveReady(t *testing.T, m *Manager) {
	t.Helper()
	req := warm("first")
	mustUp(t, m, req)
	if note := kept(t, m, req.Ref); !strings.HasPrefix(note, "kept in snapshot") {
		t.Fatal(note)
	}
	mustDown(t, m, req.Ref, true)
}

func TestAnEnvironmentBeginsWithTheReadyStateOfItsRelease(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	first := mustUp(t, m, warm("one"))
	if first.Warm != "" || first.NotWarm != "" {
		t.Errorf("%+v", first)
	}
	if note := kept(t, m, first.Environment.Ref); !strings.HasPrefix(note, "kept in snapshot") {
		t.Fatal(note)
	}
	w.write(m, first.Environment.Ref, "an order")
	ttl := time.Hour
	req := warm("two")
	req.TTL, req.Branch, req.Release = &ttl, "topic", isle.DigestOf([]byte("release"))
	two := mustUp(t, m, req)
	three := mustUp(t, m, warm("three"))
	w.checkRunning(t, m, 3)
	w.noMemory(t)
	if len(w.launched) != 2 || len(w.woken) != 4 || w.captures != 1 {
		t.Errorf("launched %v, woken %v, %d captures", w.launched, w.woken, w.captures)
	}
	if !slices.Equal(w.executed, []string{"db reseed", "db reseed"}) {
		t.Errorf("executed %v", w.executed)
	}
	seen := map[string]bool{}
	for _, r := range []UpResult{first, two, three} {
		e := r.Environment
		if e = mustGet(t, m, e.Ref); e.Generation != 0 && (r.Warm == "" || e.Origin != r.Warm || !e.Warm || e.Fork || e.Opening != Open || e.Parent != first.Environment.Instance) {
			t.Errorf("%+v", e)
		}
		if seen[string(e.Instance)] || e.Ref.Name != "one" && e.Generation == 0 {
			t.Errorf("%+v", e)
		}
		seen[string(e.Instance)] = true
		for _, s := range e.Services {
			x, boot := w.launches[s.Launch], w.sandboxes[s.Launch].boot
			if x.Hostname != s.Name+"-"+e.Ref.Name || boot.Hostname != x.Hostname || isle.DigestOf(boot.Secret) != s.SecretHash || seen[x.MachineID] {
				t.Errorf("%+v, %+v", x, boot)
			}
			seen[x.MachineID] = true
		}
	}
	if e := two.Environment; e.Branch != "topic" || e.Release != req.Release || e.Expires.IsZero() || e.Owner != root {
		t.Errorf("%+v", e)
	}
	if got := w.read(m, two.Environment.Ref); got != "" {
		t.Errorf("it holds %q of another", got)
	}
	found := slices.ContainsFunc(w.entries, func(e audit.Entry) bool {
		return e.Action == isle.ActionEnvironmentLaunch && e.Summary == "warm start" && e.Instance == two.Environment.Instance
	})
	if !found {
		t.Error("no entry tells of the warm start")
	}
	// It is as any other: the next server takes it up, and it is replaced in place.
	m.Close()
	m = w.serve(nil)
	w.checkRunning(t, m, 3)
	changed := warm("two")
	changed.Images["web"] = img("web 2")
	if r := mustUp(t, m, changed); !r.Changed || r.Warm != "" {
		t.Errorf("%+v", r)
	}
	// What is up already is left alone, and kept volumes are taken up.
	mustDown(t, m, three.Environment.Ref, false)
	if r := mustUp(t, m, warm("three")); r.Warm != "" || r.NotWarm != "" {
		t.Errorf("%+v", r)
	}
	all, _ := m.List(t.Context())
	for _, e := range all {
		mustDown(t, m, e.Ref, true)
	}
	w.checkEmpty(t)
}

func mustGet(t *testing.T, m *Manager, ref isle.Ref) Environment {
	t.Helper()
	e, err := m.Get(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestMemoryIsHandedToNobodyElse(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	leaveReady(t, m)
	for name, change := range map[string]func(*UpRequest, *isle.Actor){
		"owner":         func(_ *UpRequest, who *isle.Actor) { who.Name = "eve" },
		"kind-of-owner": func(_ *UpRequest, who *isle.Actor) { who.Kind = isle.Machine },
		"stage":         func(r *UpRequest, _ *isle.Actor) { r.Ref.Stage = "staging" },
		"project":       func(r *UpRequest, _ *isle.Actor) { r.Project = "other" },
		"image":         func(r *UpRequest, _ *isle.Actor) { r.Images["web"] = img("web 2") },
		"variable":      func(r *UpRequest, _ *isle.Actor) { r.Spec.Services[0].Env = map[string]string{"A": "1"} },
		"limits":        func(r *UpRequest, _ *isle.Actor) { r.Spec.Limits.Memory = 2 << 20 },
		"egress":        func(r *UpRequest, _ *isle.Actor) { r.Spec.Egress = []spec.Egress{{Host: "a.example", Port: 443}} },
		"not-asked":     func(r *UpRequest, _ *isle.Actor) { r.Spec.Warm = false },
		"cold":          func(r *UpRequest, _ *isle.Actor) { r.Cold = true },
	} {
		req, who := warm(name), root
		change(&req, &who)
		r, err := m.Up(t.Context(), who, req, nil)
		if err != nil || r.Warm != "" || r.NotWarm != "" {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		kept := kept
		if name == "not-asked" || name == "cold" {
			kept = func(*testing.T, *Manager, isle.Ref) string { return "" }
		}
		kept(t, m, req.Ref)
		mustDown(t, m, req.Ref, true)
	}
	if r := mustUp(t, m, warm("same")); r.Warm == "" {
		t.Errorf("%+v", r)
	}
}

func TestWhatSomethingHasComeIntoIsNotKept(t *testing.T) {
	for name, c := range map[string]struct {
		want   string
		change func(*UpRequest)
		during func(w *world, m *Manager, l *live)
	}{
		"an exec":     {"environment:exec came in", nil, func(_ *world, _ *Manager, l *live) { _ = l.comeIn(context.Background(), "environment:exec") }},
		"an identity": {"an identity came in", nil, func(_ *world, m *Manager, l *live) { m.Received(l.instance, "an identity") }},
		"a connection": {"connected to orders-db", nil, func(w *world, _ *Manager, _ *live) {
			w.doors = []Door{{Destination: "orders-db", State: "open", Count: 1}}
		}},
		"inspection": {"egress to a.example is inspected", func(r *UpRequest) { r.Spec.Egress = []spec.Egress{{Host: "a.example", Port: 443, Inspect: true}} }, nil},
		"nothing": {"kept in snapshot", nil, func(w *world, _ *Manager, _ *live) {
			w.doors = []Door{{Destination: "b.example:443", State: "refused", Count: 9}}
		}},
		"a second start": {"had to be started again", nil, func(_ *world, _ *Manager, l *live) { l.update(func(e *Environment) { e.Services[0].Restarts = 1 }) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			var m *Manager
			req := warm("shop")
			if c.change != nil {
				c.change(&req)
			}
			m = w.serve(func(cfg *Config) {
				cfg.Fault = func(point string) {
					if c.during != nil && point == "up.concluding" {
						c.during(w, m, m.find(req.Ref))
					}
				}
			})
			mustUp(t, m, req)
			if note := kept(t, m, req.Ref); !strings.Contains(note, c.want) {
				t.Error(note)
			}
			if list, _ := w.life.taken.List(); len(list) != 0 && name != "nothing" {
				t.Errorf("%+v", list)
			}
			mustDown(t, m, req.Ref, true)
			w.checkEmpty(t)
		})
	}
}

func TestWhatComesInWaitsForTheCaptureOfTheReadyState(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	e := mustUp(t, m, strong(shop("shop"))).Environment
	l := m.find(e.Ref)
	r := m.standStill(l, "key")
	if other := m.standStill(l, "key"); other != nil {
		t.Error("two of one key are captured at a time")
	}
	m.letKeep("key")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.comeIn(ctx, "a caller that leaves"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	entered := make(chan error, 1)
	go func() { entered <- l.comeIn(t.Context(), "a caller") }()
	r.open()
	r.open()
	if err := <-entered; err != nil {
		t.Error(err)
	}
	if m.standStill(l, "key") != nil {
		t.Error("something has come in")
	}
}

// Whatever leads into an environment notes that something has come in.
func TestNothingComesInUnnoted(t *testing.T) {
	for name, enter := range map[string]func(m *Manager, l *live) error{
		"exec": func(m *Manager, l *live) error {
			_, err := m.Exec(t.Context(), root, l.ref, "db", Exec{Command: []string{"reseed"}})
			return err
		},
		"cp": func(m *Manager, l *live) error {
			return m.CopyIn(t.Context(), root, l.ref, "db", "/data", false, strings.NewReader(""))
		},
		"list": func(m *Manager, l *live) error {
			_, err := m.Folder(t.Context(), root, l.ref, "db", "/data")
			return err
		},
		"diff":           func(m *Manager, l *live) error { _, err := m.Diff(t.Context(), root, l.ref, "db"); return err },
		"port-forward":   func(m *Manager, l *live) error { _, err := m.Forward(t.Context(), root, l.ref, "db", 5432); return err },
		"published port": func(_ *Manager, l *live) error { _, err := l.dial(t.Context(), "db", 5432); return err },
		"name": func(_ *Manager, l *live) error {
			_, err := l.transport.DialContext(t.Context(), "tcp", "db:5432")
			return err
		},
	} {
		w := newWorld(t)
		w.inside = func(int) (io.ReadWriteCloser, error) { return nil, nil }
		m := w.serve(nil)
		e := mustUp(t, m, strong(shop("shop"))).Environment
		l := m.find(e.Ref)
		if l.touched != "" {
			t.Errorf("%s: %q has come in before", name, l.touched)
		}
		if err := enter(m, l); err != nil || l.touched == "" {
			t.Errorf("%s: %v, noted as %q", name, err, l.touched)
		}
	}
}

// Of many that begin at once one leaves its ready state.
func TestManyThatBeginAtOnceLeaveOneReadyState(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			if _, err := m.Up(t.Context(), root, warm(fmt.Sprintf("shop-%d", i)), nil); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	waitFor(t, "one is kept", func() bool { list, _ := w.life.taken.List(); return len(list) == 1 })
	w.checkRunning(t, m, 8)
	m.Close()
	if list, _ := w.life.taken.List(); len(list) != 1 {
		t.Errorf("%d ready states", len(list))
	}
}

func TestATeardownComesBeforeTheReadyState(t *testing.T) {
	w := newWorld(t)
	var m *Manager
	torn := make(chan error, 1)
	m = w.serve(func(cfg *Config) {
		cfg.Fault = func(point string) {
			if point != "ready.captured" {
				return
			}
			l := m.find(shop("shop").Ref)
			go func() { torn <- m.Down(context.Background(), root, l.ref, true, nil) }()
			m.locks.mu.Lock()
			held := m.locks.refs[l.ref].holder
			m.locks.mu.Unlock()
			<-held.ctx.Done() // it does not wait for the end
		}
	})
	mustUp(t, m, warm("shop"))
	select {
	case err := <-torn:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("nothing is captured")
	}
	m.Close()
	w.checkEmpty(t)
}

func TestAWarmStartThatComesToNothingIsAColdOne(t *testing.T) {
	for name, c := range map[string]struct {
		why   string
		spoil func(w *world)
		again bool // another ready state is kept
	}{
		"it cannot be brought back": {"it does not fit", func(w *world) { w.broken = errors.New("it does not fit") }, true},
		"another build":             {"captured with another build", func(w *world) { w.build = isle.DigestOf([]byte("newer")); w.builtOf = w.build }, true},
		"no space":                  {"no space left", func(w *world) { w.noSpace = isle.Errorf(isle.Exhausted, "no space left") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			m := w.serve(nil)
			leaveReady(t, m)
			w.mu.Lock()
			c.spoil(w)
			w.mu.Unlock()
			var said []string
			r, err := m.Up(t.Context(), root, warm("shop"), func(p Progress) { said = append(said, p.Step+" "+p.State+" "+p.Message) })
			if err != nil || r.Warm != "" || !strings.Contains(r.NotWarm, c.why) {
				t.Fatalf("%+v, %v", r, err)
			}
			if !slices.ContainsFunc(said, func(s string) bool {
				return strings.HasPrefix(s, "warm failed started anew: ") && strings.Contains(s, c.why)
			}) {
				t.Errorf("%q", said)
			}
			if e := mustGet(t, m, r.Environment.Ref); e.Warm || e.Generation != 0 || e.Parent != "" {
				t.Errorf("%+v", e)
			}
			if note := kept(t, m, r.Environment.Ref); strings.HasPrefix(note, "kept") != c.again {
				t.Error(note)
			}
			if list, _ := w.life.taken.List(); len(list) != map[bool]int{true: 1}[c.again] {
				t.Errorf("%d snapshots", len(list))
			}
			w.checkRunning(t, m, 1)
			mustDown(t, m, r.Environment.Ref, true)
			w.checkEmpty(t)
		})
	}
}

// An on_fork that fails in one copy fails in the next.
func TestAStateInWhichOnForkFailsIsNotKeptAgain(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := warm("one")
	req.Spec.Services[1].OnFork = []string{"fail"}
	mustUp(t, m, req)
	kept(t, m, req.Ref)
	req.Ref.Name = "two"
	r := mustUp(t, m, req)
	if r.Warm != "" || !strings.Contains(r.NotWarm, "on_fork of service db") {
		t.Errorf("%+v", r)
	}
	req.Ref.Name = "three"
	if r := mustUp(t, m, req); r.Warm != "" || r.NotWarm != "" || r.ready != nil {
		t.Errorf("%+v", r)
	}
	w.checkRunning(t, m, 3)
	if list, _ := w.life.taken.List(); len(list) != 0 {
		t.Errorf("%d snapshots", len(list))
	}
}
