package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"modernc.org/sqlite"

	"isle"
	"isle/internal/audit"
	"isle/internal/environment"
)

// maxBatch bounds how many callers share one transaction.
const maxBatch = 256

// An op is one caller's wish and where its answer goes.
type op struct {
	ctx     context.Context
	doing   string
	do      func(ctx context.Context, w *writer) error
	entries []audit.Entry
	result  chan error // buffered
}

// A writer is the goroutine that alone writes. It knows the end of the audit
// log, so that appending reads nothing.
type writer struct {
	s     *Store
	next  uint64 // sequence of the next entry
	last  int64  // Unix microseconds of the last entry
	stmts map[string]*sql.Stmt
}

func newWriter(s *Store) (*writer, error) {
	w := &writer{s: s, stmts: map[string]*sql.Stmt{}}
	return w, w.findEnd()
}

// findEnd reads where the audit log ends.
func (w *writer) findEnd() error {
	w.next, w.last = 0, 0
	err := w.s.write.QueryRowContext(context.Background(), "SELECT seq + 1, time FROM audit ORDER BY seq DESC LIMIT 1").Scan(&w.next, &w.last)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return w.s.mapError("read the audit log's end", err)
}

// loop runs until Close, and then until nothing waits.
func (w *writer) loop() {
	defer close(w.s.done)
	defer func() {
		for _, st := range w.stmts {
			st.Close() // an open statement would keep the file open
		}
	}()
	for {
		var first *op
		select {
		case first = <-w.s.ops:
		default:
			select {
			case first = <-w.s.ops:
			case <-w.s.quit:
				w.refuse()
				return
			}
		}
		batch := []*op{first}
	collect:
		for len(batch) < maxBatch {
			select {
			case o := <-w.s.ops:
				batch = append(batch, o)
			default:
				break collect
			}
		}
		w.commit(batch)
	}
}

// refuse answers what came too late.
func (w *writer) refuse() {
	for {
		select {
		case o := <-w.s.ops:
			o.result <- errClosed()
		default:
			return
		}
	}
}

func errClosed() error { return isle.Errorf(isle.Unavailable, "the store is closed") }

// commit does a batch in one transaction and answers each caller once the
// transaction is durable.
func (w *writer) commit(batch []*op) {
	ctx := context.Background() // a caller that leaves must not undo the others' work
	results := make([]error, len(batch))
	err := w.exec(ctx, "BEGIN IMMEDIATE")
	if err == nil {
		for i, o := range batch {
			if results[i], err = w.one(ctx, o); err != nil {
				break
			}
		}
		if err == nil {
			err = w.exec(ctx, "COMMIT")
		}
		if err != nil {
			// SQLite may have rolled back by itself; then this one fails, rightly.
			_ = w.exec(ctx, "ROLLBACK")
			if end := w.findEnd(); end != nil {
				err = errors.Join(err, end)
			}
		}
	}
	for i, o := range batch {
		if err != nil {
			o.result <- w.s.mapError(o.doing, err)
			continue
		}
		o.result <- w.s.mapError(o.doing, results[i])
	}
}

// one does one op in a savepoint. The first result is the op's own failure,
// the second one that ends the whole transaction.
func (w *writer) one(ctx context.Context, o *op) (own, whole error) {
	if err := o.ctx.Err(); err != nil {
		return err, nil // it left before anything was done
	}
	if err := w.exec(ctx, "SAVEPOINT op"); err != nil {
		return nil, err
	}
	next, last := w.next, w.last
	own = o.do(ctx, w)
	if own == nil {
		own = w.append(ctx, o.entries)
	}
	if own == nil {
		return nil, w.exec(ctx, "RELEASE op")
	}
	w.next, w.last = next, last
	if err := w.exec(ctx, "ROLLBACK TO op"); err != nil {
		return nil, errors.Join(own, err)
	}
	return own, w.exec(ctx, "RELEASE op")
}

// append numbers, dates, encodes and writes entries.
func (w *writer) append(ctx context.Context, entries []audit.Entry) error {
	for _, e := range entries {
		e.Sequence = w.next
		e.Time = time.UnixMicro(max(w.last, w.s.now().UnixMicro())).UTC()
		b, err := e.Encode()
		if err != nil {
			return err
		}
		if err := w.exec(ctx, "INSERT INTO audit (seq, time, id, entry) VALUES (?, ?, ?, ?)", int64(e.Sequence), e.Time.UnixMicro(), string(e.ID), b); err != nil {
			return err
		}
		switch e.Kind {
		case audit.Intent:
			err = w.exec(ctx, "INSERT INTO open_intents (id, seq) VALUES (?, ?)", string(e.ID), int64(e.Sequence))
		case audit.Outcome:
			err = w.exec(ctx, "DELETE FROM open_intents WHERE id = ?", string(e.Link))
		}
		if err != nil {
			return err
		}
		w.next, w.last = e.Sequence+1, e.Time.UnixMicro()
	}
	return nil
}

