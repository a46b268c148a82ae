package httpdoor

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"html"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// leastHidden is how long, in bytes, a credential has to be to be hidden: what
	// is shorter stands in other texts by chance.
	leastHidden = 8
	// heldBack is how long the end of a piece waits for the next one, which may
	// have the rest of a credential.
	heldBack = 20 * time.Millisecond
	// block is how many bytes a search looks at to know how far it may jump.
	block = 3
)

// forms are the ways in which a credential may be written in an answer, and a
// search for them all at once (Wu and Manber, 1994). They do not change.
type forms struct {
	all   [][]byte // the longest first
	least int      // bytes of the shortest
	most  int      // bytes of the longest
	jump  [1 << 12]uint8
}

// formsOf are those of the value that a credential has in its header; nil where
// there is nothing that can be told from other text. They are: as it is, as URLs,
// JSON and HTML escape it, in hexadecimal, and in base64 wherever it stands in
// what is encoded.
func formsOf(kind, value string) *forms {
	secrets := []string{value}
	if _, token, ok := strings.Cut(value, " "); ok && kind != "header" {
		secrets = []string{token}
		if b, err := base64.StdEncoding.DecodeString(token); err == nil && kind == "basic" {
			_, password, _ := strings.Cut(string(b), ":")
			secrets = append(secrets, password)
		}
	}
	f := &forms{}
	for _, s := range secrets {
		if len(s) < leastHidden {
			continue
		}
		escaped, _ := json.Marshal(s)
		inner := string(escaped[1 : len(escaped)-1])
		bare := string(quote(s))
		bare = bare[1 : len(bare)-1]
		hexed := hex.EncodeToString([]byte(s))
		for _, form := range append([]string{s, url.QueryEscape(s), url.PathEscape(s), inner, bare, strings.ReplaceAll(bare, "/", `\/`),
			html.EscapeString(s), hexed, strings.ToUpper(hexed)}, encodings(s)...) {
			if b := []byte(form); !slices.ContainsFunc(f.all, func(o []byte) bool { return bytes.Equal(o, b) }) {
				f.all = append(f.all, b)
			}
		}
	}
	if len(f.all) == 0 {
		return nil
	}
	slices.SortStableFunc(f.all, func(a, b []byte) int { return len(b) - len(a) })
	f.most, f.least = len(f.all[0]), min(len(f.all[len(f.all)-1]), 255)
	for i := range f.jump {
		f.jump[i] = uint8(f.least - block + 1)
	}
	for _, form := range f.all {
		for j := range f.least - block + 1 {
			h := hashOf(form[j:])
			f.jump[h] = min(f.jump[h], uint8(f.least-block-j))
		}
	}
	return f
}

// encodings are the characters of base64 that say nothing but s, for each of the
// three places that s may begin at.
func encodings(s string) (out []string) {
	for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for before := range 3 {
			text := e.EncodeToString(append(make([]byte, before), s...))
			text = text[(before*8+5)/6:]
			if (before+len(s))%3 != 0 {
				text = text[:len(text)-1] // it has bits of what comes behind
			}
			out = append(out, text)
		}
	}
	return out
}

func hashOf(b []byte) uint32 {
	return (uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16) * 0x9e3779b1 >> 20
}

// hide overwrites what it finds with as many asterisks.
func (f *forms) hide(b []byte) {
	for i := 0; i+f.least <= len(b); {
		if n := int(f.jump[hashOf(b[i+f.least-block:])]); n > 0 {
			i += n
			continue
		}
		for _, form := range f.all {
			if bytes.HasPrefix(b[i:], form) {
				for j := range form {
					b[i+j] = '*'
				}
				break
			}
		}
		i++
	}
}

// fields hides what it finds in a header. Values that have it are written anew.
func (f *forms) fields(h http.Header) {
	if f == nil {
		return
	}
	for name, values := range h {
		for i, v := range values {
			b := []byte(v)
			if f.hide(b); string(b) != v {
				h[name] = slices.Clone(h[name])
				h[name][i] = string(b)
			}
		}
	}
}

// A veil hides a credential in a body that passes in pieces. The end of a piece
// is held back, since the credential may go on in the next: always as much,
// whatever stands there, because a client who saw that the beginning of the
// credential waits, and nothing else, could guess it byte by byte. No form has a
// line break, so that what ends in one, as events and lines do, goes on at once.
type veil struct {
	*forms
	sink func(p []byte, now bool) error

	mu    sync.Mutex // guards what follows, and is held over sink
	tail  []byte
	buf   []byte
	timer *time.Timer
	err   error
}

// write sends what can't be part of the credential. It overwrites p. Behind the
// last piece nothing is held back.
func (v *veil) write(p []byte, now, last bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err != nil {
		return v.err
	}
	if len(v.tail) > 0 {
		v.buf = append(append(v.buf[:0], v.tail...), p...)
		v.tail, p = v.tail[:0], v.buf
	}
	v.hide(p)
	keep := len(p)
	if !last {
		keep = max(len(p)-v.most+1, bytes.LastIndexByte(p, '\n')+1, 0)
	}
	v.tail = append(v.tail, p[keep:]...)
	if keep > 0 {
		v.err = v.sink(p[:keep], now)
	}
	switch {
	case len(v.tail) == 0:
	case v.timer == nil:
		v.timer = time.AfterFunc(heldBack, v.late)
	default:
		v.timer.Reset(heldBack)
	}
	return v.err
}

// late sends what is held back, as nothing came in time.
func (v *veil) late() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.tail) > 0 && v.err == nil {
		v.err = v.sink(v.tail, true)
	}
	v.tail = v.tail[:0]
}

// end drops what is held back. Nothing is sent after it.
func (v *veil) end() {
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.tail = v.tail[:0]
	if v.timer != nil {
		v.timer.Stop()
	}
}
