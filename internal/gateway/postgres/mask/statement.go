package mask

import (
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// statement follows any statement, and returns what rows it gives; nil where it
// gives none of tables.
func (a *analysis) statement(n *pg.Node) *result {
	top := &scope{}
	switch v := unwrap(n).(type) {
	case *pg.SelectStmt:
		out := a.query(v, nil, nil)
		if v.IntoClause != nil {
			return nil
		}
		return &out
	case *pg.InsertStmt, *pg.UpdateStmt, *pg.DeleteStmt, *pg.MergeStmt:
		out := a.query(v, nil, nil)
		return &out
	case *pg.ExplainStmt:
		a.statement(v.Query)
	case *pg.CopyStmt:
		a.copy(v)
	case *pg.CreateTableAsStmt:
		a.createAs(v)
	case *pg.ViewStmt:
		a.copied(a.query(v.Query, nil, nil), "a view")
		a.make(v.View, nil, true)
	case *pg.CreateStmt:
		a.create(v)
	case *pg.RenameStmt:
		a.rename(v)
	case *pg.AlterObjectSchemaStmt:
		if v.Relation != nil && a.onMasks(v.Relation) {
			a.refuse("a mask names %s, so it stays where it is", v.Relation.Relname)
			a.hint("change the policy first")
		}
	case *pg.AlterTableStmt:
		a.alter(v)
	case *pg.DoStmt:
		a.unseen("DO runs code")
	case *pg.CreateFunctionStmt:
		a.unseen("a function is code")
	case *pg.RuleStmt:
		a.unseen("a rule replaces statements")
	case *pg.CreateTrigStmt:
		// tsvector_update_trigger, for one, takes the name of a column as text.
		if a.other(v, top); v.Relation != nil && a.onMasks(v.Relation) {
			a.unseen("a trigger runs code")
		}
	case *pg.CreatePublicationStmt, *pg.AlterPublicationStmt, *pg.CreateSubscriptionStmt, *pg.AlterSubscriptionStmt:
		a.unseen("replication copies rows in a way")
	default:
		a.other(v, top)
	}
	return nil
}

func (a *analysis) unseen(what string) {
	a.refuse("%s that is not followed, and this connection has masks", what)
	a.hint("a rule of the connection with allow lets it pass")
}

func (a *analysis) hint(format string, args ...any) {
	if a.err != nil {
		a.err = a.err.WithHint(format, args...)
	}
}

// other is a statement that works on tables without giving rows. Each column
// that an expression in it names is a use.
func (a *analysis) other(n any, sc *scope) {
	switch v := n.(type) {
	case nil:
		return
	case *pg.Node:
		if v != nil {
			a.other(unwrap(v), sc)
		}
		return
	case *pg.RangeVar:
		a.mention(v, sc)
		return
	case *pg.ViewStmt, *pg.CreateStmt, *pg.CreateTableAsStmt, *pg.RuleStmt, *pg.DoStmt, *pg.CreateFunctionStmt:
		a.nested(n)
		return
	case *pg.SelectStmt, *pg.InsertStmt, *pg.UpdateStmt, *pg.DeleteStmt, *pg.MergeStmt, *pg.ColumnRef, *pg.FuncCall, *pg.SubLink:
		a.walk(n, sc, useOther)
		return
	}
	if a.depth++; a.depth <= maxDepth {
		// Tables first: what is named elsewhere in the statement is theirs.
		a.children(n, func(child any) {
			if v, ok := child.(*pg.RangeVar); ok {
				a.mention(v, sc)
			}
		})
		a.children(n, func(child any) {
			if _, ok := child.(*pg.RangeVar); !ok {
				a.other(child, sc)
			}
		})
	} else {
		a.refuse("the statement is nested too deeply to be followed")
	}
	a.depth--
}

// nested is a statement inside one (CREATE SCHEMA … CREATE VIEW).
func (a *analysis) nested(n any) {
	switch v := n.(type) {
	case *pg.ViewStmt:
		a.statement(&pg.Node{Node: &pg.Node_ViewStmt{ViewStmt: v}})
	case *pg.CreateStmt:
		a.statement(&pg.Node{Node: &pg.Node_CreateStmt{CreateStmt: v}})
	case *pg.CreateTableAsStmt:
		a.statement(&pg.Node{Node: &pg.Node_CreateTableAsStmt{CreateTableAsStmt: v}})
	default:
		a.unseen("it makes code")
	}
}

func (a *analysis) mention(v *pg.RangeVar, sc *scope) {
	s := a.lookup(v)
	if s.masked() {
		a.touches = true
	}
	if s.found {
		sc.relations = append(sc.relations, &relation{name: v.Relname, columns: s.columns, open: s.open})
	}
}

func (a *analysis) onMasks(v *pg.RangeVar) bool {
	s := a.lookup(v)
	if s.masked() {
		a.touches = true
		return true
	}
	return false
}

// copy is COPY. What goes out is data without a description, so no masked
// column may be in it.
func (a *analysis) copy(c *pg.CopyStmt) {
	if c.Query != nil {
		if r := a.query(c.Query, nil, nil).masked(); r != nil {
			a.used(r, useOther, "in COPY")
		}
		return
	}
	t := a.target(c.Relation)
	sc := onlyOf(nil, t)
	a.walk(c.WhereClause, sc, useFilter)
	if c.IsFrom {
		return
	}
	names := stringsOf(c.Attlist)
	for _, col := range t.columns {
		if col.rule == nil {
			continue
		}
		if len(names) == 0 {
			a.used(col.rule, useOther, "in COPY")
			a.hint("name the columns: COPY %s (…) TO STDOUT without %s", t.name, col.name)
		}
		for _, n := range names {
			if n == col.name {
				a.used(col.rule, useOther, "in COPY")
			}
		}
	}
}

func (a *analysis) createAs(c *pg.CreateTableAsStmt) {
	var out result
	if e := c.Query.GetExecuteStmt(); e != nil {
		for _, p := range a.session.find(a.session.prepared, e.Name) {
			if p.err != nil && a.err == nil {
				a.err = p.err
			}
			if p.rows != nil {
				out = *p.rows
				a.copied(out, "another table")
			}
		}
		out.open = true
	} else {
		out = a.query(c.Query, nil, nil)
	}
	a.into(c.Into, out)
}

// into makes a table of what a query gives.
func (a *analysis) into(c *pg.IntoClause, out result) {
	a.copied(out, "another table")
	out = named(out, c.GetColNames())
	a.make(c.GetRel(), out.columns, out.open)
}

// make remembers a table that the session makes: the catalog has it only once
// the transaction has committed.
func (a *analysis) make(v *pg.RangeVar, columns []column, open bool) {
	if v == nil || a.session == nil || a.err != nil {
		return
	}
	t := &table{name: v.Relname, schema: v.Schemaname, columns: plain(columns), kind: 'r'}
	if _, again := a.session.made[t.name]; open || again {
		t.kind = openKind
	}
	a.makes = append(a.makes, t)
}

func (a *analysis) create(c *pg.CreateStmt) {
	sc := &scope{relations: []*relation{{name: c.GetRelation().GetRelname(), open: true}}}
	heir := false
	for _, n := range c.InhRelations {
		heir = a.onMasks(n.GetRangeVar()) || heir
	}
	open := len(c.InhRelations) > 0 || c.OfTypename != nil
	var columns []column
	for _, n := range c.TableElts {
		if d := n.GetColumnDef(); d != nil {
			columns = append(columns, column{name: d.Colname})
		} else if n.GetTableLikeClause() != nil {
			open = true
		}
		a.other(n, &scope{up: sc})
	}
	if heir {
		// Rows of the masked table may come to be in it: it is closed until the
		// catalog has it.
		if a.session != nil && a.err == nil && c.Relation != nil {
			a.makes = append(a.makes, &table{name: c.Relation.Relname, schema: c.Relation.Schemaname, kind: openKind, closed: "it was made from a table with masks in this transaction"})
		}
		return
	}
	a.make(c.Relation, columns, open)
}

func (a *analysis) rename(r *pg.RenameStmt) {
	switch {
	case r.RenameType == pg.ObjectType_OBJECT_ATTRIBUTE:
		a.refuse("renaming an attribute of a type renames columns of tables of it, and this connection has masks")
	case r.RenameType == pg.ObjectType_OBJECT_SCHEMA:
		for _, t := range a.cat.tables {
			if t.schema == r.Subname && t.masked() {
				a.refuse("a mask names %s, so the schema keeps its name", t)
				a.hint("change the policy first")
				return
			}
		}
	case r.Relation != nil:
		s := a.lookup(r.Relation)
		if !s.masked() {
			return
		}
		a.touches = true
		column := r.RenameType == pg.ObjectType_OBJECT_COLUMN
		for _, c := range s.columns {
			if c.rule != nil && (!column || c.name == r.Subname) {
				a.refuse("a mask names %s, so it keeps its name", c.rule.said)
				a.hint("change the policy first")
			}
		}
	}
}

func (a *analysis) alter(s *pg.AlterTableStmt) {
	sc := &scope{}
	masked := false
	if s.Relation != nil {
		a.mention(s.Relation, sc)
		masked = a.onMasks(s.Relation)
		if a.session != nil && a.session.made[s.Relation.Relname] != nil {
			a.make(s.Relation, nil, true)
		}
	}
	for _, n := range s.Cmds {
		c := n.GetAlterTableCmd()
		switch c.GetSubtype() {
		case pg.AlterTableType_AT_AttachPartition, pg.AlterTableType_AT_AddInherit, pg.AlterTableType_AT_DetachPartition, pg.AlterTableType_AT_DropInherit:
			other := c.GetDef().GetRangeVar()
			if p := c.GetDef().GetPartitionCmd(); p != nil {
				other = p.Name
			}
			if masked || other != nil && a.onMasks(other) {
				a.refuse("%s changes whose rows a table with masks holds", strings.ToUpper("alter table … inherit, attach or detach"))
			}
		}
		a.other(n, &scope{up: sc})
	}
}
