package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"isle"
	"isle/internal/api"
	"isle/internal/audit"
	"isle/internal/ledger"
	"isle/internal/store/sqlite"
)

// DefaultCheckpoints is the folder that holds, for each state folder, the last
// checkpoint of its audit log.
const DefaultCheckpoints = "/var/lib/isle-checkpoints"

// keyFile is the log's key, in the state folder.
const keyFile = "audit.key"

// KeyPath is where the key of a state folder's audit log is.
func KeyPath(state string) string { return filepath.Join(state, keyFile) }

// LogPath is where the audit log of a state folder is.
func LogPath(state string) string { return filepath.Join(state, "isle.db") }

// KeptPath is where the last checkpoint of a state folder's audit log is kept,
// below the folder of checkpoints ("" for the default one).
func KeptPath(checkpoints, state string) string {
	if checkpoints == "" {
		checkpoints = DefaultCheckpoints
	}
	return keptFor(checkpoints, state)
}

// keptFor is the file of a state folder in a folder for all of them.
func keptFor(folder, state string) string {
	if abs, err := filepath.Abs(state); err == nil {
		state = abs
	}
	sum := sha256.Sum256([]byte(state))
	return filepath.Join(folder, filepath.Base(state)+"-"+hex.EncodeToString(sum[:6]))
}

// A logbook is the audit log's store with what stands around it: the key, and
// the checkpoint that is kept outside the state folder.
type logbook struct {
	store  *sqlite.Store
	signer *audit.Signer
	keep   *audit.Keep
}

// openLogbook opens the state's records and audit log. It refuses a log that does
// not go on from the checkpoint that is kept outside, unless the operator
// accepts that; then it records it.
func openLogbook(cfg Config) (b *logbook, err error) {
	b = &logbook{}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	path := KeptPath(cfg.Checkpoints, cfg.State)
	keep, kept, err := audit.OpenKeep(path)
	if err != nil && cfg.AcceptRollback && isle.CodeOf(err) == isle.Invalid {
		keep, kept, err = audit.OpenKeepAnew(path)
	}
	if err != nil {
		return b, err
	}
	b.keep = keep
	if b.store, err = sqlite.Open(LogPath(cfg.State), sqlite.Config{Now: cfg.Now, Commits: keep.Prepare}); err != nil {
		return b, err
	}
	head := b.store.Head()
	// A state that was made just now is not one that was put back: no earlier
	// credential comes to life in it. That another stood here is recorded. One
	// that has images or volumes and no log was not: its log was taken away.
	accept := cfg.AcceptRollback || head.Size == 0 && missing(KeyPath(cfg.State)) && bare(cfg.State)
	var broken error
	if kept != nil {
		broken = audit.GoesOn(*kept, head, b.store.Hashes(context.Background()))
	}
	if broken != nil && !accept {
		flat := api.Flatten(broken)
		return b, isle.Errorf(isle.Untrusted, "the state folder %s is not what it was: %s", cfg.State, flat.Message).
			WithHint("if you put it back from a backup, accept that with `isle server --accept-rollback --state %s`; if not, see `isle audit verify --state %s`", cfg.State, cfg.State)
	}
	if b.signer, err = audit.OpenSigner(KeyPath(cfg.State), kept == nil || accept); err != nil {
		return b, err
	}
	if kept != nil && broken == nil {
		if _, err := audit.ParseCheckpoint(kept.Note, b.signer.Key()); err != nil {
			if broken = err; !accept {
				return b, isle.Errorf(isle.Untrusted, "the audit log of %s has another key than it had: %w", cfg.State, err).
					WithHint("put %s back from a backup, or accept the new key with `isle server --accept-rollback --state %s`", KeyPath(cfg.State), cfg.State)
			}
		}
	}
	keep.Arm(b.signer)
	if broken != nil {
		return b, b.accepted(*kept, head, broken)
	}
	keep.Put(head)
	return b, nil
}

