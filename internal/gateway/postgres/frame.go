package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
)

// Sizes in bytes.
const (
	// bufferSize is what one read takes at most; a frame that fits in it is never
	// copied between reading and writing.
	bufferSize = 32 << 10
	// glance is what an idle connection holds: enough for a short frame.
	glance = 64
	// maxFrame is the largest frame there is: the length is a signed 32-bit number.
	maxFrame   = 1<<31 - 1
	headerSize = 5
)

// errFrame is a length that no frame can have.
var errFrame = errors.New("postgres: a message has an impossible length")

// buffers are what connections that are being read from hold; an idle one holds
// none.
type buffers struct{ pool sync.Pool }

func (b *buffers) get() []byte {
	if p, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return p[:]
	}
	return new([bufferSize]byte)[:]
}

func (b *buffers) put(p []byte) {
	if cap(p) == bufferSize {
		b.pool.Put((*[bufferSize]byte)(p[:bufferSize]))
	}
}

// A budget bounds the memory that large frames take, of all connections.
type budget interface {
	TryAcquire(n int64) bool
	Release(n int64)
}

// A reader cuts a connection's bytes into frames (PostgreSQL's "messages": a
// type byte, a length that counts itself, a body), without copying: what it
// returns is valid until the next call that reads. It is used by one goroutine.
type reader struct {
	conn    net.Conn
	raw     syscall.RawConn // nil where the connection is not a socket of its own
	buffers *buffers
	budget  budget

	buf   []byte // nil while idle
	r, w  int    // buf[r:w] is read and not yet used
	taken int64  // of the budget, for buf
	small [glance]byte
	pull  func(fd uintptr) bool // made once: a closure for each read would be garbage
	n     int
	err   error
}

func newReader(conn net.Conn, b *buffers, large budget) *reader {
	r := &reader{conn: conn, buffers: b, budget: large}
	// Only what is a socket itself: a type around one has a Read of its own.
	switch c := conn.(type) {
	case *net.TCPConn:
		r.raw, _ = c.SyscallConn()
	case *net.UnixConn:
		r.raw, _ = c.SyscallConn()
	}
	r.pull = r.tryRead
	return r
}

// buffered are the bytes that were read and not yet used.
func (r *reader) buffered() []byte { return r.buf[r.r:r.w] }

// advance says that n bytes of buffered were used.
func (r *reader) advance(n int) { r.r += n }

// fill reads once, after what is buffered. With an empty buffer it waits without
// holding one. A full buffer is an error of the caller.
func (r *reader) fill() error {
	if r.r == r.w {
		r.release()
		return r.first()
	}
	if r.r > 0 && len(r.buf)-r.w < len(r.buf)/2 {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	if r.w == len(r.buf) {
		return errors.New("postgres: the buffer is full")
	}
	n, err := r.conn.Read(r.buf[r.w:])
	r.w += n
	if n > 0 {
		return nil
	}
	return noProgress(err)
}

// first reads into an empty buffer.
func (r *reader) first() error {
	if r.raw != nil {
		r.n, r.err = 0, nil
		if err := r.raw.Read(r.pull); err != nil {
			return err
		}
		if r.n > 0 {
			r.w = r.n
			return nil
		}
		r.release()
		return noProgress(r.err)
	}
	n, err := r.conn.Read(r.small[:])
	if n > 0 {
		r.buf = r.buffers.get()
		r.w = copy(r.buf, r.small[:n])
		return nil
	}
	return noProgress(err)
}

// tryRead is what the runtime calls before it waits and when there is something.
func (r *reader) tryRead(fd uintptr) bool {
	if r.buf == nil {
		r.buf = r.buffers.get()
	}
	for {
		n, err := syscall.Read(int(fd), r.buf)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			r.buffers.put(r.buf)
			r.buf = nil
			return false
		case err != nil:
			r.err = err
		case n == 0:
			r.err = io.EOF
		default:
			r.n = n
		}
		return true
	}
}

func noProgress(err error) error {
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// release gives the buffer back. What is buffered is lost.
func (r *reader) release() {
	if r.taken > 0 {
		r.budget.Release(r.taken)
		r.taken = 0
	} else if r.buf != nil {
		r.buffers.put(r.buf)
	}
	r.buf, r.r, r.w = nil, 0, 0
}

// header is the type and the length (without the header) of the frame that
// buffered begins with; ok is false while it is not all there.
func (r *reader) header() (kind byte, body int, ok bool, err error) {
	b := r.buffered()
	if len(b) < headerSize {
		return 0, 0, false, nil
	}
	n := binary.BigEndian.Uint32(b[1:])
	if n < 4 || n > maxFrame {
		return 0, 0, false, errFrame
	}
	return b[0], int(n) - 4, true, nil
}

// errLarge is a frame that there is no room for.
var errLarge = errors.New("postgres: the message is too large")

// whole reads until all of a frame of the size (with its header) is buffered,
// and returns it. errLarge where it is larger than max, or more than all
// connections together may hold; then nothing of it was used up.
func (r *reader) whole(size, max int) ([]byte, error) {
	if size > max {
		return nil, errLarge
	}
	if size > len(r.buf)-r.r {
		if err := r.grow(size); err != nil {
			return nil, err
		}
	}
	for r.w-r.r < size {
		n, err := r.conn.Read(r.buf[r.w:])
		r.w += n
		if n == 0 {
			return nil, unexpected(noProgress(err))
		}
	}
	return r.buf[r.r : r.r+size], nil
}

// grow makes room for size bytes from where buffered begins.
func (r *reader) grow(size int) error {
	if size <= len(r.buf) {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
		return nil
	}
	take := int64(size)
	if !r.budget.TryAcquire(take) {
		return errLarge
	}
	b := make([]byte, size)
	n := copy(b, r.buffered())
	if n < r.w-r.r {
		panic(fmt.Sprintf("postgres: %d bytes are buffered of a frame of %d", r.w-r.r, size))
	}
	r.release()
	r.buf, r.w, r.taken = b, n, take
	return nil
}

// copyTo hands n bytes to w as they come, without holding them.
func (r *reader) copyTo(w io.Writer, n int) error {
	for n > 0 {
		if r.r == r.w {
			if err := r.fill(); err != nil {
				return unexpected(err)
			}
		}
		m := min(n, r.w-r.r)
		if _, err := w.Write(r.buf[r.r : r.r+m]); err != nil {
			return err
		}
		r.r += m
		n -= m
	}
	return nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// cutText takes text that ends in a zero byte.
func cutText(b []byte) (text, rest []byte, ok bool) {
	i := slices.Index(b, 0)
	if i < 0 {
		return nil, nil, false
	}
	return b[:i], b[i+1:], true
}
