// Package ledger keeps small tables of records that the audit log vouches for.
//
// A Record is a key and a body. Every change of a ledger is one transaction
// with its audit entries, and the last of these is bound to what the ledger
// holds afterwards: its name, the number of the change (the epoch, counted from
// 1) and a digest over all of its records (the state). So the log, which cannot
// be edited unnoticed, says what must be in the store: a record that was
// changed, added, deleted or put back to an earlier version behind the log's
// back is found when the ledger is opened, and by `isle audit verify`, and
// nothing of such a ledger is used.
//
// Identities, credentials, revocations, the issuer's keys and secrets are
// records. What reads them often keeps them in memory: a ledger is read whole
// when it is opened.
package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
	"sync"

	"isle"
	"isle/internal/audit"
)

// Bounds of a ledger.
const (
	MaxKey  = 256     // bytes of a key
	MaxBody = 1 << 20 // bytes of a body
)

// A Record is one row of a ledger.
type Record struct {
	Key  string
	Body []byte
}

// A Change is what one transaction does to a ledger.
type Change struct {
	Ledger string
	Put    []Record // replace what has the same key
	Remove []string // what is not there is removed already
	// Entries belong to the change; the last one is bound to its outcome.
	Entries []audit.Entry
}

// A Store keeps ledgers.
type Store interface {
	// Ledger returns the records of a ledger in the order of their keys (by
	// bytes), and the last audit entry that is bound to it: the zero Entry if
	// there is none.
	Ledger(ctx context.Context, name string) ([]Record, audit.Entry, error)
	// ChangeLedger makes one change, whole or not at all, durable when it
	// returns. It fails with Conflict where the ledger's epoch is not the one
	// before that of the last entry.
	ChangeLedger(ctx context.Context, c Change) error
}

// A Ledger is one ledger of a store. One process at a time changes it. It is
// safe for concurrent use.
type Ledger struct {
	store Store
	name  string

	mu    sync.Mutex // held over a change; guards what follows
	sums  []sum
	epoch uint64
}

// A sum is what the state says of a record. Sums are sorted by their keys.
type sum struct {
	key  string
	body [sha256.Size]byte
}

func sumsOf(records []Record) []sum {
	out := make([]sum, len(records))
	for i, r := range records {
		out[i] = sum{r.Key, sha256.Sum256(r.Body)}
	}
	slices.SortFunc(out, func(a, b sum) int { return strings.Compare(a.key, b.key) })
	return out
}

func find(sums []sum, key string) (int, bool) {
	return slices.BinarySearchFunc(sums, key, func(s sum, key string) int { return strings.Compare(s.key, key) })
}

// Open reads a ledger. It fails with Unavailable where the store does not hold
// what the audit log says it must.
func Open(ctx context.Context, store Store, name string) (*Ledger, []Record, error) {
	records, last, err := store.Ledger(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	l := &Ledger{store: store, name: name, sums: sumsOf(records)}
	if err := Check(name, records, last); err != nil {
		return nil, nil, err
	}
	if last.Bound != nil {
		l.epoch = last.Bound.Epoch
	}
	return l, records, nil
}

// Check says whether records are those that the last entry bound to the ledger
// vouches for; the zero Entry vouches for an empty ledger.
func Check(name string, records []Record, last audit.Entry) error {
	tampered := func(what string) error {
		return isle.Errorf(isle.Unavailable, "the %s ledger is not what the audit log says: %s; it was changed behind the log", name, what).
			WithHint("restore the state folder from a backup; `isle audit verify` says what else is wrong")
	}
	switch b := last.Bound; {
	case b == nil && len(records) == 0:
		return nil
	case b == nil:
		return tampered("it has records, and no entry speaks of it")
	case b.Ledger != name:
		return tampered("its last entry is that of " + b.Ledger)
	case b.State != StateOf(name, records):
		return tampered("after its last change, audit entry " + string(last.ID) + ", it held other records")
	}
	return nil
}

// Epoch is the number of changes so far.
func (l *Ledger) Epoch() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epoch
}

// Change makes one change with its entries, of which there is at least one; the
// last is bound to the outcome. It is durable when Change returns, and undone
// whole where it fails. The order of changes is that in which Change returns.
func (l *Ledger) Change(ctx context.Context, put []Record, remove []string, entries ...audit.Entry) error {
	if len(entries) == 0 {
		return isle.Errorf(isle.Internal, "a change of the %s ledger without an audit entry", l.name)
	}
	for _, r := range put {
		if r.Key == "" || len(r.Key) > MaxKey || len(r.Body) > MaxBody {
			return isle.Errorf(isle.Invalid, "a record of the %s ledger is too large: its key has %d bytes of at most %d, its body %d of at most %d", l.name, len(r.Key), MaxKey, len(r.Body), MaxBody)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	sums := slices.Clone(l.sums)
	for _, k := range remove {
		if i, ok := find(sums, k); ok {
			sums = slices.Delete(sums, i, i+1)
		}
	}
	for _, r := range put {
		i, ok := find(sums, r.Key)
		if !ok {
			sums = slices.Insert(sums, i, sum{key: r.Key})
		}
		sums[i].body = sha256.Sum256(r.Body)
	}
	entries = slices.Clone(entries)
	last := &entries[len(entries)-1]
	last.Bound = &audit.Bound{Ledger: l.name, Epoch: l.epoch + 1, State: state(l.name, sums)}
	if err := l.store.ChangeLedger(ctx, Change{Ledger: l.name, Put: put, Remove: remove, Entries: entries}); err != nil {
		return err
	}
	l.sums, l.epoch = sums, l.epoch+1
	return nil
}

// StateOf is the digest of a ledger that holds the records: SHA-256 over a
// heading with the ledger's name and, in the order of the keys, each key's
// length (big-endian uint32), the key and the SHA-256 of the body.
func StateOf(name string, records []Record) isle.Digest { return state(name, sumsOf(records)) }

func state(name string, sums []sum) isle.Digest {
	b := []byte("isle ledger v1\n" + name + "\n")
	h := sha256.New()
	for _, s := range sums {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s.key)))
		b = append(append(b, s.key...), s.body[:]...)
		h.Write(b)
		b = b[:0]
	}
	h.Write(b) // the heading of an empty ledger
	return isle.DigestFromSum(h.Sum(nil))
}
