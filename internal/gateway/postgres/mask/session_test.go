package mask_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	pg "github.com/pganalyze/pg_query_go/v6"
	pgquery "github.com/wasilibs/go-pgquery"

	"isle"
	"isle/internal/gateway/postgres/mask"
	"isle/internal/policy"
)

// expect runs a statement and says what became of it.
func expect(t *testing.T, c *client, s *mask.Session, outcome, sql string) reply {
	t.Helper()
	r := c.run(s, sql, false, 0)
	search(t, sql[:min(len(sql), 12)], r.sent)
	got := "passes"
	switch {
	case r.err != nil:
		got = "refused"
	case r.failed:
		got = "fails"
	case r.changed:
		got = "masked"
	}
	if got != outcome {
		t.Errorf("%s: %s, want %s (%v) %q", sql, got, outcome, r.err, r.raw)
	}
	return r
}

func TestAPreparedStatementAndACursorAreMaskedByTheirNames(t *testing.T) {
	db, name, masks := shop(t, all())
	side, c := connect(t, db, name), connect(t, db, name)
	s := masks.Begin(side.rows)
	for _, step := range [][2]string{
		{"passes", "PREPARE p AS SELECT id, email FROM customers ORDER BY id"},
		{"masked", "EXECUTE p"},
		{"refused", "CREATE TABLE stolen AS EXECUTE p"},
		{"passes", "EXPLAIN EXECUTE p"},
		{"passes", "PREPARE q(int) AS SELECT name FROM customers WHERE id = $1"},
		{"passes", "EXECUTE q(1)"},
		{"passes", "CREATE TABLE kept AS EXECUTE q(1)"},
		{"passes", "BEGIN"},
		{"passes", "DECLARE cur CURSOR FOR SELECT email, name FROM customers"},
		{"masked", "FETCH 1 FROM cur"},
		// One of the same name that does not come to be changes nothing.
		{"passes", "SAVEPOINT sp"},
		{"fails", "DECLARE cur CURSOR FOR SELECT name, name AS email FROM customers"},
		{"passes", "ROLLBACK TO sp"},
		{"masked", "FETCH 1 FROM cur"},
		{"passes", "MOVE ALL FROM cur"},
		{"passes", "CLOSE cur"},
		{"passes", "DECLARE cur CURSOR FOR SELECT phone, name FROM customers ORDER BY id"},
		{"masked", "FETCH 1 FROM cur"},
		{"passes", "COMMIT"},
	} {
		expect(t, c, s, step[0], step[1])
	}
}

func TestATableMadeInATransactionIsKnownInIt(t *testing.T) {
	db, name, masks := shop(t, all())
	side, c := connect(t, db, name), connect(t, db, name)
	s := masks.Begin(side.rows)
	for _, step := range [][2]string{
		{"passes", "BEGIN"},
		{"passes", "CREATE TEMP TABLE work (id int, email text)"},
		{"passes", "INSERT INTO work VALUES (1, 'own')"},
		{"passes", "SELECT lower(email) FROM work"},
		{"passes", "SELECT * FROM work"},
		{"masked", "SELECT w.id, c.email FROM work w JOIN customers c USING (id)"},
		{"refused", "INSERT INTO work SELECT id, email FROM customers"},
		{"passes", "CREATE TEMP TABLE more AS SELECT id, name FROM customers"},
		{"passes", "SELECT upper(name) FROM more"},
		// A temporary table before a masked one hides nothing of it.
		{"passes", "CREATE TEMP TABLE customers (id int, email text)"},
		{"refused", "SELECT lower(email) FROM customers"},
		{"refused", "SELECT lower(email) FROM public.customers"},
		{"passes", "COMMIT"},
		{"passes", "DROP TABLE pg_temp.customers"},
		{"masked", "SELECT * FROM customers"},
		// A part of a masked table is masked, also before it is known to be one.
		{"passes", "BEGIN"},
		{"passes", "CREATE TABLE events_asia PARTITION OF events FOR VALUES IN ('asia')"},
		{"passes", "UPDATE events SET region = 'asia' WHERE region = 'us'"},
		{"refused", "SELECT lower(who) FROM events_asia"},
		{"refused", "SELECT who FROM events_asia"},
		{"passes", "COMMIT"},
		{"masked", "SELECT who FROM events_asia"},
		{"refused", "SELECT lower(who) FROM events_asia"},
		{"passes", "BEGIN"},
		{"passes", "CREATE TABLE other.orders () INHERITS (people)"},
		{"refused", "SELECT lower(email) FROM orders"},
		{"passes", "COMMIT"},
		{"refused", "SELECT lower(email) FROM orders"},
		{"passes", "SELECT lower(email) FROM public.orders"},
		{"passes", "DROP TABLE other.orders"},
		{"passes", "SELECT lower(email) FROM orders"},
		{"refused", "ALTER TABLE orders INHERIT people"},
	} {
		expect(t, c, s, step[0], step[1])
	}
}

