package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"isle"
	"isle/internal/audit"
)

//go:embed *.sql
var migrations embed.FS

// stepMark begins a line of a migration at which Go does what SQL cannot.
const stepMark = "-- step: "

// steps are those by name. They run in the migration's transaction.
func (s *Store) steps() map[string]func(context.Context) error {
	return map[string]func(context.Context) error{"fillHashes": s.fillHashes}
}

// migrate applies the numbered migrations that the file lacks, each in a
// transaction with its number.
func (s *Store) migrate(ctx context.Context) error {
	var have int
	if err := s.write.QueryRowContext(ctx, "PRAGMA user_version").Scan(&have); err != nil {
		return s.mapError("open", err)
	}
	names, err := fs.Glob(migrations, "*.sql")
	if err != nil {
		return isle.Errorf(isle.Internal, "migrations: %w", err)
	}
	slices.Sort(names)
	if have > len(names) {
		return isle.Errorf(isle.Invalid, "%s was written by a newer isle: its schema is version %d, this program knows up to %d", s.path, have, len(names)).
			WithHint("run the newer isle, or choose another state folder with --state")
	}
	for i, name := range names[have:] {
		b, err := migrations.ReadFile(name)
		if err != nil {
			return isle.Errorf(isle.Internal, "migrations: %w", err)
		}
		if err := s.apply(ctx, string(b), have+i+1); err != nil {
			_, _ = s.write.ExecContext(ctx, "ROLLBACK")
			return s.mapError("migrate to "+name, err)
		}
	}
	return nil
}

// apply runs one migration.
func (s *Store) apply(ctx context.Context, script string, version int) error {
	if _, err := s.write.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	steps := s.steps()
	for part := range strings.SplitSeq(script, "\n"+stepMark) {
		if name, rest, ok := strings.Cut(part, "\n"); ok && steps[name] != nil {
			if err := steps[name](ctx); err != nil {
				return err
			}
			part = rest
		}
		if _, err := s.write.ExecContext(ctx, part); err != nil {
			return err
		}
	}
	_, err := s.write.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d; COMMIT", version))
	return err
}

// fillHashes computes the tree over entries that were written without it. It
// takes their bytes as they are: a tree says what was there, not that it was
// right.
func (s *Store) fillHashes(ctx context.Context) error {
	var t audit.Tree
	for {
		rows, err := s.write.QueryContext(ctx, "SELECT seq, entry FROM audit WHERE seq >= ? ORDER BY seq LIMIT 1000", int64(t.Size()))
		if err != nil {
			return err
		}
		type row struct {
			seq    int64
			hashes []byte
			link   string
		}
		var page []row
		for rows.Next() {
			var r row
			var entry []byte
			if err = rows.Scan(&r.seq, &entry); err != nil {
				break
			}
			if r.seq != int64(t.Size()) {
				err = isle.Errorf(isle.Invalid, "audit entry %d is missing", t.Size()).WithHint("restore the state folder from a backup")
				break
			}
			var completed []tlog.Hash
			t, completed = t.Add(tlog.RecordHash(entry))
			r.hashes = join(completed)
			if e, err := audit.Decode(entry); err == nil {
				r.link = string(e.Link)
			}
			page = append(page, r)
		}
		if err == nil {
			err = rows.Err()
		}
		rows.Close()
		if err != nil {
			return err
		}
		for _, r := range page {
			if _, err := s.write.ExecContext(ctx, "UPDATE audit SET hashes = ?, link = ? WHERE seq = ?", r.hashes, r.link, r.seq); err != nil {
				return err
			}
		}
		if len(page) == 0 {
			return nil
		}
	}
}

func join(hashes []tlog.Hash) []byte {
	out := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, h := range hashes {
		out = append(out, h[:]...)
	}
	return out
}

// hashReader reads stored hashes of the tree through a connection.
type hashReader struct {
	ctx   context.Context // of the call that reads
	query func(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	doing func(error) error
}

// ReadHashes implements tlog.HashReader.
func (r hashReader) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i := 0; i < len(indexes); {
		level, n := tlog.SplitStoredHashIndex(indexes[i])
		// A run of hashes of one level is read in one go.
		k := 1
		for ; i+k < len(indexes); k++ {
			if l, m := tlog.SplitStoredHashIndex(indexes[i+k]); l != level || m != n+int64(k) {
				break
			}
		}
		if err := r.run(level, n, out[i:i+k]); err != nil {
			return nil, err
		}
		i += k
	}
	return out, nil
}

// run reads the hashes of a level from one on: hash n of level l stands with
// the last entry under it, (n+1)<<l - 1.
func (r hashReader) run(level int, n int64, out []tlog.Hash) error {
	const step = 16 // levels whose rows are far apart are asked for one by one
	first, got := (n+1)<<level-1, 0
	read := func(query string, args ...any) error {
		rows, err := r.query(r.ctx, query, args...)
		if err != nil {
			return r.doing(err)
		}
		defer rows.Close()
		for rows.Next() {
			var seq int64
			var b []byte
			if err := rows.Scan(&seq, &b); err != nil {
				return r.doing(err)
			}
			if (seq-first)&(1<<level-1) != 0 {
				continue
			}
			if got >= len(out) || seq != first+int64(got)<<level || len(b) < (level+1)*tlog.HashSize {
				return isle.Errorf(isle.Internal, "the audit log's tree has not the hashes that it must at entry %d", seq).WithHint("see `isle audit verify`")
			}
			out[got] = tlog.Hash(b[level*tlog.HashSize : (level+1)*tlog.HashSize])
			got++
		}
		return r.doing(rows.Err())
	}
	var err error
	if 1<<min(level, 30) <= step {
		err = read("SELECT seq, hashes FROM audit WHERE seq >= ? AND seq <= ? ORDER BY seq", first, first+int64(len(out)-1)<<level)
	} else {
		for i := 0; i < len(out) && err == nil; i++ {
			err = read("SELECT seq, hashes FROM audit WHERE seq = ?", first+int64(i)<<level)
		}
	}
	if err == nil && got < len(out) {
		err = isle.Errorf(isle.NotFound, "the audit log has no entry %d", first+int64(got)<<level)
	}
	return err
}
