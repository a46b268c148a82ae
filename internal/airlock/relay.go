package airlock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/environment"
	"isle/internal/gateway"
)

const (
	// MaxConnections is how many connections of one environment may be open
	// at once to what is granted.
	MaxConnections  = 1024
	homeConnections = 512
	// acceptRate is how many connections a second one socket takes; more wait.
	// Each costs the server, which nobody's limits count, a goroutine.
	acceptRate, acceptBurst = 1000, 2000
)

// Names of the sockets of an airlock. One for a grant is "egress/ADDRESS:PORT"
// or, of a connection, "connection/ADDRESS:PORT".
const (
	socketHome  = "home"
	socketUDP   = "dns-udp"
	socketTCP   = "dns-tcp"
	socketWatch = "watch"
)

// An airlock is the server's side of one environment's network. Its goroutines
// end when stop has returned.
type airlock struct {
	config   *Config
	instance isle.ID
	ctx      context.Context // ends with stop
	cancel   context.CancelFunc
	running  sync.WaitGroup
	trailing *sync.WaitGroup // closes sockets that take their time
	doors    *doors
	plan     atomic.Pointer[plan]
	watched  atomic.Pointer[os.File] // the packet socket, once served

	// sockets and served are changed by the holder of the instance's slot only.
	sockets map[string]io.Closer // *net.TCPListener, *net.UDPConn or *os.File
	served  map[string]bool

	mu          sync.Mutex // guards what follows
	connections map[*connection]struct{}
	count       map[string]int // of connections, by kind
}

func newAirlock(c *Config, instance isle.ID, trailing *sync.WaitGroup) *airlock {
	a := &airlock{config: c, instance: instance, trailing: trailing,
		doors:       &doors{instance: instance, now: c.Now, report: c.Refused, every: c.RefusedEvery, tried: make(map[door]*tally)},
		sockets:     make(map[string]io.Closer),
		served:      make(map[string]bool),
		connections: make(map[*connection]struct{}), count: make(map[string]int)}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.plan.Store(&plan{})
	return a
}

func (a *airlock) current() *plan { return a.plan.Load() }

func (a *airlock) refused(destination, protocol, reason string, n int) {
	a.doors.refused(destination, protocol, reason, n)
}

func (a *airlock) listDoors() []environment.Door {
	if w := a.watched.Load(); w != nil {
		a.countOverflow(w)
	}
	return a.doors.list()
}

// wanted is every TCP socket of a plan and its address.
func wanted(p *plan) map[string]netip.AddrPort {
	all := map[string]netip.AddrPort{socketHome: homeAddress, socketTCP: dnsAddress}
	for _, g := range p.grants {
		all[g.socket()] = g.address
	}
	return all
}

// listen opens the plan's sockets that are not open yet, in the namespace of
// the calling thread. They queue what comes until follow serves them. It uses
// up what is inherited.
func (a *airlock) listen(p *plan, inherited map[string]*os.File) error {
	defer func() {
		for _, file := range inherited {
			file.Close()
		}
	}()
	for name, address := range wanted(p) {
		if a.sockets[name] != nil {
			continue
		}
		l, err := listenTCP(address, inherited[name])
		if err != nil {
			return fmt.Errorf("listen on %s: %w", address, err)
		}
		a.sockets[name] = l
	}
	if a.sockets[socketUDP] == nil {
		u, err := listenUDP(dnsAddress, inherited[socketUDP])
		if err != nil {
			return fmt.Errorf("listen on %s: %w", dnsAddress, err)
		}
		a.sockets[socketUDP] = u
	}
	if a.sockets[socketWatch] == nil {
		w, err := takeWatch(inherited[socketWatch], addresses(p))
		if err != nil {
			return err
		}
		a.sockets[socketWatch] = w
	}
	return nil
}

func addresses(p *plan) []netip.AddrPort {
	all := []netip.AddrPort{homeAddress, dnsAddress}
	for _, g := range p.grants {
		all = append(all, g.address)
	}
	return all
}

