package mask_test

import (
	"encoding/binary"
	"fmt"
	"testing"

	"isle/internal/policy"
)

// values are of each type that a mask shows a value of, as PostgreSQL writes
// them.
var values = [][2]string{
	{"text", "'canary'"}, {"varchar(6)", "'canary'"}, {"varchar", "'canary@secret.example'"}, {"char(9)", "'canary'"}, {"name", "'canary'"}, {"\"char\"", "'c'"},
	{"boolean", "true"}, {"smallint", "12345"}, {"int", "-777123451"}, {"bigint", "777123451777"}, {"oid", "777123451"},
	{"real", "1.5e10"}, {"real", "0.25"}, {"float8", "1.5e100"}, {"float8", "123456789.5"}, {"float8", "1e-7"}, {"float8", "'NaN'"},
	{"numeric", "777123451.170"}, {"numeric(12,2)", "-0.05"}, {"numeric", "120000"}, {"numeric", "0.0000001"}, {"numeric", "'NaN'"}, {"numeric", "0"}, {"money", "12.34"},
	{"date", "'1987-06-05'"}, {"date", "'infinity'"}, {"date", "'0044-03-15 BC'"}, {"time", "'04:03:02'"}, {"timetz", "'04:03:02+02'"},
	{"timestamp", "'1987-06-05 04:03:02.5'"}, {"timestamptz", "'1987-06-05 04:03:02+00'"}, {"timestamp", "'-infinity'"}, {"interval", "'3 days 2 hours'"},
	{"uuid", "'ca4a57c0-ffee-4bad-8bad-ca4a57c0ffee'"}, {"bytea", "'\\xca4a57c0ff'"}, {"json", `'{"a": "canary"}'`}, {"jsonb", `'{"a": "canary"}'`},
	{"inet", "'10.1.2.3/24'"}, {"cidr", "'10.1.0.0/16'"}, {"macaddr", "'08:00:2b:01:02:03'"},
	{"text[]", "'{canary,x}'"}, {"int[]", "'{777123451}'"}, {"numeric[]", "'{1.5}'"}, {"jsonb[]", "ARRAY['{}'::jsonb]"}, {"uuid[]", "'{ca4a57c0-ffee-4bad-8bad-ca4a57c0ffee}'"},
	{"point", "'(1,2)'"}, {"int4range", "'[1,5)'"}, {"tsvector", "'canary'"}, {"xml", "'<canary/>'"}, {"bit(3)", "'101'"}, {"mood", "'sad'"}, {"pair", "ROW('canary', 1)"}, {"short", "'canary'"},
}

// What is shown instead of a value is a value of the same type, in both formats
// the same, and PostgreSQL takes it back.
func TestWhatIsShownIsValidOfItsType(t *testing.T) {
	db, name, _ := shop(t, nil)
	side, c := connect(t, db, name), connect(t, db, name)
	sql := "CREATE TYPE mood AS ENUM ('sad'); CREATE TYPE pair AS (a text, b int); CREATE DOMAIN short AS varchar(10);"
	for i, v := range values {
		sql += fmt.Sprintf("CREATE TABLE v%d (x %s); INSERT INTO v%d VALUES (%s::%s);", i, v[0], i, v[1], v[0])
	}
	db.Must(t, name, sql)
	for _, show := range []string{"full", "partial", "hash", "null", "type"} {
		t.Run(show, func(t *testing.T) {
			var masks []policy.Mask
			for i := range values {
				masks = append(masks, policy.Mask{Column: fmt.Sprintf("v%d.x", i), Show: show})
			}
			s := masksOf(t, masks).Begin(side.rows)
			for i, v := range values {
				var shown [2]string
				for format := range 2 {
					r := c.run(s, fmt.Sprintf("SELECT x FROM v%d", i), false, int16(format))
					if r.err != nil || r.rows != 1 {
						t.Fatalf("%s %s: %v, %q", v[0], v[1], r.err, r.raw)
					}
					search(t, v[0], r.sent)
					value, null := lastValue(t, r.sent)
					if show == "null" && !null {
						t.Errorf("%s shows as %q", v[0], value)
					}
					if shown[format] = "NULL"; !null {
						shown[format] = c.back(v[0], value, int16(format))
					}
				}
				if shown[0] != shown[1] {
					t.Errorf("%s %s shows as %q in text and %q in binary", v[0], v[1], shown[0], shown[1])
				}
				if shown[0] == "t" || shown[0] == "canary" || len(v[1]) > 3 && shown[0] == v[1][1:len(v[1])-1] {
					t.Errorf("%s %s shows as it is", v[0], v[1])
				}
				t.Logf("%s %s: %s", v[0], v[1], shown[0])
			}
		})
	}
}

// lastValue is the only value of the only row.
func lastValue(t *testing.T, sent []byte) (value []byte, null bool) {
	t.Helper()
	for len(sent) > 0 {
		size := 1 + int(binary.BigEndian.Uint32(sent[1:]))
		if sent[0] == 'D' {
			n := int32(binary.BigEndian.Uint32(sent[7:]))
			return sent[11:size], n < 0
		}
		sent = sent[size:]
	}
	t.Fatal("no row")
	return nil, false
}

// back gives a value to PostgreSQL and returns how it writes it.
func (c *client) back(typ string, value []byte, format int16) string {
	c.t.Helper()
	c.write(message('P', []byte("\x00SELECT CASE WHEN true THEN $1::"+typ+" END::text\x00\x00\x00")))
	bind := binary.BigEndian.AppendUint16([]byte("\x00\x00\x00\x01"), uint16(format))
	bind = append(bind, 0, 1)
	bind = append(binary.BigEndian.AppendUint32(bind, uint32(len(value))), value...)
	c.write(message('B', append(bind, 0, 0)))
	c.write(message('E', []byte("\x00\x00\x00\x00\x00")))
	c.write(message('S', nil))
	out := "no row"
	c.until('Z', func(kind byte, msg []byte) {
		switch kind {
		case 'D':
			out = string(msg[11:])
		case 'E':
			c.t.Errorf("%s takes no %q: %q", typ, value, msg)
		}
	})
	return out
}
