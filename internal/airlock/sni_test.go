package airlock

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// clientHello is what crypto/tls says first.
func clientHello(t *testing.T, name string) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		tls.Client(far, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
		far.Close()
	}()
	b := make([]byte, 16<<10)
	n, err := near.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func TestTLSThroughAGrantIsForItsNameAndNoOther(t *testing.T) {
	h := newHouse(t)
	id, ns := h.enter(h.granted("api.example.com"))
	send := func(hello []byte) []byte {
		c := h.open(ns, "api.example.com")
		defer c.Close()
		if _, err := c.Write(hello); err != nil {
			t.Fatal(err)
		}
		c.(*net.TCPConn).CloseWrite()
		b, _ := io.ReadAll(c)
		return b
	}
	if hello := clientHello(t, "api.example.com"); !bytes.Equal(send(hello), hello) {
		t.Error("a ClientHello for the granted name is not passed on as it is")
	}
	if got := send(clientHello(t, "evil.example")); !bytes.Equal(got, []byte{21, 3, 3, 0, 2, 2, 112}) {
		t.Errorf("for another name the client is told %v", got)
	}
	destination := fmt.Sprintf("api.example.com:%d", h.port)
	d := h.door(id, destination, "tls", "refused")
	if d.Count != 1 || !strings.Contains(d.Reason, "the client wants evil.example") {
		t.Errorf("%+v", d)
	}
	for range 300 { // the connection is counted out a moment later
		if d = h.door(id, destination, "tcp", "open"); strings.Contains(d.Reason, "evil.example") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%+v does not say why", d)
}
