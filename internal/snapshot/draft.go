package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
	"isle/internal/seal"
)

// FaultPoints returns the names that Config.Fault is called with, in the order
// of a snapshot's life, so that a test can crash the server at each of them.
func FaultPoints() []string {
	return []string{
		"snapshot.drafted", "snapshot.volume", "snapshot.hashed", "snapshot.written", "snapshot.renamed", "snapshot.recorded",
		"snapshot.forgotten", "snapshot.emptied",
	}
}

// A Draft is a snapshot in the making. Who asked for it ends it, with Seal or
// Discard; a server that dies before leaves nothing of it. Its methods are for
// one goroutine at a time.
type Draft struct {
	ID isle.ID

	s   *Snapshots
	dir string

	mu    sync.Mutex // guards what follows
	local local
	err   error // of noting a volume
	ended bool
	warm  *Warm // nil: somebody asked for it
}

// Draft begins a snapshot.
func (s *Snapshots) Draft() (*Draft, error) {
	if s.shelf.Err() != nil {
		return nil, s.shelf.Err()
	}
	if s.cfg.Key == nil {
		return nil, isle.Errorf(isle.Unavailable, "no snapshot can be made: the key that would sign it is missing").WithHint("`isle doctor` says what is with the server's key")
	}
	s.mu.Lock()
	n := len(s.known) + len(s.drafts)
	s.mu.Unlock()
	if n >= MaxSnapshots {
		return nil, isle.Errorf(isle.Exhausted, "there are %d snapshots, as many as there may be", n).WithHint("remove some with `isle snapshot rm`")
	}
	d := &Draft{ID: isle.NewID(), s: s, local: local{Volumes: map[string]localVolume{}}}
	d.dir = filepath.Join(s.cfg.Dir, seal.PrefixDraft+string(d.ID))
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		return nil, diskError("begin a snapshot", err)
	}
	if err := os.Mkdir(d.Memory(), 0o700); err != nil {
		os.RemoveAll(d.dir)
		return nil, diskError("begin a snapshot", err)
	}
	s.mu.Lock()
	s.drafts[d.ID] = d
	s.mu.Unlock()
	s.cfg.Fault("snapshot.drafted")
	return d, nil
}

// Memory is the folder that memory is captured into: plain files, nothing below.
func (d *Draft) Memory() string { return filepath.Join(d.dir, folderMemory) }

// Volume returns the ID of the draft's own volume for that of a service, always
// the same one. It is noted on disk before it is returned, so that whoever finds
// the draft after a crash can remove what was made of it.
func (d *Draft) Volume(service, path string) isle.ID {
	d.mu.Lock()
	defer d.mu.Unlock()
	name := Volume{Service: service, Path: path}.Name()
	if v, ok := d.local.Volumes[name]; ok {
		return v.ID
	}
	id := isle.NewID()
	d.local.Volumes[name] = localVolume{ID: id}
	d.err = errors.Join(d.err, d.local.write(d.dir))
	d.s.cfg.Fault("snapshot.volume")
	return id
}

func (d *Draft) ids() (ids []isle.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, v := range d.local.Volumes {
		ids = append(ids, v.ID)
	}
	return ids
}

// Discard removes the draft and its volumes. After Seal it does nothing.
func (d *Draft) Discard() {
	d.mu.Lock()
	ended := d.ended
	d.ended = true
	d.mu.Unlock()
	if ended {
		return
	}
	d.remove(d.dir)
}

// remove takes away what there is of the draft, in its folder dir.
func (d *Draft) remove(dir string) {
	d.s.mu.Lock()
	delete(d.s.drafts, d.ID)
	d.s.mu.Unlock()
	if err := d.s.takeAway(context.Background(), dir); err != nil {
		d.s.cfg.Slog.Error("what is left of a snapshot could not be taken away; the next start does it", "folder", dir, "err", err)
	}
}

