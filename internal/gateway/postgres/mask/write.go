package mask

import (
	pg "github.com/pganalyze/pg_query_go/v6"
)

// target is the table that a statement changes.
func (a *analysis) target(v *pg.RangeVar) *relation {
	if v == nil {
		return &relation{open: true}
	}
	s := a.lookup(v)
	a.touches = a.touches || s.masked()
	switch {
	case s.closed != "":
		a.unknown = true // the reason may be gone
		a.refuse("%s may not be used here: %s", v.Relname, s.closed)
	case !s.found:
		a.missing(v)
	}
	return aliased(&relation{name: v.Relname, columns: s.columns, open: s.open}, v.Alias)
}

// copied refuses that rows with a masked column are written elsewhere.
func (a *analysis) copied(r result, to string) {
	if c := r.masked(); c != nil {
		a.used(c, useOther, "to fill "+to)
	}
}

func (a *analysis) insert(s *pg.InsertStmt, up *scope) result {
	t := a.target(s.Relation)
	if sel := s.SelectStmt.GetSelectStmt(); sel != nil {
		a.copied(a.query(sel, up, nil), "another table")
	}
	sc := onlyOf(up, t)
	a.fills(t, len(s.Cols) == 0)
	for _, c := range s.Cols {
		a.writes(t, c.GetResTarget().GetName())
		a.walkAll(c.GetResTarget().GetIndirection(), &scope{up: up}, useOther)
	}
	if c := s.OnConflictClause; c != nil {
		// What EXCLUDED has is what the statement itself gives.
		both := &scope{up: up, relations: []*relation{t, {name: "excluded", open: t.open, columns: plain(t.columns)}}}
		for _, n := range c.TargetList {
			a.assignment(n, t, both)
		}
		a.walk(c.WhereClause, both, useFilter)
		a.walk(c.Infer, sc, useFilter)
	}
	return a.targets(s.ReturningList, sc)
}

func plain(in []column) []column {
	out := make([]column, len(in))
	for i, c := range in {
		out[i].name = c.name
	}
	return out
}

// writes notes that a column gets values from the statement.
func (a *analysis) writes(r *relation, name string) {
	for _, c := range r.columns {
		a.values = a.values || c.name == name && c.rule != nil
	}
}

// fills notes that all columns do.
func (a *analysis) fills(r *relation, all bool) {
	a.values = a.values || all && r.masked()
}

// assignment is one of SET.
func (a *analysis) assignment(n *pg.Node, target *relation, sc *scope) {
	t := n.GetResTarget()
	a.writes(target, t.GetName())
	a.walkAll(t.GetIndirection(), sc, useOther)
	a.walk(t.GetVal(), sc, useOther)
}

func (a *analysis) update(s *pg.UpdateStmt, up *scope) result {
	sc := onlyOf(up, a.target(s.Relation))
	for _, n := range s.FromClause {
		sc.items = append(sc.items, a.from(n, sc))
	}
	for _, n := range s.TargetList {
		a.assignment(n, sc.relations[0], sc)
	}
	a.walk(s.WhereClause, sc, useFilter)
	return a.targets(s.ReturningList, sc)
}

func (a *analysis) delete(s *pg.DeleteStmt, up *scope) result {
	sc := onlyOf(up, a.target(s.Relation))
	for _, n := range s.UsingClause {
		sc.items = append(sc.items, a.from(n, sc))
	}
	a.walk(s.WhereClause, sc, useFilter)
	return a.targets(s.ReturningList, sc)
}

func (a *analysis) merge(s *pg.MergeStmt, up *scope) result {
	target := a.target(s.Relation)
	sc := onlyOf(up, target)
	a.fills(target, true)
	sc.items = append([]result{a.from(s.SourceRelation, sc)}, sc.items...)
	a.walk(s.JoinCondition, sc, useFilter)
	for _, n := range s.MergeWhenClauses {
		w := n.GetMergeWhenClause()
		a.walk(w.GetCondition(), sc, useFilter)
		for _, t := range w.GetTargetList() {
			a.assignment(t, target, sc)
		}
		a.walkAll(w.GetValues(), sc, useOther)
	}
	for _, n := range s.ReturningList {
		if ref := n.GetResTarget().GetVal().GetColumnRef(); ref != nil {
			if _, star := fieldsOf(ref); star && sc.anyMasked() {
				a.refuse("a table with masks is merged, and the order of * differs between versions of PostgreSQL")
			}
		}
	}
	return a.targets(s.ReturningList, sc)
}

// onlyOf is a scope of one relation.
func onlyOf(up *scope, r *relation) *scope {
	return &scope{up: up, relations: []*relation{r}, items: []result{{columns: r.columns, open: r.open}}}
}
