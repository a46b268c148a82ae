package airlock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// open connects to the echo server outside, through a grant.
func (h *house) open(ns, name string) net.Conn {
	h.t.Helper()
	var c net.Conn
	inside(h.t, ns, func() error {
		a, err := addressOf(name)
		if err != nil {
			return err
		}
		c, err = dialer.Dial("tcp4", hostPort(a, h.port))
		return err
	})
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

func TestANameThatDoesNotResolveResetsTheConnectionAndSaysWhy(t *testing.T) {
	h := newHouse(t)
	id, ns := h.enter(h.granted("nowhere.example.com"))
	inside(t, ns, func() error {
		a, err := addressOf("nowhere.example.com")
		if err != nil {
			return err
		}
		if err := echo(hostPort(a, h.port)); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ENOTCONN) {
			return fmt.Errorf("%v, want a reset", err) // seen by whichever call comes after it
		}
		return nil
	})
	d := h.door(id, fmt.Sprintf("nowhere.example.com:%d", h.port), "tcp", "open")
	for range 300 {
		if d.Active == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
		d = h.door(id, d.Destination, "tcp", "open")
	}
	if !strings.Contains(d.Reason, "does not resolve") || d.Active != 0 {
		t.Errorf("%+v does not say why", d)
	}
}

func TestClosingAnAirlockEndsItsConnections(t *testing.T) {
	h := newHouse(t)
	id, ns := h.enter(h.granted("api.example.com"))
	c := h.open(ns, "api.example.com")
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if d := h.door(id, fmt.Sprintf("api.example.com:%d", h.port), "tcp", "open"); d.Active != 1 {
		t.Errorf("%+v: want one active", d)
	}
	if err := h.Close(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read: %v, want the end", err)
	}
}

func TestRevokingAGrantEndsItsConnectionsAndNoOthers(t *testing.T) {
	h := newHouse(t)
	id, ns := h.enter(h.granted("one.example.com"), h.granted("two.example.com"))
	one, two := h.open(ns, "one.example.com"), h.open(ns, "two.example.com")
	defer one.Close()
	defer two.Close()
	for _, c := range []net.Conn{one, two} {
		c.Write([]byte("x"))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Open(context.Background(), id, granting(h.granted("two.example.com"))); err != nil {
		t.Fatal(err)
	}
	if _, err := one.Read(make([]byte, 1)); err == nil {
		t.Error("the revoked grant's connection goes on")
	}
	two.Write([]byte("y"))
	if _, err := io.ReadFull(two, make([]byte, 1)); err != nil {
		t.Errorf("the other grant's connection: %v", err)
	}
}

func TestMuchDataCrossesWhole(t *testing.T) {
	h := newHouse(t)
	_, ns := h.enter(h.granted("api.example.com"))
	c := h.open(ns, "api.example.com")
	defer c.Close()
	const size = 32 << 20
	failed := make(chan error, 1)
	go func() {
		b := make([]byte, 64<<10)
		for i := range size / len(b) {
			b[0] = byte(i)
			if _, err := c.Write(b); err != nil {
				failed <- err
				return
			}
		}
		failed <- c.(*net.TCPConn).CloseWrite()
	}()
	n, err := io.Copy(io.Discard, c)
	if n != size || err != nil {
		t.Errorf("%d of %d bytes came back: %v", n, size, err)
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
}
