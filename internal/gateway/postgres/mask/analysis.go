package mask

import (
	"reflect"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"

	"isle"
)

const (
	maxDepth   = 5000 // of nodes inside nodes
	maxColumns = 1664 // of a result (MaxTupleAttributeNumber)
)

// An analysis follows the columns of one statement. It refuses what it does not
// understand where a masked column could be in it: every reference to a column,
// wherever in the tree it stands, is a use, and plain output is the one use that
// is recognized and let through.
type analysis struct {
	cat     *catalog
	session *Session // nil of a view
	lift    bool     // a rule of the connection lifts refusals

	ctes    *cteScope
	depth   int
	touches bool     // a table with masks
	values  bool     // a masked column is written or compared, so that literals say what is in it
	makes   []*table // tables that the statement makes
	made    bool     // a table that this session made and the catalog does not have
	unknown bool     // something that the catalog does not have: it may be old
	literal bool     // a literal decides (ORDER BY 2)
	allowed int      // uses that masks allow
	err     *isle.Error
}

// A result is the columns that a query gives. open says that there are others
// in between that aren't known.
type result struct {
	columns []column
	open    bool
}

func (r result) masked() *rule {
	for _, c := range r.columns {
		if c.rule != nil {
			return c.rule
		}
	}
	return nil
}

// refuse keeps the first reason.
func (a *analysis) refuse(format string, args ...any) {
	if a.err == nil && !a.lift {
		a.err = isle.Errorf(isle.Refused, format, args...).WithHint("name the column alone in the select list, where it is shown masked, or leave it out")
	}
}

// used is called for each use of a masked column but plain output.
func (a *analysis) used(r *rule, u use, how string) {
	a.touches, a.values = true, true
	if r.allows(u) {
		a.allowed++
		return
	}
	a.refuse("%s is masked and may leave as plain output only; here it is used %s", r.said, how)
}

func howOf(u use) string {
	switch u {
	case useFilter:
		return "in a condition"
	case useOrder:
		return "to order rows"
	case useGroup:
		return "to group rows or to tell them apart"
	case useAggregate:
		return "in an aggregate"
	}
	return "in an expression"
}

// reference is a column reference that is not plain output.
func (a *analysis) reference(ref *pg.ColumnRef, sc *scope, u use) {
	fields, star := fieldsOf(ref)
	if star {
		for _, r := range a.starRelations(fields, sc) {
			a.wholeRow(r)
		}
		return
	}
	if len(fields) == 0 {
		return
	}
	output := (u == useOrder || u == useGroup) && a.outputName(fields, sc, u)
	m := sc.resolve(fields)
	switch {
	case m.rule != nil:
		a.used(m.rule, u, howOf(u))
	case m.whole != nil:
		a.wholeRow(m.whole)
	case !m.known && !output && sc.anyMasked():
		a.strange(fields)
	}
}

// outputName is a name in ORDER BY or GROUP BY, which may be one of the select
// list's.
func (a *analysis) outputName(fields []string, sc *scope, u use) (found bool) {
	if len(fields) != 1 {
		return false
	}
	for _, c := range sc.outputs {
		if c.name == fields[0] {
			found = true
			if c.rule != nil {
				a.used(c.rule, u, howOf(u))
			}
		}
	}
	return found
}

// strange is a name that nothing is known by. It could be a column that was
// renamed a moment ago, or a function written as one (t.row_to_json).
func (a *analysis) strange(fields []string) {
	a.unknown = true
	a.refuse("no column %q is known, and a table with masks is in the same query", strings.Join(fields, "."))
}

// missing is a table that the catalog does not have.
func (a *analysis) missing(v *pg.RangeVar) {
	a.unknown = true
	name := v.Relname
	if v.Schemaname != "" {
		name = v.Schemaname + "." + name
	}
	if a.err == nil && !a.lift {
		a.err = isle.Errorf(isle.NotFound, "there is no table %s that this connection knows, so what is masked in it can't be told", name).
			WithHint("one that was made in this transaction in another way than CREATE TABLE is known once it has committed")
	}
}

func (a *analysis) wholeRow(r *relation) {
	for _, c := range r.columns {
		if c.rule != nil {
			a.used(c.rule, useOther, "as part of a whole row")
			return
		}
	}
}

// walk looks at everything inside a node. Each reference to a column in it is
// the use u.
func (a *analysis) walk(n any, sc *scope, u use) {
	if a.depth++; a.depth > maxDepth {
		a.refuse("the statement is nested too deeply to be followed")
		a.depth--
		return
	}
	defer func() { a.depth-- }()
	switch v := n.(type) {
	case nil:
		return
	case *pg.Node:
		if v != nil && v.Node != nil {
			a.walk(unwrap(v), sc, u)
		}
	case *pg.ColumnRef:
		a.reference(v, sc, u)
	case *pg.SubLink:
		a.subLink(v, sc, u)
	case *pg.FuncCall:
		a.function(v, sc, u)
	case *pg.WindowDef:
		a.window(v, sc)
	case *pg.SelectStmt, *pg.InsertStmt, *pg.UpdateStmt, *pg.DeleteStmt, *pg.MergeStmt:
		if r := a.query(n, sc, nil).masked(); r != nil {
			a.used(r, u, "in a query inside the statement")
		}
	default:
		a.children(n, func(child any) { a.walk(child, sc, u) })
	}
}

