package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"isle"
	"isle/internal/approval"
	"isle/internal/gateway"
	"isle/internal/gateway/postgres/query"
	"isle/internal/policy"
	"isle/internal/session"
)

// read reads a statement's text, once it is known how the server will read it.
func (s *exchange) read(text []byte) (*query.Read, error) {
	if err := s.answered(); err != nil {
		return nil, err
	}
	if err := s.refresh(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	set := s.reading
	s.mu.Unlock()
	if !readable(set.Encoding) {
		return nil, &refusal{State: stateFeature, Message: "isle: statements in client_encoding " + set.Encoding + " can't be read", Hint: "begin a new session, which has UTF8"}
	}
	return s.reader.Read(s.ctx, string(text), set)
}

// answered waits until the server has said what became of the settings that
// statements before have changed.
func (s *exchange) answered() error {
	s.mu.Lock()
	pending := s.setting > 0
	within := pending && s.open
	s.mu.Unlock()
	if !pending {
		return nil
	}
	if within {
		s.up.insert([]byte{'H', 0, 0, 0, 4}) // else the server may keep its answers until Sync
	}
	return s.await(func() bool { return s.setting == 0 })
}

// meaning reports whether a setting says how later statements are read, or is
// part of what an approval is bound to; path, whether search_path may differ
// after it.
func meaning(setting string) (matters, path bool) {
	switch setting {
	case "*", "search_path", "role", "session_authorization":
		return true, true
	case "client_encoding", "standard_conforming_strings", "datestyle", "timezone", "intervalstyle":
		return true, false
	}
	return false, false
}

// sets reports whether a run may change how statements after it are read: by a
// setting, or once one was changed by the end of a transaction, which may change
// it back.
func (s *exchange) sets(read *query.Read) (sets bool) {
	for i := range read.Parts {
		p := &read.Parts[i]
		for _, name := range p.Settings {
			matters, path := meaning(name)
			sets, s.touched = sets || matters, s.touched || matters
			s.moved, s.stale = s.moved || path, s.stale || path
			s.epoch++
		}
		switch p.Transaction {
		case "commit", "rollback", "rollback to", "prepare transaction":
			sets, s.stale = sets || s.touched, s.stale || s.moved
			s.epoch++
		}
	}
	return sets
}

// ask asks for an execution before any of it is forwarded. All of its parts are
// asked for at once, so that a human sees and approves it once; one by one where
// the whole would hide something of a part: what EXECUTE executes, and a write
// with WHERE beside one without.
func (s *exchange) ask(r *run, params []approval.Param) error {
	if len(r.read.Parts) == 0 {
		r.began = time.Now()
		return nil
	}
	r.passes = r.one[:0]
	text, values := redact(r.plans, r.read, r.text, shown(params))
	s.mu.Lock()
	wrote := s.wrote
	s.mu.Unlock()
	single := len(r.read.Parts) > 1 && r.read.Facts.Unbounded
	for i := range r.read.Parts {
		p := &r.read.Parts[i]
		single = single || p.Kind == "execute"
		if p.Kind == "prepare" && len(r.read.Parts) > 1 {
			return s.refuseHere(r, &refusal{State: stateFeature, Message: "isle: PREPARE together with other statements does not pass the gateway", Hint: "send it by itself"})
		}
	}
	if !single {
		return s.askFor(r, r.read.Facts, params, wrote, text, values)
	}
	each := make([]*policy.Facts, len(r.read.Parts))
	for i := range r.read.Parts {
		var err error
		if each[i], err = s.partFacts(r, &r.read.Parts[i]); err != nil {
			return s.refuseHere(r, err)
		}
		// Nobody is to approve one part where another is refused.
		if _, err = s.door.Ask(s.ctx, gateway.Ask{Facts: each[i], Text: r.text, Record: text, Prepare: true, Quiet: true}); err != nil {
			return err
		}
	}
	for _, facts := range each {
		if err := s.askFor(r, facts, params, wrote, text, values); err != nil {
			return err
		}
	}
	return nil
}

// mayPrepare refuses what would be refused whatever its parameters are. What an
// EXECUTE executes is known when it is bound.
func (s *exchange) mayPrepare(st *statement) error {
	for i := range st.read.Parts {
		if st.read.Parts[i].Kind == "execute" {
			return nil
		}
	}
	if len(st.read.Parts) == 0 {
		return nil
	}
	text, _ := redact(st.plans, st.read, st.text, nil)
	_, err := s.door.Ask(s.ctx, gateway.Ask{Facts: st.read.Facts, Text: st.text, Record: text, Prepare: true, Quiet: true})
	return err
}

// partFacts are those of one part; of EXECUTE with what it executes.
func (s *exchange) partFacts(r *run, p *query.Part) (*policy.Facts, error) {
	if p.Kind != "execute" {
		return p.Facts, nil
	}
	if err := s.await(func() bool { return s.settled(p.Name) }); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.statements.m[p.Name]
	if d == nil || d.value == nil {
		return nil, &refusal{State: stateStatement, Message: fmt.Sprintf("isle: prepared statement %q does not exist", clip(p.Name))}
	}
	r.executes = append(r.executes, executed{p.Name, d})
	return s.reader.Execute(*p, d.value.read.Facts), nil
}

// askFor asks for one of the things that a run does.
func (s *exchange) askFor(r *run, facts *policy.Facts, params []approval.Param, wrote bool, text []byte, values []string) error {
	ctx := s.hold.begin(s.ctx)
	s.asking = r
	pass, err := s.door.Ask(ctx, gateway.Ask{Facts: facts, Text: r.text, Record: text, Params: executing(r, params), Context: s.bindingContext(), InWrite: wrote, Waiting: s.waiting, Estimate: s.estimate, Quiet: true})
	s.asking = nil
	s.hold.unwatch(s)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		s.notDone(r)
		return err
	}
	first := len(r.passes) == 0
	r.passes = append(r.passes, pass)
	r.write = r.write || changes(facts.Actions)
	if first {
		r.began = time.Now()
		s.record(session.Event{At: r.began, Kind: session.Statement, Text: text, Shape: facts.Shape, Params: values, Decision: isle.Allow, Rule: pass.Rule(), Approval: pass.Approval()})
	}
	return nil
}