// Seal makes a snapshot of the draft, with tags that nothing else has: it hashes
// what was captured, signs, and is durable when it returns, with its audit entry.
// Who calls it fills in of the manifest what the draft does not know: the
// environment, its services, and the runtime of the memory. On error nothing is
// left. It fails with Exhausted where there is no space, with Invalid for a
// manifest that is not whole.
func (d *Draft) Seal(ctx context.Context, actor isle.Actor, m Manifest, tags ...string) (Snapshot, error) {
	digest, err := d.seal(ctx, actor, m, tags)
	if err != nil {
		return Snapshot{}, err
	}
	return d.s.view(digest)
}

func (d *Draft) seal(ctx context.Context, actor isle.Actor, m Manifest, tags []string) (digest isle.Digest, err error) {
	d.mu.Lock()
	ended, err := d.ended, d.err
	d.ended = true
	d.mu.Unlock()
	if ended {
		return "", isle.Errorf(isle.Internal, "the draft %s was ended before", d.ID)
	}
	dir := d.dir
	defer func() {
		if err != nil {
			err = diskError("make a snapshot", err)
			d.remove(dir)
		}
	}()
	if err != nil {
		return "", err
	}
	for _, t := range tags {
		if err := d.s.freeTag(t); err != nil {
			return "", err
		}
	}
	m.Version = Version
	if m.Created.IsZero() {
		m.Created = d.s.cfg.Now()
	}
	m.Created = m.Created.UTC().Truncate(time.Microsecond)
	if m.Author.Kind == "" {
		m.Author = actor
	}
	if err := d.hash(ctx, &m); err != nil {
		return "", err
	}
	m.sort()
	if err := d.checkSize(m); err != nil {
		return "", err
	}
	d.s.cfg.Fault("snapshot.hashed")
	encoded, err := m.Encode()
	if err != nil {
		return "", err
	}
	digest = isle.DigestOf(encoded)
	sig, err := d.s.shelf.Sign(digest)
	if err != nil {
		return "", err
	}
	if err := d.write(encoded, sig); err != nil {
		return "", err
	}
	r := record{Sealed: m.Created, By: actor, Volumes: d.local.Volumes, Ref: m.Ref, Project: m.Project, Parent: m.Parent, Warm: d.warm}
	e := audit.NewEvent(actor, isle.ActionSnapshotCreate, resourceOf(m.Ref), isle.Allow, m.Message).In(m.Ref, m.Instance)
	if d.warm != nil {
		e = e.With("warm", string(d.warm.Key))
	}
	return digest, d.publish(ctx, &dir, digest, r, entryWith(e, digest, m), tags)
}

// entryWith says in an entry which snapshot it is about.
func entryWith(e audit.Entry, d isle.Digest, m Manifest) audit.Entry {
	e = e.With("snapshot", string(d)).With("bytes", strconv.FormatInt(m.Bytes(), 10)).With("memory", strconv.FormatBool(m.Memory != nil))
	if m.Parent != "" {
		e = e.With("parent", string(m.Parent))
	}
	return e
}

// hash makes what was captured read-only and durable, and puts its digests into
// the manifest.
func (d *Draft) hash(ctx context.Context, m *Manifest) error {
	d.local.Stamps = map[string]stamp{}
	m.Volumes = []Volume{}
	for _, name := range slices.Sorted(maps.Keys(d.local.Volumes)) {
		service, path, _ := strings.Cut(name, ":")
		f, err := os.Open(d.s.cfg.Volumes.Path(d.local.Volumes[name].ID))
		if err != nil {
			return fmt.Errorf("volume %s: %w", name, err)
		}
		c, st, err := sealVolume(ctx, f)
		f.Close()
		if err != nil {
			return fmt.Errorf("volume %s: %w", name, err)
		}
		m.Volumes = append(m.Volumes, Volume{Service: service, Path: path, Size: c.size, Digest: c.digest, Bytes: c.bytes})
		d.local.Stamps[name] = st
	}
	return d.hashMemory(ctx, m)
}

