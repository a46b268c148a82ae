package gateway

import (
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// IdleTimeout ends a connection that is passed on as it is, over which no byte
// went either way.
const IdleTimeout = time.Hour

// WatchIdle calls end once quiet, which is for how long no byte has gone either
// way, has reached a limit. It looks when that could be, not at each piece. Call
// stop to end the watch: end is not called from then on.
func WatchIdle(limit time.Duration, quiet func() time.Duration, end func()) (stop func()) {
	var mu sync.Mutex // guards timer and stopped
	var timer *time.Timer
	stopped := false
	look := func() {
		mu.Lock()
		defer mu.Unlock()
		if stopped {
			return
		}
		if left := limit - quiet(); left > 0 {
			timer.Reset(left)
			return
		}
		end()
	}
	mu.Lock()
	timer = time.AfterFunc(limit, look)
	mu.Unlock()
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
	}
}

// PassEnd passes on to dst that src has ended, and what went the other way goes
// on. An error, nil at the end of src, it passes on by resetting both.
func PassEnd(dst, src net.Conn, err error) {
	if err == nil {
		if half, ok := dst.(interface{ CloseWrite() error }); ok {
			err = half.CloseWrite()
		} else {
			err = dst.Close()
		}
	}
	if err != nil {
		Reset(dst)
		Reset(src)
	}
}

// Reset closes a connection so that the other side sees an error, not an end of
// file.
func Reset(c net.Conn) {
	below := c
	if t, ok := c.(*tls.Conn); ok {
		below = t.NetConn()
	}
	if l, ok := below.(interface{ SetLinger(seconds int) error }); ok {
		l.SetLinger(0)
	}
	c.Close()
}
