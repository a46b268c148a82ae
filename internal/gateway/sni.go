package gateway

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"isle"
)

// TLS through an egress grant stays end to end: what is inside it, the gateway
// does not see. But what a client says first, in the clear, is for whom it
// takes the other end (RFC 6066, section 3), and one address often serves many
// names. So a ClientHello has to say the name that was granted.

const (
	// helloTime bounds a ClientHello, from its first byte on.
	helloTime = 10 * time.Second
	// maxHello bounds a ClientHello in bytes. Those with keys that withstand
	// quantum computers have about 2 KiB.
	maxHello = 16 << 10

	recordHandshake  = 22
	alertFatal       = 2
	unrecognizedName = 112 // RFC 6066, section 3
)

// A Hello is what a ClientHello says.
type Hello struct {
	// Name is the name of the server that the client wants, in lower case and
	// without a last dot; "" if it says none. Where the client encrypts its
	// hello (ECH), it is the outer one's: what is inside only the server can read.
	Name string
}

// PassHello reads what a client says first, and passes it on to outside if it
// is no TLS, or a ClientHello for the host that was granted; a host that is an
// address may be called by any name, or none. Otherwise it tells the client by
// an alert, and fails with isle.Refused. The name in the error is a valid DNS
// name, or left out. What comes afterwards is for the caller to copy.
func PassHello(outside io.Writer, inside net.Conn, host string) error {
	first, hello, err := readHello(inside)
	if errors.Is(err, errNoTLS) {
		err = nil
		hello = nil
	}
	if err != nil {
		if isle.CodeOf(err) == isle.Refused {
			alert(inside)
		}
		return err
	}
	if hello != nil && net.ParseIP(host) == nil {
		if err := hello.is(host); err != nil {
			alert(inside)
			return err
		}
	}
	if len(first) > 0 {
		if _, err := outside.Write(first); err != nil {
			return err
		}
	}
	return nil
}

// is says why the hello is not for the host.
func (h *Hello) is(host string) error {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if h.Name == host {
		return nil
	}
	if h.Name == "" {
		return isle.Errorf(isle.Refused, "TLS to %s is refused: the client does not say that it wants %s (no SNI)", host, host)
	}
	return isle.Errorf(isle.Refused, "TLS to %s is refused: the client wants %s (SNI)", host, h.Name).
		WithHint("connect to the name that is granted, or grant %s", h.Name)
}

// alert tells the client, as the server would that does not know the name.
func alert(c net.Conn) {
	c.SetWriteDeadline(time.Now().Add(time.Second))
	c.Write([]byte{21, 3, 3, 0, 2, alertFatal, unrecognizedName})
}

// errNoTLS is what a beginning is that is no ClientHello.
var errNoTLS = errors.New("no ClientHello")

// readHello reads a connection's beginning: all of a ClientHello, over however
// many records, or as much as shows that it is none.
func readHello(c net.Conn) (first []byte, hello *Hello, err error) {
	first = make([]byte, 0, 1<<10)
	more := func(n int) error { // until first has n bytes
		for len(first) < n {
			if cap(first) < n {
				first = append(make([]byte, 0, n+512), first...)
			}
			m, err := c.Read(first[len(first):cap(first)])
			first = first[:len(first)+m]
			if err != nil && len(first) < n {
				return err
			}
		}
		return nil
	}
	if err := more(1); err != nil { // for as long as it says nothing
		if errors.Is(err, io.EOF) {
			return first, nil, errNoTLS
		}
		return nil, nil, err
	}
	if first[0] != recordHandshake {
		return first, nil, errNoTLS
	}
	c.SetReadDeadline(time.Now().Add(helloTime))
	defer c.SetReadDeadline(time.Time{})
	var message []byte
	for at := 0; ; {
		if err := more(at + 5); err != nil {
			return beginning(first, err)
		}
		size := int(binary.BigEndian.Uint16(first[at+3:]))
		switch {
		case first[at] != recordHandshake || first[at+1] != 3 || size == 0 || size > maxHello:
			if at == 0 {
				return first, nil, errNoTLS
			}
			return nil, nil, isle.Errorf(isle.Refused, "TLS is refused: the ClientHello is broken off")
		case len(message)+size > maxHello:
			return nil, nil, isle.Errorf(isle.Refused, "TLS is refused: the ClientHello is larger than %d bytes", maxHello)
		}
		if err := more(at + 5 + size); err != nil {
			return beginning(first, err)
		}
		message = append(message, first[at+5:at+5+size]...)
		at += 5 + size
		if message[0] != 1 {
			return nil, nil, isle.Errorf(isle.Refused, "TLS is refused: it does not begin with a ClientHello")
		}
		if len(message) < 4 {
			continue
		}
		length := int(message[1])<<16 | int(message[2])<<8 | int(message[3])
		if length > maxHello {
			return nil, nil, isle.Errorf(isle.Refused, "TLS is refused: the ClientHello is larger than %d bytes", maxHello)
		}
		if len(message) >= 4+length {
			hello, err := parseHello(message[4 : 4+length])
			return first, hello, err
		}
	}
}

