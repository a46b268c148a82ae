// Package tcp passes a connection of kind tcp on as it is.
//
// Nothing of it is read: who may open one may do through it whatever the other
// side lets them. Bytes are counted, and a connection over which none went for
// gateway.IdleTimeout ends.
package tcp

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/gateway"
)

// Protocol implements gateway.Protocol.
type Protocol struct {
	// Idle is the time-out; 0: gateway.IdleTimeout.
	Idle time.Duration
}

var (
	_ gateway.Protocol = Protocol{}
	_ gateway.Refuser  = Protocol{}
)

// Refuse implements gateway.Refuser: there are no words, so the client sees a
// reset.
func (Protocol) Refuse(client net.Conn, _ error) { gateway.Reset(client) }

// Serve implements gateway.Protocol.
func (p Protocol) Serve(ctx context.Context, client net.Conn, d *gateway.Door) error {
	real, err := dial(ctx, d)
	if err != nil {
		gateway.Reset(client)
		return err
	}
	defer real.Close()
	d.Started()
	var passed atomic.Int64
	// Whoever is cut off sees an error, not an end of file.
	stop := context.AfterFunc(ctx, func() { gateway.Reset(client); gateway.Reset(real) })
	defer stop()
	idle := p.Idle
	if idle <= 0 {
		idle = gateway.IdleTimeout
	}
	var quiet atomic.Bool
	defer gateway.WatchIdle(idle, quietOf(&passed), func() { quiet.Store(true); gateway.Reset(client); gateway.Reset(real) })()

	var both sync.WaitGroup
	both.Go(func() { pipe(real, client, func(n int64) { passed.Add(n); d.Session().Count(n, 0) }) })
	pipe(client, real, func(n int64) { passed.Add(n); d.Session().Count(0, n) })
	both.Wait()
	if quiet.Load() {
		return isle.Errorf(isle.Unavailable, "no byte went either way for %s", idle)
	}
	return nil
}

// dial connects to the real thing, with TLS unless the connection says off.
func dial(ctx context.Context, d *gateway.Door) (net.Conn, error) {
	real, err := d.Dial(ctx)
	if err != nil {
		return nil, err
	}
	config, err := d.TLS(ctx)
	if err != nil || config == nil {
		if err != nil {
			real.Close()
			return nil, err
		}
		return real, nil
	}
	secure := tls.Client(real, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		real.Close()
		return nil, isle.Errorf(isle.Unavailable, "connection %s: no TLS with %s: %w", d.Connection().Name, d.Connection().Address, err).
			WithHint("where it speaks none, the connection says `tls: off`; where its certificate is signed by another authority, tls.ca has that")
	}
	return secure, nil
}

type buffer [32 << 10]byte

// pipe copies until the end of src, which it passes on; an error it passes on
// by ending both. count is told of each piece. While nothing comes it holds no
// memory.
func pipe(dst, src net.Conn, count func(n int64)) {
	r := newReader(src)
	for {
		buf, n, err := r.read()
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				err = werr
			} else {
				count(int64(n))
			}
		}
		if buf != nil {
			buffers.Put(buf)
		}
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		gateway.PassEnd(dst, src, err)
		return
	}
}

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// A reader takes a buffer only once there is something to read.
type reader struct {
	conn net.Conn
	raw  syscall.RawConn // nil: of what is no socket by itself, such as TLS
}

func newReader(c net.Conn) reader {
	r := reader{conn: c}
	if sc, ok := c.(syscall.Conn); ok {
		r.raw, _ = sc.SyscallConn() // without it, it is read with a buffer in hand
	}
	return r
}

// read returns what came, io.EOF at the end. A buffer goes back to the pool.
func (r reader) read() (buf *buffer, n int, err error) {
	if r.raw == nil {
		buf = buffers.Get().(*buffer)
		n, err = r.conn.Read(buf[:])
		return buf, n, err
	}
	var failed error
	err = r.raw.Read(func(fd uintptr) (done bool) {
		buf = buffers.Get().(*buffer)
		for {
			if n, failed = unix.Read(int(fd), buf[:]); failed != unix.EINTR {
				break
			}
		}
		if failed == unix.EAGAIN {
			buffers.Put(buf)
			return false // until there is something
		}
		return true
	})
	switch {
	case err != nil:
		return nil, 0, err // it was closed
	case failed != nil:
		return buf, 0, failed
	case n == 0:
		return buf, 0, io.EOF
	}
	return buf, n, nil
}

// quietOf is for how long passed has not grown, as far as looking at it now and
// then shows: what grew since the last look grew just now.
func quietOf(passed *atomic.Int64) func() time.Duration {
	seen, at := passed.Load(), time.Now()
	return func() time.Duration {
		if now := passed.Load(); now != seen {
			seen, at = now, time.Now()
		}
		return time.Since(at)
	}
}
