// Package postgres carries PostgreSQL's protocol through the gateway, true to
// the wire: protocol 3.0 and 3.2 of PostgreSQL 18's manual, chapter 54.
//
// A client speaks with the gateway as with a server; the gateway has a connection
// of its own to the server behind for each (an upstream), where it logs in with
// the connection's credential, which the client never sees. Messages are frames: a
// type, a length, a body. A splice carries frames one way, unchanged and without
// copying where it may. What a client would execute, a run, is read and asked for
// before it is forwarded; what is refused is replaced by a message that the server
// refuses too, so that both sides agree on the transaction (see fromClient). An
// entry is a message that the server has yet to answer: answers come in the order
// of the messages, so the queue of entries says what each answer is to. A name is
// what a prepared statement's or a portal's name stands for; a hold is a run that
// waits for an approval.
//
// Everything that is read is hostile, from either side: sizes are bounded before
// memory is taken, handshakes have deadlines, and a message that does not fit ends
// its own session only.
package postgres

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/semaphore"

	"isle"
	"isle/internal/approval"
	"isle/internal/gateway"
	"isle/internal/gateway/postgres/query/grammar"
)

// Config is what a Protocol needs.
type Config struct {
	// Grammar reads SQL; nil: one of its own. It is made ready by the first
	// session.
	Grammar *grammar.Grammar
	// Handshake bounds a client's start-up, and a login at the server behind;
	// default 20 seconds.
	Handshake time.Duration
	// Large bounds the memory in bytes that messages above 32 KiB take while they
	// are read, of all sessions together; default 256 MiB.
	Large int64
	// MaskKey is the key of the server's that masks of kind hash are made with;
	// nil: one that is made anew each time that the server starts.
	MaskKey func() ([]byte, error)
	Slog    *slog.Logger // nil discards
}

// A Protocol serves connections of kind postgres.
type Protocol struct {
	config       Config
	buffers      buffers
	large        *semaphore.Weighted
	registry     registry
	readers      readers
	disguises    disguises
	refusedQuery []byte
}

// New returns a Protocol.
func New(c Config) *Protocol {
	if c.Handshake <= 0 {
		c.Handshake = 20 * time.Second
	}
	if c.Large <= 0 {
		c.Large = 256 << 20
	}
	if c.MaskKey == nil {
		key := make([]byte, 32)
		rand.Read(key)
		c.MaskKey = func() ([]byte, error) { return key, nil }
	}
	if c.Slog == nil {
		c.Slog = slog.New(slog.DiscardHandler)
	}
	// What stands for a refused Query is no SQL; it shows in the server's own log.
	const text = "refused: the gateway did not forward what its client sent in this place\x00"
	if c.Grammar == nil {
		c.Grammar = grammar.New()
	}
	return &Protocol{config: c, readers: readers{grammar: c.Grammar}, disguises: disguises{grammar: c.Grammar, key: c.MaskKey}, large: semaphore.NewWeighted(c.Large),
		refusedQuery: append(binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(4+len(text))), text...)}
}

var (
	_ gateway.Protocol = (*Protocol)(nil)
	_ gateway.Refuser  = (*Protocol)(nil)
)

// Serve implements gateway.Protocol.
func (p *Protocol) Serve(ctx context.Context, client net.Conn, d *gateway.Door) error {
	return p.serve(ctx, client, gate{d})
}

// Warm makes the grammar ready, which takes seconds; without, the first session
// waits for it.
func (p *Protocol) Warm() error { return p.config.Grammar.Warm() }

