package mask_test

import (
	"testing"

	"isle/internal/gateway/postgres/mask"
	"isle/internal/policy"
)

// BenchmarkRead reads 500,000 rows from PostgreSQL, as they are and masked.
func BenchmarkRead(b *testing.B) {
	const sql = "SELECT id, email, note FROM people ORDER BY id"
	db, name, _ := shop(b, nil)
	db.Must(b, name, "TRUNCATE people; INSERT INTO people SELECT i, 'name' || i || '@secret.example', 'a note of some length ' || i FROM generate_series(1, 500000) i")
	db.Must(b, name, "VACUUM ANALYZE people")
	c := connect(b, db, name)
	side := connect(b, db, name)
	for _, show := range []string{"direct", "full", "partial", "hash"} {
		b.Run(show, func(b *testing.B) {
			var rows *mask.Rows
			var out []byte
			s := masksOf(b, []policy.Mask{{Column: "people.email", Show: "full"}}).Begin(side.rows)
			if show != "direct" {
				s = masksOf(b, []policy.Mask{{Column: "people.email", Show: show}}).Begin(side.rows)
			}
			for b.Loop() {
				p, err := s.Plan(b.Context(), statement(sql, false))
				if err != nil {
					b.Fatal(err)
				}
				n := 0
				c.write(message('Q', []byte(sql+"\x00")))
				c.until('Z', func(kind byte, msg []byte) {
					switch {
					case kind == 'T':
						fields, _ := mask.Fields(msg)
						if rows, err = s.Rows(b.Context(), p, fields, nil); err != nil {
							b.Fatal(err)
						}
					case kind == 'D':
						n++
						if show != "direct" {
							if out, err = rows.Row(out[:0], msg); err != nil {
								b.Fatal(err)
							}
						}
					}
				})
				if n != 500000 {
					b.Fatalf("%d rows", n)
				}
			}
			b.ReportMetric(500000*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
