package policy

import (
	"encoding/json"
	"strings"
	"testing"
)

const reaching = `
connections:
  orders-db: {kind: postgres, address: "db.internal:5432", database: orders, stage: production, credential: {user: shop, secret: orders-db}}
roles:
  orders-reader: {actions: [connection:open, postgres:select], resources: [connection:orders-db]}
  mail: {actions: [egress:connect], resources: ["egress:mail.example.com:587@production"]}
bindings:
  - {role: orders-reader, subjects: [{project: shop, stage: production}]}
  - {role: mail, subjects: [{project: shop, stage: production}]}
`

// reach is that of the shop in production, as a record has it.
func reach(t *testing.T, text string) Reach {
	t.Helper()
	return compile(t, text).Reach("shop", "production", []string{"orders-db", "no-db"}, []EgressDoor{{Destination: "mail.example.com:587"}}, now)
}

func TestAReachSaysWhatChangedByName(t *testing.T) {
	b, err := json.Marshal(reach(t, reaching))
	if err != nil {
		t.Fatal(err)
	}
	var was Reach
	if err := json.Unmarshal(b, &was); err != nil || was.Digest() != reach(t, reaching).Digest() {
		t.Fatal(err, "it is another one once it was kept")
	}
	if got := strings.Join(was.Lines(), "\n"); !strings.Contains(got, "connection:orders-db may connection:open, postgres:select") || !strings.Contains(got, "connection:no-db is closed") {
		t.Error(got)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"nothing", "", "", ""},
		{"a comment and a role's name", "orders-reader", "orders-looker", ""},
		{"more", "[connection:open, postgres:select]", "[connection:open, postgres:select, postgres:write]", "connection:orders-db: postgres:write is allowed (role orders-reader, bound to {project: shop, stage: production}), and was refused"},
		{"less", "[connection:open, postgres:select]", "[connection:open]", "connection:orders-db: postgres:select is refused (default: nothing grants it), and was allowed"},
		{"an end that has come", "stage: production}]}\n  - {role: mail", "stage: production}], expires: 2026-05-31}\n  - {role: mail", "connection:orders-db: connection:open is refused (default: nothing grants it), and was allowed"},
		{"a binding that is gone", "  - {role: mail, subjects: [{project: shop, stage: production}]}\n", "", "egress:mail.example.com:587: egress:connect is refused (default: nothing grants it), and was allowed"},
		{"an address", "db.internal:5432", "evil.internal:5432", "connection:orders-db: address differs from what it was db.internal:5432 -> evil.internal:5432"},
		{"a credential", "secret: orders-db}", "secret: orders-admin}", "connection:orders-db: credential differs from what it was password of secret orders-db as user shop -> password of secret orders-admin as user shop"},
		{"a rule", "database: orders,", "database: orders, rules: [{effect: allow, statements: [delete]}],", "connection:orders-db: rules differs from what it was"},
		{"a mask", "database: orders,", "database: orders, mask: [{column: customers.email, show: partial}],", "connection:orders-db: mask differs from what it was"},
		{"read only", "database: orders,", "database: orders, read_only: true,", "connection:orders-db: read_only differs from what it was (none) -> true"},
		{"people", "bindings:", "approvals:\n  - {actions: [postgres:select], resources: [connection:orders-db], approvers: [human:root]}\nbindings:", "connection:orders-db: postgres:select is asked of people (role orders-reader, bound to {project: shop, stage: production}), and was allowed"},
		{"people about some", "bindings:", "approvals:\n  - {actions: [postgres:write], resources: [connection:orders-db], when: {tables: [orders]}, approvers: [human:root]}\nbindings:", "connection:orders-db: approvals differs from what it was"},
		{"another connection", "orders-db", "orders-old", "connection:orders-db: there is none, and was one"},
	} {
		text := reaching
		if c.old != "" {
			if text = strings.ReplaceAll(reaching, c.old, c.new); text == reaching {
				t.Fatal(c.name, "changes nothing")
			}
		}
		var got []string
		for _, x := range reach(t, text).Changes(was) {
			got = append(got, strings.TrimSpace(x.Message+" "+x.Detail))
		}
		if all := strings.Join(got, "\n"); c.want == "" && all != "" || !strings.Contains(all, c.want) {
			t.Errorf("%s: want %q, got:\n%s", c.name, c.want, all)
		}
	}
}
