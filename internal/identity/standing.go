package identity

import (
	"sync"
	"sync/atomic"
	"time"
)

// standingLook is how long the end of a credential by the clock, or a change that
// nobody tells of, may go unnoticed by a Standing.
const standingLook = 500 * time.Millisecond

// A Standing follows whether somebody still is who they were proven to be, for
// as long as what they opened goes on. It is safe for concurrent use.
type Standing struct {
	check   func() error
	changes func() <-chan struct{}
	look    func() error
	end     chan struct{} // closed by Close
	ended   chan struct{} // closed when nothing is followed any more

	err atomic.Pointer[error] // why they do not count any more; then over stays closed

	mu   sync.Mutex // guards what follows
	over chan struct{}
}

// Stand follows a caller. check is cheap and says whether they count; the channel
// of changes, taken before check, is closed once it may say otherwise. look takes
// its time, and is asked now and then; nil: there is nothing to look up. Close
// ends it.
func Stand(check func() error, changes func() <-chan struct{}, look func() error) *Standing {
	if look == nil {
		look = func() error { return nil }
	}
	s := &Standing{check: check, changes: changes, look: look, end: make(chan struct{}), ended: make(chan struct{}), over: make(chan struct{})}
	go s.follow() // ends with Close, or once they do not count any more
	return s
}

// Check is nil as long as they count. It takes no lock and does no I/O, so that
// it can be asked on every decision.
func (s *Standing) Check() error {
	if err := s.err.Load(); err != nil {
		return *err
	}
	return s.check()
}

// Over is closed once Check may answer otherwise: who takes it before Check
// misses nothing.
func (s *Standing) Over() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

// Close ends the following.
func (s *Standing) Close() {
	s.mu.Lock()
	select {
	case <-s.end:
	default:
		close(s.end)
	}
	s.mu.Unlock()
	<-s.ended
}

func (s *Standing) follow() {
	defer close(s.ended)
	for {
		changes := s.changes()
		err := s.check()
		if err == nil {
			err = s.look()
		}
		if err != nil {
			s.shake(err)
			return
		}
		t := time.NewTimer(standingLook)
		select {
		case <-s.end:
			t.Stop()
			return
		case <-changes:
			t.Stop()
			s.shake(nil)
		case <-t.C:
		}
	}
}

// shake has those who wait for Over ask again; for the last time with an error.
func (s *Standing) shake(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.err.Store(&err)
	}
	close(s.over)
	if err == nil {
		s.over = make(chan struct{})
	}
}
