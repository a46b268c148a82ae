package environment

import (
	"testing"

	"isle"
)

// What a launch waited for may have been a rollback: whether it is still to run what
// it was asked for is found out when its turn has come.
func TestALaunchAsksAgainWhenItsTurnHasCome(t *testing.T) {
	w := newWorld(t)
	m := w.serve(func(*Config) {})
	req := shop("shop")
	before, err := m.locks.acquire(t.Context(), m.ctx, req.Ref, false)
	if err != nil {
		t.Fatal(err)
	}
	rolledBack := false // guarded by before
	req.Still = func() error {
		if rolledBack {
			return isle.Errorf(isle.Conflict, "the stage points elsewhere")
		}
		return nil
	}
	ended := make(chan error, 1)
	go func() {
		_, err := m.Up(t.Context(), root, req, nil)
		ended <- err
	}()
	rolledBack = true
	before.release()
	if err := <-ended; isle.CodeOf(err) != isle.Conflict {
		t.Errorf("it is launched: %v", err)
	}
	if m.find(req.Ref) != nil {
		t.Error("something of it is there")
	}
}
