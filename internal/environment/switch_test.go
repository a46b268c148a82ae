package environment

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"isle"
	"isle/internal/spec"
)

// Freeze implements Freezer.
func (d *fakeDriver) Freeze(_ context.Context, instance isle.ID) error {
	l := (*life)(d)
	if err := l.begin(); err != nil {
		return err
	}
	defer l.mu.Unlock()
	l.frozen[instance] = true
	return nil
}

// Thaw implements Freezer.
func (d *fakeDriver) Thaw(_ context.Context, instance isle.ID) error {
	l := (*life)(d)
	if err := l.begin(); err != nil {
		return err
	}
	defer l.mu.Unlock()
	delete(l.frozen, instance)
	if l.thawed != nil {
		l.thawed(instance, l.networks[instance])
	}
	return nil
}

// site is a release of an environment that owns no volume.
func site(version string) UpRequest {
	req := shop("shop")
	web := spec.Service{Name: "web", Command: []string{"run"}, Env: map[string]string{"VERSION": version}, Restart: "no", Ports: []spec.Port{{Name: "web", Number: 8080}}}
	req.Spec.Services = []spec.Service{web}
	req.Release = isle.DigestOf([]byte(version))
	return req
}

// data is a release of one that does.
func data(version string) UpRequest {
	req := shop("shop")
	req.Spec.Services[0].Env = map[string]string{"VERSION": version}
	req.Spec.Services[0].Ports = []spec.Port{{Name: "web", Number: 8080}}
	req.Release = isle.DigestOf([]byte(version))
	return req
}

// serves waits until one instance alone serves, of the version, and those that
// were put aside are frozen.
func (w *world) serves(t *testing.T, m *Manager, version string, asides int) Environment {
	t.Helper()
	var e Environment
	waitFor(t, version+" serves", func() bool {
		var err error
		if e, err = m.Get(t.Context(), shop("shop").Ref); err != nil || e.Phase != Running || e.Release != isle.DigestOf([]byte(version)) {
			return false
		}
		all := m.Asides(t.Context(), e.Ref)
		w.mu.Lock()
		defer w.mu.Unlock()
		want := len(e.Services)
		for _, a := range all {
			want += len(a.Services)
		}
		return len(all) == asides && len(w.frozen) == asides && len(w.sandboxes) == want && len(w.networks) == 1+asides && len(w.envs) == 1+asides
	})
	return e
}

func TestASwitchKeepsTheOneBeforeAndGoesBackToIt(t *testing.T) {
	w := newWorld(t)
	w.inside = echo
	m := w.serve(nil)
	one := mustUp(t, m, site("one")).Environment
	r := mustUp(t, m, site("two"))
	two := w.serves(t, m, "two", 1)
	if r.Switch == nil || r.Switch.Before != one.Instance || r.Switch.Kept || two.Instance == one.Instance || two.Services[0].Ports[0].Host != one.Services[0].Ports[0].Host {
		t.Fatalf("%+v", r)
	}
	back := site("one")
	back.Back = true
	if r = mustUp(t, m, back); !r.Switch.Kept || r.Environment.Instance != one.Instance {
		t.Fatalf("%+v", r)
	}
	w.serves(t, m, "one", 1)
	// The next server finds both as they were.
	m.Close()
	m = w.serve(nil)
	w.serves(t, m, "one", 1)
	back = site("two")
	back.Back = true
	if r = mustUp(t, m, back); !r.Switch.Kept || r.Environment.Instance != two.Instance {
		t.Fatalf("%+v", r)
	}
	w.serves(t, m, "two", 1)
	// Of those before the last one none is kept.
	mustUp(t, m, site("three"))
	w.serves(t, m, "three", 1)
	if all := m.Asides(t.Context(), one.Ref); all[0].Instance != two.Instance {
		t.Errorf("%+v is kept", all)
	}
	mustDown(t, m, one.Ref, false)
	w.checkEmpty(t)
}

