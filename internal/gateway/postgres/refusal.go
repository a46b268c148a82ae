package postgres

import (
	"context"
	"errors"
)

// told refuses a message with an error; ends are passed on.
func (s *exchange) told(kind byte, size int, err error) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if gone := new(clientGone); errors.As(err, gone) {
		return err
	}
	return s.refused(kind, size, refuse(err))
}

// refused puts a message that fails in the place of one that was refused, and of
// which size bytes are still to be taken away.
func (s *exchange) refused(kind byte, size int, why *refusal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.skipping {
		s.up.cut(size)
		return s.ended
	}
	s.up.cut(size)
	if kind == 'Q' {
		s.push(entry{kind: 'Q', refused: why, segment: s.segment})
		s.up.out = append(s.up.out, s.p.refusedQuery...)
		s.segment++
		s.open = false
	} else {
		s.push(entry{kind: 'E', refused: why, segment: s.segment})
		s.open = true
		s.up.out = append(s.up.out, s.poison...)
	}
	return s.ended
}

// skips reports whether the server skips what comes, until Sync.
func (s *exchange) skips() (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.skipping, s.ended
}

func (s *exchange) drop(size int, frame []byte) error {
	if frame == nil {
		return s.wrap(s.up.discard(size))
	}
	s.up.cut(size)
	return nil
}

// notExecuted is the outcome of what the server skips.
const notExecuted = "not executed: an earlier message failed"
