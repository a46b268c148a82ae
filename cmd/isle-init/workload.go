package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"time"

	"isle/internal/initproto"
)

const (
	// endpointVariable names the socket to clients (SPIFFE Workload Endpoint,
	// section 4).
	endpointVariable = "SPIFFE_ENDPOINT_SOCKET"
	// slotTime is how long a connection to the Workload API that reached home
	// keeps others from its place at least, however soon it ends: so there are
	// no more than MaxWorkload of them in it, for each of which the server, which
	// the service's limits do not count, does work.
	slotTime = 250 * time.Millisecond
	// firstWord is how long one may say nothing, in which it does not reach home.
	firstWord = 10 * time.Second
	// handing is how long home may take to answer: the next server needs a moment
	// when it takes over from the last.
	handing = 5 * time.Second
	// preface is how a client of HTTP/2 begins (RFC 9113, section 3.4). A server
	// answers it whatever comes next.
	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

// offerWorkload begins to serve the Workload API. A service without it does not
// start: an identity is no matter of luck.
func (s *service) offerWorkload() error {
	l, err := listenWorkload(initproto.WorkloadSocket)
	if err == nil {
		go s.serveWorkload(l)
	}
	return err
}

// listenWorkload makes the socket of the Workload API, for every user inside.
// /run is in memory and this launch's own, and nothing of the service has run
// yet. What does later may remove the socket or put another in its place; it
// then misleads its own launch.
func listenWorkload(at string) (*net.UnixListener, error) {
	dir := path.Dir(at)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("cannot make the folder of the Workload API: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("cannot make the socket of the Workload API: %w", err)
	}
	l.SetUnlinkOnClose(false) // by then the name may be something else's
	if err := os.Chmod(at, 0o666); err != nil {
		l.Close()
		return nil, fmt.Errorf("cannot open the socket of the Workload API to all users: %w", err)
	}
	return l, nil
}

// serveWorkload carries connections to the Workload API home, for the life of
// the process. Beyond the bound they wait in the kernel's queue.
func (s *service) serveWorkload(l *net.UnixListener) {
	slots := make(chan struct{}, initproto.MaxWorkload)
	for {
		slots <- struct{}{}
		c, err := l.AcceptUnix()
		if err != nil { // no descriptor is left, for now: root inside can see to that
			<-slots
			time.Sleep(firstPause)
			continue
		}
		go func() { // ends with the connection, and everything here with the process
			if began := time.Now(); s.carry(c) {
				time.Sleep(slotTime - time.Since(began))
			}
			<-slots
		}()
	}
}

// carry joins a connection to the Workload API to one home, once it has said
// something; dialed is whether it came to that. A home that ends before it has
// answered is one that hands over, and the next is tried, no more often than slots
// are given. Where none answers the connection just ends: the client tries again
// when it likes.
func (s *service) carry(c *net.UnixConn) (dialed bool) {
	defer c.Close()
	first := make([]byte, 4<<10)
	if c.SetReadDeadline(time.Now().Add(firstWord)) != nil {
		return false
	}
	n, err := c.Read(first)
	if err != nil || c.SetReadDeadline(time.Time{}) != nil {
		return false
	}
	for began := time.Now(); !s.carryHome(c, first[:n]) && time.Since(began) < handing; {
		time.Sleep(slotTime)
	}
	return true
}

// carryHome joins a connection to one home, until either ends; false: home did not
// answer, and nothing but what is first was taken of the connection.
func (s *service) carryHome(c *net.UnixConn, first []byte) (answered bool) {
	home, err := s.dialOnce(initproto.KindWorkload)
	if err != nil {
		return false
	}
	defer home.Close()
	if _, err := home.Write(first); err != nil {
		return false
	}
	if bytes.HasPrefix(first, []byte(preface)) {
		if home.SetReadDeadline(time.Now().Add(firstWord)) != nil {
			return false
		}
		if _, err := home.Reader.Peek(1); err != nil {
			return false
		}
		if home.SetReadDeadline(time.Time{}) != nil {
			return false
		}
	}
	join(home.Conn, c)
	return true
}
