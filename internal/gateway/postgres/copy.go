package postgres

import "fmt"

// markCopy notes the end of COPY data, which decides whether a Sync before it is
// answered.
func (s *exchange) markCopy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.copying:
		s.copying = false
	case s.outstanding() > 2*maxOutstanding:
		return &refusal{State: stateProtocol, Message: "isle: too many ends of COPY data"}
	case s.outstanding() > 0: // else there is no COPY, and the server ignores it
		s.push(entry{kind: 'c', segment: s.segment})
	}
	return nil
}

// copies notes that COPY begins. What of the client's was sent already and is
// not data, the server ignores (Sync, Flush) or fails at.
func (s *exchange) copies(kind byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unmark()
	e := s.front()
	if e == nil || e.kind != 'Q' && e.kind != 'E' || kind == 'W' {
		return errReply
	}
	if kind != 'G' {
		return nil
	}
	kept := s.head + 1
	s.copying = true
	for i := s.head + 1; i < len(s.queue); i++ {
		switch {
		case !s.copying:
			s.queue[kept] = s.queue[i]
			kept++
		case s.queue[i].kind == 'c':
			s.copying = false
		case s.queue[i].kind != 'S':
			return &refusal{State: stateProtocol, Message: fmt.Sprintf("isle: message type %q while the server reads COPY data", s.queue[i].kind)}
		}
	}
	clear(s.queue[kept:])
	s.queue = s.queue[:kept]
	return nil
}
