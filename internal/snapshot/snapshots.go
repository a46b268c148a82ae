package snapshot

import (
	"context"
	"encoding/json"
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
	"isle/internal/ledger"
	"isle/internal/problem"
	"isle/internal/seal"
)

// shelfKind is what is kept here, for people, and the ledger that snapshots, tags and
// trusted keys are records of.
const shelfKind = "snapshot"

// What begins the keys of the ledger's records.
const (
	keySnapshot = "snapshot/" // and 64 hexadecimal characters
	keyTag      = "tag/"      // and the tag
)

// Names in the folder of a snapshot, beside its manifest and signature.
const (
	fileLocal    = "local.json"
	folderMemory = "memory"
)

// MaxSnapshots bounds how many there are.
const MaxSnapshots = 10_000

// Snapshots are those of one server. They are safe for concurrent use.
type Snapshots struct {
	cfg   Config
	shelf *seal.Shelf // locked over a change

	mu     sync.RWMutex // guards what follows
	known  map[isle.Digest]record
	tags   map[string]isle.Digest
	drafts map[isle.ID]*Draft
	held   map[isle.Digest]int // how many use it now
	// imports is how many go on now.
	imports int
}

// A record is what the ledger says of a snapshot beside its digest.
type record struct {
	Sealed time.Time  `json:"sealed"`
	By     isle.Actor `json:"by"`
	// Volumes are the manifest's, by their names.
	Volumes map[string]localVolume `json:"volumes"`
	// Imported is set where the snapshot came in a file.
	Imported *imported   `json:"imported,omitempty"`
	Ref      isle.Ref    `json:"ref"`
	Project  string      `json:"project"`
	Parent   isle.Digest `json:"parent,omitempty"`
	Warm     *Warm       `json:"warm,omitempty"`
}

// A localVolume is the file that holds a volume of a snapshot.
type localVolume struct {
	ID isle.ID `json:"id"`
	// Digest is that of the content of a file that was written anew; "" where it
	// is the manifest's.
	Digest isle.Digest `json:"digest,omitempty"`
	// Files is the digest of the files in it, which both contents have.
	Files isle.Digest `json:"files,omitempty"`
	// LeftOut is how many entries a file that was written anew lacks: devices.
	LeftOut int `json:"left_out,omitempty"`
}

// imported says what was not taken over of a snapshot that came in a file.
type imported struct {
	NoMemory bool `json:"no_memory,omitempty"` // it was not signed by a key that was trusted
}

// Open reads the snapshots, and takes away what was half made or half removed
// when an earlier server died. Where the ledger is not what the audit log says it
// is there is a Snapshots all the same, of which every use fails with that, and
// nothing is taken away.
func Open(ctx context.Context, cfg Config) (*Snapshots, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Slog == nil {
		cfg.Slog = slog.New(slog.DiscardHandler)
	}
	if cfg.Fault == nil {
		cfg.Fault = func(string) {}
	}
	if cfg.WarmCount <= 0 {
		cfg.WarmCount = DefaultWarmCount
	}
	if cfg.WarmBytes <= 0 {
		cfg.WarmBytes = DefaultWarmBytes
	}
	if cfg.InUse == nil {
		cfg.InUse = func(isle.Digest) []string { return nil }
	}
	s := &Snapshots{cfg: cfg, known: map[isle.Digest]record{}, tags: map[string]isle.Digest{}, drafts: map[isle.ID]*Draft{}, held: map[isle.Digest]int{}}
	var err error
	s.shelf, err = seal.OpenShelf(ctx, seal.ShelfConfig{
		Kind: shelfKind, Dir: cfg.Dir, Store: cfg.Store, Key: cfg.Key, Trust: isle.ActionSnapshotTrust,
		MaxManifest: MaxManifest, Lost: "nothing is made of it", Slog: cfg.Slog, Load: s.load,
	})
	if err != nil {
		return nil, err
	}
	if s.shelf.Err() != nil {
		return s, nil
	}
	return s, s.shelf.Sweep(s.has, func(dir string) error { return s.takeAway(ctx, dir) })
}

