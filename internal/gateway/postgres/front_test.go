package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"isle"
	"isle/internal/gateway"
	"isle/test/lab"
)

// front serves a connection outside until the test ends, to who shows the key.
func front(t *testing.T, f *fake) (addr, ca string) {
	t.Helper()
	root, err := lab.NewCA("gateway")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := root.Issue("localhost", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	p := New(Config{Grammar: parser, Handshake: 2 * time.Second})
	door := &Front{TLS: &tls.Config{Certificates: []tls.Certificate{pair}}, Protocol: p,
		Authenticate: func(_ context.Context, password []byte, source string) (gateway.Caller, error) {
			if string(password) != "the-key" {
				return gateway.Caller{}, isle.Errorf(isle.Refused, "there is no such key")
			}
			return gateway.Caller{Actor: isle.Actor{Kind: isle.Machine, Name: "ci"}, Source: source}, nil
		},
		Serve: func(ctx context.Context, c gateway.Caller, connection string, client net.Conn) error {
			if connection != "orders-db" {
				err := isle.Errorf(isle.NotFound, "there is no connection %s", connection)
				p.Refuse(client, err)
				return err
			}
			f.caller = c
			return p.serve(ctx, client, f)
		}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { door.Accept(ctx, c) })
		}
	})
	t.Cleanup(func() { l.Close(); cancel(); running.Wait() })
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, []byte(root.PEM), 0o600); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String(), path
}

func TestAMachineOutsideComesInOverTLSWithItsKey(t *testing.T) {
	addr, ca := front(t, orders())
	host, port, _ := net.SplitHostPort(addr)
	at := "host=" + host + " port=" + port + " user=ci sslrootcert=" + ca
	for conninfo, want := range map[string]string{
		" dbname=orders-db password=the-key sslmode=verify-full": "42",
		" dbname=orders-db password=another sslmode=verify-full": "password authentication failed for user \"ci\"",
		" dbname=orders-db password=the-key sslmode=disable":     "speaks TLS only",
		" dbname=no-db password=the-key sslmode=require":         "there is no connection no-db",
		" dbname='Not a name' password=the-key sslmode=require":  "name the connection as the database",
	} {
		if out := psql(t, addr, "select 42", "-d", at+conninfo); !strings.Contains(out, want) {
			t.Errorf("%s: %s", conninfo, out)
		}
	}
}

func TestTLSFromTheFirstByteNeedsTheProtocolsName(t *testing.T) {
	addr, ca := front(t, orders())
	c, err := pgx.Connect(t.Context(), "postgres://ci:the-key@"+addr+"/orders-db?sslmode=verify-full&sslnegotiation=direct&sslrootcert="+ca)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	if c.PgConn().Conn().(*tls.Conn).ConnectionState().NegotiatedProtocol != alpn {
		t.Error("another protocol")
	}
	pem, _ := os.ReadFile(ca)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	plain, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool, ServerName: "localhost"})
	if err == nil {
		defer plain.Close()
		if _, err := plain.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("TLS for another protocol goes on: %v", err)
		}
	}
}

func TestACancelFromOutsideIsOfItsOwnKey(t *testing.T) {
	addr, ca := front(t, orders())
	c, err := pgx.Connect(t.Context(), "postgres://ci:the-key@"+addr+"/orders-db?sslmode=verify-full&sslrootcert="+ca)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		for ctx.Err() == nil {
			c.PgConn().CancelRequest(ctx)
			time.Sleep(20 * time.Millisecond)
		}
	}()
	if _, err := c.Exec(t.Context(), "select pg_sleep(60)"); code(err) != "57014" {
		t.Error(err)
	}
}

func TestWhoSaysNothingIsLetGo(t *testing.T) {
	addr, _ := front(t, orders())
	for name, said := range map[string][]byte{
		"nothing":               {},
		"half of a length":      {0, 0},
		"a packet that is long": binary.BigEndian.AppendUint32(nil, 1<<20),
		"HTTP":                  []byte("GET / HTTP/1.1\r\n\r\n"),
		"half of TLS":           {0x16, 3, 1},
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write(said)
		if _, err := io.ReadAll(c); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestProtocol32IsSpokenAndMoreIsNegotiated(t *testing.T) {
	addr := listen(t, orders())
	for version, want := range map[uint32]struct {
		key   int
		minor uint32 // negotiated; 0: not
	}{3 << 16: {4, 0}, 3<<16 | 2: {32, 0}, 3<<16 | 9999: {32, 3<<16 | 2}} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		m := &pgproto3.StartupMessage{ProtocolVersion: version, Parameters: map[string]string{"user": "x", "_pq_.novelty": "1"}}
		if version != 3<<16|9999 {
			delete(m.Parameters, "_pq_.novelty")
		}
		b, err := m.Encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		c.Write(b)
		in := newReader(c, &buffers{}, nil)
		var minor uint32
		key := 0
		for done := false; !done; {
			kind, body, err := nextMessage(in, bufferSize)
			if err != nil {
				t.Fatal(err)
			}
			switch kind {
			case 'v':
				minor = binary.BigEndian.Uint32(body)
				if !strings.Contains(string(body), "_pq_.novelty") {
					t.Errorf("%x: negotiated %q", version, body)
				}
			case 'K':
				key = len(body) - 4
			case 'Z':
				done = true
			}
		}
		if minor != want.minor || key != want.key {
			t.Errorf("version %x: negotiated %x, a key of %d bytes", version, minor, key)
		}
	}
}

func TestGSSEncryptionIsDeclinedBeforeTLSIs(t *testing.T) {
	c, err := net.Dial("tcp", listen(t, orders()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, code := range []uint32{codeGSS, codeTLS} {
		c.Write(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 8), code))
		var b [1]byte
		if _, err := io.ReadFull(c, b[:]); err != nil || b[0] != 'N' {
			t.Errorf("%d is answered %q, %v", code, b, err)
		}
	}
	config, _ := pgconn.ParseConfig("postgres://x@127.0.0.1/?sslmode=disable")
	config.DialFunc = func(context.Context, string, string) (net.Conn, error) { return c, nil }
	config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	if _, err := pgconn.ConnectConfig(t.Context(), config); err != nil {
		t.Error(err)
	}
}
