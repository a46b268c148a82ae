package query

import (
	"fmt"
	"strconv"
	"strings"
)

// The kinds of tokens that PostgreSQL's scanner (scan.l) tells apart, as far as
// a shape needs them.
type kind byte

const (
	word     kind = iota // a keyword or a name without quotes
	quoted               // "name"
	escaped              // U&"name", which a later UESCAPE gives its meaning
	param                // $1
	integer              // 1, of at most 31 bits: the grammar has places for these only
	number               // all other numbers
	str                  // 'x', E'x', U&'x', $tag$x$tag$
	national             // N'x', which is a cast too
	bits                 // B'1'
	hexes                // X'1f'
	operator             // =, <>, ::, a name of operator characters
	mark                 // , ( ) [ ] . ; :
)

// A token is a piece of a text, comments and white space aside.
type token struct {
	kind       kind
	start, end int
}

// literal reports whether a token is a constant, whose value no name depends on.
func (k kind) literal() bool { return k >= integer && k <= hexes }

// A lexer cuts a text into tokens as PostgreSQL's scanner does (chapter 4.1 of
// its manual). A text that it refuses, the server refuses as well, or the lexer
// is not sure how the server would cut it.
type lexer struct {
	s    string
	at   int
	set  Settings
	high bool // a name without quotes has characters beyond ASCII
}

// next gives the token after the last one; at the end of the text ok is false.
func (l *lexer) next() (t token, ok bool, err error) {
	if err := l.space(); err != nil {
		return t, false, err
	}
	if l.at >= len(l.s) {
		return t, false, nil
	}
	t.start = l.at
	t.kind, err = l.token()
	t.end = l.at
	return t, err == nil, err
}

func (l *lexer) peek(n int) byte {
	if l.at+n < len(l.s) {
		return l.s[l.at+n]
	}
	return 0
}

// space skips white space and comments.
func (l *lexer) space() error {
	for l.at < len(l.s) {
		switch c := l.s[l.at]; {
		case isSpace(c):
			l.at++
		case c == '-' && l.peek(1) == '-':
			l.line()
		case c == '/' && l.peek(1) == '*':
			if err := l.comment(); err != nil {
				return err
			}
		default:
			return nil
		}
	}
	return nil
}

// line skips a comment to the end of its line.
func (l *lexer) line() {
	for l.at < len(l.s) && l.s[l.at] != '\n' && l.s[l.at] != '\r' {
		l.at++
	}
}

// comment skips a comment, in which comments nest.
func (l *lexer) comment() error {
	start, depth := l.at, 1
	for l.at += 2; depth > 0; {
		switch {
		case l.at >= len(l.s):
			return l.fail("a comment that does not end", start)
		case l.s[l.at] == '*' && l.peek(1) == '/':
			depth--
			l.at += 2
		case l.s[l.at] == '/' && l.peek(1) == '*':
			depth++
			l.at += 2
		default:
			l.at++
		}
	}
	return nil
}

func (l *lexer) token() (kind, error) {
	c, d := l.s[l.at], l.peek(1)
	switch {
	case c == '\'':
		return str, l.quote(l.at, !l.set.StandardConforming)
	case (c == 'e' || c == 'E') && d == '\'':
		l.at++
		return str, l.quote(l.at-1, true)
	case (c == 'b' || c == 'B') && d == '\'':
		l.at++
		return bits, l.quote(l.at-1, false)
	case (c == 'x' || c == 'X') && d == '\'':
		l.at++
		return hexes, l.quote(l.at-1, false)
	case (c == 'n' || c == 'N') && d == '\'':
		l.at++
		return national, l.quote(l.at-1, !l.set.StandardConforming)
	case (c == 'u' || c == 'U') && d == '&' && l.peek(2) == '\'':
		l.at += 2
		if !l.set.StandardConforming {
			return str, l.fail("U&'' where standard_conforming_strings is off", l.at-2)
		}
		return str, l.quote(l.at-2, false)
	case (c == 'u' || c == 'U') && d == '&' && l.peek(2) == '"':
		l.at += 2
		return escaped, l.name(l.at - 2)
	case c == '"':
		return quoted, l.name(l.at)
	case nameStart(c):
		for l.at++; l.at < len(l.s) && nameGoesOn(l.s[l.at]); l.at++ {
			l.high = l.high || l.s[l.at] >= 0x80
		}
		l.high = l.high || c >= 0x80
		return word, nil
	case digit(c) || c == '.' && digit(d):
		return l.number()
	case c == '$':
		return l.dollar()
	case operatorByte(c):
		return operator, l.operator()
	case c == ':':
		l.at++
		if d == ':' || d == '=' {
			l.at++
			return operator, nil
		}
		return mark, nil
	case c == '.' && d == '.':
		l.at += 2
		return operator, nil
	case c == ',' || c == '(' || c == ')' || c == '[' || c == ']' || c == '.' || c == ';':
		l.at++
		return mark, nil
	}
	return mark, l.fail("a character that SQL does not have", l.at)
}

