package policy

import (
	"strings"
	"testing"

	"isle"
)

const guarded = `
connections:
  orders-db:
    kind: postgres
    address: "db.example:5432"
    stage: testing
    credential: {secret: orders}
    rules:
      - {effect: deny, tables: [salaries, Wages, llllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllll], reason: nobody reads salaries}
      - {effect: deny, columns: [customers.email]}
      - {effect: allow, statements: [delete, truncate], tables: [scratch], where: false}
  read-db: {kind: postgres, address: "db.example:5432", stage: testing, read_only: true}
roles:
  clerk: {actions: [postgres:select, postgres:write], resources: [connection:orders-db, connection:read-db]}
bindings:
  - {role: clerk, subjects: [{project: shop, stage: testing}]}
approvals:
  - {actions: [postgres:write], resources: [connection:orders-db], when: {tables: [orders]}, approvers: [role:admin], quorum: 2, separate: true, hold: error}
`

func TestAConnectionsRulesDecideBesideRoles(t *testing.T) {
	s := compile(t, guarded)
	write, read := isle.ActionPostgresWrite, isle.ActionPostgresSelect
	for _, c := range []struct {
		name       string
		action     isle.Action
		connection string
		facts      *Facts
		want       isle.Decision
		rule       string
	}{
		{"a read", read, "orders-db", &Facts{Statements: []string{"select"}, Tables: []string{"orders"}}, isle.Allow, "role clerk"},
		{"a denied table", read, "orders-db", &Facts{Statements: []string{"select"}, Tables: []string{"orders", "hr.salaries"}}, isle.Deny, "connection orders-db, rule at"},
		{"what cannot be read", read, "orders-db", &Facts{Statements: []string{"other"}, Uncertain: "a syntax error"}, isle.Deny, "connection orders-db, rule at"},
		{"a denied column", read, "orders-db", &Facts{Statements: []string{"select"}, Columns: []string{"public.customers.email"}}, isle.Deny, "connection orders-db, rule at"},
		{"a row with a denied column", read, "orders-db", &Facts{Statements: []string{"select"}, Columns: []string{"public.customers.*"}}, isle.Deny, "connection orders-db, rule at"},
		{"a row of another table", read, "orders-db", &Facts{Statements: []string{"select"}, Columns: []string{"orders.*", "orders.email"}}, isle.Allow, "role clerk"},
		{"a column that may be it", read, "orders-db", &Facts{Statements: []string{"select"}, Columns: []string{"email"}}, isle.Deny, "connection orders-db, rule at"},
		{"a denied table in another case", read, "orders-db", &Facts{Statements: []string{"select"}, Tables: []string{"hr.wages"}}, isle.Deny, "connection orders-db, rule at"},
		{"a denied table of which the server cuts the name", read, "orders-db", &Facts{Statements: []string{"select"}, Tables: []string{strings.Repeat("l", 63)}}, isle.Deny, "connection orders-db, rule at"},
		{"a write", write, "orders-db", &Facts{Statements: []string{"update"}, Tables: []string{"customers"}}, isle.Allow, "role clerk"},
		{"a write that is held", write, "orders-db", &Facts{Statements: []string{"update"}, Tables: []string{"public.orders"}}, isle.Hold, "role clerk"},
		{"without WHERE", write, "orders-db", &Facts{Statements: []string{"delete"}, Tables: []string{"customers"}, Unbounded: true}, isle.Deny, unbounded},
		{"an approval does not make it harmless", write, "orders-db", &Facts{Statements: []string{"delete"}, Tables: []string{"orders"}, Unbounded: true}, isle.Deny, unbounded},
		{"where it is allowed", write, "orders-db", &Facts{Statements: []string{"delete"}, Tables: []string{"scratch"}, Unbounded: true}, isle.Allow, "role clerk"},
		{"where half is allowed", write, "orders-db", &Facts{Statements: []string{"delete"}, Tables: []string{"scratch", "customers"}, Unbounded: true}, isle.Deny, unbounded},
		{"in another schema", write, "orders-db", &Facts{Statements: []string{"delete"}, Tables: []string{"secret.scratch"}, Unbounded: true}, isle.Deny, unbounded},
		{"read-only", write, "read-db", &Facts{Statements: []string{"update"}, Tables: []string{"customers"}}, isle.Deny, "connection read-db is read-only"},
		{"read-only reads", read, "read-db", &Facts{Statements: []string{"select"}}, isle.Allow, "role clerk"},
	} {
		q := ask(t, "workload:shop/testing/shop", string(c.action), "connection:"+c.connection)
		q.Facts = c.facts
		a := s.Decide(q)
		if a.Decision != c.want || !strings.HasPrefix(a.Rule, c.rule) || (c.want == isle.Hold) != (len(a.Holds) == 1) {
			t.Errorf("%s: %s by %q, holds %v; want %s by %q", c.name, a.Decision, a.Rule, a.Holds, c.want, c.rule)
		}
	}
	q := ask(t, "workload:shop/testing/other", string(isle.ActionPostgresAdmin), "connection:orders-db")
	q.Facts = &Facts{Statements: []string{"do"}}
	if a := s.Decide(q); a.Decision != isle.Deny || a.Rule != noGrant {
		t.Errorf("what no role grants: %+v", a)
	}
}

