package mask

import (
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"time"
	"unicode/utf8"

	"isle/internal/gateway"
)

// A form is how the values of a type are written, as far as masks tell them
// apart.
type form int

const (
	formOther form = iota // shown as NULL, which is valid of each type
	formText
	formBlank // character(n), padded
	formJSON
	formJSONB
	formBytes
	formBool
	formInt2
	formInt4
	formInt8
	formFloat4
	formFloat8
	formNumeric
	formMoney
	formDate
	formTime
	formTimeTZ
	formTimestamp
	formTimestampTZ
	formInterval
	formUUID
	formInet
	formCIDR
	formMAC
	formArray
	formChar // "char", one byte
)

// formOf knows the types of pg_catalog by their OIDs, which don't change
// (pg_type.dat).
func formOf(oid uint32) form {
	switch oid {
	case 25, 19, 705: // text, name, unknown
		return formText
	case 1043: // varchar
		return formText
	case 1042:
		return formBlank
	case 114:
		return formJSON
	case 3802:
		return formJSONB
	case 17:
		return formBytes
	case 16:
		return formBool
	case 18:
		return formChar
	case 21:
		return formInt2
	case 23:
		return formInt4
	case 26: // oid
		return formInt4
	case 20:
		return formInt8
	case 700:
		return formFloat4
	case 701:
		return formFloat8
	case 1700:
		return formNumeric
	case 790:
		return formMoney
	case 1082:
		return formDate
	case 1083:
		return formTime
	case 1266:
		return formTimeTZ
	case 1114:
		return formTimestamp
	case 1184:
		return formTimestampTZ
	case 1186:
		return formInterval
	case 2950:
		return formUUID
	case 869:
		return formInet
	case 650:
		return formCIDR
	case 829:
		return formMAC
	case 1000, 1001, 1002, 1003, 1005, 1007, 1009, 1014, 1015, 1016, 1021, 1022, 1115, 1182, 1183, 1185, 1187, 1231, 1270, 199, 3807, 2951, 1041, 651:
		return formArray
	}
	return formOther
}

// elementOf is the type of an array's elements.
func elementOf(oid uint32) uint32 {
	switch oid {
	case 1000:
		return 16
	case 1001:
		return 17
	case 1002:
		return 18
	case 1003:
		return 19
	case 1005:
		return 21
	case 1007:
		return 23
	case 1009:
		return 25
	case 1014:
		return 1042
	case 1015:
		return 1043
	case 1016:
		return 20
	case 1021:
		return 700
	case 1022:
		return 701
	case 1115:
		return 1114
	case 1182:
		return 1082
	case 1183:
		return 1083
	case 1185:
		return 1184
	case 1187:
		return 1186
	case 1231:
		return 1700
	case 1270:
		return 1266
	case 199:
		return 114
	case 3807:
		return 3802
	case 2951:
		return 2950
	case 1041:
		return 869
	case 651:
		return 650
	}
	return 0
}

// cellOf says how a masked column is written: valid of its type, in the format
// that was asked for.
func cellOf(f Field, show string) cell {
	c := cell{form: formOf(f.Type), show: show, binary: f.Format == 1, way: constant}
	if f.Format != 0 && f.Format != 1 || c.form == formOther || show == gateway.ShowNull {
		return cell{way: gone}
	}
	if f.Modifier > 4 && (f.Type == 1043 || f.Type == 1042) {
		c.limit, c.pad = int(f.Modifier)-4, f.Type == 1042
	}
	if f.Type == 19 {
		c.limit = 63
	}
	if f.Type == 1700 && f.Modifier >= 4 { // precision and scale
		c.limit = max(0, int((f.Modifier-4)>>16&0xffff)-int((f.Modifier-4)&0x7ff))
	}
	switch c.form {
	case formText, formBlank, formJSON, formJSONB:
		if show == gateway.ShowPartial || show == gateway.ShowHash {
			c.way = computed
			return c
		}
	case formDate, formTimestamp, formTimestampTZ:
		if show == gateway.ShowPartial {
			c.way = computed
			return c
		}
	case formBytes, formInt2, formInt4, formInt8, formFloat4, formFloat8, formNumeric, formUUID:
		if show == gateway.ShowHash {
			c.way = computed
			return c
		}
	}
	if c.binary {
		c.fixed = zeroBinary(c, f.Type)
	} else {
		c.fixed = zeroText(c)
	}
	if c.fixed == nil {
		return cell{way: gone}
	}
	return c
}

// searchedCell lets detectors look into columns of text.
func searchedCell(f Field) cell {
	switch formOf(f.Type) {
	case formText, formBlank:
		return cell{way: searched, fill: '*'}
	case formJSON, formJSONB: // a digit, since what is found may be a number
		return cell{way: searched, fill: '9'}
	case formArray:
		if e := formOf(elementOf(f.Type)); e == formText || e == formBlank {
			return cell{way: searched, fill: '*'}
		} else if e == formJSON || e == formJSONB {
			return cell{way: searched, fill: '9'}
		}
	}
	return cell{}
}

// word is what a text shows.
func (c cell) word() string {
	if c.show == gateway.ShowType {
		return ""
	}
	return "****"
}

// fit cuts a text to what its type holds, and pads it.
func (c cell) fit(dst []byte, start int) []byte {
	if c.limit == 0 {
		return dst
	}
	n, at := 0, start
	for at < len(dst) && n < c.limit {
		_, size := utf8.DecodeRune(dst[at:])
		at += size
		n++
	}
	dst = dst[:at]
	for ; c.pad && n < c.limit; n++ {
		dst = append(dst, ' ')
	}
	return dst
}

