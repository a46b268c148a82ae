package mask

import (
	"bytes"
	"encoding/binary"
	"strings"
)

// Scrub appends an ErrorResponse or a NoticeResponse, as it is to be sent, to
// dst; src is the whole message that came. Messages quote values (22P02 the text
// that is no number, 23505 the key that is there already, 23502 the whole row):
// of a statement that has to do with masked columns, and of what functions
// raise, all that can hold one is left out, and the message says so. Severity,
// SQLSTATE, the names of schema, table, column, type and constraint, the
// position and the place in PostgreSQL's source stay. changed reports whether
// anything was left out.
func (p *Plan) Scrub(dst, src []byte) (out []byte, changed bool) {
	if len(src) < 6 || src[0] != 'E' && src[0] != 'N' {
		return append(dst, src...), false
	}
	fields, ok := fieldsIn(src[5:])
	if !ok { // not what the protocol has: nothing of it passes
		fields = []notice{{'S', "ERROR"}, {'V', "ERROR"}, {'C', "XX000"}, {'M', ""}}
	} else if !p.secret(fields) {
		return append(dst, src...), false
	}
	start := len(dst)
	dst = append(dst, src[0], 0, 0, 0, 0)
	for _, f := range fields {
		switch f.code {
		case 'S', 'V', 'C', 's', 't', 'c', 'd', 'n', 'P', 'F', 'L', 'R':
		case 'M':
			f.text = saidOf(fields)
		case 'H':
			if !aboutText(fields) {
				continue
			}
		default:
			continue
		}
		dst = append(append(append(dst, f.code), f.text...), 0)
	}
	dst = append(append(dst, 'D'), "The connection masks columns that this has to do with, so what quotes values was left out."...)
	dst = append(dst, 0, 0)
	binary.BigEndian.PutUint32(dst[start+1:], uint32(len(dst)-start-1))
	return dst, true
}

// A notice is a field of an error or a notice.
type notice struct {
	code byte
	text string
}

func fieldsIn(b []byte) (out []notice, ok bool) {
	for len(b) > 0 {
		if b[0] == 0 {
			return out, len(b) == 1
		}
		end := bytes.IndexByte(b[1:], 0)
		if end < 0 {
			return nil, false
		}
		out = append(out, notice{b[0], string(b[1 : 1+end])})
		b = b[2+end:]
	}
	return nil, false
}

func fieldOf(fields []notice, code byte) string {
	for _, f := range fields {
		if f.code == code {
			return f.text
		}
	}
	return ""
}

// secret reports whether a message may quote a masked value: the statement has
// to do with masks, or a function did something that no plan has seen.
func (p *Plan) secret(fields []notice) bool {
	if p.touches {
		return true
	}
	where := fieldOf(fields, 'W')
	switch {
	case p.cat == nil: // at the end of a transaction: its statements' constraints that were deferred
		return where != "" || strings.HasPrefix(fieldOf(fields, 'C'), "23")
	case fieldOf(fields, 'q') != "":
		return true
	case strings.HasPrefix(where, "COPY "), strings.HasPrefix(where, "JSON"):
		return strings.Contains(where, "\n") // the input is the statement's own, unless something else is around it
	}
	return where != "" // a function, or what a foreign key does by itself; in whatever language the server says so
}

// aboutText reports whether a message is about the statement's own text or the
// session, and was not raised by a function: class 42 (syntax, names, rights)
// and the states that quote nothing.
func aboutText(fields []notice) bool {
	state, routine := fieldOf(fields, 'C'), fieldOf(fields, 'R')
	if len(state) != 5 || routine == "exec_stmt_raise" || fieldOf(fields, 'W') != "" {
		return false
	}
	switch state[:2] {
	case "42", "25", "40", "53", "55", "57", "0A", "26", "34", "08":
		return true
	}
	return false
}

// saidOf is the message that is sent instead. It is made of names alone.
func saidOf(fields []notice) string {
	if aboutText(fields) {
		return fieldOf(fields, 'M')
	}
	constraint, table, column := fieldOf(fields, 'n'), fieldOf(fields, 't'), fieldOf(fields, 'c')
	switch fieldOf(fields, 'C') {
	case "23505":
		return `duplicate key value violates unique constraint "` + constraint + `"`
	case "23503":
		return `insert, update or delete on table "` + table + `" violates foreign key constraint "` + constraint + `"`
	case "23502":
		return `null value in column "` + column + `" of relation "` + table + `" violates not-null constraint`
	case "23514":
		return `new row for relation "` + table + `" violates check constraint "` + constraint + `"`
	case "23P01":
		return `conflicting key value violates exclusion constraint "` + constraint + `"`
	case "22P02":
		return "invalid input syntax for a type"
	case "22003":
		return "value is out of range for a type"
	case "22001":
		return "value too long for a type"
	case "22007", "22008":
		return "invalid date or time"
	case "22012":
		return "division by zero"
	}
	return "an error whose message is masked"
}
