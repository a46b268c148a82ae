package postgres

import (
	"context"
	"crypto/md5" // what PostgreSQL's method md5 is made of
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"isle"
	"isle/internal/policy"
)

// maxLogin bounds one message in bytes while logging in: none is long.
const maxLogin = 64 << 10

// An upstream is a connection to the server behind, logged in.
type upstream struct {
	conn       net.Conn
	in         *reader
	process    uint32 // of its cancel key
	key        []byte
	parameters []parameter // as the server reported them
}

type parameter struct{ name, value string }

// A login is what a connection to the server behind begins with.
type login struct {
	connection policy.Connection
	database   string
	settings   map[string]string
}

// connect dials, opens TLS and logs in. Its error is an *isle.Error or a
// *refusal.
func (p *Protocol) connect(ctx context.Context, d door, l login) (*upstream, error) {
	ctx, cancel := context.WithTimeout(ctx, p.config.Handshake)
	defer cancel()
	conn, state, err := p.reach(ctx, d)
	if err != nil {
		return nil, err
	}
	u := &upstream{conn: conn, in: newReader(conn, &p.buffers, p.large)}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err = u.login(ctx, d, l, state)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		u.close()
		var told *refusal
		if errors.As(err, &told) {
			return nil, told
		}
		return nil, isle.Errorf(isle.Unavailable, "connection %s: could not log in at the server behind: %w", l.connection.Name, err)
	}
	return u, nil
}

func (u *upstream) close() {
	u.conn.Close()
	u.in.release()
}

// reach dials the server behind, with TLS unless the connection says without.
func (p *Protocol) reach(ctx context.Context, d door) (net.Conn, *tls.ConnectionState, error) {
	conn, err := d.Dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	config, err := d.TLS(ctx)
	if err != nil || config == nil {
		if err != nil {
			conn.Close()
		}
		return conn, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	secure, err := openTLS(ctx, conn, config)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, nil, isle.Errorf(isle.Unavailable, "connection %s: no TLS with the server behind: %w", d.Connection().Name, err).
			WithHint("check tls: in the connection (ca, name), or say tls: off where the way to it is trusted")
	}
	state := secure.ConnectionState()
	return secure, &state, nil
}

// openTLS asks for TLS as libpq does (PostgreSQL 18, 54.2.10). What the server
// sends ahead of it is not taken for what came through it.
func openTLS(ctx context.Context, conn net.Conn, config *tls.Config) (*tls.Conn, error) {
	request := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 8), codeTLS)
	if _, err := conn.Write(request); err != nil {
		return nil, err
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return nil, err
	}
	if answer[0] != 'S' {
		return nil, errors.New("the server does not offer it")
	}
	secure := tls.Client(conn, config)
	return secure, secure.HandshakeContext(ctx)
}

// login speaks until the server is ready for a query.
func (u *upstream) login(ctx context.Context, d door, l login, state *tls.ConnectionState) error {
	user := l.connection.Credential.User
	if user == "" {
		return &refusal{State: stateCannot, Message: "isle: connection " + l.connection.Name + " does not say whom to log in as", Hint: "give it a credential with a user"}
	}
	start := &pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": user}}
	if l.database != "" {
		start.Parameters["database"] = l.database
	}
	for k, v := range l.settings {
		start.Parameters[k] = v
	}
	packet, err := start.Encode(nil)
	if err != nil {
		return err
	}
	if _, err := u.conn.Write(packet); err != nil {
		return err
	}
	a := &authentication{door: d, credential: l.connection.Credential, state: state}
	for {
		kind, body, err := u.message()
		if err != nil {
			return err
		}
		switch kind {
		case 'R':
			answer, err := a.step(ctx, body)
			if err != nil {
				return err
			}
			if answer != nil {
				_, err = u.conn.Write(answer)
				clear(answer)
				if err != nil {
					return err
				}
			}
		case 'E':
			return loginRefused(l.connection.Name, body)
		case 'S', 'K', 'Z':
			if !a.done {
				return errors.New("the server goes on before it has let us in")
			}
			if kind == 'Z' {
				return nil
			}
			if err := u.learn(kind, body); err != nil {
				return err
			}
		case 'N':
		default:
			return fmt.Errorf("the server sends a message of type %q while logging in", kind)
		}
	}
}

// message reads a whole message while logging in.
func (u *upstream) message() (byte, []byte, error) { return nextMessage(u.in, maxLogin) }

// nextMessage reads one whole message of at most max bytes. It is valid until the
// next one is read.
func nextMessage(r *reader, max int) (byte, []byte, error) {
	for {
		kind, n, ok, err := r.header()
		if err != nil {
			return 0, nil, err
		}
		if ok {
			frame, err := r.whole(headerSize+n, max)
			if err != nil {
				return 0, nil, err
			}
			r.advance(len(frame))
			return kind, frame[headerSize:], nil
		}
		if err := r.fill(); err != nil {
			return 0, nil, unexpected(err)
		}
	}
}

