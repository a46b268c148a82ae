package environment

import "testing"

// That a service is up is found out beside its end: whichever is told last, it
// has ended.
func TestWhatHasEndedDoesNotBecomeRunning(t *testing.T) {
	w := newWorld(t)
	m := w.serve(func(*Config) {})
	req := shop("shop")
	mustUp(t, m, req)
	l := m.find(req.Ref)
	for name, s := range l.supervisors {
		s.mu.Lock()
		r := s.run
		s.mu.Unlock()
		if err := r.Exited(0, ""); err != nil {
			t.Fatal(err)
		}
		r.becomeReady()
		if err := r.Health(false, "late"); err != nil {
			t.Fatal(err)
		}
		rec := l.snapshot()
		if svc, ok := rec.service(name); !ok || svc.Launch == r.launch && (svc.Phase == Running || svc.Phase == Unhealthy) {
			t.Errorf("%s is %s after its end", name, svc.Phase)
		}
	}
	mustDown(t, m, req.Ref, true)
}
