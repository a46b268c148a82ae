package mask

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"

	"isle"
	"isle/internal/gateway"
)

// A Query runs one statement in a database and returns the rows as text, NULL
// as "". All run in one session, which is left as it was.
type Query func(ctx context.Context, sql string) ([][]string, error)

// A Parser reads SQL with PostgreSQL's grammar.
type Parser func(ctx context.Context, sql string) (*pg.ParseResult, error)

// firstUser is the first OID of what is not PostgreSQL's own
// (FirstNormalObjectId).
const firstUser = 16384

// A column is one of a table or of what a query gives.
type column struct {
	name string
	rule *rule  // nil: it may leave as it is
	row  uint32 // of the catalog: the table whose rows it holds; 0 if none's
}

// A table is a table, view, materialized view, foreign table or sequence.
type table struct {
	oid          uint32
	schema, name string
	kind         byte // as in pg_class.relkind
	columns      []column
	attrs        []uint16 // the attribute numbers of columns
	closed       string   // why it may not be used; "" if it may
	before       *catalog // of one made in a session: the catalog that did not have it
}

func (t *table) masked() bool {
	return t.closed != "" || slices.ContainsFunc(t.columns, func(c column) bool { return c.rule != nil })
}

// attr returns the column of an attribute number, nil if there is none.
func (t *table) attr(n uint16) *column {
	if i, ok := slices.BinarySearch(t.attrs, n); ok {
		return &t.columns[i]
	}
	return nil
}

func (t *table) column(name string) *column {
	for i := range t.columns {
		if t.columns[i].name == name {
			return &t.columns[i]
		}
	}
	return nil
}

func (t *table) String() string { return t.schema + "." + t.name }

// An origin is where a column of a result comes from: what RowDescription has.
type origin struct {
	table uint32
	attr  uint16
}

// A catalog is what is known of a database's tables at one moment. It doesn't
// change once it is loaded.
type catalog struct {
	version string
	partial bool // some views could not be read
	tables  map[uint32]*table
	names   map[string][]*table
}

// The queries. Names are written with their schema, so that no search_path
// changes what they mean.
const (
	sqlPath    = `SELECT pg_catalog.current_setting('search_path')`
	sqlSetPath = `SELECT pg_catalog.set_config('search_path', '%s', false)`
	sqlVersion = `SELECT pg_catalog.concat_ws(' ',
(SELECT pg_catalog.concat(pg_catalog.count(*), ':', pg_catalog.sum(xmin::text::bigint)) FROM pg_catalog.pg_class WHERE oid >= 16384 AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')),
(SELECT pg_catalog.concat(pg_catalog.count(*), ':', pg_catalog.sum(xmin::text::bigint)) FROM pg_catalog.pg_attribute WHERE attrelid >= 16384 AND attnum > 0),
(SELECT pg_catalog.concat(pg_catalog.count(*), ':', pg_catalog.sum(xmin::text::bigint)) FROM pg_catalog.pg_rewrite WHERE ev_class >= 16384),
(SELECT pg_catalog.concat(pg_catalog.count(*), ':', pg_catalog.sum(xmin::text::bigint)) FROM pg_catalog.pg_inherits),
(SELECT pg_catalog.concat(pg_catalog.count(*), ':', pg_catalog.sum(xmin::text::bigint)) FROM pg_catalog.pg_namespace))`
	sqlColumns = `SELECT c.oid, n.nspname, c.relname, c.relkind, a.attnum, a.attname, CASE WHEN t.typrelid <> 0 THEN t.typrelid ELSE e.typrelid END
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_type t ON t.oid = a.atttypid LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND (c.oid >= 16384 OR n.nspname = 'pg_catalog' AND c.relname IN (%s))
ORDER BY c.oid, a.attnum`
	sqlInherits  = `SELECT inhrelid, inhparent FROM pg_catalog.pg_inherits`
	sqlGenerated = `SELECT ad.adrelid, ad.adnum, d.refobjsubid FROM pg_catalog.pg_attrdef ad
JOIN pg_catalog.pg_attribute a ON a.attrelid = ad.adrelid AND a.attnum = ad.adnum AND a.attgenerated <> ''
JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = ad.adrelid AND d.refobjsubid > 0 AND d.refobjsubid <> ad.adnum
AND (d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND d.objid = ad.oid OR d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = ad.adrelid AND d.objsubid = ad.adnum)`
	sqlDepends = `SELECT DISTINCT r.ev_class, d.refobjid, d.refobjsubid FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
JOIN pg_catalog.pg_class c ON c.oid = r.ev_class AND c.relkind IN ('v', 'm')
WHERE d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND r.ev_class >= 16384 AND d.refobjid <> r.ev_class`
	// A view's dependence on what the system has itself is not in pg_depend.
	sqlSystem = `SELECT r.ev_class FROM pg_catalog.pg_rewrite r
WHERE r.ev_class >= 16384 AND r.ev_action::pg_catalog.text OPERATOR(pg_catalog.~) ':relid (%s) '`
	sqlViews = `SELECT c.oid, pg_catalog.pg_get_viewdef(c.oid) FROM pg_catalog.pg_class c WHERE c.relkind IN ('v', 'm') AND c.oid IN (%s)`
)

