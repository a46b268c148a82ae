package sqlite

import (
	"context"
	"database/sql"
	"errors"

	"isle"
	"isle/internal/audit"
	"isle/internal/authority"
	"isle/internal/ledger"
)

var _ ledger.Store = (*Store)(nil)

// Ledger implements ledger.Store.
func (s *Store) Ledger(ctx context.Context, name string) ([]ledger.Record, audit.Entry, error) {
	return s.ledgerOf(ctx, s.read, name)
}

// ledgerOf reads a ledger and its last entry as one state of the file has them.
func (s *Store) ledgerOf(ctx context.Context, db *sql.DB, name string) (records []ledger.Record, last audit.Entry, err error) {
	doing := "read the " + name + " ledger"
	tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, last, s.mapError(doing, err)
	}
	defer tx.Rollback()
	if last, err = s.lastBound(ctx, tx, name); err != nil {
		return nil, last, err
	}
	rows, err := tx.QueryContext(ctx, "SELECT key, body FROM ledger WHERE ledger = ? ORDER BY key", name)
	if err != nil {
		return nil, last, s.mapError(doing, err)
	}
	defer rows.Close()
	for rows.Next() {
		var r ledger.Record
		if err := rows.Scan(&r.Key, &r.Body); err != nil {
			return nil, last, s.mapError(doing, err)
		}
		records = append(records, r)
	}
	return records, last, s.mapError(doing, rows.Err())
}

// lastBound is the last entry that is bound to a ledger; the zero one if none.
func (s *Store) lastBound(ctx context.Context, tx *sql.Tx, name string) (last audit.Entry, err error) {
	var b []byte
	err = tx.QueryRowContext(ctx, "SELECT entry FROM audit WHERE ledger = ? AND ledger <> '' ORDER BY epoch DESC LIMIT 1", name).Scan(&b)
	if errors.Is(err, sql.ErrNoRows) {
		return last, nil
	}
	if err != nil {
		return last, s.mapError("read the audit log", err)
	}
	return audit.Decode(b)
}

// ChangeLedger implements ledger.Store.
func (s *Store) ChangeLedger(ctx context.Context, c ledger.Change) error {
	last := len(c.Entries) - 1
	for i, e := range c.Entries {
		if bound := e.Bound != nil && e.Bound.Ledger == c.Ledger; bound != (i == last) {
			return isle.Errorf(isle.Internal, "a change of the %s ledger is bound to its last entry and to no other", c.Ledger)
		}
	}
	if last < 0 {
		return isle.Errorf(isle.Internal, "a change of the %s ledger has no audit entry", c.Ledger)
	}
	return s.run(ctx, "write the "+c.Ledger+" ledger", c.Entries, func(ctx context.Context, w *writer) error {
		for _, k := range c.Remove {
			if err := w.exec(ctx, "DELETE FROM ledger WHERE ledger = ? AND key = ?", c.Ledger, k); err != nil {
				return err
			}
		}
		for _, r := range c.Put {
			if err := w.exec(ctx, `INSERT INTO ledger (ledger, key, body) VALUES (?, ?, ?)
				ON CONFLICT (ledger, key) DO UPDATE SET body = excluded.body`, c.Ledger, r.Key, append([]byte{}, r.Body...)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Vouched checks everything in the file that the log vouches for, beside the
// log itself, and calls wrong for what is not as the log says.
func (r *Reader) Vouched(ctx context.Context, wrong func(error)) error {
	docs, epoch, last, err := r.s.policiesOf(ctx, r.db)
	if err != nil {
		return err
	}
	if err := authority.Check(docs, epoch, last); err != nil {
		wrong(err)
	}
	rows, err := r.db.QueryContext(ctx, "SELECT ledger FROM ledger UNION SELECT ledger FROM audit WHERE ledger <> ''")
	if err != nil {
		return r.s.mapError("list the ledgers", err)
	}
	var names []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			rows.Close()
			return r.s.mapError("list the ledgers", err)
		}
		names = append(names, name)
	}
	rows.Close()
	if err := rows.Err(); err != nil {
		return r.s.mapError("list the ledgers", err)
	}
	for _, name := range names {
		if name == authority.Ledger {
			continue // its documents have a table of their own
		}
		records, last, err := r.s.ledgerOf(ctx, r.db, name)
		if err != nil {
			return err
		}
		if err := ledger.Check(name, records, last); err != nil {
			wrong(err)
		}
	}
	return nil
}
