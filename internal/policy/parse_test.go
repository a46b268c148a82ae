package policy

import (
	"strings"
	"testing"

	"isle"
)

func TestWhatIsWrongIsNamedWithItsPlace(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "doc.yaml:1:1: is empty"},
		{"roles: [", "doc.yaml:1:1: this is not YAML"},
		{"roles: [a", "doc.yaml:1:1: this is not YAML"},
		{"bindings:\n  - {role: admin, subjects: [human:a]}\n  - {role: admin subjects: [human:b}\nprotected: []", "doc.yaml:3:3: this is not YAML: did not find expected ',' or '}'"},
		{"roles: {}\nbindings:\n  - {role: admin, subjects: [human:a]\nprotected: []\n", "this is not YAML"},
		{"rolse: {}", `doc.yaml:1:1: unknown key "rolse"; did you mean roles?`},
		{"bindings:\n  - {role: develper, subjects: [human:a]}", `doc.yaml:2:5: unknown role "develper"; did you mean developer?`},
		{"bindings:\n  - {role: developer, subjects: [humna:a]}", `doc.yaml:2:34: bindings[0].subjects[0]: unknown kind of subject "humna"; did you mean human?`},
		{"bindings:\n  - {role: developer, subjects: [\"human:a b\"]}", "names nobody"},
		{"bindings:\n  - {role: developer}", "doc.yaml:2:5: bindings[0]: has no subjects"},
		{"bindings:\n  - {role: developer, subjects: [human:a], stages: [\"*\"]}", "leave `stages` out"},
		{"bindings:\n  - {role: developer, subjects: [\"human:*\"]}", "the wildcard in subjects needs a reason and an end"},
		{"bindings:\n  - {role: developer, subjects: [{project: \"*\", stage: testing}], reason: x}", "the wildcard in subjects needs a reason and an end"},
		{"roles:\n  a: {actions: [environment:exce], resources: [\"environment:a\"]}", `doc.yaml:2:17: roles.a.actions[0]: unknown action "environment:exce"; did you mean environment:exec?`},
		{"roles:\n  a: {actions: [service:start], resources: [\"environment:a\"]}", `unknown action "service:start"`},
		{"roles:\n  a: {actions: [environment:exec], resources: [\"enviroment:a\"]}", `doc.yaml:2:48: roles.a.resources[0]: unknown kind of resource "enviroment"; did you mean environment?`},
		{"roles:\n  a: {actions: [environment:exec], resources: [\"image:a@testing\"]}", "has no stage"},
		{"roles:\n  a: {actions: [environment:exec], resources: [\"image:a\"]}", "environment:exec is done to environment:…, and no resource of the role is one"},
		{"roles:\n  a: {actions: [\"environment:*\"], resources: [\"environment:a\"]}", "the wildcard in actions needs a reason and an end"},
		{"roles:\n  a: {actions: [environment:exec], resources: [\"*\"], reason: x, expires: soon}", `"soon" is no date`},
		{"roles:\n  a: {actions: [egress:connect], resources: [\"egress:example.com\"]}", "want a host and a port"},
		{"roles:\n  admin: {actions: [egress:connect], resources: [\"egress:example.com:1\"]}", "role admin is there already: built in"},
		{"roles:\n  A: {actions: [egress:connect], resources: [\"egress:example.com:1\"]}", "is no name"},
		{"roles:\n  a: {actions: [postgres:select], resources: [\"connection:orders\"]}\nconnections:\n  orders-db: {kind: postgres, address: \"db:5432\", stage: testing}", `unknown connection "orders"`},
		{"connections:\n  a: {kind: postgrse, address: \"db:5432\", stage: testing}", "did you mean postgres?"},
		{"connections:\n  a: {kind: postgres, address: db, stage: testing}", "want host:port"},
		{"connections:\n  a: {kind: http, address: \"api:443\", stage: testing, mask: [{column: \"$.a[?(@.b)]\", show: full}]}", "mask $.a[?(@.b)]: [?(@.b)] is neither a name in quotes"},
		{"connections:\n  a: {kind: http, address: \"api:443\", stage: testing, mask: [{column: \"$email\", show: full}]}", "write a path as $.customer.email"},
		{"approvals:\n  - {actions: [environment:exec], resources: [\"environment:a\"], approvers: [role:nobody]}", `unknown role "nobody"`},
		{"approvals:\n  - {actions: [environment:exec], resources: [\"environment:a\"], approvers: [role:admin], uses: 0}", "from 1 to 1000"},
		{"a: 1\na: 2", "key \"a\" is here a second time, first on line 1"},
		{"{}\n---\n{}", "a second document"},
	} {
		_, err := Compile(Document{Name: "doc.yaml", Format: YAML, Body: []byte(c.text)})
		if err == nil || !strings.Contains(err.Error(), c.want) || isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s\n got %v\nwant %s", c.text, err, c.want)
		}
	}
}

