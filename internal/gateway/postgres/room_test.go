package postgres

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"isle/internal/gateway"
	"isle/internal/gateway/gatewaytest"
)

func TestTheApprovalRoomDecidesAboutAStatementOnItsConnection(t *testing.T) {
	w := gatewaytest.New(t, policyWith(`connection:open, "postgres:select", "postgres:write"`)+`approvals:
  - {actions: [postgres:write], resources: [connection:orders-db], approvers: [human:root], when: {tables: [roomed]}, uses: 2}
  - {actions: [postgres:write], resources: [connection:orders-db], approvers: [human:root], when: {tables: [later]}, hold: error}
`, map[string]gateway.Protocol{"postgres": New(Config{Grammar: parser})})
	w.SetSecret("orders", "geheim")
	server.Must(t, "orders", "set role orders_db; create table if not exists roomed (a int); create table if not exists later (a int)")
	c := through(t, w)
	run := func(sql string, params ...[]byte) *pgconn.PgError {
		t.Helper()
		err := c.ExecParams(t.Context(), sql, params, nil, nil, nil).Read().Err
		if err == nil {
			return nil
		}
		e, ok := err.(*pgconn.PgError)
		if !ok {
			t.Fatal(err)
		}
		return e
	}
	decide := func(approve bool, reason string) {
		r := w.Held()
		if len(r.Params) != 1 || string(r.Params[0].Value) != "7" || !strings.HasPrefix(r.Estimate, "about ") {
			t.Errorf("the approver sees %+v", r)
		}
		w.Decide(r, approve, reason)
	}
	const insert = "insert into roomed values ($1)"
	go decide(false, "not on a Friday")
	if e := run(insert, []byte("7")); e == nil || e.Code != stateRefused || !strings.Contains(e.Message+e.Hint, "not on a Friday") {
		t.Errorf("denied: %+v", e)
	}
	go decide(true, "")
	for range 2 {
		if e := run(insert, []byte("7")); e != nil {
			t.Errorf("approved for two: %+v", e)
		}
	}
	go decide(false, "no more")
	if e := run(insert, []byte("7")); e == nil || !strings.Contains(e.Message+e.Hint, "no more") {
		t.Errorf("a third: %+v", e)
	}
	e := run("insert into later values (1)")
	if e == nil || e.Code != stateHeld || !strings.Contains(e.Message+e.Hint, string(w.Held().ID)) {
		t.Errorf("hold: error says %+v", e)
	}
}
