package mask_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// A generator makes statements that may or may not be right.
type generator struct {
	*rand.Rand
	names int
}

func (g *generator) pick(s ...string) string { return s[g.IntN(len(s))] }

// A source is something in FROM: the name it has there, and its columns.
type source struct {
	name    string
	columns []string
}

// tablesOf are the tables, with some of their columns.
func tablesOf() []source {
	return []source{
		{"customers", []string{"id", "name", "email", "phone", "pin", "prefs", "city", "email_lower", "note"}},
		{"public.customers", []string{"id", "name", "email"}},
		{"orders", []string{"id", "customer", "total", "email", "note"}},
		{"plain_view", []string{"id", "address", "name"}},
		{"people", []string{"id", "email", "note"}},
		{"employees", []string{"id", "email", "note", "salary"}},
		{"events", []string{"id", "region", "who"}},
		{"mat", []string{"id", "email"}},
		{"loose", []string{"id", "soft", "hard"}},
		{"harmless_view", []string{"id", "name"}},
		{"view_of_view", []string{"a2", "id"}},
	}
}

// column is most often one that there is.
func (g *generator) column(from []source) string {
	s := from[g.IntN(len(from))]
	if g.IntN(25) == 0 || len(s.columns) == 0 {
		return g.pick("email", "name", "id", "x", "nothing")
	}
	c := g.pick(s.columns...)
	if g.IntN(5) == 0 && len(from) == 1 {
		return c
	}
	return s.name + "." + c
}

func (g *generator) name(from []source) string { return from[g.IntN(len(from))].name }

func (g *generator) expression(from []source, depth int) string {
	if depth <= 0 {
		return g.column(from)
	}
	e := func() string { return g.expression(from, depth-1) }
	switch g.IntN(30) {
	case 0:
		return "lower(" + e() + "::text)"
	case 1:
		return "coalesce(" + e() + "::text, 'z')"
	case 2:
		return "length(" + e() + "::text)"
	case 3:
		return "row_to_json(" + g.name(from) + ")"
	case 4:
		return g.name(from)
	case 5:
		return "(SELECT " + e() + " LIMIT 1)"
	case 6:
		sql, _ := g.query(depth-1, from)
		return "(" + sql + " LIMIT 1)"
	case 7:
		return "CASE WHEN " + e() + " IS NULL THEN '1' ELSE " + e() + "::text END"
	case 8:
		return "ARRAY[" + e() + "::text]"
	case 9:
		return g.pick("max", "min", "count", "array_agg") + "(" + e() + "::text) OVER ()"
	case 10:
		return "first_value(" + e() + ") OVER (ORDER BY " + g.column(from) + ")"
	case 11:
		return "concat(" + e() + ", " + e() + ")"
	case 12:
		return "(" + g.name(from) + ")." + g.pick("email", "name", "id")
	case 13:
		return "ROW(" + g.name(from) + ".*)::text"
	case 14:
		sql, _ := g.query(depth-1, from)
		return "EXISTS (" + sql + ")"
	case 15:
		return g.name(from) + "." + g.pick("row_to_json", "to_jsonb", "email")
	}
	return g.column(from)
}

// item is something in FROM.
func (g *generator) item(depth int, around []source) (sql string, s source) {
	g.names++
	name := fmt.Sprintf("t%d", g.names)
	if depth <= 0 || g.IntN(2) == 0 {
		all := tablesOf()
		table := all[g.IntN(len(all))]
		switch g.IntN(3) {
		case 0:
			return table.name + " AS " + name, source{name, table.columns}
		case 1:
			return table.name + " AS " + name + "(x, y)", source{name, append([]string{"x", "y"}, table.columns[2:]...)}
		}
		return table.name, source{strings.TrimPrefix(table.name, "public."), table.columns}
	}
	switch g.IntN(8) {
	case 0:
		sql, columns := g.query(depth-1, around)
		return "LATERAL (" + sql + ") AS " + name, source{name, columns}
	case 1:
		sql, columns := g.query(depth-1, nil)
		return "(" + sql + ") AS " + name + "(x)", source{name, append([]string{"x"}, columns[min(1, len(columns)):]...)}
	case 2:
		return "(VALUES ('v', 1)) AS " + name + "(x, y)", source{name, []string{"x", "y"}}
	case 3:
		return "generate_series(1, 2) AS " + name, source{name, []string{name}}
	}
	sql, columns := g.query(depth-1, nil)
	return "(" + sql + ") AS " + name, source{name, columns}
}

