package environment

import (
	"context"
	"testing"

	"isle"
)

func TestALaunchIsFoundUntilItsEnvironmentIsToBeDown(t *testing.T) {
	w := newWorld(t)
	m := w.serve(nil)
	req := shop("shop")
	mustUp(t, m, req)
	e, err := m.Get(t.Context(), req.Ref)
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan string, 2)
	for _, s := range e.Services {
		got, service, ok := m.ByLaunch(e.Instance, s.Launch)
		if !ok || service != s.Name || got.Ref != req.Ref {
			t.Errorf("the launch of %s is of %q: %v", s.Name, service, ok)
		}
		go func() {
			m.Over(t.Context(), e.Instance, s.Launch)
			over <- s.Name
		}()
	}
	if _, _, ok := m.ByLaunch(isle.NewID(), e.Services[0].Launch); ok {
		t.Error("a launch is found in an instance that it is not of")
	}
	if _, _, ok := m.ByLaunch(e.Instance, isle.NewID()); ok {
		t.Error("a launch is found that there is not")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	m.Over(ended, e.Instance, e.Services[0].Launch) // returns
	mustDown(t, m, req.Ref, true)
	for range e.Services {
		<-over
	}
	if _, _, ok := m.ByLaunch(e.Instance, e.Services[0].Launch); ok {
		t.Error("a launch is found after its end")
	}
	w.checkEmpty(t)
}