// exec runs one of the package's fixed statements, prepared once.
func (w *writer) exec(ctx context.Context, query string, args ...any) error {
	st := w.stmts[query]
	if st == nil {
		var err error
		if st, err = w.s.write.PrepareContext(ctx, query); err != nil {
			return err
		}
		w.stmts[query] = st
	}
	_, err := st.ExecContext(ctx, args...)
	return err
}

// run hands an op to the writer and waits for its end. Once begun it is
// waited for, so that the answer is always the truth.
func (s *Store) run(ctx context.Context, doing string, entries []audit.Entry, do func(context.Context, *writer) error) error {
	o := &op{ctx: ctx, doing: doing, do: do, entries: entries, result: make(chan error, 1)}
	select {
	case s.ops <- o:
	case <-s.quit:
		return errClosed()
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-o.result:
		return err
	case <-s.done:
		select { // it may have been answered last of all
		case err := <-o.result:
			return err
		default:
			return errClosed()
		}
	}
}

// Update implements environment.Store.
func (s *Store) Update(ctx context.Context, c environment.Mutation) error {
	type row struct {
		id, name, stage string
		created         int64
		record          []byte
	}
	encode := func(id isle.ID, ref isle.Ref, created time.Time, v any) (row, error) {
		b, err := json.Marshal(v)
		return row{string(id), ref.Name, ref.Stage, created.UnixMicro(), b}, err
	}
	var envs, vols []row
	for _, e := range c.PutEnvironments {
		r, err := encode(e.Instance, e.Ref, e.Created, e)
		if err != nil {
			return isle.Errorf(isle.Internal, "environment %s: %w", e.Ref, err)
		}
		envs = append(envs, r)
	}
	for _, v := range c.PutVolumes {
		r, err := encode(v.ID, v.Ref, v.Created, v)
		if err != nil {
			return isle.Errorf(isle.Internal, "volume %s: %w", v.ID, err)
		}
		vols = append(vols, r)
	}
	return s.run(ctx, "write", c.Entries, func(ctx context.Context, w *writer) error {
		for _, id := range c.RemoveEnvironments {
			if err := w.exec(ctx, "DELETE FROM environments WHERE instance = ?", string(id)); err != nil {
				return err
			}
		}
		for _, r := range envs {
			err := w.exec(ctx, `INSERT INTO environments (instance, name, stage, created, record) VALUES (?, ?, ?, ?, ?)
				ON CONFLICT (instance) DO UPDATE SET name = excluded.name, stage = excluded.stage, record = excluded.record`,
				r.id, r.name, r.stage, r.created, r.record)
			if isConstraint(err) {
				return isle.Errorf(isle.Conflict, "another environment is named %s", isle.Ref{Name: r.name, Stage: r.stage})
			}
			if err != nil {
				return err
			}
		}
		for _, id := range c.RemoveVolumes {
			if err := w.exec(ctx, "DELETE FROM volumes WHERE id = ?", string(id)); err != nil {
				return err
			}
		}
		for _, r := range vols {
			err := w.exec(ctx, `INSERT INTO volumes (id, name, stage, created, record) VALUES (?, ?, ?, ?, ?)
				ON CONFLICT (id) DO UPDATE SET name = excluded.name, stage = excluded.stage, record = excluded.record`,
				r.id, r.name, r.stage, r.created, r.record)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// Append implements environment.Store.
func (s *Store) Append(ctx context.Context, entries ...audit.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	return s.run(ctx, "append to the audit log", entries, func(context.Context, *writer) error { return nil })
}

// SetPort implements environment.Ports.
func (s *Store) SetPort(ctx context.Context, ref isle.Ref, service, name string, port int) error {
	return s.run(ctx, "remember a port", nil, func(ctx context.Context, w *writer) error {
		err := w.exec(ctx, `INSERT INTO ports (name, stage, service, port, host) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (name, stage, service, port) DO UPDATE SET host = excluded.host`, ref.Name, ref.Stage, service, name, port)
		if isConstraint(err) {
			return isle.Errorf(isle.Conflict, "port %d of 127.0.0.1 is kept for another environment's published port", port)
		}
		return err
	})
}

// ForgetPorts implements environment.Ports.
func (s *Store) ForgetPorts(ctx context.Context, ref isle.Ref) error {
	return s.run(ctx, "forget ports", nil, func(ctx context.Context, w *writer) error {
		return w.exec(ctx, "DELETE FROM ports WHERE name = ? AND stage = ?", ref.Name, ref.Stage)
	})
}

func isConstraint(err error) bool {
	var se *sqlite.Error
	return errors.As(err, &se) && se.Code()&0xff == codeConstraint
}
