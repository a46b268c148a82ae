package postgres

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// fromClient reads what the client says, asks about what would be done, and
// forwards it.
//
// A message that is refused is replaced by one that the server is certain to
// refuse too: a Query that is no SQL, or an Execute of a portal that is not there.
// So the server answers at the refused one's place, skips what it would have
// skipped, and fails the transaction as it would have; only the error's text is
// then replaced by ours. The states of the client's and of the server's
// transaction can't come apart.
func (s *exchange) fromClient() error {
	for {
		kind, size, frame, err := s.up.next()
		if errors.Is(err, io.EOF) {
			return s.halfClosed()
		}
		if err != nil {
			return clientGone{err}
		}
		if err := s.message(kind, size, frame); err != nil {
			return err
		}
	}
}

// message handles one message of the client's.
func (s *exchange) message(kind byte, size int, frame []byte) error {
	switch kind {
	case 'd':
		if frame == nil {
			return s.wrap(s.up.stream(size))
		}
		s.up.pass(size)
		return nil
	case 'c', 'f', 'S', 'H', 'X':
		return s.short(kind, size, frame)
	case 'Q', 'P', 'B', 'D', 'C', 'E', 'F':
	default:
		return &refusal{State: stateProtocol, Message: fmt.Sprintf("isle: invalid frontend message type %d", kind)}
	}
	if err := s.room(kind); err != nil {
		return err
	}
	skip, err := s.skips()
	if err != nil {
		return err
	}
	if skip {
		return s.drop(size, frame)
	}
	if frame == nil && kind != 'F' {
		if frame, err = s.up.grow(size, maxMessage); errors.Is(err, errLarge) {
			if err := s.up.discard(size); err != nil {
				return clientGone{err}
			}
			return s.refused(kind, 0, &refusal{State: stateLimit, Message: "isle: the message is too large to be read",
				Detail: fmt.Sprintf("It has %d bytes; %d are read, and less where many sessions send large ones.", size, maxMessage), Hint: "send large values in parts, or with COPY"})
		} else if err != nil {
			return clientGone{err}
		}
	}
	switch kind {
	case 'Q':
		return s.query(size, frame)
	case 'P':
		return s.parse(size, frame)
	case 'B':
		return s.bind(size, frame)
	case 'E':
		return s.execute(size, frame)
	case 'D', 'C':
		return s.named(kind, size, frame)
	}
	if err := s.drop(size, frame); err != nil {
		return err
	}
	return s.refused('Q', 0, &refusal{State: stateRefused, Message: "isle: function calls by the protocol's fast path do not pass the gateway", Hint: "use SELECT"})
}

// wrap tells an error of carrying to the server from one of the client.
func (s *exchange) wrap(err error) error {
	if err == nil {
		return nil
	}
	return clientGone{err}
}

// short handles messages that nobody is asked about.
func (s *exchange) short(kind byte, size int, frame []byte) error {
	if frame == nil {
		if kind != 'f' {
			return errFrame
		}
		if err := s.markCopy(); err != nil {
			return err
		}
		return s.wrap(s.up.stream(size))
	}
	switch kind {
	case 'X':
		s.up.cut(size)
		return s.leave()
	case 'c', 'f':
		if err := s.markCopy(); err != nil {
			return err
		}
	case 'S':
		if err := s.room(kind); err != nil {
			return err
		}
		s.mu.Lock()
		if !s.copying { // a server that reads COPY data ignores it
			s.push(entry{kind: 'S', segment: s.segment})
			s.skipping, s.open = false, false
		}
		s.mu.Unlock()
		s.segment++
	}
	s.up.pass(size)
	return nil
}

// leave ends the client's side: the server answers what it was asked, and the
// session ends.
func (s *exchange) leave() error {
	s.up.insert([]byte{'X', 0, 0, 0, 4})
	s.mu.Lock()
	s.leaving = true // before the server may end it
	s.mu.Unlock()
	if err := s.up.flush(); err != nil {
		return serverGone{err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unmark()
	if s.outstanding() == 0 {
		return errDone
	}
	return errLeft
}

// halfClosed is leave where the client did not take its leave: it may be gone, or
// only say nothing more. Being told something that it knows shows which.
func (s *exchange) halfClosed() error {
	err := s.leave()
	if !errors.Is(err, errLeft) {
		return err
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return err
		case <-tick.C:
		}
		s.mu.Lock()
		known := pgproto3.ParameterStatus{Name: "client_encoding", Value: s.settings["client_encoding"]}
		s.mu.Unlock()
		b, encode := known.Encode(nil)
		if encode != nil {
			return err
		}
		if gone := s.outlet.tell(b); gone != nil {
			return clientGone{gone}
		}
	}
}

// room waits until the server has answered enough of what was sent.
func (s *exchange) room(kind byte) error {
	s.mu.Lock()
	full := s.outstanding() >= maxOutstanding
	copying := s.copying
	s.mu.Unlock()
	if copying && kind != 'S' {
		return &refusal{State: stateProtocol, Message: fmt.Sprintf("isle: message type %q while the server reads COPY data", kind)}
	}
	if !full {
		return nil
	}
	return s.await(func() bool { return s.outstanding() < maxOutstanding/2 })
}

// await sends what is ready and waits until ok, which is called with mu held.
func (s *exchange) await(ok func() bool) error {
	s.mu.Lock()
	done := ok()
	s.mu.Unlock()
	if done {
		return nil
	}
	s.up.insert([]byte{'H', 0, 0, 0, 4}) // else the server may keep its answers
	if err := s.up.flush(); err != nil {
		return serverGone{err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for !ok() {
		if s.ended != nil {
			return s.ended
		}
		s.changed.Wait()
	}
	return nil
}

// forward sends a message on and expects its answer; what it defines counts from
// now on. It reports false where the server skips it: something before it in its
// segment has failed by now.
func (s *exchange) forward(size int, e entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.skipping {
		s.up.cut(size)
		return false
	}
	e.segment, s.open = s.segment, e.kind != 'Q'
	switch {
	case e.statement != nil:
		e.statement = s.statements.define(e.key, e.statement.value, s.segment)
	case e.portal != nil:
		e.portal = s.portals.define(e.key, e.portal.value, s.segment)
	}
	if e.run != nil && e.run.write {
		s.wrote = true
	}
	if e.sets {
		s.setting++
	}
	s.push(e)
	s.up.pass(size)
	return true
}

// query handles a simple query: all of its parts are asked for before any is
// forwarded.
func (s *exchange) query(size int, frame []byte) error {
	text, rest, ok := cutText(frame[headerSize:])
	if !ok || len(rest) != 0 {
		return &refusal{State: stateProtocol, Message: "isle: a malformed Query"}
	}
	read, err := s.read(text)
	if err != nil {
		return s.told('Q', size, err)
	}
	plans, err := s.plan(read, text)
	if err != nil {
		return s.told('Q', size, err)
	}
	r := &run{text: text, read: read, plans: plans}
	s.params = s.params[:0]
	if err := s.ask(r, nil); err != nil {
		return s.told('Q', size, err)
	}
	e := entry{kind: 'Q', run: r, sets: s.sets(read)}
	s.prepares(&e, text)
	if !s.forward(size, e) {
		s.account(r, notExecuted)
		return nil
	}
	s.cursors(read)
	s.segment++
	return nil
}
