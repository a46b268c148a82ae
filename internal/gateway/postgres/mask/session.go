package mask

import (
	"context"
	"maps"
	"slices"

	pg "github.com/pganalyze/pg_query_go/v6"

	"isle"
	"isle/internal/policy"
)

// Bounds of what a session remembers.
const (
	maxNames = 4096 // prepared statements, and cursors, and tables made in a transaction
	maxAgain = 16   // plans under one name
	maxPlans = 8192 // of a connection, by shape
)

// A Session plans the statements of one client. It is for one goroutine at a
// time.
type Session struct {
	masks *Masks
	query Query

	made     map[string]*table  // since the session was last idle
	prepared map[string][]*Plan // what may be under a name: PREPARE may have failed
	portals  map[string][]*Plan
	ddl      bool // the schema may have changed since the session was last idle
}

// A Statement is what is to be planned: one statement, as the grammar has it.
type Statement struct {
	Tree  func() (*pg.Node, error) // the statement; asked only where no plan is known
	Facts *policy.Facts            // plans are kept by it; may be nil
	Lift  bool                     // an allow rule of the connection fits: uses are not refused
}

type planKey struct {
	facts *policy.Facts
	lift  bool
}

// Plan follows the columns of a statement. The plan is never nil: of a refused
// statement it serves to redact what is recorded. The error's code is
// isle.Refused where a masked column is used as it may not be, isle.NotFound
// where a table is not known, isle.Unavailable where the catalog can't be read.
func (s *Session) Plan(ctx context.Context, st Statement) (*Plan, error) {
	if len(s.masks.rules) == 0 {
		return &Plan{statement: st}, nil
	}
	cat, err := s.masks.current(ctx, s.query, false)
	if err != nil {
		return &Plan{statement: st, touches: true, values: true}, err
	}
	p := s.plan(cat, st)
	if p.unknown {
		again, err := s.masks.current(ctx, s.query, true)
		if err != nil {
			return &Plan{statement: st, touches: true, values: true}, err
		}
		if again != cat {
			p = s.plan(again, st)
		}
	}
	if p.err != nil {
		return p, p.err
	}
	s.accept(p)
	return p, nil
}

// Check returns the plan of a statement that was planned before, anew if tables
// have changed since. A result has to be described anew then as well.
func (s *Session) Check(ctx context.Context, p *Plan) (*Plan, error) {
	if len(s.masks.rules) == 0 {
		return p, nil
	}
	cat, err := s.masks.current(ctx, s.query, false)
	if err != nil {
		return p, err
	}
	if cat == p.cat && p.err == nil {
		return p, nil
	}
	return s.Plan(ctx, p.statement)
}

func (s *Session) plan(cat *catalog, st Statement) *Plan {
	s.open(cat)
	key := planKey{st.Facts, st.Lift}
	known := st.Facts != nil && len(s.made) == 0
	if known {
		s.masks.mu.Lock()
		p := s.masks.plans[key]
		current := s.masks.cat == cat
		s.masks.mu.Unlock()
		if p != nil && current {
			return p
		}
	}
	p, own := s.follow(cat, st)
	if known && !own {
		s.masks.mu.Lock()
		if s.masks.cat == cat {
			if len(s.masks.plans) >= maxPlans {
				clear(s.masks.plans)
			}
			s.masks.plans[key] = p
		}
		s.masks.mu.Unlock()
	}
	return p
}

// follow makes a plan. own says that it is of this session, or of this text, and
// no other of the same shape may have it.
func (s *Session) follow(cat *catalog, st Statement) (p *Plan, own bool) {
	p = &Plan{cat: cat, statement: st, touches: true, values: true}
	if f := st.Facts; f != nil && f.Uncertain != "" && !st.Lift {
		p.err = isle.Errorf(isle.Refused, "what this statement does can't be read (%s), and this connection has masks", f.Uncertain)
		return p, false
	}
	tree, err := st.Tree()
	if err != nil || tree == nil {
		p.err = isle.Errorf(isle.Refused, "what this statement does can't be read, and this connection has masks")
		return p, true
	}
	a := &analysis{cat: cat, session: s, lift: st.Lift}
	switch v := unwrap(tree).(type) {
	case *pg.PrepareStmt:
		p.rows, own = a.statement(v.Query), true
		p.names, p.name = s.prepared, v.Name
	case *pg.DeclareCursorStmt:
		p.rows, own = a.statement(v.Query), true
		p.names, p.name = s.portals, v.Portalname
	case *pg.ExecuteStmt:
		own = true
		a.walkAll(v.Params, &scope{}, useOther)
		s.named(p, a, s.prepared, v.Name, "prepared statement")
	case *pg.FetchStmt:
		own = true
		s.named(p, a, s.portals, v.Portalname, "cursor")
	default:
		p.rows = a.statement(tree)
	}
	own = own || a.literal || len(a.makes) > 0 || a.made
	if p.alternatives == nil {
		p.touches, p.values, p.made = a.touches, a.values, a.made
	}
	p.unknown, p.makes = a.unknown, a.makes
	p.changes = changes(tree)
	if a.err != nil {
		p.err, p.values = a.err, true
	}
	return p, own
}

