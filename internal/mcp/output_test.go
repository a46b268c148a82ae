package mcp

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestACaptureKeepsHeadAndTailOfWhateverLength(t *testing.T) {
	for _, n := range []int{0, 1, keepOne/2 - 1, keepOne / 2, keepOne, keepOne + 1, 3*keepOne + 7} {
		for _, piece := range []int{1 << 10, 1<<20 + 3, 4 * keepOne} {
			whole := make([]byte, n)
			for i := range whole {
				whole[i] = byte(i / 251 * i)
			}
			c := newCapture(1)
			for rest := whole; len(rest) > 0; {
				k := min(len(rest), piece)
				c.Write(rest[:k])
				rest = rest[k:]
			}
			o := c.output()
			if o.total != int64(n) || !bytes.HasPrefix(whole, o.head) || !bytes.HasSuffix(whole, o.tail) || o.lost() != int64(max(0, n-keepOne)) {
				t.Errorf("%d bytes in pieces of %d: head %d, tail %d, lost %d", n, piece, len(o.head), len(o.tail), o.lost())
			}
		}
	}
}

func TestTheOldestOutputsAreForgottenFirst(t *testing.T) {
	k := newKept()
	var last int64
	for range keepAll/keepOne + 5 {
		last = k.put(&output{head: make([]byte, keepOne), total: keepOne})
	}
	if _, err := k.get(1); err == nil {
		t.Error("the first is still kept")
	}
	if _, err := k.get(last); err != nil || k.bytes > keepAll {
		t.Errorf("%v, %d bytes are kept", err, k.bytes)
	}
}

func FuzzShow(f *testing.F) {
	f.Add([]byte("hello"), 3, 256)
	f.Add([]byte(strings.Repeat("ä€\xff", 300)), 7, 300)
	f.Fuzz(func(t *testing.T, unit []byte, times, n int) {
		if len(unit) == 0 || times < 0 || times > 1<<16 || len(unit)*times > 3*keepOne || n < showLeast || n > showMost {

			t.Skip()
		}
		s := &Server{kept: newKept()}
		c := newCapture(1)
		whole := bytes.Repeat(unit, times)
		c.Write(whole)
		v := s.show(c.output(), n)
		if !utf8.ValidString(v.text) || len(v.text) > 3*n+200 || v.left < 0 || (v.left == 0) != (v.cursor == "") {
			t.Fatalf("%d bytes of %d: left out %d, cursor %q", len(v.text), len(whole), v.left, v.cursor)
		}
		if v.left == 0 {
			return
		}
		// What is left out is read on from the cursor to the end.
		at := int64(-1)
		for cursor := v.cursor; cursor != ""; {
			out, err := s.readOutput(t.Context(), nil, readOutputIn{Cursor: cursor, MaxOutput: max(n, len(whole)/50)})
			if err != nil || out.At <= at {
				t.Fatalf("%v: at %d after %d", err, out.At, at)
			}
			at, cursor = out.At, out.Cursor
		}
	})
}

func FuzzCursor(f *testing.F) {
	f.Add("1.0")
	f.Add("9223372036854775807.9223372036854775807")
	f.Fuzz(func(t *testing.T, cursor string) {
		s := &Server{kept: newKept()}
		s.kept.put(&output{head: []byte("head"), tail: []byte("tail"), total: 100})
		s.readOutput(t.Context(), nil, readOutputIn{Cursor: cursor})
	})
}
