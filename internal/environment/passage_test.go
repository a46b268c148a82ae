package environment

import (
	"bytes"
	"context"
	"net"
	"sync"
	"testing"
)

// A told is a client's end that keeps what it is told; each is called before.
type told struct {
	net.Conn
	each func()

	mu   sync.Mutex // guards what follows
	said bytes.Buffer
}

func (c *told) Write(b []byte) (int, error) {
	c.each()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.said.Write(b)
}

func (c *told) Close() error { return nil }

// An unasked is an instance that says something that nobody has asked for, and ends.
type unasked struct {
	bytes.Reader
	before func()
}

func (u *unasked) Read(b []byte) (int, error) {
	n, err := u.Reader.Read(b)
	if n > 0 {
		u.before()
	}
	return n, err
}
func (u *unasked) Write(b []byte) (int, error) { return len(b), nil }
func (u *unasked) Close() error                { return nil }

const tired = "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"

// A reverse proxy would give the answer to whoever asks next.
func TestWhatOneInstanceSaysIsNotTheAnswerOfAnother(t *testing.T) {
	client, old, next := &told{each: func() {}}, &unasked{}, &unasked{}
	ctx, cancel := context.WithCancel(t.Context())
	c := &passage{client: client, ctx: ctx, cancel: cancel, inside: old}
	old.Reader.Reset([]byte(tired))
	old.before = func() { // the client was led elsewhere meanwhile
		c.mu.Lock()
		defer c.mu.Unlock()
		c.inside = next
	}
	c.pump(old)
	if got := client.said.String(); got != "" {
		t.Errorf("the client is told %q", got)
	}
}

func TestAClientThatWasToldWhatItDidNotAskForStaysWhereItIs(t *testing.T) {
	client, inside := &told{}, &unasked{before: func() {}}
	ctx, cancel := context.WithCancel(t.Context())
	c := &passage{client: client, ctx: ctx, cancel: cancel, inside: inside}
	client.each = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.turns.between() {
			t.Error("it can be led to another instance before it is told")
		}
		c.inside = nil // the end of it is not the matter
	}
	inside.Reader.Reset([]byte(tired))
	c.pump(inside)
	if got := client.said.String(); got != tired {
		t.Errorf("the client is told %q", got)
	}
}