// named is a statement that gives what another one gives.
func (s *Session) named(p *Plan, a *analysis, names map[string][]*Plan, name, what string) {
	p.alternatives, p.touches, p.values = names[name], false, false
	if p.alternatives == nil {
		a.refuse("there is no %s %q that this session has made", what, name)
	}
	for _, o := range p.alternatives {
		if o.err != nil && a.err == nil {
			a.err = o.err
		}
		p.touches, p.values = p.touches || o.touches, p.values || o.values
		p.made = p.made || o.made
	}
}

func (s *Session) find(names map[string][]*Plan, name string) []*Plan {
	if s == nil {
		return nil
	}
	return names[name]
}

// accept takes what a statement that will be sent does to the session.
func (s *Session) accept(p *Plan) {
	for _, t := range p.makes {
		if len(s.made) < maxNames {
			t.before = p.cat
			s.made[t.name] = t
		}
	}
	if p.changes {
		s.ddl = true
		s.masks.changed()
	}
	if p.names != nil {
		s.keep(p.names, p.name, p)
	}
}

// Prepared tells the session that the client gave a prepared statement a name by
// the protocol (Parse): EXECUTE can name it.
func (s *Session) Prepared(name string, p *Plan) { s.keep(s.prepared, name, p) }

// Portal tells the session that the client gave a portal a name by the protocol
// (Bind): FETCH can name it.
func (s *Session) Portal(name string, p *Plan) { s.keep(s.portals, name, p) }

// keep adds to what a name can mean: whether the statement that gave it failed,
// or was rolled back, is not known here. A name that could mean too many things
// means none, and where there are too many names another one is forgotten: what
// is not known is refused.
func (s *Session) keep(names map[string][]*Plan, name string, p *Plan) {
	all := names[name]
	if name == "" || len(all) > maxAgain || slices.ContainsFunc(all, p.like) {
		return
	}
	if len(all) == maxAgain {
		p = &Plan{err: isle.Errorf(isle.Refused, "%q was the name of too many statements in this session", name).WithHint("take another name")}
	}
	if all == nil && len(names) >= maxNames {
		for other := range names {
			delete(names, other)
			break
		}
	}
	names[name] = append(all[:len(all):len(all)], p)
}

// like reports whether two plans say the same of a result.
func (p *Plan) like(o *Plan) bool {
	switch {
	case p == o:
		return true
	case p.err != nil || o.err != nil || p.touches != o.touches || p.values != o.values || p.made != o.made:
		return false
	case p.harmless() && o.harmless():
		return true
	}
	return p.rows != nil && o.rows != nil && p.rows.open == o.rows.open && slices.Equal(p.rows.columns, o.rows.columns)
}

// harmless reports whether nothing of a result is masked.
func (p *Plan) harmless() bool { return p.rows == nil || p.rows.masked() == nil }

// Idle tells the session that no transaction is open (ReadyForQuery with 'I').
// What it has made is in the catalog now, or is gone.
func (s *Session) Idle() {
	if s.ddl {
		s.ddl = false
		maps.DeleteFunc(s.made, func(_ string, t *table) bool { return t.closed == "" })
		s.masks.changed()
	}
}

// open forgets the tables that were closed when they were made and are in the
// catalog now. Those of a transaction that was rolled back stay closed for the
// session: that a transaction has ended says nothing of one that the client has
// sent since.
func (s *Session) open(cat *catalog) {
	maps.DeleteFunc(s.made, func(name string, t *table) bool {
		return t.closed != "" && slices.ContainsFunc(cat.names[name], func(c *table) bool {
			return (t.schema == "" || t.schema == c.schema) && c.masked() && t.before != nil && t.before.tables[c.oid] == nil
		})
	})
}

// changes reports whether a statement can change what tables there are.
func changes(n *pg.Node) bool {
	switch v := n.GetNode().(type) {
	case *pg.Node_SelectStmt:
		return v.SelectStmt.IntoClause != nil
	case *pg.Node_InsertStmt, *pg.Node_UpdateStmt, *pg.Node_DeleteStmt, *pg.Node_MergeStmt, *pg.Node_CopyStmt, *pg.Node_TransactionStmt,
		*pg.Node_VariableSetStmt, *pg.Node_VariableShowStmt, *pg.Node_PrepareStmt, *pg.Node_DeallocateStmt, *pg.Node_DeclareCursorStmt,
		*pg.Node_FetchStmt, *pg.Node_ClosePortalStmt, *pg.Node_ListenStmt, *pg.Node_UnlistenStmt, *pg.Node_NotifyStmt, *pg.Node_LockStmt,
		*pg.Node_TruncateStmt, *pg.Node_VacuumStmt, *pg.Node_CheckPointStmt, *pg.Node_CommentStmt, *pg.Node_ConstraintsSetStmt:
		return false
	case *pg.Node_ExplainStmt:
		return changes(v.ExplainStmt.Query)
	}
	return true
}
