package postgres

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"time"

	"isle"
	"isle/internal/gateway"
)

// alpn is the protocol's name in TLS (PostgreSQL 18, 54.2.10).
const alpn = "postgresql"

// maxCredential bounds what a client shows as its password, in bytes.
const maxCredential = 16 << 10

// A Front lets PostgreSQL clients in that are outside of environments: over TLS
// alone, with an API key or a token as the password. The name of the database is
// the connection's; the user's name means nothing.
type Front struct {
	// TLS is the listener's. Both ways to begin TLS are known: SSLRequest, and TLS
	// from the first byte with the ALPN name postgresql. A client that is a *tls.Conn
	// already has begun it so.
	TLS *tls.Config
	// Authenticate says who shows a password from a source. Whatever its error,
	// the client is told the same, unless its code is isle.Unavailable or
	// isle.Exhausted.
	Authenticate func(ctx context.Context, password []byte, source string) (gateway.Caller, error)
	// Serve is gateway.Gateway.Serve.
	Serve func(ctx context.Context, c gateway.Caller, connection string, client net.Conn) error
	// Protocol is the one that serves connections of kind postgres.
	Protocol *Protocol
}

// Accept speaks with one client, which it closes, and returns when that is over.
// Nothing is owed to a client that is not let in: the error says why.
func (f *Front) Accept(ctx context.Context, client net.Conn) error {
	defer client.Close()
	stop := context.AfterFunc(ctx, func() { client.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	client.SetDeadline(time.Now().Add(f.Protocol.config.Handshake))
	conn, start, err := f.greet(ctx, client)
	if err != nil {
		return f.dismiss(conn, err)
	}
	source := host(client.RemoteAddr().String())
	if start.Cancel != nil {
		// Who asks is not known. The key, of a session from the same address, is
		// what it must know.
		return f.Protocol.cancel(ctx, *start.Cancel, func(d door) bool { return d.Caller().Source != "" && host(d.Caller().Source) == source })
	}
	name := start.Parameters["database"]
	if name == "" {
		name = start.Parameters["user"] // what PostgreSQL takes
	}
	if !isle.ValidName(name) {
		return f.dismiss(conn, &refusal{State: stateDatabase, Message: "isle: name the connection as the database", Hint: "psql 'host=… dbname=orders-db'"})
	}
	caller, err := f.authenticate(ctx, conn, start, source)
	if err != nil {
		return f.dismiss(conn, err)
	}
	stop()
	// The connection says which database it is.
	start.Parameters["database"] = ""
	return f.Serve(ctx, caller, name, &arrival{Conn: conn, start: start})
}

// greet opens TLS and reads the first packet.
func (f *Front) greet(ctx context.Context, client net.Conn) (net.Conn, *startup, error) {
	var first [1]byte
	if _, err := io.ReadFull(client, first[:]); err != nil {
		return client, nil, err
	}
	_, secure := client.(*tls.Conn)
	client = &begun{Conn: client, first: first[:]}
	open := func(conn net.Conn) (net.Conn, error) {
		config := f.TLS.Clone()
		config.NextProtos = []string{alpn}
		c := tls.Server(conn, config)
		if err := c.HandshakeContext(ctx); err != nil {
			return conn, err
		}
		secure = true
		return c, nil
	}
	const handshake = 0x16 // the type of a TLS record
	if first[0] == handshake && !secure {
		conn, err := open(client)
		if err != nil {
			return client, nil, errQuiet{err}
		}
		if conn.(*tls.Conn).ConnectionState().NegotiatedProtocol != alpn {
			return conn, nil, errQuiet{errors.New("TLS from the first byte without the ALPN name postgresql")}
		}
		conn, start, err := readStartup(conn, declineTLS)
		return conn, start, err
	}
	conn, start, err := readStartup(client, func(conn net.Conn, asked bool) (net.Conn, error) {
		if !asked || secure {
			return declineTLS(conn, asked)
		}
		if _, err := conn.Write([]byte{'S'}); err != nil {
			return conn, err
		}
		c, err := open(conn)
		if err != nil {
			return conn, errQuiet{err}
		}
		return c, nil
	})
	if err == nil && !secure && start.Cancel == nil {
		err = &refusal{State: stateEntry, Message: "isle: the gateway speaks TLS only", Hint: "sslmode=verify-full"}
	}
	return conn, start, err
}

// errQuiet is an end of which the client can't be told.
type errQuiet struct{ error }

// Unwrap returns the cause.
func (e errQuiet) Unwrap() error { return e.error }

// authenticate asks for the password, and who that is.
func (f *Front) authenticate(ctx context.Context, conn net.Conn, start *startup, source string) (gateway.Caller, error) {
	b, _ := start.negotiated(nil)
	start.told = true
	if _, err := conn.Write(append(b, 'R', 0, 0, 0, 8, 0, 0, 0, authCleartext)); err != nil {
		return gateway.Caller{}, err
	}
	shown, err := readPassword(conn)
	if err != nil {
		return gateway.Caller{}, err
	}
	defer clear(shown)
	caller, err := f.Authenticate(ctx, shown, source)
	switch {
	case err == nil:
		return caller, nil
	case slices.Contains([]isle.Code{isle.Unavailable, isle.Exhausted, isle.Internal}, isle.CodeOf(err)):
		return caller, err
	}
	return caller, wrongPassword{err, &refusal{State: statePassword, Message: "password authentication failed for user \"" + clip(start.Parameters["user"]) + "\"",
		Hint: "the password is an API key or a token of isle's"}}
}

// wrongPassword is told as PostgreSQL tells it, whatever is wrong.
type wrongPassword struct {
	error
	told *refusal
}

// Unwrap returns what is told, and the cause.
func (e wrongPassword) Unwrap() []error { return []error{e.told, e.error} }

// readPassword reads a PasswordMessage.
func readPassword(conn net.Conn) ([]byte, error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return nil, err
	}
	n := int(uint32(head[1])<<24|uint32(head[2])<<16|uint32(head[3])<<8|uint32(head[4])) - 4
	if head[0] != 'p' || n < 1 || n > maxCredential {
		return nil, errStartup
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(conn, body); err != nil {
		return nil, unexpected(err)
	}
	if bytes.IndexByte(body, 0) != n-1 {
		return nil, errStartup
	}
	return body[:n-1], nil
}

// dismiss tells a client that it is not let in.
func (f *Front) dismiss(conn net.Conn, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, new(errQuiet)) {
		return err
	}
	told := err
	if errors.Is(err, errStartup) {
		told = &refusal{State: stateProtocol, Message: "isle: this is not PostgreSQL's protocol"}
	}
	conn.SetDeadline(time.Now().Add(time.Second))
	conn.Write(turnAway(told).frame(nil, "FATAL"))
	return err
}

// An arrival is a client that Front let in: its first packet is read.
type arrival struct {
	net.Conn
	start *startup
}

// begun is a connection of which the first byte was read.
type begun struct {
	net.Conn
	first []byte
}

// Read implements net.Conn.
func (b *begun) Read(p []byte) (int, error) {
	if len(b.first) > 0 && len(p) > 0 {
		n := copy(p, b.first)
		b.first = b.first[n:]
		return n, nil
	}
	return b.Conn.Read(p)
}
