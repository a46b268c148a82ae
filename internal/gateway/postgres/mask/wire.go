package mask

import (
	"bytes"
	"encoding/binary"

	"isle"
)

// Fields reads a RowDescription, type and length included.
func Fields(msg []byte) ([]Field, error) {
	bad := isle.Errorf(isle.Untrusted, "the database sent a description of a result that can't be read")
	if len(msg) < 7 || msg[0] != 'T' || binary.BigEndian.Uint32(msg[1:]) != uint32(len(msg)-1) {
		return nil, bad
	}
	n, b := int(binary.BigEndian.Uint16(msg[5:])), msg[7:]
	if n > maxColumns {
		return nil, bad
	}
	out := make([]Field, 0, n)
	for range n {
		end := bytes.IndexByte(b, 0)
		if end < 0 || len(b) < end+19 {
			return nil, bad
		}
		name, rest := string(b[:end]), b[end+1:]
		out = append(out, Field{
			Name: name, Table: binary.BigEndian.Uint32(rest), Attr: binary.BigEndian.Uint16(rest[4:]), Type: binary.BigEndian.Uint32(rest[6:]),
			Modifier: int32(binary.BigEndian.Uint32(rest[12:])), Format: int16(binary.BigEndian.Uint16(rest[16:])),
		})
		b = rest[18:]
	}
	if len(b) != 0 {
		return nil, bad
	}
	return out, nil
}