// executing are the parameters with what each EXECUTE executes, in which the
// approver sees what is done: its own text says a name only.
func executing(r *run, params []approval.Param) []approval.Param {
	params = slices.Clip(params)
	for _, e := range r.executes {
		kind := "what " + e.name + " was prepared as"
		for i, t := range e.what.value.types {
			kind += []string{", with ", " "}[min(i, 1)] + typeName(t)
		}
		params = append(params, approval.Param{Type: kind, Value: e.what.value.text})
	}
	return params
}

// refuseHere records what is refused without asking policy.
func (s *exchange) refuseHere(r *run, err error) error {
	s.notDone(r)
	text, _ := redact(r.plans, r.read, r.text, nil)
	s.door.Refuse(gateway.Ask{Facts: r.read.Facts, Text: r.text, Record: text}, "built in: what the gateway can't follow", err)
	return err
}

// notDone accounts for the parts that passed before another was refused.
func (s *exchange) notDone(r *run) {
	if len(r.passes) == 0 {
		return
	}
	for _, p := range r.passes {
		p.Done("not executed: another part of it is refused", 0)
	}
	r.passes = nil
	s.record(session.Event{Kind: session.Result, Tag: "not executed", Took: time.Since(r.began)})
}

// A bound is what a Bind says.
type bound struct {
	portal, statement []byte
	params            []approval.Param
	results           []byte // format codes of the results
}

var errBind = &refusal{State: stateProtocol, Message: "isle: a malformed Bind"}

// parseBind reads a Bind's body, its parameters into params.
func parseBind(body []byte, params []approval.Param) (bound, error) {
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
		p := approval.Param{Null: n == -1}
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
func shown(params []approval.Param) []string {
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

// changes reports whether an action may change something.
func changes(actions []isle.Action) bool {
	for _, a := range actions {
		if a != isle.ActionPostgresSelect && a != isle.ActionConnectionOpen {
			return true
		}
	}
	return false
}
