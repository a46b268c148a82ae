package postgres

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"time"

	"isle"
	"isle/internal/gateway/postgres/mask"
	"isle/internal/gateway/postgres/query"
	"isle/internal/session"
)

// A portal is a statement bound to parameters, and asked for.
type portal struct {
	statement *statement
	run       *run // its execution; nil once the first Execute took it
	plans     []*mask.Plan
	rows      *mask.Rows // how its rows are rewritten, once it is described
}

// bind handles Bind: here the statement's parameters are known, and planning
// begins, which runs functions. So it is asked for now.
func (s *exchange) bind(size int, frame []byte) error {
	b, err := parseBind(frame[headerSize:], s.params[:0])
	if err != nil {
		return err
	}
	s.params = b.params
	if why := cmp.Or(tooLong(b.portal), tooLong(b.statement)); why != nil {
		return s.told('B', size, why)
	}
	// What names mean is decided now, whatever it was at Parse.
	if err := s.await(func() bool { return s.setting == 0 && s.settled(string(b.statement)) }); err != nil {
		return err
	}
	if err := s.refresh(); err != nil {
		return err
	}
	s.mu.Lock()
	var st *statement
	if d := s.statements.m[string(b.statement)]; d != nil {
		st = d.value
	}
	skipping := s.skipping
	many := len(s.portals.m) >= maxPortals
	s.mu.Unlock()
	switch {
	case skipping:
		return s.drop(size, frame)
	case st == nil:
		return s.refused('B', size, &refusal{State: stateStatement, Message: fmt.Sprintf("isle: prepared statement %q does not exist", clip(string(b.statement)))})
	case many:
		return s.refused('B', size, &refusal{State: stateLimit, Message: fmt.Sprintf("isle: the session has %d portals", maxPortals), Hint: "close some"})
	}
	for i := range b.params {
		if i < len(st.types) && st.types[i] != 0 {
			b.params[i].Type = typeName(st.types[i])
		}
	}
	plans, err := s.checked(st.plans)
	if err != nil {
		return s.told('B', size, err)
	}
	r := &run{text: st.text, types: st.types, read: st.read, plans: plans, epoch: s.epoch}
	if err := s.ask(r, b.params); err != nil {
		return s.told('B', size, err)
	}
	po := &portal{statement: st, run: r, plans: plans}
	if !s.forward(size, entry{kind: 'B', key: string(b.portal), portal: &name[portal]{value: po}}) {
		s.account(r, notExecuted)
		return nil
	}
	return s.describe(string(b.portal), po)
}

// describe asks the server for the description of a portal: masks need it, and
// the client may not ask.
func (s *exchange) describe(key string, po *portal) error {
	if s.masked == nil {
		return nil
	}
	s.masking.Lock()
	if len(po.plans) == 1 {
		s.masked.Portal(key, po.plans[0])
	}
	s.masking.Unlock()
	b := binary.BigEndian.AppendUint32([]byte{'D'}, uint32(4+1+len(key)+1))
	b = append(append(append(b, 'P'), key...), 0)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.skipping {
		s.push(entry{kind: 'D', ours: true, of: po, segment: s.segment})
		s.up.insert(b)
	}
	return s.ended
}

// execute handles Execute of a portal that Bind made.
func (s *exchange) execute(size int, frame []byte) error {
	key, rest, ok := cutText(frame[headerSize:])
	if !ok || len(rest) != 4 {
		return &refusal{State: stateProtocol, Message: "isle: a malformed Execute"}
	}
	if why := tooLong(key); why != nil {
		return s.told('E', size, why)
	}
	if err := s.await(func() bool {
		p := s.portals.m[string(key)]
		return s.skipping || p == nil || !p.pending || p.segment == s.segment
	}); err != nil {
		return err
	}
	s.mu.Lock()
	var p *portal
	if d := s.portals.m[string(key)]; d != nil {
		p = d.value
	}
	var r *run
	again := false
	if p != nil {
		if r, again = p.run, p.run == nil; again {
			r = &run{read: p.statement.read, plans: p.plans, began: time.Now()}
		}
		p.run = nil
	}
	s.mu.Unlock()
	if p == nil {
		return s.refused('E', size, &refusal{State: statePortal, Message: fmt.Sprintf("isle: portal %q does not exist", clip(string(key))),
			Hint: "a cursor that DECLARE made is read with FETCH"})
	}
	if again {
		s.record(session.Event{Kind: session.Statement, At: r.began, Shape: r.read.Facts.Shape, Decision: isle.Allow})
	}
	if err := s.unchanged(r); err != nil {
		s.account(r, "not executed")
		return s.told('E', size, err)
	}
	e := entry{kind: 'E', run: r, of: p, sets: s.sets(r.read)}
	s.prepares(&e, p.statement.text)
	if !s.forward(size, e) {
		s.account(r, notExecuted)
		return nil
	}
	s.cursors(r.read)
	return nil
}

// cursors forgets the portals whose names a text gives to cursors or closes: what
// the server has under them from now on is not what was bound.
func (s *exchange) cursors(read *query.Read) {
	for i := range read.Parts {
		p := &read.Parts[i]
		if p.Kind != "declare" && p.Kind != "close" {
			continue
		}
		s.mu.Lock()
		if p.Name == "" {
			clear(s.portals.m)
		}
		delete(s.portals.m, p.Name)
		s.mu.Unlock()
	}
}
