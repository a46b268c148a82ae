package query

import (
	"strconv"
	"strings"

	pg_query "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/reflect/protoreflect"

	"isle"
	"isle/internal/policy"
)

// actions are what must be allowed, as bits.
type actions byte

const (
	read actions = 1 << iota
	write
	schema
	admin
)

// An analysis gathers what one statement does. It goes over the whole tree, the
// parts that it has no opinion of as well, so that nothing in it is passed over.
type analysis struct {
	r       *Reader
	session Settings

	actions                                actions
	statements, tables, columns, functions []string
	unbounded                              bool
	uncertain                              string
}

func (r *Reader) analysis(set Settings) *analysis { return &analysis{r: r, session: set} }

// facts are what was gathered.
func (a *analysis) facts(shape string) *policy.Facts {
	f := &policy.Facts{
		Statements: unique(a.statements), Tables: unique(a.tables), Columns: unique(a.columns), Functions: unique(a.functions),
		Unbounded: a.unbounded, Uncertain: a.uncertain, Shape: shape,
	}
	for _, n := range []struct {
		bit    actions
		action isle.Action
	}{{read, isle.ActionPostgresSelect}, {write, isle.ActionPostgresWrite}, {schema, isle.ActionPostgresSchema}, {admin, isle.ActionPostgresAdmin}} {
		if a.actions&n.bit != 0 {
			f.Actions = append(f.Actions, n.action)
		}
	}
	if len(f.Actions) == 0 {
		f.Actions = []isle.Action{isle.ActionPostgresAdmin}
	}
	return f
}

// add takes over what another analysis gathered.
func (a *analysis) add(b *analysis) {
	a.actions |= b.actions
	a.statements = append(a.statements, b.statements...)
	a.tables = append(a.tables, b.tables...)
	a.columns = append(a.columns, b.columns...)
	a.functions = append(a.functions, b.functions...)
	a.unbounded = a.unbounded || b.unbounded
	if b.uncertain != "" {
		a.unsure(b.uncertain)
	}
}

// unsure says that the statement could do more than is read.
func (a *analysis) unsure(why string) {
	a.actions |= admin
	if a.uncertain == "" {
		a.uncertain = why
	}
}

// walk goes over a part of the tree. The scope is nil where no query is.
func (a *analysis) walk(m protoreflect.Message, sc *scope) {
	if !m.IsValid() {
		return
	}
	switch v := m.Interface().(type) {
	case *pg_query.Node:
		a.node(v, sc)
		return
	case *pg_query.SelectStmt:
		a.selects(v, sc)
		return
	case *pg_query.RangeVar:
		if !sc.cte(v) {
			a.tables = append(a.tables, relation(v))
		}
		return
	case *pg_query.ColumnRef:
		a.column(v, sc)
		return
	case *pg_query.LockingClause:
		a.actions |= write
		return
	case *pg_query.IntoClause:
		a.actions |= schema
		a.statements = append(a.statements, "ddl")
	case *pg_query.FuncCall:
		a.function(v)
	case *pg_query.A_Expr:
		a.operator(operatorOf(v))
	case *pg_query.SubLink:
		a.operator(v.GetOperName())
	case *pg_query.SortBy:
		a.operator(v.GetUseOp())
	case *pg_query.TypeCast:
		a.cast(v.GetTypeName())
	case *pg_query.TypeName:
		if sc != nil {
			a.cast(v)
		}
	case *pg_query.RangeTableSample:
		a.sample(v.GetMethod())
	default:
		a.syntax(m)
	}
	a.children(m, sc)
}

