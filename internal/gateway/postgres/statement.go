package postgres

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"isle/internal/gateway"
	"isle/internal/gateway/postgres/mask"
	"isle/internal/gateway/postgres/query"
)

// A statement is a prepared one.
type statement struct {
	text  []byte
	types []uint32 // of the parameters, as Parse gave them; 0 is the server's choice
	read  *query.Read
	plans []*mask.Plan // of its masked columns, where the connection has masks
}

// A name is what a prepared statement's or portal's name stands for, from one
// message on. The server may refuse that message, and then it stands for what it
// did before: previous, until it is known.
//
// While it is pending, messages of the same segment may use it: if it fails, the
// server skips them. A message of a later segment waits until it is known.
type name[T any] struct {
	value    *T // nil: nothing
	previous *name[T]
	pending  bool
	segment  uint64
}

// names are the statements or the portals of a session.
type names[T any] struct{ m map[string]*name[T] }

// define says what a name stands for from now on, if the server agrees.
func (n *names[T]) define(key string, value *T, segment uint64) *name[T] {
	if n.m == nil {
		n.m = make(map[string]*name[T])
	}
	d := &name[T]{value: value, previous: n.m[key], pending: true, segment: segment}
	n.m[key] = d
	return d
}

// agree is the server's yes.
func (n *names[T]) agree(key string, d *name[T]) {
	d.pending, d.previous = false, nil
	if d.value == nil && n.m[key] == d {
		delete(n.m, key)
	}
}

// undo is the server's no.
func (n *names[T]) undo(key string, d *name[T]) {
	current := n.m[key]
	if current == d {
		if d.previous == nil {
			delete(n.m, key)
		} else {
			n.m[key] = d.previous
		}
		return
	}
	for ; current != nil; current = current.previous {
		if current.previous == d {
			current.previous = d.previous
			return
		}
	}
}

// forget drops what the server has forgotten: all but what it has yet to answer.
func (n *names[T]) forget() {
	for key, d := range n.m {
		if !d.pending {
			delete(n.m, key)
		}
	}
}

// A run is one execution of a statement: of a Query all of its parts.
type run struct {
	text     []byte // until it is forwarded
	types    []uint32
	read     *query.Read
	plans    []*mask.Plan
	part     int // which part the server answers
	passes   []gateway.Pass
	one      [1]gateway.Pass // where passes are, mostly
	executes []executed
	began    time.Time
	rows     int64
	tag      string // of what is done, "; " between parts
	failure  string
	write    bool // it may change something
	epoch    int  // of the settings that it was asked for under
}

// executed is what an EXECUTE stood for when it was asked for.
type executed struct {
	name string
	what *name[statement]
}

// maxTag bounds what is kept of the tags of a run, in bytes.
const maxTag = 512

// did adds the tag of a part.
func (r *run) did(tag string, rows int64) {
	r.rows += rows
	switch {
	case r.tag == "":
		r.tag = tag
	case len(r.tag) < maxTag:
		r.tag += "; " + tag
	}
}

// parse handles Parse: what is refused outright is refused here. It is asked for
// when it is bound; until then the server only looks up what its names mean.
func (s *exchange) parse(size int, frame []byte) error {
	key, rest, ok := cutText(frame[headerSize:])
	text, rest, ok2 := cutText(rest)
	if !ok || !ok2 || len(rest) < 2 || len(rest) != 2+4*int(binary.BigEndian.Uint16(rest)) {
		return &refusal{State: stateProtocol, Message: "isle: a malformed Parse"}
	}
	if why := tooLong(key); why != nil {
		return s.told('P', size, why)
	}
	read, err := s.read(text)
	if err != nil {
		return s.told('P', size, err)
	}
	st := &statement{text: slices.Clone(text), read: read}
	if st.plans, err = s.plan(read, st.text); err != nil {
		return s.told('P', size, err)
	}
	for t := rest[2:]; len(t) > 0; t = t[4:] {
		st.types = append(st.types, binary.BigEndian.Uint32(t))
	}
	if err := s.mayPrepare(st); err != nil {
		return s.told('P', size, err)
	}
	if !s.fits(st) {
		return s.refused('P', size, &refusal{State: stateLimit, Message: fmt.Sprintf("isle: the session has too many prepared statements: %d, of %d bytes in all, are kept", maxStatements, maxPrepared), Hint: "close some"})
	}
	if s.masked != nil && len(st.plans) == 1 {
		s.masking.Lock()
		s.masked.Prepared(string(key), st.plans[0])
		s.masking.Unlock()
	}
	s.forward(size, entry{kind: 'P', key: string(key), statement: &name[statement]{value: st}})
	return nil
}

