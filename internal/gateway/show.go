package gateway

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"unicode/utf8"
)

// How a mask shows a value (policy.Mask.Show).
const (
	ShowFull    = "full"    // four asterisks, or what is zero of the type
	ShowPartial = "partial" // a little of the beginning or the end
	ShowHash    = "hash"    // a keyed hash: equal values stay equal
	ShowNull    = "null"    // nothing
	ShowType    = "type"    // what is empty or zero of the type
)

// hashed is how many characters a hash is shown with: 128 bits.
const hashed = 32

// A Disguise shows the values of one connection as its masks say. It is for one
// goroutine at a time.
type Disguise struct {
	mac hash.Hash
	sum [sha256.Size]byte
}

// NewDisguise makes one with the key of a connection (MaskKey).
func NewDisguise(key []byte) *Disguise { return &Disguise{mac: hmac.New(sha256.New, key)} }

// MaskKey derives the key that a connection's values are hashed with from one
// of the server's: hashes of different servers and connections can't be
// compared, and without the key no dictionary leads back.
func MaskKey(server []byte, connection string) []byte {
	mac := hmac.New(sha256.New, server)
	mac.Write([]byte("isle mask\x00"))
	mac.Write([]byte(connection))
	return mac.Sum(nil)
}

// Show is what a mask shows instead of a text; "" for ShowNull and ShowType. A
// kind that is not known shows as ShowFull.
func Show(kind, value string, key []byte) string {
	return string(NewDisguise(key).Append(nil, kind, []byte(value)))
}

// Sum is the keyed hash (HMAC-SHA-256, RFC 2104) of a value. The result is
// valid until the next call.
func (d *Disguise) Sum(value []byte) []byte {
	d.mac.Reset()
	d.mac.Write(value)
	return d.mac.Sum(d.sum[:0])
}

// Append appends what a mask shows instead of a text.
func (d *Disguise) Append(dst []byte, kind string, value []byte) []byte {
	switch kind {
	case ShowPartial:
		return appendPartial(dst, value)
	case ShowHash:
		return hex.AppendEncode(dst, d.Sum(value)[:hashed/2])
	case ShowNull, ShowType:
		return dst
	}
	return append(dst, "****"...)
}

// appendPartial shows the first letter, the domain's first letter and the last
// label of a mail address, the last four digits of what is mostly digits (card
// and telephone numbers, accounts), and the first and last letter of other
// texts. What is left out has always the same length, so that it says nothing.
// Of a text of less than eight characters no more than the first is shown, of
// less than five nothing.
func appendPartial(dst, value []byte) []byte {
	if !utf8.Valid(value) {
		return append(dst, "****"...)
	}
	if at := bytes.LastIndexByte(value, '@'); at > 0 && at+1 < len(value) && bytes.IndexByte(value, ' ') < 0 {
		return appendMail(dst, value[:at], value[at+1:])
	}
	n, digits := utf8.RuneCount(value), 0
	for _, c := range value {
		if c >= '0' && c <= '9' {
			digits++
		}
	}
	switch {
	case n < 5:
		return append(dst, "****"...)
	case digits >= 8 && digits*2 > n:
		return appendLastDigits(append(dst, "****"...), value, 4)
	}
	_, first := utf8.DecodeRune(value)
	dst = append(append(dst, value[:first]...), "****"...)
	if n < 8 {
		return dst
	}
	_, last := utf8.DecodeLastRune(value)
	return append(dst, value[len(value)-last:]...)
}

func appendMail(dst, local, domain []byte) []byte {
	_, first := utf8.DecodeRune(local)
	if utf8.RuneCount(local) < 2 {
		first = 0
	}
	dst = append(append(dst, local[:first]...), "***@"...)
	dot := bytes.LastIndexByte(domain, '.')
	if dot < 2 {
		return append(dst, "*****"...)
	}
	_, first = utf8.DecodeRune(domain)
	dst = append(append(dst, domain[:first]...), "*****"...)
	return append(dst, domain[dot:]...)
}

func appendLastDigits(dst, value []byte, n int) []byte {
	start := len(value)
	for i := len(value) - 1; i >= 0 && n > 0; i-- {
		if value[i] >= '0' && value[i] <= '9' {
			start = i
			n--
		}
	}
	for _, c := range value[start:] {
		if c >= '0' && c <= '9' {
			dst = append(dst, c)
		}
	}
	return dst
}
