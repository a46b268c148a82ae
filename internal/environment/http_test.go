package environment

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

func TestWhoeverConnectedBeforeAnUpgradeIsAnswered(t *testing.T) {
	w := newWorld(t)
	m := w.serve(func(c *Config) { c.HTTP = "127.0.0.1:0" })
	m.mu.Lock()
	address := m.web.listener.Addr().String()
	m.mu.Unlock()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted := func() bool {
		m.web.mu.Lock()
		defer m.web.mu.Unlock()
		return len(m.web.busy) > 0
	}
	for !accepted() {
		time.Sleep(time.Millisecond)
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		m.Drain(t.Context())
	}()
	for { // nobody else comes
		late, err := net.Dial("tcp", address)
		if err != nil {
			break
		}
		late.Close()
		time.Sleep(time.Millisecond)
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: nobody.localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("who had connected is not answered: %v", err)
	}
	res.Body.Close()
	<-drained
}