func zeroText(c cell) []byte {
	switch c.form {
	case formText, formBlank:
		return c.fit(append([]byte{}, c.word()...), 0)
	case formJSON, formJSONB:
		return strconv.AppendQuote(nil, c.word())
	case formBytes:
		return []byte(`\x`)
	case formBool:
		return []byte("f")
	case formChar:
		return []byte("*")
	case formInt2, formInt4, formInt8, formFloat4, formFloat8, formNumeric:
		return []byte("0")
	case formMoney:
		return []byte("$0.00")
	case formDate:
		return []byte("1970-01-01")
	case formTime:
		return []byte("00:00:00")
	case formTimeTZ:
		return []byte("00:00:00+00")
	case formTimestamp:
		return []byte("1970-01-01 00:00:00")
	case formTimestampTZ:
		return []byte("1970-01-01 00:00:00+00")
	case formInterval:
		return []byte("00:00:00")
	case formUUID:
		return []byte("00000000-0000-0000-0000-000000000000")
	case formInet:
		return []byte("0.0.0.0")
	case formCIDR:
		return []byte("0.0.0.0/32")
	case formMAC:
		return []byte("00:00:00:00:00:00")
	case formArray:
		return []byte("{}")
	}
	return nil
}

// epoch is 1970-01-01 in days of PostgreSQL, which counts from 2000-01-01.
const epoch = -10957

func zeroBinary(c cell, oid uint32) []byte {
	switch c.form {
	case formText, formBlank:
		return c.fit(append([]byte{}, c.word()...), 0)
	case formJSON:
		return strconv.AppendQuote(nil, c.word())
	case formJSONB:
		return strconv.AppendQuote([]byte{1}, c.word())
	case formBytes:
		return []byte{}
	case formBool:
		return []byte{0}
	case formChar:
		return []byte("*")
	case formInt2:
		return make([]byte, 2)
	case formInt4, formFloat4:
		return make([]byte, 4)
	case formInt8, formFloat8, formMoney, formTime:
		return make([]byte, 8)
	case formNumeric:
		return make([]byte, 8) // no digits, weight, sign and scale 0
	case formDate:
		return binary.BigEndian.AppendUint32(nil, uint32(0xffffffff+epoch+1))
	case formTimeTZ:
		return make([]byte, 12)
	case formTimestamp, formTimestampTZ:
		return binary.BigEndian.AppendUint64(nil, stamp(1970))
	case formInterval, formUUID:
		return make([]byte, 16)
	case formInet:
		return []byte{2, 32, 0, 4, 0, 0, 0, 0}
	case formCIDR:
		return []byte{2, 32, 1, 4, 0, 0, 0, 0}
	case formMAC:
		return make([]byte, 6)
	case formArray:
		return binary.BigEndian.AppendUint32(make([]byte, 8), elementOf(oid))
	}
	return nil
}

// stamp is the first of January of a year in microseconds since 2000.
func stamp(year int) uint64 {
	since := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	return uint64(time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro() - since.UnixMicro())
}

// compute appends what is shown instead of a value.
func (c *cell) compute(dst []byte, d *gateway.Disguise, value []byte) []byte {
	switch c.form {
	case formText:
		start := len(dst)
		return c.fit(d.Append(dst, c.show, value), start)
	case formBlank:
		start := len(dst)
		return c.fit(d.Append(dst, c.show, trimBlanks(value)), start)
	case formJSON, formJSONB:
		if c.form == formJSONB && c.binary {
			dst = append(dst, 1)
			if len(value) > 0 {
				value = value[1:]
			}
		}
		return c.json(dst, d, value)
	case formDate, formTimestamp, formTimestampTZ:
		return c.year(dst, value)
	case formBytes:
		if !c.binary {
			value = bytesOf(value)
			return hex.AppendEncode(append(dst, `\x`...), d.Sum(value)[:16])
		}
		return append(dst, d.Sum(value)[:16]...)
	case formUUID:
		return c.uuid(dst, d, value)
	}
	return c.number(dst, d, value)
}

// json shows a string: that of a text if it is one, else of the whole value.
// Text and binary have the same bytes, so that they hash equal.
func (c *cell) json(dst []byte, d *gateway.Disguise, value []byte) []byte {
	show := c.show
	if show == gateway.ShowPartial {
		show = gateway.ShowFull
	}
	dst = append(dst, '"')
	dst = d.Append(dst, show, value)
	return append(dst, '"')
}

// year keeps the year of a date.
func (c *cell) year(dst, value []byte) []byte {
	if c.binary {
		return c.yearBinary(dst, value)
	}
	// ISO, as 1987-06-05, with or without more; another DateStyle shows nothing.
	if len(value) < 10 || value[4] != '-' || value[7] != '-' || value[len(value)-1] == 'C' {
		return append(dst, zeroText(*c)...)
	}
	for _, b := range value[:4] {
		if b < '0' || b > '9' {
			return append(dst, zeroText(*c)...)
		}
	}
	dst = append(dst, value[:4]...)
	return append(dst, string(zeroText(*c)[4:])...)
}

func (c *cell) yearBinary(dst, value []byte) []byte {
	const day = 24 * time.Hour / time.Microsecond
	var at int64 // microseconds since 2000
	switch len(value) {
	case 4:
		at = int64(int32(binary.BigEndian.Uint32(value))) * int64(day)
	case 8:
		at = int64(binary.BigEndian.Uint64(value))
	}
	year := 1970
	if at > -1e17 && at < 1e17 { // not infinity
		year = time.UnixMicro(at - epoch*int64(day)).UTC().Year()
	}
	if year < 1 || year > 9999 { // as text, which is written otherwise then
		year = 1970
	}
	if c.form == formDate {
		return binary.BigEndian.AppendUint32(dst, uint32(int32(int64(stamp(year))/int64(day))))
	}
	return binary.BigEndian.AppendUint64(dst, stamp(year))
}
