package gateway

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"isle"
)

// helloOf is what crypto/tls says first.
func helloOf(t testing.TB, name string) []byte {
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

// pass has a client send pieces through a grant, and returns what reached the
// other end, what came back, and the error.
func pass(t testing.TB, host string, pieces ...[]byte) (out, back []byte, err error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answer := make(chan []byte, 1)
	go func() {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			answer <- nil
			return
		}
		defer c.Close()
		for _, p := range pieces {
			c.Write(p)
			time.Sleep(time.Millisecond) // so that each is a piece
		}
		c.(*net.TCPConn).CloseWrite()
		b, _ := io.ReadAll(c)
		answer <- b
	}()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	err = PassHello(&buf, c, host)
	if err == nil {
		io.Copy(&buf, c)
	}
	c.Close()
	return buf.Bytes(), <-answer, err
}

// records splits a ClientHello over records of n bytes.
func records(hello []byte, n int) []byte {
	var out []byte
	for b := hello[5:]; len(b) > 0; {
		p := b[:min(n, len(b))]
		b = b[len(p):]
		out = append(append(out, 22, 3, 1, byte(len(p)>>8), byte(len(p))), p...)
	}
	return out
}

func TestTLSIsForTheNameThatWasGranted(t *testing.T) {
	hello := helloOf(t, "api.example.com")
	long := bytes.Clone(hello)
	for name, pieces := range map[string][][]byte{
		"at once": {hello},
		"byte by byte": func() (all [][]byte) {
			for _, b := range hello[:60] {
				all = append(all, []byte{b})
			}
			return append(all, hello[60:])
		}(),
		"in small records": {records(long, 7)},
		"with more behind": {append(bytes.Clone(hello), "more"...)},
	} {
		out, _, err := pass(t, "API.example.com.", pieces...)
		if want := bytes.Join(pieces, nil); err != nil || !bytes.Equal(out, want) {
			t.Errorf("%s: %d bytes of %d pass, %v", name, len(out), len(want), err)
		}
	}
	for name, c := range map[string]struct {
		host  string
		hello []byte
		says  string
	}{
		"another name":            {"api.example.com", helloOf(t, "evil.example"), "the client wants evil.example"},
		"another name, in pieces": {"api.example.com", records(helloOf(t, "evil.example"), 3), "the client wants evil.example"},
		"a name below it":         {"example.com", hello, "the client wants api.example.com"},
		"no name":                 {"api.example.com", helloOf(t, "192.0.2.1"), "no SNI"},
		"cut off":                 {"api.example.com", hello[:40], "broken off"},
		"not the hello first":     {"api.example.com", []byte{22, 3, 3, 0, 4, 2, 0, 0, 0}, "does not begin with a ClientHello"},
		"too large":               {"api.example.com", []byte{22, 3, 1, 0, 4, 1, 1, 0, 0}, "larger than"},
		"another record inside":   {"api.example.com", append(records(hello, 20)[:25], 23, 3, 1, 0, 1, 0), "broken off"},
		"two names":               {"api.example.com", helloWith(extension(0, names("api.example.com", "evil.example"))), "can't be read"},
		"two lists of names":      {"api.example.com", helloWith(append(extension(0, names("api.example.com")), extension(0, names("evil.example"))...)), "can't be read"},
		"a name with NUL":         {"api.example.com", helloWith(extension(0, names("api.example.com\x00.evil"))), "no DNS name"},
		"something behind":        {"api.example.com", helloWith(append(extension(0, names("api.example.com")), 0)), "can't be read"},
	} {
		out, back, err := pass(t, c.host, c.hello)
		if isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), c.says) || len(out) > 0 {
			t.Errorf("%s: %d bytes pass, %v; want %q", name, len(out), err, c.says)
		}
		if !bytes.Equal(back, []byte{21, 3, 3, 0, 2, 2, 112}) {
			t.Errorf("%s: the client is told %v", name, back)
		}
	}
}

func TestWhatIsNoTLSAndWhatIsGrantedByAddressPasses(t *testing.T) {
	for name, c := range map[string]struct {
		host string
		send string
	}{
		"HTTP":                {"api.example.com", "GET / HTTP/1.1\r\n\r\n"},
		"SSH":                 {"api.example.com", "SSH-2.0-x\r\n"},
		"nothing":             {"api.example.com", ""},
		"a byte that differs": {"api.example.com", "\x16\x02hello"},
		"an address":          {"192.0.2.1", string(helloOf(t, "evil.example"))},
		"an address, no name": {"192.0.2.1", string(helloOf(t, "192.0.2.1"))},
	} {
		if out, _, err := pass(t, c.host, []byte(c.send)); err != nil || string(out) != c.send {
			t.Errorf("%s: %q passes, %v", name, out, err)
		}
	}
}

// helloWith makes a ClientHello with the extensions.
func helloWith(extensions []byte) []byte {
	b := append([]byte{3, 3}, make([]byte, 32)...)
	b = append(b, 0, 0, 2, 0x13, 1, 1, 0)
	b = append(append(b, byte(len(extensions)>>8), byte(len(extensions))), extensions...)
	b = append([]byte{1, 0, byte(len(b) >> 8), byte(len(b))}, b...)
	return append([]byte{22, 3, 1, byte(len(b) >> 8), byte(len(b))}, b...)
}

func extension(kind byte, body []byte) []byte {
	return append([]byte{0, kind, byte(len(body) >> 8), byte(len(body))}, body...)
}

func names(all ...string) []byte {
	var list []byte
	for _, n := range all {
		list = append(append(list, 0, byte(len(n)>>8), byte(len(n))), n...)
	}
	return append([]byte{byte(len(list) >> 8), byte(len(list))}, list...)
}

func FuzzClientHello(f *testing.F) {
	f.Add(helloOf(f, "api.example.com"))
	f.Add(records(helloOf(f, "api.example.com"), 9))
	f.Add(helloWith(extension(0, names("api.example.com"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		first, hello, err := readHello(&script{r: bytes.NewReader(b)})
		if err != nil || hello == nil {
			return
		}
		if !bytes.HasPrefix(b, first) {
			t.Fatalf("%x is passed on as %x", b, first)
		}
		// Where crypto/tls reads a name, it is the same.
		tls.Server(&script{r: bytes.NewReader(b)}, &tls.Config{GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
			if strings.ToLower(strings.TrimSuffix(i.ServerName, ".")) != hello.Name {
				t.Errorf("%x is for %q, to crypto/tls for %q", b, hello.Name, i.ServerName)
			}
			return nil, io.EOF
		}}).Handshake()
	})
}

// A script is a connection whose other end has said all that it will.
type script struct {
	net.Conn
	r io.Reader
}

func (s *script) Read(p []byte) (int, error)     { return s.r.Read(p) }
func (*script) Write(p []byte) (int, error)      { return len(p), nil }
func (*script) Close() error                     { return nil }
func (*script) SetReadDeadline(time.Time) error  { return nil }
func (*script) SetWriteDeadline(time.Time) error { return nil }
func (*script) SetDeadline(time.Time) error      { return nil }
