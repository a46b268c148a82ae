package api

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"isle"
	"isle/internal/api/isle/v1/islev1connect"
	"isle/internal/audit"
)

// A Client speaks to a server. Its errors are *isle.Error, as the server made
// them. It is safe for concurrent use.
type Client struct {
	Environments islev1connect.EnvironmentServiceClient
	Forks        islev1connect.ForkServiceClient
	Images       islev1connect.BuildServiceClient
	Named        islev1connect.ImageServiceClient
	Server       islev1connect.ServerServiceClient
	Policy       islev1connect.PolicyServiceClient
	Secrets      islev1connect.SecretServiceClient
	Identities   islev1connect.IdentityServiceClient
	Sessions     islev1connect.SessionServiceClient
	Approvals    islev1connect.ApprovalServiceClient
	Connections  islev1connect.ConnectionServiceClient
	Snapshots    islev1connect.SnapshotServiceClient
	Releases     islev1connect.ReleaseServiceClient

	address   string // a path, or a URL
	base      string // URL that every request is below
	remote    bool
	transport *http.Transport
	http      *http.Client
}

// NewClient makes a client for the server at address: the path of a unix
// socket, with or without "unix:" in front. It dials when first used, and
// speaks HTTP/2 without TLS, which the bidirectional streams need.
func NewClient(address string) *Client {
	address = strings.TrimPrefix(strings.TrimPrefix(address, "unix://"), "unix:")
	c := &Client{address: address, base: "http://isle"} // the transport dials the socket
	c.transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", address)
		},
		Protocols:          new(http.Protocols),
		DisableCompression: true,
	}
	c.transport.Protocols.SetUnencryptedHTTP2(true)
	c.speak(c.transport)
	return c
}

// speak makes the services' clients over a transport.
func (c *Client) speak(t http.RoundTripper) {
	c.http = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // a server has no reason to send a credential elsewhere
	}}
	options := []connect.ClientOption{
		connect.WithInterceptors(decoder{c.address, c.remote}),
		connect.WithReadMaxBytes(maxMessage),
		connect.WithAcceptCompression("gzip", nil, nil), // the socket is local: compressing costs more than it saves
	}
	c.Environments = islev1connect.NewEnvironmentServiceClient(c.http, c.base, options...)
	c.Forks = islev1connect.NewForkServiceClient(c.http, c.base, options...)
	c.Images = islev1connect.NewBuildServiceClient(c.http, c.base, options...)
	c.Named = islev1connect.NewImageServiceClient(c.http, c.base, options...)
	c.Server = islev1connect.NewServerServiceClient(c.http, c.base, options...)
	c.Policy = islev1connect.NewPolicyServiceClient(c.http, c.base, options...)
	c.Secrets = islev1connect.NewSecretServiceClient(c.http, c.base, options...)
	c.Sessions = islev1connect.NewSessionServiceClient(c.http, c.base, options...)
	c.Identities = islev1connect.NewIdentityServiceClient(c.http, c.base, options...)
	c.Approvals = islev1connect.NewApprovalServiceClient(c.http, c.base, options...)
	c.Connections = islev1connect.NewConnectionServiceClient(c.http, c.base, options...)
	c.Snapshots = islev1connect.NewSnapshotServiceClient(c.http, c.base, options...)
	c.Releases = islev1connect.NewReleaseServiceClient(c.http, c.base, options...)
}

// maxFetch bounds what is fetched in bytes: 256 entries of the largest size.
const maxFetch = audit.TileWidth * (2 + audit.MaxSize)

// Fetch is an audit.Fetch from the server.
func (c *Client) Fetch(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/"+path, nil)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "%s: %w", path, err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		if told := (decoder{c.address, c.remote}).connection(err); told != nil {
			return nil, told
		}
		return nil, isle.Errorf(isle.Unavailable, "cannot read %s of the server's log: %w", path, err).WithHint("see `isle doctor`")
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxFetch+1))
	switch {
	case err != nil:
		return nil, isle.Errorf(isle.Unavailable, "cannot read %s of the server's log: %w", path, err)
	case len(b) > maxFetch:
		return nil, isle.Errorf(isle.Invalid, "%s of the server's log is larger than it may be", path)
	case res.StatusCode == http.StatusUnauthorized:
		return nil, unaccepted(c.address)
	case res.StatusCode == http.StatusForbidden:
		return nil, isle.Errorf(isle.Refused, "%s", strings.TrimSpace(string(b)))
	case res.StatusCode == http.StatusNotFound:
		return nil, isle.Errorf(isle.NotFound, "the server's log has no %s", path)
	case res.StatusCode != http.StatusOK:
		return nil, isle.Errorf(isle.Unavailable, "cannot read %s of the server's log: %s", path, strings.TrimSpace(string(b)))
	}
	return b, nil
}

// Address is where the server is.
func (c *Client) Address() string { return c.address }

// Close drops idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Answers reports whether a server listens at the address. The error says why
// not: NotFound (no server), Refused (not ours to speak to).
func (c *Client) Answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if c.remote {
		return c.answersRemote(ctx)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.address)
	if err != nil {
		return dialError(c.address, err)
	}
	return conn.Close()
}

// dialError says why nobody can be spoken to at address.
func dialError(address string, err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return isle.Errorf(isle.Refused, "%s", OnlyMembers).WithHint(becomeMember)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ECONNREFUSED):
		return isle.Errorf(isle.NotFound, "no server answers at %s", address).WithHint("start one with `isle server`, or see `isle doctor`")
	default:
		return isle.Errorf(isle.Unavailable, "cannot reach the server at %s: %w", address, err).WithHint("see `isle doctor`")
	}
}

// A decoder gives errors back the form they had in the server.
type decoder struct {
	address string
	remote  bool
}

// connection says why there is no connection; nil if err is another.
func (d decoder) connection(err error) error {
	if d.remote {
		return remoteError(d.address, err)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return dialError(d.address, op.Err)
	}
	return nil
}

func (d decoder) decode(err error) error {
	if err == nil || errors.Is(err, io.EOF) && connect.CodeOf(err) == connect.CodeUnknown {
		return err
	}
	if told := d.connection(err); told != nil {
		return told
	}
	var ce *connect.Error
	said := errors.As(err, &ce) && len(ce.Details()) > 0 // by the server, so it is there
	if ce != nil && !said && ce.Code() == connect.CodeUnauthenticated {
		return unaccepted(d.address)
	}
	err = fromWire(err)
	if e, ok := err.(*isle.Error); ok && !said && e.Code == isle.Unavailable && e.Hint == "" {
		return e.WithHint("the server went away; environments run on: try again, and see `isle doctor`")
	}
	return err
}

// WrapUnary implements connect.Interceptor.
func (d decoder) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		if err != nil {
			return nil, d.decode(err)
		}
		return res, nil
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (d decoder) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return &decodingConn{next(ctx, spec), d}
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (d decoder) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

type decodingConn struct {
	connect.StreamingClientConn
	decoder decoder
}

// Receive implements connect.StreamingClientConn.
func (c *decodingConn) Receive(msg any) error {
	return c.decoder.decode(c.StreamingClientConn.Receive(msg))
}

// Send implements connect.StreamingClientConn. It leaves io.EOF as it is: the
// reason is what Receive returns.
func (c *decodingConn) Send(msg any) error {
	return c.decoder.decode(c.StreamingClientConn.Send(msg))
}
