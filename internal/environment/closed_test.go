package environment

import (
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"isle"
	"isle/internal/spec"
)

// The way through the machine's loopback is no way to another stage: not to its
// published ports, nor to the listener that knows them all by name.
func TestNoWorkloadReachesAnotherStageThroughTheMachine(t *testing.T) {
	w := newWorld(t)
	m := w.serve(func(c *Config) { c.HTTP = "127.0.0.1:0" })
	m.cfg.HTTP = "127.0.0.1:7480" // what it would be
	published := shop("shop")
	published.Ref.Stage = "staging"
	published.Spec.Services[0].Ports = []spec.Port{{Name: "web", Number: 8080}}
	staging := mustUp(t, m, published).Environment
	port := uint16(staging.Services[1].Ports[0].Host)
	testing := mustUp(t, m, shop("other")).Environment
	for _, c := range []struct {
		who     isle.ID
		address string
		port    uint16
		why     string
	}{
		{testing.Instance, "127.0.0.1", port, "a published port of stage staging"},
		{testing.Instance, "127.8.8.8", port, "a published port of stage staging"},
		{testing.Instance, "0.0.0.0", port, "a published port of stage staging"},
		{testing.Instance, "::ffff:127.0.0.1", port, "a published port of stage staging"},
		{testing.Instance, "::1", port, "a published port of stage staging"},
		{isle.NewID(), "127.0.0.1", port, "a published port of stage staging"}, // nobody
		{staging.Instance, "127.0.0.1", port, ""},
		{testing.Instance, "127.0.0.1", port + 1, ""},
		{testing.Instance, "192.0.2.1", port, ""},
		{testing.Instance, "127.0.0.1", 7480, "by name"},
		{staging.Instance, "::", 7480, "by name"},
	} {
		why := m.Closed(c.who, netip.AddrPortFrom(netip.MustParseAddr(c.address), c.port))
		if c.why == "" && why != "" || !strings.Contains(why, c.why) {
			t.Errorf("%s %s:%d: %q, want %q", c.who, c.address, c.port, why, c.why)
		}
	}
}

// Nothing is done to an environment or in it that cannot be written down first.
func TestNothingIsDoneWhereTheLogCannotBeWritten(t *testing.T) {
	w := newWorld(t)
	w.inside = echo
	m := w.serve(nil)
	e := mustUp(t, m, shop("shop")).Environment
	w.fullLog(isle.Errorf(isle.Exhausted, "no space for the log"))
	for name, do := range map[string]func() error{
		"up":   func() error { _, err := m.Up(t.Context(), root, shop("new"), nil); return err },
		"down": func() error { return m.Down(t.Context(), root, e.Ref, true, func(Progress) {}) },
		"extend": func() error {
			_, err := m.Extend(t.Context(), root, e.Ref, 0, true)
			return err
		},
		"exec": func() error {
			_, err := m.Exec(t.Context(), root, e.Ref, "web", Exec{Command: []string{"true"}, Session: isle.NewID()})
			return err
		},
		"forward": func() error { _, err := m.Forward(t.Context(), root, e.Ref, "web", 80); return err },
		"copy in": func() error { return m.CopyIn(t.Context(), root, e.Ref, "web", "/", false, strings.NewReader("")) },
		"copy out": func() error {
			return m.CopyOut(t.Context(), root, e.Ref, "web", "/etc", &strings.Builder{})
		},
		"list": func() error { _, err := m.Folder(t.Context(), root, e.Ref, "web", "/etc"); return err },
		"diff": func() error { _, err := m.Diff(t.Context(), root, e.Ref, "db"); return err },
	} {
		if err := do(); isle.CodeOf(err) != isle.Exhausted {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.fullLog(nil)
	if _, err := m.Get(t.Context(), isle.Ref{Name: "new", Stage: isle.DefaultStage}); isle.CodeOf(err) != isle.NotFound {
		t.Errorf("an environment came up all the same: %v", err)
	}
	now, err := m.Get(t.Context(), e.Ref)
	if err != nil || now.Desired != WantRunning || !now.Expires.Equal(e.Expires) {
		t.Errorf("it is not as it was: %+v %v", now, err)
	}
}

// What ends with its call takes its volumes with it. Whoever may launch and not
// delete must not delete what others kept by launching it once more.
func TestAOneShotTakesNoVolumesThatWereKept(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	e := mustUp(t, m, shop("shop")).Environment
	if err := m.Down(t.Context(), root, e.Ref, false, func(Progress) {}); err != nil {
		t.Fatal(err)
	}
	kept := m.volumesOf(e.Ref)
	if len(kept) == 0 {
		t.Fatal("nothing is kept")
	}
	req := shop("shop")
	req.OneShot = true
	if _, err := m.Up(t.Context(), root, req, nil); isle.CodeOf(err) != isle.Conflict || !strings.Contains(err.Error(), "volumes are kept") {
		t.Errorf("%v", err)
	}
	if left := m.volumesOf(e.Ref); len(left) != len(kept) {
		t.Errorf("%d of %d volumes are left", len(left), len(kept))
	}
}

// A teardown that waits its turn ends what it was asked to, and not what has
// taken the name meanwhile: that may be another project's.
func TestATeardownThatWaitsEndsNothingElse(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	first := mustUp(t, m, shop("shop")).Environment
	held, err := m.locks.acquire(t.Context(), m.ctx, first.Ref, false)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- m.Down(t.Context(), root, first.Ref, true, func(Progress) {}) }()
	<-held.ctx.Done() // it waits, and has told us to give way
	if err := m.takeDown(t.Context(), root, m.find(first.Ref), true, func(Progress) {}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.up(t.Context(), root, shop("shop"), encodeSpec(shop("shop").Spec), func(Progress) {}, func() {}); err != nil {
		t.Fatal(err)
	}
	held.release()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	now, err := m.Get(t.Context(), first.Ref)
	if err != nil || now.Instance == first.Instance || now.Desired != WantRunning || len(m.volumesOf(first.Ref)) == 0 {
		t.Errorf("what came after was torn down: %+v %v", now, err)
	}
}

// The end of a one-shot's call and whoever tears it down meanwhile do the same:
// the second waits for the first, and neither fails for the other.
func TestTwoTeardownsAtOnceAreOne(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	e := mustUp(t, m, shop("shop")).Environment
	second := make(chan error, 1)
	var once sync.Once
	err := m.Down(t.Context(), root, e.Ref, false, func(Progress) {
		once.Do(func() {
			go func() { second <- m.Down(t.Context(), root, e.Ref, true, func(Progress) {}) }()
			waitFor(t, "the second waits", func() bool {
				m.locks.mu.Lock()
				defer m.locks.mu.Unlock()
				return m.locks.refs[e.Ref].users == 2
			})
		})
	})
	if err := errors.Join(err, <-second); err != nil {
		t.Error(err)
	}
	w.checkEmpty(t)
}
