package initproto

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"isle"
)

// pipe connects to h as something in a new instance.
func pipe(h *Home) (isle.ID, *Conn) {
	instance := isle.NewID()
	return instance, connect(h, instance)
}

func connect(h *Home, instance isle.ID) *Conn {
	theirs, ours := net.Pipe()
	h.Serve(instance, theirs)
	return NewConn(ours)
}

// A launched is a launch and its secret.
type launched struct {
	instance, id isle.ID
	secret       []byte
	sink         *sink
}

// sink records events, and refuses them while broken.
type sink struct {
	mu     sync.Mutex
	list   []string
	broken error
}

func (s *sink) add(format string, args ...any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	s.list = append(s.list, fmt.Sprintf(format, args...))
	return nil
}
func (s *sink) SetupDone(code int, output string) error { return s.add("setup %d %s", code, output) }
func (s *sink) Started() error                          { return s.add("started") }
func (s *sink) Health(ok bool, detail string) error     { return s.add("health %v %s", ok, detail) }
func (s *sink) Exited(code int, reason string) error    { return s.add("exited %d %s", code, reason) }
func (s *sink) Log(_ time.Time, stderr bool, data []byte) error {
	return s.add("log %v %s", stderr, data)
}
func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.list, "; ")
}

func expect(h *Home, instance isle.ID) launched {
	l := launched{instance, isle.NewID(), []byte(strings.Repeat("s3cret..", 4)), &sink{}}
	h.Expect(instance, l.id, isle.DigestOf(l.secret), l.sink)
	return l
}

func (l launched) dial(h *Home, kind Kind) (*Conn, error) {
	c := connect(h, l.instance)
	return c, c.Greet(kind, l.id, l.secret)
}

func (l launched) mustDial(t *testing.T, h *Home, kind Kind) *Conn {
	t.Helper()
	c, err := l.dial(h, kind)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestAReplayedHelloProvesNothing(t *testing.T) {
	refused := make(chan Refusal, 1)
	h := NewHome(HomeConfig{Refused: func(r Refusal) { refused <- r }})
	defer h.Close()
	l := expect(h, isle.NewID())
	c := connect(h, l.instance)
	b, err := c.Expect(FrameChallenge)
	if err != nil {
		t.Fatal(err)
	}
	challenge, err := ParseChallenge(b)
	if err != nil {
		t.Fatal(err)
	}
	hello := NewHello(challenge, KindWork, l.id, l.secret)
	if err := c.WriteFrame(FrameHello, hello.Encode()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Expect(FrameWelcome); err != nil {
		t.Fatal(err)
	}
	// What was overheard is of no use on another connection, nor is it the
	// secret, nor good for another kind of connection.
	again := connect(h, l.instance)
	if _, err := again.Expect(FrameChallenge); err != nil {
		t.Fatal(err)
	}
	if err := again.WriteFrame(FrameHello, hello.Encode()); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Expect(FrameWelcome); err == nil {
		t.Fatal("a replayed hello was welcomed")
	}
	if r := <-refused; r.Launch != l.id {
		t.Errorf("%+v", r)
	}
	other := hello
	other.Kind = KindEvents
	key, _ := keyOf(isle.DigestOf(l.secret))
	if !hello.Proves(challenge, key) || other.Proves(challenge, key) {
		t.Error("the proof does not cover the kind")
	}
}

func TestStrangersDoNotCrowdOutAnHonestInit(t *testing.T) {
	h := NewHome(HomeConfig{})
	defer h.Close()
	l := expect(h, isle.NewID())
	for range 10 * MaxPending {
		c := connect(h, l.instance)
		defer c.Close()
	}
	h.mu.Lock()
	n := len(h.pending[l.instance])
	h.mu.Unlock()
	if n > MaxPending {
		t.Errorf("%d connections pending", n)
	}
	l.mustDial(t, h, KindWork)
	if _, err := h.Line(t.Context(), l.id); err != nil {
		t.Fatal(err)
	}
}

func TestParkedConnectionsAreBounded(t *testing.T) {
	h := NewHome(HomeConfig{})
	defer h.Close()
	l := expect(h, isle.NewID())
	for range 3 * MaxParked {
		l.mustDial(t, h, KindWork)
	}
	la := h.launches[l.id]
	la.mu.Lock()
	defer la.mu.Unlock()
	if n := len(la.parked); n > MaxParked {
		t.Errorf("%d connections are parked", n)
	}
}

func TestADeadParkedConnectionIsPassedOver(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	h := NewHome(HomeConfig{})
	defer h.Close()
	l := expect(h, isle.NewID())
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			h.Serve(l.instance, c)
		}
	}()
	dial := func() *Conn {
		t.Helper()
		c, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		f := NewConn(c)
		if err := f.Greet(KindWork, l.id, l.secret); err != nil {
			t.Fatal(err)
		}
		return f
	}
	alive := dial()
	defer alive.Close()
	go func() {
		if _, err := alive.Expect(FrameRequest); err == nil {
			_ = alive.WriteJSON(FrameResponse, Response{})
		}
	}()
	dial().Close()                   // ended
	chatty := dial()                 // says what nobody asked for
	_ = chatty.WriteFrame(0x42, nil) //
	defer chatty.Close()             //
	hangsUp := dial()                // ends on the request
	go func() {                      //
		_, _ = hangsUp.Expect(FrameRequest)
		hangsUp.Close()
	}()
	line, err := h.Line(t.Context(), l.id)
	if err != nil {
		t.Fatal(err)
	}
	if err := line.Signal(t.Context(), "TERM"); err != nil {
		t.Fatal(err)
	}
}

