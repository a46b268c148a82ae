package seal

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
)

// Names in the folder of a sealed thing, and what begins those of folders in the
// making beside them.
const (
	FileManifest  = "manifest.json"
	FileSignature = "signature"
	PrefixDraft   = "draft-"
)

// A ShelfConfig is what a Shelf keeps, and where.
type ShelfConfig struct {
	Kind  string // for people, and the name of the ledger: "snapshot"
	Dir   string
	Store ledger.Store
	Key   *Key // that signs; nil: nothing can be sealed
	// Trust is the action of trusting another server's key.
	Trust isle.Action
	// MaxManifest bounds a manifest in bytes.
	MaxManifest int64
	// Lost is what is not done with a thing that was changed on disk: "nothing is
	// made of it".
	Lost string
	Slog *slog.Logger
	// Load takes a record of the ledger in that is no key's, and says whether it
	// could be read.
	Load func(ledger.Record) bool
}

// A Shelf keeps sealed things of one kind: each has a folder, named by the digest
// of the manifest in it, a signed note of that digest, and a record in a ledger
// that the audit log vouches for. Which keys' notes count is a record there too.
// It is safe for concurrent use; one change goes on at a time, between Lock and
// Unlock.
type Shelf struct {
	sync.Mutex // held over a change

	cfg    ShelfConfig
	broken error // why nothing on it can be used; nil if it can
	ledger *ledger.Ledger
	ring   *Ring
}

// OpenShelf reads the records. Where the ledger is not what the audit log says it
// is, or has what cannot be read, there is a Shelf all the same, whose Err says so.
func OpenShelf(ctx context.Context, cfg ShelfConfig) (*Shelf, error) {
	s := &Shelf{cfg: cfg, ring: NewRing(cfg.Key, cfg.Kind, cfg.Trust)}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, isle.Errorf(isle.Unavailable, "cannot make the folder of %ss: %w", cfg.Kind, err)
	}
	l, records, err := ledger.Open(ctx, cfg.Store, cfg.Kind)
	if err != nil && isle.CodeOf(err) != isle.Unavailable {
		return nil, err
	}
	s.ledger = l
	for _, rec := range records {
		if err == nil && !s.ring.Load(rec) && !cfg.Load(rec) {
			err = isle.Errorf(isle.Unavailable, "the record %q of the %s ledger cannot be read", rec.Key, cfg.Kind).WithHint("start with the program that wrote it")
		}
	}
	if s.broken = err; err != nil {
		cfg.Slog.Error("no "+cfg.Kind+" can be used", "err", err)
	}
	return s, nil
}

// Err says why nothing on the shelf can be used; nil if it can.
func (s *Shelf) Err() error { return s.broken }

// Folder is that of a thing.
func (s *Shelf) Folder(d isle.Digest) string { return filepath.Join(s.cfg.Dir, d.Hex()) }

// Change writes records, removes others by their keys, and appends an entry, all or
// nothing.
func (s *Shelf) Change(ctx context.Context, put []ledger.Record, remove []string, e audit.Entry) error {
	return s.ledger.Change(ctx, put, remove, e)
}

// Read reads the manifest of a thing, and its signature. It fails with Untrusted
// where the manifest is not what was sealed.
func (s *Shelf) Read(d isle.Digest) (manifest, sig []byte, err error) {
	manifest, err = Read(filepath.Join(s.Folder(d), FileManifest), s.cfg.MaxManifest)
	if err == nil {
		sig, err = Read(filepath.Join(s.Folder(d), FileSignature), MaxNote)
	}
	what := s.cfg.Kind + " " + d.Short()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, isle.Errorf(isle.Untrusted, "%s is not whole: %w", what, err).WithHint("put its folder back from a backup, or remove it: isle %s rm %s", s.cfg.Kind, d.Short())
	case err != nil:
		return nil, nil, isle.Errorf(isle.CodeOf(err), "%s cannot be read: %w", what, err)
	case isle.DigestOf(manifest) != d:
		return nil, nil, isle.Errorf(isle.Untrusted, "%s was changed on disk: its manifest does not have its digest; %s", what, s.cfg.Lost).
			WithHint("find out who wrote to %s", s.Folder(d))
	}
	return manifest, sig, nil
}