// bare says whether a state folder has nothing yet but files: every folder in it
// is made after the log.
func bare(state string) bool {
	list, err := os.ReadDir(state)
	return err == nil && !slices.ContainsFunc(list, os.DirEntry.IsDir)
}

func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// accepted records that a log is begun, or taken by the operator, that does not
// go on from the kept checkpoint.
func (b *logbook) accepted(kept audit.Checkpoint, head audit.Head, why error) error {
	e := audit.NewEvent(isle.Actor{Kind: isle.System, Name: "server"}, isle.ActionAuditAccept, isle.Resource{Kind: "audit", Name: "log"}, isle.Allow, why.Error()).
		With("kept_size", strconv.FormatUint(kept.Size, 10)).With("kept_root", kept.Root.String()).With("kept_origin", kept.Origin).
		With("size", strconv.FormatUint(head.Size, 10)).With("root", head.Root.String())
	l, _, err := ledger.Open(context.Background(), b.store, rollbacks)
	if err != nil {
		return err
	}
	return l.Change(context.Background(), []ledger.Record{{Key: lastAccepted, Body: []byte(e.ID)}}, nil, e)
}

// rollbacks is the ledger of the older states that the operator accepted, and
// its records: the entry of the last one, and of the last one whose
// consequences were drawn. Where they differ, the server died in between.
const (
	rollbacks    = "rollback"
	lastAccepted = "accepted"
	lastEnded    = "ended"
)

// endCredentials ends every credential from before an older state was accepted,
// where that is still to be done. What was revoked since would count again in it.
func (b *logbook) endCredentials(ctx context.Context, fault func(point string), ends ...func(ctx context.Context, why string) error) error {
	l, records, err := ledger.Open(ctx, b.store, rollbacks)
	if err != nil {
		return err
	}
	last := map[string]string{}
	for _, r := range records {
		last[r.Key] = string(r.Body)
	}
	id := last[lastAccepted]
	if id == last[lastEnded] {
		return nil
	}
	for i, end := range ends {
		fault("rollback.ending." + strconv.Itoa(i))
		if err := end(ctx, "a state was accepted that does not go on from the kept checkpoint: entry "+id); err != nil {
			return err
		}
	}
	fault("rollback.unmarked")
	e := audit.NewEvent(isle.Actor{Kind: isle.System, Name: "server"}, isle.ActionIdentityEndAll, isle.Resource{Kind: "identity", Name: "*"}, isle.Allow,
		"every credential from before the accepted state").With("accepted", id)
	return l.Change(ctx, []ledger.Record{{Key: lastEnded, Body: []byte(id)}}, nil, e)
}

// latest is the time of the last entry: it is past, whatever the clock says.
func (b *logbook) latest() time.Time {
	size := b.store.Head().Size
	if size == 0 {
		return time.Time{}
	}
	last, err := b.store.Encoded(context.Background(), size-1, 1)
	if err != nil || len(last) == 0 {
		return time.Time{}
	}
	e, err := audit.Decode(last[0])
	if err != nil {
		return time.Time{} // `isle audit verify` says what is wrong with it
	}
	return e.Time
}

// check says whether the log can be written.
func (b *logbook) check() api.Check {
	c := api.Check{Name: "audit log", State: api.CheckOK}
	head := b.store.Head()
	c.Message = strconv.FormatUint(head.Size, 10) + " entries, of " + b.signer.Origin()
	if err := b.store.Failure(); err != nil {
		flat := api.Flatten(err)
		c.State, c.Message, c.Remedy = api.CheckMissing, "nothing is done, because what is done cannot be recorded: "+flat.Message, flat.Hint
	} else if err := b.keep.Failure(); err != nil {
		flat := api.Flatten(err)
		c.State, c.Message, c.Remedy = api.CheckWarning, "it is written, and a state folder that is put back would not be seen: "+flat.Message, flat.Hint
	}
	return c
}

func (b *logbook) close() error {
	var first error
	if b.store != nil {
		first = b.store.Close()
	}
	if b.keep != nil {
		if err := b.keep.Close(); first == nil {
			first = err
		}
	}
	return first
}
