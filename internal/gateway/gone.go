package gateway

import (
	"context"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isle"
)

// lookForClient is how often it is looked whether a client that nobody reads
// from is still there.
const lookForClient = 500 * time.Millisecond

var errGone = isle.Errorf(isle.Unavailable, "the client left")

// untilGone returns a context that ends when the client closes its side, though
// nobody reads from it: it peeks. stop ends the watch and waits for it. Of what
// is no socket nothing is seen.
func untilGone(ctx context.Context, client net.Conn) (gone context.Context, stop func()) {
	gone, cancel := context.WithCancelCause(ctx)
	sc, ok := client.(syscall.Conn)
	if !ok {
		return gone, func() { cancel(nil) }
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return gone, func() { cancel(nil) }
	}
	done := make(chan struct{})
	go func() { // ends with gone
		defer close(done)
		t := time.NewTicker(lookForClient)
		defer t.Stop()
		for {
			select {
			case <-gone.Done():
				return
			case <-t.C:
			}
			if closed(raw) {
				cancel(errGone)
				return
			}
		}
	}()
	return gone, func() { cancel(nil); <-done }
}

// closed reports whether the other side of a socket sends no more, and what it
// sent was read.
func closed(raw syscall.RawConn) (yes bool) {
	var b [1]byte
	err := raw.Control(func(fd uintptr) {
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		yes = n == 0 && err == nil || err != nil && err != unix.EAGAIN && err != unix.EINTR
	})
	return yes || err != nil
}