func listenTCP(address netip.AddrPort, inherited *os.File) (*net.TCPListener, error) {
	if inherited != nil {
		if l, err := net.FileListener(inherited); err == nil {
			if tcp, ok := l.(*net.TCPListener); ok && tcp.Addr().String() == address.String() {
				return tcp, nil
			}
			l.Close()
		}
	}
	// The socket is made on the calling thread because the address needs no
	// resolving. Multipath TCP is of no use on a veth pair.
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	l, err := c.Listen(context.Background(), "tcp4", address.String())
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

func listenUDP(address netip.AddrPort, inherited *os.File) (*net.UDPConn, error) {
	if inherited != nil {
		if c, err := net.FilePacketConn(inherited); err == nil {
			if udp, ok := c.(*net.UDPConn); ok && udp.LocalAddr().String() == address.String() {
				return udp, nil
			}
			c.Close()
		}
	}
	return net.ListenUDP("udp4", net.UDPAddrFromAddrPort(address))
}

// takeWatch duplicates the inherited packet socket, or opens one.
func takeWatch(inherited *os.File, granted []netip.AddrPort) (*os.File, error) {
	if inherited == nil {
		return openWatch(granted)
	}
	return duplicate(socketWatch, inherited)
}

// follow makes the plan hold: what is no longer granted is closed, and every
// socket that listen opened is served.
func (a *airlock) follow(p *plan) error {
	watch := a.sockets[socketWatch].(*os.File)
	raw, err := watch.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = setFilter(int(fd), addresses(p)) }); err != nil {
		return err
	}
	if failed != nil {
		return fmt.Errorf("set the filter of the airlock's link: %w", failed)
	}
	a.doors.grant(p.grants)
	before := a.plan.Swap(p)

	a.watched.Store(watch)

	keep := wanted(p)
	for name, socket := range a.sockets {
		if _, ok := keep[name]; !ok && name != socketUDP && name != socketWatch {
			socket.Close()
			delete(a.sockets, name)
			delete(a.served, name)
			a.withdraw(name)
		} else if before != nil && before.leadsElsewhere(p, name) {
			a.withdraw(name)
		}
	}
	for name, socket := range a.sockets {
		if !a.served[name] {
			a.served[name] = true
			a.running.Go(func() { a.serve(name, socket) })
		}
	}
	return nil
}

// forget closes the sockets that listen opened and follow did not get to
// serve: nobody would answer there.
func (a *airlock) forget() {
	for name, socket := range a.sockets {
		if !a.served[name] {
			socket.Close()
			delete(a.sockets, name)
		}
	}
}

// serve does what a socket is there for, until it is closed.
func (a *airlock) serve(name string, socket io.Closer) {
	switch s := socket.(type) {
	case *os.File:
		a.watch(s)
	case *net.UDPConn:
		a.serveDatagrams(s)
	case *net.TCPListener:
		switch name {
		case socketHome:
			a.accept(s, name, socketHome, homeConnections, func(c *connection) { a.config.Home(a.instance, c) })
		case socketTCP:
			a.accept(s, name, socketTCP, dnsConnections, a.serveStream)
		default:
			if strings.HasPrefix(name, "connection/") {
				a.accept(s, name, "connection", MaxConnections, a.connect)
				return
			}
			a.accept(s, name, "egress", MaxConnections, a.relay)
		}
	}
}

// A connection from inside. Closing it, once, makes room for another.
type connection struct {
	*net.TCPConn
	socket  string // that accepted it
	kind    string // connections of a kind share a bound
	airlock *airlock
	once    sync.Once
	ctx     context.Context // ends when the connection is closed or its door is
	end     context.CancelCauseFunc
}

// Close closes the connection.
func (c *connection) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		err = c.TCPConn.Close()
		c.end(nil)
		c.airlock.mu.Lock()
		defer c.airlock.mu.Unlock()
		delete(c.airlock.connections, c)
		c.airlock.count[c.kind]--
	})
	return err
}

// reset ends the connection with a RST: the other end sees an error, not an
// end of file.
func (c *connection) reset() {
	c.SetLinger(0)
	c.Close()
}

// accept hands each connection to handle in a goroutine of its own, up to a
// bound for all connections of the kind.
func (a *airlock) accept(l *net.TCPListener, socket, kind string, bound int, handle func(*connection)) {
	pace := newPace(acceptRate, acceptBurst)
	for {
		pace.wait()
		tcp, err := l.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			a.rest(err)
			continue
		}
		c := &connection{TCPConn: tcp, socket: socket, kind: kind, airlock: a}
		c.ctx, c.end = context.WithCancelCause(a.ctx)
		if !a.admit(c, bound) {
			tcp.SetLinger(0)
			tcp.Close()
			c.end(nil)
			destination := l.Addr().String()
			if g := a.current().bySocket[socket]; g != nil {
				destination = g.door()
			}
			a.refused(destination, "tcp", tooMany, 1)
			continue
		}
		a.running.Go(func() { handle(c) })
	}
}

// admit counts a connection in, unless there are too many of its kind or the
// airlock has stopped.
func (a *airlock) admit(c *connection, bound int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.count[c.kind] >= bound || a.ctx.Err() != nil {
		return false
	}
	a.connections[c] = struct{}{}
	a.count[c.kind]++
	return true
}

// drop closes the connections that match.
func (a *airlock) drop(match func(*connection) bool) {
	a.mu.Lock()
	var all []*connection
	for c := range a.connections {
		if match(c) {
			all = append(all, c)
		}
	}
	a.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}

// parting is how long a connection whose door has closed may take to say so to
// its client.
const parting = time.Second

