package mask

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math"
	"strconv"
	"strings"

	"isle/internal/gateway"
)

func trimBlanks(b []byte) []byte { return bytes.TrimRight(b, " ") }

// bytesOf reads bytea as text: \x and hexadecimal digits. The older escape
// format hashes as it is written.
func bytesOf(text []byte) []byte {
	if len(text) < 2 || text[0] != '\\' || text[1] != 'x' {
		return text
	}
	out, err := hex.AppendDecode(nil, text[2:])
	if err != nil {
		return text
	}
	return out
}

// uuid shows a hash as a random UUID (RFC 9562, version 4).
func (c *cell) uuid(dst []byte, d *gateway.Disguise, value []byte) []byte {
	if !c.binary {
		if raw, err := hex.AppendDecode(nil, bytes.ReplaceAll(value, []byte("-"), nil)); err == nil {
			value = raw
		}
	}
	sum := d.Sum(value)[:16]
	sum[6], sum[8] = sum[6]&0x0f|0x40, sum[8]&0x3f|0x80
	if c.binary {
		return append(dst, sum...)
	}
	for i, n := range []int{4, 2, 2, 2, 6} {
		if i > 0 {
			dst = append(dst, '-')
		}
		dst = hex.AppendEncode(dst, sum[:n])
		sum = sum[n:]
	}
	return dst
}

// number shows a hash as a number that its type holds. Text and binary of one
// value hash equal.
func (c *cell) number(dst []byte, d *gateway.Disguise, value []byte) []byte {
	text := value
	switch {
	case c.binary:
		text = c.decimal(value)
	case c.form == formNumeric:
		text = trimZeros(value)
	case c.form == formFloat4:
		text = floatOf(value, 32)
	case c.form == formFloat8:
		text = floatOf(value, 64)
	}
	n := binary.BigEndian.Uint64(d.Sum(text))
	switch c.form {
	case formInt2:
		n &= math.MaxInt16
	case formInt4:
		n &= math.MaxInt32
	case formInt8:
		n &= math.MaxInt64
	case formFloat4:
		n &= 1<<24 - 1
	default: // float8 holds so many exactly
		n &= 1<<53 - 1
	}
	if c.form == formNumeric && c.limit > 0 && c.limit < 16 {
		n %= uint64(math.Pow10(c.limit))
	}
	if !c.binary {
		return strconv.AppendUint(dst, n, 10)
	}
	switch c.form {
	case formInt2:
		return binary.BigEndian.AppendUint16(dst, uint16(n))
	case formInt4:
		return binary.BigEndian.AppendUint32(dst, uint32(n))
	case formInt8:
		return binary.BigEndian.AppendUint64(dst, n)
	case formFloat4:
		return binary.BigEndian.AppendUint32(dst, math.Float32bits(float32(n)))
	case formFloat8:
		return binary.BigEndian.AppendUint64(dst, math.Float64bits(float64(n)))
	}
	return appendNumeric(dst, n)
}

// decimal is a binary number as PostgreSQL writes it as text, of floating point
// its bits.
func (c *cell) decimal(b []byte) []byte {
	switch {
	case c.form == formInt2 && len(b) == 2:
		return strconv.AppendInt(nil, int64(int16(binary.BigEndian.Uint16(b))), 10)
	case c.form == formInt4 && len(b) == 4:
		return strconv.AppendInt(nil, int64(int32(binary.BigEndian.Uint32(b))), 10)
	case c.form == formInt8 && len(b) == 8:
		return strconv.AppendInt(nil, int64(binary.BigEndian.Uint64(b)), 10)
	case c.form == formFloat4 && len(b) == 4:
		return floatBits(float64(math.Float32frombits(binary.BigEndian.Uint32(b))))
	case c.form == formFloat8 && len(b) == 8:
		return floatBits(math.Float64frombits(binary.BigEndian.Uint64(b)))
	case c.form == formNumeric:
		return numericText(b)
	}
	return b
}

// floatOf reads a number as PostgreSQL writes it: its text is not always the one
// that Go writes for the same bits.
func floatOf(text []byte, bits int) []byte {
	f, err := strconv.ParseFloat(string(text), bits)
	if err != nil {
		return text
	}
	return floatBits(f)
}

func floatBits(f float64) []byte {
	if math.IsNaN(f) {
		f = math.NaN() // of many that there are
	}
	return strconv.AppendUint(nil, math.Float64bits(f), 16)
}

// trimZeros takes the zeros from the end of decimals, which 1.50 has and 1.5
// has not.
func trimZeros(text []byte) []byte {
	if bytes.IndexByte(text, '.') < 0 {
		return text
	}
	return bytes.TrimRight(bytes.TrimRight(text, "0"), ".")
}

// numericText reads numeric's binary form: how many digits of base 10,000, the
// weight of the first, sign, scale, digits (numeric_send).
func numericText(b []byte) []byte {
	if len(b) < 8 {
		return b
	}
	n, weight, sign := int(binary.BigEndian.Uint16(b)), int(int16(binary.BigEndian.Uint16(b[2:]))), binary.BigEndian.Uint16(b[4:])
	switch sign {
	case 0xC000:
		return []byte("NaN")
	case 0xD000:
		return []byte("Infinity")
	case 0xF000:
		return []byte("-Infinity")
	}
	if len(b) != 8+2*n || weight > 1<<13 || weight < -(1<<13) {
		return b
	}
	digit := func(i int) uint16 { // of weight -i
		if i < 0 || i >= n {
			return 0
		}
		return binary.BigEndian.Uint16(b[8+2*i:])
	}
	var s strings.Builder
	if sign == 0x4000 {
		s.WriteByte('-')
	}
	if weight < 0 {
		s.WriteByte('0')
	}
	for i := 0; i <= weight; i++ {
		if i == 0 {
			s.WriteString(strconv.Itoa(int(digit(0))))
		} else {
			s.WriteString(four(digit(i)))
		}
	}
	s.WriteByte('.')
	for i := weight + 1; i < n || i < 0; i++ {
		s.WriteString(four(digit(i)))
	}
	return trimZeros([]byte(s.String()))
}

func four(d uint16) string {
	s := strconv.Itoa(int(d))
	return "0000"[:max(0, 4-len(s))] + s
}

// appendNumeric writes a whole number in numeric's binary form.
func appendNumeric(dst []byte, n uint64) []byte {
	var digits []uint16
	for ; n > 0; n /= 10000 {
		digits = append(digits, uint16(n%10000))
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(digits)))
	dst = binary.BigEndian.AppendUint16(dst, uint16(max(0, len(digits)-1)))
	dst = append(dst, 0, 0, 0, 0) // positive, no decimals
	for i := len(digits) - 1; i >= 0; i-- {
		dst = binary.BigEndian.AppendUint16(dst, digits[i])
	}
	return dst
}
