package postgres

import (
	"encoding/binary"
	"sync"
	"time"
)

// A splice carries frames one way. Frames that pass unchanged are written from
// where they were read, many at once; it writes when nothing more is buffered.
// It is used by one goroutine.
type splice struct {
	in    *reader
	write func(b []byte, within bool) error // within: b ends inside of a frame
	pos   int                               // what is buffered before it passes
	out   []byte                            // goes before that
}

// next waits for a frame. Frame is nil where the frame is larger than a buffer:
// then the caller calls grow, stream or discard with its size, and else pass or
// replace.
func (s *splice) next() (kind byte, size int, frame []byte, err error) {
	for {
		b := s.in.buffered()[s.pos:]
		if len(b) >= headerSize {
			n := binary.BigEndian.Uint32(b[1:])
			if n < 4 || n > maxFrame {
				return 0, 0, nil, errFrame
			}
			size = 1 + int(n)
			if len(b) >= size {
				return b[0], size, b[:size:size], nil
			}
			if size > bufferSize {
				return b[0], size, nil, nil
			}
		}
		if err := s.flush(); err != nil {
			return 0, 0, nil, err
		}
		if err := s.in.fill(); err != nil {
			if len(s.in.buffered()) > 0 {
				err = unexpected(err)
			}
			return 0, 0, nil, err
		}
	}
}

// pass lets the frame through unchanged.
func (s *splice) pass(size int) { s.pos += size }

// replace puts b, which may be empty, in the frame's place.
func (s *splice) replace(size int, b []byte) {
	s.cut(size)
	s.out = append(s.out, b...)
}

// cut takes the frame away; what is then appended to out is in its place.
func (s *splice) cut(size int) {
	s.out = append(s.out, s.in.buffered()[:s.pos]...)
	s.in.advance(s.pos + size)
	s.pos = 0
}

// insert puts b before the next frame.
func (s *splice) insert(b []byte) { s.replace(0, b) }

// flush writes all that passed.
func (s *splice) flush() error {
	passed := s.in.buffered()[:s.pos]
	if len(s.out) == 0 {
		if len(passed) == 0 {
			return nil
		}
		err := s.write(passed, false)
		s.in.advance(s.pos)
		s.pos = 0
		return err
	}
	s.out = append(s.out, passed...)
	s.in.advance(s.pos)
	s.pos = 0
	err := s.write(s.out, false)
	if cap(s.out) > 4096 {
		s.out = nil
	} else {
		s.out = s.out[:0]
	}
	return err
}

// grow reads a large frame whole.
func (s *splice) grow(size, most int) ([]byte, error) {
	if size > most {
		return nil, errLarge
	}
	if err := s.flush(); err != nil {
		return nil, err
	}
	return s.in.whole(size, most)
}

// stream lets a large frame through as it comes.
func (s *splice) stream(size int) error {
	if err := s.flush(); err != nil {
		return err
	}
	for size > 0 {
		if len(s.in.buffered()) == 0 {
			if err := s.in.fill(); err != nil {
				return unexpected(err)
			}
		}
		b := s.in.buffered()
		b = b[:min(size, len(b))]
		if err := s.write(b, size > len(b)); err != nil {
			return err
		}
		s.in.advance(len(b))
		size -= len(b)
	}
	return nil
}

// discard takes a large frame away.
func (s *splice) discard(size int) error {
	if err := s.flush(); err != nil {
		return err
	}
	return s.in.copyTo(nowhere{}, size)
}

type nowhere struct{}

func (nowhere) Write(b []byte) (int, error) { return len(b), nil }

// An outlet is where a client is written to: by the goroutine that carries what
// the server says, and by those that have something to tell in between. What they
// tell stands between two frames, never inside one.
type outlet struct {
	mu      sync.Mutex // guards what follows, and whose bytes are written
	conn    deadliner
	within  bool   // the last thing written ended inside of a frame
	waiting []byte // to be told at the end of that frame
	closed  bool
}

type deadliner interface {
	Write(b []byte) (int, error)
	SetWriteDeadline(t time.Time) error
}

// carry writes frames, of which the last may go on.
func (o *outlet) carry(b []byte, within bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, err := o.conn.Write(b); err != nil {
		return err
	}
	o.within = within
	if !within && len(o.waiting) > 0 {
		_, err := o.conn.Write(o.waiting)
		o.waiting = nil
		return err
	}
	return nil
}

// tell writes whole frames of our own, now or at the end of the frame that is
// being written.
func (o *outlet) tell(b []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.within {
		o.waiting = append(o.waiting, b...)
		return nil
	}
	_, err := o.conn.Write(b)
	return err
}

// farewell is the last that is told. It waits for nobody: who is in the middle of
// writing has a moment to finish.
func (o *outlet) farewell(b []byte, patience time.Duration) {
	o.conn.SetWriteDeadline(time.Now().Add(patience))
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.within {
		return
	}
	o.closed = true
	o.conn.Write(b)
}
