package mask

import (
	"slices"
	"strconv"

	pg "github.com/pganalyze/pg_query_go/v6"
)

func itoa(n int) string { return strconv.Itoa(n) }

// from puts an item of FROM into a scope, and returns its columns in the order
// that * gives them.
func (a *analysis) from(n *pg.Node, sc *scope) result {
	if a.depth++; a.depth > maxDepth {
		a.lift = false
		a.refuse("the statement is nested too deeply to be followed")
		a.depth--
		return result{open: true}
	}
	defer func() { a.depth-- }()
	switch v := n.GetNode().(type) {
	case *pg.Node_RangeVar:
		r := a.rangeVar(v.RangeVar)
		return sc.add(r)
	case *pg.Node_RangeSubselect:
		up := sc.up
		if v.RangeSubselect.Lateral {
			up = sc.sibling()
		}
		out := a.query(v.RangeSubselect.Subquery, up, nil)
		return sc.add(aliased(&relation{columns: out.columns, open: out.open}, v.RangeSubselect.Alias))
	case *pg.Node_JoinExpr:
		return a.join(v.JoinExpr, sc)
	case *pg.Node_RangeTableSample:
		out := a.from(v.RangeTableSample.Relation, sc)
		a.walkAll(v.RangeTableSample.Args, sc.sibling(), useOther)
		a.walk(v.RangeTableSample.Repeatable, sc.sibling(), useOther)
		return out
	case *pg.Node_RangeFunction:
		return a.rangeFunction(v.RangeFunction, sc)
	case *pg.Node_RangeTableFunc:
		a.children(v.RangeTableFunc, func(child any) { a.walk(child, sc.sibling(), useOther) })
		return sc.add(aliased(&relation{name: "xmltable", open: true}, v.RangeTableFunc.Alias))
	case *pg.Node_JsonTable:
		a.children(v.JsonTable, func(child any) { a.walk(child, sc.sibling(), useOther) })
		return sc.add(aliased(&relation{name: "json_table", open: true}, v.JsonTable.Alias))
	}
	a.walk(n, sc.sibling(), useOther)
	return sc.add(&relation{open: true})
}

// sibling is the scope of a LATERAL item: it may see what stands before it.
func (sc *scope) sibling() *scope {
	return &scope{up: sc.up, relations: slices.Clone(sc.relations), partly: true}
}

func (sc *scope) add(r *relation) result {
	sc.relations = append(sc.relations, r)
	return result{columns: r.columns, open: r.open}
}

// aliased is a relation under another name, its first columns too.
func aliased(r *relation, alias *pg.Alias) *relation {
	if alias == nil {
		return r
	}
	out := named(result{columns: r.columns, open: r.open}, alias.Colnames)
	return &relation{name: alias.Aliasname, columns: out.columns, open: out.open}
}

// rangeVar is a table by name, or a query of WITH.
func (a *analysis) rangeVar(v *pg.RangeVar) *relation {
	if v.Schemaname == "" {
		if c := a.ctes.find(v.Relname); c != nil {
			out := a.follow(c)
			return aliased(&relation{name: v.Relname, columns: out.columns, open: out.open}, v.Alias)
		}
	}
	s := a.lookup(v)
	a.touches = a.touches || s.masked()
	switch {
	case s.closed != "":
		a.unknown = true // the reason may be gone
		a.refuse("%s may not be read here: %s", v.Relname, s.closed)
	case !s.found:
		a.missing(v)
	}
	return aliased(&relation{name: v.Relname, columns: s.columns, open: s.open}, v.Alias)
}

func (a *analysis) rangeFunction(f *pg.RangeFunction, sc *scope) result {
	inside := sc.sibling()
	name := ""
	for _, n := range f.Functions {
		items := n.GetList().GetItems()
		a.walkAll(items, inside, useOther)
		if len(items) > 0 && name == "" {
			name = figureName(items[0])
		}
	}
	a.walkAll(f.Coldeflist, inside, useOther)
	if f.Alias != nil {
		name = f.Alias.Aliasname
	}
	r := &relation{name: name, open: true}
	for _, n := range f.Alias.GetColnames() {
		r.columns = append(r.columns, column{name: n.GetString_().GetSval()})
	}
	for _, n := range f.Coldeflist {
		r.columns = append(r.columns, column{name: n.GetColumnDef().GetColname()})
	}
	return sc.add(r)
}

// join puts the two sides into the scope. Columns that USING or NATURAL join by
// are compared, and come first and once.
func (a *analysis) join(j *pg.JoinExpr, sc *scope) result {
	begin := len(sc.relations)
	left := a.from(j.Larg, sc)
	right := a.from(j.Rarg, sc)
	using := stringsOf(j.UsingClause)
	if j.IsNatural {
		for _, c := range left.columns {
			if slices.ContainsFunc(right.columns, func(o column) bool { return o.name == c.name }) && !slices.Contains(using, c.name) {
				using = append(using, c.name)
			}
		}
		if left.open || right.open {
			if r := stricter(left.masked(), right.masked()); r != nil {
				a.refuse("%s is masked, and what NATURAL JOIN compares can't be told", r.said)
			}
		}
	}
	out := merge(left, right, using)
	for _, c := range out.columns[:min(len(using), len(out.columns))] {
		if c.rule != nil {
			a.used(c.rule, useFilter, "to join by")
		}
	}
	a.walk(j.Quals, sc.sibling(), useFilter)
	if j.JoinUsingAlias != nil {
		sc.add(&relation{name: j.JoinUsingAlias.Aliasname, columns: slices.Clone(out.columns[:min(len(using), len(out.columns))])})
	}
	if j.Alias != nil {
		for _, r := range sc.relations[begin:] {
			r.hidden = true
		}
		return sc.add(aliased(&relation{columns: out.columns, open: out.open}, j.Alias))
	}
	return out
}

// merge is the columns of a join: those joined by, then the others of the left,
// then those of the right.
func merge(left, right result, using []string) result {
	out := result{open: left.open || right.open}
	for _, name := range using {
		c := column{name: name}
		for _, side := range []result{left, right} {
			for _, o := range side.columns {
				if o.name == name {
					c.rule = stricter(c.rule, o.rule)
				}
			}
		}
		out.columns = append(out.columns, c)
	}
	for _, side := range []result{left, right} {
		for _, c := range side.columns {
			if !slices.Contains(using, c.name) {
				out.columns = append(out.columns, c)
			}
		}
	}
	return out
}
