package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"sort"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"isle"
	"isle/internal/audit"
)

// Hashes reads the hashes of the audit log's tree.
func (s *Store) Hashes(ctx context.Context) tlog.HashReader {
	return hashReader{ctx, s.read.QueryContext, func(err error) error { return s.mapError("read the audit log", err) }}
}

// ByID returns the sequence number of the entry of an ID, and those of the
// entries that link to it. It fails with NotFound if there is none.
func (s *Store) ByID(ctx context.Context, id isle.ID) (sequence uint64, links []uint64, err error) {
	err = s.read.QueryRowContext(ctx, "SELECT seq FROM audit WHERE id = ?", string(id)).Scan(&sequence)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil, isle.Errorf(isle.NotFound, "the audit log has no entry %s", id)
	}
	if err != nil {
		return 0, nil, s.mapError("read the audit log", err)
	}
	rows, err := s.read.QueryContext(ctx, "SELECT seq FROM audit WHERE link = ? AND link <> '' ORDER BY seq LIMIT 100", string(id))
	if err != nil {
		return 0, nil, s.mapError("read the audit log", err)
	}
	defer rows.Close()
	for rows.Next() {
		var n uint64
		if err := rows.Scan(&n); err != nil {
			return 0, nil, s.mapError("read the audit log", err)
		}
		links = append(links, n)
	}
	return sequence, links, s.mapError("read the audit log", rows.Err())
}

// FirstSince is the sequence number of the first entry that is not from before
// t; that of the next one where all are. Time never goes back, so it halves.
func (s *Store) FirstSince(ctx context.Context, t time.Time) (uint64, error) {
	next, err := s.Next(ctx)
	if err != nil {
		return 0, err
	}
	at := sort.Search(int(next), func(i int) bool {
		var micros int64
		if err == nil {
			err = s.read.QueryRowContext(ctx, "SELECT time FROM audit WHERE seq = ?", i).Scan(&micros)
		}
		return micros >= t.UnixMicro()
	})
	return uint64(at), s.mapError("read the audit log", err)
}

// readable is the first version of the schema that a Reader reads.
const readable = 4

// A Reader reads the audit log of a file that a server may have open, or that
// lies somewhere, without changing anything of it.
type Reader struct {
	s  Store // path and read only
	db *sql.DB
}

// OpenReader opens the file of a store to read its log. It fails with NotFound
// if there is none.
func OpenReader(path string) (*Reader, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, isle.Errorf(isle.NotFound, "there is no log: %s does not exist", path).WithHint("name the state folder with --state")
	}
	q := url.Values{"mode": {"ro"}, "_pragma": {"busy_timeout(10000)", "query_only(1)"}}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?"+q.Encode())
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "cannot open %s: %w", path, err)
	}
	r := &Reader{db: db}
	r.s.path = path
	var have int
	if err := db.QueryRow("PRAGMA user_version").Scan(&have); err != nil {
		db.Close()
		return nil, r.s.mapError("open", err)
	}
	if have < readable {
		db.Close()
		return nil, isle.Errorf(isle.Invalid, "%s was written by an older isle", path).WithHint("start this server on it once")
	}
	return r, nil
}

// Close closes the file.
func (r *Reader) Close() error { return r.db.Close() }

// Next is one more than the last entry's sequence number.
func (r *Reader) Next(ctx context.Context) (n uint64, err error) {
	err = r.db.QueryRowContext(ctx, "SELECT coalesce(max(seq) + 1, 0) FROM audit").Scan(&n)
	return n, r.s.mapError("read the audit log", err)
}

// Rows returns the entries [from, to), as one state of the file has them.
func (r *Reader) Rows(ctx context.Context, from, to uint64) iter.Seq2[audit.Row, error] {
	return func(yield func(audit.Row, error) bool) {
		rows, err := r.db.QueryContext(ctx, "SELECT seq, time, id, link, ledger, epoch, entry, hashes FROM audit WHERE seq >= ? AND seq < ? ORDER BY seq", int64(from), int64(min(to, 1<<62)))
		if err != nil {
			yield(audit.Row{}, r.s.mapError("read the audit log", err))
			return
		}
		defer rows.Close()
		for rows.Next() {
			var row audit.Row
			if err := rows.Scan(&row.Sequence, &row.Time, &row.ID, &row.Link, &row.Ledger, &row.Epoch, &row.Entry, &row.Hashes); err != nil {
				yield(audit.Row{}, r.s.mapError("read the audit log", err))
				return
			}
			if !yield(row, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(audit.Row{}, r.s.mapError("read the audit log", err))
		}
	}
}

// Hashes reads the hashes of the log's tree.
func (r *Reader) Hashes(ctx context.Context) tlog.HashReader {
	return hashReader{ctx, r.db.QueryContext, func(err error) error { return r.s.mapError("read the audit log", err) }}
}
