package query

import (
	"slices"
	"strings"

	pg_query "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/reflect/protoreflect"

	"isle"
	"isle/internal/gateway/postgres/query/grammar"
	"isle/internal/policy"
)

// entry makes what is known of a shape from the tree of one text of it.
func (r *Reader) entry(tree *grammar.Tree, sql string, set Settings, s *shape) *entry {
	e := &entry{}
	var all []*policy.Facts
	for i, raw := range tree.GetStmts() {
		part := Part{Start: int(raw.GetStmtLocation()), End: int(raw.GetStmtLocation() + raw.GetStmtLen())}
		if raw.GetStmtLen() == 0 {
			part.End = len(sql)
		}
		if i < len(s.statements) && len(s.statements) == len(tree.GetStmts()) {
			part.Start, part.End = s.statements[i].start, s.statements[i].end
		}
		if part.Start < 0 || part.End > len(sql) || part.Start > part.End {
			return unread("its statements are not where they should be")
		}
		a := r.analysis(set)
		a.statement(raw.GetStmt(), &part)
		part.Facts = a.facts(shown(sql[part.Start:part.End], set))
		if part.arguments != nil {
			part.arguments.Shape = part.Facts.Shape
		}
		e.parts, all = append(e.parts, part), append(all, part.Facts)
	}
	if s.plain && len(s.statements) != len(e.parts) {
		return unread("its statements are not where they should be")
	}
	if len(all) == 0 {
		e.facts = &policy.Facts{Actions: []isle.Action{isle.ActionPostgresSelect}, Statements: []string{"empty"}}
		return e
	}
	e.facts = join(shown(sql, set), all...)
	return e
}

// statement says what a statement is. What only utility statements have is said
// here; walk says what is in them.
func (a *analysis) statement(n *pg_query.Node, part *Part) {
	switch s := n.GetNode().(type) {
	case *pg_query.Node_SelectStmt, *pg_query.Node_InsertStmt, *pg_query.Node_UpdateStmt, *pg_query.Node_DeleteStmt, *pg_query.Node_MergeStmt:
		a.node(n, nil)
		part.Kind = kindOf(n)
		return
	case *pg_query.Node_ExplainStmt:
		a.explain(s.ExplainStmt, part)
		return
	case *pg_query.Node_TransactionStmt:
		a.transaction(s.TransactionStmt, part)
	case *pg_query.Node_VariableSetStmt:
		a.set(s.VariableSetStmt, part)
	case *pg_query.Node_CopyStmt:
		a.copy(s.CopyStmt, part)
	case *pg_query.Node_PrepareStmt:
		a.prepare(s.PrepareStmt, part)
		return
	case *pg_query.Node_ExecuteStmt:
		a.execute(s.ExecuteStmt, part)
		return
	case *pg_query.Node_CreateTableAsStmt:
		a.say(part, "ddl", schema)
		if x := s.CreateTableAsStmt.GetQuery().GetExecuteStmt(); x != nil {
			a.unsure("what " + x.GetName() + " was prepared as isn't known here")
		}
	case *pg_query.Node_DeclareCursorStmt:
		part.Name = s.DeclareCursorStmt.GetPortalname()
		a.say(part, "declare", 0)
	case *pg_query.Node_FetchStmt:
		part.Name = s.FetchStmt.GetPortalname()
		a.say(part, "fetch", read)
	case *pg_query.Node_ClosePortalStmt:
		part.Name = s.ClosePortalStmt.GetPortalname()
		a.say(part, "close", read)
	case *pg_query.Node_DeallocateStmt:
		part.Name = s.DeallocateStmt.GetName()
		a.say(part, "deallocate", read)
	case *pg_query.Node_TruncateStmt:
		a.say(part, "truncate", write)
		a.unbounded = true
	case *pg_query.Node_DoStmt:
		a.say(part, "do", admin)
		a.unsure("DO runs code that isn't read")
		return
	case *pg_query.Node_CallStmt:
		a.say(part, "call", write)
	case *pg_query.Node_LockStmt:
		a.say(part, "lock", write)
		if s.LockStmt.GetMode() == accessShare {
			a.actions = read
		}
	case *pg_query.Node_DropStmt:
		a.drop(s.DropStmt, part)
	case *pg_query.Node_DiscardStmt:
		a.say(part, "discard", read)
		part.Settings = []string{"*"}
	case *pg_query.Node_AlterTableStmt:
		a.say(part, "ddl", schema)
		a.alterTable(s.AlterTableStmt)
	default:
		k, ok := utility(n)
		if !ok {
			a.say(part, "other", admin)
			return
		}
		a.say(part, k.name, k.actions)
	}
	n.ProtoReflect().Range(func(_ protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		a.children(v.Message(), nil)
		return true
	})
}