func TestWhatIsWrongInCedarIsNamedWithItsPlace(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"permit (principal, action, resource)\nwhen { 1 ==", "doc.cedar:2:"},
		{`permit (principal, action == Action::"environment:exce", resource);`, `doc.cedar:1:1: unknown action "environment:exce"; did you mean environment:exec?`},
		{`permit (principal is Humn, action, resource);`, `unknown type of principal "Humn"; did you mean Human?`},
		{`forbid (principal, action, resource is Enviroment);`, `unknown type of resource "Enviroment"; did you mean Environment?`},
		{"@id(\"a\") permit (principal, action, resource);\n@id(\"a\") permit (principal, action, resource);", `doc.cedar:2:1: the id "cedar a" is there already`},
	} {
		_, err := Compile(Document{Name: "doc", Format: Cedar, Body: []byte(c.text)})
		if err == nil || !strings.Contains(err.Error(), c.want) || isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s\n got %v\nwant %s", c.text, err, c.want)
		}
	}
}

// The files of the design are read as they stand there.
func TestTheDesignsExampleIsRead(t *testing.T) {
	s := compile(t, `
connections:
  orders-db: {kind: postgres, address: "db.internal:5432", database: orders, stage: production,
              credential: {secret: orders-db}, mask: [{column: customers.email, show: partial}]}
roles:
  orders-reader: {actions: [postgres:select], resources: [connection:orders-db]}
bindings:
  - {role: orders-reader, subjects: [{project: shop, stage: production}]}
approvals:
  - {actions: [postgres:write], resources: [connection:orders-db], approvers: [role:admin], timeout: 15m, valid_for: 10m, uses: 1}
`)
	q := ask(t, "workload:shop/production/shop", "postgres:select", "connection:orders-db")
	if a := s.Decide(q); !a.Allowed() || a.Rule != "role orders-reader, bound to {project: shop, stage: production}" {
		t.Errorf("%+v", a)
	}
	if a := s.Decide(ask(t, "workload:shop/testing/shop", "postgres:select", "connection:orders-db")); a.Allowed() {
		t.Errorf("another stage's workload reaches the connection: %+v", a)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(team))
	f.Add([]byte(Default))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("roles: {a: {actions: [\"*\"], resources: [{project: x}]}}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := Compile(Document{Name: "fuzz", Format: YAML, Body: b}); err == nil {
			s.Decide(ask(t, "human:a", "environment:exec", "environment:shop"))
			s.Roles()
			s.Keepers(now)
			s.CedarText()
		} else if isle.CodeOf(err) != isle.Invalid {
			t.Fatal(err)
		}
		ParseCases("fuzz", b)
	})
}

func FuzzParseCedar(f *testing.F) {
	f.Add([]byte(builtinForbids))
	f.Add([]byte(`permit (principal in Role::"a", action in [Action::"environment:exec"], resource is Environment in Stage::"x") when { resource.name like "a*" };`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := Compile(Document{Name: "fuzz", Format: Cedar, Body: b}); err == nil {
			s.Explain(ask(t, "human:a", "environment:exec", "environment:shop"))
		} else if isle.CodeOf(err) != isle.Invalid {
			t.Fatal(err)
		}
	})
}

func FuzzParseResource(f *testing.F) {
	f.Add("environment:shop@testing")
	f.Add("egress:[::1]:443@x")
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := ParseResource(s); err == nil && r.Kind == "" {
			t.Fatal(r)
		}
		var q Query
		ParseActor(s, &q)
	})
}