// quote skips a constant in single quotes, of which the lexer stands at the
// first, and what continues it on other lines. In those of bits two quotes are
// no quote.
func (l *lexer) quote(start int, backslash bool) error {
	bare := strings.IndexByte("bBxX", l.s[start]) >= 0
	for l.at++; ; {
		if l.at >= len(l.s) {
			return l.fail("a quoted string that does not end", start)
		}
		switch c := l.s[l.at]; {
		case c == '\'' && l.peek(1) == '\'' && !bare:
			l.at += 2
		case c == '\'':
			l.at++
			if !l.continued() {
				return nil
			}
		case c == '\\' && backslash:
			if l.s[start] == '\'' || l.s[start] == 'n' || l.s[start] == 'N' {
				return l.fail("a backslash in a string where standard_conforming_strings is off", start)
			}
			l.at += 2
		default:
			l.at++
		}
	}
}

// continued moves to after the quote that continues a constant: one after white
// space that has a line's end. A comment may be there too, which the grammar
// refuses; then it is another constant, and no text has two in a row.
func (l *lexer) continued() bool {
	line := false
	for i := l.at; i < len(l.s) && (isSpace(l.s[i]) || l.s[i] == '\''); i++ {
		line = line || l.s[i] == '\n' || l.s[i] == '\r'
		if l.s[i] == '\'' {
			if line {
				l.at = i + 1
			}
			return line
		}
	}
	return false
}

// name skips a name in double quotes.
func (l *lexer) name(start int) error {
	for l.at++; l.at < len(l.s); l.at++ {
		if l.s[l.at] != '"' {
			continue
		}
		if l.peek(1) != '"' {
			l.at++
			return nil
		}
		l.at++
	}
	return l.fail("a quoted name that does not end", start)
}

// dollar skips a parameter or a constant in dollar quotes.
func (l *lexer) dollar() (kind, error) {
	start := l.at
	l.at++
	if digit(l.peek(0)) {
		for digit(l.peek(0)) {
			l.at++
		}
		if nameStart(l.peek(0)) {
			return param, l.fail("letters after a parameter", start)
		}
		return param, nil
	}
	for n := l.at; l.at < len(l.s) && l.s[l.at] != '$'; l.at++ {
		if c := l.s[l.at]; !(nameStart(c) || l.at > n && digit(c)) {
			return str, l.fail("a dollar sign", start)
		}
	}
	if l.at >= len(l.s) {
		return str, l.fail("a dollar sign", start)
	}
	l.at++
	tag := l.s[start:l.at]
	for ; l.at+len(tag) <= len(l.s); l.at++ {
		if l.s[l.at] == '$' && l.s[l.at:l.at+len(tag)] == tag {
			l.at += len(tag)
			return str, nil
		}
	}
	return str, l.fail("a string in dollar quotes that does not end", start)
}

