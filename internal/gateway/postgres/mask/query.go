package mask

import (
	"slices"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// A cteScope is what WITH names, in one level of a query.
type cteScope struct {
	up    *cteScope
	items map[string]*cte
}

func (c *cteScope) find(name string) *cte {
	for ; c != nil; c = c.up {
		if item := c.items[name]; item != nil {
			return item
		}
	}
	return nil
}

// A cte is one query of WITH, followed once.
type cte struct {
	node    *pg.CommonTableExpr
	up      *scope
	ctes    *cteScope
	state   int // 0, 1 begun, 2 done
	out     result
	partial *result // what the part before UNION gives, of one that is begun
}

// query follows a statement that gives rows. first is told what the first part
// of a UNION gives, before the second is followed.
func (a *analysis) query(n any, up *scope, first func(result)) (out result) {
	if a.depth++; a.depth > maxDepth {
		a.lift = false
		a.refuse("the statement is nested too deeply to be followed")
		a.depth--
		return result{}
	}
	kept := a.ctes
	defer func() {
		a.ctes = kept
		a.depth--
		if a.tooWide(len(out.columns)) {
			out = result{}
		}
	}()
	if node, ok := n.(*pg.Node); ok {
		n = unwrap(node)
	}
	switch v := n.(type) {
	case *pg.SelectStmt:
		a.with(v.WithClause, up)
		return a.selectStmt(v, up, first)
	case *pg.InsertStmt:
		a.with(v.WithClause, up)
		return a.insert(v, up)
	case *pg.UpdateStmt:
		a.with(v.WithClause, up)
		return a.update(v, up)
	case *pg.DeleteStmt:
		a.with(v.WithClause, up)
		return a.delete(v, up)
	case *pg.MergeStmt:
		a.with(v.WithClause, up)
		return a.merge(v, up)
	case nil:
		return result{}
	}
	a.walk(n, (&scope{up: up}), useOther)
	return result{open: true}
}

func (a *analysis) with(w *pg.WithClause, up *scope) {
	if w == nil {
		return
	}
	level := &cteScope{up: a.ctes, items: map[string]*cte{}}
	outside := a.ctes
	var all []*cte
	for _, n := range w.Ctes {
		node := n.GetCommonTableExpr()
		if node == nil {
			continue
		}
		c := &cte{node: node, up: up, ctes: outside}
		if w.Recursive {
			c.ctes = level
			level.items[node.Ctename] = c
		} else {
			// It sees those before it and not itself.
			a.follow(c)
			outside = &cteScope{up: outside, items: map[string]*cte{node.Ctename: c}}
		}
		all = append(all, c)
	}
	for _, c := range all {
		a.follow(c)
	}
	if w.Recursive {
		a.ctes = level
	} else {
		a.ctes = outside
	}
}

// follow gives what a query of WITH gives.
func (a *analysis) follow(c *cte) result {
	switch c.state {
	case 2:
		return c.out
	case 1:
		if c.partial != nil {
			return *c.partial
		}
		a.lift = false
		a.refuse("WITH RECURSIVE %s can't be followed", c.node.Ctename)
		return result{open: true}
	}
	c.state = 1
	kept := a.ctes
	a.ctes = c.ctes
	out := a.query(c.node.Ctequery, c.up, func(left result) {
		left = named(left, c.node.Aliascolnames)
		c.partial = &left
	})
	a.ctes = kept
	c.out, c.state = named(out, c.node.Aliascolnames), 2
	if s := c.node; s.SearchClause != nil || s.CycleClause != nil {
		if r := c.out.masked(); r != nil {
			a.used(r, useOther, "in a query with SEARCH or CYCLE")
		}
		c.out.open = true
	}
	return c.out
}

// named renames the first columns of a result.
func named(r result, names []*pg.Node) result {
	if len(names) == 0 {
		return r
	}
	out := result{columns: slices.Clone(r.columns), open: r.open}
	for i, n := range names {
		if i < len(out.columns) && !r.open {
			out.columns[i].name = n.GetString_().GetSval()
		} else if r.open {
			// Which column the name is of can't be told: it could be any.
			out.columns = append(out.columns, column{name: n.GetString_().GetSval(), rule: r.masked()})
		}
	}
	return out
}

func (a *analysis) selectStmt(s *pg.SelectStmt, up *scope, first func(result)) result {
	if s.Op != pg.SetOperation_SETOP_NONE && s.Op != pg.SetOperation_SET_OPERATION_UNDEFINED {
		return a.setOperation(s, up, first)
	}
	sc := &scope{up: up}
	if len(s.ValuesLists) > 0 {
		out := a.valueLists(s, sc)
		a.tail(s, &scope{up: up, outputs: out.columns, relations: []*relation{{columns: out.columns}}})
		return out
	}
	for _, n := range s.FromClause {
		sc.items = append(sc.items, a.from(n, sc))
	}
	out := a.targets(s.TargetList, sc)
	sc.outputs = out.columns
	a.walk(s.WhereClause, &scope{up: sc.up, relations: sc.relations}, useFilter)
	a.groups(s.GroupClause, sc, out)
	a.walk(s.HavingClause, &scope{up: sc.up, relations: sc.relations}, useFilter)
	for _, w := range s.WindowClause {
		a.window(w.GetWindowDef(), sc)
	}
	if len(s.DistinctClause) > 0 {
		a.distinct(s.DistinctClause, sc, out)
	}
	a.tail(s, sc)
	if s.IntoClause != nil {
		a.into(s.IntoClause, out)
	}
	return out
}

// tail is ORDER BY, LIMIT and OFFSET.
func (a *analysis) tail(s *pg.SelectStmt, sc *scope) {
	for _, n := range s.SortClause {
		sort := n.GetSortBy()
		if !a.ordinal(sort.GetNode(), sc.outputs, useOrder) {
			a.walk(sort.GetNode(), sc, useOrder)
		}
	}
	a.walk(s.LimitOffset, sc, useOther)
	a.walk(s.LimitCount, sc, useOther)
}

// ordinal is a column of the select list by its place. Literals are no part of
// a statement's shape: what is found holds for this text alone.
func (a *analysis) ordinal(n *pg.Node, outputs []column, u use) bool {
	place := n.GetAConst().GetIval()
	if place == nil {
		return false
	}
	a.literal = true
	if i := int(place.Ival) - 1; i >= 0 && i < len(outputs) && outputs[i].rule != nil {
		a.used(outputs[i].rule, u, howOf(u))
	}
	return true
}

func (a *analysis) groups(nodes []*pg.Node, sc *scope, out result) {
	for _, n := range nodes {
		if set := n.GetGroupingSet(); set != nil {
			a.groups(set.Content, sc, out)
		} else if !a.ordinal(n, out.columns, useGroup) {
			a.walk(n, sc, useGroup)
		}
	}
}

func (a *analysis) distinct(nodes []*pg.Node, sc *scope, out result) {
	on := false
	for _, n := range nodes {
		if n.GetNode() == nil {
			continue // DISTINCT alone is a list of one nothing
		}
		on = true
		if !a.ordinal(n, out.columns, useGroup) {
			a.walk(n, sc, useGroup)
		}
	}
	if r := out.masked(); r != nil && !on {
		a.used(r, useGroup, howOf(useGroup))
	}
}

// setOperation is UNION, INTERSECT and EXCEPT: a column is masked if it is in
// any part.
func (a *analysis) setOperation(s *pg.SelectStmt, up *scope, first func(result)) result {
	left := a.query(s.Larg, up, first)
	if first != nil {
		first(left)
	}
	right := a.query(s.Rarg, up, nil)
	out := result{columns: slices.Clone(left.columns), open: left.open || right.open}
	for _, side := range []result{left, right} {
		if r := side.masked(); r != nil {
			a.used(r, useGroup, "in "+setName(s.Op))
		}
	}
	for i, c := range right.columns {
		if i < len(out.columns) {
			out.columns[i].rule = stricter(out.columns[i].rule, c.rule)
		}
	}
	if out.open { // the places don't fit each other: any column can be any
		if r := stricter(left.masked(), right.masked()); r != nil {
			for i := range out.columns {
				out.columns[i].rule = r
			}
		}
	}
	a.tail(s, &scope{up: up, outputs: out.columns, relations: []*relation{{columns: out.columns}}})
	return out
}

func setName(op pg.SetOperation) string {
	switch op {
	case pg.SetOperation_SETOP_INTERSECT:
		return "INTERSECT"
	case pg.SetOperation_SETOP_EXCEPT:
		return "EXCEPT"
	}
	return "UNION"
}

func (a *analysis) valueLists(s *pg.SelectStmt, sc *scope) (out result) {
	for i, n := range s.ValuesLists {
		items := n.GetList().GetItems()
		if i == 0 {
			for k := range items {
				out.columns = append(out.columns, column{name: "column" + itoa(k+1)})
			}
		}
		a.walkAll(items, sc, useOther)
	}
	return out
}

// targets is a select list, or one of RETURNING. A column alone is plain
// output.
func (a *analysis) targets(list []*pg.Node, sc *scope) (out result) {
	for _, n := range list {
		t := n.GetResTarget()
		ref := t.GetVal().GetColumnRef()
		if ref == nil {
			a.walk(t.GetVal(), sc, useOther)
			name := t.GetName()
			if name == "" {
				name = figureName(t.GetVal())
			}
			out.columns = append(out.columns, column{name: name})
			continue
		}
		fields, star := fieldsOf(ref)
		if star {
			more := a.star(fields, sc)
			if out.open = out.open || more.open; a.tooWide(len(out.columns) + len(more.columns)) {
				return result{}
			}
			out.columns = append(out.columns, more.columns...)
			continue
		}
		c := a.plain(fields, sc)
		if t.GetName() != "" {
			c.name = t.GetName()
		}
		out.columns = append(out.columns, c)
	}
	if out.open && out.masked() != nil {
		a.unknown = true
		a.refuse("%s is masked, and what * means beside it can't be told", out.masked().said)
	}
	return out
}

// plain is a column that stands alone in a select list.
func (a *analysis) plain(fields []string, sc *scope) column {
	if len(fields) == 0 {
		return column{}
	}
	m := sc.resolve(fields)
	switch {
	case m.rule != nil:
		a.touches = true
	case m.whole != nil:
		a.wholeRow(m.whole)
	case !m.known && sc.anyMasked():
		a.strange(fields)
	}
	return column{name: m.name, rule: m.rule}
}
