// Package conceal hides values in what people are told: of a credential or a
// secret the Forms in which it may be written, each found in a text and
// overwritten.
package conceal

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"html"
	"net/url"
	"slices"
	"strings"
)

const (
	// Least is how long, in bytes, a value has to be to be hidden: what is shorter
	// stands in other texts by chance.
	Least = 8
	// block is how many bytes a search looks at to know how far it may jump.
	block = 3
)

// Forms are the ways in which values may be written, and a search for them all
// at once (Wu and Manber, 1994). They do not change. A nil *Forms finds nothing.
type Forms struct {
	all   [][]byte // the longest first
	least int      // bytes of the shortest
	most  int      // bytes of the longest
	jump  [1 << 12]uint8
}

// Of are the forms of values; nil where there is nothing that can be told from
// other text. They are: as it is, as URLs, JSON and HTML escape it, in
// hexadecimal, and in base64 wherever it stands in what is encoded.
func Of(values ...string) *Forms {
	f := &Forms{}
	for _, s := range values {
		if len(s) < Least {
			continue
		}
		escaped, _ := json.Marshal(s)
		inner := string(escaped[1 : len(escaped)-1])
		bare := quoted(s)
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

// quoted is what JSON writes between the quotes of a text without care for HTML.
func quoted(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.Encode(s)
	q := bytes.TrimRight(b.Bytes(), "\n")
	return string(q[1 : len(q)-1])
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

// All are the forms, the longest first. They are not to be changed.
func (f *Forms) All() [][]byte { return f.all }

// Most is how many bytes the longest has; 0 where there are none.
func (f *Forms) Most() int {
	if f == nil {
		return 0
	}
	return f.most
}

// Hide overwrites what it finds with as many asterisks.
func (f *Forms) Hide(b []byte) {
	f.find(b, func(found []byte) bool {
		for j := range found {
			found[j] = '*'
		}
		return true
	})
}

// In reports whether a text has one of them.
func (f *Forms) In(s string) (yes bool) {
	f.find([]byte(s), func([]byte) bool {
		yes = true
		return false
	})
	return yes
}

// find calls do with each place that has a form, until it returns false.
func (f *Forms) find(b []byte, do func(found []byte) bool) {
	if f == nil {
		return
	}
	for i := 0; i+f.least <= len(b); {
		if n := int(f.jump[hashOf(b[i+f.least-block:])]); n > 0 {
			i += n
			continue
		}
		for _, form := range f.all {
			if bytes.HasPrefix(b[i:], form) {
				if !do(b[i : i+len(form)]) {
					return
				}
				break
			}
		}
		i++
	}
}
