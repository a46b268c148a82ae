package postgres

import (
	"fmt"
	"strings"
	"testing"

	"isle/internal/policy"
	"isle/internal/session"
)

const canary = "kathrin.muster@example.org"

// masked has a table whose column email is masked.
func masked(t *testing.T) *fake {
	t.Helper()
	server.Must(t, "orders", `set role orders_db; drop table if exists people; create table people (id int primary key, email text, note text);
insert into people select i, '`+canary+`', 'note '||i from generate_series(1, 3000) i`)
	f := orders()
	f.connection.Mask = []policy.Mask{{Column: "people.email", Show: "partial"}}
	f.connection.Results = true
	return f
}

func TestAMaskedColumnLeavesOnlyMasked(t *testing.T) {
	f := masked(t)
	addr := listen(t, f)
	for _, mode := range []string{"simple_protocol", "exec", "cache_statement", "describe_exec"} {
		c := dial(t, addr, "default_query_exec_mode="+mode)
		rows, err := c.Query(t.Context(), "select * from people order by id")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for rows.Next() {
			var id int
			var email, note string
			if err := rows.Scan(&id, &email, &note); err != nil {
				t.Fatal(err)
			}
			if email == canary || !strings.Contains(email, "*") || note != fmt.Sprint("note ", id) {
				t.Fatalf("%s: row %d is %q, %q", mode, id, email, note)
			}
			n++
		}
		if rows.Err() != nil || n != 3000 {
			t.Errorf("%s: %d rows, %v", mode, n, rows.Err())
		}
		for _, sql := range []string{"select lower(email) from people", "select row_to_json(p) from people p", "select 1 from people where email = 'x'"} {
			if _, err := c.Exec(t.Context(), sql); code(err) != stateRefused {
				t.Errorf("%s: %s: %v", mode, sql, err)
			}
		}
		if _, err := c.Exec(t.Context(), "insert into people values (1, '"+canary+"', '')"); err == nil || strings.Contains(fmt.Sprintf("%+v", err), canary) || code(err) != "23505" {
			t.Errorf("%s: %+v", mode, err)
		}
		if _, err := c.Exec(t.Context(), "update people set email = email || $1 where id = 0", "x"); code(err) != stateRefused {
			t.Errorf("%s: a masked column that is copied: %v", mode, err)
		}
		var sum int
		if err := c.QueryRow(t.Context(), "select sum(id) from people where id < $1", 4).Scan(&sum); err != nil || sum != 6 {
			t.Errorf("%s: a query beside: %d, %v", mode, sum, err)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	rows := 0
	for _, e := range f.events {
		if e.Kind == session.Row {
			rows++
		}
		if s := fmt.Sprintf("%s %s %q %s", e.Text, e.Data, e.Params, e.Error); strings.Contains(s, canary) {
			t.Errorf("the recording holds the canary: %s", s)
		}
	}
	if rows != 4*3001 {
		t.Errorf("%d rows were recorded", rows)
	}
}

func TestAPortalThatNobodyDescribedIsMaskedToo(t *testing.T) {
	c := dial(t, listen(t, masked(t))).PgConn()
	r := c.ExecParams(t.Context(), "select email from people where id = 1", nil, nil, nil, []int16{1}).Read()
	if r.Err != nil || len(r.Rows) != 1 || string(r.Rows[0][0]) == canary {
		t.Errorf("%q, %v", r.Rows, r.Err)
	}
	out := psql(t, listen(t, masked(t)), "begin; declare c cursor for select email from people; fetch 2 from c; commit")
	if strings.Contains(out, canary) || !strings.Contains(out, "*") {
		t.Errorf("a cursor gives %s", out)
	}
}
