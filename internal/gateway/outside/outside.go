// Package outside lets people and machines to the gateway who are in no
// environment.
//
// A Listener accepts them at one address. A visit is one connection there: what
// its first byte says is PostgreSQL's protocol, which asks for TLS by itself, or
// TLS, in which ALPN (RFC 7301) says whether PostgreSQL or HTTP comes. A visitor
// proves who they are with a credential of theirs: an API key, a personal token or
// an access token, as PostgreSQL's password or in HTTP's Authorization. What they
// name, as PostgreSQL's database or as the first segment of a path, is the
// connection, and the gateway takes it from there. Nothing is served without TLS,
// and no workload's credential counts here.
package outside

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/audit"
	"isle/internal/gateway"
	"isle/internal/identity"
	"isle/internal/policy"
)

// Config is what a Listener needs. All of it is required but Slog.
type Config struct {
	// TLS has the certificate, and what of TLS is spoken. The protocols are added.
	TLS *tls.Config
	// Credentials prove visitors.
	Credentials Credentials
	// Person says which groups a person is in now, and whether they may speak to
	// the server at all.
	Person func(name string) (groups []string, member bool)
	// Connection finds what a visitor names, by the policy in force.
	Connection func(name string) (policy.Connection, bool)
	// Serve is gateway.Gateway's.
	Serve func(ctx context.Context, c gateway.Caller, connection string, client net.Conn) error
	// Postgres speaks with a client of PostgreSQL from its first byte on, or, where
	// client is a *tls.Conn, from the first within TLS.
	Postgres func(ctx context.Context, client net.Conn, v PostgresVisit) error
	// Refuse tells a client that Postgres let in why it is not served.
	Refuse func(client net.Conn, err error)
	// Proven says that a connection has shown a credential that counts; it is false
	// where there are too many of those.
	Proven func(net.Conn) bool
	// Try counts a credential of a source that did not count; it is false where
	// the source is to wait.
	Try func(source string) bool
	// Refused records what is no credential.
	Refused func(e audit.Entry, source string)
	// Now is the time that credentials end by.
	Now func() time.Time
	// Slog gets what the server's owner should know; nil discards it.
	Slog *slog.Logger
}

// Credentials prove visitors.
type Credentials interface {
	// Authenticate says whom a credential proves that came from a source, an
	// address without its port. It fails with Refused where it proves nobody,
	// which it has recorded then; nothing of the credential is in the error.
	Authenticate(ctx context.Context, credential, source string) (identity.Subject, error)
	// Check is nil as long as the subject's credential counts. It takes no lock
	// and does no I/O.
	Check(s identity.Subject) error
	// Over is closed at the next change of any credential.
	Over() <-chan struct{}
}

// A PostgresVisit is what a client of PostgreSQL is let in by.
type PostgresVisit struct {
	Source string      // an address without its port
	TLS    *tls.Config // for a client that asks for TLS
	// Authenticate says who shows a password. Its error says nothing of it.
	Authenticate func(ctx context.Context, password string) (gateway.Caller, error)
	// Serve serves the connection that the client names; it closes client.
	Serve func(ctx context.Context, c gateway.Caller, connection string, client net.Conn) error
}

const (
	// greeting bounds the handshake, from the first byte to the credential.
	greeting = 10 * time.Second
	// lastWords is how long visitors may take to hear that the listener closes.
	lastWords = 3 * time.Second
)

// The protocols, as ALPN names them.
const (
	alpnPostgres = "postgresql"
	alpnHTTP1    = "http/1.1"
	alpnHTTP2    = "h2"
)

// The first bytes of what may come.
const (
	firstTLS      = 0x16 // a handshake record (RFC 8446, section 5.1)
	firstPostgres = 0x00 // of the length of a start-up packet
)

// A Listener lets visitors in. Its methods may be called from any goroutine.
type Listener struct {
	config Config
	http   *http.Server
	queue  *queue // of visits that speak HTTP
	ctx    context.Context
	cancel context.CancelCauseFunc
	visits sync.WaitGroup

	mu     sync.Mutex // guards what follows
	open   map[*visit]struct{}
	closed bool
}

// New returns a Listener that listens nowhere yet. Close ends it.
func New(c Config) *Listener {
	if c.Slog == nil {
		c.Slog = slog.New(slog.DiscardHandler)
	}
	l := &Listener{config: c, open: map[*visit]struct{}{}, queue: newQueue()}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	l.http = l.httpServer()
	l.visits.Go(func() { l.http.Serve(l.queue) }) // ends with Close
	return l
}

// Serve accepts visitors until nl is closed, and returns why no more come.
func (l *Listener) Serve(nl net.Listener) error {
	for {
		conn, err := nl.Accept()
		if short(err) { // others close theirs
			select {
			case <-time.After(50 * time.Millisecond):
				continue
			case <-l.ctx.Done():
			}
		}
		if err != nil {
			return err
		}
		v := l.enter(conn)
		if v == nil {
			conn.Close()
			continue
		}
		go l.meet(v) // ends with the visit
	}
}

// work does something that ends with a visit; it is false where the listener is
// closed.
func (l *Listener) work(do func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.visits.Go(do)
	return true
}

