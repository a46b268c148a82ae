package mask

import (
	"slices"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// A source is what a table's name can mean.
type source struct {
	found   bool
	columns []column
	open    bool
	closed  string
}

func (s source) masked() bool {
	return s.closed != "" || slices.ContainsFunc(s.columns, func(c column) bool { return c.rule != nil })
}

// lookup says what a table's name means. The search_path is not asked: a name
// without a schema means every table of that name, and what is masked in one of
// them is masked. So no setting of it, and no temporary table, shows anything.
func (a *analysis) lookup(v *pg.RangeVar) source {
	schema, name := v.Schemaname, v.Relname
	var all []*table
	for _, t := range a.cat.names[name] {
		if schema == "" || t.schema == schema || schema == "pg_temp" && strings.HasPrefix(t.schema, "pg_temp_") {
			all = append(all, t)
		}
	}
	if a.session != nil {
		if t := a.session.made[name]; t != nil {
			a.made = true
			all = append(all, t)
		}
	}
	switch {
	case schema == "pg_toast" || strings.HasPrefix(schema, "pg_toast_"):
		return source{found: true, open: true, closed: "it holds parts of other tables"}
	case len(all) > 0:
		return together(all)
	case schema == "pg_catalog" || schema == "information_schema" || schema == "" && strings.HasPrefix(name, "pg_"):
		return source{found: true, open: true}
	}
	return source{}
}

// together is what one of several tables can be: where their columns are not
// the same, their order is not known.
func together(all []*table) source {
	s := source{found: true, columns: slices.Clone(all[0].columns), closed: all[0].closed}
	s.open = all[0].kind == openKind
	for _, t := range all[1:] {
		if s.closed == "" {
			s.closed = t.closed
		}
		same := len(t.columns) == len(s.columns) && t.kind != openKind
		for i, c := range t.columns {
			if same && s.columns[i].name == c.name {
				s.columns[i].rule = stricter(s.columns[i].rule, c.rule)
				continue
			}
			same = false
			if k := slices.IndexFunc(s.columns, func(o column) bool { return o.name == c.name }); k >= 0 {
				s.columns[k].rule = stricter(s.columns[k].rule, c.rule)
			} else {
				s.columns = append(s.columns, c)
			}
		}
		s.open = s.open || !same
	}
	return s
}

// openKind marks a table made in this session of which not all columns are
// known.
const openKind = '?'
