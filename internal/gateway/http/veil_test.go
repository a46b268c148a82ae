package httpdoor

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"isle/internal/policy"
)

// awkward is a secret that no two ways to escape write alike.
const awkward = `s3cr=t/"&+<key> of ours`

func TestACredentialThatIsEchoedComesBackInNoForm(t *testing.T) {
	for _, c := range []policy.Credential{
		{Kind: "bearer", Secret: "test"}, {Kind: "header", Header: "X-Api-Key", Secret: "test"}, {Kind: "basic", User: "shop", Secret: "test"},
	} {
		var sent string
		server := upstream(t, func(w http.ResponseWriter, r *http.Request) {
			sent = r.Header.Get("Authorization") + r.Header.Get("X-Api-Key")
			w.Header().Set("X-Echo", sent)
			w.Header().Set("Trailer", "X-After")
			all, _ := json.Marshal(r.Header)
			fmt.Fprintf(w, "%v\n%s\n%s %s %s %s %s", r.Header, all, url.QueryEscape(awkward), html.EscapeString(awkward), hex.EncodeToString([]byte(awkward)), awkward, sent)
			for i := range 3 {
				fmt.Fprintln(w, base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", i)+awkward)))
			}
			fmt.Fprint(w, r.Header.Get("Accept-Encoding"))
			w.Header().Set("X-After", sent)
		})
		d := &testDoor{server: server, secret: awkward, conn: policy.Connection{Credential: c, Results: true}}
		for name, client := range clients(t) {
			req, _ := http.NewRequest("GET", "http://"+inside(t, New(Config{}), d)+"/", nil)
			req.Header.Set("Accept-Encoding", "gzip")
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(res.Body)
			if err != nil || !strings.HasSuffix(string(b), "identity") {
				t.Errorf("%s, %s: %v %s", c.Kind, name, err, b)
			}
			d.mu.Lock()
			var kept []byte
			for _, e := range d.events {
				kept = append(kept, e.Data...)
			}
			d.mu.Unlock()
			if len(kept) == 0 {
				t.Error("nothing is recorded")
			}
			for where, text := range map[string]string{"the body": string(b), "the header": fmt.Sprint(res.Header), "the trailer": fmt.Sprint(res.Trailer), "the recording": string(kept)} {
				for _, form := range append(formsOf(c.Kind, sent).All(), []byte(sent), []byte("s3cr"), []byte("ours")) {
					if bytes.Contains([]byte(text), form) {
						t.Errorf("%s, %s: %s has %q: %s", c.Kind, name, where, form, text)
					}
				}
			}
		}
	}
}

func TestACredentialIsFoundWhereverItIsCut(t *testing.T) {
	f := formsOf("bearer", "Bearer "+awkward)
	for _, form := range f.All() {
		text := "before " + string(form) + " and " + string(form)
		for cut := range len(text) {
			var got []byte
			v := &veil{forms: f, sink: func(p []byte, _ bool) error { got = append(got, p...); return nil }}
			v.write([]byte(text[:cut]), true, false)
			v.write([]byte(text[cut:]), true, true)
			if want := "before " + strings.Repeat("*", len(form)) + " and " + strings.Repeat("*", len(form)); string(got) != want {
				t.Fatalf("%q, cut at %d: %q", text, cut, got)
			}
		}
	}
}

func TestWhatWaitsSaysNothingOfACredential(t *testing.T) {
	f := formsOf("bearer", "Bearer "+awkward)
	passed := func(text string) (n int) {
		v := &veil{forms: f, sink: func(p []byte, _ bool) error { n += len(p); return nil }}
		defer v.end()
		v.write([]byte(text), true, false)
		v.mu.Lock() // before it is late
		defer v.mu.Unlock()
		return n
	}
	for n := range len(awkward) {
		right := strings.Repeat("x", 300) + awkward[:n]
		if a, b := passed(right), passed(strings.Repeat("x", len(right))); a != b {
			t.Errorf("of a text that ends in its first %d bytes %d pass, of another %d", n, a, b)
		}
	}
	if n := passed("data: x\n\n"); n != len("data: x\n\n") {
		t.Errorf("of an event %d bytes pass at once", n)
	}
}

func TestWhatIsHeldBackComesAllTheSame(t *testing.T) {
	next := make(chan struct{})
	server := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "no line")
		http.NewResponseController(w).Flush()
		<-next
	})
	d := &testDoor{server: server, secret: awkward, conn: policy.Connection{Credential: policy.Credential{Kind: "bearer", Secret: "test"}}}
	res, err := clients(t)["HTTP/1.1"].Get("http://" + inside(t, New(Config{}), d) + "/")
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len("no line"))
	if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != "no line" {
		t.Errorf("%q, %v", b, err)
	}
	close(next)
}

func FuzzAHiddenCredentialIsGone(f *testing.F) {
	f.Add([]byte("before s3cr3t-key-of-ours after"), "s3cr3t-key-of-ours", 9)
	f.Add([]byte("aaaaaaaaaaaaaaaa"), "aaaaaaaaa", 3)
	f.Fuzz(func(t *testing.T, text []byte, secret string, cut int) {
		all := formsOf("header", secret)
		if all == nil || !fieldValue(secret) || strings.Contains(secret, "*") {
			return
		}
		text = append(slices.Clone(text), secret...)
		cut = min(max(cut, 0), len(text))
		var got []byte
		v := &veil{forms: all, sink: func(p []byte, _ bool) error { got = append(got, p...); return nil }}
		length := len(text)
		v.write(text[:cut:cut], true, false)
		v.write(text[cut:], true, true)
		if len(got) != length || bytes.Contains(got, []byte(secret)) {
			t.Errorf("%q has %q", got, secret)
		}
	})
}

func BenchmarkHide(b *testing.B) {
	f := formsOf("bearer", "Bearer 3f9a8c7b6d5e4f3a2b1c0d9e8f7a6b5c")
	text := bytes.Repeat([]byte(`{"id": 17, "name": "a customer", "email": "a@example.com"}, `), 512)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		f.Hide(text)
	}
}

func TestWhyThereIsNoAnswerDoesNotTellWhereItIs(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.(*net.TCPConn).SetLinger(0)
			io.ReadFull(c, make([]byte, 16))
			c.Close()
		}
	}()
	server := upstream(t, func(http.ResponseWriter, *http.Request) {})
	for name, d := range map[string]*testDoor{
		"broken off":   {server: server, dial: func(ctx context.Context) (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) }},
		"another name": {server: server, name: "elsewhere.invalid"},
		"no HTTP":      {server: server, plain: true},
	} {
		res, err := clients(t)["HTTP/1.1"].Get("http://" + inside(t, New(Config{}), d) + "/")
		if err != nil {
			t.Fatal(name, err)
		}
		b, _ := io.ReadAll(res.Body)
		if text := string(b); res.StatusCode != 502 && res.StatusCode != 400 || strings.Contains(text, "127.0.0.1") || strings.Contains(text, "elsewhere") {
			t.Errorf("%s: %d %s", name, res.StatusCode, text)
		}
	}
}
