package query

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	pg_query "github.com/pganalyze/pg_query_go/v6"
)

// A scope is what the names in one query can mean: the names of WITH, and the
// tables and other things of FROM, under the names by which the query calls them.
type scope struct {
	up     *scope
	ctes   map[string]bool
	tables map[string]string // the table; "" of what is no table
	single string            // the table, where there is nothing but one
	many   bool
}

func newScope(up *scope) *scope {
	return &scope{up: up, ctes: map[string]bool{}, tables: map[string]string{}}
}

// cte reports whether a name in FROM means a query of WITH.
func (sc *scope) cte(r *pg_query.RangeVar) bool {
	if r.GetSchemaname() != "" || r.GetCatalogname() != "" {
		return false
	}
	for s := sc; s != nil; s = s.up {
		if s.ctes[r.GetRelname()] {
			return true
		}
	}
	return false
}

// bind gives a table, or "" of something else, a name.
func (sc *scope) bind(name, table string) {
	if name != "" {
		if _, twice := sc.tables[name]; twice && sc.tables[name] != table {
			sc.tables[name] = ""
		} else {
			sc.tables[name] = table
		}
	}
	sc.many = sc.many || table == "" || sc.single != "" && sc.single != table
	sc.single = table
}

// find gives what a name means; ok is false if nothing is called so.
func (sc *scope) find(name string) (table string, ok bool) {
	for s := sc; s != nil; s = s.up {
		if table, ok = s.tables[name]; ok {
			return table, true
		}
	}
	return "", false
}

// only gives the one table that a column without its table's name can be of, or
// "" if it could be of several or of something else.
func (sc *scope) only() string {
	table := ""
	for s := sc; s != nil; s = s.up {
		switch {
		case s.many || s.single != "" && table != "":
			return ""
		case s.single != "":
			table = s.single
		}
	}
	return table
}

// with reads WITH into the scope.
func (a *analysis) with(w *pg_query.WithClause, sc *scope) {
	for _, n := range w.GetCtes() {
		if w.GetRecursive() {
			sc.ctes[n.GetCommonTableExpr().GetCtename()] = true
		}
	}
	for _, n := range w.GetCtes() {
		c := n.GetCommonTableExpr()
		a.children(c.ProtoReflect(), sc)
		sc.ctes[c.GetCtename()] = true
	}
}

// from reads the names of FROM into the scope. What is in FROM is walked as all
// else is.
func (a *analysis) from(list []*pg_query.Node, sc *scope) {
	for _, n := range list {
		switch v := n.GetNode().(type) {
		case *pg_query.Node_RangeVar:
			a.bind(v.RangeVar, sc, sc.cte(v.RangeVar))
		case *pg_query.Node_RangeTableSample:
			a.from([]*pg_query.Node{v.RangeTableSample.GetRelation()}, sc)
		case *pg_query.Node_JoinExpr:
			a.join(v.JoinExpr, sc)
		case *pg_query.Node_RangeSubselect:
			sc.bind(v.RangeSubselect.GetAlias().GetAliasname(), "")
		case *pg_query.Node_RangeFunction:
			sc.bind(v.RangeFunction.GetAlias().GetAliasname(), "")
		case *pg_query.Node_RangeTableFunc:
			sc.bind(v.RangeTableFunc.GetAlias().GetAliasname(), "")
		case *pg_query.Node_JsonTable:
			sc.bind(v.JsonTable.GetAlias().GetAliasname(), "")
		default:
			sc.bind("", "")
		}
	}
}

// bind gives a table of FROM its name. Where its columns get other names, every
// one of them may be meant.
func (a *analysis) bind(r *pg_query.RangeVar, sc *scope, cte bool) {
	name, table := r.GetRelname(), relation(r)
	if alias := r.GetAlias(); alias != nil {
		name = alias.GetAliasname()
		if len(alias.GetColnames()) > 0 && !cte {
			a.columns = append(a.columns, table+".*")
		}
	}
	if cte {
		table = ""
	}
	sc.bind(name, table)
}

func (a *analysis) join(j *pg_query.JoinExpr, sc *scope) {
	a.from([]*pg_query.Node{j.GetLarg()}, sc)
	a.from([]*pg_query.Node{j.GetRarg()}, sc)
	for _, c := range strs(j.GetUsingClause()) {
		a.columns = append(a.columns, part1(c))
	}
	if j.GetIsNatural() {
		a.stars(sc)
	}
	for _, alias := range []*pg_query.Alias{j.GetAlias(), j.GetJoinUsingAlias()} {
		if alias != nil {
			// j.email and j itself can be of each of its tables; those of USING are
			// named already.
			if alias == j.GetAlias() || len(alias.GetColnames()) > 0 {
				a.stars(sc)
			}
			sc.bind(alias.GetAliasname(), "")
			sc.tables[alias.GetAliasname()] = ""
		}
	}
}

