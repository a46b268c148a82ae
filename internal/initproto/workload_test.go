package initproto

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"isle"
)

func TestAWorkloadConnectionIsItsLaunchsAndEndsWithIt(t *testing.T) {
	type served struct {
		instance, launch isle.ID
		read             string
	}
	got := make(chan served, 1)
	begun := make(chan struct{})
	h := NewHome(HomeConfig{Workload: func(instance, launch isle.ID, conn net.Conn) {
		fmt.Fprint(conn, "hello")
		close(begun)
		b, _ := io.ReadAll(conn) // until Forget
		got <- served{instance, launch, string(b)}
	}})
	defer h.Close()
	l, other := expect(h, isle.NewID()), expect(h, isle.NewID())
	c := l.mustDial(t, h, KindWorkload)
	b := make([]byte, 5)
	if _, err := io.ReadFull(c.Reader, b); err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
	<-begun
	fmt.Fprint(c.Conn, "what is said")
	h.Forget(other.id) // somebody else's end is not ours
	fmt.Fprint(c.Conn, " and more")
	h.Forget(l.id)
	if s := <-got; s.instance != l.instance || s.launch != l.id || s.read != "what is said and more" {
		t.Errorf("%+v", s)
	}
	if _, err := c.Reader.ReadByte(); err == nil {
		t.Error("the connection outlived its launch")
	}
	if _, err := l.dial(h, KindWorkload); err == nil {
		t.Error("a forgotten launch was welcomed")
	}
}

// Bytes that come together with the Hello belong to what follows it.
func TestNothingSaidRightAfterTheHelloIsLost(t *testing.T) {
	got := make(chan string, 1)
	h := NewHome(HomeConfig{Workload: func(_, _ isle.ID, conn net.Conn) {
		b := make([]byte, 5)
		io.ReadFull(conn, b)
		got <- string(b)
	}})
	defer h.Close()
	l := expect(h, isle.NewID())
	c := connect(h, l.instance)
	defer c.Close()
	b, err := c.Expect(FrameChallenge)
	if err != nil {
		t.Fatal(err)
	}
	challenge, err := ParseChallenge(b)
	if err != nil {
		t.Fatal(err)
	}
	hello := NewHello(challenge, KindWorkload, l.id, l.secret)
	frame := make([]byte, HeaderSize)
	PutHeader(frame, FrameHello, helloSize)
	go c.WriteRaw(append(append(frame, hello.Encode()...), "early"...))
	if _, err := c.Expect(FrameWelcome); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != "early" {
		t.Errorf("%q", s)
	}
}

func TestWorkloadConnectionsAreBoundedForEachLaunch(t *testing.T) {
	release := make(chan struct{})
	var mu sync.Mutex
	open := map[isle.ID]int{}
	h := NewHome(HomeConfig{Workload: func(_, launch isle.ID, conn net.Conn) {
		mu.Lock()
		open[launch]++
		mu.Unlock()
		fmt.Fprint(conn, "x")
		<-release
	}})
	defer h.Close()
	greedy, modest := expect(h, isle.NewID()), expect(h, isle.NewID())
	for range MaxWorkload {
		c := greedy.mustDial(t, h, KindWorkload)
		if _, err := c.Reader.ReadByte(); err != nil {
			t.Fatal(err)
		}
	}
	c := greedy.mustDial(t, h, KindWorkload)
	if _, err := c.Reader.ReadByte(); err == nil {
		t.Error("one more was served")
	}
	c = modest.mustDial(t, h, KindWorkload)
	if _, err := c.Reader.ReadByte(); err != nil {
		t.Errorf("another launch was kept out: %v", err)
	}
	close(release)
	mu.Lock()
	defer mu.Unlock()
	if open[greedy.id] != MaxWorkload || open[modest.id] != 1 {
		t.Error(open)
	}
}

func TestAHomeWithoutAWorkloadAPIClosesItsConnections(t *testing.T) {
	h := NewHome(HomeConfig{})
	defer h.Close()
	c := expect(h, isle.NewID()).mustDial(t, h, KindWorkload)
	if b, err := io.ReadAll(io.LimitReader(c.Reader, 1)); err != nil && !strings.Contains(err.Error(), "closed") || len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
}
