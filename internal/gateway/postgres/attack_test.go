package postgres

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"isle/internal/approval"
	"isle/internal/gateway"
	"isle/internal/gateway/gatewaytest"
)

// says sends messages as they are and gathers what comes back until the server
// was ready so many times, or the session ended.
func says(t *testing.T, c *pgconn.PgConn, ready int, messages ...pgproto3.FrontendMessage) (rows []string, codes []string) {
	t.Helper()
	fe := c.Frontend()
	for _, m := range messages {
		fe.Send(m)
	}
	if err := fe.Flush(); err != nil {
		return nil, []string{"gone"}
	}
	for ready > 0 {
		m, err := fe.Receive()
		if err != nil {
			return rows, append(codes, "gone")
		}
		switch m := m.(type) {
		case *pgproto3.DataRow:
			var row []string
			for _, v := range m.Values {
				row = append(row, string(v))
			}
			rows = append(rows, strings.Join(row, "|"))
		case *pgproto3.ErrorResponse:
			codes = append(codes, m.Code)
			if m.Severity == "FATAL" {
				return rows, append(codes, "gone")
			}
		case *pgproto3.ReadyForQuery:
			ready--
		}
	}
	return rows, codes
}

func simple(sql string) *pgproto3.Query { return &pgproto3.Query{String: sql} }

// long is a name of which the server keeps the first 63 bytes alone.
var long = strings.Repeat("n", 63)

func TestNamesThatTheServerCutsStandForOneStatement(t *testing.T) {
	f := orders()
	var mu sync.Mutex
	var asked []string
	f.decide = func(_ context.Context, a gateway.Ask) error {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, string(a.Text))
		return refuseKind("delete")(nil, a)
	}
	addr := listen(t, f)
	server.Must(t, "orders", "set role orders_db; drop table if exists cut; create table cut (a int); insert into cut values (1)")
	c := dial(t, addr).PgConn()
	says(t, c, 1, &pgproto3.Parse{Name: long + "x", Query: "select 1"}, &pgproto3.Sync{})
	says(t, c, 1, &pgproto3.Close{ObjectType: 'S', Name: long + "y"}, &pgproto3.Sync{})
	says(t, c, 1, &pgproto3.Parse{Name: long + "y", Query: "delete from cut where a = 1"}, &pgproto3.Sync{})
	_, codes := says(t, c, 1, &pgproto3.Bind{PreparedStatement: long + "x"}, &pgproto3.Execute{}, &pgproto3.Sync{})
	if n := server.Must(t, "orders", "select count(*) from cut"); n != "1" {
		t.Errorf("a refused statement ran under a name that is cut; asked for %q, answered %q", asked, codes)
	}
}

func TestPortalsWhoseNamesTheServerCutsAreMasked(t *testing.T) {
	c := dial(t, listen(t, masked(t))).PgConn()
	rows, codes := says(t, c, 1,
		&pgproto3.Parse{Name: "note", Query: "select note from people where id = 1"}, &pgproto3.Parse{Name: "email", Query: "select email from people where id = 1"},
		&pgproto3.Bind{DestinationPortal: long + "x", PreparedStatement: "note"}, &pgproto3.Close{ObjectType: 'P', Name: long + "y"},
		&pgproto3.Bind{DestinationPortal: long + "y", PreparedStatement: "email"}, &pgproto3.Execute{Portal: long + "x"}, &pgproto3.Sync{})
	if strings.Contains(strings.Join(rows, " "), canary) {
		t.Errorf("rows %q, codes %q", rows, codes)
	}
}

func TestAPortalsNameThatACursorTookIsNotItsPortal(t *testing.T) {
	c := dial(t, listen(t, masked(t))).PgConn()
	says(t, c, 1, simple("begin"))
	says(t, c, 1, &pgproto3.Parse{Query: "select note from people where id = 1"}, &pgproto3.Bind{DestinationPortal: "p"}, &pgproto3.Execute{Portal: "p", MaxRows: 1}, &pgproto3.Sync{})
	says(t, c, 1, simple("close p"))
	says(t, c, 1, simple("declare p cursor for select email from people where id = 1"))
	rows, codes := says(t, c, 1, &pgproto3.Execute{Portal: "p"}, &pgproto3.Sync{})
	if strings.Contains(strings.Join(rows, " "), canary) || len(codes) == 0 {
		t.Errorf("rows %q, codes %q", rows, codes)
	}
}

