package postgres

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"isle/internal/policy"
)

// liar listens as a server behind that answers a start-up packet with what it is
// told to. It reports all that it is sent.
func liar(t *testing.T, answers ...func(received []byte) []byte) (addr string, sent func() []byte) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if p, err := readPacket(c); err != nil || len(p) == 0 {
			return
		}
		b := make([]byte, 64<<10)
		n := 0
		for _, a := range answers {
			c.Write(a(b[:n]))
			c.SetReadDeadline(time.Now().Add(time.Second))
			if n, err = c.Read(b); err != nil {
				return
			}
			got.Write(b[:n])
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String(), func() []byte { l.Close(); <-done; return got.Bytes() }
}

func frame(kind byte, body ...byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(4+len(body))), body...)
}

func auth(kind byte, body ...byte) []byte {
	return frame('R', append([]byte{0, 0, 0, kind}, body...)...)
}

func say(b []byte) func([]byte) []byte { return func([]byte) []byte { return b } }

// challenge answers a SCRAM first message.
func challenge(salt string, iterations string) func([]byte) []byte {
	return func(first []byte) []byte {
		_, nonce, _ := strings.Cut(string(first), "r=")
		return auth(authSASLContinue, []byte("r="+nonce+"more,s="+salt+",i="+iterations)...)
	}
}

func TestAServerBehindThatLiesLearnsNoPassword(t *testing.T) {
	salt := base64.StdEncoding.EncodeToString([]byte("salt"))
	sasl := say(auth(authSASL, []byte("SCRAM-SHA-256\x00\x00")...))
	ready := append(auth(authOK), frame('Z', 'I')...)
	for name, c := range map[string]struct {
		answers []func([]byte) []byte
		want    string
	}{
		"it asks for the password in the clear":   {[]func([]byte) []byte{say(auth(authCleartext))}, "it is not sent"},
		"it goes on before it lets in":            {[]func([]byte) []byte{say(frame('Z', 'I'))}, "before it has let us in"},
		"it lets in without knowing the password": {[]func([]byte) []byte{sasl, challenge(salt, "4096"), say(ready)}, "without showing that it knows the password"},
		"its signature is another's":              {[]func([]byte) []byte{sasl, challenge(salt, "4096"), say(auth(authSASLFinal, []byte("v=AAAA")...))}, "does not know the password"},
		"it wants few iterations":                 {[]func([]byte) []byte{sasl, challenge(salt, "1")}, "iterations"},
		"it wants very many iterations":           {[]func([]byte) []byte{sasl, challenge(salt, "99999999")}, "iterations"},
		"it wants another nonce":                  {[]func([]byte) []byte{sasl, say(auth(authSASLContinue, []byte("r=x,s="+salt+",i=4096")...))}, "nonce"},
		"it asks for two methods":                 {[]func([]byte) []byte{say(auth(authMD5, 1, 2, 3, 4)), say(auth(authCleartext))}, "asks twice"},
		"it offers mechanisms that are not known": {[]func([]byte) []byte{say(auth(authSASL, []byte("PLAIN\x00\x00")...))}, "none of which is known"},
		"it sends a message that is too long":     {[]func([]byte) []byte{say([]byte{'N', 0x7f, 0xff, 0xff, 0xff})}, "too large"},
		"it sends an impossible length":           {[]func([]byte) []byte{say([]byte{'R', 0, 0, 0, 1})}, "impossible length"},
		"it wants Kerberos":                       {[]func([]byte) []byte{say(auth(7))}, "which is not known here"},
		"it sends rows instead of letting us in":  {[]func([]byte) []byte{say(frame('D', 0, 0))}, "while logging in"},
	} {
		t.Run(name, func(t *testing.T) {
			f := orders()
			f.connection.TLS.Off = true
			addr, sent := liar(t, c.answers...)
			f.addr = addr
			out := psql(t, listen(t, f), "select 1")
			if !strings.Contains(out, c.want) {
				t.Errorf("psql printed %s", out)
			}
			if b := sent(); bytes.Contains(b, []byte("geheim")) {
				t.Errorf("it was sent %q", b)
			}
		})
	}
}

func TestAServerWithoutTLSIsNotSpokenTo(t *testing.T) {
	f := orders()
	addr, sent := liar(t, say([]byte("N")))
	f.addr = addr
	if out := psql(t, listen(t, f), "select 1"); !strings.Contains(out, "no TLS with the server behind") {
		t.Error(out)
	}
	if b := sent(); len(b) > 0 {
		t.Errorf("it was sent %q", b)
	}
}

