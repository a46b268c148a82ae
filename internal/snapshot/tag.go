package snapshot

import (
	"context"
	"encoding/json"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
	"isle/internal/seal"
)

// maxTags bounds how many tags there are.
const maxTags = 10_000

// A tag is the record of one: a name that people gave a snapshot.
type tag struct {
	Digest isle.Digest `json:"digest"`
}

func recordOf(key string, v any) (ledger.Record, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ledger.Record{}, isle.Errorf(isle.Internal, "cannot encode a snapshot's record: %w", err)
	}
	return ledger.Record{Key: key, Body: b}, nil
}

// resourceOf is a snapshot as what an action is done to: it is called as its
// environment was, and is of its stage.
func resourceOf(ref isle.Ref) isle.Resource {
	return isle.Resource{Kind: "snapshot", Name: ref.Name, Stage: ref.Stage}
}

// CheckTag says what is wrong with a tag: it must be a name, and nothing that
// could begin a digest.
func CheckTag(name string) error {
	if !isle.ValidName(name) {
		return isle.Errorf(isle.Invalid, "%q is no tag: want lower-case letters, digits and dashes, at most 40, beginning with a letter", clip(name))
	}
	if seal.LooksLikeDigest(name) {
		return isle.Errorf(isle.Invalid, "the tag %q cannot be told from a digest", name).WithHint("choose one with another letter than a to f, or a dash")
	}
	return nil
}

// freeTag fails where a tag is none, or is another snapshot's.
func (s *Snapshots) freeTag(name string) error {
	if err := CheckTag(name); err != nil {
		return err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if d, ok := s.tags[name]; ok {
		return isle.Errorf(isle.Conflict, "the tag %s is on snapshot %s", name, d.Short()).WithHint("move it with: isle snapshot tag --move SNAPSHOT %s", name)
	}
	if len(s.tags) >= maxTags {
		return isle.Errorf(isle.Exhausted, "there are %d tags, as many as there may be", len(s.tags))
	}
	return nil
}

// Tag gives a snapshot a name more. Where another has it that is a Conflict,
// unless it is to be moved.
func (s *Snapshots) Tag(ctx context.Context, actor isle.Actor, snapshot, name string, move bool) (Snapshot, error) {
	if err := CheckTag(name); err != nil {
		return Snapshot{}, err
	}
	d, err := s.Find(snapshot)
	if err != nil {
		return Snapshot{}, err
	}
	s.shelf.Lock()
	defer s.shelf.Unlock()
	s.mu.RLock()
	r, ok := s.known[d]
	before := s.tags[name]
	s.mu.RUnlock()
	switch {
	case !ok:
		return Snapshot{}, isle.Errorf(isle.NotFound, "there is no snapshot %s any more", d.Short())
	case before == d:
		return s.view(d)
	case !move:
		if err := s.freeTag(name); err != nil {
			return Snapshot{}, err
		}
	}
	put, err := recordOf(keyTag+name, tag{d})
	if err != nil {
		return Snapshot{}, err
	}
	e := audit.NewEvent(actor, isle.ActionSnapshotTag, resourceOf(r.Ref), isle.Allow, "").With("snapshot", string(d)).With("tag", name)
	if before != "" {
		e = e.With("before", string(before))
	}
	if err := s.shelf.Change(ctx, []ledger.Record{put}, nil, e); err != nil {
		return Snapshot{}, err
	}
	s.mu.Lock()
	s.tags[name] = d
	s.mu.Unlock()
	return s.view(d)
}

// Untag takes a name away from the snapshot that has it.
func (s *Snapshots) Untag(ctx context.Context, actor isle.Actor, name string) error {
	if s.shelf.Err() != nil {
		return s.shelf.Err()
	}
	s.shelf.Lock()
	defer s.shelf.Unlock()
	s.mu.RLock()
	d, ok := s.tags[name]
	r := s.known[d]
	s.mu.RUnlock()
	if !ok {
		return isle.Errorf(isle.NotFound, "there is no tag %q", clip(name)).WithHint("isle snapshot ls shows them")
	}
	e := audit.NewEvent(actor, isle.ActionSnapshotTag, resourceOf(r.Ref), isle.Allow, "").With("before", string(d)).With("tag", name)
	if err := s.shelf.Change(ctx, nil, []string{keyTag + name}, e); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.tags, name)
	s.mu.Unlock()
	return nil
}

// Keys returns the keys that are trusted, this server's own first.
func (s *Snapshots) Keys() ([]seal.TrustedKey, error) { return s.shelf.Keys() }

// Trust makes the signatures of another server's key count: memory that it
// captured is restored here.
func (s *Snapshots) Trust(ctx context.Context, actor isle.Actor, key string) (seal.TrustedKey, error) {
	return s.shelf.Trust(ctx, actor, key)
}

// Distrust makes the signatures of a key count no more. It is said whole, or by
// its name.
func (s *Snapshots) Distrust(ctx context.Context, actor isle.Actor, key string) (seal.TrustedKey, error) {
	return s.shelf.Distrust(ctx, actor, key)
}