func TestASyncInCopyDataThatFailedShiftsNoAnswers(t *testing.T) {
	f := masked(t)
	server.Must(t, "orders", "set role orders_db; create table if not exists lines (a int)")
	c := dial(t, listen(t, f)).PgConn()
	both := "select email from people where id = 1 union all select email from people where id = 2"
	none := "select note from people where id = 1 union all select note from people where id = 2"
	fe := c.Frontend()
	fe.Send(simple("copy lines from stdin"))
	fe.Flush()
	if m, err := fe.Receive(); err != nil {
		t.Fatal(err)
	} else if _, ok := m.(*pgproto3.CopyInResponse); !ok {
		t.Fatalf("%T", m)
	}
	rows, codes := says(t, c, 4, &pgproto3.CopyData{Data: []byte("x\n")}, &pgproto3.Sync{}, &pgproto3.CopyDone{}, simple(both), simple(none), simple(none))
	if strings.Contains(strings.Join(rows, " "), canary) {
		t.Errorf("rows %q, codes %q", rows, codes)
	}
	// All of it ahead of the server.
	c = dial(t, listen(t, f)).PgConn()
	rows, codes = says(t, c, 5, &pgproto3.Parse{Query: "copy lines from stdin"}, &pgproto3.Bind{}, &pgproto3.Execute{},
		&pgproto3.CopyData{Data: []byte("x\n")}, &pgproto3.Sync{}, &pgproto3.CopyDone{}, &pgproto3.Sync{}, simple(both), simple(none), simple(none))
	if strings.Contains(strings.Join(rows, " "), canary) {
		t.Errorf("ahead: rows %q, codes %q", rows, codes)
	}
}

func TestAnErrorOfAConstraintsOwnActionQuotesNoMaskedRow(t *testing.T) {
	f := masked(t)
	server.Must(t, "orders", `set role orders_db; drop table if exists orgs cascade; create table orgs (id int primary key); insert into orgs values (1);
alter table people add org int references orgs on delete set null on update cascade check (org > 0); update people set org = 1; alter table people alter org set not null`)
	c := dial(t, listen(t, f)).PgConn()
	for _, sql := range []string{"delete from orgs where id = 1", "update orgs set id = -1 where id = 1"} {
		_, err := c.Exec(t.Context(), sql).ReadAll()
		e, ok := err.(*pgconn.PgError)
		if !ok || !strings.HasPrefix(e.Code, "23") || strings.Contains(e.Detail+e.Message+e.Where, canary) {
			t.Errorf("%s: %+v", sql, err)
		}
	}
}

// approving is the shop's database, of which writes are approved by root.
func approving(t *testing.T, hold string) (*gatewaytest.World, *pgconn.PgConn) {
	t.Helper()
	doc := policyWith(`connection:open, "postgres:select", "postgres:write"`) + `approvals:
  - {actions: ["postgres:write"], resources: [connection:orders-db], approvers: [human:root], timeout: 10m, valid_for: 10m, hold: ` + hold + `}
`
	w := gatewaytest.New(t, doc, map[string]gateway.Protocol{"postgres": New(Config{Grammar: parser})})
	w.SetSecret("orders", "geheim")
	return w, through(t, w)
}

func approveAll(w *gatewaytest.World, t *testing.T) approval.Request {
	r := w.Held()
	w.Decide(r, true, "")
	return r
}