// accessShare is the lock that SELECT takes as well.
const accessShare = 1

// say names what a statement is, and what it needs.
func (a *analysis) say(part *Part, kind string, needs actions) {
	part.Kind = kind
	a.statements = append(a.statements, kind)
	a.actions |= needs
}

// kindOf is what a statement with rows is called.
func kindOf(n *pg_query.Node) string {
	switch n.GetNode().(type) {
	case *pg_query.Node_SelectStmt:
		return "select"
	case *pg_query.Node_InsertStmt:
		return "insert"
	case *pg_query.Node_UpdateStmt:
		return "update"
	case *pg_query.Node_DeleteStmt:
		return "delete"
	case *pg_query.Node_MergeStmt:
		return "merge"
	}
	return "other"
}

// A use is what a utility statement is called and needs.
type use struct {
	name    string
	actions actions
}

// utility is of the statements of which only their kind matters, and what walk
// finds in them. What is on no list needs postgres:admin.
func utility(n *pg_query.Node) (use, bool) {
	switch n.GetNode().(type) {
	case *pg_query.Node_VariableShowStmt:
		return use{"show", read}, true
	case *pg_query.Node_ConstraintsSetStmt:
		return use{"set", read}, true
	case *pg_query.Node_ListenStmt, *pg_query.Node_UnlistenStmt:
		return use{"listen", read}, true
	case *pg_query.Node_NotifyStmt:
		return use{"notify", write}, true
	case *pg_query.Node_VacuumStmt:
		return use{"vacuum", write}, true
	case *pg_query.Node_ClusterStmt, *pg_query.Node_ReindexStmt, *pg_query.Node_RefreshMatViewStmt,
		*pg_query.Node_CreateStmt, *pg_query.Node_CreateSchemaStmt, *pg_query.Node_ViewStmt, *pg_query.Node_IndexStmt,
		*pg_query.Node_CreateSeqStmt, *pg_query.Node_AlterSeqStmt, *pg_query.Node_RenameStmt, *pg_query.Node_AlterObjectSchemaStmt,
		*pg_query.Node_CommentStmt, *pg_query.Node_CreateStatsStmt, *pg_query.Node_AlterStatsStmt,
		*pg_query.Node_CreateFunctionStmt, *pg_query.Node_AlterFunctionStmt, *pg_query.Node_CreateTrigStmt, *pg_query.Node_RuleStmt,
		*pg_query.Node_CreateEnumStmt, *pg_query.Node_AlterEnumStmt, *pg_query.Node_CompositeTypeStmt, *pg_query.Node_CreateRangeStmt,
		*pg_query.Node_AlterTypeStmt, *pg_query.Node_CreateDomainStmt, *pg_query.Node_AlterDomainStmt,
		*pg_query.Node_DefineStmt, *pg_query.Node_CreateCastStmt, *pg_query.Node_CreateConversionStmt,
		*pg_query.Node_CreateOpClassStmt, *pg_query.Node_CreateOpFamilyStmt, *pg_query.Node_AlterOpFamilyStmt, *pg_query.Node_AlterOperatorStmt,
		*pg_query.Node_AlterCollationStmt, *pg_query.Node_AlterObjectDependsStmt,
		*pg_query.Node_AlterTsdictionaryStmt, *pg_query.Node_AlterTsconfigurationStmt:
		return use{"ddl", schema}, true
	case *pg_query.Node_GrantStmt, *pg_query.Node_AlterDefaultPrivilegesStmt, *pg_query.Node_AlterOwnerStmt,
		*pg_query.Node_ReassignOwnedStmt, *pg_query.Node_DropOwnedStmt, *pg_query.Node_CreatePolicyStmt, *pg_query.Node_AlterPolicyStmt,
		*pg_query.Node_SecLabelStmt:
		return use{"grant", admin}, true
	case *pg_query.Node_GrantRoleStmt, *pg_query.Node_CreateRoleStmt, *pg_query.Node_AlterRoleStmt, *pg_query.Node_AlterRoleSetStmt,
		*pg_query.Node_DropRoleStmt:
		return use{"role", admin}, true
	}
	return use{}, false
}