func TestWhatDoesNotGoTogetherInAConnectionIsNamed(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`{kind: postgres, stage: testing}`, "want either address"},
		{`{kind: postgres, stage: testing, address: "a:1", environment: b, service: c}`, "want either address"},
		{`{kind: postgres, stage: testing, environment: b}`, "go together"},
		{`{kind: tcp, stage: testing, environment: b, service: c}`, "needs its port"},
		{`{kind: tcp, stage: testing, address: "a:1", credential: {secret: s}}`, "can't have a credential"},
		{`{kind: tcp, stage: testing, address: "a:1", read_only: true}`, "nothing is read"},
		{`{kind: http, stage: testing, address: "a:1", credential: {secret: s, kind: basic}}`, "needs a user"},
		{`{kind: http, stage: testing, address: "a:1", credential: {secret: s, kind: header}}`, "header names the header"},
		{`{kind: http, stage: testing, address: "a:1", credential: {secret: s, kind: header, header: Host}}`, "no header that a credential"},
		{`{kind: http, stage: testing, address: "a:1", credential: {secret: s, kind: oauth, client_id: x, token_url: "http://id.example/token"}}`, "want https"},
		{`{kind: postgres, stage: testing, address: "a:1", tls: sometimes}`, "want off"},
		{`{kind: postgres, stage: testing, address: "a:1", tls: {ca: "not a certificate"}}`, "is no certificates"},
		{`{kind: postgres, stage: testing, address: "a:1", mask: [{column: email, show: full}]}`, "want table.column"},
		{`{kind: http, stage: testing, address: "a:1", mask: [{column: a.b, show: full}]}`, "want $.path"},
		{`{kind: postgres, stage: testing, address: "a:1", rules: [{effect: deny}]}`, "says nothing of what it is about"},
		{`{kind: postgres, stage: testing, address: "a:1", rules: [{effect: deny, statements: [delte]}]}`, "did you mean delete?"},
	} {
		_, err := Compile(Document{Name: "doc.yaml", Format: YAML, Body: []byte("connections:\n  a: " + c.text)})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n got %v\nwant %s", c.text, err, c.want)
		}
	}
	if _, err := Compile(Document{Name: "doc.yaml", Format: YAML, Body: []byte("approvals:\n  - {actions: [postgres:write], resources: ['connection:a'], approvers: [role:admin], notify: [ops]}")}); err == nil || !strings.Contains(err.Error(), `unknown webhook "ops"`) {
		t.Errorf("an unknown webhook: %v", err)
	}
}

func TestDiffSaysWhichConnectionsComeGoAndChange(t *testing.T) {
	with := func(body string) *Set { return compile(t, "connections: "+body) }
	before := with(`{a: {kind: tcp, stage: testing, address: "a.example:1"}, b: {kind: tcp, stage: testing, address: "b.example:1"}}`)
	after := with("\n" + `  b: {kind: tcp, stage: testing, address: "b.example:2"}` + "\n" + `  c: {kind: tcp, stage: testing, environment: x, service: y, port: 1}`)
	var got []string
	for _, c := range before.Diff(after, now) {
		got = append(got, c.String())
	}
	want := "everyone gains connection b@testing to b.example:2 as it is written now; everyone gains connection c@testing to service y of environment x; everyone loses connection a@testing to a.example:1"
	if strings.Join(got, "; ") != want {
		t.Errorf("%q", got)
	}
	moved := with("\n\n" + `  {b: {kind: tcp, stage: testing, address: "b.example:1"}, a: {kind: tcp, stage: testing, address: "a.example:1"}}`)
	if d := before.Diff(moved, now); len(d) > 0 {
		t.Errorf("the same in another place: %v", d)
	}
}
