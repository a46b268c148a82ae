package mask

import (
	"encoding/binary"

	"isle"
	"isle/internal/gateway"
)

// How a column of a row is written.
type way int

const (
	asIs     way = iota
	constant     // always the same, but NULL stays
	gone         // NULL
	computed     // from the value
	searched     // as it is, but for what detectors find
)

// A cell is one column of the rows of a result.
type cell struct {
	way    way
	fixed  []byte // of constant: what is sent
	show   string // of computed
	form   form
	binary bool
	limit  int  // characters at most, of numeric digits before the point; 0: any number
	pad    bool // with blanks to the limit
	fill   byte // of searched
}

// Rows rewrites the rows of one result. It is for one goroutine at a time.
type Rows struct {
	cells    []cell
	pass     bool
	last     int // the last cell that is not asIs
	disguise *gateway.Disguise
	detect   gateway.Detectors
}

func newRows(m *Masks, fields []Field, rules []*rule, formats []int16) (*Rows, error) {
	r := &Rows{cells: make([]cell, len(fields)), pass: true, last: -1, detect: m.detect}
	for i, f := range fields {
		switch {
		case formats == nil:
		case len(formats) == 0:
			f.Format = 0
		case len(formats) == 1:
			f.Format = formats[0]
		case len(formats) == len(fields):
			f.Format = formats[i]
		default:
			return nil, isle.Errorf(isle.Invalid, "%d formats of %d columns", len(formats), len(fields))
		}
		if rules[i] != nil {
			r.cells[i] = cellOf(f, rules[i].show)
		} else if m.detect.Any() {
			r.cells[i] = searchedCell(f)
		}
		if r.cells[i].way != asIs {
			r.pass, r.last = false, i
		}
		if r.cells[i].way == computed && r.disguise == nil {
			r.disguise = gateway.NewDisguise(m.key)
		}
	}
	return r, nil
}

// Pass reports whether rows go through as they are.
func (r *Rows) Pass() bool { return r.pass }

// Row appends a DataRow message, as it is to be sent, to dst; src is the whole
// message that came, type and length included. The error's code is
// isle.Untrusted where src is no DataRow of this result: nothing of it may be
// sent.
func (r *Rows) Row(dst, src []byte) ([]byte, error) {
	if len(src) < 7 || src[0] != 'D' || binary.BigEndian.Uint32(src[1:]) != uint32(len(src)-1) {
		return dst, errRow
	}
	if int(binary.BigEndian.Uint16(src[5:])) != len(r.cells) {
		return dst, errRow
	}
	if r.pass {
		return append(dst, src...), nil
	}
	start := len(dst)
	from, at := 0, 7 // what is before from has been written
	for i := range r.cells {
		if len(src)-at < 4 {
			return dst[:start], errRow
		}
		size := int(int32(binary.BigEndian.Uint32(src[at:])))
		if size < -1 || size > len(src)-at-4 {
			return dst[:start], errRow
		}
		value := at
		at += 4 + max(size, 0)
		c := &r.cells[i]
		if size < 0 || c.way == asIs {
			continue
		}
		dst = append(dst, src[from:value]...)
		dst = r.cell(dst, c, src[value+4:at])
		from = at
	}
	if at != len(src) {
		return dst[:start], errRow
	}
	dst = append(dst, src[from:]...)
	binary.BigEndian.PutUint32(dst[start+1:], uint32(len(dst)-start-1))
	return dst, nil
}

var errRow = isle.Errorf(isle.Untrusted, "the database sent a row that does not fit its description")

// cell appends length and value of one column.
func (r *Rows) cell(dst []byte, c *cell, value []byte) []byte {
	switch c.way {
	case constant:
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(c.fixed)))
		return append(dst, c.fixed...)
	case gone:
		return append(dst, 0xff, 0xff, 0xff, 0xff)
	case searched:
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(value)))
		start := len(dst)
		dst = append(dst, value...)
		r.detect.Mask(dst[start:], c.fill)
		return dst
	}
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = c.compute(dst, r.disguise, value)
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	return dst
}

// Copy covers what detectors find in the data of COPY … TO STDOUT (CopyData), in
// place. Columns with masks don't leave by COPY at all.
func (m *Masks) Copy(data []byte) {
	if m.detect.Any() {
		m.detect.Mask(data, '*')
	}
}
