package postgres

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"time"

	"isle"
)

// registry finds the session that a CancelRequest means. The keys in it are the
// gateway's own: a client never learns the server's.
type registry struct {
	mu       sync.Mutex // guards what follows
	sessions map[uint32]*registered
}

type registered struct {
	secret  string
	session *exchange
}

// add gives a session a key: of 4 bytes, or of 32 from protocol 3.2 on.
func (r *registry) add(s *exchange, minor int) cancelKey {
	n := 4
	if minor >= 2 {
		n = 32
	}
	secret := make([]byte, n)
	rand.Read(secret)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sessions == nil {
		r.sessions = make(map[uint32]*registered)
	}
	for {
		var b [4]byte
		rand.Read(b[:])
		process := binary.BigEndian.Uint32(b[:]) & 0x7fffffff // drivers take it for a signed number
		if process == 0 || r.sessions[process] != nil {
			continue
		}
		r.sessions[process] = &registered{string(secret), s}
		return cancelKey{process, string(secret)}
	}
}

func (r *registry) remove(k cancelKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sessions, k.Process)
}

func (r *registry) find(k cancelKey) *exchange {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.sessions[k.Process]
	if e == nil || subtle.ConstantTimeCompare([]byte(e.secret), []byte(k.Secret)) != 1 {
		return nil
	}
	return e.session
}

// frame appends BackendKeyData.
func (k cancelKey) frame(dst []byte) []byte {
	dst = append(dst, 'K')
	dst = binary.BigEndian.AppendUint32(dst, uint32(8+len(k.Secret)))
	dst = binary.BigEndian.AppendUint32(dst, k.Process)
	return append(dst, k.Secret...)
}

// cancel does what a CancelRequest asks for: it withdraws what waits for an
// approval, or else asks the server to cancel. Nobody is told whether the key was
// right.
func (p *Protocol) cancel(ctx context.Context, k cancelKey, same func(door) bool) error {
	s := p.registry.find(k)
	if s == nil || !same(s.door) {
		return nil
	}
	s.mu.Lock()
	waiting, idle := s.hold.waiting, s.outstanding() == 0
	if waiting {
		s.hold.cancel(errCanceled)
	}
	s.mu.Unlock()
	if waiting || idle || len(s.cancelPacket) == 0 {
		return nil
	}
	ctx, stop := context.WithTimeout(ctx, p.config.Handshake)
	defer stop()
	return s.askCancel(ctx)
}

// askCancel asks the server behind to cancel what it does for this session.
func (s *exchange) askCancel(ctx context.Context) error {
	conn, _, err := s.p.reach(ctx, s.door)
	if err != nil {
		return err
	}
	defer conn.Close()
	end := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer end()
	if _, err := conn.Write(s.cancelPacket); err != nil {
		return isle.Errorf(isle.Unavailable, "connection %s: could not ask the server behind to cancel: %w", s.connection.Name, err)
	}
	drain(conn) // until it has taken note and closes
	return nil
}

// abandoning bounds how long the end of a session waits for the server behind to
// take note that nobody waits for it.
const abandoning = 3 * time.Second

// abandon has the server behind cancel what it still does when the session ends:
// it would only see that nobody waits for it once it is done.
func (s *exchange) abandon(why error) {
	s.mu.Lock()
	idle := s.outstanding() == 0
	s.mu.Unlock()
	if idle || len(s.cancelPacket) == 0 || errors.Is(why, errDone) || errors.As(why, new(serverGone)) {
		return
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(s.ctx), abandoning)
	defer stop()
	if err := s.askCancel(ctx); err != nil {
		s.p.config.Slog.Warn("what a session was doing when it ended may go on at the server behind", "connection", s.connection.Name, "err", err)
	}
}

// sameCaller reports whether two doors are of one caller, to one connection.
func sameCaller(a, b door) bool {
	x, y := a.Caller(), b.Caller()
	return a.Connection().Name == b.Connection().Name && x.Actor == y.Actor && x.Instance == y.Instance && x.Key == y.Key && host(x.Source) == host(y.Source)
}

// host is an address without its port, which differs from connection to
// connection.
func host(source string) string {
	if h, _, err := net.SplitHostPort(source); err == nil {
		return h
	}
	return source
}

func drain(conn net.Conn) {
	var b [64]byte
	for {
		if _, err := conn.Read(b[:]); err != nil {
			return
		}
	}
}

// cancelRequest is what the server behind is sent.
func cancelRequest(process uint32, key []byte) []byte {
	if len(key) == 0 {
		return nil
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(12+len(key)))
	b = binary.BigEndian.AppendUint32(b, codeCancel)
	b = binary.BigEndian.AppendUint32(b, process)
	return append(b, key...)
}