func (u *upstream) learn(kind byte, body []byte) error {
	if kind == 'K' {
		if len(body) < 8 || len(body) > 4+maxCancelKey {
			return errors.New("the server's cancel key is malformed")
		}
		u.process, u.key = binary.BigEndian.Uint32(body), slices.Clone(body[4:])
		return nil
	}
	var s pgproto3.ParameterStatus
	if err := s.Decode(body); err != nil {
		return err
	}
	if len(u.parameters) >= 1000 {
		return errors.New("the server reports too many parameters")
	}
	u.parameters = append(u.parameters, parameter{s.Name, s.Value})
	return nil
}

// loginRefused is the server's own refusal of the login. What a pool acts on
// (too many connections, starting up, shutting down) keeps its state.
func loginRefused(connection string, body []byte) error {
	var e pgproto3.ErrorResponse
	if err := e.Decode(body); err != nil {
		return err
	}
	r := &refusal{State: stateCannot, Message: "isle: the server behind " + connection + " refused the gateway's login: " + e.Message + " (" + e.Code + ")",
		Hint: "check the connection's user and database with whoever runs it, and its secret with `isle secret set`"}
	if strings.HasPrefix(e.Code, "53") || strings.HasPrefix(e.Code, "57") {
		r.State, r.Hint = e.Code, ""
	}
	return r
}

// An authentication is the client's side of one login. It shows the password
// only where nobody on the way learns it.
type authentication struct {
	door       door
	credential policy.Credential
	state      *tls.ConnectionState
	scram      *scram
	shown      bool // an answer was given; there is one method in one login
	verified   bool // SCRAM: the server has shown that it knows the password
	done       bool
}

// Kinds of authentication request (PostgreSQL 18, 54.7, Authentication*).
const (
	authOK           = 0
	authCleartext    = 3
	authMD5          = 5
	authSASL         = 10
	authSASLContinue = 11
	authSASLFinal    = 12
)

// step answers one request; nil where there is nothing to answer.
func (a *authentication) step(ctx context.Context, body []byte) ([]byte, error) {
	if len(body) < 4 || a.done {
		return nil, errors.New("the server's authentication is malformed")
	}
	kind, body := binary.BigEndian.Uint32(body), body[4:]
	switch {
	case kind == authOK:
		if a.scram != nil && !a.verified {
			return nil, errors.New("the server lets us in without showing that it knows the password: it is not the one that it should be")
		}
		a.done = true
		return nil, nil
	case kind == authSASLContinue && a.scram != nil && a.scram.signature == nil:
		answer, err := a.scram.final(body)
		clear(a.scram.password)
		return password(answer), err
	case kind == authSASLFinal && a.scram != nil && !a.verified:
		a.verified = true
		return nil, a.scram.verify(body)
	case a.shown:
		return nil, errors.New("the server asks twice")
	case a.credential.Kind != "password":
		return nil, &refusal{State: stateCannot, Message: "isle: the server behind asks for a password, and the connection's credential has none",
			Hint: "give the connection a credential of kind password, or let the server accept its certificate"}
	case kind == authCleartext && a.state == nil:
		return nil, &refusal{State: stateCannot, Message: "isle: the server behind asks for the password in the clear over a connection without TLS: it is not sent",
			Hint: "use TLS, or scram-sha-256 in the server's pg_hba.conf"}
	}
	a.shown = true
	value, err := a.door.Password(ctx)
	if err != nil {
		return nil, err
	}
	defer value.Destroy()
	secret := value.Reveal()
	if slices.Contains(secret, 0) {
		return nil, errors.New("the connection's password has a zero byte")
	}
	switch kind {
	case authCleartext:
		return password(append(slices.Clone(secret), 0)), nil
	case authMD5:
		if len(body) != 4 {
			return nil, errors.New("the server's salt is malformed")
		}
		inner := md5hex(secret, []byte(a.credential.User))
		return password(append([]byte("md5"+md5hex([]byte(inner), body)), 0)), nil
	case authSASL:
		return a.begin(slices.Clone(secret), body)
	}
	return nil, fmt.Errorf("the server wants authentication of kind %d, which is not known here", kind)
}

// begin sends SASLInitialResponse.
func (a *authentication) begin(secret, mechanisms []byte) ([]byte, error) {
	var offered []string
	for len(mechanisms) > 0 && mechanisms[0] != 0 {
		m, rest, ok := cutString(mechanisms)
		if !ok || len(offered) == 20 {
			return nil, errors.New("the server's list of mechanisms is malformed")
		}
		offered, mechanisms = append(offered, m), rest
	}
	s, mechanism, err := newScram(secret, offered, a.state)
	if err != nil {
		return nil, err
	}
	a.scram = s
	first := s.first()
	b := append([]byte(mechanism), 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(first)))
	return password(append(b, first...)), nil
}

// password frames an answer ('p'); nil stays nil.
func password(b []byte) []byte {
	if b == nil {
		return nil
	}
	out := binary.BigEndian.AppendUint32([]byte{'p'}, uint32(4+len(b)))
	out = append(out, b...)
	clear(b)
	return out
}

func md5hex(a, b []byte) string {
	h := md5.New()
	h.Write(a)
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil))
}
