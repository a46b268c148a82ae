package outside

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"isle"
)

// Pair returns both ends of a connection within this process: one end for what
// carries a client's bytes, the other for the gateway. The kernel keeps some of
// what is written, and each direction can be closed by itself.
func Pair() (near, far *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, isle.Errorf(isle.Exhausted, "cannot open a session: %w", err).WithHint("try again later")
	}
	near, nerr := connOf(fds[0])
	far, ferr := connOf(fds[1])
	if err := errors.Join(nerr, ferr); err != nil {
		for _, c := range []*net.UnixConn{near, far} {
			if c != nil {
				c.Close()
			}
		}
		return nil, nil, isle.Errorf(isle.Internal, "cannot open a session: %w", err)
	}
	return near, far, nil
}

// connOf makes a connection of a descriptor, which it takes over.
func connOf(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "pair")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}
