package query

import (
	"bytes"
	"slices"
)

// An enumeration is the list of IN or of VALUES which the text is in. Of items that follow
// each other and are the same but for their constants, the first is in the key
// alone: the number of rows that are inserted makes no other shape, and the
// grammar need not read them all.
type enumeration struct {
	in, rows bool // rows of VALUES; else what is in the parentheses of IN
	armed    bool // the token before was IN
	depth    int  // of parentheses, within the list
	tokens   int  // of the item
	other    bool // the item has more than constants
	last     int  // where the token before ends in the text

	key             int  // where the item begins in the key
	before          bool // there is an item before it, of this span in the key
	first, end, was int  // and of this end in the text
}

// token adds a token to the key, of a list as far as it is another item.
func (s *shape) token(t token, text string) {
	l := &s.list
	if !l.in {
		armed := l.armed
		s.add(t, text)
		m := none
		if t.kind == word {
			m = is(text)
		}
		l.armed = m == among
		if m == rows || armed && text == "(" {
			*l = enumeration{in: true, rows: m == rows, key: len(s.key)}
		}
		return
	}
	switch {
	case text == "(":
		l.depth++
	case text == ")":
		l.depth--
	case text == "," && l.depth == 0 && !l.rows:
		s.item()
	}
	switch {
	case l.depth < 0: // the end of IN, or of what VALUES is in
		if !l.rows {
			s.item()
		}
		s.add(t, text)
		*l = enumeration{}
		return
	case l.rows && l.depth == 0 && text != ")" && text != ",": // what follows VALUES
		*l = enumeration{}
		s.token(t, text)
		return
	}
	s.add(t, text)
	l.tokens++
	l.other = l.other || !t.kind.literal() && t.kind != param
	l.last = t.end
	switch {
	case text == ")" && l.depth == 0 && l.rows:
		s.item()
	case text == "," && l.depth == 0:
		l.key, l.tokens, l.other = len(s.key), 0, false
	}
}

// item ends an item, and drops it where it is as the one before.
func (s *shape) item() {
	l := &s.list
	same := l.before && (l.rows || !l.other) && bytes.Equal(s.key[l.first:l.end], s.key[l.key:])
	if !same {
		l.before, l.first, l.end, l.was = true, l.key, len(s.key), l.last
		return
	}
	s.key = s.key[:l.end]
	s.dropped += l.tokens + 1
	if n := len(s.cuts); n > 0 && s.cuts[n-1].start == l.was {
		s.cuts[n-1].end = l.last
	} else {
		s.cuts = append(s.cuts, span{l.was, l.last})
	}
}

// without is a text without the items that aren't in its key.
func (s *shape) without(sql string) string {
	out, last := make([]byte, 0, len(sql)), 0
	for _, c := range s.cuts {
		out = append(out, sql[last:c.start]...)
		last = c.end
	}
	return string(slices.Concat(out, []byte(sql[last:])))
}
