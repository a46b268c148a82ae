package sqlite

import (
	"context"
	"database/sql"

	"isle"
	"isle/internal/audit"
	"isle/internal/authority"
)

var _ authority.Store = (*Store)(nil)

// Policies implements authority.Store.
func (s *Store) Policies(ctx context.Context) (docs []authority.Stored, epoch uint64, last audit.Entry, err error) {
	return s.policiesOf(ctx, s.read)
}

// policiesOf reads the policy and its last entry as one state of the file has
// them.
func (s *Store) policiesOf(ctx context.Context, db *sql.DB) (docs []authority.Stored, epoch uint64, last audit.Entry, err error) {
	tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, 0, last, s.mapError("read the policy", err)
	}
	defer tx.Rollback()
	if last, err = s.lastBound(ctx, tx, authority.Ledger); err != nil {
		return nil, 0, last, err
	}
	rows, err := tx.QueryContext(ctx, `SELECT p.epoch, p.name, p.version, p.format, p.body, coalesce(a.entry, x'')
		FROM policies p LEFT JOIN audit a ON a.id = p.entry
		WHERE p.version = (SELECT max(version) FROM policies WHERE name = p.name) ORDER BY p.name`)
	if err != nil {
		return nil, 0, last, s.mapError("read the policy", err)
	}
	defer rows.Close()
	for rows.Next() {
		var d authority.Stored
		var at int64
		var entry []byte
		if err := rows.Scan(&at, &d.Name, &d.Version, &d.Format, &d.Body, &entry); err != nil {
			return nil, 0, last, s.mapError("read the policy", err)
		}
		if len(entry) > 0 {
			if d.Entry, err = audit.Decode(entry); err != nil {
				return nil, 0, last, err
			}
		}
		epoch = max(epoch, uint64(at))
		docs = append(docs, d)
	}
	return docs, epoch, last, s.mapError("read the policy", rows.Err())
}

// PutPolicy implements authority.Store.
func (s *Store) PutPolicy(ctx context.Context, d authority.Stored, epoch uint64) error {
	return s.run(ctx, "write the policy", []audit.Entry{d.Entry}, func(ctx context.Context, w *writer) error {
		err := w.exec(ctx, "INSERT INTO policies (epoch, name, version, format, body, entry) VALUES (?, ?, ?, ?, ?, ?)",
			int64(epoch), d.Name, d.Version, d.Format, d.Body, string(d.Entry.ID))
		if isConstraint(err) {
			return isle.Errorf(isle.Conflict, "the policy was changed by somebody else meanwhile").WithHint("look at it with `isle policy show`, then try again")
		}
		return err
	})
}
