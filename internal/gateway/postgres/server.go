package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"

	"isle/internal/gateway/postgres/query"
)

// errReply is an answer that does not fit what was asked: what the gateway knows
// of the session would no longer be true.
var errReply = errors.New("postgres: the server behind answers something else than it was asked")

// fromServer reads what the server says, keeps account of it, and forwards it.
func (s *exchange) fromServer() error {
	for {
		kind, size, frame, err := s.down.next()
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.leaving {
				return errDone
			}
			return serverGone{err}
		}
		switch kind {
		case 'D':
			s.rows++
			switch {
			case s.looks.Load() > 0:
				err = s.row(size, frame)
			case frame == nil:
				err = s.down.stream(size)
			default:
				s.down.pass(size)
			}
		case 'd':
			err = s.copied(size, frame)
		default:
			if frame == nil {
				if frame, err = s.down.grow(size, maxReply); err != nil {
					return serverGone{fmt.Errorf("a message of type %q of %d bytes: %w", kind, size, err)}
				}
			}
			err = s.reply(kind, frame)
		}
		if err != nil {
			return err
		}
		if len(s.down.out) >= bufferSize {
			if err := s.down.flush(); err != nil {
				return clientGone{err}
			}
		}
	}
}

// reply handles one whole message of the server's.
func (s *exchange) reply(kind byte, frame []byte) error {
	body := frame[headerSize:]
	switch kind {
	case 'N':
		s.scrubbed(frame)
		return nil
	case 'A':
		s.down.pass(len(frame))
		return nil
	case 'S':
		s.down.pass(len(frame))
		return s.reported(body)
	case 'E':
		return s.failed(frame)
	case 'Z':
		return s.ready(frame)
	case 'G', 'H', 'W':
		if err := s.copies(kind); err != nil {
			return err
		}
		s.down.pass(len(frame))
		return nil
	case 'c':
		s.down.pass(len(frame))
		return nil
	}
	return s.answer(kind, frame)
}

// answers reports whether an answer can be one to a message; last, whether it is
// the last one.
func answers(asked, kind byte) (fits, last bool) {
	switch asked {
	case 'Q':
		return kind == 'T' || kind == 'C' || kind == 'I', false
	case 'P':
		return kind == '1', true
	case 'B':
		return kind == '2', true
	case 'C':
		return kind == '3', true
	case 'D':
		return kind == 't' || kind == 'T' || kind == 'n', kind != 't'
	case 'E':
		return kind == 'C' || kind == 'I' || kind == 's', true
	}
	return false, false
}

// answer handles the answers that succeed.
func (s *exchange) answer(kind byte, frame []byte) error {
	s.mu.Lock()
	s.unmark()
	e := s.front()
	if e == nil || e.refused != nil {
		s.mu.Unlock()
		return errReply
	}
	fits, last := answers(e.kind, kind)
	if !fits {
		s.mu.Unlock()
		return errReply
	}
	e.answered = e.answered || kind == 'C' || kind == 'I'
	if e.probe != nil {
		s.mu.Unlock()
		s.down.cut(len(frame))
		return nil
	}
	r, ours, of := e.run, e.ours, e.of
	plan := s.planAt()
	if last {
		done := s.pop()
		if done.forgets {
			s.statements.forget()
		}
		switch {
		case done.statement != nil:
			s.statements.agree(done.key, done.statement)
		case done.portal != nil:
			s.portals.agree(done.key, done.portal)
		}
	}
	s.mu.Unlock()
	if kind == 'T' && s.masked != nil && (ours || !last) {
		rows, err := s.described(frame, plan)
		if err != nil {
			return err
		}
		s.mu.Lock()
		if ours {
			of.rows = rows
		} else {
			s.showing = rows
		}
		s.mu.Unlock()
	}
	if ours {
		s.down.cut(len(frame))
	} else {
		s.down.pass(len(frame))
	}
	switch kind {
	case 'C', 'I', 's':
		s.complete(r, kind, frame[headerSize:], last)
	}
	return nil
}

// unmark takes ends of COPY data away that nothing waited for. The caller holds
// mu.
func (s *exchange) unmark() {
	for e := s.front(); e != nil && e.kind == 'c'; e = s.front() {
		s.pop()
	}
}

// complete notes the end of one part of an execution, and where it is the only
// one accounts for it.
func (s *exchange) complete(r *run, kind byte, body []byte, single bool) {
	rows, tag := s.rows, ""
	s.rows = 0
	switch kind {
	case 'C':
		tag = string(bytes.TrimSuffix(body, []byte{0}))
		rows = affected(tag)
	case 'I':
		tag = "EMPTY"
	case 's':
		tag = "SUSPENDED"
	}
	if r == nil {
		return
	}
	r.did(tag, rows)
	s.mu.Lock()
	r.part++
	s.showing = nil
	s.mu.Unlock()
	if single {
		s.account(r, r.tag)
	}
}

// affected is the number of rows that a command tag ends in.
func affected(tag string) int64 {
	for i := len(tag) - 1; i >= 0; i-- {
		if tag[i] == ' ' {
			n, err := strconv.ParseInt(tag[i+1:], 10, 64)
			if err == nil {
				return n
			}
			break
		}
	}
	return 0
}

