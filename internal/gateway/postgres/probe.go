package postgres

import (
	"encoding/binary"
	"slices"

	"isle"
	"isle/internal/approval"
)

// A probe is a Query of our own within the client's session. It asks what only
// that session knows.
type probe struct{ row []string }

// probeQuery takes no snapshot, so that what a client may say at the begin of a
// transaction only it may say after this as well.
const probeQuery = "SHOW search_path; SHOW role\x00"

// refresh asks for the search path and the role after a statement that may have changed it:
// what names mean depends on it, so an approval is bound to it. Where it can't be
// asked, between messages that are one transaction or in one that has failed, it
// counts as changed, and functions as not known.
func (s *exchange) refresh() error {
	if !s.stale {
		return nil
	}
	s.mu.Lock()
	open := s.skipping || s.open
	s.mu.Unlock()
	if !open {
		if err := s.await(func() bool { return s.outstanding() == 0 }); err != nil {
			return err
		}
	}
	s.mu.Lock()
	if open || s.status == 'E' {
		s.reading.PathChanged = true
		s.mu.Unlock()
		s.setContext("not known: " + string(isle.NewID())) // so that no approval fits another such moment
		return nil
	}
	p := &probe{}
	s.push(entry{kind: 'Q', probe: p, segment: s.segment})
	s.mu.Unlock()
	s.looks.Add(1)
	b := binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(4+len(probeQuery)))
	s.up.insert(append(b, probeQuery...))
	if err := s.await(func() bool { return s.outstanding() == 0 }); err != nil {
		return err
	}
	path := "not known"
	s.mu.Lock()
	if len(p.row) == 2 {
		path = p.row[0]
		s.acting = p.row[1]
		s.stale = false
		s.moved = s.moved && s.status != 'I' // no transaction's end changes it back
	}
	s.role.searchPath = path
	s.reads()
	if s.stale {
		s.reading.PathChanged = true
	}
	s.mu.Unlock()
	s.setContext(path)
	return nil
}

// setContext is made anew, since an approval may still hold the old one.
func (s *exchange) setContext(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pairs, s.dated = s.context(), false
	for i := range s.pairs {
		if s.pairs[i].Key == "search_path" {
			s.pairs[i] = approval.Pair{Key: "search_path", Value: path}
		}
	}
}

// bindingContext is what an approval is bound to beside a text.
func (s *exchange) bindingContext() []approval.Pair {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dated {
		path := s.pairs[slices.IndexFunc(s.pairs, func(p approval.Pair) bool { return p.Key == "search_path" })]
		s.pairs, s.dated = s.context(), false
		for i := range s.pairs {
			if s.pairs[i].Key == path.Key {
				s.pairs[i] = path
			}
		}
	}
	return s.pairs
}