// number skips a number. PostgreSQL 16 gave 0x1f, 0o7, 0b1 and 1_000 a meaning;
// before, each was a number and a name.
func (l *lexer) number() (kind, error) {
	start := l.at
	if l.s[l.at] == '0' {
		switch l.peek(1) | 0x20 {
		case 'x', 'o', 'b':
			err := l.radix(start)
			if small(l.s[start:l.at], 0) {
				return integer, err
			}
			return number, err
		}
	}
	k := integer
	under := l.digits()
	if l.peek(0) == '.' && l.peek(1) != '.' {
		k = number
		l.at++
		under = l.digits() || under
	}
	if c := l.peek(0); c == 'e' || c == 'E' {
		n := 1
		if d := l.peek(1); d == '+' || d == '-' {
			n = 2
		}
		if !digit(l.peek(n)) {
			return k, l.fail("a number followed by letters", start)
		}
		k = number
		l.at += n
		under = l.digits() || under
	}
	if under && l.set.Version < 16 {
		return k, l.fail("a number with _, which means something else before PostgreSQL 16", start)
	}
	if nameStart(l.peek(0)) {
		return k, l.fail("a number followed by letters", start)
	}
	if k == integer && !small(l.s[start:l.at], 10) {
		k = number
	}
	return k, nil
}

// radix skips 0x1f, 0o7 and 0b1.
func (l *lexer) radix(start int) error {
	if l.set.Version < 16 {
		return l.fail("a number of another base, which means something else before PostgreSQL 16", start)
	}
	base := l.peek(1) | 0x20
	l.at += 2
	n := 0
	for ; ; n++ {
		c := l.peek(0)
		if c == '_' {
			c = l.peek(1)
		}
		if !(digit(c) && (base != 'o' || c < '8') && (base != 'b' || c < '2') || base == 'x' && (c|0x20) >= 'a' && (c|0x20) <= 'f') {
			break
		}
		if l.peek(0) == '_' {
			l.at++
		}
		l.at++
	}
	if n == 0 || nameStart(l.peek(0)) || digit(l.peek(0)) {
		return l.fail("a number followed by letters", start)
	}
	return nil
}

// digits skips digits, with single _ between them.
func (l *lexer) digits() (under bool) {
	for digit(l.peek(0)) || l.peek(0) == '_' && digit(l.peek(1)) && l.at > 0 && digit(l.s[l.at-1]) {
		under = under || l.s[l.at] == '_'
		l.at++
	}
	return under
}

// small reports whether a number has at most 31 bits. Base 0 is that of 0x, 0o
// and 0b.
func small(s string, base int) bool {
	_, err := strconv.ParseInt(strings.ReplaceAll(s, "_", ""), base, 32)
	return err == nil
}

// operator skips an operator: all characters of operators, but not from where a
// comment begins, nor a + or - at its end unless a character is among the others
// that no operator of the SQL standard has.
func (l *lexer) operator() error {
	end := l.at
	for end < len(l.s) && operatorByte(l.s[end]) {
		if end+1 < len(l.s) && (l.s[end] == '-' && l.s[end+1] == '-' || l.s[end] == '/' && l.s[end+1] == '*') {
			break
		}
		end++
	}
	trim := end
	for trim > l.at+1 && (l.s[trim-1] == '+' || l.s[trim-1] == '-') {
		trim--
	}
	if trim < end {
		for i := l.at; i < end; i++ {
			if unusual(l.s[i]) {
				trim = end
				break
			}
		}
	}
	l.at = trim
	return nil
}

// fail says that, and where, the text is not cut into tokens with certainty.
func (l *lexer) fail(what string, at int) error {
	return fmt.Errorf("%s, at byte %d", what, at+1)
}

func isSpace(c byte) bool {
	return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v'
}
func digit(c byte) bool { return c >= '0' && c <= '9' }
func nameStart(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c >= 0x80
}
func nameGoesOn(c byte) bool { return nameStart(c) || digit(c) || c == '$' }
func unusual(c byte) bool {
	switch c {
	case '~', '!', '@', '#', '^', '&', '|', '`', '?', '%':
		return true
	}
	return false
}
func operatorByte(c byte) bool {
	switch c {
	case '+', '-', '*', '/', '<', '>', '=':
		return true
	}
	return unusual(c)
}
