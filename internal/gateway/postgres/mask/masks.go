package mask

import (
	"context"
	"fmt"
	"sync"
	"time"

	"isle"
	"isle/internal/gateway"
	"isle/internal/policy"
)

// freshFor is how long a catalog is believed without asking the database
// whether it has changed. What changes through the gateway is asked for at once.
const freshFor = time.Second

// partlyFor is how long a catalog is believed in which some views are closed
// because they could not be read: each attempt waits for a lock.
const partlyFor = 30 * time.Second

// Config is what Masks are made of.
type Config struct {
	Connection policy.Connection
	Key        []byte           // of the connection's hashes (gateway.MaskKey)
	Parse      Parser           // reads the definitions of views
	Now        func() time.Time // default time.Now
}

// Masks are the masks of one connection. They may be used by many sessions at
// once.
type Masks struct {
	connection string
	key        []byte
	rules      []*rule
	detect     gateway.Detectors
	parse      Parser
	now        func() time.Time

	mu     sync.Mutex // guards what follows
	cat    *catalog
	plans  map[planKey]*Plan // of cat
	asked  time.Time         // when the database was asked last
	loaded time.Time         // when cat was
	stale  bool              // it has changed through the gateway
	seen   map[origin]*rule  // the columns that masks were on
}

// New checks the masks and detectors of a connection. The error's code is
// isle.Invalid. Nothing is read of the database until a session plans a
// statement. The masks of one connection are made once: they remember which
// columns were masked, so that one that is renamed stays masked.
func New(c Config) (*Masks, error) {
	m := &Masks{connection: c.Connection.Name, key: c.Key, parse: c.Parse, now: c.Now, seen: map[origin]*rule{}, plans: map[planKey]*Plan{}}
	if m.now == nil {
		m.now = time.Now
	}
	var err error
	if m.detect, err = gateway.NewDetectors(c.Connection.Detect); err != nil {
		return nil, err
	}
	for _, p := range c.Connection.Mask {
		r, err := newRule(p)
		if err != nil {
			return nil, err
		}
		m.rules = append(m.rules, r)
	}
	return m, nil
}

// None reports whether there is nothing to do: statements need no plan and
// results pass as they are.
func (m *Masks) None() bool { return len(m.rules) == 0 && !m.detect.Any() }

// Begin begins a client's session. query reads the catalog, in a session of its
// own with the same login role.
func (m *Masks) Begin(query Query) *Session {
	return &Session{masks: m, query: query, made: map[string]*table{}, prepared: map[string][]*Plan{}, portals: map[string][]*Plan{}}
}

// current returns the catalog. now asks the database whether it has changed
// even if it was asked a moment ago.
func (m *Masks) current(ctx context.Context, query Query, now bool) (*catalog, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cat != nil && !m.stale && !now && m.now().Sub(m.asked) < freshFor {
		return m.cat, nil
	}
	if m.cat != nil && m.cat.partial && m.now().Sub(m.loaded) >= partlyFor {
		m.cat = nil
	}
	asked := m.now()
	rows, err := query(ctx, sqlVersion)
	if err == nil && (len(rows) != 1 || len(rows[0]) != 1) {
		err = fmt.Errorf("%d rows", len(rows))
	}
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "whether the tables of %s have changed can't be asked, so nothing may be read that masks could be on: %w", m.connection, err)
	}
	if m.cat == nil || rows[0][0] != m.cat.version {
		cat, err := m.load(ctx, query, rows[0][0])
		if err != nil {
			return nil, err
		}
		m.cat, m.plans, m.loaded = cat, map[planKey]*Plan{}, asked
	}
	m.asked, m.stale = asked, false
	return m.cat, nil
}

func (m *Masks) changed() {
	m.mu.Lock()
	m.stale = true
	m.mu.Unlock()
}