// sealVolume makes a volume read-only and durable, and hashes it.
func sealVolume(ctx context.Context, f *os.File) (c content, st stamp, err error) {
	if err = f.Chmod(0o400); err != nil {
		return c, st, err
	}
	if err = f.Sync(); err != nil {
		return c, st, err
	}
	before, err := stampOf(f)
	if err != nil {
		return c, st, err
	}
	if c, err = readContent(ctx, f); err != nil {
		return c, st, err
	}
	if st, err = stampOf(f); err == nil && st != before {
		err = isle.Errorf(isle.Internal, "%s was written to while it was sealed", f.Name())
	}
	return c, st, err
}

// hashMemory does for the memory what hash does for volumes.
func (d *Draft) hashMemory(ctx context.Context, m *Manifest) error {
	entries, err := os.ReadDir(d.Memory())
	if err != nil {
		return err
	}
	if m.Memory == nil {
		if len(entries) > 0 {
			return isle.Errorf(isle.Internal, "memory was captured, and the manifest says of none")
		}
		return os.Remove(d.Memory())
	}
	memory := Memory{Runtime: m.Memory.Runtime, Files: []File{}}
	for _, e := range entries {
		if !validFile(e.Name()) || !e.Type().IsRegular() {
			return isle.Errorf(isle.Internal, "%q is no file of a memory", e.Name())
		}
		f, err := os.Open(filepath.Join(d.Memory(), e.Name()))
		if err != nil {
			return err
		}
		err = errors.Join(f.Chmod(0o400), f.Sync())
		var file File
		if err == nil {
			file, d.local.Stamps[folderMemory+"/"+e.Name()], err = hashFile(ctx, f, e.Name())
		}
		f.Close()
		if err != nil {
			return err
		}
		memory.Files = append(memory.Files, file)
	}
	m.Memory = &memory
	return seal.SyncFolder(d.Memory())
}

func hashFile(ctx context.Context, f *os.File, name string) (File, stamp, error) {
	digest, size, err := readFile(ctx, f)
	if err != nil {
		return File{}, stamp{}, err
	}
	st, err := stampOf(f)
	return File{Name: name, Size: size, Digest: digest}, st, err
}

// write puts the manifest into the draft's folder, durable when it returns.
func (d *Draft) write(manifest, sig []byte) error {
	err := seal.Write(filepath.Join(d.dir, seal.FileManifest), manifest)
	if err == nil {
		err = seal.Write(filepath.Join(d.dir, seal.FileSignature), sig)
	}
	if err == nil {
		err = d.local.write(d.dir)
	}
	if err == nil {
		err = seal.SyncFolder(d.dir)
	}
	d.s.cfg.Fault("snapshot.written")
	return err
}

// publish gives the draft's folder its name and makes it a snapshot. dir is
// where the folder is, whatever happens. What the ledger does not name the next
// start takes away.
func (d *Draft) publish(ctx context.Context, dir *string, digest isle.Digest, r record, e audit.Entry, tags []string) error {
	s := d.s
	s.shelf.Lock()
	defer s.shelf.Unlock()
	if s.has(digest) {
		return isle.Errorf(isle.Conflict, "there is a snapshot %s already", digest.Short())
	}
	if r.Warm != nil {
		if other, ok := s.Warm(r.Warm.Key); ok {
			return isle.Errorf(isle.Conflict, "there is a warm snapshot of the same already, %s", other.Short())
		}
	}
	put, err := recordOf(keySnapshot+digest.Hex(), r)
	if err != nil {
		return err
	}
	puts := []ledger.Record{put}
	for _, t := range tags {
		if err := s.freeTag(t); err != nil {
			return err
		}
		v, err := recordOf(keyTag+t, tag{digest})
		if err != nil {
			return err
		}
		puts, e = append(puts, v), e.With("tag", t)
	}
	if err := os.Rename(d.dir, s.dir(digest)); err != nil {
		return err
	}
	*dir = s.dir(digest)
	if err := seal.SyncFolder(s.cfg.Dir); err != nil {
		return err
	}
	s.cfg.Fault("snapshot.renamed")
	if err := s.shelf.Change(ctx, puts, nil, e); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.drafts, d.ID)
	s.known[digest] = r
	for _, t := range tags {
		s.tags[t] = digest
	}
	s.mu.Unlock()
	s.cfg.Fault("snapshot.recorded")
	return nil
}
