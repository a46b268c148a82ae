// Package tcp passes a connection of kind tcp on as it is.
//
// Nothing of it is read: who may open one may do through it whatever the other
// side lets them. Bytes are counted, and a connection over which none went for
// IdleTimeout ends.
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

// IdleTimeout ends a connection over which no byte went either way.
const IdleTimeout = time.Hour

// Protocol implements gateway.Protocol.
type Protocol struct {
	// Idle is the IdleTimeout; 0 is the constant.
	Idle time.Duration
}

var (
	_ gateway.Protocol = Protocol{}
	_ gateway.Refuser  = Protocol{}
)

// Refuse implements gateway.Refuser: there are no words, so the client sees a
// reset.
func (Protocol) Refuse(client net.Conn, _ error) { reset(client) }

// Serve implements gateway.Protocol.
func (p Protocol) Serve(ctx context.Context, client net.Conn, d *gateway.Door) error {
	real, err := dial(ctx, d)
	if err != nil {
		reset(client)
		return err
	}
	defer real.Close()
	d.Started()
	var passed atomic.Int64
	// Whoever is cut off sees an error, not an end of file.
	stop := context.AfterFunc(ctx, func() { reset(client); reset(real) })
	defer stop()
	idle := p.Idle
	if idle <= 0 {
		idle = IdleTimeout
	}
	var quiet atomic.Bool
	defer watchIdle(&passed, idle, func() { quiet.Store(true); reset(client); reset(real) })()

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
		switch {
		case err == nil:
			continue
		case errors.Is(err, io.EOF):
			if half, ok := dst.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
				return
			}
			dst.Close()
		default:
			reset(dst)
			reset(src)
		}
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

// reset closes a connection so that the other side sees an error.
func reset(c net.Conn) {
	tcp := c
	if t, ok := c.(*tls.Conn); ok {
		tcp = t.NetConn()
	}
	if l, ok := tcp.(interface{ SetLinger(seconds int) error }); ok {
		l.SetLinger(0)
	}
	c.Close()
}

// watchIdle calls end once passed has not grown for a time. Call what it returns
// to end the watch.
func watchIdle(passed *atomic.Int64, idle time.Duration, end func()) (stop func()) {
	var mu sync.Mutex // guards what follows
	var timer *time.Timer
	last, stopped := int64(-1), false
	look := func() {
		mu.Lock()
		defer mu.Unlock()
		now := passed.Load()
		switch {
		case stopped:
		case now == last:
			end()
		default:
			last = now
			timer.Reset(idle)
		}
	}
	mu.Lock()
	timer = time.AfterFunc(idle, look)
	mu.Unlock()
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
	}
}