// withdraw ends the connections of a socket whose grant is gone. Those of the
// gateway are told why, and can pass it on.
func (a *airlock) withdraw(socket string) {
	if !strings.HasPrefix(socket, "connection/") {
		a.drop(func(c *connection) bool { return c.socket == socket })
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := range a.connections {
		if c.socket == socket {
			c.end(errWithdrawn)
			time.AfterFunc(parting, func() { c.Close() })
		}
	}
}

var errWithdrawn = isle.Errorf(isle.Refused, "the door was closed: the environment may not open the connection any more")

// connect hands a connection to the gateway, which ends it.
func (a *airlock) connect(inside *connection) {
	defer inside.Close()
	g := a.current().bySocket[inside.socket]
	if g == nil {
		inside.reset() // revoked just now
		return
	}
	failure := ""
	leave := a.doors.enter(g.door())
	defer func() { leave(failure) }()
	if err := a.config.Connect(inside.ctx, a.instance, g.name, g.port, inside); err != nil {
		failure = err.Error()
	}
}

// rest waits a little after an error that is not the socket's end, such as
// being out of file descriptors.
func (a *airlock) rest(err error) {
	a.config.Log.Warn("airlock: a listener failed and goes on", "instance", a.instance, "error", err)
	select {
	case <-a.ctx.Done():
	case <-time.After(100 * time.Millisecond):
	}
}

// inspect hands a connection to a destination that is inspected to the gateway,
// which ends it, and returns why it could not be served.
func (a *airlock) inspect(inside *connection, g *grant) (failure string) {
	if a.config.Inspect == nil {
		inside.reset()
		return "nothing here can inspect it"
	}
	err := a.config.Inspect(inside.ctx, a.instance, gateway.Egress{Host: g.host, Port: g.port, Allowed: g.allowed}, inside)
	if err == nil {
		return ""
	}
	if isle.CodeOf(err) == isle.Refused {
		a.refused(g.String(), "tls", err.Error(), 1)
	}
	return err.Error()
}

// relay dials what a connection asks for and copies both ways.
func (a *airlock) relay(inside *connection) {
	defer inside.Close()
	g := a.current().bySocket[inside.socket]
	if g == nil {
		inside.reset() // revoked just now
		return
	}
	failure := ""
	leave := a.doors.enter(g.String())
	defer func() { leave(failure) }()
	if g.inspect {
		failure = a.inspect(inside, g)
		return
	}
	outside, err := a.config.Egress.Dial(a.ctx, a.instance, g.host, g.port, g.allowed)
	if err != nil {
		inside.reset()
		failure = err.Error()
		if isle.CodeOf(err) == isle.Refused {
			a.refused(g.String(), "tcp", failure, 1)
		}
		return
	}
	defer outside.Close()
	idle := gateway.WatchIdle(gateway.IdleTimeout, func() time.Duration { return quiet(inside.TCPConn) }, func() { inside.Close(); outside.Close() })
	defer idle()
	stop := context.AfterFunc(a.ctx, func() { inside.Close(); outside.Close() })
	defer stop()

	var both sync.WaitGroup
	refusal := ""
	both.Go(func() {
		// What the client says first shows whether it means the name that was
		// granted. The other side may be the first to speak, and is not waited for.
		if err := gateway.PassHello(outside, inside.TCPConn, g.host); err != nil {
			if isle.CodeOf(err) == isle.Refused {
				refusal = err.Error()
				a.refused(g.String(), "tls", refusal, 1)
			}
			inside.Close()
			outside.Close()
			return
		}
		pipe(outside, inside.TCPConn)
	})
	pipe(inside.TCPConn, outside)
	both.Wait()
	failure = refusal
}

// pipe copies until the end of src, which it passes on; an error it passes on
// by ending both. Between two TCP connections the bytes stay in the kernel
// (splice).
func pipe(dst, src net.Conn) {
	_, err := io.Copy(dst, src)
	gateway.PassEnd(dst, src, err)
}

// quiet is for how long no data has gone over c, in either direction; for as long
// as may be if it is closed. It asks the kernel, which alone sees what is spliced.
func quiet(c *net.TCPConn) time.Duration {
	since := gateway.IdleTimeout
	raw, err := c.SyscallConn()
	if err != nil {
		return since
	}
	raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			since = time.Duration(min(info.Last_data_recv, info.Last_data_sent)) * time.Millisecond
		}
	})
	return since
}

// export adds duplicates of the sockets to files.
func (a *airlock) export(files map[string]*os.File) error {
	for name, socket := range a.sockets {
		s, ok := socket.(syscall.Conn)
		if !ok {
			continue
		}
		file, err := duplicate(name, s)
		if err != nil {
			return err
		}
		files[exportName(a.instance, name)] = file
	}
	return nil
}

// duplicate leaves the socket as it is. The File method of those of package net
// would set it to blocking, and with it the original: an accept that finds the
// queue empty would then never end.
func duplicate(name string, s syscall.Conn) (*os.File, error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var failed error
	if err := raw.Control(func(old uintptr) { fd, failed = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	return os.NewFile(uintptr(fd), name), nil
}

// stop closes every socket and connection and waits for what served them.
func (a *airlock) stop() {
	a.cancel()
	for _, socket := range a.sockets {
		if watch, ok := socket.(*os.File); ok {
			watch.SetReadDeadline(time.Unix(1, 0)) // ends its reader
			continue
		}
		socket.Close()
	}
	a.drop(func(*connection) bool { return true })
	a.running.Wait()
	a.doors.stop()
	if watch := a.sockets[socketWatch]; watch != nil {
		a.watched.Store(nil)
		a.trailing.Go(func() { watch.Close() }) // the kernel waits for a grace period, some 10 ms
	}
}
