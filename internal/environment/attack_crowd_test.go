package environment

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"isle"
	"isle/internal/spec"
)

// An addressed tells users apart by the address that they come from, and keeps who
// comes from 127.0.0.9 waiting.
type addressed struct{ wait chan struct{} }

func (a addressed) Visit(client, _ net.Addr) (who func() string, may func(context.Context, isle.Ref, string) error) {
	host, _, _ := net.SplitHostPort(client.String())
	return func() string { return host }, func(context.Context, isle.Ref, string) error {
		if host == "127.0.0.9" {
			<-a.wait
			return isle.Errorf(isle.Refused, "not you")
		}
		return nil
	}
}

// dialFrom connects as the user of an address.
func dialFrom(t *testing.T, user, address string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(user)}}
	c, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	return c
}

// echoed says whether what is sent comes back.
func echoed(c net.Conn) error {
	fmt.Fprint(c, "x")
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

func TestNobodyHoldsAllThePlacesOfAPort(t *testing.T) {
	w := newWorld(t)
	w.inside = echo
	m := w.serve(func(c *Config) { c.Visits = addressed{} })
	req := shop("shop")
	req.Spec.Services[0].Ports = []spec.Port{{Name: "web", Number: 8080}, {Name: "admin", Number: 8081}}
	ports := mustUp(t, m, req).Environment.Services[1].Ports
	web, admin := fmt.Sprintf("127.0.0.1:%d", ports[0].Host), fmt.Sprintf("127.0.0.1:%d", ports[1].Host)
	var held []net.Conn
	for range maxConnections {
		c := dialFrom(t, "127.0.0.2", web)
		if err := echoed(c); err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	if err := echoed(dialFrom(t, "127.0.0.2", web)); err == nil {
		t.Error("who holds all of them gets one more")
	}
	if err := echoed(held[0]); err != nil { // it is not the one that rests for the longest time
		t.Fatal(err)
	}
	for _, address := range []string{web, admin} {
		if err := echoed(dialFrom(t, "127.0.0.3", address)); err != nil {
			t.Errorf("somebody else has no place at %s: %v", address, err)
		}
	}
	if err := echoed(held[0]); err != nil {
		t.Errorf("what is in use has gone for it: %v", err)
	}
	if err := echoed(held[1]); err == nil {
		t.Error("what rests for the longest time is still there")
	}
}

// Who may not is not in the way of those who may, however many come at once.
func TestWhoMayNotTakesNoPlaceOfAPort(t *testing.T) {
	w := newWorld(t)
	w.inside = echo
	wait := make(chan struct{})
	m := w.serve(func(c *Config) { c.Visits = addressed{wait} })
	req := shop("shop")
	req.Spec.Services[0].Ports = []spec.Port{{Name: "web", Number: 8080}}
	address := fmt.Sprintf("127.0.0.1:%d", mustUp(t, m, req).Environment.Services[1].Ports[0].Host)
	for range maxConnections {
		dialFrom(t, "127.0.0.9", address)
	}
	served := make(chan error, 1)
	c := dialFrom(t, "127.0.0.3", address)
	go func() { served <- echoed(c) }()
	select {
	case err := <-served:
		t.Errorf("it did not wait for its turn: %v", err)
	case <-time.After(100 * time.Millisecond): // what is wrong is found in this time, mostly
		close(wait)
		if err := <-served; err != nil {
			t.Errorf("it is not served: %v", err)
		}
	}
}

func TestNobodyHoldsAllTheConnectionsByName(t *testing.T) {
	w := newWorld(t)
	m := w.serve(func(c *Config) { c.HTTP, c.Visits = "127.0.0.1:0", addressed{} })
	m.mu.Lock()
	address := m.web.listener.Addr().String()
	m.mu.Unlock()
	asks := func(c net.Conn) error {
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: web.nobody.localhost\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(res.Body)
		if err == nil && !strings.Contains(string(b), "there is no environment") {
			err = fmt.Errorf("%s: %s", res.Status, b)
		}
		return err
	}
	var held []net.Conn
	for range maxNameConnections - 1 {
		c := dialFrom(t, "127.0.0.2", address)
		if err := asks(c); err != nil { // and rests from then on
			t.Fatal(err)
		}
		held = append(held, c)
	}
	other := dialFrom(t, "127.0.0.3", address)
	for range 2 {
		if err := asks(other); err != nil {
			t.Errorf("somebody else has no place: %v", err)
		}
		if err := asks(dialFrom(t, "127.0.0.2", address)); err != nil {
			t.Errorf("who holds all of them does so instead of others of their own: %v", err)
		}
	}
	if err := asks(held[0]); err == nil {
		t.Error("what rests for the longest time is still there")
	}
}

// A fickle lets in whom it says.
type fickle struct{ out *atomic.Value }

func (f fickle) Visit(client, _ net.Addr) (who func() string, may func(context.Context, isle.Ref, string) error) {
	host, _, _ := net.SplitHostPort(client.String())
	return func() string { return host }, func(context.Context, isle.Ref, string) error {
		if f.out.Load() == host {
			return isle.Errorf(isle.Refused, "not any more")
		}
		return nil
	}
}

// Who has lost their role does not visit by a connection that they keep.
func TestWhoMayNotVisitAnyMoreKeepsNoConnection(t *testing.T) {
	w := newWorld(t)
	w.inside = echo
	var out atomic.Value
	m := w.serve(func(c *Config) { c.Visits = fickle{&out} })
	req := shop("shop")
	req.Spec.Services[0].Ports = []spec.Port{{Name: "web", Number: 8080}}
	address := fmt.Sprintf("127.0.0.1:%d", mustUp(t, m, req).Environment.Services[1].Ports[0].Host)
	lost, kept := dialFrom(t, "127.0.0.2", address), dialFrom(t, "127.0.0.3", address)
	for _, c := range []net.Conn{lost, kept} {
		if err := echoed(c); err != nil {
			t.Fatal(err)
		}
	}
	out.Store("127.0.0.2")
	m.PolicyChanged(t.Context())
	if err := echoed(lost); err == nil {
		t.Error("it is served still")
	}
	if err := echoed(kept); err != nil {
		t.Error(err)
	}
}

// What goes on by name, as over a connection that was upgraded, ends too.
func TestWhoMayNotVisitAnyMoreIsAnsweredNoMoreByName(t *testing.T) {
	asked := make(chan struct{})
	inside := http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done() // it answers as long as it is asked
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go inside.Serve(ln)
	defer inside.Close()
	w := newWorld(t)
	w.inside = func(int) (io.ReadWriteCloser, error) { return net.Dial("tcp", ln.Addr().String()) }
	var out atomic.Value
	m := w.serve(func(c *Config) { c.HTTP, c.Visits = "127.0.0.1:0", fickle{&out} })
	req := shop("shop")
	req.Spec.Services[0].Ports = []spec.Port{{Name: "web", Number: 8080}}
	mustUp(t, m, req)
	m.mu.Lock()
	address := m.web.listener.Addr().String()
	m.mu.Unlock()
	c := dialFrom(t, "127.0.0.2", address)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: web.shop.localhost\r\n\r\n")
	<-asked
	out.Store("127.0.0.2")
	m.PolicyChanged(t.Context())
	if _, err := c.Read(make([]byte, 1)); err != nil { // it is told that there is no answer, or cut
		if end, ok := err.(net.Error); ok && end.Timeout() {
			t.Error("it goes on")
		}
	}
}
