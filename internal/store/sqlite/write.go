package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
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
	lazy    bool       // synced soon, not before the answer
	result  chan error // buffered
}

// A writer is the goroutine that alone writes. It knows the end of the audit
// log, so that appending reads nothing.
type writer struct {
	s     *Store
	tree  audit.Tree // over the entries, the next one's sequence is its size
	last  int64      // Unix microseconds of the last entry
	stmts map[string]*sql.Stmt

	full    bool        // the connection syncs each commit
	unsaved *time.Timer // runs out when what was not synced has to be; nil: all is
}

func newWriter(s *Store) (*writer, error) {
	w := &writer{s: s, stmts: map[string]*sql.Stmt{}, full: true}
	if err := w.findEnd(); err != nil {
		return nil, err
	}
	// A process that was killed may have left what was not synced yet.
	return w, w.sync()
}

// findEnd reads where the audit log ends.
func (w *writer) findEnd() error {
	ctx := context.Background()
	var size uint64
	w.tree, w.last = audit.Tree{}, 0
	err := w.s.write.QueryRowContext(ctx, "SELECT seq + 1, time FROM audit ORDER BY seq DESC LIMIT 1").Scan(&size, &w.last)
	if err == nil {
		w.tree, err = audit.NewTree(size, hashReader{ctx, w.s.write.QueryContext, func(err error) error { return err }})
	}
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
	answered := 0 // by the last transaction
	for {
		w.letThemCome(answered)
		answered = 0
		var first *op
		select {
		case first = <-w.s.ops:
		default:
			var due <-chan time.Time
			if w.unsaved != nil {
				due = w.unsaved.C
			}
			select {
			case first = <-w.s.ops:
			case <-due:
				w.saveNow()
				continue
			case <-w.s.quit:
				w.refuse()
				if w.unsaved != nil {
					w.saveNow()
				}
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
		answered = len(batch)
	}
}

// letThemCome lets callers that were just answered run, because who appends in
// a row comes again at once. Otherwise the next transaction begins with those
// alone that waited meanwhile, and ever after two halves take turns, each with
// an fsync of its own. It waits for nobody: it gives the processor away for as
// long as more come. A caller alone does not pay for it.
func (w *writer) letThemCome(answered int) {
	if answered < 2 && len(w.s.ops) == 0 {
		return
	}
	all := min(len(w.s.ops)+answered, maxBatch)
	for idle, had := 0, len(w.s.ops); idle < maxIdle && had < all; idle++ {
		runtime.Gosched()
		if has := len(w.s.ops); has > had {
			idle, had = -1, has
		}
	}
}

// maxIdle is how often the processor is given away for nothing before the
// others are taken to have left.
const maxIdle = 4

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
// transaction is durable; one of lazy ops alone once it is written.
func (w *writer) commit(batch []*op) {
	ctx := context.Background() // a caller that leaves must not undo the others' work
	results := make([]error, len(batch))
	lazy := !slices.ContainsFunc(batch, func(o *op) bool { return !o.lazy })
	// Most batches go through whole, so they are tried without a savepoint for
	// each op; where one op fails, all is undone and done again with them.
	again, durable, err := w.attempt(ctx, batch, results, lazy, false)
	if again {
		_, durable, err = w.attempt(ctx, batch, results, lazy, true)
	}
	switch {
	case err != nil:
	case lazy && w.unsaved == nil:
		w.unsaved = time.NewTimer(syncWithin)
	case !lazy:
		w.saved(durable)
	}
	w.s.note(err)
	for i, o := range batch {
		if err != nil {
			o.result <- w.s.mapError(o.doing, err)
			continue
		}
		o.result <- w.s.mapError(o.doing, results[i])
	}
}

// attempt does a batch in one transaction. It says to do it again where an op
// failed and there was no savepoint to go back to. durable is to be called once
// the commit is; it is not nil where the commit syncs.
func (w *writer) attempt(ctx context.Context, batch []*op, results []error, lazy, savepoints bool) (again bool, durable func(), err error) {
	err = w.begin(ctx, !lazy)
	for i := 0; i < len(batch) && err == nil && !again; i++ {
		if results[i] = batch[i].ctx.Err(); results[i] != nil {
			continue // it left before anything was done
		}
		if savepoints {
			results[i], err = w.one(ctx, batch[i])
		} else {
			results[i] = w.bare(ctx, batch[i])
			again = results[i] != nil
		}
	}
	if err == nil && !again {
		if !lazy {
			durable = w.s.commits(w.tree.Head()) // works while the disk does
		}
		err = w.exec(ctx, "COMMIT")
	}
	if err != nil || again {
		// SQLite may have rolled back by itself; then this one fails, rightly.
		_ = w.exec(ctx, "ROLLBACK")
		if end := w.findEnd(); end != nil {
			err, again = errors.Join(err, end), false
		}
	}
	return again, durable, err
}

// bare does one op.
func (w *writer) bare(ctx context.Context, o *op) error {
	if err := o.do(ctx, w); err != nil {
		return err
	}
	return w.append(ctx, o.entries)
}

// syncWithin is how long what is appended lazily may stay unsynced.
const syncWithin = 80 * time.Millisecond

// begin begins a transaction whose commit syncs, or does not. In write-ahead
// mode a commit that syncs makes those before it durable too.
func (w *writer) begin(ctx context.Context, full bool) error {
	if full != w.full {
		mode := "PRAGMA synchronous = NORMAL"
		if full {
			mode = "PRAGMA synchronous = FULL"
		}
		if err := w.exec(ctx, mode); err != nil {
			return err
		}
		w.full = full
	}
	return w.exec(ctx, "BEGIN IMMEDIATE")
}

// sync makes durable whatever is written: it syncs the write-ahead log, which
// SQLite keeps for as long as the file is open. Where there is none all is in
// the file, which SQLite synced.
func (w *writer) sync() error {
	f, err := os.OpenFile(w.s.path+"-wal", os.O_RDWR, 0)
	if err == nil {
		err = errors.Join(unix.Fdatasync(int(f.Fd())), f.Close())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return isle.Errorf(isle.Unavailable, "%s: cannot sync the audit log: %w", w.s.path, err)
	}
	w.saved(w.s.commits(w.tree.Head()))
	return nil
}

// saveNow syncs what was appended lazily, and tries again later if it cannot.
func (w *writer) saveNow() {
	err := w.sync()
	w.s.note(err)
	if err != nil {
		w.unsaved = time.NewTimer(syncWithin)
	}
}

// saved says that all that is written is durable.
func (w *writer) saved(durable func()) {
	if w.unsaved != nil {
		w.unsaved.Stop()
		w.unsaved = nil
	}
	h := w.tree.Head()
	w.s.head.Store(&h)
	durable()
}

// one does one op in a savepoint. The first result is the op's own failure,
// the second one that ends the whole transaction.
func (w *writer) one(ctx context.Context, o *op) (own, whole error) {
	if err := w.exec(ctx, "SAVEPOINT op"); err != nil {
		return nil, err
	}
	tree, last := w.tree, w.last
	if own = w.bare(ctx, o); own == nil {
		return nil, w.exec(ctx, "RELEASE op")
	}
	w.tree, w.last = tree, last
	if err := w.exec(ctx, "ROLLBACK TO op"); err != nil {
		return nil, errors.Join(own, err)
	}
	return own, w.exec(ctx, "RELEASE op")
}

// append numbers, dates, encodes and writes entries.
func (w *writer) append(ctx context.Context, entries []audit.Entry) error {
	for _, e := range entries {
		e.Sequence = w.tree.Size()
		e.Time = time.UnixMicro(max(w.last, w.s.now().UnixMicro())).UTC()
		b, err := e.Encode()
		if err != nil {
			return err
		}
		tree, completed := w.tree.Add(tlog.RecordHash(b))
		var bound audit.Bound
		if e.Bound != nil {
			bound = *e.Bound
		}
		err = w.exec(ctx, "INSERT INTO audit (seq, time, id, entry, hashes, link, ledger, epoch) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
			int64(e.Sequence), e.Time.UnixMicro(), string(e.ID), b, join(completed), string(e.Link), bound.Ledger, int64(bound.Epoch))
		if isConstraint(err) && bound.Ledger != "" {
			return isle.Errorf(isle.Conflict, "the %s ledger was changed by somebody else meanwhile: change %d is not the next one", bound.Ledger, bound.Epoch).WithHint("look at what is there now, then try again")
		}
		if err != nil {
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
		w.tree, w.last = tree, e.Time.UnixMicro()
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
	return s.wait(&op{ctx: ctx, doing: doing, do: do, entries: entries, result: make(chan error, 1)})
}

func (s *Store) wait(o *op) error {
	ctx := o.ctx
	o.entries = audit.Explained(ctx, o.entries)
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
		name := e.Ref
		if e.Staged { // a name that nothing has: another one serves under its own
			name.Name += "/" + string(e.Instance)
		}
		r, err := encode(e.Instance, name, e.Created, e)
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
	return s.run(ctx, appending, entries, func(context.Context, *writer) error { return nil })
}

const appending = "append to the audit log"

// AppendSoon appends entries of what changes nothing. They are written when it
// returns, and synced within 100 ms or with the next Append: a process that is
// killed keeps them, a machine that loses power within that time may not.
func (s *Store) AppendSoon(ctx context.Context, entries ...audit.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	return s.wait(&op{
		ctx: ctx, doing: appending, entries: entries, lazy: true, result: make(chan error, 1),
		do: func(context.Context, *writer) error { return nil },
	})
}

// Head is that of the entries that are durable. Checkpoints are made of it and
// of nothing later: what they cover is never lost.
func (s *Store) Head() audit.Head { return *s.head.Load() }

// Failure is why the last transaction failed, nil if it went well.
func (s *Store) Failure() error {
	if err := s.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// note remembers how the last transaction went.
func (s *Store) note(err error) {
	if err == nil {
		s.failure.Store(nil)
		return
	}
	err = s.mapError("write", err)
	s.failure.Store(&err)
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
