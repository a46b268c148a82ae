package owasp

import (
	"encoding/json"
	"fmt"
	"strings"

	"isle/test/lab"
)

// throughADoor uses a PostgreSQL that is opened with a secret, and that has a
// value which a mask hides: it reads, is refused, is held, is approved and writes,
// and looks at all that is told and kept of it.
func (r *rummage) throughADoor(secret, value, masked string) {
	r.t.Helper()
	pg := lab.Postgres(r.t)
	quoted := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
	pg.Must(r.t, "postgres", `CREATE ROLE shop LOGIN PASSWORD `+quoted(value)+`;
		CREATE TABLE customers (id int, email text UNIQUE);
		INSERT INTO customers VALUES (1, `+quoted(masked)+`);
		GRANT SELECT, INSERT, UPDATE, DELETE ON customers TO shop`)
	r.says("", false, "apply", "--document", "canary", "-f", writeFile(r.t, "canary.yaml", fmt.Sprintf(`connections:
  orders-db:
    kind: postgres
    address: %q
    database: postgres
    stage: testing
    credential: {secret: %s, user: shop}
    results: true
    mask: [{column: customers.email, show: partial}]
    tls:
      ca: |
        %s
approvals:
  - {actions: [postgres:write], resources: [connection:orders-db], approvers: [human:root], hold: error, uses: 1, valid_for: 5m}
`, pg.Addr(), secret, strings.ReplaceAll(strings.TrimSpace(pg.CA), "\n", "\n        "))))

	psql := func(fails bool, sql string) string {
		r.t.Helper()
		return r.says("", fails, "connect", "orders-db", "--", "-v", "ON_ERROR_STOP=1", "-c", sql)
	}
	if out := psql(false, "SELECT id, email FROM customers"); !strings.Contains(out, "(1 row)") {
		r.t.Errorf("nothing is read: %s", out)
	}
	psql(true, "SELECT * FROM customers WHERE lower(email) > 'c'")
	psql(true, "SELECT email::int FROM customers")
	psql(true, "DELETE FROM customers")
	psql(true, "SELECT no_such FROM customers")
	const write = "UPDATE customers SET id = 2 WHERE id = 1"
	psql(true, write)
	var requests []struct{ ID string }
	if err := json.Unmarshal([]byte(r.says("", false, "approvals", "-o", "json")), &requests); err != nil || len(requests) != 1 {
		r.t.Fatalf("%v: %d requests", err, len(requests))
	}
	id := requests[0].ID
	r.says("", false, "approvals", "show", id)
	r.says("", false, "approvals", "show", id, "-o", "json")
	r.says("", false, "approvals", "approve", id, "--yes", "--reason", "a test")
	psql(false, write)
	r.says("", false, "approvals", "--all", "-o", "json")
	// It exits with 4: somebody has to decide.
	r.says("", true, "request", "door", "orders-db", "--for", "5m", "--why", "a test", "-o", "json")
	r.says("", false, "break-glass", "door", "orders-db", "--for", "5m", "--why", "a test", "-o", "json")

	var sessions []struct{ ID string }
	if err := json.Unmarshal([]byte(r.says("", false, "sessions", "--all", "-o", "json")), &sessions); err != nil || len(sessions) < 7 {
		r.t.Fatalf("%v: %d sessions", err, len(sessions))
	}
	results := false
	for _, s := range sessions {
		results = results || strings.Contains(r.says("", false, "sessions", "replay", s.ID, "-o", "json"), "SELECT 1")
		r.says("", false, "sessions", "replay", s.ID)
		r.says("", false, "sessions", "export", s.ID)
	}
	if !results {
		r.t.Error("no recording has what was read: the search is broken")
	}
	r.says("", false, "sessions", "search", "customers", "-o", "json")
	r.says("", false, "doctor")
}