// sensitive are the relations of the system that hold values of others' tables
// or texts of others' statements. The columns named leave masked; where none is
// named the relation may not be used.
func sensitive(name string) (columns []string, ok bool) {
	switch name {
	case "pg_stat_activity", "pg_stat_statements":
		return []string{"query"}, true
	case "pg_statistic", "pg_stats", "pg_statistic_ext_data", "pg_stats_ext", "pg_stats_ext_exprs", "pg_largeobject":
		return nil, true
	}
	return nil, false
}

const sensitiveNames = `'pg_stat_activity', 'pg_statistic', 'pg_stats', 'pg_statistic_ext_data', 'pg_stats_ext', 'pg_stats_ext_exprs', 'pg_largeobject'`

// A loader makes a catalog.
type loader struct {
	ctx   context.Context
	query Query
	masks *Masks
	cat   *catalog

	before  *string             // the search_path
	depends map[uint32][]origin // what a view is made of
	defs    map[uint32]string   // of views
	state   map[uint32]int      // of views: 1 begun, 2 done
}

func (m *Masks) load(ctx context.Context, query Query, version string) (*catalog, error) {
	l := &loader{ctx: ctx, query: query, masks: m, state: map[uint32]int{}, defs: map[uint32]string{}, depends: map[uint32][]origin{},
		cat: &catalog{version: version, tables: map[uint32]*table{}, names: map[string][]*table{}}}
	for _, step := range []func() error{l.path, l.columns, l.apply, l.inherit, l.generated, l.composites, l.views} {
		if err := step(); err != nil {
			l.restore()
			return nil, isle.Errorf(isle.Unavailable, "the tables of %s can't be read, so nothing may be read that masks could be on: %w", m.connection, err)
		}
	}
	l.remember()
	return l.cat, l.restore()
}

// path makes pg_get_viewdef write every name with its schema.
func (l *loader) path() error {
	rows, err := l.query(l.ctx, sqlPath)
	if err != nil || len(rows) != 1 || len(rows[0]) != 1 {
		return err
	}
	l.before = &rows[0][0]
	_, err = l.query(l.ctx, fmt.Sprintf(sqlSetPath, "pg_catalog"))
	return err
}

func (l *loader) restore() error {
	if l.before == nil {
		return nil
	}
	_, err := l.query(l.ctx, fmt.Sprintf(sqlSetPath, strings.ReplaceAll(*l.before, "'", "''")))
	return err
}

