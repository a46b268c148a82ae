package postgres

import (
	"context"
	"testing"

	"isle"
	"isle/internal/gateway"
)

func TestATransactionBeginsAsItsClientSaysWhateverWasSetBefore(t *testing.T) {
	c := dial(t, listen(t, orders())).PgConn()
	for _, sql := range []string{
		"select set_config('search_path', '', false)", "begin", "set transaction isolation level repeatable read, read only", "select 1",
		"savepoint s", "set local search_path = public", "rollback to s", "select 1", "commit and chain", "set transaction isolation level serializable", "commit",
		"set search_path = public", "begin isolation level serializable; set local search_path = ''; set transaction deferrable", "select 1", "rollback",
	} {
		if _, err := c.Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

// TestASettingWithinASegmentHoldsNothingUp: drivers send BEGIN and what comes
// after it in one segment, after which the server says something only at its end.
func TestASettingWithinASegmentHoldsNothingUp(t *testing.T) {
	c := dial(t, listen(t, orders())).PgConn()
	p := c.StartPipeline(t.Context())
	for _, sql := range []string{"set search_path = public", "set datestyle = 'German'", "begin", "select 1", "set local search_path = ''", "commit", "select 2"} {
		p.SendQueryParams(sql, nil, nil, nil, nil)
	}
	if err := p.Sync(); err != nil {
		t.Fatal(err)
	}
	for range 7 {
		if _, err := p.GetResults(); err != nil {
			t.Fatal(err)
		}
	}
	p.Close()
}

func TestAnApprovalIsBoundToWhatTheSessionHasSet(t *testing.T) {
	f := orders()
	var last map[string]string
	f.decide = func(_ context.Context, a gateway.Ask) error {
		last = map[string]string{}
		for _, p := range a.Context {
			last[p.Key] = p.Value
		}
		return nil
	}
	server.Must(t, "orders", "drop role if exists clerk; create role clerk; grant clerk to orders_db")
	t.Cleanup(func() { server.Must(t, "orders", "drop role clerk") })
	c := dial(t, listen(t, f)).PgConn()
	for _, step := range []struct{ sql, key, want string }{
		{"select 1", "search_path", `"$user", public`},
		{"set search_path = 'other', public", "search_path", "other, public"},
		{"begin; set local search_path = pg_temp, third", "search_path", "pg_temp, third"},
		{"rollback", "search_path", "other, public"},
		{"set datestyle = 'German'", "DateStyle", "German, DMY"},
		{"set time zone 'Europe/Berlin'", "TimeZone", "Europe/Berlin"},
		{"begin; set local datestyle = 'ISO'", "DateStyle", "ISO, DMY"},
		{"commit", "DateStyle", "German, DMY"},
		{"set role clerk", "role", "clerk"},
		{"reset role", "role", "orders_db"},
		{"discard all", "search_path", `"$user", public`},
	} {
		for _, sql := range []string{step.sql, "select 1"} {
			if _, err := c.Exec(t.Context(), sql).ReadAll(); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
		if last[step.key] != step.want {
			t.Errorf("after %s, %s is %q", step.sql, step.key, last[step.key])
		}
	}
}

func TestASearchPathWithPgCatalogFirstLeavesWhatIsBuiltInKnown(t *testing.T) {
	for path, want := range map[string]bool{
		`"$user", public`: true, "pg_catalog": true, `"pg_catalog", public`: true, "pg_catalog, pg_temp": true, "": true,
		"public, pg_catalog": false, "pg_temp": false, `"pg_catalog ", x`: false, "PG_CATALOG": false,
	} {
		if ordinaryPath(path) != want {
			t.Errorf("%s: %t", path, !want)
		}
	}
	f := orders()
	f.decide = func(_ context.Context, a gateway.Ask) error {
		for _, action := range a.Facts.Actions {
			if action == isle.ActionPostgresAdmin {
				return isle.Errorf(isle.Refused, "admin")
			}
		}
		return nil
	}
	c := dial(t, listen(t, f)).PgConn()
	for _, sql := range []string{"set search_path to pg_catalog", "select lower('A')"} {
		if _, err := c.Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
}
