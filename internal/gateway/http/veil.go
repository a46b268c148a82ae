package httpdoor

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"isle/internal/conceal"
)

// heldBack is how long the end of a piece waits for the next one, which may have
// the rest of a credential.
const heldBack = 20 * time.Millisecond

// forms are the ways in which a credential may be written in an answer.
type forms = conceal.Forms

// formsOf are those of the value that a credential has in its header; nil where
// there is nothing that can be told from other text.
func formsOf(kind, value string) *forms {
	secrets := []string{value}
	if _, token, ok := strings.Cut(value, " "); ok && kind != "header" {
		secrets = []string{token}
		if b, err := base64.StdEncoding.DecodeString(token); err == nil && kind == "basic" {
			_, password, _ := strings.Cut(string(b), ":")
			secrets = append(secrets, password)
		}
	}
	return conceal.Of(secrets...)
}

// hideFields hides what it finds in a header. Values that have it are written anew.
func hideFields(f *forms, h http.Header) {
	if f == nil {
		return
	}
	for name, values := range h {
		for i, v := range values {
			b := []byte(v)
			if f.Hide(b); string(b) != v {
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
	v.Hide(p)
	keep := len(p)
	if !last {
		keep = max(len(p)-v.Most()+1, bytes.LastIndexByte(p, '\n')+1, 0)
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