// query is a SELECT with the names of its columns; around is what it may see.
func (g *generator) query(depth int, around []source) (sql string, columns []string) {
	from, first := g.item(depth, around)
	with := ""
	if depth > 0 && g.IntN(5) == 0 {
		g.names++
		first.name = fmt.Sprintf("w%d", g.names)
		if g.IntN(4) == 0 {
			first.name = "orders" // hides the table
		}
		inner, columns := g.query(depth-1, nil)
		with, from, first.columns = "WITH "+first.name+" AS ("+inner+") ", first.name, columns
	}
	all := []source{first}
	for range g.IntN(3) {
		more, s := g.item(depth-1, append(all, around...))
		all = append(all, s)
		from += g.pick(", "+more, " CROSS JOIN "+more, " LEFT JOIN "+more+" ON true", " JOIN "+more+" USING (id)", " NATURAL JOIN "+more)
	}
	seen := append(all, around...)
	var list []string
	for range 1 + g.IntN(3) {
		switch g.IntN(12) {
		case 0:
			list = append(list, "*")
			for _, s := range all {
				columns = append(columns, s.columns...)
			}
		case 1:
			s := all[g.IntN(len(all))]
			list = append(list, s.name+".*")
			columns = append(columns, s.columns...)
		case 2:
			name := g.pick("x", "email", "name")
			list, columns = append(list, g.expression(seen, depth)+" AS "+name), append(columns, name)
		default:
			g.names++
			name := fmt.Sprintf("c%d", g.names)
			list, columns = append(list, g.column(seen)+" AS "+name), append(columns, name)
		}
	}
	sql = with + "SELECT " + g.pick("", "", "", "", "", "", "DISTINCT ") + strings.Join(list, ", ") + " FROM " + from
	if g.IntN(8) == 0 {
		sql += " WHERE " + g.expression(all, 1) + "::text <> ''"
	}
	if g.IntN(10) == 0 {
		sql += " ORDER BY " + g.pick("1", "2", g.column(all))
	}
	if g.IntN(20) == 0 {
		other, _ := g.query(depth-1, nil)
		sql = "(" + sql + ") " + g.pick("UNION", "UNION ALL", "EXCEPT") + " (" + other + ")"
	}
	return sql, columns
}

func (g *generator) statement() string {
	customers := tablesOf()[:1]
	sql, _ := g.query(3, nil)
	switch g.IntN(20) {
	case 0:
		return "UPDATE customers SET " + g.pick("note", "name", "email") + " = " + g.expression(customers, 1) + "::text WHERE id = 1 RETURNING " + g.column(customers)
	case 1:
		return "INSERT INTO made (x) " + sql
	case 2:
		return "COPY (" + sql + ") TO STDOUT"
	case 3:
		return "CREATE TEMP TABLE more AS " + sql
	case 4:
		return "WITH d AS (UPDATE customers SET name = name RETURNING " + g.column(customers) + ") SELECT * FROM d"
	}
	return sql
}

// Whatever is asked, no value of a masked column comes, and what is masked is
// masked before it is sent: nothing is refused at its result.
func TestNoStatementShowsAMaskedValue(t *testing.T) {
	n := 2000
	if testing.Short() {
		n = 400
	}
	db, name, masks := shop(t, all())
	db.Must(t, name, "CREATE TABLE made (x text)")
	side, c := connect(t, db, name), connect(t, db, name)
	s := masks.Begin(side.rows)
	seed := rand.Uint64()
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 0))}
	var refused, failed, masked int
	for range n {
		sql := g.statement()
		c.blind = g.IntN(2) == 0 // what the text says has to be enough
		c.rows(t.Context(), "BEGIN")
		r := c.run(s, sql, false, int16(g.IntN(2)))
		c.rows(t.Context(), "ROLLBACK")
		s.Idle()
		search(t, sql, r.sent)
		switch {
		case r.err != nil && r.raw != nil:
			t.Errorf("%s: was refused when it had been sent: %v", sql, r.err)
		case r.err != nil:
			refused++
		case r.failed:
			failed++
		case r.changed:
			masked++
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Logf("of %d: refused %d, failed %d, masked %d", n, refused, failed, masked)
	if masked < n/50 {
		t.Errorf("too little of it ran: refused %d, failed %d, masked %d", refused, failed, masked)
	}
}