// syntax finds what is syntax since a version, and called a function of the
// user's own before.
func (a *analysis) syntax(m protoreflect.Message) {
	since, name := 0, ""
	switch v := m.Interface().(type) {
	case *pg_query.JsonTable:
		since, name = 17, "json_table"
	case *pg_query.JsonParseExpr:
		since, name = 17, "json"
	case *pg_query.JsonScalarExpr:
		since, name = 17, "json_scalar"
	case *pg_query.JsonSerializeExpr:
		since, name = 17, "json_serialize"
	case *pg_query.JsonFuncExpr:
		since, name = 17, map[pg_query.JsonExprOp]string{pg_query.JsonExprOp_JSON_EXISTS_OP: "json_exists",
			pg_query.JsonExprOp_JSON_QUERY_OP: "json_query", pg_query.JsonExprOp_JSON_VALUE_OP: "json_value"}[v.GetOp()]
	case *pg_query.JsonObjectConstructor:
		since, name = 16, "json_object"
	case *pg_query.JsonArrayConstructor, *pg_query.JsonArrayQueryConstructor:
		since, name = 16, "json_array"
	case *pg_query.JsonObjectAgg:
		since, name = 16, "json_objectagg"
	case *pg_query.JsonArrayAgg:
		since, name = 16, "json_arrayagg"
	case *pg_query.MergeSupportFunc:
		since, name = 17, "merge_action"
	default:
		return
	}
	a.functions = append(a.functions, name)
	if a.session.Version < since && !a.r.allows(name) {
		a.unsure("function " + name + " is not built in before PostgreSQL " + strconv.Itoa(since))
	}
}

// node walks what a Node is. A statement within another counts as well.
func (a *analysis) node(n *pg_query.Node, sc *scope) {
	switch s := n.GetNode().(type) {
	case *pg_query.Node_SelectStmt:
		a.selects(s.SelectStmt, sc)
	case *pg_query.Node_InsertStmt:
		a.inserts(s.InsertStmt, sc)
	case *pg_query.Node_UpdateStmt:
		a.updates(s.UpdateStmt, sc)
	case *pg_query.Node_DeleteStmt:
		a.deletes(s.DeleteStmt, sc)
	case *pg_query.Node_MergeStmt:
		a.merges(s.MergeStmt, sc)
	case *pg_query.Node_VariableSetStmt: // of a function that is made
	default:
		n.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			if strings.HasSuffix(string(f.Message().Name()), "Stmt") {
				a.statement(n, &Part{})
			} else {
				a.walk(v.Message(), sc)
			}
			return true
		})
	}
}

// children walks all fields of a message but those named.
func (a *analysis) children(m protoreflect.Message, sc *scope, but ...protoreflect.Name) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Kind() != protoreflect.MessageKind {
			return true
		}
		for _, name := range but {
			if f.Name() == name {
				return true
			}
		}
		if !f.IsList() {
			a.walk(v.Message(), sc)
			return true
		}
		for i := range v.List().Len() {
			a.walk(v.List().Get(i).Message(), sc)
		}
		return true
	})
}

// function says what a call can do. Names without a schema mean what is built
// in, unless search_path could say otherwise.
func (a *analysis) function(c *pg_query.FuncCall) {
	names := strs(c.GetFuncname())
	if len(names) == 0 {
		a.unsure("a function has no name")
		return
	}
	name := names[len(names)-1]
	builtin := len(names) == 1 && !a.session.PathChanged || len(names) == 2 && names[0] == "pg_catalog"
	full := dotted(names...)
	if len(names) == 2 && names[0] == "pg_catalog" {
		full = dotted(name)
	}
	a.functions = append(a.functions, full)
	effect := unknown
	if builtin {
		effect = a.r.catalog.functions[name]
		if name == "set_config" {
			a.setConfig(c)
			return
		}
	}
	switch {
	case effect == computes:
	case effect == writes:
		a.actions |= write
	case a.r.allows(full):
	case effect == administers:
		a.actions |= admin
	case effect == largeObject:
		a.actions |= admin
		a.statements = append(a.statements, "large-object")
	case effect == runs:
		a.unsure("function " + full + " runs SQL that it is given")
	default:
		a.unsure("function " + full + " is not among those that are known, nor under functions of the connection")
	}
}

// dumpValue is what pg_dump sets restrict_nonsystem_relation_kind to, if there is
// such a setting: it takes the name from pg_settings. No other setting takes it,
// or does harm by it.
const dumpValue = "view, foreign-table"

