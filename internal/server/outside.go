package server

import (
	"context"
	"net"
	"time"

	"isle"
	"isle/internal/api"
	"isle/internal/gateway"
	"isle/internal/gateway/outside"
	"isle/internal/gateway/postgres"
	"isle/internal/policy"
)

// outsiders bound the connections at the gateway's listener. Those that have
// shown a credential that counts are sessions, which the gateway bounds too.
var outsiders = bounds{waiting: maxWaiting, waitingEach: maxWaitingEach, proven: gateway.MaxSessions, provenEach: 1024}

// An entrance is where the server takes who is outside of environments to its
// connections. All methods work on nil, which is nowhere.
type entrance struct {
	gate     *gate
	cert     *certificate
	listener *outside.Listener // nil until it serves
}

// address is where it is; "" for nowhere.
func (e *entrance) address() string {
	if e == nil {
		return ""
	}
	return e.gate.Addr().String()
}

// check says where connections are opened from outside, and until when.
func (e *entrance) check() api.Check {
	c := api.Check{Name: "gateway", State: api.CheckOK, Message: "no listener: connections are opened by environments, and with `isle connect`"}
	if e == nil {
		return c
	}
	return e.cert.check(c.Name, "listening at "+e.address()+" for PostgreSQL and HTTPS, key "+e.cert.pin())
}

func (e *entrance) close() {
	if e != nil {
		e.gate.Close()
	}
}

// errEnding is what visitors are told whose sessions a stop or a reload ends.
var errEnding = isle.Errorf(isle.Unavailable, "the server is stopping, or becomes another program").WithHint("connect again")

// leaveAll ends what visitors have open.
func (e *entrance) leaveAll() {
	if e != nil && e.listener != nil {
		e.listener.Close(errEnding)
	}
}

// serveOutside takes visitors. What it fails with later is sent on failed.
func (s *Server) serveOutside(e *entrance, failed chan<- error) {
	r := s.rooms
	front := postgres.Front{Protocol: r.postgres}
	e.listener = outside.New(outside.Config{
		TLS: tlsConfig(e.cert), Credentials: r.credentials,
		Person: func(name string) (groups []string, member bool) {
			groups = api.GroupsOf(name)
			return groups, api.Member(name, groups, s.cfg.Group)
		},
		Connection: func(name string) (policy.Connection, bool) { return r.policy.State().Set.Connection(name) },
		Serve:      r.gateway.Serve,
		Postgres: func(ctx context.Context, client net.Conn, v outside.PostgresVisit) error {
			f := front
			f.TLS, f.Serve = v.TLS, v.Serve
			f.Authenticate = func(ctx context.Context, password []byte, _ string) (gateway.Caller, error) {
				return v.Authenticate(ctx, string(password))
			}
			return f.Accept(ctx, client)
		},
		Refuse: r.postgres.Refuse,
		Proven: func(c net.Conn) bool {
			g, ok := c.(*gated)
			return ok && g.prove()
		},
		Try: r.tries.Take, Refused: r.refusals.source, Now: r.policy.Now, Slog: s.log,
	})
	go func() { failed <- e.listener.Serve(e.gate) }() // ends when the gate is closed, which every way out of Run does
	s.log.Info("serving connections to who is outside of environments, and proves themselves by a credential", "address", e.address(), "pin", e.cert.pin())
}

// check says until when a certificate holds that is shown somewhere.
func (c *certificate) check(name, where string) api.Check {
	until := c.expires()
	out := api.Check{Name: name, State: api.CheckOK, Message: where + ", certificate until " + until.UTC().Format(time.DateOnly)}
	switch left := time.Until(until); {
	case left <= 0:
		out.State, out.Remedy = api.CheckMissing, "renew the certificate "+c.certFile+"; clients refuse it"
	case left < 14*24*time.Hour:
		out.State, out.Remedy = api.CheckWarning, "renew the certificate "+c.certFile
	}
	return out
}
