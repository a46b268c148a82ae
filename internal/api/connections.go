package api

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"syscall"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/api/isle/v1/islev1connect"
	"isle/internal/gateway"
	"isle/internal/gateway/outside"
	"isle/internal/identity"
	"isle/internal/policy"
)

// Gateway serves connections; *gateway.Gateway implements it.
type Gateway interface {
	// Serve lets a caller use a connection through client, which it closes. It
	// asks policy and humans by itself, and records.
	Serve(ctx context.Context, c gateway.Caller, connection string, client net.Conn) error
}

// connections serves the ConnectionService.
type connections struct{ Config }

// connectionRules are those of the ConnectionService.
func (cfg Config) connectionRules() map[string]rule {
	open := func(name func(msg any) string) rule {
		return func(_ context.Context, msg any) []ask { return []ask{cfg.toOpen(name(msg))} }
	}
	return map[string]rule{
		// It shows those that may be opened.
		islev1connect.ConnectionServiceListConnectionsProcedure: func(context.Context, any) []ask {
			return []ask{{isle.ActionServerRead, isle.Resource{Kind: "server", Name: "server"}, ""}}
		},
		islev1connect.ConnectionServiceGetConnectionProcedure: open(func(msg any) string { return msg.(*islev1.GetConnectionRequest).GetConnection() }),
		islev1connect.ConnectionServiceConnectProcedure:       open(func(msg any) string { return msg.(*islev1.ConnectInput).GetStart().GetConnection() }),
	}
}

// toOpen is the opening of a connection. One that is not there is refused, or
// found missing later, under the name given.
func (cfg Config) toOpen(name string) ask {
	c, ok := cfg.Policy.State().Set.Connection(name)
	if !ok {
		c.Name, c.Stage = clipped(name), isle.DefaultStage
	}
	return ask{isle.ActionConnectionOpen, isle.Resource{Kind: "connection", Name: c.Name, Stage: c.Stage}, ""}
}

// waits reports whether an action is done although a human has to approve it
// first: the gateway asks them, and the caller waits there; or a promotion does.
func waits(a isle.Action) bool {
	return a == isle.ActionConnectionOpen || a == isle.ActionReleasePromote
}

// ListConnections implements the RPC.
func (s *connections) ListConnections(ctx context.Context, _ *connect.Request[islev1.ListConnectionsRequest]) (*connect.Response[islev1.ListConnectionsResponse], error) {
	res := &islev1.ListConnectionsResponse{}
	for _, c := range s.Policy.State().Set.Connections() {
		if m, ok := s.mayOpen(ctx, c); ok {
			res.Connections = append(res.Connections, m)
		}
	}
	return connect.NewResponse(res), nil
}

// GetConnection implements the RPC.
func (s *connections) GetConnection(ctx context.Context, req *connect.Request[islev1.GetConnectionRequest]) (*connect.Response[islev1.GetConnectionResponse], error) {
	c, err := s.find(req.Msg.GetConnection())
	if err != nil {
		return nil, err
	}
	m, _ := s.mayOpen(ctx, c) // the rule has asked
	return connect.NewResponse(&islev1.GetConnectionResponse{Connection: m}), nil
}

func (s *connections) find(name string) (policy.Connection, error) {
	c, ok := s.Policy.State().Set.Connection(name)
	if !ok {
		return c, isle.Errorf(isle.NotFound, "there is no connection %s", identity.Redacted(clipped(name))).WithHint("`isle connect` lists those that you may open; `isle apply` makes one")
	}
	return c, nil
}

// mayOpen is a connection as the caller sees it, if they may open it.
func (s *connections) mayOpen(ctx context.Context, c policy.Connection) (*islev1.Connection, bool) {
	who, _ := callerFrom(ctx)
	a := s.Policy.Decide(queriesOf(who, s.toOpen(c.Name))[0])
	address := c.Address
	if address == "" {
		address = "service " + c.Service + " of " + isle.Ref{Name: c.Environment, Stage: c.Stage}.String()
	}
	return &islev1.Connection{Name: c.Name, Kind: c.Kind, Stage: c.Stage, Address: address, Database: c.Database, Decision: string(a.Decision)}, a.Decision != isle.Deny
}

// Connect implements the RPC.
func (s *connections) Connect(ctx context.Context, stream *connect.BidiStream[islev1.ConnectInput, islev1.Chunk]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return isle.Errorf(isle.Invalid, "the first message of a connection is its start")
	}
	c, err := s.find(start.GetConnection())
	switch {
	case err != nil:
		return err
	case s.Gateway == nil:
		return isle.Errorf(isle.Unavailable, "this server has no gateway")
	case start.GetStage() != "" && start.GetStage() != c.Stage:
		return isle.Errorf(isle.Conflict, "connection %s is of stage %s, not of %s", c.Name, c.Stage, clipped(start.GetStage()))
	}
	near, far, err := outside.Pair()
	if err != nil {
		return err
	}
	defer near.Close()
	who, standing := s.callerOf(ctx, c)
	defer standing.Close()
	session, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- s.Gateway.Serve(session, who, c.Name, far) }() // ends with the session
	go func() {                                                          // ends when the call's request does, which is at the latest when the handler returns
		for {
			m, err := stream.Receive()
			if err != nil {
				if errors.Is(err, io.EOF) {
					near.CloseWrite()
				} else {
					near.Close()
				}
				return
			}
			if _, err := near.Write(m.GetData()); err != nil {
				return
			}
		}
	}()
	if err := sendAll(stream, near); err != nil {
		cancel()
		near.Close()
	}
	if why := <-served; why != nil {
		return why
	}
	return ctx.Err() // how a connection ended is not the call's failure
}

// sendAll sends what is read until there is no more, and then says so with a
// message that is empty.
func sendAll(stream *connect.BidiStream[islev1.ConnectInput, islev1.Chunk], from net.Conn) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if serr := stream.Send(&islev1.Chunk{Data: buf[:n]}); serr != nil {
				return serr
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET): // the other end was closed, with something unread
			return stream.Send(&islev1.Chunk{})
		case err != nil:
			return err
		}
	}
}

// callerOf is the caller as who opens a connection. The stage of their session is
// the connection's, unless they are confined to another. The standing is to be
// closed.
func (s *connections) callerOf(ctx context.Context, c policy.Connection) (gateway.Caller, *identity.Standing) {
	who, _ := callerFrom(ctx)
	out := gateway.Caller{Actor: who.actor, Owner: who.actor.String(), Groups: who.groups, Stage: who.stage(), Source: sourceFrom(ctx)}
	if out.Stage == "" {
		out.Stage = c.Stage
	}
	if who.subject != nil {
		out.Owner, out.Key = who.subject.Owner.String(), who.subject.Key
	}
	standing := identity.Stand(func() error { return s.guard.counts(who) }, s.guard.changes, func() error {
		switch now, _ := callerFrom(ctx); {
		case !now.member:
			return isle.Errorf(isle.Refused, "%s; you are %s", OnlyMembers, who.actor.Name).WithHint(becomeMember)
		case !slices.Equal(now.groups, who.groups):
			return isle.Errorf(isle.Refused, "your groups of the operating system have changed").WithHint("connect again")
		}
		return nil
	})
	out.Check, out.Over = standing.Check, standing.Over
	return out, standing
}