// load takes one record in.
func (s *Snapshots) load(r ledger.Record) bool {
	if hex, ok := strings.CutPrefix(r.Key, keySnapshot); ok {
		var v record
		d := isle.Digest("sha256:" + hex)
		if json.Unmarshal(r.Body, &v) != nil || !d.Valid() {
			return false
		}
		s.known[d] = v
		return true
	}
	name, ok := strings.CutPrefix(r.Key, keyTag)
	var v tag
	if !ok || json.Unmarshal(r.Body, &v) != nil || !isle.ValidName(name) || !v.Digest.Valid() {
		return false
	}
	s.tags[name] = v.Digest
	return true
}

func (s *Snapshots) has(d isle.Digest) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.known[d]
	return ok
}

// takeAway removes a folder that no record names, its volumes first: they are
// known by what is in it.
func (s *Snapshots) takeAway(ctx context.Context, dir string) error {
	l, err := readLocal(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.cfg.Slog.Warn("which volumes a snapshot had cannot be read; gc removes them", "folder", dir, "err", err)
	}
	named := map[isle.ID]bool{}
	for _, id := range s.Volumes() {
		named[id] = true
	}
	for _, v := range l.Volumes {
		if named[v.ID] || !v.ID.Valid() {
			continue
		}
		if err := s.cfg.Volumes.Delete(ctx, v.ID); err != nil && isle.CodeOf(err) != isle.NotFound {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return seal.SyncFolder(filepath.Dir(dir))
}

// Err says why no snapshot can be used; nil if they can.
func (s *Snapshots) Err() error { return s.shelf.Err() }

// dir is the folder of a snapshot.
func (s *Snapshots) dir(d isle.Digest) string { return s.shelf.Folder(d) }

// Volumes are those of all snapshots and of those in the making: nobody else may
// remove them. Where the ledger is in doubt they are those of every folder.
func (s *Snapshots) Volumes() (ids []isle.ID) {
	if s.shelf.Err() != nil {
		return s.onDisk()
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, r := range s.known {
		for _, v := range r.Volumes {
			ids = append(ids, v.ID)
		}
	}
	for _, d := range s.drafts {
		ids = append(ids, d.ids()...)
	}
	return ids
}

// onDisk are the volumes that some folder names.
func (s *Snapshots) onDisk() (ids []isle.ID) {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		s.cfg.Slog.Error("the folder of snapshots cannot be read", "err", err)
	}
	for _, e := range entries {
		l, err := readLocal(filepath.Join(s.cfg.Dir, e.Name()))
		if err != nil {
			s.cfg.Slog.Error("which volumes a snapshot has cannot be read", "folder", e.Name(), "err", err)
		}
		for _, v := range l.Volumes {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

// Images calls use with each image that a snapshot needs. A warm one needs none:
// what begins with it brings them along.
func (s *Snapshots) Images(use func(Service)) {
	s.mu.RLock()
	known := slices.DeleteFunc(s.digests(), s.spareable)
	s.mu.RUnlock()
	for _, d := range known {
		m, _, err := s.read(d)
		if err != nil {
			continue // it cannot be used, whatever is kept
		}
		for _, svc := range m.Services {
			use(svc)
		}
	}
}

// digests are those of all snapshots, in the order in which they came. mu is
// held.
func (s *Snapshots) digests() []isle.Digest {
	return seal.ByTime(s.known, func(r record) time.Time { return r.Sealed })
}

// read reads the manifest of a snapshot and its signature. It fails with
// Untrusted where they are not what they were.
func (s *Snapshots) read(d isle.Digest) (m Manifest, sig []byte, err error) {
	b, sig, err := s.shelf.Read(d)
	if err != nil {
		return m, nil, err
	}
	m, err = DecodeManifest(b)
	return m, sig, err
}

// view is a snapshot as it is on disk.
func (s *Snapshots) view(d isle.Digest) (Snapshot, error) {
	s.mu.RLock()
	r, ok := s.known[d]
	out := Snapshot{Digest: d, Tags: []string{}, Local: map[string]isle.ID{}, Imported: r.Imported != nil}
	for name, at := range s.tags {
		if at == d {
			out.Tags = append(out.Tags, name)
		}
	}
	s.mu.RUnlock()
	if out.Warm = r.Warm.clone(); out.Warm != nil {
		out.Warm.Used = s.lastUsed(d, r)
	}
	if !ok {
		return out, isle.Errorf(isle.NotFound, "there is no snapshot %s", d.Short())
	}
	slices.Sort(out.Tags)
	for name, v := range r.Volumes {
		out.Local[name] = v.ID
		if used, err := s.cfg.Volumes.Used(v.ID); err == nil {
			out.Used += used
		}
	}
	out.Used += usedBelow(s.dir(d))
	m, sig, err := s.read(d)
	if err != nil {
		// Who it was of is said all the same: who may see it is asked by that.
		out.Manifest = Manifest{Ref: r.Ref, Project: r.Project, Author: r.By, Created: r.Sealed, Parent: r.Parent}
		return out, err
	}
	out.Manifest = m
	if r.Imported != nil && r.Imported.NoMemory {
		out.NoMemory = true
	}
	out.Signer, out.Trusted, err = s.shelf.OpenNote(sig, d)
	return out, err
}

// List returns all snapshots, the first one first. What is wrong with one that
// cannot be used is in its Broken.
func (s *Snapshots) List() ([]Snapshot, error) {
	if s.shelf.Err() != nil {
		return nil, s.shelf.Err()
	}
	s.mu.RLock()
	known := s.digests()
	s.mu.RUnlock()
	out := []Snapshot{}
	for _, d := range known {
		v, err := s.view(d)
		if err != nil && isle.CodeOf(err) == isle.NotFound {
			continue // removed meanwhile
		}
		v.Broken = err
		out = append(out, v)
	}
	return out, nil
}

// Get returns the snapshot of a digest, of a part of one that begins it (at least
// seal.MinPrefix hexadecimal characters) or of a tag. It fails with Untrusted where
// its manifest or signature is not what it was; whether its volumes are says Use.
func (s *Snapshots) Get(name string) (Snapshot, error) {
	d, err := s.Find(name)
	if err != nil {
		return Snapshot{}, err
	}
	return s.view(d)
}

// Look is Get of what may be broken: what is wrong with it is in Broken. Such a
// snapshot can be removed, and has tags.
func (s *Snapshots) Look(name string) (Snapshot, error) {
	d, err := s.Find(name)
	if err != nil {
		return Snapshot{}, err
	}
	v, err := s.view(d)
	if err != nil && isle.CodeOf(err) == isle.NotFound {
		return Snapshot{}, err
	}
	v.Broken = err
	return v, nil
}

// Find returns the digest that a name, as Get takes it, is of.
func (s *Snapshots) Find(name string) (isle.Digest, error) {
	if s.shelf.Err() != nil {
		return "", s.shelf.Err()
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if d, ok := s.tags[name]; ok {
		return d, nil
	}
	found := seal.Begun(s.known, name)
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", s.notFound(name)
	}
	n := len(strings.TrimPrefix(name, "sha256:")) + 4
	return "", isle.Errorf(isle.Conflict, "%q begins %d snapshots, among them %s and %s", clip(name), len(found), found[0].Hex()[:n], found[1].Hex()[:n]).
		WithHint("say more of its digest")
}

// notFound names what is near. mu is held.
func (s *Snapshots) notFound(name string) error {
	err := isle.Errorf(isle.NotFound, "there is no snapshot %q", clip(name))
	var near []string
	for t := range s.tags {
		if len(name) >= 2 && (strings.HasPrefix(t, name) || strings.HasPrefix(name, t)) || problem.Distance(t, clip(name)) <= 2 {
			near = append(near, t)
		}
	}
	if hex := strings.TrimPrefix(name, "sha256:"); len(hex) >= 4 && len(hex) < 64 {
		for d := range s.known {
			if strings.HasPrefix(d.Hex(), hex[:4]) {
				near = append(near, d.Short())
			}
		}
	}
	slices.Sort(near)
	switch {
	case len(near) > 0:
		return err.WithHint("did you mean %s?", strings.Join(near[:min(len(near), 3)], " or "))
	case len(s.known) == 0:
		return err.WithHint("there is none yet: isle snapshot ENV makes one")
	}
	return err.WithHint("isle snapshot ls lists them; say a tag, or at least %d characters of a digest", seal.MinPrefix)
}
