package query

import (
	"slices"
	"strconv"
	"strings"
	"time"

	pg_query "github.com/pganalyze/pg_query_go/v6"
)

// Settings that a session may have as it likes: how values look, how long it
// waits, how the planner goes about it. row_security is among them: off makes a
// statement fail that policies would have filtered, and never shows more.
const free = `
	application_name bytea_output client_min_messages datestyle intervalstyle timezone extra_float_digits
	lc_monetary lc_numeric lc_time array_nulls xmlbinary xmloption escape_string_warning quote_all_identifiers
	lock_timeout idle_in_transaction_session_timeout idle_session_timeout transaction_timeout
	deadlock_timeout tcp_keepalives_idle tcp_keepalives_interval tcp_keepalives_count tcp_user_timeout
	client_connection_check_interval default_transaction_isolation transaction_isolation
	default_transaction_deferrable transaction_deferrable row_security synchronize_seqscans
	restrict_nonsystem_relation_kind
	default_text_search_config backend_flush_after cursor_tuple_fraction plan_cache_mode from_collapse_limit
	join_collapse_limit constraint_exclusion geqo geqo_threshold jit random_page_cost seq_page_cost
	effective_cache_size max_parallel_workers_per_gather default_statistics_target
	enable_async_append enable_bitmapscan enable_gathermerge enable_hashagg enable_hashjoin
	enable_incremental_sort enable_indexonlyscan enable_indexscan enable_material enable_memoize
	enable_mergejoin enable_nestloop enable_parallel_append enable_parallel_hash enable_partition_pruning
	enable_partitionwise_aggregate enable_partitionwise_join enable_seqscan enable_sort enable_tidscan`

// Settings of those who make tables and functions; dumps set them.
const making = `check_function_bodies default_tablespace default_table_access_method default_toast_compression default_with_oids`

// set reads SET and RESET.
func (a *analysis) set(s *pg_query.VariableSetStmt, part *Part) {
	a.say(part, "set", read)
	name := strings.ToLower(s.GetName())
	switch s.GetKind() {
	case pg_query.VariableSetKind_VAR_RESET_ALL:
		part.Settings = []string{"*"}
		return
	case pg_query.VariableSetKind_VAR_SET_MULTI:
		if name != "transaction" && name != "session characteristics" {
			a.actions |= admin // SET TRANSACTION SNAPSHOT: of another session
		}
		a.modes(s.GetArgs())
		return
	}
	part.Settings = []string{name}
	value, known := values(s.GetArgs())
	initial := s.GetKind() == pg_query.VariableSetKind_VAR_SET_DEFAULT || s.GetKind() == pg_query.VariableSetKind_VAR_RESET
	a.setting(name, value, known, initial)
}

// setting says what it takes to change a setting: to what it was when the
// session began where initial, else to a value where that is known.
func (a *analysis) setting(name, value string, known, initial bool) {
	name = strings.ToLower(name)
	needs, unsure := a.r.settingNeeds(name, value, known, initial)
	if needs&admin != 0 {
		a.functions = append(a.functions, "set:"+name)
		switch {
		case unsure != "":
			a.unsure(unsure)
		case name != "role" && name != "session_authorization" && a.r.allows("set:"+name):
			return
		}
	}
	a.actions |= needs
}

// settingNeeds is what setting needs; where it isn't certain how the server
// reads what follows, it says so.
func (r *Reader) settingNeeds(name, value string, known, initial bool) (needs actions, unsure string) {
	lower := strings.ToLower(value)
	is := func(values ...string) bool { return known && slices.Contains(values, lower) }
	on, off := is("on", "true", "yes", "1"), is("off", "false", "no", "0")
	switch name {
	case "role", "session_authorization":
		return admin, "" // to reset one is to become who logged in
	case "search_path":
		// Rules take a name without its schema for that of any, so the path is
		// free, as long as what is built in comes first.
		if initial || is("", "pg_catalog", "pg_catalog, pg_temp") || known && !strings.Contains(lower, "pg_") {
			return read, ""
		}
		return admin, "search_path may put something before pg_catalog"
	case "statement_timeout": // less than a millisecond is rounded, to none
		if d, ok := duration(lower); initial || r.timeout == 0 || known && ok && d >= time.Millisecond && d <= r.timeout {
			return read, ""
		}
		return admin, ""
	case "client_encoding":
		if initial || is("utf8", "utf-8", "unicode") {
			return read, ""
		}
		return admin, "client_encoding says how the server reads what follows"
	case "standard_conforming_strings":
		if initial || on {
			return read, ""
		}
		return admin, "standard_conforming_strings says how the server reads what follows"
	case "default_transaction_read_only", "transaction_read_only":
		if on {
			return read, ""
		}
		if off || initial {
			return write, ""
		}
		return admin, ""
	}
	switch {
	case r.catalog.free[name]:
		return read, ""
	case r.catalog.making[name]:
		return schema, ""
	case initial:
		return read, ""
	}
	return admin, ""
}

// values are what SET sets, as one text.
func values(args []*pg_query.Node) (string, bool) {
	out := make([]string, 0, len(args))
	for _, n := range args {
		v, ok := constant(n)
		if !ok {
			return "", false
		}
		out = append(out, v)
	}
	return strings.Join(out, ", "), true
}

// constant is the text of a constant.
func constant(n *pg_query.Node) (string, bool) {
	c := n.GetAConst()
	if c == nil || c.GetIsnull() {
		return "", false
	}
	switch v := c.GetVal().(type) {
	case *pg_query.A_Const_Sval:
		return v.Sval.GetSval(), true
	case *pg_query.A_Const_Ival:
		return strconv.Itoa(int(v.Ival.GetIval())), true
	case *pg_query.A_Const_Fval:
		return v.Fval.GetFval(), true
	case *pg_query.A_Const_Boolval:
		return strconv.FormatBool(v.Boolval.GetBoolval()), true
	}
	return "", false
}

// duration reads a time as PostgreSQL does: milliseconds, or a number with a unit.
func duration(s string) (time.Duration, bool) {
	i := 0
	for i < len(s) && digit(s[i]) {
		i++
	}
	n, err := strconv.ParseInt(s[:i], 10, 32)
	if err != nil {
		return 0, false
	}
	switch strings.TrimSpace(s[i:]) {
	case "", "ms":
		return time.Duration(n) * time.Millisecond, true
	case "us":
		return time.Duration(n) * time.Microsecond, true
	case "s":
		return time.Duration(n) * time.Second, true
	case "min":
		return time.Duration(n) * time.Minute, true
	}
	return 0, false
}