// failed handles ErrorResponse: it is the answer to the oldest message, and in
// the extended protocol to all after it, until Sync.
func (s *exchange) failed(frame []byte) error {
	var m pgproto3.ErrorResponse
	if err := m.Decode(frame[headerSize:]); err != nil {
		return serverGone{err}
	}
	s.rows = 0
	severity := m.SeverityUnlocalized
	if severity == "" {
		severity = m.Severity
	}
	if severity == "FATAL" || severity == "PANIC" {
		s.scrubbed(frame)
		if err := s.down.flush(); err != nil {
			return clientGone{err}
		}
		return errDone
	}
	s.mu.Lock()
	s.unmark()
	e := s.front()
	if e == nil || e.kind == 'S' {
		s.mu.Unlock()
		s.scrubbed(frame)
		return nil
	}
	s.copying, s.showing, e.answered = false, nil, true
	if e.probe != nil {
		s.mu.Unlock()
		s.down.cut(len(frame))
		return nil
	}
	refused := e.refused
	plan := s.planAt()
	var left []*run
	if e.kind == 'Q' {
		if e.run != nil {
			left = append(left, e.run)
			e.run = nil
		}
		if e.statement != nil {
			s.statements.undo(e.key, e.statement)
			e.statement = nil
		}
		e.forgets = false
	} else {
		left = s.skip()
	}
	s.mu.Unlock()
	if refused != nil {
		s.down.cut(len(frame))
		s.down.out = refused.frame(s.down.out, "ERROR")
	} else if s.scrub(frame, plan) {
		m.Message = "(left out: it may quote what is masked)"
	}
	outcome := "error " + m.Code
	for _, r := range left {
		if outcome != notExecuted {
			r.failure = m.Code + ": " + m.Message
		}
		s.account(r, outcome)
		outcome = notExecuted
	}
	return nil
}

// skip takes away all up to Sync, which the server will not answer, and undoes
// what they would have defined. The caller holds mu.
func (s *exchange) skip() (left []*run) {
	from := s.head
	to := from
	for to < len(s.queue) && s.queue[to].kind != 'S' {
		to++
	}
	for i := to - 1; i >= from; i-- {
		switch e := &s.queue[i]; {
		case e.statement != nil:
			s.statements.undo(e.key, e.statement)
		case e.portal != nil:
			if p := e.portal.value; p != nil && p.run != nil {
				left = append(left, p.run)
				p.run = nil
			}
			s.portals.undo(e.key, e.portal)
		}
	}
	var runs []*run
	s.skipping = to == len(s.queue)
	for range to - from {
		if e := s.pop(); e.run != nil {
			runs = append(runs, e.run)
		}
	}
	return append(runs, left...)
}

// ready handles ReadyForQuery.
func (s *exchange) ready(frame []byte) error {
	if len(frame) != headerSize+1 {
		return errReply
	}
	s.mu.Lock()
	s.unmark()
	e := s.front()
	if e == nil || e.kind != 'Q' && e.kind != 'S' || e.kind == 'Q' && !e.answered { // a Sync in COPY data that the server did not ignore
		s.mu.Unlock()
		return errReply
	}
	done := s.pop()
	if done.statement != nil {
		s.statements.agree(done.key, done.statement)
	}
	if done.forgets {
		s.statements.forget()
	}
	s.copying = false
	if done.probe != nil {
		s.looks.Add(-1)
	}
	if s.status = frame[headerSize]; s.status == 'I' {
		if s.outstanding() == 0 {
			s.wrote = false
		}
		s.expire()
	}
	status, last := s.status, s.leaving && s.outstanding() == 0
	s.mu.Unlock()
	if status == 'I' && s.masked != nil {
		s.masking.Lock()
		s.masked.Idle()
		s.masking.Unlock()
	}
	if done.probe != nil {
		s.down.cut(len(frame))
		return nil
	}
	s.down.pass(len(frame))
	if done.run != nil {
		s.account(done.run, done.run.tag)
	}
	if last {
		if err := s.down.flush(); err != nil {
			return clientGone{err}
		}
		return errDone
	}
	return nil
}

// expire drops the portals that ended with their transaction. The caller holds
// mu.
func (s *exchange) expire() {
	if s.outstanding() == 0 {
		clear(s.portals.m)
	}
}

// reported handles ParameterStatus.
func (s *exchange) reported(body []byte) error {
	var m pgproto3.ParameterStatus
	if err := m.Decode(body); err != nil {
		return serverGone{err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.settings) < 1000 {
		s.settings[m.Name] = m.Value
		s.dated = true
	}
	s.reads()
	return nil
}

// reads says how SQL is read from now on. The caller holds mu, or is alone.
func (s *exchange) reads() {
	version, _, _ := strings.Cut(s.settings["server_version"], ".")
	major, _ := strconv.Atoi(version)
	s.reading = query.Settings{StandardConforming: s.settings["standard_conforming_strings"] == "on", Encoding: s.settings["client_encoding"],
		ServerEncoding: s.settings["server_encoding"], Version: major, PathChanged: !ordinaryPath(s.role.searchPath)}
}

// ordinaryPath reports whether a search path has pg_catalog where it is by
// itself: before all else.
func ordinaryPath(path string) bool {
	first, _, _ := strings.Cut(path, ",")
	if first = strings.TrimSpace(first); first == "pg_catalog" || first == `"pg_catalog"` {
		return true
	}
	return !strings.Contains(strings.ToLower(path), "pg_")
}
