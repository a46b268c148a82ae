package postgres

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	pg "github.com/pganalyze/pg_query_go/v6"

	"isle/internal/gateway"
	"isle/internal/gateway/postgres/mask"
	"isle/internal/gateway/postgres/query"
	"isle/internal/session"
)

// plan follows the masked columns of a statement's parts. It is refused where one
// is used as it may not be.
func (s *exchange) plan(read *query.Read, text []byte) ([]*mask.Plan, error) {
	if s.masked == nil {
		return nil, nil
	}
	plans := make([]*mask.Plan, len(read.Parts))
	s.masking.Lock()
	defer s.masking.Unlock()
	for i := range read.Parts {
		facts := read.Parts[i].Facts
		p, err := s.masked.Plan(s.ctx, mask.Statement{Tree: s.tree(read, i), Facts: facts, Lift: len(s.connection.Rules) > 0 && s.door.Lifts(facts)})
		plans[i] = p
		if err != nil {
			what, _ := redact(plans[:i+1], read, text, nil)
			s.door.Refuse(gateway.Ask{Facts: read.Facts, Text: text, Record: what}, "masks of connection "+s.connection.Name, err)
			return nil, err
		}
	}
	return plans, nil
}

// tree gives one part's statement, which is read only where it is needed.
func (s *exchange) tree(read *query.Read, part int) func() (*pg.Node, error) {
	return func() (*pg.Node, error) {
		t, err := read.Tree(s.ctx)
		if err != nil || part >= len(t.GetStmts()) {
			return nil, err
		}
		return t.GetStmts()[part].GetStmt(), nil
	}
}

// checked are the plans of a prepared statement, made anew where tables have
// changed since.
func (s *exchange) checked(plans []*mask.Plan) ([]*mask.Plan, error) {
	if s.masked == nil {
		return nil, nil
	}
	s.masking.Lock()
	defer s.masking.Unlock()
	out := make([]*mask.Plan, len(plans))
	for i, p := range plans {
		var err error
		if out[i], err = s.masked.Check(s.ctx, p); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// redact is what may be recorded of a text and its parameters.
func redact(plans []*mask.Plan, read *query.Read, text []byte, params []string) ([]byte, []string) {
	for _, p := range plans {
		if p == nil {
			continue
		}
		if less, some := p.Redact(text, params); len(plans) == 1 {
			return less, some
		} else if len(less) != len(text) || string(less) != string(text) {
			return []byte(read.Facts.Shape), nil
		}
	}
	return text, params
}

// described notes how the rows of a result are to be rewritten. plan is of the
// statement that they are of.
func (s *exchange) described(frame []byte, plan *mask.Plan) (*mask.Rows, error) {
	fields, err := mask.Fields(frame)
	if err != nil {
		return nil, err
	}
	s.masking.Lock()
	defer s.masking.Unlock()
	return s.masked.Rows(s.ctx, plan, fields, nil)
}

// errUnplanned is a row of which it is not known what it may show.
var errUnplanned = &refusal{State: stateInternal, Message: "isle: the server sent a row that was not described, and this connection has masks"}

// row handles a DataRow where it is looked at: it is ours, or masked, or
// recorded.
func (s *exchange) row(size int, frame []byte) (err error) {
	s.mu.Lock()
	s.unmark()
	e := s.front()
	if e == nil || e.kind != 'Q' && e.kind != 'E' {
		s.mu.Unlock()
		return errReply
	}
	probe, rows := e.probe, s.showing
	if e.kind == 'E' {
		rows = nil
		if e.of != nil {
			rows = e.of.rows
		}
	}
	s.mu.Unlock()
	masked := s.masked != nil
	switch {
	case masked && probe == nil && rows == nil:
		return errUnplanned
	case frame == nil && (probe == nil && (!masked || rows.Pass()) && !s.connection.Results):
		return s.down.stream(size)
	case frame == nil:
		if frame, err = s.down.grow(size, maxReply); errors.Is(err, errLarge) {
			return &refusal{State: stateLimit, Message: fmt.Sprintf("isle: a row of %d bytes is too large to be masked or recorded", size)}
		} else if err != nil {
			return serverGone{err}
		}
	}
	switch {
	case probe != nil:
		s.down.cut(size)
		row, err := textRow(frame[headerSize:])
		probe.row = append(probe.row, row...)
		return err
	case masked && !rows.Pass():
		s.down.cut(size)
		at := len(s.down.out)
		if s.down.out, err = rows.Row(s.down.out, frame); err != nil {
			return err
		}
		frame = s.down.out[at:]
	default:
		s.down.pass(size)
	}
	if s.connection.Results {
		s.record(session.Event{Kind: session.Row, Data: rowJSON(frame[headerSize:])})
	}
	return nil
}

// rowJSON is a DataRow for the recording: an array of texts and nulls; what is no
// text is in hexadecimal after \x.
func rowJSON(body []byte) []byte {
	if len(body) < 2 {
		return nil
	}
	n := int(binary.BigEndian.Uint16(body))
	body = body[2:]
	values := make([]any, 0, min(n, 64))
	for range n {
		if len(body) < 4 {
			return nil
		}
		size := int32(binary.BigEndian.Uint32(body))
		body = body[4:]
		switch {
		case size < 0:
			values = append(values, nil)
			continue
		case int(size) > len(body):
			return nil
		case utf8.Valid(body[:size]):
			values = append(values, string(body[:size]))
		default:
			values = append(values, fmt.Sprintf("\\x%x", body[:size]))
		}
		body = body[size:]
	}
	b, err := json.Marshal(values)
	if err != nil {
		return nil
	}
	return b
}

// copied handles CopyData on its way to the client.
func (s *exchange) copied(size int, frame []byte) (err error) {
	if s.masked == nil {
		if frame == nil {
			return s.down.stream(size)
		}
		s.down.pass(size)
		return nil
	}
	if frame == nil {
		if frame, err = s.down.grow(size, maxReply); err != nil {
			return serverGone{err}
		}
	}
	s.masks.Copy(frame[headerSize:])
	s.down.pass(size)
	return nil
}

// planAt is the plan that what the server says now belongs to; nil where there is
// none. The caller holds mu.
func (s *exchange) planAt() *mask.Plan {
	e := s.front()
	if e == nil {
		return nil
	}
	part := func(plans []*mask.Plan, i int) *mask.Plan {
		if i < len(plans) {
			return plans[i]
		}
		return nil
	}
	switch {
	case e.run != nil:
		return part(e.run.plans, e.run.part)
	case e.of != nil:
		return part(e.of.plans, 0)
	case e.portal != nil && e.portal.value != nil:
		return part(e.portal.value.plans, 0)
	case e.statement != nil && e.statement.value != nil:
		return part(e.statement.value.plans, 0)
	}
	return nil
}

// scrubbed replaces an error or a notice by what may be told of it. It reports
// whether anything was left out.
func (s *exchange) scrubbed(frame []byte) bool {
	s.mu.Lock()
	plan := s.planAt()
	s.mu.Unlock()
	return s.scrub(frame, plan)
}

func (s *exchange) scrub(frame []byte, plan *mask.Plan) bool {
	if s.masked == nil {
		s.down.pass(len(frame))
		return false
	}
	if plan == nil {
		plan = &mask.Plan{}
	}
	s.down.cut(len(frame))
	var less bool
	s.down.out, less = plan.Scrub(s.down.out, frame)
	return less
}
