package gateway

import (
	"context"
	"errors"
	"net"
	"runtime/debug"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/policy"
	"isle/internal/session"
)

// Serve lets a caller use a connection through client, which it closes, and
// returns when that is over: with why it could not be served, nil where it was.
// What is refused before the protocol speaks, the protocol tells the client in
// its own words if it is a Refuser. ctx's end ends the session; its cause is what
// the client is told.
func (g *Gateway) Serve(ctx context.Context, c Caller, connection string, client net.Conn) error {
	return g.serve(ctx, c, connection, nil, client)
}

func (g *Gateway) serve(ctx context.Context, c Caller, connection string, egress *Egress, client net.Conn) error {
	defer client.Close()
	d, err := g.admit(ctx, c, connection)
	if err != nil {
		g.refuseClient(connection, client, err)
		return err
	}
	d.egress = egress
	defer g.leave(d)
	defer d.end(nil)
	if err = g.paced(d.ctx, d.caller.key()); err == nil {
		err = d.open(client)
	}
	if err != nil {
		g.refuseClient(connection, client, err)
		return err
	}
	over := make(chan struct{})
	go func() { // ends with the session
		defer close(over)
		d.watch()
	}()
	// A client that does not take its leave in time loses the connection.
	stop := context.AfterFunc(d.ctx, func() { time.AfterFunc(parting, func() { client.Close() }) })
	defer stop()
	err = d.serve(client)
	// Why the door ended counts for more than what its protocol made of that. That
	// the client is closed says nothing.
	if cause := context.Cause(d.ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	d.end(nil)
	<-over
	d.session.End(endText(err))
	return err
}

// endText is why a session ended, as its entry says it.
func endText(err error) string {
	switch {
	case err == nil:
		return "the client or the other side left"
	case errors.Is(err, context.Canceled):
		return "the client's connection was closed"
	}
	return err.Error()
}

// admit counts a caller in and finds the connection. It decides nothing.
func (g *Gateway) admit(ctx context.Context, c Caller, name string) (*Door, error) {
	d := &Door{gateway: g, caller: c, name: name}
	d.ctx, d.cancel = context.WithCancelCause(ctx)
	key := c.key()
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		d.cancel(nil)
		return nil, errStopping
	case g.callers[key] >= MaxSessionsEach:
		d.cancel(nil)
		return nil, isle.Errorf(isle.Exhausted, "%s has %d sessions open, as many as one may", c.Actor, MaxSessionsEach).WithHint("close some")
	case g.total >= MaxSessions:
		d.cancel(nil)
		return nil, isle.Errorf(isle.Exhausted, "%d sessions are open, as many as there may be", MaxSessions).WithHint("try again later")
	}
	g.callers[key]++
	g.total++
	g.doors[d] = struct{}{}
	g.serving.Add(1)
	return d, nil
}

// paced returns once a caller may open one more session.
func (g *Gateway) paced(ctx context.Context, key string) error {
	for !g.fresh.Take(key, time.Now()) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(sessionEvery):
		}
	}
	return nil
}

// leave counts a door out.
func (g *Gateway) leave(d *Door) {
	key := d.caller.key()
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.doors, d)
	g.total--
	if g.callers[key]--; g.callers[key] == 0 {
		delete(g.callers, key)
	}
	g.serving.Done()
}

// refuseClient tells a client why it is not served.
func (g *Gateway) refuseClient(connection string, client net.Conn, err error) {
	if g.config.Policy == nil {
		return
	}
	defer g.recovered(connection, nil)
	c, _ := g.config.Policy.State().Set.Connection(connection)
	if r, ok := g.config.Protocols[c.Kind].(Refuser); ok {
		client.SetDeadline(time.Now().Add(refusing))
		r.Refuse(client, Told(err))
	}
}

// recovered makes an error of a panic: what came over one connection must not
// end the server.
func (g *Gateway) recovered(connection string, err *error) {
	r := recover()
	if r == nil {
		return
	}
	g.config.Slog.Error("gateway: a connection broke its protocol", "connection", connection, "panic", r, "stack", string(debug.Stack()))
	if err != nil {
		*err = isle.Errorf(isle.Internal, "connection %s: what came could not be dealt with", connection).WithHint("the server's log says more")
	}
}

// open decides whether the door may be open, waits for a human where policy says
// so, and begins the session.
func (d *Door) open(client net.Conn) error {
	g := d.gateway
	state, now := g.config.Policy.State(), g.config.Policy.Now()
	name := d.name
	conn, ok := d.find(state.Set)
	if !ok {
		err := isle.Errorf(isle.NotFound, "there is no connection %s", name).WithHint("a connection is made with `isle apply`; docs/gateway.md says how")
		d.connection.Name = name
		d.refusal(d.opening(), err.Message, nil, nil)
		return err
	}
	d.setConnection(conn)
	d.protocol = g.config.Protocols[conn.Kind]
	if d.protocol == nil {
		return isle.Errorf(isle.Unavailable, "connection %s: this server does not speak %s", name, conn.Kind)
	}
	if err := d.caller.check(); err != nil {
		return err
	}
	q := d.caller.query(d.opening(), &d.connection, nil)
	q.Now = now
	a := state.Set.Decide(q)
	rule := a.Rule
	switch a.Decision {
	case isle.Allow:
	case isle.Hold:
		use, err := d.approved(client, a.Holds)
		if err != nil {
			return err
		}
		d.opened, rule = a.Holds, use
	default:
		err := refusalOf(state.Set, q, a)
		d.refusal(d.opening(), a.Rule, nil, nil)
		return err
	}
	d.standing.Store(&standing{state: state, until: state.Set.NextExpiry(now)})
	ctx := audit.WithDecisions(d.ctx)
	audit.Allowed(ctx, d.caller.Actor, isle.ActionSessionOpen, resourceOf(&conn), rule)
	live, err := g.config.Sessions.Begin(ctx, session.Info{
		Actor: d.caller.Actor, Owner: d.caller.Owner, Ref: d.caller.Ref, Instance: d.caller.Instance,
		Connection: conn.Name, Kind: conn.Kind, Stage: conn.Stage, Source: d.caller.Source, Address: addressOf(&conn),
		Database: conn.Database, Role: conn.Credential.User, Results: conn.Results,
	})
	if err != nil {
		return err
	}
	d.session = live
	d.starting = time.AfterFunc(g.config.Start, func() {
		d.end(isle.Errorf(isle.Unavailable, "connection %s: the start took longer than %s", name, g.config.Start))
	})
	return nil
}

// addressOf is where the real thing is, for people.
func addressOf(c *policy.Connection) string {
	if c.Address != "" {
		return c.Address
	}
	return "service " + c.Service + " of " + isle.Ref{Name: c.Environment, Stage: c.Stage}.String()
}

// serve is the protocol's, in which no panic leaves this connection.
func (d *Door) serve(client net.Conn) (err error) {
	defer d.starting.Stop()
	defer d.gateway.recovered(d.name, &err)
	return d.protocol.Serve(d.ctx, client, d)
}

// watch ends the door once it may be open no longer.
func (d *Door) watch() {
	g := d.gateway
	for {
		changed, over := g.policyOver(), d.caller.over()
		d.over.Store(&over)
		if err := d.caller.check(); err != nil {
			d.end(err)
			return
		}
		if _, err := d.current(); err != nil {
			return
		}
		select {
		case <-d.ctx.Done():
			return
		case <-changed:
		case <-over:
		case <-d.session.Done():
			d.end(d.session.Cause())
			return
		}
	}
}
