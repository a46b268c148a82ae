package snapshot

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"isle"
	"isle/internal/seal"
)

// Use returns a snapshot that something is about to be made of. What it holds
// was looked at: a file that was touched since it was hashed is hashed again, and
// where it is not what it was that is Untrusted. The snapshot is not removed
// before done is called.
func (s *Snapshots) Use(ctx context.Context, name string) (snap Snapshot, done func(), err error) {
	d, err := s.Find(name)
	if err != nil {
		return Snapshot{}, nil, err
	}
	release, err := s.hold(d)
	if err != nil {
		return Snapshot{}, nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	if snap, err = s.view(d); err != nil {
		return Snapshot{}, nil, err
	}
	memory := snap.Manifest.Memory != nil && snap.Trusted && !snap.NoMemory
	if err := s.look(ctx, snap, memory, false); err != nil {
		return Snapshot{}, nil, err
	}
	if memory {
		snap.Memory = filepath.Join(s.dir(d), folderMemory)
	}
	return snap, release, nil
}

// hold keeps a snapshot from being removed until release is called.
func (s *Snapshots) hold(d isle.Digest) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.known[d]; !ok || s.held[d] == removing {
		return nil, isle.Errorf(isle.NotFound, "there is no snapshot %s any more", d.Short())
	}
	s.held[d]++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.held[d]--; s.held[d] == 0 {
			delete(s.held, d)
		}
	}), nil
}

// removing is the count of a snapshot that nobody may use any more.
const removing = -1

// look compares the volumes of a snapshot, and its memory, with what they must
// be. Unless everything is to be hashed again, a file is believed that has the
// stamp that it had when it was hashed.
func (s *Snapshots) look(ctx context.Context, snap Snapshot, memory, everything bool) error {
	dir := s.dir(snap.Digest)
	l, err := readLocal(dir)
	if err != nil || everything {
		l.Stamps = nil // hints: without them all is hashed
	}
	stamps := maps.Clone(l.Stamps)
	if stamps == nil {
		stamps = map[string]stamp{}
	}
	s.mu.RLock()
	r := s.known[snap.Digest]
	s.mu.RUnlock()
	for _, v := range snap.Manifest.Volumes {
		own, ok := r.Volumes[v.Name()]
		if !ok {
			return isle.Errorf(isle.Untrusted, "snapshot %s has no volume %s any more", snap.Digest.Short(), v.Name())
		}
		want := content{digest: v.Digest, size: v.Size}
		if own.Digest != "" {
			want.digest = own.Digest
		}
		err := s.lookAt(ctx, s.cfg.Volumes.Path(own.ID), v.Name(), stamps, func(f *os.File) (bool, error) {
			c, err := readContent(ctx, f)
			return c.digest == want.digest && c.size == want.size, err
		})
		if err != nil {
			return s.wrong(snap, "its volume "+v.Name(), err)
		}
	}
	if memory {
		for _, m := range snap.Manifest.Memory.Files {
			err := s.lookAt(ctx, filepath.Join(dir, folderMemory, m.Name), folderMemory+"/"+m.Name, stamps, func(f *os.File) (bool, error) {
				digest, size, err := readFile(ctx, f)
				return digest == m.Digest && size == m.Size, err
			})
			if err != nil {
				return s.wrong(snap, "the file "+m.Name+" of its memory", err)
			}
		}
	}
	if !maps.Equal(stamps, l.Stamps) {
		l.Volumes, l.Stamps = r.Volumes, stamps
		if err := l.write(dir); err != nil { // the next look hashes again
			s.cfg.Slog.Warn("what was verified of a snapshot could not be noted", "snapshot", snap.Digest, "err", err)
		}
	}
	return nil
}

// errChanged is what is wrong with a file that has another content.
var errChanged = errors.New("it was changed: it does not have the digest that it was sealed with")

// lookAt asks same whether a file is what it must be, unless its stamp says so.
func (s *Snapshots) lookAt(ctx context.Context, path, name string, stamps map[string]stamp, same func(f *os.File) (bool, error)) error {
	f, err := seal.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	before, err := stampOf(f)
	if err != nil {
		return err
	}
	if known, ok := stamps[name]; ok && known == before {
		return nil
	}
	delete(stamps, name)
	ok, err := same(f)
	if err != nil {
		return err
	}
	after, err := stampOf(f)
	switch {
	case err != nil:
		return err
	case !ok, after != before:
		return errChanged
	}
	stamps[name] = after
	return ctx.Err()
}

// wrong says what is wrong with a part of a snapshot.
func (s *Snapshots) wrong(snap Snapshot, what string, err error) error {
	if errors.Is(err, errChanged) || errors.Is(err, fs.ErrNotExist) || isle.CodeOf(err) == isle.Untrusted {
		return isle.Errorf(isle.Untrusted, "snapshot %s is not what was sealed, %s: %w", snap.Digest.Short(), what, err).
			WithHint("nothing is made of it; put it back from a backup, or remove it: isle snapshot rm %s", snap.Digest.Short())
	}
	return diskError("read snapshot "+snap.Digest.Short()+", "+what, err)
}

// A Verified is what Verify found in order.
type Verified struct {
	Snapshot Snapshot
	Bytes    int64         // of content that was hashed, without zeros
	Parents  []isle.Digest // nearest first
	// Gone is the first parent that is not here any more; "" if all are.
	Gone isle.Digest
}

// Verify hashes everything of a snapshot again, checks its signature and those of
// its parents, and fails with the first that is wrong. A parent that was removed
// is none.
func (s *Snapshots) Verify(ctx context.Context, name string) (out Verified, err error) {
	d, err := s.Find(name)
	if err != nil {
		return out, err
	}
	release, err := s.hold(d)
	if err != nil {
		return out, err
	}
	defer release()
	if out.Snapshot, err = s.view(d); err != nil {
		return out, err
	}
	m := out.Snapshot.Manifest
	if err := s.look(ctx, out.Snapshot, m.Memory != nil && !out.Snapshot.NoMemory, true); err != nil {
		return out, err
	}
	if err := s.lookAtFiles(ctx, out.Snapshot); err != nil {
		return out, err
	}
	out.Bytes = m.Bytes()
	for parent := m.Parent; parent != ""; {
		p, err := s.view(parent)
		switch {
		case isle.CodeOf(err) == isle.NotFound && err != nil:
			out.Gone = parent
			parent = ""
			continue
		case err != nil:
			return out, isle.Errorf(isle.Untrusted, "the parent %s of snapshot %s: %w", parent.Short(), d.Short(), err)
		case slices.Contains(out.Parents, parent):
			return out, isle.Errorf(isle.Untrusted, "snapshot %s is its own parent", parent.Short())
		}
		out.Parents = append(out.Parents, parent)
		parent = p.Manifest.Parent
	}
	if !out.Snapshot.Trusted {
		return out, isle.Errorf(isle.Untrusted, "snapshot %s is whole, and signed by %s, which this server does not trust", d.Short(), clip(out.Snapshot.Signer)).
			WithHint("if you know that key: isle snapshot trust KEY")
	}
	return out, nil
}

// some says the first few of many.
func some(list []string) string {
	if len(list) > 4 {
		return strings.Join(list[:4], ", ") + " and more"
	}
	return strings.Join(list, ", ")
}
