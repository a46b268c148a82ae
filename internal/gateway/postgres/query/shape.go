package query

import (
	"bytes"
	"strings"
)

// A span is where a statement stands in a text.
type span struct{ start, end int }

// A shape is a text cut into tokens.
type shape struct {
	key        []byte // the same for texts of the same Facts
	statements []span // those that aren't empty
	plain      bool   // key has no values of constants
	ordinals   bool   // a number could mean a column: ORDER BY 2

	list    enumeration
	cuts    []span // of the text, that aren't in the key
	dropped int    // tokens in them
}

// longestKey is how long a text may be to be its own key.
const longestKey = 16 << 10

// mostTokens bounds the time that the grammar takes for a text.
const mostTokens = 200_000

// shape cuts a text into tokens, or says why it cannot be.
func (r *Reader) shape(sql string, set Settings) (*shape, string) {
	s, ok := r.shapes.Get().(*shape)
	if !ok {
		s = new(shape)
	}
	*s = shape{key: s.key[:0], statements: s.statements[:0], cuts: s.cuts[:0], plain: true}
	if why := readable(sql, set); why != "" {
		return s, why
	}
	s.key = append(s.key, 's', flags(set), byte(set.Version))
	head := len(s.key)
	l := lexer{s: sql, set: set}
	first, start, end := true, 0, 0
	for n := 0; ; n++ {
		t, ok, err := l.next()
		if err != nil {
			return s, err.Error()
		}
		if n-s.dropped > mostTokens {
			return s, "it has more than 200,000 words"
		}
		if semicolon := ok && sql[t.start] == ';'; !ok || semicolon {
			if !first {
				s.statements = append(s.statements, span{start, end})
			}
			first, s.list = true, enumeration{}
			if semicolon {
				s.key = append(s.key, ';')
				continue
			}
			break
		}
		if first {
			first, start = false, t.start
			s.plain = s.plain && (t.kind == word && valuesAside(sql[t.start:t.end]) || sql[t.start] == '(')
		}
		end = t.end
		s.token(t, sql[t.start:t.end])
	}
	if l.high && set.ServerEncoding != "UTF8" {
		return s, "it has names beyond ASCII without quotes, and server_encoding is not UTF8"
	}
	if !s.plain {
		s.key = append(s.key[:head], sql...)
		s.key[0], s.cuts = 'v', s.cuts[:0]
	}
	return s, ""
}

// add adds a token to the key.
func (s *shape) add(t token, text string) {
	switch t.kind {
	case word:
		switch is(text) {
		case ordering:
			s.ordinals = true
		case clause, rows:
			s.ordinals = false
		case sets:
			s.plain = false
		}
	case integer:
		if !s.ordinals { // it is no fact of a statement which column 2 is, but trees of one shape are read as one
			text = "\x01"
		}
	case number, str, national, bits, hexes:
		text = constants[t.kind-number : t.kind-number+1]
	case param:
		text = "$"
	case escaped: // U&"…" UESCAPE '!'
		s.plain = false
	case quoted:
		s.plain = s.plain && !strings.Contains(text, "set_config")
	}
	s.key = append(append(s.key, text...), ' ')
}

// constants stand for the values of constants in a key, one for each kind from
// number on. No token begins like them.
const constants = "\x02\x03\x04\x05\x06"

// meaning is what a word means for a shape.
type meaning byte

const (
	none     meaning = iota
	ordering         // numbers mean columns after it
	clause           // and do no more
	rows             // VALUES
	among            // IN
	sets             // set_config
)

// is says what a word means, wherever it stands.
func is(word string) meaning {
	var lower [10]byte
	switch len(word) {
	case 2, 4, 5, 6, 8, 10:
	default:
		return none
	}
	for i := range len(word) {
		lower[i] = word[i] | 0x20
	}
	switch string(lower[:len(word)]) {
	case "by", "distinct":
		return ordering
	case "from", "where", "having", "limit", "offset":
		return clause
	case "values":
		return rows
	case "in":
		return among
	}
	if strings.EqualFold(word, "set_config") {
		return sets
	}
	return none
}

func flags(set Settings) byte {
	var f byte = 'a'
	if set.StandardConforming {
		f |= 1 << 3
	}
	if set.PathChanged {
		f |= 1 << 2
	}
	return f
}

// valuesAside reports whether no fact of a statement that begins with a word
// depends on the value of a constant in it, calls of set_config aside. EXPLAIN
// isn't among them: EXPLAIN (ANALYZE 'off').
func valuesAside(word string) bool {
	var lower [9]byte
	if len(word) > len(lower) {
		return false
	}
	for i := range len(word) {
		lower[i] = word[i] | 0x20
	}
	switch string(lower[:len(word)]) {
	case "select", "insert", "update", "delete", "with", "values", "table", "merge",
		"begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release",
		"show", "truncate", "prepare", "execute", "declare", "fetch", "move", "close":
		return true
	}
	return false
}

// free gives the memory of a shape back, for the next Read.
func (r *Reader) free(s *shape) {
	if cap(s.key) <= longestKey && cap(s.cuts) < 100 {
		r.shapes.Put(s)
	}
}

// shown is the text without comments and constants, as an entry shows it: at
// most 2 KiB of it.
func shown(sql string, set Settings) string {
	l, out, last := lexer{s: sql, set: set}, strings.Builder{}, ""
	for out.Len() < mostShown {
		t, ok, err := l.next()
		if !ok || err != nil {
			break
		}
		this := sql[t.start:t.end]
		if t.kind.literal() {
			this = "?"
		}
		if last != "" && apart(last, this) {
			out.WriteByte(' ')
		}
		out.WriteString(this)
		last = this
	}
	return cut(out.String())
}

// apart reports whether a space is shown between two tokens. It depends on them
// alone, so that texts of one shape are shown as one.
func apart(last, this string) bool {
	switch this {
	case ",", ";", ")", "]", ".", "::", "[":
		return false
	case "(":
		return !nameGoesOn(last[len(last)-1])
	}
	return last != "(" && last != "[" && last != "." && last != "::"
}

const mostShown = 2 << 10

// opaque is what is shown of a text that cannot be cut into tokens: how it
// begins, as far as no constant can be in it.
func opaque(sql string) string {
	end := strings.IndexFunc(sql, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == ' ' || c == '_' || c == '\n')
	})
	if end < 0 {
		end = len(sql)
	}
	return cut(strings.TrimSpace(sql[:end]) + " …")
}

// cut bounds what is shown, at the end of a character.
func cut(s string) string {
	if len(s) <= mostShown {
		return s
	}
	return string(bytes.ToValidUTF8([]byte(s[:mostShown]), nil))
}