func TestAnInitThatDoesNotReadBlocksNobodyBeyondTheContext(t *testing.T) {
	h := NewHome(HomeConfig{})
	defer h.Close()
	l := expect(h, isle.NewID())
	l.mustDial(t, h, KindWork) // reads nothing: a net.Pipe has no buffer
	line, err := h.Line(t.Context(), l.id)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { _, err := line.Exec(ctx, Exec{Command: []string{"true"}}); done <- err }()
	cancel()
	if err := <-done; isle.CodeOf(err) != isle.Unavailable || !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := line.Exec(ctx, Exec{Command: []string{"true"}}); err == nil {
		t.Error("work was found where nobody is")
	}
}

func TestAnInitThatLiesEndsItsOwnWorkOnly(t *testing.T) {
	h := NewHome(HomeConfig{})
	defer h.Close()
	l := expect(h, isle.NewID())
	exec := func(answer func(c *Conn)) (Output, error) {
		t.Helper()
		c := l.mustDial(t, h, KindWork)
		line, err := h.Line(t.Context(), l.id)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if _, err := c.Expect(FrameRequest); err == nil {
				_ = c.WriteJSON(FrameResponse, Response{})
				answer(c)
			}
		}()
		p, err := line.Exec(t.Context(), Exec{Command: []string{"true"}})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		return p.Next()
	}
	for name, answer := range map[string]func(c *Conn){
		"more window than was used": func(c *Conn) { _ = c.WriteFrame(FrameWindow, EncodeNumber(1)) },
		"a window beyond numbers":   func(c *Conn) { _ = c.WriteFrame(FrameWindow, EncodeNumber(1<<63)) },
		"a code that is none":       func(c *Conn) { _ = c.WriteFrame(FrameExit, []byte(`{"code":-1}`)) },
		"an unknown frame":          func(c *Conn) { _ = c.WriteFrame(0x7f, nil) },
		"a frame too long":          func(c *Conn) { _, _ = c.Write([]byte{0x31, 0xff, 0xff, 0xff, 0xff}) },
		"half a frame":              func(c *Conn) { _, _ = c.Write([]byte{0x31, 0}); c.Close() },
		"the end":                   func(c *Conn) { c.Close() },
	} {
		if o, err := exec(answer); isle.CodeOf(err) != isle.Unavailable {
			t.Errorf("%s: %+v, %v", name, o, err)
		}
	}
	if o, err := exec(func(c *Conn) { _ = c.WriteFrame(FrameExit, EncodeExit(Exit{Code: 3})) }); err != nil || o.Exit.Code != 3 {
		t.Errorf("after all that: %+v, %v", o, err)
	}
}

func TestEventsAreTakenOnceAndAcknowledgedWhenDurable(t *testing.T) {
	h := NewHome(HomeConfig{})
	defer h.Close()
	l := expect(h, isle.NewID())
	c := l.mustDial(t, h, KindEvents)
	ack := func(c *Conn, want uint64) {
		t.Helper()
		b, err := c.Expect(FrameAck)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := ParseNumber(b); err != nil || n != want {
			t.Fatalf("acknowledged %d, want %d", n, want)
		}
	}
	send := func(c *Conn, seq uint64, text string) {
		t.Helper()
		g := Log{Seq: seq, At: time.Unix(1, 0), Data: []byte(text)}
		b := make([]byte, LogHeaderSize)
		g.PutHeader(b)
		if err := c.WriteFrame(FrameLog, append(b, text...)); err != nil {
			t.Fatal(err)
		}
	}
	send(c, 2, "a")
	ack(c, 2)
	l.sink.mu.Lock()
	l.sink.broken = errors.New("no space")
	l.sink.mu.Unlock()
	send(c, 4, "b")
	if _, err := c.Expect(FrameAck); err == nil {
		t.Fatal("what was not durable was acknowledged")
	}
	l.sink.mu.Lock()
	l.sink.broken = nil
	l.sink.mu.Unlock()
	c2 := l.mustDial(t, h, KindEvents)
	send(c2, 2, "a") // its acknowledgement was lost, say
	ack(c2, 2)
	send(c2, 4, "b")
	ack(c2, 4)
	c3 := l.mustDial(t, h, KindEvents) // a newer connection ends the older
	if _, err := c2.Expect(FrameAck); err == nil {
		t.Error("the older events connection lives on")
	}
	if err := c3.WriteJSON(FrameEvent, Event{Seq: 5, Kind: EventExited, Code: 3, Detail: "why\x1b[2J"}); err != nil {
		t.Fatal(err)
	}
	ack(c3, 5)
	if got := l.sink.String(); got != "log false a; log false b; exited 3 why[2J" {
		t.Errorf("got %s", got)
	}
	send(c3, 5, "again the same number")
	if _, err := c3.Expect(FrameAck); err == nil {
		t.Error("numbers need not grow")
	}
}

