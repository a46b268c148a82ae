package mask

import (
	"context"
	"slices"
	"strings"

	"isle"
)

// A Plan is what is known of a statement's columns before it runs.
type Plan struct {
	cat       *catalog
	statement Statement
	err       *isle.Error

	rows         *result // nil: it gives no rows of tables
	alternatives []*Plan // of EXECUTE and FETCH: what their name may mean
	touches      bool    // a table with masks, or one that may have them
	values       bool    // a masked column is written or compared
	made         bool    // a table that the catalog does not have yet
	unknown      bool    // a name that the catalog does not have

	makes   []*table
	changes bool
	names   map[string][]*Plan // where it is kept, by name
	name    string
}

// A Field is a column of a result as RowDescription has it.
type Field struct {
	Name     string
	Table    uint32 // OID; 0 if it is no table's column
	Attr     uint16 // attribute number
	Type     uint32 // OID
	Modifier int32
	Format   int16 // 0 text, 1 binary
}

// Rows says how the rows of a result are to be rewritten. Two lines have to be
// passed: what the statement's text says of each column, and what the database
// itself says of where it is from. What either finds masked leaves masked. The
// error's code is isle.Refused where the two can't be brought together: then no
// row may be sent, and since the statement runs already the session is ended.
// formats are those of Bind; nil where the fields' own count.
func (s *Session) Rows(ctx context.Context, p *Plan, fields []Field, formats []int16) (*Rows, error) {
	rules := make([]*rule, len(fields))
	if len(s.masks.rules) > 0 {
		if p == nil || p.cat == nil || p.err != nil {
			return nil, isle.Errorf(isle.Refused, "a result came of a statement that was not planned, and this connection has masks")
		}
		if err := s.origins(ctx, p, fields, rules); err != nil {
			return nil, err
		}
		if err := p.lineage(fields, rules); err != nil {
			s.masks.changed()
			return nil, err
		}
	}
	return newRows(s.masks, fields, rules, formats)
}

// origins is the second line: the tables and attributes that the database names.
func (s *Session) origins(ctx context.Context, p *Plan, fields []Field, rules []*rule) error {
	cat, fresh := p.cat, false
	for i := 0; i < len(fields); i++ {
		f := fields[i]
		if f.Table < firstUser && cat.tables[f.Table] == nil {
			continue
		}
		t := cat.tables[f.Table]
		var c *column
		if t != nil && f.Attr > 0 {
			c = t.attr(f.Attr)
		}
		switch {
		case c != nil:
			rules[i] = c.rule
		case t != nil && (f.Attr == 0 || f.Attr > 1<<15): // a whole row, or a column of the system
			if f.Attr == 0 && t.masked() && !p.statement.Lift {
				return isle.Errorf(isle.Refused, "column %q of the result is a whole row of %s, which has masks", f.Name, t)
			}
		case p.made && t == nil:
		case fresh:
			return isle.Errorf(isle.Refused, "column %q of the result is from a table that is not known", f.Name).
				WithHint("it is known once the transaction that made it has committed")
		default: // changed since: look again
			again, err := s.masks.current(ctx, s.query, true)
			if err != nil {
				return err
			}
			cat, fresh = again, true
			i = -1
		}
		if t != nil && t.closed != "" && !p.statement.Lift {
			return isle.Errorf(isle.Refused, "%s may not be read here: %s", t, t.closed)
		}
	}
	return nil
}

// lineage is the first line: what was found in the statement's text.
func (p *Plan) lineage(fields []Field, rules []*rule) error {
	if p.alternatives == nil {
		return p.rows.match(fields, rules, p.statement.Lift)
	}
	fits := false
	for _, o := range p.alternatives {
		switch {
		case o.harmless(): // one stands for all that are
			fits = true
		case o.rows.match(fields, slices.Clone(rules), o.statement.Lift) == nil:
			o.rows.match(fields, rules, o.statement.Lift)
			fits = true
		}
	}
	if !fits && p.touches {
		return isle.Errorf(isle.Refused, "what the columns of this result are can't be told")
	}
	return nil
}

// match puts the masks of a result on the fields that are described.
func (r *result) match(fields []Field, rules []*rule, lift bool) error {
	if r == nil || r.masked() == nil {
		return nil
	}
	if r.open || len(r.columns) != len(fields) {
		if !lift {
			return isle.Errorf(isle.Refused, "the result has %d columns where %d were expected, and %s is masked", len(fields), len(r.columns), r.masked().said).
				WithHint("tables have changed; try again")
		}
		for i, f := range fields { // places don't fit: go by the names
			for _, c := range r.columns {
				if c.rule != nil && same(c.name, f.Name) {
					rules[i] = stricter(rules[i], c.rule)
				}
			}
		}
		return nil
	}
	for i, c := range r.columns {
		if c.rule == nil {
			continue
		}
		if !same(c.name, fields[i].Name) && !lift {
			return isle.Errorf(isle.Refused, "column %d of the result is called %q where %q was expected, and %s is masked", i+1, fields[i].Name, c.name, c.rule.said).
				WithHint("tables have changed; try again")
		}
		rules[i] = stricter(rules[i], c.rule)
	}
	return nil
}

// same compares a name with one that PostgreSQL gave, which it cuts to 63 bytes.
func same(name, given string) bool {
	return name == given || len(name) > 63 && len(given) > 58 && strings.HasPrefix(name, given)
}

// Redact is what may be recorded of a statement: its shape, and no parameters,
// where a masked column is written or compared in it, or it was refused.
func (p *Plan) Redact(text []byte, params []string) ([]byte, []string) {
	if !p.values {
		return text, params
	}
	if f := p.statement.Facts; f != nil && f.Shape != "" {
		return []byte(f.Shape), nil
	}
	return []byte("(a statement on masked columns)"), nil
}