// enter takes a visit in; nil where the listener is closed.
func (l *Listener) enter(conn net.Conn) *visit {
	v := newVisit(l, conn)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		v.end(nil)
		return nil
	}
	l.open[v] = struct{}{}
	l.visits.Add(1)
	return v
}

func (l *Listener) leave(v *visit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.open[v]; ok {
		delete(l.open, v)
		l.visits.Done()
	}
}

// meet finds out what a visitor speaks. What came over one connection must not
// end the server.
func (l *Listener) meet(v *visit) {
	defer func() {
		if r := recover(); r != nil {
			l.config.Slog.Error("gateway: a visitor broke its protocol", "source", v.source, "panic", r, "stack", string(debug.Stack()))
			v.Close()
		}
	}()
	v.SetDeadline(time.Now().Add(greeting))
	first, err := v.peek()
	switch {
	case err != nil:
		v.Close()
	case first == firstPostgres:
		l.meetPostgres(v, v)
	case first == firstTLS:
		l.meetTLS(v)
	default:
		if first >= 'A' && first <= 'Z' {
			v.Write([]byte("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nthis port speaks HTTPS\n"))
		}
		v.Close()
	}
}

// meetTLS does the handshake and hands the visit on to whom ALPN names.
func (l *Listener) meetTLS(v *visit) {
	secure := tls.Server(v, l.tls(alpnPostgres, alpnHTTP2, alpnHTTP1))
	if err := secure.HandshakeContext(v.ctx); err != nil {
		l.config.Slog.Debug("gateway: no handshake", "source", v.source, "err", err)
		v.Close()
		return
	}
	v.secure = secure
	if secure.ConnectionState().NegotiatedProtocol == alpnPostgres {
		l.meetPostgres(v, secure)
		return
	}
	v.SetDeadline(time.Time{}) // the HTTP server has its own
	if !l.queue.put(secure) {
		v.Close()
	}
}

// tls is the configuration for clients that speak one of the protocols.
func (l *Listener) tls(protocols ...string) *tls.Config {
	c := l.config.TLS.Clone()
	c.NextProtos = protocols
	return c
}

// meetPostgres lets a client of PostgreSQL in. The deadline of its greeting ends
// with it: from then on the connection's protocol has its own.
func (l *Listener) meetPostgres(v *visit, client net.Conn) {
	defer v.Close()
	err := l.config.Postgres(v.ctx, client, PostgresVisit{
		Source: v.source,
		TLS:    l.tls(alpnPostgres),
		Authenticate: func(ctx context.Context, password string) (gateway.Caller, error) {
			s, err := v.prove(ctx, password)
			if err != nil {
				return gateway.Caller{}, err
			}
			return v.caller(s), nil
		},
		Serve: func(ctx context.Context, c gateway.Caller, connection string, client net.Conn) error {
			v.SetDeadline(time.Time{})
			err := l.serve(ctx, c, connection, "postgres", client)
			if _, unknown := errors.AsType[errUnknown](err); unknown {
				v.SetDeadline(time.Now().Add(lastWords))
				l.config.Refuse(client, err)
			}
			return err
		},
	})
	if err != nil {
		l.config.Slog.Debug("gateway: a visit ended", "source", v.source, "err", err)
	}
}

// errUnknown is why a connection is not served that is none of its kind. The
// client was told nothing.
type errUnknown struct{ error }

// Unwrap returns the cause.
func (e errUnknown) Unwrap() error { return e.error }

// serve serves a connection of a kind, and closes client unless the error is an
// errUnknown. A visitor who is confined to no stage acts in the connection's.
func (l *Listener) serve(ctx context.Context, c gateway.Caller, name, kind string, client net.Conn) error {
	conn, ok := l.config.Connection(name)
	if ok && conn.Kind == kind {
		if c.Stage == "" {
			c.Stage = conn.Stage
		}
		return l.config.Serve(ctx, c, name, client)
	}
	if name = named(name); ok {
		name += " of kind " + kind // what it is instead is for those who may open it
	}
	nobody, end := net.Pipe() // the gateway says and records that there is none
	nobody.Close()
	err := l.config.Serve(ctx, c, name, end)
	if err == nil { // it has come meanwhile
		err = isle.Errorf(isle.NotFound, "there is no connection %s", name)
	}
	return errUnknown{err}
}

// named is what somebody gave as a name, as far as it may stand in an entry: a
// credential in its place may not.
func named(s string) string {
	return identity.Redacted(strings.ToValidUTF8(s[:min(len(s), 100)], ""))
}

// Close ends every visit. Sessions are told why; whoever does not listen loses
// the connection.
func (l *Listener) Close(cause error) {
	l.mu.Lock()
	l.closed = true
	visits := make([]*visit, 0, len(l.open))
	for v := range l.open {
		visits = append(visits, v)
	}
	l.mu.Unlock()
	l.cancel(cause)
	l.queue.Close()
	ctx, cancel := context.WithTimeout(context.Background(), lastWords)
	l.http.Shutdown(ctx) // whose requests end with their sessions
	cancel()
	late := time.AfterFunc(lastWords, func() {
		for _, v := range visits {
			v.Close()
		}
	})
	defer late.Stop()
	l.http.Close()
	l.visits.Wait()
}

// short reports whether something is short that may be there again in a moment.
func short(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