// fits reports whether there is room for one more prepared statement.
func (s *exchange) fits(st *statement) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.prepared += len(st.text); s.prepared > maxPrepared {
		s.prepared = len(st.text)
		for _, n := range s.statements.m {
			for ; n != nil; n = n.previous {
				if n.value != nil {
					s.prepared += len(n.value.text)
				}
			}
		}
	}
	return len(s.statements.m) < maxStatements && s.prepared <= maxPrepared
}

// settled reports whether it is known what a prepared statement's name stands
// for. The caller holds mu.
func (s *exchange) settled(statement string) bool {
	d := s.statements.m[statement]
	return s.skipping || d == nil || !d.pending || d.segment == s.segment
}

// prepares notes what a PREPARE or DEALLOCATE does to a name, which it shares with
// Parse and Close.
func (s *exchange) prepares(e *entry, text []byte) {
	if len(e.run.read.Parts) != 1 {
		return // PREPARE stands by itself; a name that is gone and known is harmless
	}
	switch p := &e.run.read.Parts[0]; {
	case p.Kind == "prepare":
		e.key = p.Name
		e.statement = &name[statement]{value: &statement{text: slices.Clone(text), read: e.run.read, plans: e.run.plans}}
	case p.Kind == "deallocate" && p.Name != "":
		e.key, e.statement = p.Name, &name[statement]{}
	case p.Kind == "deallocate" || p.Kind == "discard":
		e.forgets = p.Kind == "deallocate" || discardsAll(e.run.read.Facts.Shape)
	}
}

// discardsAll reports whether a DISCARD is one of all, which ends prepared
// statements too.
func discardsAll(shape string) bool {
	words := strings.Fields(strings.TrimRight(strings.ToLower(shape), "; "))
	return len(words) == 2 && words[1] == "all"
}

// named handles Describe and Close.
func (s *exchange) named(kind byte, size int, frame []byte) error {
	body := frame[headerSize:]
	if len(body) < 2 || body[0] != 'S' && body[0] != 'P' || slices.Index(body, 0) != len(body)-1 {
		return &refusal{State: stateProtocol, Message: "isle: a malformed Describe or Close"}
	}
	key := string(body[1 : len(body)-1])
	if why := tooLong(body[1 : len(body)-1]); why != nil {
		return s.told(kind, size, why)
	}
	e := entry{kind: kind}
	if kind == 'C' {
		e.key = key
		if body[0] == 'S' {
			e.statement = &name[statement]{}
		} else {
			e.portal = &name[portal]{}
		}
	}
	s.forward(size, e)
	return nil
}

// maxName is how long the name of a prepared statement or a portal may be, in
// bytes. The server keeps no more (NAMEDATALEN), so that longer ones which begin
// alike are one to it.
const maxName = 63

// tooLong refuses a name that the server would cut.
func tooLong(name []byte) error {
	if len(name) <= maxName {
		return nil
	}
	return &refusal{State: stateName, Message: fmt.Sprintf("isle: the name of a prepared statement or portal has %d bytes; the server would cut it to %d", len(name), maxName), Hint: "take a shorter name"}
}

// unchanged refuses an EXECUTE whose name was given to something else since it was
// asked for, and what was approved under other settings than there are now.
func (s *exchange) unchanged(r *run) error {
	if r.epoch != s.epoch && slices.ContainsFunc(r.passes, func(p gateway.Pass) bool { return p.Approval() != "" }) {
		return &refusal{State: stateFeature, Message: "isle: settings were changed since this was approved", Hint: "bind it again"}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range r.executes {
		if s.statements.m[e.name] != e.what {
			return &refusal{State: stateStatement, Message: fmt.Sprintf("isle: prepared statement %q was changed since this was bound", clip(e.name)), Hint: "bind it again"}
		}
	}
	return nil
}

// typeName is an OID as text: what an approver sees, and a grant is bound to.
func typeName(oid uint32) string {
	switch oid {
	case 16:
		return "bool"
	case 17:
		return "bytea"
	case 20:
		return "int8"
	case 21:
		return "int2"
	case 23:
		return "int4"
	case 25:
		return "text"
	case 700:
		return "float4"
	case 701:
		return "float8"
	case 1043:
		return "varchar"
	case 1114:
		return "timestamp"
	case 1184:
		return "timestamptz"
	case 1700:
		return "numeric"
	case 2950:
		return "uuid"
	}
	return fmt.Sprint(oid)
}