func (a *analysis) walkAll(nodes []*pg.Node, sc *scope, u use) {
	for _, n := range nodes {
		a.walk(n, sc, u)
	}
}

// unwrap returns the message inside a node.
func unwrap(n *pg.Node) any {
	v := reflect.ValueOf(n.GetNode())
	if !v.IsValid() || v.IsNil() {
		return nil
	}
	return v.Elem().Field(0).Interface()
}

// children calls each for every message inside a message. It goes by the types,
// so that it misses no field that a later grammar has.
func (a *analysis) children(n any, each func(any)) {
	v := reflect.ValueOf(n)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return
	}
	v = v.Elem()
	for i := range v.NumField() {
		if v.Type().Field(i).IsExported() {
			messages(v.Field(i), each)
		}
	}
}

func messages(f reflect.Value, each func(any)) {
	switch f.Kind() {
	case reflect.Pointer:
		if !f.IsNil() && f.Elem().Kind() == reflect.Struct {
			each(f.Interface())
		}
	case reflect.Slice:
		if f.Type().Elem().Kind() == reflect.Pointer {
			for i := range f.Len() {
				messages(f.Index(i), each)
			}
		}
	case reflect.Interface: // one of several messages, in a struct of one field
		if !f.IsNil() {
			messages(f.Elem().Elem().Field(0), each)
		}
	}
}

// subLink is a query inside an expression. EXISTS shows nothing of its columns.
func (a *analysis) subLink(s *pg.SubLink, sc *scope, u use) {
	a.walk(s.Testexpr, sc, u)
	out := a.query(s.Subselect, sc, nil)
	if r := out.masked(); r != nil && s.SubLinkType != pg.SubLinkType_EXISTS_SUBLINK {
		a.used(r, u, "in a query inside an expression")
	}
}

// function is a call. The aggregates that sum up, and give no single value, may
// be allowed.
func (a *analysis) function(f *pg.FuncCall, sc *scope, u use) {
	name := lastOf(f.Funcname)
	if reads(name) {
		a.refuse("%s gives what no grammar shows, and this connection has masks", name)
	}
	for _, arg := range f.Args {
		if ref := arg.GetColumnRef(); ref != nil && sumsUp(name) && u == useOther {
			a.reference(ref, sc, useAggregate)
		} else {
			a.walk(arg, sc, u)
		}
	}
	if f.AggWithinGroup { // percentile_disc gives one of the values
		a.walkAll(f.AggOrder, sc, useOther)
	} else {
		a.walkAll(f.AggOrder, sc, useOrder)
	}
	a.walk(f.AggFilter, sc, useFilter)
	if f.Over != nil {
		a.window(f.Over, sc)
	}
}

func (a *analysis) window(w *pg.WindowDef, sc *scope) {
	if w == nil {
		return
	}
	// Names in a window are input columns, never those of the select list.
	in := &scope{up: sc.up, relations: sc.relations, partly: sc.partly}
	a.walkAll(w.PartitionClause, in, useGroup)
	a.walkAll(w.OrderClause, in, useOrder)
	a.walk(w.StartOffset, in, useOther)
	a.walk(w.EndOffset, in, useOther)
}

func sumsUp(function string) bool {
	switch function {
	case "count", "sum", "avg", "stddev", "stddev_pop", "stddev_samp", "variance", "var_pop", "var_samp":
		return true
	}
	return false
}

// reads reports whether a function of PostgreSQL or of its own extensions reads
// tables by a text, or what others' sessions do.
func reads(function string) bool {
	switch function {
	case "query_to_xml", "query_to_xmlschema", "query_to_xml_and_xmlschema", "cursor_to_xml", "cursor_to_xmlschema",
		"table_to_xml", "table_to_xmlschema", "table_to_xml_and_xmlschema", "schema_to_xml", "schema_to_xml_and_xmlschema",
		"database_to_xml", "database_to_xml_and_xmlschema", "ts_stat", "ts_rewrite", "crosstab", "crosstab2", "crosstab3", "crosstab4",
		"connectby", "xpath_table", "dblink", "dblink_exec", "dblink_open", "dblink_fetch", "dblink_get_result", "dblink_send_query",
		"dblink_build_sql_insert", "dblink_build_sql_update",
		"pg_stat_get_activity", "pg_stat_get_backend_activity", "pg_stat_statements", "pg_mcv_list_items",
		"pg_logical_slot_get_changes", "pg_logical_slot_peek_changes", "pg_logical_slot_get_binary_changes", "pg_logical_slot_peek_binary_changes",
		"get_raw_page", "heap_page_items", "heap_page_item_attrs", "tuple_data_split", "bt_page_items", "gin_leafpage_items", "gist_page_items", "brin_page_items", "hash_page_items",
		"lo_get", "loread", "lo_export", "pg_read_file", "pg_read_binary_file":
		return true
	}
	return false
}

// tooWide bounds what * of * of * comes to.
func (a *analysis) tooWide(n int) bool {
	if n <= maxColumns {
		return false
	}
	a.lift = false
	a.refuse("a query of the statement gives more than %d columns", maxColumns)
	return true
}
