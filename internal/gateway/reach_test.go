package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"isle"
	"isle/internal/policy"
)

// doorTo is a door to an address, of a gateway that resolves every name to to.
func doorTo(address string, c Config, to ...string) *Door {
	if to != nil {
		c.Resolve = resolver(to...)
	}
	c.Timeout = 200 * time.Millisecond
	return &Door{gateway: New(c), name: "orders-db", connection: policy.Connection{Name: "orders-db", Kind: "tcp", Address: address}}
}

func TestAConnectionLeadsWhereThePolicySaysAndNowhereElse(t *testing.T) {
	refused := func(what string, d *Door) {
		t.Helper()
		if c, err := d.Dial(t.Context()); isle.CodeOf(err) != isle.Refused {
			t.Errorf("%s: %v %v", what, c, err)
		}
	}
	// What answers for a cloud's machine itself is reached by no name, whoever answers for it.
	for _, a := range []string{"169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "fe80::1%lo"} {
		refused(a+" by a name", doorTo("db.example:80", Config{}, a))
	}
	for _, a := range []string{"0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "240.0.0.1", "ff02::1"} {
		refused(a+" by a name", doorTo("db.example:80", Config{}, a))
		refused(a, doorTo(net.JoinHostPort(a, "80"), Config{}))
	}
	// The server itself, and what is closed to the caller.
	all := Config{Listening: func(to netip.AddrPort) bool { return to.Port() == 80 }}
	refused("the server's listener", doorTo("127.0.0.1:80", all))
	refused("the server's listener by a name", doorTo("db.example:80", all, "127.0.0.1"))
	refused("the server's listener by another address", doorTo("db.example:80", all, "::ffff:127.0.0.1"))
	refused("what is closed", doorTo("127.0.0.1:80", Config{Closed: func(isle.ID, netip.AddrPort) string { return "a published port of another stage" }}))

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for what, d := range map[string]*Door{
		"a private address":            doorTo(l.Addr().String(), all),
		"a private address by a name":  doorTo("db.example:"+port, all, "127.0.0.1"),
		"a name with several, one bad": doorTo("db.example:"+port, all, "169.254.169.254", "127.0.0.1"),
	} {
		c, err := d.Dial(t.Context())
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		c.Close()
	}
	// Named as it is, a link-local address is the policy's own doing.
	d := doorTo("169.254.0.9:9", Config{})
	if reason, err := d.gateway.closedTo(d, netip.MustParseAddrPort("169.254.0.9:9"), true); reason != "" || err != nil {
		t.Error(reason, err)
	}
	l.Close()
	_, err = doorTo("127.0.0.1:"+port, Config{}).Dial(t.Context())
	if isle.CodeOf(err) != isle.Unavailable || !strings.Contains(err.Error(), "connection orders-db: what is behind it does not answer: dial tcp 127.0.0.1:"+port) || strings.Contains(err.Error(), "egress") {
		t.Error(err)
	}
	// Whoever reads the log needs to know where; whoever comes does not.
	for _, d := range []*Door{
		doorTo("127.0.0.1:"+port, Config{}), doorTo("db.internal:"+port, Config{}, "127.0.0.1"), doorTo("db.internal:80", all, "127.0.0.1"),
		doorTo("db.internal:80", Config{Resolve: func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }}),
	} {
		_, err := d.Dial(t.Context())
		told := Told(err)
		if isle.CodeOf(told) != isle.CodeOf(err) || strings.Contains(told.Error(), "127.0.0.1") || strings.Contains(told.Error(), "db.internal") || !strings.Contains(err.Error(), "127.0.0.1") && !strings.Contains(err.Error(), "no such host") {
			t.Errorf("%v is told as %v", err, told)
		}
	}
}

// A stream is one that an isle-init gives: without deadlines.
type stream struct {
	io.Reader
	io.Writer
	closeWrite, close func() error
}

func (s stream) Close() error      { return s.close() }
func (s stream) CloseWrite() error { return s.closeWrite() }

func TestAServiceIsReachedOverItsLineWithAllThatAConnectionHas(t *testing.T) {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	closed := make(chan struct{})
	var asked string
	d := doorTo("", Config{Forward: func(_ context.Context, c Caller, connection string, ref isle.Ref, service string, port int) (io.ReadWriteCloser, error) {
		asked = fmt.Sprint(c.Actor, " ", connection, " ", ref, " ", service, " ", port)
		return stream{inR, outW, outW.Close, func() error {
			select {
			case <-closed:
			default:
				close(closed)
			}
			inR.Close()
			return outW.Close()
		}}, nil
	}})
	d.caller.Actor = isle.Actor{Kind: isle.Workload, Name: "shop@testing"}
	d.connection = policy.Connection{Name: "orders-db", Kind: "postgres", Environment: "data", Service: "db", Stage: "testing"}
	c, err := d.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if asked != "workload:shop@testing orders-db data db 5432" {
		t.Errorf("%q", asked)
	}
	c.SetReadDeadline(time.Now().Add(-time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || !err.(net.Error).Timeout() {
		t.Errorf("a deadline means nothing: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	go inW.Write([]byte("answer"))
	b := make([]byte, 6)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "answer" {
		t.Errorf("%q %v", b, err)
	}
	go func() {
		c.Write([]byte("question"))
		c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	if q, err := io.ReadAll(outR); err != nil || !bytes.Equal(q, []byte("question")) {
		t.Errorf("%q %v", q, err)
	}
	inW.Close()
	if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil {
		t.Errorf("%q %v", rest, err)
	}
	<-closed
	c.Close()
}

func TestALineIsClosedOnceNobodyUsesIt(t *testing.T) {
	inR, inW := io.Pipe()
	defer inW.Close()
	closed := make(chan struct{})
	var sent bytes.Buffer
	line := stream{inR, &sent, func() error { return nil }, sync.OnceValue(func() error { close(closed); return inR.Close() })}
	c, err := asConn(line)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "bye")
	c.(interface{ CloseWrite() error }).CloseWrite() // the service goes on as if nothing were
	c.Close()
	<-closed
	if sent.String() != "bye" {
		t.Errorf("%q was sent", sent.String())
	}
}
