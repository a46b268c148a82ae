package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"isle"
	"isle/internal/audit"
	"isle/internal/environment"
)

// Environments implements environment.Store.
func (s *Store) Environments(ctx context.Context) ([]environment.Environment, error) {
	return records[environment.Environment](ctx, s, "read environments", "SELECT record FROM environments ORDER BY created, instance")
}

// Volumes implements environment.Store.
func (s *Store) Volumes(ctx context.Context) ([]environment.Volume, error) {
	return records[environment.Volume](ctx, s, "read volumes", "SELECT record FROM volumes ORDER BY created, id")
}

// OpenIntents implements environment.Store.
func (s *Store) OpenIntents(ctx context.Context) ([]audit.Entry, error) {
	return s.entries(ctx, "SELECT entry FROM audit JOIN open_intents USING (seq) ORDER BY seq")
}

// Entries returns up to limit entries of the audit log from a sequence number
// on; there are no more if it returns fewer.
func (s *Store) Entries(ctx context.Context, from uint64, limit int) ([]audit.Entry, error) {
	return s.entries(ctx, "SELECT entry FROM audit WHERE seq >= ? ORDER BY seq LIMIT ?", int64(from), limit)
}

// Encoded is Entries as bytes: exactly those that were appended, which are the
// leaves of the Merkle tree.
func (s *Store) Encoded(ctx context.Context, from uint64, limit int) ([][]byte, error) {
	return s.blobs(ctx, "read the audit log", "SELECT entry FROM audit WHERE seq >= ? ORDER BY seq LIMIT ?", int64(from), limit)
}

// Next is the sequence number that the next entry will have.
func (s *Store) Next(ctx context.Context) (uint64, error) {
	var n uint64
	err := s.read.QueryRowContext(ctx, "SELECT coalesce(max(seq) + 1, 0) FROM audit").Scan(&n)
	return n, s.mapError("read the audit log", err)
}

// Port implements environment.Ports.
func (s *Store) Port(ctx context.Context, ref isle.Ref, service, name string) (int, error) {
	var port int
	err := s.read.QueryRowContext(ctx, "SELECT host FROM ports WHERE name = ? AND stage = ? AND service = ? AND port = ?", ref.Name, ref.Stage, service, name).Scan(&port)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return port, s.mapError("read ports", err)
}

func (s *Store) entries(ctx context.Context, query string, args ...any) ([]audit.Entry, error) {
	blobs, err := s.blobs(ctx, "read the audit log", query, args...)
	if err != nil {
		return nil, err
	}
	out := make([]audit.Entry, 0, len(blobs))
	for _, b := range blobs {
		e, err := audit.Decode(b)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

func records[T any](ctx context.Context, s *Store, doing, query string) ([]T, error) {
	blobs, err := s.blobs(ctx, doing, query)
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(blobs))
	for _, b := range blobs {
		var v T
		if err := json.Unmarshal(b, &v); err != nil {
			return nil, isle.Errorf(isle.Internal, "%s: %s: a record cannot be read: %w", s.path, doing, err)
		}
		out = append(out, v)
	}
	return out, nil
}

func (s *Store) blobs(ctx context.Context, doing, query string, args ...any) ([][]byte, error) {
	rows, err := s.read.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, s.mapError(doing, err)
	}
	defer rows.Close()
	var out [][]byte
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			return nil, s.mapError(doing, err)
		}
		out = append(out, b)
	}
	return out, s.mapError(doing, rows.Err())
}
