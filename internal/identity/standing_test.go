package identity

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

func TestAStandingEndsAtOnceWithTheCredential(t *testing.T) {
	d := newDesk(t)
	k := d.create(t, "ci")
	subject, err := d.Authenticate(t.Context(), k.Secret, here)
	if err != nil {
		t.Fatal(err)
	}
	s := Stand(func() error { return d.Check(subject) }, d.Over, nil)
	defer s.Close()
	over := s.Over()
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	d.create(t, "other") // somebody else's change
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Revoke(t.Context(), root, "ci", ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(); err == nil {
		t.Error("it counts after it was revoked")
	}
	<-over
	for range 3 { // whoever asks late is told too
		<-s.Over()
		if s.Check() == nil {
			t.Error("it counts again")
		}
	}
}

func TestAStandingEndsWithWhatHasToBeLookedUp(t *testing.T) {
	var gone atomic.Bool
	left := errors.New("they left the group")
	s := Stand(func() error { return nil }, func() <-chan struct{} { return nil }, func() error {
		if gone.Load() {
			return left
		}
		return nil
	})
	defer s.Close()
	over := s.Over()
	if s.Check() != nil {
		t.Error("it does not count")
	}
	gone.Store(true)
	select {
	case <-over:
	case <-time.After(time.Minute):
		t.Fatal("nobody looked")
	}
	if err := s.Check(); !errors.Is(err, left) {
		t.Error(err)
	}
}

func TestAStandingThatIsClosedFollowsNobody(t *testing.T) {
	asked := make(chan struct{}, 1000)
	s := Stand(func() error { asked <- struct{}{}; return nil }, func() <-chan struct{} { return nil }, nil)
	s.Close()
	s.Close()
	n := len(asked)
	if s.Check() != nil || len(asked) != n+1 {
		t.Error("it is still followed")
	}
}