// drop says what is dropped. Kinds that hold rows or code of the schema need
// postgres:schema.
func (a *analysis) drop(s *pg_query.DropStmt, part *Part) {
	needs, relation := admin, false
	switch s.GetRemoveType() {
	case pg_query.ObjectType_OBJECT_TABLE, pg_query.ObjectType_OBJECT_VIEW, pg_query.ObjectType_OBJECT_MATVIEW,
		pg_query.ObjectType_OBJECT_INDEX, pg_query.ObjectType_OBJECT_SEQUENCE:
		needs, relation = schema, true
	case pg_query.ObjectType_OBJECT_SCHEMA, pg_query.ObjectType_OBJECT_TYPE, pg_query.ObjectType_OBJECT_DOMAIN,
		pg_query.ObjectType_OBJECT_FUNCTION, pg_query.ObjectType_OBJECT_PROCEDURE, pg_query.ObjectType_OBJECT_ROUTINE,
		pg_query.ObjectType_OBJECT_AGGREGATE, pg_query.ObjectType_OBJECT_OPERATOR, pg_query.ObjectType_OBJECT_TRIGGER,
		pg_query.ObjectType_OBJECT_RULE, pg_query.ObjectType_OBJECT_COLLATION, pg_query.ObjectType_OBJECT_CONVERSION,
		pg_query.ObjectType_OBJECT_STATISTIC_EXT, pg_query.ObjectType_OBJECT_CAST, pg_query.ObjectType_OBJECT_OPCLASS,
		pg_query.ObjectType_OBJECT_OPFAMILY, pg_query.ObjectType_OBJECT_TSCONFIGURATION, pg_query.ObjectType_OBJECT_TSDICTIONARY:
		needs = schema
	case pg_query.ObjectType_OBJECT_FOREIGN_TABLE:
		relation = true
	}
	a.say(part, "ddl", needs)
	for _, o := range s.GetObjects() {
		if names := strs(o.GetList().GetItems()); relation && len(names) > 0 {
			a.tables = append(a.tables, dotted(names...))
		}
	}
}

// alterTable finds what of ALTER TABLE is about who may do what.
func (a *analysis) alterTable(s *pg_query.AlterTableStmt) {
	for _, c := range s.GetCmds() {
		switch c.GetAlterTableCmd().GetSubtype() {
		case pg_query.AlterTableType_AT_ChangeOwner, pg_query.AlterTableType_AT_SetTableSpace,
			pg_query.AlterTableType_AT_EnableRowSecurity, pg_query.AlterTableType_AT_DisableRowSecurity,
			pg_query.AlterTableType_AT_ForceRowSecurity, pg_query.AlterTableType_AT_NoForceRowSecurity,
			pg_query.AlterTableType_AT_DisableTrig, pg_query.AlterTableType_AT_DisableTrigAll, pg_query.AlterTableType_AT_DisableTrigUser,
			pg_query.AlterTableType_AT_EnableTrig, pg_query.AlterTableType_AT_EnableTrigAll, pg_query.AlterTableType_AT_EnableTrigUser,
			pg_query.AlterTableType_AT_EnableAlwaysTrig, pg_query.AlterTableType_AT_EnableReplicaTrig,
			pg_query.AlterTableType_AT_EnableRule, pg_query.AlterTableType_AT_EnableAlwaysRule, pg_query.AlterTableType_AT_EnableReplicaRule,
			pg_query.AlterTableType_AT_DisableRule, pg_query.AlterTableType_AT_GenericOptions:
			a.actions |= admin
		}
	}
}

// explain reads EXPLAIN. Without ANALYZE nothing of the statement runs but what
// the planner computes of functions.
func (a *analysis) explain(s *pg_query.ExplainStmt, part *Part) {
	runs := false
	for _, o := range s.GetOptions() {
		if d := o.GetDefElem(); strings.EqualFold(d.GetDefname(), "analyze") {
			runs = runs || !off(d.GetArg())
		}
	}
	inner := a.r.analysis(a.session)
	ignored := Part{}
	inner.statement(s.GetQuery(), &ignored)
	if !runs {
		inner.actions &= admin // what functions need
		inner.statements, inner.unbounded = nil, false
		if s.GetQuery().GetExecuteStmt() != nil {
			inner.uncertain, inner.actions = "", 0
			inner.children(s.GetQuery().GetExecuteStmt().ProtoReflect(), nil)
		}
	}
	a.add(inner)
	a.say(part, "explain", read)
}

