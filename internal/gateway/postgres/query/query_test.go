package query_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"isle"
	"isle/internal/gateway/postgres/query"
	"isle/internal/gateway/postgres/query/grammar"
	"isle/internal/policy"
)

// usual are the settings of a session with a server as people have it.
func usual() query.Settings {
	return query.Settings{StandardConforming: true, Encoding: "UTF8", ServerEncoding: "UTF8", Version: 15}
}

// shared is one grammar for the tests of the package: it takes seconds to warm.
var shared = grammar.New()

func reader(t testing.TB, functions ...string) *query.Reader {
	t.Helper()
	return query.New(query.Config{Grammar: shared, Functions: functions})
}

func read(t testing.TB, r *query.Reader, sql string, set query.Settings) *query.Read {
	t.Helper()
	got, err := r.Read(context.Background(), sql, set)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return got
}

func reads(f *policy.Facts) bool {
	return f.Uncertain == "" && slices.Equal(f.Actions, []isle.Action{isle.ActionPostgresSelect})
}

func TestFactsSayWhatAStatementDoes(t *testing.T) {
	r := reader(t)
	for _, c := range []struct {
		sql                                             string
		actions, statements, tables, columns, functions []string
		unbounded                                       bool
	}{
		{sql: "select id, lower(email) from customers where id = 5", actions: []string{"select"}, statements: []string{"select"}, tables: []string{"customers"}, columns: []string{"customers.email", "customers.id"}, functions: []string{"lower"}},
		{sql: "select c.email, o.* from public.customers c join orders o on o.customer = c.id", actions: []string{"select"}, statements: []string{"select"}, tables: []string{"orders", "public.customers"}, columns: []string{"orders.*", "orders.customer", "public.customers.email", "public.customers.id"}},
		{sql: "delete from orders", actions: []string{"write"}, statements: []string{"delete"}, tables: []string{"orders"}, unbounded: true},
		{sql: "delete from orders where id = 1 returning total", actions: []string{"select", "write"}, statements: []string{"delete"}, tables: []string{"orders"}, columns: []string{"orders.id", "orders.total"}},
		{sql: "with x as (delete from orders where id = 1 returning *) select * from x", actions: []string{"select", "write"}, statements: []string{"delete", "select"}, tables: []string{"orders"}, columns: []string{"orders.*", "orders.id"}},
		{sql: "with orders as (select 1 from orders) select * from orders", actions: []string{"select"}, statements: []string{"select"}, tables: []string{"orders"}},
		{sql: "update t set a = 1 where true", actions: []string{"write"}, statements: []string{"update"}, tables: []string{"t"}, columns: []string{"t.a"}, unbounded: true},
		{sql: "insert into t (a, b) values (1, 2) on conflict (a) do update set b = excluded.b", actions: []string{"write"}, statements: []string{"insert", "update"}, tables: []string{"t"}, columns: []string{"t.a", "t.b"}},
		{sql: "truncate t, u", actions: []string{"write"}, statements: []string{"truncate"}, tables: []string{"t", "u"}, unbounded: true},
		{sql: "create table t (a int default now())", actions: []string{"schema"}, statements: []string{"ddl"}, tables: []string{"t"}, functions: []string{"now"}},
		{sql: "select j.email from (customers cross join orders) as j", actions: []string{"select"}, statements: []string{"select"}, tables: []string{"customers", "orders"}, columns: []string{"customers.*", "orders.*"}},
		{sql: "update customers set a = 1 where id = 1 returning old.email", actions: []string{"select", "write"}, statements: []string{"update"}, tables: []string{"customers"}, columns: []string{"customers.a", "customers.email", "customers.id"}},
		{sql: "grant select on t to bob", actions: []string{"admin"}, statements: []string{"grant"}, tables: []string{"t"}},
	} {
		var want []string
		for _, a := range c.actions {
			want = append(want, "postgres:"+a)
		}
		f := read(t, r, c.sql, usual()).Facts
		var got []string
		for _, a := range f.Actions {
			got = append(got, string(a))
		}
		if !slices.Equal(got, want) || !slices.Equal(f.Statements, c.statements) || !slices.Equal(f.Tables, c.tables) ||
			!slices.Equal(f.Columns, c.columns) || !slices.Equal(f.Functions, c.functions) || f.Unbounded != c.unbounded {
			t.Errorf("%s\ngives %+v", c.sql, *f)
		}
	}
}

func TestAConnectionAllowsMoreByName(t *testing.T) {
	r := reader(t, "shop.price", "similar*", "<=>", "mood", "set:app.*", "set:role", "purge_old", "pg_reload_conf", "nextval")
	for sql, want := range map[string]string{
		"select price(1)":                           "postgres:select",
		"select shop.price(1)":                      "postgres:select",
		"select other.price(1)":                     "postgres:admin",
		"select similarity('a', 'b')":               "postgres:select",
		"select evil.similarity('a', 'b')":          "postgres:admin",
		"select a <=> b from t":                     "postgres:select",
		"select 'x'::mood, cast($1 as mood)":        "postgres:select",
		"select pg_reload_conf()":                   "postgres:select",
		"select nextval('s')":                       "postgres:write",
		"set app.tenant = '5'":                      "postgres:select",
		"select set_config('app.tenant', $1, true)": "postgres:select",
		"set role postgres":                         "postgres:admin",
		"set work_mem = '1GB'":                      "postgres:admin",
		"call purge_old()":                          "postgres:write",
		"call purge_new()":                          "postgres:admin",
	} {
		f := read(t, r, sql, usual()).Facts
		if got := string(f.Actions[len(f.Actions)-1]); got != want {
			t.Errorf("%s needs %s (%s), want %s", sql, got, f.Uncertain, want)
		}
	}
	everything := reader(t, "*")
	if f := read(t, everything, "set role postgres; set app.tenant = '5'", usual()).Facts; reads(f) {
		t.Errorf("any function is any setting as well: %+v", *f)
	}
}

func TestAStatementTimeoutOnlyGetsShorter(t *testing.T) {
	r := query.New(query.Config{Grammar: shared, StatementTimeout: 5 * time.Second})
	for sql, want := range map[string]bool{
		"set statement_timeout = '4s'": true, "set statement_timeout to 5000": true, "reset statement_timeout": true, "set local statement_timeout = '100ms'": true,
		"set statement_timeout = 0": false, "set statement_timeout = '400us'": false, "set statement_timeout = '1000us'": true, "set statement_timeout = '1h'": false, "set statement_timeout = 5001": false, "set statement_timeout = '0.5min'": false,
		"select set_config('statement_timeout', '0', false)": false, "set statement_timeout = '-1'": false,
	} {
		if f := read(t, r, sql, usual()).Facts; reads(f) != want {
			t.Errorf("%s: %+v", sql, *f)
		}
	}
}

func BenchmarkReadKnownShape(b *testing.B) {
	r := reader(b)
	set := usual()
	for b.Loop() {
		if _, err := r.Read(context.Background(), "SELECT abalance FROM pgbench_accounts WHERE aid = 17;", set); err != nil {
			b.Fatal(err)
		}
	}
}