func TestAnAnswerThatFitsNoQuestionEndsTheSession(t *testing.T) {
	for name, answer := range map[string][]byte{
		"a second answer":         append(frame('Z', 'I'), frame('Z', 'I')...),
		"ParseComplete":           frame('1'),
		"rows of a COPY of both":  frame('W', 0, 0, 0),
		"an impossible length":    {'T', 0, 0, 0, 0},
		"a status of two letters": frame('Z', 'I', 'I'),
	} {
		client, a := net.Pipe()
		behind, b := net.Pipe()
		p := New(Config{Grammar: parser})
		f := orders()
		s := &exchange{p: p, door: f, connection: f.connection, client: a, server: b, status: 'I', settings: map[string]string{"client_encoding": "UTF8"}}
		s.ctx, s.end = context.WithCancelCause(t.Context())
		s.outlet.conn = a
		s.side = p.newSide(f, f.connection, "", "")
		s.reader = p.readers.of(f.connection)
		s.up = splice{in: newReader(a, &p.buffers, p.large), write: s.send}
		s.down = splice{in: newReader(b, &p.buffers, p.large), write: s.carry}
		ended := make(chan error, 1)
		go func() { ended <- s.serve() }()
		go io.Copy(io.Discard, client)
		q, _ := (&pgproto3.Query{String: "select 1"}).Encode(nil)
		go client.Write(q)
		if _, err := io.ReadFull(behind, make([]byte, len(q))); err != nil {
			t.Fatal(err)
		}
		go behind.Write(answer)
		if err := <-ended; err == nil {
			t.Errorf("%s: the session ended well", name)
		}
	}
}

func FuzzStartup(f *testing.F) {
	b, _ := (&pgproto3.StartupMessage{ProtocolVersion: 3 << 16, Parameters: map[string]string{"user": "x", "options": "-c a=b"}}).Encode(nil)
	f.Add(b[4:])
	f.Add(binary.BigEndian.AppendUint32(nil, codeCancel))
	f.Fuzz(func(t *testing.T, packet []byte) {
		s, err := parseStartup(packet)
		if err != nil || s.Cancel != nil {
			return
		}
		if out, err := parameters(policy.Connection{Name: "orders-db"}, s.Parameters); err == nil {
			for name := range out {
				if !harmless(name) {
					t.Errorf("%q passes", name)
				}
			}
		}
		s.negotiated(nil)
	})
}

func FuzzBind(f *testing.F) {
	b, _ := (&pgproto3.Bind{PreparedStatement: "s", Parameters: [][]byte{[]byte("1"), nil}, ParameterFormatCodes: []int16{0, 1}, ResultFormatCodes: []int16{1}}).Encode(nil)
	f.Add(b[headerSize:])
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := parseBind(body, nil)
		var want pgproto3.Bind
		if err != nil || want.Decode(body) != nil {
			return // pgproto3 takes what is more, or less, than a Bind
		}
		if string(got.statement) != want.PreparedStatement || string(got.portal) != want.DestinationPortal || len(got.params) != len(want.Parameters) {
			t.Fatalf("%+v for %+v", got, want)
		}
		for i, p := range got.params {
			if string(p.Value) != string(want.Parameters[i]) || p.Null != (want.Parameters[i] == nil) {
				t.Errorf("parameter %d: %+v for %q", i, p, want.Parameters[i])
			}
		}
	})
}

// chunks gives its bytes in pieces.
type chunks struct {
	net.Conn
	b    []byte
	size int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.size)], c.b)
	c.b = c.b[n:]
	return n, nil
}

type plenty struct{}

func (plenty) TryAcquire(n int64) bool { return n < 1<<20 }
func (plenty) Release(int64)           {}

func FuzzFrames(f *testing.F) {
	f.Add(append(frame('D', 1, 2, 3), frame('E', []byte(strings.Repeat("x", 300))...)...), 7, byte('E'))
	f.Fuzz(func(t *testing.T, in []byte, size int, whole byte) {
		var out bytes.Buffer
		s := splice{in: newReader(&chunks{b: in, size: max(1, min(size, 1<<16))}, &buffers{}, plenty{}), write: func(b []byte, _ bool) error { out.Write(b); return nil }}
		for {
			kind, size, frame, err := s.next()
			if err != nil {
				break
			}
			if frame == nil && kind == whole {
				if frame, err = s.grow(size, 1<<20); err != nil {
					break
				}
			}
			if frame == nil {
				if s.stream(size) != nil {
					break
				}
				continue
			}
			if len(frame) != size || frame[0] != kind {
				t.Fatal("a frame of another size")
			}
			if kind == 'N' {
				s.replace(size, bytes.Clone(frame))
			} else {
				s.pass(size)
			}
		}
		if !bytes.HasPrefix(in, out.Bytes()) {
			t.Fatalf("%q came of %q", out.Bytes(), in)
		}
	})
}

func TestAThousandIdleSessionsHoldNoBuffers(t *testing.T) {
	p := New(Config{Grammar: parser})
	for range 1000 {
		a, b := net.Pipe()
		r := newReader(a, &p.buffers, p.large)
		go b.Write(frame('S'))
		if err := r.fill(); err != nil {
			t.Fatal(err)
		}
		r.advance(headerSize)
		a.SetReadDeadline(time.Unix(1, 0))
		if err := r.fill(); err == nil || r.buf != nil {
			t.Fatal(fmt.Sprint("an idle reader holds a buffer; ", err))
		}
		a.Close()
		b.Close()
	}
}
