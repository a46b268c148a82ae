package airlock

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Chamber is the network of one build step: an airlock in which every name has
// one address, and each connection to one of its ports, at whatever address, is
// handed over. It is pinned nowhere, so that it is gone with the server, as the
// step is. Close ends it.
type Chamber struct {
	pair    *pair
	closers []interface{ Close() error }
	serving sync.WaitGroup
}

// everyName is the address of every name in a chamber.
var everyName = netip.MustParseAddr("198.18.1.0")

// OpenChamber makes a chamber. serve gets each connection, whose LocalAddr is
// where it was meant to go, owns it, and returns at once.
func OpenChamber(ports []int, serve func(net.Conn)) (*Chamber, error) {
	c := &Chamber{}
	var sockets []*net.TCPListener
	var questions *net.UDPConn
	err := onThread(func() (err error) {
		if c.pair, err = newPair(); err != nil {
			return err
		}
		if err := unix.Setns(int(c.pair.airlock.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		if questions, err = listenUDP(dnsAddress, nil); err != nil {
			return err
		}
		c.closers = append(c.closers, questions)
		for _, port := range ports {
			l, err := listenTCP(netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port)), nil)
			if err != nil {
				return err
			}
			c.closers = append(c.closers, l)
			sockets = append(sockets, l)
		}
		return nil
	})
	if err != nil {
		c.Close()
		return nil, wrap(err, "make the network of a build step")
	}
	c.serving.Go(func() { answerAll(questions) }) // these end with Close
	for _, l := range sockets {
		c.serving.Go(func() { acceptAll(l, serve) })
	}
	return c, nil
}

// Path is that of the namespace to join, until the chamber is closed.
func (c *Chamber) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), c.pair.sandbox.Fd())
}

// Close ends the chamber. Connections that were handed over are their owner's.
func (c *Chamber) Close() {
	for _, s := range c.closers {
		s.Close()
	}
	c.serving.Wait()
	if c.pair != nil {
		c.pair.close()
	}
}

// acceptAll hands connections over until the listener is closed.
func acceptAll(l *net.TCPListener, serve func(net.Conn)) {
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			serve(conn)
		case errors.Is(err, net.ErrClosed):
			return
		default: // no file descriptors, or memory: those that wait are taken later
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// answerAll answers questions for names until the socket is closed, one after the
// other, at a bounded rate. No question leaves: whether there is such a name is
// found where a request is sent on.
func answerAll(socket *net.UDPConn) {
	pace := newPace(dnsRate, dnsBurst)
	buffer := make([]byte, dnsMessage+1)
	for {
		n, from, err := socket.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			if reply := answerAny(buffer[:n]); reply != nil {
				socket.WriteToUDPAddrPort(reply, from)
			}
		}
		pace.wait()
	}
}

// answerAny answers one message, or not at all what the parser can't bear.
func answerAny(message []byte) (reply []byte) {
	defer func() {
		if recover() != nil {
			reply = nil
		}
	}()
	return answer(message, func(name string) (netip.Addr, bool) { return everyName, validName(name) }, func(string) {})
}