func TestAnApprovalOfExecuteIsOfWhatTheNameStandsFor(t *testing.T) {
	w, c := approving(t, "error")
	server.Must(t, "orders", "set role orders_db; drop table if exists approved; create table approved (a int, b int); insert into approved values (1, 0), (2, 0)")
	run := func(sql string) string {
		_, err := c.Exec(t.Context(), sql).ReadAll()
		return code(err)
	}
	run("prepare p as update approved set b = 1 where a = 1")
	approveAll(w, t)
	run("prepare p as update approved set b = 1 where a = 1")
	if got := run("execute p"); got != stateHeld {
		t.Fatal(got)
	}
	r := w.Held()
	if len(r.Params) != 1 || string(r.Params[0].Value) != "prepare p as update approved set b = 1 where a = 1" || string(r.Text) != "execute p" {
		t.Errorf("the approver of EXECUTE sees %q, %v", r.Text, r.Params)
	}
	w.Decide(r, true, "")
	run("deallocate p")
	run("prepare p as update approved set b = 9 where a = 2")
	approveAll(w, t)
	run("prepare p as update approved set b = 9 where a = 2")
	if got := run("execute p"); got != stateHeld {
		t.Errorf("another statement ran by the approval of the first: %s", got)
	}
	if n := server.Must(t, "orders", "select count(*) from approved where b = 9"); n != "0" {
		t.Error("it was done")
	}
}

func flat(pairs []approval.Pair) (out string) {
	for _, p := range pairs {
		out += p.Key + "=" + p.Value + "\n"
	}
	return out
}

func TestAnApprovalIsUnderTheSearchPathOfTheBind(t *testing.T) {
	w, c := approving(t, "error")
	server.Must(t, "orders", `set role orders_db; drop schema if exists one cascade; drop schema if exists two cascade; create schema one; create schema two;
create table one.things (a int); create table two.things (a int); insert into one.things values (1); insert into two.things values (1)`)
	bind := func() string {
		_, codes := says(t, c, 1, &pgproto3.Bind{PreparedStatement: "d"}, &pgproto3.Execute{}, &pgproto3.Sync{})
		return strings.Join(codes, " ")
	}
	says(t, c, 1, simple("set search_path = one"))
	says(t, c, 1, &pgproto3.Parse{Name: "d", Query: "delete from things where a = 1"}, &pgproto3.Sync{})
	if got := bind(); got != stateHeld {
		t.Fatal(got)
	}
	if r := approveAll(w, t); !strings.Contains(flat(r.Context), "search_path=one") {
		t.Errorf("%v", r.Context)
	}
	says(t, c, 1, simple("set search_path = two"))
	if got := bind(); got != stateHeld {
		t.Errorf("under another search path: %s", got)
	}
	if n := server.Must(t, "orders", "select count(*) from two.things"); n != "1" {
		t.Error("it was done to another table")
	}
	for range 2 { // in one segment nobody can ask what the path is: then no grant fits another
		_, codes := says(t, c, 1, &pgproto3.Parse{Query: "set search_path = one"}, &pgproto3.Bind{}, &pgproto3.Execute{},
			&pgproto3.Bind{PreparedStatement: "d"}, &pgproto3.Execute{}, &pgproto3.Sync{})
		if s := strings.Join(codes, " "); s != stateHeld {
			t.Errorf("in a segment with SET: %s", s)
		}
		list, _ := w.Approvals.List(false)
		for _, r := range list {
			if r.State == approval.Pending {
				w.Decide(r, true, "")
			}
		}
	}
}

func TestWhatWasApprovedIsNotExecutedUnderOtherSettings(t *testing.T) {
	w, c := approving(t, "wait")
	server.Must(t, "orders", "set role orders_db; drop table if exists days; create table days (a date); insert into days values ('2026-02-01'), ('2026-01-02')")
	says(t, c, 1, simple("begin"))
	go approveAll(w, t)
	says(t, c, 1, &pgproto3.Parse{Query: "delete from days where a = $1::text::date"},
		&pgproto3.Bind{DestinationPortal: "p", Parameters: [][]byte{[]byte("01/02/2026")}}, &pgproto3.Sync{})
	says(t, c, 1, simple("set datestyle = 'ISO, DMY'"))
	_, codes := says(t, c, 1, &pgproto3.Execute{Portal: "p"}, &pgproto3.Sync{})
	says(t, c, 1, simple("commit"))
	if n := server.Must(t, "orders", "select count(*) from days"); n != "2" || len(codes) != 1 {
		t.Errorf("%s rows are left, answered %q", n, codes)
	}
}
