// Package sqlite keeps the state of one server in one SQLite file.
//
// A Store is environment.Store and environment.Ports. One process at a time
// owns the file (it holds a lock on FILE.lock). One goroutine writes: callers
// that come together share a transaction, and so one fsync, in which each has
// a savepoint of its own. Readers have connections of their own (write-ahead
// log). The audit log is numbered from 0 without gaps, its time never goes
// back, its bytes are kept as they were appended, and triggers refuse to
// change them. The hashes of its Merkle tree stand beside the entries, in the
// same rows, so that the tree is always that of the entries.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"

	"isle"
	"isle/internal/audit"
	"isle/internal/environment"
)

// Config configures a Store.
type Config struct {
	Now environment.Clock // nil: time.Now
	// Commits is told of each head of the audit log that is about to be durable,
	// and returns at once what to call when it is: before whoever appended the
	// last of its entries is answered. One goroutine calls both; what they do
	// must be quick and must not call the store. nil: nobody is told.
	Commits func(audit.Head) (durable func())
}

// A Store keeps the state. Its methods may be called from any goroutine.
type Store struct {
	path string
	now  environment.Clock

	commits func(audit.Head) (durable func())
	lock    *os.File
	write   *sql.Conn // used by the writer goroutine alone
	wdb     *sql.DB
	read    *sql.DB

	ops  chan *op
	quit chan struct{} // closed by Close
	done chan struct{} // closed when the writer has ended
	once sync.Once

	head    atomic.Pointer[audit.Head] // of the entries that are durable
	failure atomic.Pointer[error]      // of the last transaction; nil if it went well
}

var (
	_ environment.Store = (*Store)(nil)
	_ environment.Ports = (*Store)(nil)
)

// Open opens the file, making it and bringing its schema up to date. It fails
// with Conflict if another process has it, and with Invalid if a newer program
// wrote it.
func Open(path string, cfg Config) (*Store, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	lock, err := acquire(path)
	if err != nil {
		return nil, err
	}
	if cfg.Commits == nil {
		cfg.Commits = func(audit.Head) func() { return func() {} }
	}
	s := &Store{path: path, now: cfg.Now, commits: cfg.Commits, lock: lock, ops: make(chan *op, maxBatch), quit: make(chan struct{}), done: make(chan struct{})}
	if err := s.open(); err != nil {
		s.closeFiles()
		return nil, err
	}
	w, err := newWriter(s)
	if err != nil {
		s.closeFiles()
		return nil, err
	}
	go w.loop()
	return s, nil
}

// acquire takes the lock that makes this process the file's only user.
func acquire(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, isle.Errorf(isle.Unavailable, "state folder: %w", err)
	}
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "state folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid := make([]byte, 16)
		n, _ := f.ReadAt(pid, 0)
		f.Close()
		who := "another process"
		if p, err := strconv.Atoi(strings.TrimSpace(string(pid[:n]))); err == nil {
			who = "process " + strconv.Itoa(p)
		}
		return nil, isle.Errorf(isle.Conflict, "state folder %s is in use by %s", filepath.Dir(path), who).
			WithHint("a state folder has one server; stop that one, or choose another folder with --state")
	}
	if err := f.Truncate(0); err == nil {
		f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0) // for the message above only
	}
	return f, nil
}

func (s *Store) open() error {
	// recursive_triggers makes REPLACE fire the triggers that refuse DELETE.
	dsn := func(extra ...string) string {
		q := url.Values{"_pragma": append([]string{"busy_timeout(10000)", "recursive_triggers(1)"}, extra...), "_txlock": {"immediate"}}
		return "file:" + (&url.URL{Path: s.path}).EscapedPath() + "?" + q.Encode()
	}
	var err error
	if s.wdb, err = sql.Open("sqlite", dsn("journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)")); err != nil {
		return s.mapError("open", err)
	}
	ctx := context.Background()
	if s.write, err = s.wdb.Conn(ctx); err != nil {
		return s.mapError("open", err)
	}
	if err := os.Chmod(s.path, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s.mapError("open", err)
	}
	if err := s.migrate(ctx); err != nil {
		return err
	}
	if s.read, err = sql.Open("sqlite", dsn("query_only(1)")); err != nil {
		return s.mapError("open", err)
	}
	s.read.SetMaxOpenConns(4)
	return nil
}

// Close waits for what was begun, then gives the file free.
func (s *Store) Close() error {
	s.once.Do(func() {
		close(s.quit)
		<-s.done
		s.closeFiles()
	})
	return nil
}

func (s *Store) closeFiles() {
	if s.read != nil {
		s.read.Close()
	}
	if s.write != nil {
		s.write.Close()
	}
	if s.wdb != nil {
		s.wdb.Close()
	}
	s.lock.Close() // and with it the lock
}

// SQLite's primary result codes, https://sqlite.org/rescode.html.
const (
	codeFull       = 13
	codeIOErr      = 10
	codeReadOnly   = 8
	codeCantOpen   = 14
	codeCorrupt    = 11
	codeNotADB     = 26
	codeConstraint = 19
)

// mapError says what a failure of the database means to a person.
func (s *Store) mapError(doing string, err error) error {
	var se *sqlite.Error
	var ie *isle.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ie) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, unix.ENOSPC) || errors.As(err, &se) && se.Code()&0xff == codeFull:
		return isle.Errorf(isle.Exhausted, "%s: %s: no space left in the state folder: %w", s.path, doing, err).
			WithHint("free space on the file system of %s, then try again; isle gc frees what nothing names", filepath.Dir(s.path))
	case se == nil:
		return isle.Errorf(isle.Internal, "%s: %s: %w", s.path, doing, err)
	}
	switch se.Code() & 0xff {
	case codeIOErr, codeReadOnly, codeCantOpen:
		return isle.Errorf(isle.Unavailable, "%s: %s: %w", s.path, doing, err).
			WithHint("see that the file system of %s is whole, writable and not full", filepath.Dir(s.path))
	case codeCorrupt, codeNotADB:
		return isle.Errorf(isle.Unavailable, "%s: %s: the file is damaged: %w", s.path, doing, err).
			WithHint("restore it from a backup, or start with another state folder")
	}
	return isle.Errorf(isle.Internal, "%s: %s: %w", s.path, doing, err)
}