// beginning is what a connection is that ended, or went silent, in the middle
// of what looks like a ClientHello.
func beginning(first []byte, err error) ([]byte, *Hello, error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, nil, isle.Errorf(isle.Refused, "TLS is refused: the ClientHello did not come within %s", helloTime)
	}
	if errors.Is(err, io.EOF) {
		return nil, nil, isle.Errorf(isle.Refused, "TLS is refused: the ClientHello is broken off")
	}
	return nil, nil, err
}

// parseHello reads a ClientHello (RFC 8446, section 4.1.2). What it can't read
// to the end it refuses: a server that is more generous could read another name.
func parseHello(b []byte) (*Hello, error) {
	broken := isle.Errorf(isle.Refused, "TLS is refused: the ClientHello can't be read")
	r := reader(b)
	r.skip(2 + 32)        // version, random
	r.vector(1)           // session ID
	r.vector(2)           // cipher suites
	r.vector(1)           // compression
	if r.ok && r.done() { // before TLS 1.2 there may be no extensions
		return &Hello{}, nil
	}
	extensions := r.vector(2)
	if !r.ok || !r.done() {
		return nil, broken
	}
	hello := &Hello{}
	named := false
	for !extensions.done() {
		kind := extensions.number(2)
		body := extensions.vector(2)
		if !extensions.ok {
			return nil, broken
		}
		if kind != 0 { // server_name
			continue
		}
		names := body.vector(2)
		form := names.number(1)
		name := names.vector(2)
		if named || !body.ok || !body.done() || !names.ok || !names.done() || form != 0 {
			return nil, broken
		}
		named = true
		hello.Name = strings.ToLower(strings.TrimSuffix(string(name.left), "."))
		if !dnsName(hello.Name) {
			return nil, isle.Errorf(isle.Refused, "TLS is refused: the name that the client wants (SNI) is no DNS name")
		}
	}
	return hello, nil
}

// dnsName reports whether s, in lower case, can be a host's name.
func dnsName(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for _, c := range []byte(label) {
			if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return len(s) <= 253
}

// A wire reads what TLS writes: numbers and vectors with their length in front.
type wire struct {
	left []byte
	ok   bool
}

func reader(b []byte) *wire { return &wire{b, true} }

func (w *wire) done() bool { return len(w.left) == 0 }

func (w *wire) skip(n int) []byte {
	if !w.ok || n > len(w.left) {
		w.ok, w.left = false, nil
		return nil
	}
	b := w.left[:n]
	w.left = w.left[n:]
	return b
}

func (w *wire) number(size int) (n int) {
	for _, b := range w.skip(size) {
		n = n<<8 | int(b)
	}
	return n
}

// vector returns what has its length, of size bytes, in front.
func (w *wire) vector(size int) *wire {
	b := w.skip(w.number(size))
	return &wire{b, w.ok}
}
