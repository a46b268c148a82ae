package snapshot

import (
	"context"
	"strings"

	"isle"
	"isle/internal/audit"
)

// Remove removes a snapshot with its tags and data. Where an environment came of
// it, that is a Conflict unless it is forced: the environment has all that it
// needs, and says from then on that where it came from is gone. A parent is where
// a snapshot came from, and holds nothing of it: its children don't keep it. Nothing
// keeps a warm one.
func (s *Snapshots) Remove(ctx context.Context, actor isle.Actor, name string, force bool) (isle.Digest, error) {
	d, err := s.Find(name)
	if err != nil {
		return "", err
	}
	s.shelf.Lock()
	defer s.shelf.Unlock()
	if on := s.cfg.InUse(d); len(on) > 0 && !force && !s.isWarm(d) {
		return d, isle.Errorf(isle.Conflict, "snapshot %s is what environment %s came from", d.Short(), some(on)).
			WithHint("tear that down first; or remove it all the same with --force: what came from it keeps its data, and its origin is shown as gone")
	}
	remove := []string{keySnapshot + d.Hex()}
	var tags []string
	s.mu.Lock()
	r, ok := s.known[d]
	held := s.held[d]
	if held == 0 {
		s.held[d] = removing
		defer s.unhold(d)
	}
	for t, at := range s.tags {
		if at == d {
			remove, tags = append(remove, keyTag+t), append(tags, t)
		}
	}
	s.mu.Unlock()
	switch {
	case !ok:
		return d, isle.Errorf(isle.NotFound, "there is no snapshot %s any more", d.Short())
	case held > 0:
		return d, isle.Errorf(isle.Conflict, "snapshot %s is in use: it is being forked, verified or exported", d.Short()).WithHint("try again when that has ended")
	}
	e := audit.NewEvent(actor, isle.ActionSnapshotRemove, resourceOf(r.Ref), isle.Allow, "").With("snapshot", string(d))
	if len(tags) > 0 {
		e = e.With("tags", strings.Join(tags, ", "))
	}
	if err := s.shelf.Change(ctx, nil, remove, e); err != nil {
		return d, err
	}
	s.mu.Lock()
	delete(s.known, d)
	for _, t := range tags {
		delete(s.tags, t)
	}
	s.mu.Unlock()
	s.cfg.Fault("snapshot.forgotten")
	// It is gone by the log: what cannot be removed now the next start removes.
	if err := s.empty(context.WithoutCancel(ctx), d, r); err != nil {
		s.cfg.Slog.Error("what is left of a removed snapshot could not be taken away; the next start does it", "snapshot", d, "err", err)
	}
	return d, nil
}

// unhold ends a removal, done or not.
func (s *Snapshots) unhold(d isle.Digest) {
	s.mu.Lock()
	delete(s.held, d)
	s.mu.Unlock()
}

// empty removes the data of a snapshot that no record names any more: the volumes
// that the record named, and its folder.
func (s *Snapshots) empty(ctx context.Context, d isle.Digest, r record) error {
	for _, v := range r.Volumes {
		if err := s.cfg.Volumes.Delete(ctx, v.ID); err != nil && isle.CodeOf(err) != isle.NotFound {
			return err
		}
	}
	s.cfg.Fault("snapshot.emptied")
	return s.takeAway(ctx, s.dir(d))
}
