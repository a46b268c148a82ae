package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"isle"
	"isle/internal/approval"
	"isle/internal/policy"
)

const (
	sideLimit = 10 * time.Second // of a query on the side
	sideIdle  = 10 * time.Second // then its connection is closed
)

// A side is a connection of our own to the server behind, with the same role,
// read-only: for what the gateway wants to know itself. It is there from the
// first query on, until it was idle for a while.
type side struct {
	p     *Protocol
	door  door
	login login

	mu     sync.Mutex // guards what follows, and is held over a query
	u      *upstream
	idle   *time.Timer
	closed bool
}

func (p *Protocol) newSide(d door, c policy.Connection, database, searchPath string) *side {
	return &side{p: p, door: d, login: login{connection: c, database: database, settings: map[string]string{
		"client_encoding": "UTF8", "application_name": "isle", "search_path": searchPath, "DateStyle": "ISO, MDY",
		"default_transaction_read_only": "on", "statement_timeout": fmt.Sprint(sideLimit.Milliseconds()), "lock_timeout": "2000",
	}}}
}

// query runs one statement and returns its rows as text. It is a mask.Query.
func (s *side) query(ctx context.Context, sql string) ([][]string, error) {
	packet, err := (&pgproto3.Query{String: sql}).Encode(nil)
	if err != nil {
		return nil, err
	}
	return s.run(ctx, packet)
}

// run sends messages that end in one ReadyForQuery.
func (s *side) run(ctx context.Context, packet []byte) ([][]string, error) {
	ctx, cancel := context.WithTimeout(ctx, sideLimit)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("the session has ended")
	}
	if s.u == nil {
		u, err := s.p.connect(ctx, s.door, s.login)
		if err != nil {
			return nil, err
		}
		s.u = u
		s.idle = time.AfterFunc(sideIdle, s.rest)
	}
	s.idle.Stop()
	stop := context.AfterFunc(ctx, func() { s.u.conn.SetDeadline(time.Unix(1, 0)) })
	rows, err := s.u.exchange(packet)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	var told serverSaid
	if err != nil && !errors.As(err, &told) {
		s.drop()
		return nil, err
	}
	s.idle.Reset(sideIdle)
	return rows, err
}

// drop closes the connection. The caller holds mu.
func (s *side) drop() {
	if s.u != nil {
		s.idle.Stop()
		s.u.conn.SetDeadline(time.Now().Add(time.Second))
		s.u.conn.Write([]byte{'X', 0, 0, 0, 4})
		s.u.close()
		s.u = nil
	}
}

// rest closes a connection that was idle.
func (s *side) rest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop()
}

func (s *side) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.drop()
}

// estimate says for an approver how many rows a run would touch: what the
// server's planner says. Planning runs functions that are immutable, so nothing
// is asked where one is called that the gateway does not know to be harmless.
func (s *exchange) guess(ctx context.Context) string {
	r := s.asking
	if r == nil || len(r.read.Parts) != 1 || r.read.Facts.Uncertain != "" || s.reading.PathChanged {
		return ""
	}
	f := r.read.Facts
	switch r.read.Parts[0].Kind {
	case "select", "insert", "update", "delete", "merge":
	default:
		return ""
	}
	for _, a := range f.Actions {
		if a != isle.ActionPostgresSelect && a != isle.ActionPostgresWrite {
			return ""
		}
	}
	if len(s.connection.Functions) > 0 && len(f.Functions) > 0 {
		return ""
	}
	rows, err := s.side.run(ctx, explain(r, s.params))
	if err != nil {
		return "not known: the server could not plan it"
	}
	text := ""
	for _, row := range rows {
		if len(row) == 1 {
			text += row[0]
		}
	}
	return planned(text)
}

// explain asks for the plan of a run, with its parameters.
func explain(r *run, params []approval.Param) []byte {
	var b []byte
	bind := &pgproto3.Bind{}
	for _, p := range params {
		v := p.Value
		if p.Null {
			v = nil
		} else if v == nil {
			v = []byte{}
		}
		format := int16(0)
		if p.Binary {
			format = 1
		}
		bind.Parameters, bind.ParameterFormatCodes = append(bind.Parameters, v), append(bind.ParameterFormatCodes, format)
	}
	for _, m := range []pgproto3.FrontendMessage{
		&pgproto3.Parse{Query: "explain (format json) " + string(r.text), ParameterOIDs: r.types},
		bind, &pgproto3.Execute{}, &pgproto3.Sync{},
	} {
		var err error
		if b, err = m.Encode(b); err != nil {
			return []byte{'S', 0, 0, 0, 4}
		}
	}
	return b
}

// planned reads a plan in JSON.
func planned(text string) string {
	type node struct {
		Type  string  `json:"Node Type"`
		Rows  float64 `json:"Plan Rows"`
		Plans []node  `json:"Plans"`
	}
	var plans []struct{ Plan node }
	if err := json.Unmarshal([]byte(text), &plans); err != nil || len(plans) != 1 {
		return ""
	}
	n := plans[0].Plan
	if n.Type == "ModifyTable" && len(n.Plans) > 0 {
		n = n.Plans[0]
	}
	if n.Rows == 1 {
		return "about 1 row"
	}
	return fmt.Sprintf("about %.0f rows", n.Rows)
}
