package snapshot

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
)

// Defaults of Config.
const (
	DefaultWarmCount = 8
	DefaultWarmBytes = 4 << 30
)

// fileUsed, in the folder of a warm snapshot, is as old as its last use. It says
// how long the snapshot is kept and nothing else, so nobody vouches for it.
const fileUsed = "used"

// Warm says of a snapshot that the server took it by itself, of what had just
// become ready.
type Warm struct {
	// Key is the digest of all that decides what is in it, and of whose it is. An
	// environment begins with the snapshot that has its key, and with no other.
	Key   isle.Digest `json:"key"`
	Owner isle.Actor  `json:"owner"` // of the environment that was captured
	Used  time.Time   `json:"-"`     // when one last began with it, or it was made
}

func (w *Warm) clone() *Warm {
	if w == nil {
		return nil
	}
	c := *w
	return &c
}

// SealWarm is Seal of a ready state. It fails with Conflict where its key has one
// by now, and with Exhausted where it alone is more than its owner may have;
// those of the same that were used the longest ago make room for it.
func (d *Draft) SealWarm(ctx context.Context, actor isle.Actor, m Manifest, w Warm) (Snapshot, error) {
	d.warm = &Warm{Key: w.Key, Owner: w.Owner}
	snap, err := d.Seal(ctx, actor, m)
	if err != nil {
		return snap, err
	}
	d.s.trim(context.WithoutCancel(ctx), actor, snap)
	return snap, nil
}

// checkSize refuses a ready state that alone is more than there may be.
func (d *Draft) checkSize(m Manifest) error {
	if n, most := m.Bytes(), d.s.cfg.WarmBytes; d.warm != nil && n > most {
		return isle.Errorf(isle.Exhausted, "the ready state has %d bytes, and the warm snapshots of one owner may have %d together", n, most).
			WithHint("isle server --warm-max allows more")
	}
	return nil
}

// Warm returns the snapshot of a ready state that has a key.
func (s *Snapshots) Warm(key isle.Digest) (d isle.Digest, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for d, r := range s.known {
		if r.Warm != nil && r.Warm.Key == key && s.held[d] != removing {
			return d, true
		}
	}
	return "", false
}

// Used notes that an environment has just begun with a warm snapshot.
func (s *Snapshots) Used(d isle.Digest) {
	path, now := filepath.Join(s.dir(d), fileUsed), s.cfg.Now()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		f.Close()
		err = os.Chtimes(path, now, now)
	}
	if err != nil && s.has(d) { // it is kept for a shorter time
		s.cfg.Slog.Warn("the use of a warm snapshot could not be noted", "snapshot", d, "err", err)
	}
}

// lastUsed is when a warm snapshot was last of use.
func (s *Snapshots) lastUsed(d isle.Digest, r record) time.Time {
	if st, err := os.Stat(filepath.Join(s.dir(d), fileUsed)); err == nil && st.ModTime().After(r.Sealed) {
		return st.ModTime()
	}
	return r.Sealed
}

// Cool has nothing begin with a warm snapshot any more, because something did
// and came to nothing. It is removed, unless somebody gave it a tag: then it is
// kept as any other.
func (s *Snapshots) Cool(ctx context.Context, actor isle.Actor, d isle.Digest) error {
	s.mu.RLock()
	r, ok := s.known[d]
	tagged := s.tagged(d)
	s.mu.RUnlock()
	switch {
	case !ok || r.Warm == nil:
		return nil
	case !tagged:
		_, err := s.Remove(ctx, actor, string(d), true)
		return err
	}
	s.shelf.Lock()
	defer s.shelf.Unlock()
	r.Warm = nil
	put, err := recordOf(keySnapshot+d.Hex(), r)
	if err != nil {
		return err
	}
	e := audit.NewEvent(actor, isle.ActionSnapshotTag, resourceOf(r.Ref), isle.Allow, "nothing begins with it any more").With("snapshot", string(d))
	if err := s.shelf.Change(ctx, []ledger.Record{put}, nil, e); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[d] = r
	return nil
}

// Cooled is what Collect frees: how many, and how much of the disk they had.
type Cooled struct {
	Count int
	Bytes int64
}

// Collect removes the warm snapshots that nothing has begun with since a time;
// with dryRun it only says how many those are. One with a tag stays.
func (s *Snapshots) Collect(ctx context.Context, actor isle.Actor, since time.Time, dryRun bool) (out Cooled, err error) {
	if s.shelf.Err() != nil {
		return out, nil // nothing is taken away that is in doubt
	}
	s.mu.RLock()
	all := slices.DeleteFunc(s.digests(), func(d isle.Digest) bool { return !s.spareable(d) })
	s.mu.RUnlock()
	for _, d := range all {
		snap, err := s.Look(string(d))
		if err != nil || snap.Warm == nil || snap.Warm.Used.After(since) {
			continue
		}
		if !dryRun {
			if _, err := s.Remove(ctx, actor, string(d), true); isle.CodeOf(err) == isle.Conflict && err != nil {
				continue // something begins with it now
			} else if err != nil {
				return out, err
			}
		}
		out.Count++
		out.Bytes += snap.Used
	}
	return out, nil
}

// trim removes those of the same owner that were used the longest ago,
// until all are within the bounds. What is in use now, or has a tag, stays.
func (s *Snapshots) trim(ctx context.Context, actor isle.Actor, newest Snapshot) {
	type kept struct {
		d     isle.Digest
		bytes int64
		used  time.Time
	}
	var all []kept
	s.mu.RLock()
	for d, r := range s.known {
		if d != newest.Digest && s.spareable(d) && r.Warm.Owner == newest.Warm.Owner {
			all = append(all, kept{d: d, used: s.lastUsed(d, r)})
		}
	}
	s.mu.RUnlock()
	count, bytes := 1, newest.Manifest.Bytes()
	for i := range all {
		if m, _, err := s.read(all[i].d); err == nil {
			all[i].bytes = m.Bytes()
		}
		count++
		bytes += all[i].bytes
	}
	slices.SortFunc(all, func(a, b kept) int { return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.d, b.d)) })
	for _, old := range all {
		if count <= s.cfg.WarmCount && bytes <= s.cfg.WarmBytes {
			return
		}
		if _, err := s.Remove(ctx, actor, string(old.d), true); err != nil {
			s.cfg.Slog.Warn("a warm snapshot could not make room for another", "snapshot", old.d, "err", err)
			continue
		}
		count--
		bytes -= old.bytes
	}
}

// spareable reports whether a snapshot may be removed without anybody's wish: it
// is warm, and nobody gave it a tag. mu is held.
func (s *Snapshots) spareable(d isle.Digest) bool { return s.known[d].Warm != nil && !s.tagged(d) }

// tagged reports whether a snapshot has a tag. mu is held.
func (s *Snapshots) tagged(d isle.Digest) bool {
	for _, at := range s.tags {
		if at == d {
			return true
		}
	}
	return false
}

func (s *Snapshots) isWarm(d isle.Digest) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.known[d].Warm != nil
}