// stars adds every column of the tables of a scope.
func (a *analysis) stars(sc *scope) {
	for _, table := range sc.tables {
		if table != "" {
			a.columns = append(a.columns, table+".*")
		}
	}
}

// column adds what a reference to a column can mean: the column of a table, or
// the whole row where a table is called so.
func (a *analysis) column(c *pg_query.ColumnRef, sc *scope) {
	var names []string
	star := false
	for _, f := range c.GetFields() {
		if f.GetAStar() != nil {
			star = true
		} else {
			names = append(names, f.GetString_().GetSval())
		}
	}
	switch {
	case len(names) == 0:
		if sc != nil {
			a.stars(sc)
		}
		return
	case star:
		table, ok := sc.find(names[len(names)-1])
		if len(names) > 1 || !ok {
			table = dotted(names...)
		}
		if table != "" {
			a.columns = append(a.columns, table+".*")
		}
		return
	case len(names) == 1:
		if table, ok := sc.find(names[0]); ok && table != "" {
			a.columns = append(a.columns, table+".*")
		}
		name := part1(names[0])
		if table := sc.only(); table != "" {
			name = table + "." + name
		}
		a.columns = append(a.columns, name)
		return
	}
	// table.column, schema.table.column; or, of a row, table.column.field.
	if table, ok := sc.find(names[0]); ok {
		if table != "" {
			a.columns = append(a.columns, table+"."+part1(names[1]))
		}
		if len(names) == 2 {
			return
		}
	}
	a.columns = append(a.columns, dotted(names...))
	if len(names) > 2 {
		a.columns = append(a.columns, dotted(names[:len(names)-1]...))
	}
}

// selects reads a SELECT, VALUES or TABLE.
func (a *analysis) selects(s *pg_query.SelectStmt, up *scope) {
	a.actions |= read
	a.statements = append(a.statements, "select")
	sc := newScope(up)
	a.with(s.GetWithClause(), sc)
	a.from(s.GetFromClause(), sc)
	a.children(s.ProtoReflect(), sc, "with_clause")
}

// target is the table that a statement writes to. It is never one of WITH.
func (a *analysis) target(r *pg_query.RangeVar, sc *scope) string {
	table := relation(r)
	a.tables = append(a.tables, table)
	a.bind(r, sc, false)
	for _, name := range []string{"old", "new"} { // of RETURNING, since PostgreSQL 18
		if _, ok := sc.tables[name]; !ok {
			sc.tables[name] = table
		}
	}
	a.catalog(r)
	return table
}

// catalog finds writes to what is the server's own. To write to pg_settings is
// to change a setting.
func (a *analysis) catalog(r *pg_query.RangeVar) {
	schema, name := r.GetSchemaname(), r.GetRelname()
	switch {
	case name == "pg_settings" && (schema == "" || schema == "pg_catalog"):
		a.unsure("who writes to pg_settings changes settings")
	case schema == "" && strings.HasPrefix(name, "pg_"), strings.HasPrefix(schema, "pg_") && !strings.HasPrefix(schema, "pg_temp"), schema == "information_schema":
		a.actions |= admin
	}
}

// assigned adds the columns that are written.
func (a *analysis) assigned(table string, list []*pg_query.Node) {
	for _, n := range list {
		if name := n.GetResTarget().GetName(); name != "" {
			a.columns = append(a.columns, table+"."+part1(name))
		}
	}
}

func (a *analysis) inserts(s *pg_query.InsertStmt, up *scope) {
	a.actions |= write
	a.statements = append(a.statements, "insert")
	with := newScope(up)
	a.with(s.GetWithClause(), with)
	sc := newScope(with)
	table := a.target(s.GetRelation(), sc)
	sc.tables["excluded"] = table
	a.assigned(table, s.GetCols())
	if len(s.GetCols()) == 0 {
		a.columns = append(a.columns, table+".*")
	}
	if c := s.GetOnConflictClause(); len(c.GetTargetList()) > 0 {
		a.statements = append(a.statements, "update")
		a.assigned(table, c.GetTargetList())
	}
	if v := s.GetSelectStmt().GetSelectStmt(); len(v.GetValuesLists()) > 0 && v.GetWithClause() == nil {
		a.children(v.ProtoReflect(), with) // rows of the statement's own are not read
	} else if v != nil {
		a.selects(v, with)
	}
	a.children(s.ProtoReflect(), sc, "with_clause", "relation", "select_stmt")
	a.returns(s.GetReturningList())
}

