// Package ledgertest has a ledger.Store in memory, for the tests of rooms that
// keep ledgers. What a real store must do is in room store's storetest.
package ledgertest

import (
	"context"
	"slices"
	"strings"
	"sync"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
)

// A Memory is a ledger.Store in memory.
type Memory struct {
	mu      sync.Mutex // guards what follows
	records map[string][]ledger.Record
	entries []audit.Entry
	failing error
}

var _ ledger.Store = (*Memory)(nil)

// New returns an empty store.
func New() *Memory { return &Memory{records: map[string][]ledger.Record{}} }

// Ledger implements ledger.Store.
func (m *Memory) Ledger(_ context.Context, name string) (records []ledger.Record, last audit.Entry, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		if e.Bound != nil && e.Bound.Ledger == name {
			last = e
		}
	}
	return slices.Clone(m.records[name]), last, m.failing
}

// ChangeLedger implements ledger.Store.
func (m *Memory) ChangeLedger(ctx context.Context, c ledger.Change) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, last, err := m.Ledger(ctx, c.Ledger)
	if err != nil {
		return err
	}
	epoch := uint64(1)
	if last.Bound != nil {
		epoch = last.Bound.Epoch + 1
	}
	if b := c.Entries[len(c.Entries)-1].Bound; b == nil || b.Ledger != c.Ledger || b.Epoch != epoch {
		return isle.Errorf(isle.Conflict, "the %s ledger was changed meanwhile", c.Ledger)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	records := slices.DeleteFunc(slices.Clone(m.records[c.Ledger]), func(r ledger.Record) bool {
		return slices.Contains(c.Remove, r.Key) || slices.ContainsFunc(c.Put, func(p ledger.Record) bool { return p.Key == r.Key })
	})
	records = append(records, c.Put...)
	slices.SortFunc(records, func(a, b ledger.Record) int { return strings.Compare(a.Key, b.Key) })
	m.records[c.Ledger] = records
	m.entries = append(m.entries, c.Entries...)
	return nil
}

// Append takes entries that belong to no change.
func (m *Memory) Append(_ context.Context, entries ...audit.Entry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failing == nil {
		m.entries = append(m.entries, entries...)
	}
	return m.failing
}

// Entries are all that was written.
func (m *Memory) Entries() []audit.Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.entries)
}

// Fail has everything fail from now on; nil ends that.
func (m *Memory) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failing = err
}

// Edit replaces the records of a ledger behind the log's back.
func (m *Memory) Edit(name string, edit func([]ledger.Record) []ledger.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records[name] = edit(slices.Clone(m.records[name]))
}