func TestWhatWasPutAsideIsRemovedWhenItsTimeIsOver(t *testing.T) {
	w := newWorld(t)
	var ahead atomic.Int64
	m := w.serve(func(c *Config) {
		c.KeepAside = time.Hour
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	mustUp(t, m, site("one"))
	mustUp(t, m, site("two"))
	w.serves(t, m, "two", 1)
	ahead.Store(int64(time.Hour))
	w.serves(t, m, "two", 0)
}

func TestASwitchThatFailsChangesNothing(t *testing.T) {
	refused := errors.New("somebody was first")
	for name, change := range map[string]func(*UpRequest){
		"it does not start": func(r *UpRequest) { r.Spec.Services[0].Command = []string{"fail"} },
		"it is refused":     func(r *UpRequest) { r.Last = func(context.Context) error { return refused } },
		"it cannot start":   func(r *UpRequest) { r.Spec.Services[0].Command = []string{"unlaunchable"} },
	} {
		for kind, of := range map[string]func(string) UpRequest{"site": site, "data": data} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				w := newWorld(t)
				m := w.serve(nil)
				before := mustUp(t, m, of("one")).Environment
				next := of("two")
				change(&next)
				_, err := m.Up(t.Context(), root, next, nil)
				if err == nil {
					t.Fatal("it was switched")
				}
				wantCode(t, err, isle.CodeOf(err), "was not switched, and is as it was")
				after := w.serves(t, m, "one", 0)
				if after.Instance != before.Instance || kind == "site" && after.Services[0].Launch != before.Services[0].Launch {
					t.Errorf("%+v", after)
				}
				if n := len(m.volumesOf(before.Ref)); n != len(w.volumes) || kind == "data" && n != 1 {
					t.Errorf("%d volumes of %d", n, len(w.volumes))
				}
				mustUp(t, m, of("three"))
				w.serves(t, m, "three", map[string]int{"site": 1, "data": 0}[kind])
			})
		}
	}
}

func TestVolumesAreHandedOverAndSaved(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	one := mustUp(t, m, data("one")).Environment
	w.write(m, one.Ref, "written by one")
	r := mustUp(t, m, data("two"))
	two := w.serves(t, m, "two", 0)
	if r.Switch == nil || r.Switch.Pause <= 0 || r.Switch.Snapshot == "" || !r.Switch.Until.IsZero() || r.Switch.Before != one.Instance {
		t.Fatalf("%+v", r.Switch)
	}
	if got := w.read(m, two.Ref); got != "written by one" {
		t.Errorf("it holds %q", got)
	}
	if len(two.Saved) != 1 || two.Saved[0].Snapshot != r.Switch.Snapshot || two.Saved[0].Release != one.Release || two.Saved[0].For != two.Release {
		t.Errorf("saved %+v", two.Saved)
	}
	w.write(m, two.Ref, "written by two")
	if _, err := m.RestoreTo(t.Context(), root, two.Ref, RestoreRequest{At: string(r.Switch.Snapshot)}, nil); err != nil {
		t.Fatal(err)
	}
	if e := w.serves(t, m, "one", 0); w.read(m, e.Ref) != "written by one" {
		t.Error("it does not hold what one has written")
	}
}

