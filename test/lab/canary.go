package lab

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
)

// Forms are those in which a value could be found: as it is, as hex, as base64 of
// something that holds it, escaped for URLs and for JSON.
func Forms(value string) (out [][]byte) {
	quoted, _ := json.Marshal(value) // text always can be
	for _, s := range []string{
		value, hex.EncodeToString([]byte(value)), strings.ToUpper(hex.EncodeToString([]byte(value))),
		url.QueryEscape(value), url.PathEscape(value), string(quoted[1 : len(quoted)-1]),
	} {
		if b := []byte(s); !slices.ContainsFunc(out, func(o []byte) bool { return bytes.Equal(o, b) }) {
			out = append(out, b)
		}
	}
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		for i := range 3 { // at each offset
			b := encoding.EncodeToString(append(bytes.Repeat([]byte{0}, i), value...))
			f := []byte(b[4 : len(b)-4])
			if !slices.ContainsFunc(out, func(o []byte) bool { return bytes.Equal(o, f) }) {
				out = append(out, f)
			}
		}
	}
	return out
}
