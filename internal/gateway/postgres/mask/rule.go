package mask

import (
	"slices"
	"strings"

	"isle"
	"isle/internal/gateway"
	"isle/internal/policy"
)

// A use is what a statement does with a column.
type use string

// The uses. A mask may allow some of them beside plain output.
const (
	useFilter    use = "filter"    // WHERE, HAVING, ON, USING
	useOrder     use = "order"     // ORDER BY
	useGroup     use = "group"     // GROUP BY, DISTINCT, PARTITION BY, UNION
	useAggregate use = "aggregate" // count(column) and its like
	useOther     use = ""          // everything else; never allowed
)

// A rule is a mask as it is applied to columns.
type rule struct {
	schema, table, column string // schema "" is every schema
	show                  string
	allow                 []use
	said                  string // the mask, as the file says it
}

func newRule(m policy.Mask) (*rule, error) {
	parts := strings.Split(m.Column, ".")
	r := &rule{show: m.Show, said: m.Column}
	switch len(parts) {
	case 2:
		r.table, r.column = parts[0], parts[1]
	case 3:
		r.schema, r.table, r.column = parts[0], parts[1], parts[2]
	default:
		return nil, isle.Errorf(isle.Invalid, "%s: mask of %q: want TABLE.COLUMN or SCHEMA.TABLE.COLUMN", m.At, m.Column)
	}
	if slices.Contains(parts, "") {
		return nil, isle.Errorf(isle.Invalid, "%s: mask of %q: want TABLE.COLUMN or SCHEMA.TABLE.COLUMN", m.At, m.Column)
	}
	if r.show == "" {
		r.show = gateway.ShowFull
	}
	switch r.show {
	case gateway.ShowFull, gateway.ShowPartial, gateway.ShowHash, gateway.ShowNull, gateway.ShowType:
	default:
		return nil, isle.Errorf(isle.Invalid, "%s: mask of %q: show: %q is not a way to show it", m.At, m.Column, m.Show).WithHint("there are full, partial, hash, null and type")
	}
	for _, a := range m.Allow {
		switch u := use(a); u {
		case useFilter, useOrder, useGroup, useAggregate:
			r.allow = append(r.allow, u)
		default:
			return nil, isle.Errorf(isle.Invalid, "%s: mask of %q: allow: %q is not a use", m.At, m.Column, a).WithHint("there are filter, order, group and aggregate")
		}
	}
	return r, nil
}

func (r *rule) names(schema, table string) bool {
	return r.table == table && (r.schema == "" || r.schema == schema)
}

func (r *rule) allows(u use) bool { return u != useOther && slices.Contains(r.allow, u) }

// stricter is what holds where two masks meet in one column: it shows nothing
// that either hides, and allows only what both do.
func stricter(a, b *rule) *rule {
	switch {
	case a == nil || a == b:
		return b
	case b == nil:
		return a
	}
	c := &rule{schema: a.schema, table: a.table, column: a.column, show: a.show, said: a.said}
	if a.show != b.show {
		c.show = gateway.ShowFull
		if a.show == gateway.ShowNull || b.show == gateway.ShowNull {
			c.show = gateway.ShowNull
		}
	}
	for _, u := range a.allow {
		if b.allows(u) {
			c.allow = append(c.allow, u)
		}
	}
	return c
}
