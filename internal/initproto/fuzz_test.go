package initproto

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"isle"
)

func FuzzFrame(f *testing.F) {
	f.Add([]byte{0x30, 0, 0, 0, 2, 'h', 'i', 0x36})
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{1, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			before := r.Len()
			kind, payload, err := ReadFrame(r)
			if err != nil {
				return
			}
			if len(payload) > MaxFrame {
				t.Fatalf("a payload of %d bytes", len(payload))
			}
			again := make([]byte, HeaderSize)
			PutHeader(again, kind, len(payload))
			again = append(again, payload...)
			if at := len(b) - before; !bytes.Equal(again, b[at:at+len(again)]) {
				t.Fatal("a frame reads as another than it is written")
			}
		}
	})
}

func FuzzHello(f *testing.F) {
	secret := bytes.Repeat([]byte{7}, SecretSize)
	c := Challenge{Version: Version}
	h := NewHello(c, KindWork, isle.NewID(), secret)
	f.Add(h.Encode())
	f.Add(make([]byte, helloSize))
	h = NewHello(c, KindWorkload, isle.NewID(), secret)
	f.Add(h.Encode())
	key, _ := keyOf(isle.DigestOf([]byte("another secret")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := ParseChallenge(b); err == nil && len(b) != challengeSize {
			t.Fatal("a challenge of another size")
		}
		h, err := ParseHello(b)
		if err != nil {
			return
		}
		if !bytes.Equal(h.Encode(), b) {
			t.Fatal("a hello reads as another than it is written")
		}
		if h.Proves(c, key) || h.Proves(c, [32]byte{}) {
			t.Fatal("a guess proved a launch")
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"kind":"exec","command":["true"],"env":{"A":"b"}}`))
	f.Add([]byte(`{"kind":"copy-in","path":"/x"}`))
	f.Add([]byte(`{"kind":"stop","grace":-1}`))
	f.Add([]byte(`{"kind":"signal","signal":"SIGTERM"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRequest(b)
		if err != nil {
			return
		}
		if strings.Contains(r.Path, "\x00") || r.Kind == RequestExec && len(r.Command) == 0 || r.Port < 0 && r.Kind == RequestForward {
			t.Fatalf("%+v passed", r)
		}
	})
}

// FuzzFromInit feeds every parser of what isle-init sends.
func FuzzFromInit(f *testing.F) {
	f.Add([]byte(`{"seq":1,"kind":"exited","code":3,"detail":"x"}`))
	f.Add([]byte(`{"code":"failed","message":"x\u001b[2J","hint":"y"}`))
	f.Add([]byte(`{"path":"","type":"dir"}{"path":"a","type":"dir"}`))
	f.Add([]byte(`{"name":"a","type":"link","mode":511,"time":"2026-01-02T03:04:05Z","target":"/b"}{"name":"..","type":"dir","mode":493,"time":"2026-01-02T03:04:05Z"}`))
	f.Add(append(binary.BigEndian.AppendUint64(nil, 1), make([]byte, 9)...))
	clean := func(t *testing.T, s string, most int) {
		t.Helper()
		if len(s) > 3*most || !utf8.ValidString(s) || strings.ContainsAny(s, "\x00\x1b\x7f\r") {
			t.Fatalf("%q gets through", s)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := ParseEvent(b); err == nil {
			clean(t, e.Detail, MaxDetail)
			if e.Code < 0 || e.Code > 255 || len(e.Output) > MaxOutput {
				t.Fatalf("%+v", e)
			}
		}
		if failure, err := ParseResponse(b); err == nil && failure != nil {
			clean(t, failure.(*isle.Error).Message, MaxDetail)
			clean(t, failure.(*isle.Error).Hint, MaxDetail)
		}
		if e, err := ParseExit(b); err == nil {
			clean(t, e.Reason, MaxDetail)
		}
		if l, err := ParseLog(b); err == nil {
			again := make([]byte, LogHeaderSize)
			l.PutHeader(again)
			if !bytes.Equal(append(again, l.Data...), b) {
				t.Fatal("a log reads as another than it is written")
			}
		}
		_, _, _ = ParseResize(b)
		_, _ = ParseNumber(b)
		_, _ = ParseSignal(string(b))
		if tree, err := readTree(bytes.NewReader(b)); err == nil {
			for _, e := range tree.Entries {
				if strings.HasPrefix(e.Path, "/") || strings.HasPrefix(e.Path, "..") && (len(e.Path) == 2 || e.Path[2] == '/') {
					t.Fatalf("%q is in a tree", e.Path)
				}
			}
		}
		if files, err := readFiles(bytes.NewReader(b)); err == nil {
			for _, f := range files {
				if f.Name == "" || strings.Contains(f.Name, "/") || !utf8.ValidString(f.Name+f.Target) || f.Size < 0 || f.Mode > 0o7777 {
					t.Fatalf("%+v is in a folder", f)
				}
			}
		}
	})
}

// FuzzHome sends bytes where isle-init belongs.
func FuzzHome(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 76}, []byte{})
	f.Add([]byte{}, []byte{0x36, 0, 0, 0, 2, '{', '}'})
	f.Add([]byte{}, []byte{0x35, 0, 0, 0, 8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, hello, output []byte) {
		h := NewHome(HomeConfig{})
		defer h.Close()
		instance, ours := pipe(h)
		_, _ = ours.Expect(FrameChallenge)
		_, _ = ours.Write(hello)
		ours.Close()
		// The same after an honest handshake, as the answer to an exec.
		s := expect(h, instance)
		c, err := s.dial(h, KindWork)
		if err != nil {
			t.Fatal(err)
		}
		l, err := h.Line(t.Context(), s.id)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if _, err := c.Expect(FrameRequest); err == nil {
				_ = c.WriteJSON(FrameResponse, Response{})
				_, _ = c.Write(output)
			}
			_, _ = io.Copy(io.Discard, io.LimitReader(c, 0))
			c.Close()
		}()
		p, err := l.Exec(t.Context(), Exec{Command: []string{"true"}})
		if err != nil {
			return
		}
		for {
			o, err := p.Next()
			if err != nil || o.Exit != nil {
				break
			}
		}
		p.Close()
	})
}
