package airlock

import (
	"sync"
	"time"
)

// spareAfter is how long after an airlock was made the next spare one is: when
// the launch that it is for has most likely ended.
const spareAfter = 250 * time.Millisecond

// A shelf holds one pair of namespaces that is ready for the next airlock. It
// has no name and belongs to nobody yet, so nothing remembers it: it vanishes
// with the process.
type shelf struct {
	mu     sync.Mutex // guards what follows
	spare  *pair
	timer  *time.Timer // runs restock; nil while none is due
	closed bool
}

// take returns the spare pair, nil if there is none, and sees to it that there
// will be another.
func (s *shelf) take() *pair {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.spare
	s.spare = nil
	switch {
	case s.closed:
	case s.timer == nil:
		s.timer = time.AfterFunc(spareAfter, s.restock)
	default:
		s.timer.Reset(spareAfter) // many are being made: they need the machine
	}
	return p
}

// restock makes a spare pair. Where that fails the next airlock makes its own,
// and says why not.
func (s *shelf) restock() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = nil
	if s.closed || s.spare != nil {
		return
	}
	onThread(func() (err error) {
		s.spare, err = newPair()
		return err
	})
}

// close lets go of the spare pair, for good.
func (s *shelf) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	if s.spare != nil {
		s.spare.close()
		s.spare = nil
	}
}