// switches are the stories of a switch: whoever serves after them is the old or
// the new one, whole.
func switches() []story {
	up := func(of func(string) UpRequest, version string, back bool) func(*testing.T, *world, *Manager) {
		return func(t *testing.T, w *world, m *Manager) {
			req := of(version)
			req.Back = back
			req.Last = func(context.Context) error { return nil }
			m.Up(t.Context(), root, req, nil)
			// What goes on after it.
			for range 300 {
				if all := m.Asides(t.Context(), req.Ref); w.life.isDead() || len(all) == 0 {
					break
				}
				time.Sleep(time.Millisecond)
			}
		}
	}
	return []story{
		{
			"switch", []string{"switch.recorded", "up.launched", "switch.up", "switch.committed", "switch.taken", "switch.drained", "switch.frozen"},
			func(t *testing.T, m *Manager) { mustUp(t, m, site("one")) }, up(site, "two", false),
		},
		{
			"switch back", []string{"switch.thawed", "switch.committed", "switch.taken", "switch.drained", "switch.frozen"},
			func(t *testing.T, m *Manager) { mustUp(t, m, site("two")); mustUp(t, m, site("one")) }, up(site, "two", true),
		},
		{
			"remove", []string{"aside.removed"},
			func(t *testing.T, m *Manager) {
				mustUp(t, m, site("zero"))
				mustUp(t, m, site("one"))
			}, up(site, "two", false),
		},
		{
			"hand over", []string{"switch.recorded", "handover.recorded", "handover.stopped", "handover.copied", "up.launched", "up.healthy", "switch.up", "switch.committed", "switch.taken", "handover.saved", "aside.removed"},
			func(t *testing.T, m *Manager) { mustUp(t, m, data("one")) }, up(data, "two", false),
		},
		{
			"hand over in vain", []string{"handover.copied", "handover.resumed"},
			func(t *testing.T, m *Manager) { mustUp(t, m, data("one")) },
			func(t *testing.T, _ *world, m *Manager) {
				req := data("two")
				req.Last = func(context.Context) error { return errors.New("no") }
				m.Up(t.Context(), root, req, nil)
			},
		},
	}
}

func TestKilledAtAnyStepOfASwitchTheOldOrTheNewOneServes(t *testing.T) {
	for _, s := range switches() {
		for i, point := range s.points {
			for j, second := range []string{"", "reconcile.swept", "reconcile.adopted"} {
				if j > 0 && (i+j)%3 != 0 {
					continue // a third of the pairs shows as much
				}
				t.Run(s.name+"/"+point+"/"+second, func(t *testing.T) {
					t.Parallel()
					killedInASwitch(t, s, point, second)
				})
			}
		}
	}
}

// anywhere listens where nobody does: worlds beside each other have the same names.
func anywhere(_, _, _ string) (net.Listener, error) { return net.Listen("tcp4", "127.0.0.1:0") }

func killedInASwitch(t *testing.T, s story, point, second string) {
	w := newWorld(t)
	w.inside = echo
	var armed, hit atomic.Bool
	dieAt := func(p string) func(*Config) {
		return func(c *Config) {
			c.Listen = anywhere
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
	if s.name[:3] == "swi" || s.name == "remove" { // what was put aside before is at rest
		e, _ := m.Get(t.Context(), shop("shop").Ref)
		waitFor(t, "it is frozen", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return len(w.frozen) == len(m.Asides(t.Context(), e.Ref))
		})
	}
	armed.Store(true)
	acted := make(chan struct{})
	go func() { defer close(acted); s.act(t, w, m) }()
	waitFor(t, "the story passes "+point, hit.Load)
	m.Close()
	<-acted
	if second != "" {
		w.serve(dieAt(second)).Close()
	}
	m = w.serve(func(c *Config) { c.Listen = anywhere })
	of, new := data, "one"
	if slices.Contains(s.points[slices.Index(s.points, point):], "switch.taken") == false || point == "switch.taken" {
		new = "two"
	}
	asides := 0
	if s.name[:3] == "swi" || s.name == "remove" {
		of = site
		if asides = 1; new == "one" && s.name == "switch" {
			asides = 0
		}
	}
	if s.name == "remove" {
		new, asides = "two", 1
	}
	if s.name == "hand over in vain" {
		new = "one"
	}
	e := w.serves(t, m, new, asides)
	if n := len(m.volumesOf(e.Ref)); len(w.volumes) != n || of(new).Spec.Services[0].Name == "web" && n > 1 {
		t.Errorf("%d volumes, %d of them its own", len(w.volumes), n)
	}
	if new == "two" && s.name == "hand over" && len(e.Saved) != 1 {
		t.Errorf("saved %+v", e.Saved)
	}
	// Repeated, it ends right.
	mustUp(t, m, of("two"))
	w.serves(t, m, "two", map[bool]int{true: 1, false: 0}[s.name[:3] == "swi" || s.name == "remove"])
	mustDown(t, m, e.Ref, true)
	w.checkEmpty(t)
}
