package environment

import (
	"sync/atomic"
	"testing"
	"time"

	"isle"
	"isle/internal/spec"
)

// What was rolled back from does nothing to anybody any more: where it goes on for a
// moment, to be ended or to call the next server, it has no doors. Where it serves
// again it has them before it goes on.
func TestWhatWasPutAsideHasDoorsOnlyWhereItServes(t *testing.T) {
	w := newWorld(t)
	var ahead atomic.Int64
	var open atomic.Int64 // doors of the one that went on last; -1: none did
	config := func(c *Config) {
		c.KeepAside = time.Hour
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	}
	m := w.serve(config)
	w.mu.Lock()
	w.thawed = func(_ isle.ID, g Grants) { open.Store(int64(len(g.Egress))) }
	w.mu.Unlock()
	of := func(version string, back bool) UpRequest {
		req := site(version)
		req.Spec.Egress = []spec.Egress{{Host: "api.example.com", Port: 443}}
		req.Back = back
		return req
	}
	doors := func(what string, want int64) {
		t.Helper()
		waitFor(t, what, func() bool { return open.Load() >= 0 })
		if got := open.Load(); got != want {
			t.Errorf("%s: it goes on with %d doors, want %d", what, got, want)
		}
		open.Store(-1)
	}
	open.Store(-1)
	mustUp(t, m, of("one", false))
	mustUp(t, m, of("two", false))
	w.serves(t, m, "two", 1)
	mustUp(t, m, of("one", true))
	doors("it serves again", 1)
	w.serves(t, m, "one", 1)
	m.Close()
	m = w.serve(config)
	doors("another server starts", 0)
	w.serves(t, m, "one", 1)
	m.PolicyChanged(t.Context())
	mustUp(t, m, of("two", true))
	doors("it serves again, by another server", 1)
	e := w.serves(t, m, "two", 1)
	w.mu.Lock()
	n := len(w.networks[e.Instance].Egress)
	w.mu.Unlock()
	if n != 1 {
		t.Errorf("it serves with %d doors", n)
	}
	ahead.Store(int64(time.Hour))
	doors("its time is over", 0)
	w.serves(t, m, "two", 0)
	mustDown(t, m, e.Ref, true)
	w.checkEmpty(t)
}