// setConfig reads set_config(name, value, local), which is SET.
func (a *analysis) setConfig(c *pg_query.FuncCall) {
	args := c.GetArgs()
	if len(args) != 3 {
		a.unsure("set_config is called in another way")
		return
	}
	name, ok := constant(args[0])
	value, known := constant(args[1])
	switch {
	case ok:
		a.setting(name, value, known, false)
	case known && value == dumpValue:
		a.actions |= read
	default:
		a.unsure("set_config could change any setting")
	}
}

// operatorOf gives the operator of an expression. BETWEEN stands for two, of
// which the grammar has no name.
func operatorOf(e *pg_query.A_Expr) []*pg_query.Node {
	switch e.GetKind() {
	case pg_query.A_Expr_Kind_AEXPR_BETWEEN, pg_query.A_Expr_Kind_AEXPR_NOT_BETWEEN,
		pg_query.A_Expr_Kind_AEXPR_BETWEEN_SYM, pg_query.A_Expr_Kind_AEXPR_NOT_BETWEEN_SYM:
		return []*pg_query.Node{pg_query.MakeStrNode(">=")}
	}
	return e.GetName()
}

// operator says what an operator can do: one that is not built in is a function.
func (a *analysis) operator(name []*pg_query.Node) {
	names := strs(name)
	if len(names) == 0 {
		return
	}
	op := names[len(names)-1]
	builtin := len(names) == 1 && !a.session.PathChanged || len(names) == 2 && names[0] == "pg_catalog"
	if builtin && a.r.catalog.operators[op] {
		return
	}
	full := strings.Join(names, ".")
	a.functions = append(a.functions, full)
	if !a.r.allows(full) {
		a.unsure("operator " + full + " is not among those that are known, nor under functions of the connection")
	}
}

// cast says what the input of a type can do: one that is not built in has
// functions of its own.
func (a *analysis) cast(t *pg_query.TypeName) {
	names := strs(t.GetNames())
	if len(names) == 0 {
		return
	}
	builtin := len(names) == 1 && !a.session.PathChanged || len(names) == 2 && names[0] == "pg_catalog"
	if builtin && (len(names) == 2 || a.r.catalog.types[names[0]]) && !t.GetPctType() {
		return
	}
	full := dotted(names...)
	a.functions = append(a.functions, full)
	if !a.r.allows(full) {
		a.unsure("type " + full + " is not built in, nor under functions of the connection")
	}
}

// sample reads the method of TABLESAMPLE, which is a function.
func (a *analysis) sample(method []*pg_query.Node) {
	names := strs(method)
	if len(names) == 1 && (names[0] == "bernoulli" || names[0] == "system") && !a.session.PathChanged {
		return
	}
	full := dotted(names...)
	a.functions = append(a.functions, full)
	if !a.r.allows(full) {
		a.unsure("sampling method " + full + " is not built in, nor under functions of the connection")
	}
}

// allows reports whether the connection allows a function by name. A name with
// its schema allows that without too: what search_path finds is the policy's.
func (r *Reader) allows(name string) bool {
	setting := strings.HasPrefix(name, "set:")
	for _, p := range r.allowed {
		if setting != strings.HasPrefix(p, "set:") {
			continue
		}
		if match(p, name) {
			return true
		}
		if i := strings.LastIndexByte(p, '.'); i > 0 && !setting && !strings.Contains(name, ".") && match(p[i+1:], name) {
			return true
		}
	}
	return false
}

// match compares a name with a pattern, of which "*" is any text but a dot.
func match(pattern, name string) bool {
	head, tail, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == name
	}
	rest, ok := strings.CutPrefix(name, head)
	if !ok {
		return false
	}
	for i := 0; i <= len(rest); i++ {
		if match(tail, rest[i:]) {
			return true
		}
		if i < len(rest) && rest[i] == '.' {
			break
		}
	}
	return false
}
