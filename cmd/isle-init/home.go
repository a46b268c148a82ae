package main

import (
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"isle"
	"isle/internal/initproto"
)

const (
	// dialTimeout bounds one attempt to reach home.
	dialTimeout = 5 * time.Second
	// ackTimeout is how long the server may take over an event before it is
	// taken to be away.
	ackTimeout = 30 * time.Second
	// Attempts to reach home are this far apart.
	firstPause, lastPause = 50 * time.Millisecond, 2 * time.Second
	// steady is how long a connection must have lasted to be sought again at once
	// when it ends. One that is shorter may be ended by home each time.
	steady = time.Second
)

// A call is a connection home, and how it began.
type call struct {
	*initproto.Conn
	challenge initproto.Challenge
	hello     initproto.Hello
}

// dial calls home until it answers and knows us.
func (s *service) dial(kind initproto.Kind) *call {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		another := s.self.another()
		if c, err := s.dialOnce(kind); err == nil {
			return c
		}
		if rest(pause, another) {
			pause = firstPause / 2
		}
	}
}

// rest waits, and no longer than until this isle-init is another, whom home may
// know: then it reports true.
func rest(pause time.Duration, another <-chan struct{}) bool {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return false
	case <-another:
		return true
	}
}

func (s *service) dialOnce(kind initproto.Kind) (*call, error) {
	conn, err := net.DialTimeout("tcp", s.boot.Home, dialTimeout)
	if err != nil {
		return nil, err
	}
	launch, secret := s.self.who()
	defer clear(secret)
	c := &call{Conn: initproto.NewConn(conn)}
	err = c.SetDeadline(time.Now().Add(initproto.HandshakeTimeout))
	if err == nil {
		c.challenge, c.hello, err = c.Introduce(kind, launch, secret)
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// callHome keeps the events connection, for the life of the process.
func (s *service) callHome() {
	for {
		c := s.dial(initproto.KindEvents)
		began, another := time.Now(), s.self.another()
		s.outbox.connected()
		var acks sync.WaitGroup
		acks.Go(func() {
			s.takeAcks(c)
			s.outbox.disconnected()
			c.Close()
		})
		s.sendEvents(c)
		c.Close()
		acks.Wait()
		if time.Since(began) < steady {
			rest(firstPause, another)
		}
	}
}

// sendEvents sends what is in the outbox until the connection ends.
func (s *service) sendEvents(c *call) {
	for {
		x, ok := s.outbox.next()
		if !ok {
			return
		}
		if c.SetDeadline(time.Now().Add(ackTimeout)) != nil {
			return
		}
		if x.event != nil {
			if c.WriteJSON(initproto.FrameEvent, x.event) != nil {
				return
			}
			continue
		}
		b := make([]byte, initproto.LogHeaderSize, initproto.LogHeaderSize+len(x.log.Data))
		x.log.PutHeader(b)
		if c.WriteFrame(initproto.FrameLog, append(b, x.log.Data...)) != nil {
			return
		}
	}
}

// takeAcks reads acknowledgements until the connection ends or one is late. It
// may also be that home says who this is from now on: then it is for whoever
// that is to call.
func (s *service) takeAcks(c *call) {
	for {
		kind, b, err := c.ReadFrame()
		if err != nil {
			return
		}
		if kind == initproto.FrameBecome {
			_ = s.become(c, b) // who does not understand is told again
			return
		}
		if kind != initproto.FrameAck {
			return
		}
		seq, err := initproto.ParseNumber(b)
		if err != nil {
			return
		}
		outstanding, ok := s.outbox.ack(seq)
		if !ok {
			return
		}
		var deadline time.Time
		if outstanding {
			deadline = time.Now().Add(ackTimeout)
		}
		if c.SetReadDeadline(deadline) != nil {
			return
		}
	}
}

// waitForWork keeps one work connection parked, for the life of the process.
func (s *service) waitForWork() {
	for {
		c := s.dial(initproto.KindWork).Conn
		began, another := time.Now(), s.self.another()
		b, err := c.Expect(initproto.FrameRequest)
		if err != nil {
			c.Close()
			if time.Since(began) < steady {
				rest(firstPause, another)
			}
			continue
		}
		select {
		case s.jobs <- struct{}{}:
			go func() {
				defer func() { <-s.jobs }()
				s.work(c, b)
			}()
		default:
			respond(c, isle.Errorf(isle.Exhausted, "the service does %d things at once already", maxJobs))
			c.Close()
		}
	}
}

// respond answers a request.
func respond(c *initproto.Conn, err error) bool {
	return c.WriteJSON(initproto.FrameResponse, initproto.ResponseOf(err)) == nil
}

// work does one request.
func (s *service) work(c *initproto.Conn, request []byte) {
	defer c.Close()
	r, err := initproto.ParseRequest(request)
	if err != nil {
		var said *isle.Error
		if errors.As(err, &said) {
			respond(c, err)
		}
		return
	}
	switch r.Kind {
	case initproto.RequestExec:
		if respond(c, nil) {
			s.exec(c, r)
		}
	case initproto.RequestForward:
		forward(c, r.Port)
	case initproto.RequestCopyIn:
		if respond(c, nil) {
			finish(c, s.copyIn(&received{c: c}, r))
		}
	case initproto.RequestCopyOut:
		if respond(c, nil) {
			finish(c, copyOut(&sender{c}, r.Path))
		}
	case initproto.RequestList:
		if respond(c, nil) {
			finish(c, list(&sender{c}, r.Path))
		}
	case initproto.RequestFolder:
		if respond(c, nil) {
			finish(c, folder(&sender{c}, r.Path))
		}
	case initproto.RequestSignal:
		sig, err := initproto.ParseSignal(r.Signal)
		if err == nil {
			err = s.signal(sig)
		}
		respond(c, err)
	case initproto.RequestStop:
		respond(c, nil)
		c.Close()
		s.end(r.Grace)
	}
}

// finish tells how a transfer went.
func finish(c *initproto.Conn, err error) {
	_ = c.WriteJSON(initproto.FrameResult, initproto.ResponseOf(err))
	linger(c)
}

// forward joins the connection to a port of the service.
func forward(c *initproto.Conn, port int) {
	to, err := dialLocal(port, dialTimeout)
	if err != nil {
		respond(c, isle.Errorf(isle.Unavailable, "nothing answers on port %d inside: %w", port, err).WithHint("see whether the service listens there with isle logs"))
		return
	}
	defer to.Close()
	if !respond(c, nil) {
		return
	}
	join(c, to)
}

// join passes on bytes both ways until both have ended. The end of one
// direction is passed on too; an error ends both.
func join(c *initproto.Conn, to net.Conn) {
	var up sync.WaitGroup
	up.Go(func() {
		if _, err := io.Copy(to, c.Reader); err != nil {
			to.Close()
			return
		}
		if h, ok := to.(interface{ CloseWrite() error }); ok {
			_ = h.CloseWrite()
		}
	})
	if _, err := io.Copy(c.Conn, to); err != nil {
		c.Close()
	} else {
		_ = c.CloseWrite()
	}
	up.Wait()
}

// dialLocal dials a port on 127.0.0.1, or else on ::1.
func dialLocal(port int, timeout time.Duration) (net.Conn, error) {
	p := strconv.Itoa(port)
	c, err := net.DialTimeout("tcp4", net.JoinHostPort("127.0.0.1", p), timeout)
	if err != nil {
		if six, serr := net.DialTimeout("tcp6", net.JoinHostPort("::1", p), timeout); serr == nil {
			return six, nil
		}
	}
	return c, err
}

// received is the stream in Data frames up to End.
type received struct {
	c    *initproto.Conn
	rest []byte
	done bool
}

// Read returns io.EOF only for End: a stream that breaks off is an error.
func (r *received) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.done {
			return 0, io.EOF
		}
		t, payload, err := r.c.ReadFrame()
		switch {
		case err != nil:
			return 0, io.ErrUnexpectedEOF
		case t == initproto.FrameData:
			r.rest = payload
		case t == initproto.FrameEnd:
			r.done = true
		default:
			return 0, errors.New("a frame that does not belong into a copy")
		}
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// sender writes a stream as Data frames.
type sender struct{ c *initproto.Conn }

func (w *sender) Write(b []byte) (int, error) {
	for sent := 0; sent < len(b); {
		k := min(len(b)-sent, 32<<10)
		if err := w.c.WriteFrame(initproto.FrameData, b[sent:sent+k]); err != nil {
			return sent, err
		}
		sent += k
	}
	return len(b), nil
}