// NoteText is what is signed of a thing of a kind.
func NoteText(kind string, d isle.Digest) string { return "isle " + kind + " v1\n" + string(d) + "\n" }

// Sign returns the signed note of a digest. The shelf has a key.
func (s *Shelf) Sign(d isle.Digest) ([]byte, error) {
	return s.cfg.Key.Sign(NoteText(s.cfg.Kind, d))
}

// OpenNote reads the signed note of a digest, as the function of that name does,
// with the keys that count.
func (s *Shelf) OpenNote(sig []byte, d isle.Digest) (signer string, trusted bool, err error) {
	return OpenNote(sig, s.cfg.Kind+" "+d.Short(), NoteText(s.cfg.Kind, d), s.ring.Verifiers())
}

// Ring is the keys that count.
func (s *Shelf) Ring() *Ring { return s.ring }

// Keys returns the keys that are trusted, this server's own first.
func (s *Shelf) Keys() ([]TrustedKey, error) {
	if s.broken != nil {
		return nil, s.broken
	}
	return s.ring.Keys(), nil
}

// Trust makes the signatures of another server's key count.
func (s *Shelf) Trust(ctx context.Context, actor isle.Actor, key string) (TrustedKey, error) {
	if s.broken != nil {
		return TrustedKey{}, s.broken
	}
	s.Lock()
	defer s.Unlock()
	return s.ring.Trust(ctx, s.ledger, actor, key)
}

// Distrust makes the signatures of a key count no more. It is said whole, or by
// its name.
func (s *Shelf) Distrust(ctx context.Context, actor isle.Actor, key string) (TrustedKey, error) {
	if s.broken != nil {
		return TrustedKey{}, s.broken
	}
	s.Lock()
	defer s.Unlock()
	return s.ring.Distrust(ctx, s.ledger, actor, key)
}

// Sweep takes away every folder that is half made, or half removed: a draft, or
// what no record names.
func (s *Shelf) Sweep(known func(isle.Digest) bool, takeAway func(dir string) error) error {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return isle.Errorf(isle.Unavailable, "cannot read the folder of %ss: %w", s.cfg.Kind, err)
	}
	for _, e := range entries {
		d := isle.Digest("sha256:" + e.Name())
		if d.Valid() && known(d) || !d.Valid() && !strings.HasPrefix(e.Name(), PrefixDraft) {
			continue
		}
		s.cfg.Slog.Warn("a "+s.cfg.Kind+" was half made, or half removed: the rest of it is taken away", "folder", e.Name())
		if err := takeAway(filepath.Join(s.cfg.Dir, e.Name())); err != nil {
			s.cfg.Slog.Error("what is left of a "+s.cfg.Kind+" could not be taken away", "folder", e.Name(), "err", err)
		}
	}
	return nil
}

// MinPrefix is how much of a digest must be said, in hexadecimal characters.
const MinPrefix = 6

// LooksLikeDigest reports whether s can begin the hexadecimal of a digest.
func LooksLikeDigest(s string) bool {
	return len(s) >= MinPrefix && len(s) <= 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// Begun are the digests that a name begins, in order; it may have sha256: before it.
func Begun[T any](known map[isle.Digest]T, name string) (found []isle.Digest) {
	hex := strings.TrimPrefix(name, "sha256:")
	if !LooksLikeDigest(hex) {
		return nil
	}
	for d := range known {
		if strings.HasPrefix(d.Hex(), hex) {
			found = append(found, d)
		}
	}
	slices.Sort(found)
	return found
}

// ByTime are the digests in the order in which they came.
func ByTime[T any](known map[isle.Digest]T, came func(T) time.Time) []isle.Digest {
	out := make([]isle.Digest, 0, len(known))
	for d := range known {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b isle.Digest) int {
		if c := came(known[a]).Compare(came(known[b])); c != 0 {
			return c
		}
		return strings.Compare(string(a), string(b))
	})
	return out
}