func TestWhatIsForgottenIsOver(t *testing.T) {
	h := NewHome(HomeConfig{})
	l := expect(h, isle.NewID())
	c := l.mustDial(t, h, KindWork)
	e := l.mustDial(t, h, KindEvents)
	waiting := make(chan error)
	go func() {
		_, err := h.Line(t.Context(), isle.NewID())
		waiting <- err
	}()
	if err := <-waiting; isle.CodeOf(err) != isle.NotFound {
		t.Errorf("a launch that never was: %v", err)
	}
	h.Forget(l.id)
	for _, c := range []*Conn{c, e} {
		if _, _, err := c.ReadFrame(); err == nil {
			t.Error("a connection outlived its launch")
		}
	}
	if _, err := h.Line(t.Context(), l.id); isle.CodeOf(err) != isle.NotFound {
		t.Errorf("%v", err)
	}
	if _, err := l.dial(h, KindWork); err == nil {
		t.Error("a forgotten launch was let in")
	}
	if len(h.launches) != 0 {
		t.Error("something is left")
	}
}

func TestOutputIsTakenAtABoundedRate(t *testing.T) {
	now := time.Unix(0, 0)
	b := &budget{rate: 1000, at: now}
	if p := b.spend(250, now); p != 0 {
		t.Errorf("a quarter of a second's worth waits %v", p)
	}
	if p := b.spend(1000, now); p != time.Second {
		t.Errorf("another second's worth waits %v", p)
	}
	if p := b.spend(1, now.Add(time.Hour)); p != 0 {
		t.Errorf("after an hour one byte waits %v", p)
	}
}

func TestErrorsCrossTheWire(t *testing.T) {
	want := isle.Errorf(isle.Exhausted, "no space: %w", io.ErrShortWrite).WithHint("free some")
	for _, c := range []struct{ in, want error }{
		{nil, nil},
		{want, &isle.Error{Code: isle.Exhausted, Message: "no space: short write", Hint: "free some"}},
		{errors.New("plain\x00"), &isle.Error{Code: isle.Internal, Message: "plain"}},
	} {
		client, server := net.Pipe()
		go func() { _ = NewConn(server).WriteJSON(FrameResponse, ResponseOf(c.in)) }()
		payload, err := NewConn(client).Expect(FrameResponse)
		if err != nil {
			t.Fatal(err)
		}
		failure, err := ParseResponse(payload)
		if fmt.Sprint(failure) != fmt.Sprint(c.want) || err != nil {
			t.Errorf("%v became %v, %v", c.in, failure, err)
		}
	}
}

func TestAnImpostorThatGoesOnIsToldOfEverMoreSeldom(t *testing.T) {
	told := 0
	h := NewHome(HomeConfig{Refused: func(r Refusal) { told += r.Count }})
	instance := isle.NewID()
	var last time.Duration
	for range 20 {
		h.refuse(instance, "", errors.New("no"))
		h.refuse(instance, "", errors.New("no"))
		r := h.refusals[instance]
		if r.pause < last || r.pause > lastRefusalPause {
			t.Fatalf("a pause of %v after one of %v", r.pause, last)
		}
		last, r.next = r.pause, time.Now() // as if it were over
	}
	if last != lastRefusalPause || told != 39 {
		t.Errorf("at last %v; told of %d, the last is pending", last, told)
	}
}

func TestWhatEndsWithTheServerIsNotRefused(t *testing.T) {
	told := 0
	h := NewHome(HomeConfig{Refused: func(r Refusal) { told += r.Count }})
	cut := fmt.Errorf("read: %w", net.ErrClosed)
	h.refuse(isle.NewID(), "", cut) // one that makes room for another
	if told != 1 {
		t.Errorf("%d refusals were told, want 1", told)
	}
	h.Close()
	h.refuse(isle.NewID(), "", cut)
	if told != 1 {
		t.Error("who was calling when it ended was refused")
	}
	h.refuse(isle.NewID(), "", errors.New("a lie"))
	if told != 2 {
		t.Error("who lied when it ended was not refused")
	}
}
