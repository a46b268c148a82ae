package mask

import (
	"slices"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// A relation is something that stands in FROM, by the name that it has there.
type relation struct {
	name    string
	columns []column
	open    bool // it may have columns that aren't known
	hidden  bool // inside a join that has a name of its own
}

func (r *relation) masked() bool {
	return slices.ContainsFunc(r.columns, func(c column) bool { return c.rule != nil })
}

// A scope is what the names in one level of a query can mean.
type scope struct {
	up        *scope
	relations []*relation
	items     []result // of FROM, in order, as * gives them
	outputs   []column // of the select list, for ORDER BY and GROUP BY
	partly    bool     // of a LATERAL item's siblings, of which it may not see each
}

// A meaning is what a name in a query can be. Where there is doubt it is the
// worst of what is possible.
type meaning struct {
	name  string
	rule  *rule // of the column
	whole *relation
	known bool // something is called so
}

// resolve says what a column reference means, as PostgreSQL's rules have it
// (transformColumnRef): a column of the innermost level that has one, else a
// whole row. All of a level that match count together.
func (sc *scope) resolve(fields []string) meaning {
	name := fields[len(fields)-1]
	m := meaning{name: name}
	if len(fields) > 1 {
		return sc.qualified(fields[len(fields)-2], m)
	}
	for l := sc; l != nil; l = l.up {
		found, open := false, false
		masked := slices.ContainsFunc(l.relations, (*relation).masked)
		for _, r := range l.relations {
			if r.hidden {
				continue
			}
			open = open || r.open && !masked
			for _, c := range r.columns {
				if c.name == name {
					found = true
					m.rule = stricter(m.rule, c.rule)
				}
			}
		}
		m.known = m.known || found || open
		if found && !l.partly {
			return m
		}
	}
	if m.rule == nil {
		m.whole = sc.relation(name)
		m.known = m.known || m.whole != nil
	}
	return m
}

func (sc *scope) qualified(relationName string, m meaning) meaning {
	for l := sc; l != nil; l = l.up {
		found := false
		for _, r := range l.relations {
			if r.hidden || r.name != relationName {
				continue
			}
			found = true
			m.known = m.known || r.open && !r.masked()
			for _, c := range r.columns {
				if c.name == m.name {
					m.known = true
					m.rule = stricter(m.rule, c.rule)
				}
			}
		}
		if systemColumn(m.name) {
			m.known = true
		}
		if found && !l.partly {
			return m
		}
	}
	return m
}

// relation returns what is called so, of all levels the one with masks first.
func (sc *scope) relation(name string) *relation {
	var out *relation
	for l := sc; l != nil; l = l.up {
		for _, r := range l.relations {
			if r.name == name && !r.hidden && (out == nil || r.masked()) {
				out = r
			}
		}
	}
	return out
}

// anyMasked reports whether any name could mean something masked.
func (sc *scope) anyMasked() bool {
	for l := sc; l != nil; l = l.up {
		if slices.ContainsFunc(l.relations, (*relation).masked) {
			return true
		}
	}
	return false
}

func systemColumn(name string) bool {
	switch name {
	case "ctid", "xmin", "xmax", "cmin", "cmax", "tableoid", "oid":
		return true
	}
	return false
}

// fieldsOf reads a column reference; star says that it ends in one.
func fieldsOf(ref *pg.ColumnRef) (fields []string, star bool) {
	for _, f := range ref.Fields {
		if s := f.GetString_(); s != nil {
			fields = append(fields, s.Sval)
		} else {
			star = true
		}
	}
	return fields, star
}

func stringsOf(nodes []*pg.Node) []string {
	out := make([]string, 0, len(nodes))
	for _, n := range nodes {
		out = append(out, n.GetString_().GetSval())
	}
	return out
}

func lastOf(nodes []*pg.Node) string {
	if len(nodes) == 0 {
		return ""
	}
	return nodes[len(nodes)-1].GetString_().GetSval()
}

// figureName is the name that PostgreSQL gives to a column that has none
// (FigureColname), "" where it matters to nobody.
func figureName(n *pg.Node) string {
	switch v := n.GetNode().(type) {
	case *pg.Node_ColumnRef:
		fields, _ := fieldsOf(v.ColumnRef)
		if len(fields) > 0 {
			return fields[len(fields)-1]
		}
	case *pg.Node_AIndirection:
		for _, i := range slices.Backward(v.AIndirection.Indirection) {
			if s := i.GetString_(); s != nil {
				return s.Sval
			}
		}
		return figureName(v.AIndirection.Arg)
	case *pg.Node_FuncCall:
		return lastOf(v.FuncCall.Funcname)
	case *pg.Node_TypeCast:
		if name := figureName(v.TypeCast.Arg); name != "" {
			return name
		}
		return lastOf(v.TypeCast.TypeName.GetNames())
	case *pg.Node_CollateClause:
		return figureName(v.CollateClause.Arg)
	case *pg.Node_GroupingFunc:
		return "grouping"
	case *pg.Node_SubLink:
		return figureSubLink(v.SubLink)
	case *pg.Node_CaseExpr:
		if name := figureName(v.CaseExpr.Defresult); name != "" {
			return name
		}
		return "case"
	case *pg.Node_AArrayExpr:
		return "array"
	case *pg.Node_RowExpr:
		return "row"
	case *pg.Node_CoalesceExpr:
		return "coalesce"
	case *pg.Node_MinMaxExpr:
		if v.MinMaxExpr.Op == pg.MinMaxOp_IS_LEAST {
			return "least"
		}
		return "greatest"
	case *pg.Node_SqlvalueFunction:
		return figureValueFunction(v.SqlvalueFunction.Op)
	}
	return ""
}

func figureSubLink(s *pg.SubLink) string {
	switch s.SubLinkType {
	case pg.SubLinkType_EXISTS_SUBLINK:
		return "exists"
	case pg.SubLinkType_ARRAY_SUBLINK:
		return "array"
	case pg.SubLinkType_EXPR_SUBLINK:
		if list := s.Subselect.GetSelectStmt().GetTargetList(); len(list) > 0 {
			t := list[0].GetResTarget()
			if t.GetName() != "" {
				return t.Name
			}
			return figureName(t.GetVal())
		}
	}
	return ""
}

func figureValueFunction(op pg.SQLValueFunctionOp) string {
	name := strings.TrimPrefix(op.String(), "SVFOP_")
	return strings.ToLower(strings.TrimSuffix(name, "_N"))
}
