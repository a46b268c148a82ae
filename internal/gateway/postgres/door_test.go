package postgres

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"isle"
	"isle/internal/gateway"
	"isle/internal/gateway/gatewaytest"
	"isle/test/lab"
)

// policyWith is a policy under which the shop may do some actions to a database.
func policyWith(actions string) string {
	ca := "      " + strings.ReplaceAll(strings.TrimSpace(server.CA), "\n", "\n      ")
	return `connections:
  orders-db:
    kind: postgres
    address: "` + server.Addr() + `"
    database: orders
    stage: testing
    credential: {user: orders_db, secret: orders}
    tls:
      name: ` + lab.PostgresName + `
      ca: |
` + strings.ReplaceAll(ca, "      ", "        ") + `
roles:
  shop: {actions: [` + actions + `], resources: [connection:orders-db]}
bindings:
  - {role: admin, subjects: [human:root]}
  - {role: shop, subjects: [{project: shop, stage: testing}]}
`
}

// through connects to a world's database as the shop does.
func through(t *testing.T, w *gatewaytest.World) *pgconn.PgConn {
	t.Helper()
	config, err := pgconn.ParseConfig("postgres://x@127.0.0.1/?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	config.DialFunc = func(context.Context, string, string) (net.Conn, error) {
		c, _ := w.Connect(gatewaytest.Workload("shop", "testing"), "orders-db")
		return c, nil
	}
	c, err := pgconn.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

func TestWhatPolicySaysHoldsAtTheWireAndIsRecorded(t *testing.T) {
	w := gatewaytest.New(t, policyWith(`connection:open, "postgres:select", "postgres:write"`), map[string]gateway.Protocol{"postgres": New(Config{Grammar: parser})})
	w.SetSecret("orders", "geheim")
	server.Must(t, "orders", "set role orders_db; create table if not exists ruled (a int)")
	c := through(t, w)
	run := func(sql string) string {
		_, err := c.Exec(t.Context(), sql).ReadAll()
		return code(err)
	}
	for sql, want := range map[string]string{
		"select 1":                                 "<nil>",
		"insert into ruled values (7)":             "<nil>",
		"delete from ruled":                        stateRefused,
		"create table another (a int)":             stateRefused,
		"select pg_read_file('/etc/passwd')":       stateRefused,
		"do $$ begin end $$":                       stateRefused,
		"select 1; delete from ruled; select 2":    stateRefused,
		"copy ruled to program 'cat'":              stateRefused,
		"set role postgres":                        stateRefused,
		"prepare p as delete from ruled":           stateRefused,
		"explain analyze delete from ruled":        stateRefused,
		"with x as (delete from ruled) select 1":   stateRefused,
		"select set_config('role', 'none', false)": stateRefused,
	} {
		if got := run(sql); got != want {
			t.Errorf("%s: %s", sql, got)
		}
	}
	if n := len(w.Log.Entries(isle.ActionPostgresWrite)); n < 5 {
		t.Errorf("%d entries of writes", n)
	}
	live := w.Sessions.List()
	if len(live) != 1 || live[0].Statements != 2 || live[0].Role != "orders_db" || live[0].BytesIn == 0 {
		t.Errorf("the session is %+v", live)
	}
	w.Apply(policyWith("connection:open"))
	if _, err := c.Exec(t.Context(), "select 1").ReadAll(); code(err) != stateRefused {
		t.Errorf("after the policy changed: %v", err)
	}
	w.Apply(policyWith(`"postgres:select"`))
	if _, err := c.Exec(t.Context(), "select 1").ReadAll(); code(err) != stateEnded {
		t.Errorf("after the door was closed: %v", err)
	}
}

func TestNothingPassesWhileTheLogIsAway(t *testing.T) {
	w := gatewaytest.New(t, policyWith(`connection:open, "postgres:select", "postgres:write"`), map[string]gateway.Protocol{"postgres": New(Config{Grammar: parser})})
	w.SetSecret("orders", "geheim")
	server.Must(t, "orders", "set role orders_db; create table if not exists ruled (a int)")
	c := through(t, w)
	w.Log.Away(isle.Errorf(isle.Unavailable, "the disk is full"))
	_, err := c.Exec(t.Context(), "insert into ruled values (424242)").ReadAll()
	w.Log.Away(nil)
	if code(err) != stateNoLog {
		t.Errorf("a write without an entry: %v", err)
	}
	if n := server.Must(t, "orders", "select count(*) from ruled where a = 424242"); n != "0" {
		t.Errorf("%s rows were written", n)
	}
}