// off reports whether the value of an option is certainly false.
func off(n *pg_query.Node) bool {
	switch v := n.GetNode().(type) {
	case *pg_query.Node_Boolean:
		return !v.Boolean.GetBoolval()
	case *pg_query.Node_Integer:
		return v.Integer.GetIval() == 0
	case *pg_query.Node_String_:
		return strings.EqualFold(v.String_.GetSval(), "false") || strings.EqualFold(v.String_.GetSval(), "off")
	}
	return false
}

func (a *analysis) prepare(s *pg_query.PrepareStmt, part *Part) {
	inner := Part{}
	a.statement(s.GetQuery(), &inner)
	for _, t := range s.GetArgtypes() {
		a.cast(t.GetTypeName())
	}
	a.say(part, "prepare", 0)
	part.Name = s.GetName()
}

// execute reads EXECUTE, of which the name alone is known. What its arguments do
// is kept apart, for Reader.Execute.
func (a *analysis) execute(s *pg_query.ExecuteStmt, part *Part) {
	a.children(s.ProtoReflect(), nil)
	a.say(part, "execute", read)
	part.Name, part.arguments = s.GetName(), a.facts("")
	a.unsure("what " + s.GetName() + " was prepared as isn't known here")
}

// copy reads COPY. Files and programs are the server's.
func (a *analysis) copy(s *pg_query.CopyStmt, part *Part) {
	if s.GetIsFrom() {
		a.say(part, "copy-in", write)
	} else {
		a.say(part, "copy-out", read)
	}
	if s.GetIsProgram() || s.GetFilename() != "" {
		a.actions |= admin
	}
	if s.GetRelation() == nil {
		return
	}
	if s.GetIsFrom() {
		a.catalog(s.GetRelation())
	}
	table := relation(s.GetRelation())
	if len(s.GetAttlist()) == 0 {
		a.columns = append(a.columns, table+".*")
	}
	for _, c := range strs(s.GetAttlist()) {
		a.columns = append(a.columns, table+"."+part1(c))
	}
}

func (a *analysis) transaction(s *pg_query.TransactionStmt, part *Part) {
	a.say(part, "transaction", read)
	switch s.GetKind() {
	case pg_query.TransactionStmtKind_TRANS_STMT_BEGIN, pg_query.TransactionStmtKind_TRANS_STMT_START:
		part.Transaction = "begin"
	case pg_query.TransactionStmtKind_TRANS_STMT_COMMIT:
		part.Transaction = "commit"
	case pg_query.TransactionStmtKind_TRANS_STMT_ROLLBACK:
		part.Transaction = "rollback"
	case pg_query.TransactionStmtKind_TRANS_STMT_SAVEPOINT:
		part.Transaction = "savepoint"
	case pg_query.TransactionStmtKind_TRANS_STMT_RELEASE:
		part.Transaction = "release"
	case pg_query.TransactionStmtKind_TRANS_STMT_ROLLBACK_TO:
		part.Transaction = "rollback to"
	case pg_query.TransactionStmtKind_TRANS_STMT_PREPARE:
		part.Transaction = "prepare transaction"
		a.actions |= admin
	default: // of another session's transaction
		a.actions |= admin
	}
	a.modes(s.GetOptions())
}

// modes reads the modes of a transaction: READ WRITE lifts what a session or the
// gateway set.
func (a *analysis) modes(options []*pg_query.Node) {
	for _, o := range options {
		if d := o.GetDefElem(); d.GetDefname() == "transaction_read_only" && d.GetArg().GetAConst().GetIval().GetIval() == 0 {
			a.actions |= write
		}
	}
}

// strs are the names of a list.
func strs(list []*pg_query.Node) []string {
	var out []string
	for _, n := range list {
		out = append(out, n.GetString_().GetSval())
	}
	return out
}

// dotted joins the parts of a name.
func dotted(parts ...string) string {
	parts = slices.DeleteFunc(slices.Clone(parts), func(p string) bool { return p == "" })
	for i, p := range parts {
		parts[i] = part1(p)
	}
	return strings.Join(parts, ".")
}

// part1 is one part of a name, in quotes where it could be taken for several.
func part1(name string) string {
	if strings.ContainsAny(name, `."*`) {
		return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
	}
	return name
}

func relation(r *pg_query.RangeVar) string {
	return dotted(r.GetCatalogname(), r.GetSchemaname(), r.GetRelname())
}
