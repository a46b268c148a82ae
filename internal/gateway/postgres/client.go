package postgres

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"isle"
	"isle/internal/gateway"
	"isle/internal/gateway/postgres/query"
	"isle/internal/session"
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

// skips reports whether the server skips what comes, until Sync.
func (s *exchange) skips() (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.skipping, s.ended
}

func (s *exchange) drop(size int, frame []byte) error {
	if frame == nil {
		return s.wrap(s.up.discard(size))
	}
	s.up.cut(size)
	return nil
}

// refused puts a message that fails in the place of one that was refused, and of
// which size bytes are still to be taken away.
func (s *exchange) refused(kind byte, size int, why *refusal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.skipping {
		s.up.cut(size)
		return s.ended
	}
	s.up.cut(size)
	if kind == 'Q' {
		s.push(entry{kind: 'Q', refused: why, segment: s.segment})
		s.up.out = append(s.up.out, s.p.refusedQuery...)
		s.segment++
		s.open = false
	} else {
		s.push(entry{kind: 'E', refused: why, segment: s.segment})
		s.open = true
		s.up.out = append(s.up.out, s.poison...)
	}
	return s.ended
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

// told refuses a message with an error; ends are passed on.
func (s *exchange) told(kind byte, size int, err error) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if gone := new(clientGone); errors.As(err, gone) {
		return err
	}
	return s.refused(kind, size, refuse(err))
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

// notExecuted is the outcome of what the server skips.
const notExecuted = "not executed: an earlier message failed"

// settled reports whether it is known what a prepared statement's name stands
// for. The caller holds mu.
func (s *exchange) settled(statement string) bool {
	d := s.statements.m[statement]
	return s.skipping || d == nil || !d.pending || d.segment == s.segment
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

// cutText takes text that ends in a zero byte.
func cutText(b []byte) (text, rest []byte, ok bool) {
	i := slices.Index(b, 0)
	if i < 0 {
		return nil, nil, false
	}
	return b[:i], b[i+1:], true
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

// changes reports whether an action may change something.
func changes(actions []isle.Action) bool {
	for _, a := range actions {
		if a != isle.ActionPostgresSelect && a != isle.ActionConnectionOpen {
			return true
		}
	}
	return false
}
