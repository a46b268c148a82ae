package tcp_test

import (
	"bufio"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"isle"
	"isle/internal/gateway"
	"isle/internal/gateway/gatewaytest"
	"isle/internal/gateway/tcp"
)

// real is what is behind the connection: serve gets each that comes.
func real(t *testing.T, serve func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { defer c.Close(); serve(c) })
		}
	})
	return l.Addr().String()
}

func echo(c net.Conn) {
	io.Copy(c, c)
	c.(*net.TCPConn).CloseWrite()
}

// world has a connection of an address that shop may open.
func world(t *testing.T, address, more string, idle time.Duration) *gatewaytest.World {
	return worldOf(t, address, more, idle)
}

func worldOf(t testing.TB, address, more string, idle time.Duration) *gatewaytest.World {
	return gatewaytest.New(t, document(address, more), map[string]gateway.Protocol{"tcp": tcp.Protocol{Idle: idle}})
}

func document(address, more string) string {
	return fmt.Sprintf(`
connections: {queue: {kind: tcp, address: %q, stage: testing%s}}
roles: {user: {actions: [connection:open], resources: [connection:queue]}}
bindings: [{role: admin, subjects: [human:root]}, {role: user, subjects: [{project: shop, stage: testing}]}]
`, address, more)
}

var shop = gatewaytest.Workload("shop", "testing")

func dial(w *gatewaytest.World) (net.Conn, <-chan error) {
	c, served := w.Connect(shop, "queue")
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return c, served
}

func TestBytesPassWholeAndEachSideEndsByItself(t *testing.T) {
	w := world(t, real(t, echo), ", tls: off", 0)
	c, served := dial(w)
	const size = 8 << 20
	go func() {
		b := make([]byte, 64<<10)
		for range size / len(b) {
			c.Write(b)
		}
		c.(*net.TCPConn).CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, c); n != size || err != nil {
		t.Errorf("%d of %d bytes came back: %v", n, size, err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	w.Sessions.Close()
	if e := w.Log.Entries(isle.ActionSessionClose); len(e) != 1 || e[0].Details["bytes_in"] != fmt.Sprint(size) || e[0].Details["bytes_out"] != fmt.Sprint(size) {
		t.Errorf("%+v", e)
	}
}

func TestAnswersComeAfterTheClientHasSaidAll(t *testing.T) {
	w := world(t, real(t, func(c net.Conn) {
		all, _ := io.ReadAll(c)
		fmt.Fprintf(c, "%d bytes", len(all))
	}), ", tls: off", 0)
	c, _ := dial(w)
	io.WriteString(c, "hello")
	c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c); string(b) != "5 bytes" || err != nil {
		t.Errorf("%q %v", b, err)
	}
}

func TestWhatIsCutOffIsNoEndOfFile(t *testing.T) {
	for name, cut := range map[string]func(w *gatewaytest.World){
		"policy": func(w *gatewaytest.World) { w.Apply("bindings: [{role: admin, subjects: [human:root]}]") },
		"stop":   func(w *gatewaytest.World) { w.Gateway.Close() },
	} {
		w := world(t, real(t, echo), ", tls: off", 0)
		c, _ := dial(w)
		io.WriteString(c, "x")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		cut(w)
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAConnectionThatIsRefusedOrNotThereIsReset(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody listens there now
	w := world(t, l.Addr().String(), ", tls: off", 0)
	c, served := dial(w)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	if err := <-served; isle.CodeOf(err) != isle.Unavailable || !strings.Contains(err.Error(), "connection queue: what is behind it does not answer: dial tcp "+l.Addr().String()) {
		t.Error(err)
	}
	thief, served := w.Connect(gatewaytest.Workload("thief", "testing"), "queue")
	if _, err := thief.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	if err := <-served; isle.CodeOf(err) != isle.Refused {
		t.Error(err)
	}
}

func TestAConnectionWithoutABytePassingEnds(t *testing.T) {
	w := world(t, real(t, echo), ", tls: off", 100*time.Millisecond)
	c, served := dial(w)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	if err := <-served; err == nil || !strings.Contains(err.Error(), "no byte went either way for 100ms") {
		t.Error(err)
	}
}

func TestTheRealThingIsSpokenToByTLSAndVerified(t *testing.T) {
	s := httptest.NewUnstartedServer(nil) // for its certificate, of 127.0.0.1 and example.com
	s.StartTLS()
	defer s.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	address := real(t, func(c net.Conn) {
		secure := tls.Server(c, s.TLS)
		io.Copy(secure, secure)
	})
	indented := strings.ReplaceAll(strings.TrimSpace(ca), "\n", `\n`)
	for more, want := range map[string]string{
		fmt.Sprintf(`, tls: {ca: "%s"}`, indented):                      "",
		fmt.Sprintf(`, tls: {ca: "%s", name: example.com}`, indented):   "",
		fmt.Sprintf(`, tls: {ca: "%s", name: other.example}`, indented): "no TLS with",
		"": "no TLS with", // nobody the machine trusts signed it
	} {
		w := world(t, address, more, 0)
		c, served := dial(w)
		io.WriteString(c, "hello\n")
		line, _ := bufio.NewReader(c).ReadString('\n')
		c.Close()
		err := <-served
		switch {
		case want == "" && (line != "hello\n" || err != nil):
			t.Errorf("%.30s: %q %v", more, line, err)
		case want != "" && (line != "" || err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%.30s: %q %v", more, line, err)
		}
	}
}
