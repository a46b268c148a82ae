package environment

import (
	"errors"
	"slices"
	"testing"

	"isle"
	"isle/internal/spec"
)

// ready waits until n spares of a class are ready.
func ready(t *testing.T, m *Manager, class string, n int) {
	t.Helper()
	waitFor(t, "spares are ready", func() bool {
		for _, p := range m.Prepared() {
			if p.Class == class {
				return p.Ready == n
			}
		}
		return n == 0
	})
}

func spares(n int) func(*Config) {
	return func(c *Config) { c.Spares = map[string]int{spec.Container: n} }
}

func TestALaunchTakesWhatIsPreparedAndItIsMadeAnew(t *testing.T) {
	w := newWorld(t)
	m := w.serve(spares(2))
	ready(t, m, spec.Container, 2)
	w.mu.Lock()
	first := w.stocks[0]
	w.mu.Unlock()
	req := shop("shop")
	e := mustUp(t, m, req).Environment
	db, _ := e.service("db")
	if e.Instance != first.Shared.Instance || e.UIDBase != first.UIDBase || db.Launch != first.Launch {
		t.Errorf("the environment is %s with uids %d and launch %s, prepared was %+v", e.Instance, e.UIDBase, db.Launch, first)
	}
	ready(t, m, spec.Container, 2)
	w.mu.Lock()
	uids := map[uint32]bool{}
	for _, s := range w.stocks {
		if s.Shared.Limits != (spec.Limits{}) || s.Limits != spec.DefaultLimits() || s.Init == "" || uids[s.UIDBase] {
			t.Errorf("prepared with %+v", s)
		}
		uids[s.UIDBase] = true
	}
	if len(w.stocks) != 3 || w.prepared[e.Instance] != req.Spec.Limits {
		t.Errorf("%d were prepared; the environment's limits are %+v", len(w.stocks), w.prepared[e.Instance])
	}
	w.mu.Unlock()
	// The same class alone: another one has none.
	other := shop("other")
	other.Spec.Isolation = spec.Gvisor
	o := mustUp(t, m, other).Environment
	if slices.ContainsFunc(w.stocks, func(s Stock) bool { return s.Shared.Instance == o.Instance }) {
		t.Error("an environment of another class took it")
	}
	mustDown(t, m, req.Ref, true)
	mustDown(t, m, other.Ref, true)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	w.checkEmpty(t)
}

func TestWhatNobodyAskedForIsGoneAfterACrash(t *testing.T) {
	for _, point := range []string{"spare.network", "spare.stocked"} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			died := make(chan struct{})
			m := w.serve(func(c *Config) {
				spares(3)(c)
				c.Fault = func(at string) {
					w.mu.Lock()
					defer w.mu.Unlock()
					if at == point && !w.life.dead && len(w.networks) == 2 { // at the second
						w.life.dead = true
						close(died)
					}
				}
			})
			<-died
			m.Close()
			if len(w.networks) != 2 || len(w.prepared) == 0 {
				t.Errorf("%d groups, %d airlocks", len(w.prepared), len(w.networks))
			}
			next := w.serve(nil)
			w.checkEmpty(t)
			if p := next.Prepared(); len(p) != 0 {
				t.Errorf("a server that is to prepare nothing says %v", p)
			}
		})
	}
}

func TestALaunchThatIsNotRecordedLeavesNothingOfWhatWasPrepared(t *testing.T) {
	w := newWorld(t)
	m := w.serve(spares(1))
	ready(t, m, spec.Container, 1)
	w.mu.Lock()
	w.full = errors.New("no space left")
	w.mu.Unlock()
	if _, err := m.Up(t.Context(), root, shop("shop"), nil); err == nil {
		t.Fatal("an environment came up that could not be recorded")
	}
	w.mu.Lock()
	w.full = nil
	w.mu.Unlock()
	ready(t, m, spec.Container, 1)
	w.mu.Lock()
	if len(w.prepared) != 1 || len(w.networks) != 1 {
		t.Errorf("%d groups, %d airlocks", len(w.prepared), len(w.networks))
	}
	w.mu.Unlock()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	w.checkEmpty(t)
}

func TestWhereNothingCanBePreparedLaunchesGoOnWithout(t *testing.T) {
	w := newWorld(t)
	w.unstockable = errors.New("no room")
	m := w.serve(spares(1))
	waitFor(t, "it is told why", func() bool { p := m.Prepared(); return len(p) == 1 && p[0].Trouble != nil })
	w.mu.Lock()
	if len(w.networks) != 0 {
		t.Error("an airlock is left")
	}
	w.mu.Unlock()
	mustUp(t, m, shop("shop"))
	mustDown(t, m, isle.Ref{Name: "shop", Stage: "testing"}, true)
	w.checkEmpty(t)
}

func TestTheServiceThatFitsBeginsWithWhatIsPrepared(t *testing.T) {
	web, db := spec.Service{Name: "web"}, spec.Service{Name: "db", Volumes: []spec.Volume{{Path: "/data"}}}
	late, strong := spec.Service{Name: "late", DependsOn: []string{"db"}}, spec.Service{Name: "strong", Caps: []string{"CAP_NET_RAW"}}
	for _, c := range []struct {
		class    string
		services []spec.Service
		want     string
	}{
		{spec.Container, []spec.Service{db, web}, "db"},
		{spec.Container, []spec.Service{strong, web}, "web"},
		{spec.Container, []spec.Service{strong}, ""},
		{spec.Gvisor, []spec.Service{db, web}, "web"},
		{spec.Gvisor, []spec.Service{db, late}, "db"},
		{spec.Gvisor, []spec.Service{strong}, "strong"},
	} {
		if got := firstToLaunch(spec.File{Isolation: c.class, Services: c.services}); got != c.want {
			t.Errorf("of %v in class %s it is %q, want %q", c.services, c.class, got, c.want)
		}
	}
}
