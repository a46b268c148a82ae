package initproto

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// quiet reports whether a parked connection is open and has, as it must,
// nothing to say. It does not wait.
func quiet(c *Conn) bool {
	if c.Reader.Buffered() > 0 {
		return false
	}
	s, ok := c.Conn.(syscall.Conn)
	if !ok {
		return true // not a socket, as in tests: writing will tell
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	var b [1]byte
	var n int
	var peek error
	err = raw.Read(func(fd uintptr) bool {
		n, _, peek = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return true
	})
	return err == nil && n <= 0 && peek == unix.EAGAIN
}