// serve speaks with one client until one side ends or ctx does.
func (p *Protocol) serve(ctx context.Context, client net.Conn, d door) error {
	stop := context.AfterFunc(ctx, func() { client.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	client.SetDeadline(time.Now().Add(p.config.Handshake))
	start, err := greet(client)
	if err != nil {
		return p.dismiss(ctx, client, err)
	}
	if start.Cancel != nil {
		d.Started()
		return p.cancel(ctx, *start.Cancel, func(o door) bool { return sameCaller(d, o) })
	}
	s, err := p.begin(ctx, client, d, start)
	if err != nil {
		return p.dismiss(ctx, client, err)
	}
	key := p.registry.add(s, min(start.Minor, latestMinor))
	defer p.registry.remove(key)
	if err := s.welcome(start, key); err != nil {
		s.server.Close()
		s.down.in.release()
		s.side.close()
		return err
	}
	client.SetDeadline(time.Time{})
	d.Started()
	d.Describe("", s.database, s.role.name)
	stop()
	return s.serve()
}

// greet reads a client's first packet. What came through Front has it already.
func greet(client net.Conn) (*startup, error) {
	if a, ok := client.(*arrival); ok {
		return a.start, nil
	}
	_, start, err := readStartup(client, declineTLS)
	return start, err
}

// dismiss tells a client that is not let in why.
func (p *Protocol) dismiss(ctx context.Context, client net.Conn, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil // it only looked whether somebody is there
	}
	if errors.Is(err, errStartup) {
		err = &refusal{State: stateProtocol, Message: "isle: this is not PostgreSQL's protocol"}
	}
	client.SetDeadline(time.Now().Add(time.Second))
	client.Write(turnAway(err).frame(nil, "FATAL"))
	return err
}

// Refuse implements gateway.Refuser.
func (p *Protocol) Refuse(client net.Conn, err error) {
	client.SetDeadline(time.Now().Add(p.config.Handshake))
	start, unread := greet(client)
	if unread == nil && start.Cancel != nil {
		return
	}
	client.SetDeadline(time.Now().Add(time.Second))
	client.Write(turnAway(err).frame(nil, "FATAL"))
}

// begin logs in at the server behind.
func (p *Protocol) begin(ctx context.Context, client net.Conn, d door, start *startup) (*exchange, error) {
	c := d.Connection()
	settings, err := parameters(c, start.Parameters)
	if err != nil {
		return nil, err
	}
	base, err := database(c, start.Parameters)
	if err != nil {
		return nil, err
	}
	u, err := p.connect(ctx, d, login{connection: c, database: base, settings: settings})
	if err != nil {
		return nil, err
	}
	who, err := p.checkRole(ctx, u, c.Name)
	if err != nil {
		u.close()
		return nil, err
	}
	s := &exchange{p: p, door: d, connection: c, client: client, server: u.conn, role: who, database: base, status: 'I', settings: make(map[string]string)}
	s.ctx, s.end = context.WithCancelCause(ctx)
	s.outlet.conn = client
	s.up = splice{in: newReader(client, &p.buffers, p.large), write: s.send}
	s.down = splice{in: u.in, write: s.carry}
	for _, v := range u.parameters {
		s.settings[v.name] = v.value
	}
	s.reader = p.readers.of(c)
	s.reads()
	s.cancelPacket = cancelRequest(u.process, u.key)
	s.poison = poison()
	if s.masks, err = p.disguises.of(c); err != nil {
		u.close()
		return nil, err
	}
	s.side = p.newSide(d, c, base, who.searchPath)
	if s.masks != nil {
		s.masked = s.masks.Begin(s.side.query)
		s.looks.Add(1)
	}
	if c.Results {
		s.looks.Add(1)
	}
	s.waiting = s.wait
	s.estimate = s.guess
	s.pairs = s.context()
	return s, nil
}

// send writes to the server behind.
func (s *exchange) send(b []byte, _ bool) error {
	s.in.Add(int64(len(b)))
	_, err := s.server.Write(b)
	return err
}

// carry writes to the client.
func (s *exchange) carry(b []byte, within bool) error {
	s.out.Add(int64(len(b)))
	return s.outlet.carry(b, within)
}

// poison is an Execute of a portal that nobody can have made.
func poison() []byte {
	name := "isle: refused " + string(isle.NewID())
	b := binary.BigEndian.AppendUint32([]byte{'E'}, uint32(4+len(name)+1+4))
	return append(append(b, name...), 0, 0, 0, 0, 0)
}

// context is what a statement's meaning depends on, beside its text: an approval
// is bound to it.
func (s *exchange) context() []approval.Pair {
	role := s.role.name
	if s.acting != "" && s.acting != "none" {
		role = s.acting
	}
	pairs := []approval.Pair{{Key: "database", Value: s.database}, {Key: "role", Value: role}, {Key: "search_path", Value: s.role.searchPath}}
	for _, name := range []string{"standard_conforming_strings", "client_encoding", "DateStyle", "TimeZone", "IntervalStyle"} {
		pairs = append(pairs, approval.Pair{Key: name, Value: s.settings[name]})
	}
	return pairs
}

// welcome lets the client in.
func (s *exchange) welcome(start *startup, key cancelKey) error {
	var b []byte
	if !start.told {
		b, _ = start.negotiated(nil)
	}
	b = append(b, 'R', 0, 0, 0, 8, 0, 0, 0, 0)
	for name, value := range s.settings {
		b = append(b, 'S')
		b = binary.BigEndian.AppendUint32(b, uint32(4+len(name)+1+len(value)+1))
		b = append(append(b, name...), 0)
		b = append(append(b, value...), 0)
	}
	b = key.frame(b)
	b = append(b, 'Z', 0, 0, 0, 5, 'I')
	_, err := s.client.Write(b)
	return err
}