func (a *analysis) updates(s *pg_query.UpdateStmt, up *scope) {
	a.actions |= write
	a.statements = append(a.statements, "update")
	sc := newScope(up)
	a.with(s.GetWithClause(), sc)
	a.assigned(a.target(s.GetRelation(), sc), s.GetTargetList())
	a.from(s.GetFromClause(), sc)
	a.unbounded = a.unbounded || everyRow(s.GetWhereClause())
	a.children(s.ProtoReflect(), sc, "with_clause", "relation")
	a.returns(s.GetReturningList())
}

func (a *analysis) deletes(s *pg_query.DeleteStmt, up *scope) {
	a.actions |= write
	a.statements = append(a.statements, "delete")
	sc := newScope(up)
	a.with(s.GetWithClause(), sc)
	a.target(s.GetRelation(), sc)
	a.from(s.GetUsingClause(), sc)
	a.unbounded = a.unbounded || everyRow(s.GetWhereClause())
	a.children(s.ProtoReflect(), sc, "with_clause", "relation")
	a.returns(s.GetReturningList())
}

func (a *analysis) merges(s *pg_query.MergeStmt, up *scope) {
	a.actions |= write
	a.statements = append(a.statements, "merge")
	sc := newScope(up)
	a.with(s.GetWithClause(), sc)
	table := a.target(s.GetRelation(), sc)
	a.from([]*pg_query.Node{s.GetSourceRelation()}, sc)
	for _, n := range s.GetMergeWhenClauses() {
		w := n.GetMergeWhenClause()
		switch w.GetCommandType() {
		case pg_query.CmdType_CMD_INSERT:
			a.statements = append(a.statements, "insert")
			if len(w.GetTargetList()) == 0 {
				a.columns = append(a.columns, table+".*")
			}
		case pg_query.CmdType_CMD_UPDATE, pg_query.CmdType_CMD_DELETE:
			kind := "update"
			if w.GetCommandType() == pg_query.CmdType_CMD_DELETE {
				kind = "delete"
			}
			a.statements = append(a.statements, kind)
			rest := w.GetCondition() == nil || everyRow(w.GetCondition())
			a.unbounded = a.unbounded || rest && (everyRow(s.GetJoinCondition()) || w.GetMatchKind() == pg_query.MergeMatchKind_MERGE_WHEN_NOT_MATCHED_BY_SOURCE)
		}
		a.assigned(table, w.GetTargetList())
	}
	a.children(s.ProtoReflect(), sc, "with_clause", "relation")
	a.returns(s.GetReturningList())
}

// returns says that rows come back, which is to read.
func (a *analysis) returns(list []*pg_query.Node) {
	if len(list) > 0 {
		a.actions |= read
	}
}

// everyRow reports whether a condition holds for every row, as far as its form
// says so: there is none, it mentions no column, or compares a column with
// itself. It guards against a mistake; a WHERE can be written in a thousand ways.
func everyRow(n *pg_query.Node) bool {
	if n == nil {
		return true
	}
	switch v := n.GetNode().(type) {
	case *pg_query.Node_BoolExpr:
		switch v.BoolExpr.GetBoolop() {
		case pg_query.BoolExprType_AND_EXPR:
			for _, arg := range v.BoolExpr.GetArgs() {
				if !everyRow(arg) {
					return false
				}
			}
			return true
		case pg_query.BoolExprType_OR_EXPR:
			for _, arg := range v.BoolExpr.GetArgs() {
				if everyRow(arg) {
					return true
				}
			}
			return false
		}
	case *pg_query.Node_AExpr:
		l, r := v.AExpr.GetLexpr().GetColumnRef(), v.AExpr.GetRexpr().GetColumnRef()
		if l != nil && r != nil && lastName(l) != "" && lastName(l) == lastName(r) && (len(l.GetFields()) == 1 || len(r.GetFields()) == 1 || firstName(l) == firstName(r)) {
			return true
		}
	}
	return !mentions(n.ProtoReflect())
}

func firstName(c *pg_query.ColumnRef) string { return c.GetFields()[0].GetString_().GetSval() }
func lastName(c *pg_query.ColumnRef) string {
	return c.GetFields()[len(c.GetFields())-1].GetString_().GetSval()
}

// mentions reports whether a column, or the row of a cursor, is in a part of the
// tree.
func mentions(m protoreflect.Message) bool {
	switch m.Interface().(type) {
	case *pg_query.ColumnRef, *pg_query.CurrentOfExpr:
		return true
	}
	found := false
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Kind() != protoreflect.MessageKind:
		case f.IsList():
			for i := range v.List().Len() {
				found = found || mentions(v.List().Get(i).Message())
			}
		default:
			found = found || mentions(v.Message())
		}
		return !found
	})
	return found
}