// rows asks and reads the first numbers of each row.
func (l *loader) rows(sql string, numbers []int, each func(n []uint32, row []string) error) error {
	rows, err := l.query(l.ctx, sql)
	if err != nil {
		return err
	}
	n := make([]uint32, len(numbers))
	for _, row := range rows {
		for i, at := range numbers {
			if at >= len(row) {
				return fmt.Errorf("a row of %d columns", len(row))
			}
			v, err := strconv.ParseUint(row[at], 10, 32)
			if err != nil && row[at] != "" {
				return fmt.Errorf("%q is no OID", row[at])
			}
			n[i] = uint32(v)
		}
		if err := each(n, row); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) columns() error {
	return l.rows(fmt.Sprintf(sqlColumns, sensitiveNames), []int{0, 4, 6}, func(n []uint32, row []string) error {
		if len(row) < 7 || row[3] == "" {
			return fmt.Errorf("a row of %d columns", len(row))
		}
		t := l.cat.tables[n[0]]
		if t == nil {
			t = &table{oid: n[0], schema: row[1], name: row[2], kind: row[3][0]}
			l.cat.tables[t.oid] = t
			l.cat.names[t.name] = append(l.cat.names[t.name], t)
		}
		if n[1] > 0 {
			t.columns = append(t.columns, column{name: row[5], row: n[2]})
			t.attrs = append(t.attrs, uint16(n[1]))
		}
		return nil
	})
}

// apply puts the masks on the columns that they name. A column that a mask was
// on keeps it as long as the column is there, whatever it is called since. A
// mask whose table is not there is put on every column of its name, since the
// table may have been renamed; a table that lacks the column of its mask is
// closed.
func (l *loader) apply() error {
	kept := map[uint32]map[*rule]bool{}
	for at, r := range l.masks.seen {
		if t := l.cat.tables[at.table]; t != nil {
			if c := t.attr(at.attr); c != nil {
				c.rule = stricter(c.rule, r)
				if kept[t.oid] == nil {
					kept[t.oid] = map[*rule]bool{}
				}
				kept[t.oid][r] = true
			}
		}
	}
	for _, r := range l.masks.rules {
		found, applied := false, false
		for _, t := range l.cat.names[r.table] {
			if t.oid < firstUser || !r.names(t.schema, t.name) {
				continue
			}
			if c := t.column(r.column); c != nil {
				c.rule = stricter(c.rule, r)
				applied = applied || !temporary(t)
			}
			found, applied = found || !temporary(t), applied || kept[t.oid][r]
		}
		if found && !applied {
			l.close(r)
		}
		if !found {
			for _, t := range l.cat.tables {
				if c := t.column(r.column); c != nil && t.oid >= firstUser {
					c.rule = stricter(c.rule, r)
				}
			}
		}
	}
	for _, t := range l.cat.tables {
		names, ok := sensitive(t.name)
		if !ok {
			continue
		}
		if names == nil && t.oid < firstUser {
			t.closed = "it holds values of masked columns"
		}
		for _, n := range names {
			if c := t.column(n); c != nil {
				c.rule = &rule{table: t.name, column: n, show: gateway.ShowFull, said: t.name + "." + n}
			}
		}
	}
	return nil
}

// close closes the tables of a mask that none of them has the column of.
func (l *loader) close(r *rule) {
	for _, t := range l.cat.names[r.table] {
		if t.oid >= firstUser && r.names(t.schema, t.name) {
			t.closed = fmt.Sprintf("the mask %q names a column that it does not have", r.said)
		}
	}
}

func temporary(t *table) bool { return strings.HasPrefix(t.schema, "pg_temp_") }

// inherit gives children the masks of their parents, and the other way round,
// since a query of the parent gives the rows of the children.
func (l *loader) inherit() error {
	var pairs [][2]*table
	err := l.rows(sqlInherits, []int{0, 1}, func(n []uint32, _ []string) error {
		if a, b := l.cat.tables[n[0]], l.cat.tables[n[1]]; a != nil && b != nil {
			pairs = append(pairs, [2]*table{a, b})
		}
		return nil
	})
	for changed := true; changed; {
		changed = false
		for _, p := range pairs {
			changed = share(p[0], p[1]) || changed
			changed = share(p[1], p[0]) || changed
		}
	}
	return err
}

// share gives b what a has, and reports whether that was news.
func share(a, b *table) (news bool) {
	if a.closed != "" && b.closed == "" {
		b.closed, news = a.closed, true
	}
	for _, c := range a.columns {
		if other := b.column(c.name); c.rule != nil && other != nil && other.rule == nil {
			other.rule, news = c.rule, true
		}
	}
	return news
}

// generated masks the columns that are computed from masked ones.
func (l *loader) generated() error {
	return l.rows(sqlGenerated, []int{0, 1, 2}, func(n []uint32, _ []string) error {
		t := l.cat.tables[n[0]]
		if t == nil {
			return nil
		}
		from, to := t.attr(uint16(n[2])), t.attr(uint16(n[1]))
		if from != nil && to != nil && from.rule != nil && to.rule == nil {
			to.rule = &rule{table: t.name, column: to.name, show: gateway.ShowFull, said: from.rule.said}
		}
		return nil
	})
}

// composites masks the columns that hold whole rows of a table with masks.
func (l *loader) composites() error {
	for changed := true; changed; {
		changed = false
		for _, t := range l.cat.tables {
			for i, c := range t.columns {
				of := l.cat.tables[c.row]
				if of == nil || c.rule != nil || !of.masked() {
					continue
				}
				t.columns[i].rule = &rule{table: t.name, column: c.name, show: gateway.ShowFull, said: t.name + "." + c.name}
				changed = true
			}
		}
	}
	return nil
}

// remember keeps which columns masks were on.
func (l *loader) remember() {
	for _, t := range l.cat.tables {
		for i, c := range t.columns {
			if c.rule != nil && slices.Contains(l.masks.rules, c.rule) && c.rule.names(t.schema, t.name) && c.name == c.rule.column {
				l.masks.seen[origin{t.oid, t.attrs[i]}] = c.rule
			}
		}
	}
	for at := range l.masks.seen { // what is gone is gone
		if t := l.cat.tables[at.table]; t == nil || t.attr(at.attr) == nil {
			delete(l.masks.seen, at)
		}
	}
}

// views masks the columns of views that are plainly masked ones, and closes the
// views that use one otherwise.
func (l *loader) views() error {
	err := l.rows(sqlDepends, []int{0, 1, 2}, func(n []uint32, _ []string) error {
		l.depends[n[0]] = append(l.depends[n[0]], origin{n[1], uint16(n[2])})
		return nil
	})
	if err != nil {
		return err
	}
	if err := l.system(); err != nil {
		return err
	}
	if err := l.definitions(l.dependents()); err != nil {
		return err
	}
	for oid := range l.defs {
		if err := l.view(oid); err != nil {
			return err
		}
	}
	return nil
}

// system notes which views use the relations of the system that are sensitive.
func (l *loader) system() error {
	var ids []string
	for oid, t := range l.cat.tables {
		if oid < firstUser && t.masked() {
			ids = append(ids, strconv.FormatUint(uint64(oid), 10))
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return l.rows(fmt.Sprintf(sqlSystem, strings.Join(ids, "|")), []int{0}, func(n []uint32, _ []string) error {
		first, _ := strconv.ParseUint(ids[0], 10, 32)
		l.depends[n[0]] = append(l.depends[n[0]], origin{table: uint32(first)})
		return nil
	})
}

// definitions reads the texts of views, which takes a lock on each. Where one
// can't be had they are closed for a while, so that a long change of one table
// doesn't stop what has nothing to do with it.
func (l *loader) definitions(views []uint32) error {
	if len(views) == 0 {
		return nil
	}
	ids := make([]string, len(views))
	for i, oid := range views {
		ids[i] = strconv.FormatUint(uint64(oid), 10)
	}
	err := l.rows(fmt.Sprintf(sqlViews, strings.Join(ids, ", ")), []int{0}, func(n []uint32, row []string) error {
		if len(row) < 2 {
			return fmt.Errorf("a row of %d columns", len(row))
		}
		l.defs[n[0]] = row[1]
		return nil
	})
	if err == nil || l.ctx.Err() != nil {
		return err
	}
	l.cat.partial = true
	clear(l.defs)
	for _, oid := range views {
		if t := l.cat.tables[oid]; t != nil {
			t.closed = fmt.Sprintf("what the view %s shows can't be read now: %v", t, err)
		}
	}
	return nil
}

// dependents are the views that a table with masks is in, at any remove.
func (l *loader) dependents() (out []uint32) {
	in := map[uint32]bool{}
	for oid, t := range l.cat.tables {
		in[oid] = t.masked()
	}
	for changed := true; changed; {
		changed = false
		for v, from := range l.depends {
			if slices.Contains(out, v) {
				continue
			}
			if slices.ContainsFunc(from, func(o origin) bool { return in[o.table] }) {
				in[v], changed = true, true
				out = append(out, v)
			}
		}
	}
	return out
}

// view reads one view, after those that it is made of.
func (l *loader) view(oid uint32) error {
	t := l.cat.tables[oid]
	if t == nil || l.state[oid] != 0 {
		return nil
	}
	l.state[oid] = 1
	for _, d := range l.depends[oid] {
		if _, ok := l.defs[d.table]; ok {
			if err := l.view(d.table); err != nil {
				return err
			}
		}
	}
	l.state[oid] = 2
	tree, err := l.masks.parse(l.ctx, l.defs[oid])
	if err != nil || len(tree.GetStmts()) != 1 {
		if l.ctx.Err() != nil {
			return l.ctx.Err()
		}
		t.closed = fmt.Sprintf("the view %s can't be read", t)
		return nil
	}
	a := &analysis{cat: l.cat}
	out := a.query(tree.Stmts[0].Stmt, nil, nil)
	switch {
	case a.err != nil:
		t.closed = fmt.Sprintf("the view %s uses a masked column: %s", t, a.err.Message)
	case out.open || len(out.columns) != len(t.columns):
		t.closed = fmt.Sprintf("what the view %s shows can't be told", t)
	default:
		plain := a.allowed > 0
		for i, c := range out.columns {
			t.columns[i].rule = stricter(t.columns[i].rule, c.rule)
			plain = plain || c.rule != nil
		}
		if !plain && slices.ContainsFunc(l.depends[oid], l.onMasked) {
			t.closed = fmt.Sprintf("the view %s uses a masked column", t)
		}
	}
	return nil
}

func (l *loader) onMasked(o origin) bool {
	t := l.cat.tables[o.table]
	if t == nil {
		return false
	}
	c := t.attr(o.attr)
	return c != nil && c.rule != nil
}
