package session

import (
	"encoding/binary"
	"time"

	"isle"
)

// Events are encoded one after the other: the length of the fields that follow,
// as an unsigned varint, then the fields. A field is a byte that names it and,
// below firstNumber, a length and as many bytes, else a number, each an unsigned
// varint. A field that is not known is passed over; one that is empty is left
// out; a parameter comes once for each.
const (
	fieldKind     = 1
	fieldText     = 2
	fieldParam    = 3
	fieldShape    = 4
	fieldDecision = 5
	fieldRule     = 6
	fieldApproval = 7
	fieldTag      = 8
	fieldError    = 9
	fieldData     = 10
	fieldDigest   = 11

	firstNumber = 0x40
	fieldAt     = 0x40 // Unix microseconds
	fieldRows   = 0x41
	fieldBytes  = 0x42
	fieldTook   = 0x43 // microseconds
	fieldCut    = 0x44
)

// cutTo keeps what may be kept of the event's texts. It says the length and the
// hash of the one that was too long; of two the text's.
func (e Event) cutTo() Event {
	if len(e.Data) > MaxText {
		e.Cut, e.Digest = int64(len(e.Data)), isle.DigestOf(e.Data)
		e.Data = e.Data[:MaxText]
	}
	if len(e.Text) > MaxText {
		e.Cut, e.Digest = int64(len(e.Text)), isle.DigestOf(e.Text)
		e.Text = e.Text[:MaxText]
	}
	if len(e.Params) > maxParams {
		e.Params = e.Params[:maxParams]
	}
	return e
}

// appendEvent adds an event to b. It allocates nothing where b has room.
func appendEvent(b []byte, e *Event) []byte {
	const room = 4 // bytes for the length: what is bounded by less than 1<<28
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	b = appendNumber(b, fieldAt, e.At.UnixMicro())
	b = appendText(b, fieldKind, e.Kind)
	if len(e.Text) > 0 {
		b = append(binary.AppendUvarint(append(b, fieldText), uint64(len(e.Text))), e.Text...)
	}
	left := MaxText // for all parameters together
	for _, p := range e.Params {
		p = p[:min(len(p), left)]
		left -= len(p)
		b = append(binary.AppendUvarint(append(b, fieldParam), uint64(len(p))), p...)
	}
	b = appendText(b, fieldShape, e.Shape)
	b = appendText(b, fieldDecision, string(e.Decision))
	b = appendText(b, fieldRule, e.Rule)
	b = appendText(b, fieldApproval, string(e.Approval))
	b = appendText(b, fieldTag, e.Tag)
	b = appendText(b, fieldError, e.Error)
	if len(e.Data) > 0 {
		b = append(binary.AppendUvarint(append(b, fieldData), uint64(len(e.Data))), e.Data...)
	}
	b = appendText(b, fieldDigest, string(e.Digest))
	b = appendNumber(b, fieldRows, e.Rows)
	b = appendNumber(b, fieldBytes, e.Bytes)
	b = appendNumber(b, fieldTook, e.Took.Microseconds())
	b = appendNumber(b, fieldCut, e.Cut)
	// The length, as a varint of exactly four bytes: leading groups may be zero.
	n := uint32(len(b) - start - room)
	b[start], b[start+1], b[start+2], b[start+3] = byte(n)|0x80, byte(n>>7)|0x80, byte(n>>14)|0x80, byte(n>>21)
	return b
}

func appendText(b []byte, field byte, s string) []byte {
	if s == "" {
		return b
	}
	s = s[:min(len(s), maxShort)]
	return append(binary.AppendUvarint(append(b, field), uint64(len(s))), s...)
}

func appendNumber(b []byte, field byte, n int64) []byte {
	if n <= 0 {
		return b
	}
	return binary.AppendUvarint(append(b, field), uint64(n))
}

// readEvent takes the first event off b. What it returns does not share b.
func readEvent(b []byte) (e Event, rest []byte, err error) {
	size, n := binary.Uvarint(b)
	if n <= 0 || size > uint64(len(b)-n) {
		return e, nil, errEvent
	}
	fields, rest := b[n:n+int(size)], b[n+int(size):]
	for len(fields) > 0 {
		field := fields[0]
		v, n := binary.Uvarint(fields[1:])
		if n <= 0 {
			return e, nil, errEvent
		}
		fields = fields[1+n:]
		if field >= firstNumber {
			e.number(field, int64(v&(1<<63-1)))
			continue
		}
		if v > uint64(len(fields)) {
			return e, nil, errEvent
		}
		e.text(field, fields[:v])
		fields = fields[v:]
	}
	return e, rest, nil
}

func (e *Event) text(field byte, b []byte) {
	switch field {
	case fieldKind:
		e.Kind = string(b)
	case fieldText:
		e.Text = append([]byte(nil), b...)
	case fieldParam:
		e.Params = append(e.Params, string(b))
	case fieldShape:
		e.Shape = string(b)
	case fieldDecision:
		e.Decision = isle.Decision(b)
	case fieldRule:
		e.Rule = string(b)
	case fieldApproval:
		e.Approval = isle.ID(b)
	case fieldTag:
		e.Tag = string(b)
	case fieldError:
		e.Error = string(b)
	case fieldData:
		e.Data = append([]byte(nil), b...)
	case fieldDigest:
		e.Digest = isle.Digest(b)
	}
}

func (e *Event) number(field byte, n int64) {
	switch field {
	case fieldAt:
		e.At = time.UnixMicro(n).UTC()
	case fieldRows:
		e.Rows = n
	case fieldBytes:
		e.Bytes = n
	case fieldTook:
		e.Took = time.Duration(min(n, 1<<53)) * time.Microsecond
	case fieldCut:
		e.Cut = n
	}
}

var errEvent = isle.Errorf(isle.Untrusted, "an event cannot be read")
