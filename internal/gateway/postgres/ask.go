package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/policy"
)

// read reads a statement's text, once it is known how the server will read it.
func (s *session) read(text []byte) (*Read, error) {
	if err := s.await(func() bool { return s.setting == 0 }); err != nil {
		return nil, err
	}
	s.mu.Lock()
	standard := s.settings["standard_conforming_strings"] != "off"
	encoding := s.settings["client_encoding"]
	s.mu.Unlock()
	if !readable(encoding) {
		return nil, &refusal{State: stateFeature, Message: "isle: statements in client_encoding " + encoding + " can't be read", Hint: "use UTF8: begin the session anew"}
	}
	read, err := s.p.config.Reader.Read(s.ctx, string(text), Settings{StandardConforming: standard})
	if err != nil {
		return nil, err
	}
	return read, nil
}

// sets reports whether a statement may change how those after it are read.
func (s *session) sets(read *Read) bool {
	for _, p := range read.Parts {
		for _, k := range p.Facts.Statements {
			if k == "set" || k == "transaction" && s.touched {
				s.touched = true
				return true
			}
		}
		if slices.Contains(p.Facts.Actions, isle.ActionPostgresAdmin) {
			s.touched = true
			return true
		}
	}
	return false
}

// ask asks for every part of an execution, before any of it is forwarded. Its
// error is for the client; what was passed before it is accounted for.
func (s *session) ask(r *run, params []Param, st *statement) error {
	s.mu.Lock()
	in := s.wrote
	s.mu.Unlock()
	for i := range r.read.Parts {
		part := &r.read.Parts[i]
		if err := s.guard(part.Facts); err != nil {
			return s.deny(r, part, err)
		}
	}
	for i := range r.read.Parts {
		part := &r.read.Parts[i]
		pass, err := s.askOne(r, part, params, in)
		if err != nil {
			return s.deny(r, part, err)
		}
		r.passes = append(r.passes, pass)
		r.write = r.write || changes(part.Facts.Actions)
		s.record(Event{Kind: "statement", Text: r.text[part.Start:part.End], Shape: part.Facts.Shape, Params: shown(params), Decision: isle.Allow, Rule: pass.Rule(), Approval: pass.Approval()})
	}
	r.began = time.Now()
	return nil
}

func (s *session) askOne(r *run, part *Part, params []Param, in bool) (Pass, error) {
	s.asking = r
	ctx := s.hold.begin(s.ctx)
	pass, err := s.door.Ask(ctx, Ask{Facts: part.Facts, Text: r.text, Params: params, Context: s.pairs, InWrite: in, Waiting: s.waiting, Estimate: s.estimate, Quiet: true})
	s.asking = nil
	s.hold.unwatch(s)
	s.mu.Lock()
	s.hold.waiting = false
	s.mu.Unlock()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return pass, err
}

// deny accounts for what was passed before a part was refused.
func (s *session) deny(r *run, part *Part, err error) error {
	for _, p := range r.passes {
		p.Done("not executed: another part of it is refused", 0)
	}
	r.passes = nil
	kind, decision := "refused", isle.Deny
	if isle.CodeOf(err) == isle.Held {
		kind, decision = "held", isle.Hold
	}
	s.record(Event{Kind: kind, Text: r.text[part.Start:part.End], Shape: part.Facts.Shape, Decision: decision, Error: err.Error()})
	return err
}

// guard refuses what no policy allows on this connection. A read-only one has a
// second fence at the server, default_transaction_read_only, which a statement
// could take away.
func (s *session) guard(f *policy.Facts) error {
	if !s.connection.ReadOnly {
		return nil
	}
	if changes(f.Actions) {
		return isle.Errorf(isle.Refused, "connection %s is read-only: %s is refused", s.connection.Name, strings.Join(f.Statements, ", "))
	}
	for _, k := range f.Statements {
		if (k == "set" || k == "transaction") && unlocks(f.Shape) {
			return isle.Errorf(isle.Refused, "connection %s is read-only: a transaction of it can't be made read-write", s.connection.Name)
		}
	}
	return nil
}

// unlocks reports whether a SET or BEGIN speaks of read-write or read-only; the
// shape has neither literals nor comments.
func unlocks(shape string) bool {
	words := strings.Fields(strings.ToLower(shape))
	for i, w := range words {
		if strings.Contains(w, "read_only") || w == "read" && i+1 < len(words) && strings.HasPrefix(words[i+1], "write") {
			return true
		}
	}
	return false
}

// A bound is what a Bind says.
type bound struct {
	portal, statement []byte
	params            []Param
	results           []byte // format codes of the results
}

var errBind = &refusal{State: stateProtocol, Message: "isle: a malformed Bind"}

// parseBind reads a Bind's body, its parameters into params.
func parseBind(body []byte, params []Param) (bound, error) {
	var b bound
	var ok, ok2 bool
	b.portal, body, ok = cutText(body)
	b.statement, body, ok2 = cutText(body)
	if !ok || !ok2 || len(body) < 2 {
		return b, errBind
	}
	formats := int(binary.BigEndian.Uint16(body))
	body = body[2:]
	if len(body) < 2*formats+2 {
		return b, errBind
	}
	codes, count := body[:2*formats], int(binary.BigEndian.Uint16(body[2*formats:]))
	body = body[2*formats+2:]
	if formats > 1 && formats != count || 4*count > len(body) {
		return b, errBind
	}
	for i := range count {
		if len(body) < 4 {
			return b, errBind
		}
		n := int32(binary.BigEndian.Uint32(body))
		body = body[4:]
		p := Param{Null: n == -1}
		switch {
		case formats == 1:
			p.Binary = codes[1] != 0
		case formats > 1:
			p.Binary = codes[2*i+1] != 0
		}
		if n < -1 || int(n) > len(body) {
			return b, errBind
		}
		if n > 0 {
			p.Value, body = body[:n], body[n:]
		}
		params = append(params, p)
	}
	b.params = params
	if len(body) < 2 || len(body) != 2+2*int(binary.BigEndian.Uint16(body)) {
		return b, errBind
	}
	b.results = body[2:]
	return b, nil
}

// shown are parameters as a recording has them.
func shown(params []Param) []string {
	if len(params) == 0 {
		return nil
	}
	out := make([]string, len(params))
	for i, p := range params {
		switch {
		case p.Null:
			out[i] = "NULL"
		case p.Binary:
			out[i] = fmt.Sprintf("\\x%x", p.Value[:min(len(p.Value), 512)])
		default:
			out[i] = string(p.Value[:min(len(p.Value), 1024)])
		}
	}
	return out
}

// errCanceled is the client's own cancel of what waits for an approval.
var errCanceled = &refusal{State: stateCanceled, Message: "isle: canceling statement due to user request", Detail: "It was waiting for an approval, which is withdrawn."}

// holding is what an Ask may be ended by, beside the session's end.
type holding struct {
	ctx      context.Context // of the goroutine fromClient, as cancel
	cancel   context.CancelCauseFunc
	over     chan struct{}
	watchers sync.WaitGroup

	waiting bool // under the session's mu: an Ask waits for an approval
}

// begin returns the context of an Ask. It is made anew only after it was ended.
func (h *holding) begin(session context.Context) context.Context {
	if h.ctx == nil || h.ctx.Err() != nil {
		h.ctx, h.cancel = context.WithCancelCause(session)
	}
	return h.ctx
}