func TestATableThatIsAlteredOutsideDoesNotLeak(t *testing.T) {
	db, name, _ := shop(t, nil)
	now := time.Now()
	masks, err := mask.New(mask.Config{Connection: policy.Connection{Name: "shop-db", Mask: all()}, Parse: parse, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	side, c := connect(t, db, name), connect(t, db, name)
	s := masks.Begin(side.rows)
	expect(t, c, s, "masked", "SELECT email FROM customers")
	for _, step := range [][3]string{
		// The catalog is a moment old at each of these, but where it says later.
		{"ALTER TABLE customers RENAME COLUMN email TO mail", "masked", "SELECT mail FROM customers"},
		{"", "refused", "SELECT lower(mail) FROM customers"},
		{"", "masked", "SELECT * FROM customers"},
		{"ALTER TABLE customers RENAME COLUMN mail TO email", "masked", "SELECT * FROM customers"},
		{"ALTER TABLE customers RENAME TO clients", "masked", "SELECT email FROM clients"},
		{"", "refused", "SELECT lower(email) FROM clients"},
		{"", "masked", "SELECT pin FROM clients"},
		{"ALTER TABLE clients RENAME TO customers", "refused", "SELECT lower(email) FROM customers"},
		{"CREATE TABLE copied AS SELECT id, email AS harmless, name FROM customers; ALTER TABLE customers RENAME TO old; ALTER TABLE copied RENAME TO customers", "refused", "SELECT * FROM customers"},
		{"ALTER TABLE customers RENAME TO copied; ALTER TABLE old RENAME TO customers", "masked", "SELECT * FROM customers"},
		{"DROP TABLE copied; ALTER TABLE customers RENAME name TO was; ALTER TABLE customers RENAME email TO name", "masked", "SELECT name FROM customers"},
		{"", "masked", "SELECT * FROM customers"},
		{"ALTER TABLE customers RENAME name TO email; ALTER TABLE customers RENAME was TO name", "masked", "SELECT * FROM customers"},
		{"ALTER TABLE loose DROP COLUMN hard; ALTER TABLE loose ADD COLUMN hard text DEFAULT 'canary-again'", "masked", "SELECT hard FROM loose"},
		{"", "masked", "SELECT * FROM loose"},
		{"DROP TABLE loose; CREATE TABLE loose (hard text, soft text, id int); INSERT INTO loose VALUES ('canary', 'canary', 1)", "masked", "SELECT id, hard, soft FROM loose"},
		{"", "masked", "SELECT * FROM loose"},
		{"later: CREATE OR REPLACE VIEW harmless_view AS SELECT id, email AS name FROM customers", "masked", "SELECT name FROM harmless_view"},
		{"", "refused", "SELECT lower(name) FROM harmless_view"},
		{"ALTER TABLE loose DROP COLUMN hard", "refused", "SELECT * FROM loose"},
	} {
		sql, wait := strings.CutPrefix(step[0], "later: ")
		if sql != "" {
			db.Must(t, name, sql)
		}
		if wait {
			now = now.Add(time.Second)
		}
		r := c.run(s, step[2], false, 0)
		search(t, step[2][:10], r.sent)
		got := "passes"
		if r.err != nil {
			got = "refused"
			if r.raw != nil { // the wire ends the session; the next begins with what is known now
				r = c.run(s, step[2], false, 0)
				search(t, step[2][:10], r.sent)
				if r.changed {
					got = "masked"
				}
			}
		} else if r.changed {
			got = "masked"
		} else if r.failed { // and the next knows more
			s = masks.Begin(side.rows)
		}
		if got != step[1] {
			t.Errorf("%s; %s: %s, want %s (%v) %q", step[0], step[2], got, step[1], r.err, r.raw)
		}
	}
}

func TestARenamedTableStaysMaskedAfterARestart(t *testing.T) {
	db, name, _ := shop(t, all())
	db.Must(t, name, "ALTER TABLE customers RENAME TO clients")
	side, c := connect(t, db, name), connect(t, db, name)
	s := masksOf(t, all()).Begin(side.rows)
	expect(t, c, s, "masked", "SELECT email FROM clients")
	expect(t, c, s, "refused", "SELECT lower(email) FROM clients")

	// A column that is not there closes its table, since another holds the values.
	db.Must(t, name, "ALTER TABLE clients RENAME TO customers; ALTER TABLE customers RENAME COLUMN email TO mail")
	s = masksOf(t, all()).Begin(side.rows)
	expect(t, c, s, "refused", "SELECT mail FROM customers")
	expect(t, c, s, "refused", "SELECT id FROM customers")
}

func TestWhatAMaskAllowsAndARuleLiftsPasses(t *testing.T) {
	masks := []policy.Mask{{Column: "customers.email", Show: "hash", Allow: []string{"filter", "aggregate"}}, {Column: "customers.phone", Show: "full", Allow: []string{"order", "group"}}}
	db, name, m := shop(t, masks)
	db.Must(t, name, "UPDATE customers SET pin = NULL, big = NULL, amount = NULL, born = NULL, seen = NULL, token = NULL, photo = NULL, prefs = NULL, tags = NULL, city = NULL")
	side, c := connect(t, db, name), connect(t, db, name)
	s := m.Begin(side.rows)
	for _, step := range [][2]string{
		{"passes", "SELECT id FROM customers WHERE email = 'x'"},
		{"passes", "SELECT count(email), count(DISTINCT email) FROM customers"},
		{"refused", "SELECT max(email) FROM customers"},
		{"refused", "SELECT id FROM customers ORDER BY email"},
		{"refused", "SELECT email FROM customers GROUP BY email"},
		{"passes", "SELECT o.id FROM orders o JOIN customers c USING (email)"},
		{"masked", "SELECT email FROM customers WHERE email LIKE 'canary%'"},
		{"refused", "SELECT id FROM customers WHERE phone = 'x'"},
		{"masked", "SELECT phone FROM customers GROUP BY phone ORDER BY phone"},
		{"masked", "SELECT DISTINCT phone FROM customers"},
		{"masked", "SELECT phone FROM customers UNION SELECT 'x'"},
		{"refused", "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY phone) FROM customers"},
		{"refused", "SELECT c FROM customers c"},
	} {
		expect(t, c, s, step[0], step[1])
	}
	r := c.run(s, "SELECT length(email), email FROM customers", true, 0)
	search(t, "lifted", r.sent)
	if r.err != nil || !r.changed || r.rows != 2 {
		t.Errorf("what a rule lifts: %v, %d rows", r.err, r.rows)
	}
}

func TestNothingIsReadWhereTheCatalogIsAway(t *testing.T) {
	m := masksOf(t, all())
	s := m.Begin(func(context.Context, string) ([][]string, error) {
		return nil, isle.Errorf(isle.Unavailable, "the database is away")
	})
	p, err := s.Plan(t.Context(), statement("SELECT 1", false))
	if isle.CodeOf(err) != isle.Unavailable {
		t.Fatal(err)
	}
	if _, err := s.Rows(t.Context(), p, []mask.Field{{Name: "x", Type: 25}}, nil); err == nil {
		t.Error("rows of what has no plan")
	}
}

func TestWhatIsRecordedHoldsNoMaskedValue(t *testing.T) {
	db, name, m := shop(t, all())
	s := m.Begin(connect(t, db, name).rows)
	for sql, kept := range map[string]bool{
		"INSERT INTO customers (id, name, email) VALUES (9, 'n', 'canary')":                    false,
		"INSERT INTO customers VALUES (9, 'n', 'canary')":                                      false,
		"INSERT INTO customers (id, name) VALUES (9, 'n')":                                     true,
		"UPDATE customers SET email = 'canary' WHERE id = 1":                                   false,
		"UPDATE customers SET name = 'x' WHERE id = 1":                                         true,
		"SELECT id FROM customers WHERE email = 'canary'":                                      false,
		"SELECT id FROM loose WHERE soft = 'canary'":                                           false,
		"SELECT email FROM customers WHERE id = 1":                                             true,
		"SELECT no_such_column FROM customers WHERE id = 1":                                    false,
		"MERGE INTO customers c USING orders o ON c.id = o.id WHEN MATCHED THEN DO NOTHING":    false,
		"INSERT INTO orders (id, email) VALUES (7, 'plain')":                                   true,
		"PREPARE x AS INSERT INTO customers (id, name, email) VALUES (9, 'n', 'canary-value')": false,
		"SELEC id FROM customers":                                                              false,
	} {
		st := statement(sql, false)
		st.Facts = &policy.Facts{Shape: "a shape"}
		p, _ := s.Plan(t.Context(), st)
		text, params := p.Redact([]byte(sql), []string{"canary"})
		if got := string(text) == sql && params != nil; got != kept || !got && (string(text) != "a shape" || params != nil) {
			t.Errorf("%s is recorded as %q with %q", sql, text, params)
		}
	}
}

// Plans are kept by the facts of a shape. What a literal or the session decides
// is not part of the shape.
func TestAPlanIsSharedOnlyWhereItIsTheSame(t *testing.T) {
	db, name, m := shop(t, all())
	side := connect(t, db, name)
	s := m.Begin(side.rows)
	facts := &policy.Facts{}
	parsed := 0
	plan := func(sql string) error {
		_, err := s.Plan(t.Context(), mask.Statement{Facts: facts, Tree: func() (*pg.Node, error) {
			parsed++
			tree, err := pgquery.Parse(sql)
			return tree.GetStmts()[0].GetStmt(), err
		}})
		return err
	}
	for range 3 {
		if err := plan("SELECT id, email FROM customers WHERE id = 1"); err != nil || parsed != 1 {
			t.Fatalf("%v, read %d times", err, parsed)
		}
	}
	facts = &policy.Facts{}
	if err := plan("SELECT id, email FROM customers ORDER BY 1"); err != nil {
		t.Fatal(err)
	}
	if err := plan("SELECT id, email FROM customers ORDER BY 2"); isle.CodeOf(err) != isle.Refused {
		t.Fatalf("ordered by a masked column: %v", err)
	}
}

func TestAnOldPlanIsMadeAnew(t *testing.T) {
	db, name, _ := shop(t, all())
	now := time.Now()
	m, err := mask.New(mask.Config{Connection: policy.Connection{Name: "shop-db", Mask: all()}, Parse: parse, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	s := m.Begin(connect(t, db, name).rows)
	p, err := s.Plan(t.Context(), statement("SELECT upper(label) FROM other.things", false))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Check(t.Context(), p); err != nil || again != p {
		t.Fatalf("a plan was made anew though nothing has changed: %v", err)
	}
	db.Must(t, name, "DROP TABLE other.things; CREATE VIEW other.things AS SELECT email AS label FROM customers")
	now = now.Add(time.Minute)
	if _, err := s.Check(t.Context(), p); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "customers.email") {
		t.Fatalf("a table has become a view of a masked one: %v", err)
	}
}

// Where the text says nothing, what the database says of the columns is enough.
func TestTheDatabasesOwnWordOfAColumnIsEnough(t *testing.T) {
	db, name, m := shop(t, all())
	s := m.Begin(connect(t, db, name).rows)
	c := connect(t, db, name)
	nothing, err := s.Plan(t.Context(), statement("SELECT 1", false))
	if err != nil {
		t.Fatal(err)
	}
	for sql, refused := range map[string]bool{
		"SELECT email, id FROM customers ORDER BY email":          false,
		"SELECT e FROM (SELECT email AS e FROM customers) s":      false,
		"WITH c AS (SELECT phone FROM customers) SELECT * FROM c": false,
		"SELECT address FROM plain_view":                          false,
		"SELECT DISTINCT email FROM customers":                    false,
		"UPDATE customers SET id = id RETURNING pin, email":       false,
		"SELECT c FROM customers c":                               true,
		"SELECT l FROM lower_view":                                true,
	} {
		var err error
		var rows *mask.Rows
		var sent []byte
		c.write(message('Q', []byte(sql+"\x00")))
		c.until('Z', func(kind byte, msg []byte) {
			switch {
			case kind == 'T':
				fields, bad := mask.Fields(msg)
				if bad != nil {
					t.Fatal(bad)
				}
				rows, err = s.Rows(t.Context(), nothing, fields, nil)
			case kind == 'D' && err == nil:
				sent, err = rows.Row(sent, msg)
			}
		})
		search(t, sql, sent)
		if (err != nil) != refused || !refused && len(sent) == 0 {
			t.Errorf("%s: %v, %q", sql, err, sent)
		}
	}
}

// A change that takes long holds a lock on what views are read of.
func TestALockedViewStopsOnlyItself(t *testing.T) {
	db, name, _ := shop(t, nil)
	now := time.Now()
	m, err := mask.New(mask.Config{Connection: policy.Connection{Name: "shop-db", Mask: all()}, Parse: parse, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	side, c, other := connect(t, db, name), connect(t, db, name), connect(t, db, name)
	side.rows(t.Context(), "SET lock_timeout = 100; SET search_path = other, public")
	other.rows(t.Context(), "BEGIN; LOCK TABLE customers")
	s := m.Begin(side.rows)
	expect(t, c, s, "refused", "SELECT address FROM plain_view")
	expect(t, c, s, "masked", "SELECT email FROM people")
	expect(t, c, s, "passes", "SELECT lower(email) FROM orders")
	other.rows(t.Context(), "ROLLBACK")
	now = now.Add(time.Minute)
	expect(t, c, s, "masked", "SELECT address FROM plain_view")
	if path, err := side.rows(t.Context(), "SHOW search_path"); err != nil || path[0][0] != "other, public" {
		t.Errorf("the search_path was left as %q (%v)", path, err)
	}
}

func TestANameThatCouldMeanTooMuchMeansNothing(t *testing.T) {
	db, name, m := shop(t, all())
	s, c := m.Begin(connect(t, db, name).rows), connect(t, db, name)
	expect(t, c, s, "passes", "PREPARE p AS SELECT email FROM customers")
	for i := range 20 {
		expect(t, c, s, "fails", fmt.Sprintf("PREPARE p AS SELECT name AS n%d FROM customers", i))
	}
	expect(t, c, s, "masked", "EXECUTE p")
	for i := range 20 {
		expect(t, c, s, "fails", fmt.Sprintf("PREPARE p AS SELECT phone AS p%d FROM customers", i))
	}
	expect(t, c, s, "refused", "EXECUTE p")
	expect(t, c, s, "refused", "CREATE TABLE stolen AS EXECUTE p")
}
