package httpdoor

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/gateway"
	"isle/internal/inspection"
)

// An Inspector serves egress that is inspected: the protocol "egress" of a
// gateway. What the client says in TLS it reads with a certificate of the
// instance's authority, and says itself to the real thing, whose certificate it
// verifies. Nothing of the client's is left out: its credential is its own.
type Inspector struct {
	protocol *Protocol
	key      []byte

	mu          sync.Mutex // guards what follows
	authorities map[isle.ID]*inspection.Authority
}

var _ gateway.Protocol = (*Inspector)(nil)

// NewInspector returns an Inspector that derives the keys of authorities from
// key, of the server's.
func NewInspector(p *Protocol, key []byte) *Inspector {
	return &Inspector{protocol: p, key: key, authorities: make(map[isle.ID]*inspection.Authority)}
}

// maxAuthorities bounds how many authorities are remembered. Another is derived
// when it is needed.
const maxAuthorities = 1024

// authority is that of an instance. What it signs need not say to which hosts it
// is bound: the certificate that the instance trusts does.
func (i *Inspector) authority(instance isle.ID) (*inspection.Authority, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if a := i.authorities[instance]; a != nil {
		return a, nil
	}
	a, err := newAuthority(i.key, instance, nil)
	if err != nil {
		return nil, err
	}
	if len(i.authorities) >= maxAuthorities {
		clear(i.authorities)
	}
	i.authorities[instance] = a
	return a, nil
}

// Trust is the certificate (PEM) that the services of an instance trust, so that
// its egress to the hosts can be inspected.
func (i *Inspector) Trust(instance isle.ID, hosts []string) ([]byte, error) {
	a, err := newAuthority(i.key, instance, hosts)
	if err != nil {
		return nil, err
	}
	return a.PEM(), nil
}

// Serve implements gateway.Protocol.
func (i *Inspector) Serve(ctx context.Context, client net.Conn, d *gateway.Door) error {
	to, ok := d.Egress()
	if !ok {
		return isle.Errorf(isle.Internal, "%s is no egress", d.Connection().Name)
	}
	r := bufio.NewReaderSize(client, 4<<10)
	first, err := r.Peek(1)
	if err != nil {
		return quiet(err)
	}
	conn := net.Conn(&buffered{client, r})
	plain := first[0] != recordHandshake
	if !plain {
		if conn, err = i.handshake(ctx, conn, d.Caller().Instance, to.Host); err != nil {
			return err
		}
	} else if to.Port == 443 {
		return isle.Errorf(isle.Refused, "egress to %s is inspected, and what came is no TLS", d.Connection().Name)
	}
	d.Started()
	s, err := i.protocol.open(ctx, opened{d}, plain)
	if err != nil {
		i.protocol.Refuse(conn, err)
		return err
	}
	defer s.close()
	s.inside, s.own = "", true
	return serveConn(ctx, conn, s)
}

// recordHandshake is the first byte of TLS (RFC 8446, section 5.1).
const recordHandshake = 22

// handshake takes the server's part in TLS with a client that wants the host.
func (i *Inspector) handshake(ctx context.Context, conn net.Conn, instance isle.ID, host string) (net.Conn, error) {
	a, err := i.authority(instance)
	if err != nil {
		return nil, err
	}
	var wrong error
	c := tls.Server(conn, &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		// A session ticket would outlive the certificate, and the key that seals it
		// the session.
		SessionTicketsDisabled: true,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
			if name != host {
				if wrong = isle.Errorf(isle.Refused, "TLS to %s is refused: the client does not say that it wants %s (no SNI)", host, host); name != "" {
					wrong = isle.Errorf(isle.Refused, "TLS to %s is refused: the client wants %.253q (SNI)", host, name)
				}
				return nil, wrong
			}
			return a.For(host)
		},
	})
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		switch {
		case wrong != nil:
			return nil, wrong
		case strings.Contains(err.Error(), "unknown certificate") || strings.Contains(err.Error(), "bad certificate") || strings.Contains(err.Error(), "unknown authority"):
			return nil, isle.Errorf(isle.Unavailable, "TLS to %s: the client does not trust the certificate that inspected egress is opened with: %w", host, err).
				WithHint("it does not use the authorities of its image; docs/gateway-http.md says which clients do")
		}
		return nil, isle.Errorf(isle.Unavailable, "TLS to %s: %w", host, err)
	}
	// net/http treats a connection of TLS that it is handed differently; this one
	// is through its handshake, and serveConn looks at what comes.
	return decrypted{c}, nil
}

// decrypted is what is said inside TLS.
type decrypted struct{ c *tls.Conn }

func (d decrypted) Read(p []byte) (int, error)         { return d.c.Read(p) }
func (d decrypted) Write(p []byte) (int, error)        { return d.c.Write(p) }
func (d decrypted) Close() error                       { return d.c.Close() }
func (d decrypted) CloseWrite() error                  { return d.c.CloseWrite() }
func (d decrypted) LocalAddr() net.Addr                { return d.c.LocalAddr() }
func (d decrypted) RemoteAddr() net.Addr               { return d.c.RemoteAddr() }
func (d decrypted) SetDeadline(t time.Time) error      { return d.c.SetDeadline(t) }
func (d decrypted) SetReadDeadline(t time.Time) error  { return d.c.SetReadDeadline(t) }
func (d decrypted) SetWriteDeadline(t time.Time) error { return d.c.SetWriteDeadline(t) }
