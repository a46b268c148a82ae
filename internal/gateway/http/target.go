package httpdoor

import (
	"strings"
	"unicode/utf8"
)

// A target is the path of a request, read in the one way in which rules and
// whoever is behind the gateway have to agree.
type target struct {
	forward   string // percent-encoded, as it goes on
	path      string // decoded, for rules
	uncertain string // why others may read another path out of it; "" if none should
}

// readTarget reads the path of a request's target. Dot segments are resolved
// (RFC 3986, section 5.2.4), and percent-encoding is taken off, once. What
// servers are known to read in more than one way and clients have no honest use
// for is refused: NUL and other control characters, backslashes, encodings of
// what would be an encoding of a separator or a dot, a path that leads out above
// its root. An encoded slash, an empty segment, a semicolon and what is not UTF-8
// are uncertain: clients do use them, and servers differ about them.
func readTarget(raw string) (target, error) {
	if raw == "*" {
		return target{forward: "*", path: "*"}, nil
	}
	if raw == "" || raw[0] != '/' {
		return target{}, bad("the request's target is no path")
	}
	if strings.HasPrefix(raw, "//") {
		return target{}, bad("the request's path begins with an empty segment, where a host would stand")
	}
	var t target
	dots := false
	var forward, plain []string
	segments := strings.Split(raw[1:], "/")
	for i, s := range segments {
		decoded, uncertain, err := decodeSegment(s)
		if err != nil {
			return target{}, err
		}
		if uncertain != "" {
			t.uncertain = uncertain
		}
		last := i == len(segments)-1
		switch {
		case decoded == "." || decoded == "..":
			dots = true
			if decoded == ".." {
				if len(plain) == 0 {
					return target{}, bad("the request's path leads out above its root")
				}
				forward, plain = forward[:len(forward)-1], plain[:len(plain)-1]
			}
			if last {
				forward, plain = append(forward, ""), append(plain, "")
			}
			continue
		case decoded == "" && !last:
			t.uncertain = "its path has an empty segment, which some servers leave out"
		case dotted(decoded):
			t.uncertain = "its path has a dot segment with something behind a semicolon, which some servers leave out"
		}
		forward, plain = append(forward, s), append(plain, decoded)
	}
	t.path = "/" + strings.Join(plain, "/")
	t.forward = raw
	if dots {
		t.forward = "/" + strings.Join(forward, "/")
		if strings.HasPrefix(t.forward, "//") {
			return target{}, bad("the request's path begins with an empty segment, where a host would stand")
		}
	}
	return t, nil
}

// dotted reports whether a segment is a dot segment once its parameters are off.
func dotted(s string) bool {
	s, _, ok := strings.Cut(s, ";")
	return ok && (s == "." || s == "..")
}

// decodeSegment takes the percent-encoding off what stands between two slashes.
func decodeSegment(s string) (decoded, uncertain string, err error) {
	plain := true
	for i := range len(s) {
		switch c := s[i]; {
		case c <= ' ' || c == 0x7f || c == '\\' || c == '#' || c == '?':
			return "", "", bad("the request's path has a character that has to be percent-encoded")
		case c == ';':
			uncertain = "its path has a semicolon, behind which some servers do not look"
		case c == '%' || c >= 0x80:
			plain = false
		}
	}
	if plain {
		return s, uncertain, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '%' {
			b = append(b, c)
			continue
		}
		if i+2 >= len(s) || hexDigit(s[i+1]) < 0 || hexDigit(s[i+2]) < 0 {
			return "", "", bad("the request's path has a % that encodes nothing")
		}
		c = byte(hexDigit(s[i+1])<<4 | hexDigit(s[i+2]))
		i += 2
		switch {
		case c < ' ' || c == 0x7f:
			return "", "", bad("the request's path has a control character")
		case c == '\\':
			return "", "", bad("the request's path has a backslash")
		case c == '/':
			uncertain = "its path has an encoded slash"
		case c == ';':
			uncertain = "its path has an encoded semicolon"
		case c == '%' && encodesMark(s[i+1:]):
			return "", "", bad("the request's path is encoded twice")
		}
		b = append(b, c)
	}
	if !utf8.Valid(b) {
		uncertain = "its path is not UTF-8"
	}
	return string(b), uncertain, nil
}

// encodesMark reports whether what comes after a percent sign would be, decoded
// again, a character that paths are made of, or one more percent sign.
func encodesMark(s string) bool {
	if len(s) < 2 || hexDigit(s[0]) < 0 || hexDigit(s[1]) < 0 {
		return false
	}
	switch c := byte(hexDigit(s[0])<<4 | hexDigit(s[1])); c {
	case '/', '.', '\\', '%', ';':
		return true
	default:
		return c < ' '
	}
}

// shapeOf is a path without what looks like a name of one thing: entries that
// differ in those only are of one shape.
func shapeOf(path string) string {
	segments := strings.Split(path, "/")
	for i, s := range segments {
		if identifies(s) {
			segments[i] = "…"
		}
	}
	shape := strings.Join(segments, "/")
	if len(shape) > maxShape {
		shape = strings.ToValidUTF8(shape[:maxShape], "") + "…"
	}
	return shape
}

// maxShape bounds a shape in bytes.
const maxShape = 1 << 10

// identifies reports whether a segment of a path is a number, a UUID, an address
// or a long mix of letters and digits.
func identifies(s string) bool {
	digits, letters := 0, 0
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			digits++
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z':
			letters++
		case c == '@':
			return true
		}
	}
	return digits > 0 && letters == 0 || digits > 2 && digits+letters >= 16
}
