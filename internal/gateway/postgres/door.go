package postgres

import (
	"context"
	"crypto/tls"
	"net"

	"isle/internal/gateway"
	"isle/internal/policy"
	"isle/internal/session"
)

// A door is what is used of a gateway.Door.
type door interface {
	Caller() gateway.Caller
	Connection() policy.Connection
	Started()
	Dial(ctx context.Context) (net.Conn, error)
	TLS(ctx context.Context) (*tls.Config, error)
	Password(ctx context.Context) (hidden, error)
	Ask(ctx context.Context, a gateway.Ask) (gateway.Pass, error)
	Refuse(a gateway.Ask, rule string, err error)
	Lifts(f *policy.Facts) bool
	Record(e session.Event) error
	Count(in, out int64)
	Describe(address, database, role string)
}

// hidden is what is used of a secret.Value.
type hidden interface {
	Reveal() []byte
	Destroy()
}

// A gate is a gateway.Door as a door.
type gate struct{ *gateway.Door }

// Password is the credential's.
func (g gate) Password(ctx context.Context) (hidden, error) { return g.Secret(ctx) }

// Record adds to the session's recording.
func (g gate) Record(e session.Event) error { return g.Session().Record(e) }

// Count adds to the session's bytes.
func (g gate) Count(in, out int64) { g.Session().Count(in, out) }

// Describe says what was found out of the other end.
func (g gate) Describe(address, database, role string) {
	g.Session().Describe(address, database, role)
}
