package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/session"
)

// linkLocal is where clouds answer for the machine itself, its credentials
// among what they answer. A name never leads there.
var linkLocal = netip.MustParsePrefix("169.254.0.0/16")

// Dial connects to the real thing: to the connection's address, or to the
// service of an environment. It speaks no TLS yet. The error is isle.Refused
// where the address may not be dialed, isle.Unavailable where nothing answers.
func (d *Door) Dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.gateway.config.Timeout)
	defer cancel()
	if d.egress != nil {
		return d.gateway.Dial(ctx, d.caller.Instance, d.egress.Host, d.egress.Port, d.egress.Allowed)
	}
	if d.connection.Environment != "" {
		return d.dialService(ctx)
	}
	host, _, _ := net.SplitHostPort(d.connection.Address) // checked as the policy was read
	port := target(d.connection)
	g := d.gateway
	addresses, err := g.resolve(ctx, host)
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "connection %s: its address does not resolve: %w", d.name, behind{unwrapped(err)})
	}
	literal, _ := netip.ParseAddr(host)
	var open []netip.Addr
	var refusal error
	for _, a := range addresses {
		reason, err := g.closedTo(d, netip.AddrPortFrom(a.Unmap(), uint16(port)), a == literal)
		if err != nil {
			return nil, err
		}
		if reason == "" {
			open = append(open, a)
			continue
		}
		refusal = isle.Errorf(isle.Refused, "connection %s leads where none may: %w", d.name, behind{isle.Errorf(isle.Refused, "to %s, %s", netip.AddrPortFrom(a, uint16(port)), reason)}).
			WithHint("whoever keeps the policy can give it another address; a service of an environment is named by environment and service")
	}
	if len(open) == 0 {
		return nil, refusal
	}
	c, err := dialFirst(ctx, host, port, open)
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "connection %s: what is behind it does not answer: %w", d.name, behind{unwrapped(err)}).
			WithHint("see whether it runs, and whether the connection's address is where it listens")
	}
	return c, nil
}

// behind is a cause that tells where the real thing is. Operators read it, and
// clients do not.
type behind struct{ error }

func (b behind) Unwrap() error { return b.error }

// Told is an error as clients are told it: without where the real thing is, and
// without where this server keeps what it can't write.
func Told(err error) error {
	e, ok := errors.AsType[*isle.Error](err)
	if !ok {
		return err
	}
	if _, ok := errors.AsType[session.Unwritten](e.Err); ok {
		return isle.Errorf(isle.Unavailable, "%s", e.Message).WithHint("whoever runs the server sees why with `isle doctor`")
	}
	if _, ok := errors.AsType[behind](e.Err); !ok {
		return err
	}
	bare := *e
	bare.Err = nil
	return &bare
}

// unwrapped is the cause of an error of dialFirst, which speaks of egress.
func unwrapped(err error) error {
	if u, ok := err.(*isle.Error); ok && u.Err != nil {
		return u.Err
	}
	return err
}

// closedTo says why no connection leads to an address; "" if it may. That it is
// private is no reason: whoever keeps the policy named it. A name, though, is
// answered for by others.
func (g *Gateway) closedTo(d *Door, to netip.AddrPort, literal bool) (string, error) {
	a := to.Addr()
	switch {
	case a.IsUnspecified() || a.IsMulticast() || a.Is4() && a.As4()[0] >= 240:
		return "which is the address of no one machine", nil
	case !literal && (linkLocal.Contains(a) || a.IsLinkLocalUnicast() || a.Zone() != ""):
		return "a link-local address, which no name may lead to", nil
	}
	if reason := g.config.Closed(d.caller.Instance, to); reason != "" {
		return reason, nil
	}
	own, err := g.config.Own(a)
	if err != nil {
		return "", isle.Errorf(isle.Internal, "connection %s: could not tell whether %s is this machine: %w", d.name, a, err)
	}
	if own && g.config.Listening(to) {
		return "where this server itself listens", nil
	}
	return "", nil
}

// dialService connects to a service of another environment of the connection's
// stage, over the line of its isle-init.
func (d *Door) dialService(ctx context.Context) (net.Conn, error) {
	c := &d.connection
	if d.gateway.config.Forward == nil {
		return nil, isle.Errorf(isle.Unavailable, "connection %s: this server has no environments", d.name)
	}
	ref := isle.Ref{Name: c.Environment, Stage: c.Stage}
	line, err := d.gateway.config.Forward(ctx, d.caller, d.name, ref, c.Service, target(*c))
	if err != nil {
		// Its hint is for people, and tells which other environments there are.
		if e, ok := errors.AsType[*isle.Error](err); ok {
			bare := *e
			bare.Hint = ""
			err = &bare
		}
		return nil, isle.Errorf(isle.CodeOf(err), "connection %s: service %s of environment %s can't be reached: %w", d.name, c.Service, ref, err)
	}
	conn, err := asConn(line)
	if err != nil {
		line.Close()
		return nil, isle.Errorf(isle.Internal, "connection %s: %w", d.name, err)
	}
	return conn, nil
}

// asConn gives a stream what protocols need of a connection: deadlines, and
// ends that close one by one. It is the near end of a pair of sockets, whose far
// end is copied to and from the stream until either closes.
func asConn(line io.ReadWriteCloser) (net.Conn, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	var ends [2]net.Conn
	for i, fd := range pair {
		f := os.NewFile(uintptr(fd), "line")
		ends[i], err = net.FileConn(f) // a duplicate
		f.Close()
		if err != nil {
			if ends[0] != nil {
				ends[0].Close()
			}
			if i == 0 {
				unix.Close(pair[1])
			}
			return nil, err
		}
	}
	c, far := &lineConn{UnixConn: ends[0].(*net.UnixConn), closed: make(chan struct{})}, ends[1].(*net.UnixConn)
	ended := make(chan struct{})
	go func() { // ends when the near end is closed, or the stream is over
		io.Copy(line, far)
		if half, ok := line.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
			select {
			case <-c.closed:
			case <-ended:
			}
		}
		line.Close()
	}()
	go func() { // ends when the stream does, or is closed
		defer close(ended)
		io.Copy(far, line)
		far.Close() // what is still sent has nobody who answers it
	}()
	return c, nil
}

// A lineConn is the near end.
type lineConn struct {
	*net.UnixConn
	once   sync.Once
	closed chan struct{}
}

// Close closes the connection; what was written is still sent.
func (c *lineConn) Close() error {
	err := c.UnixConn.Close()
	c.once.Do(func() { close(c.closed) })
	return err
}
