package release

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
	"isle/internal/image"
	"isle/internal/ledger"
	"isle/internal/seal"
)

// ledgerName is the ledger that releases, stages and trusted keys are records of.
const ledgerName = "release"

// keyRelease begins the key of a release's record: 64 hexadecimal characters
// follow.
const keyRelease = "release/"

// Names in the folder of a release, and of those in the making beside them.
const (
	fileManifest  = "manifest.json"
	fileSignature = "signature"
	fileLock      = "isle.lock"
	prefixDraft   = "draft-"
)

// MaxReleases bounds how many there are.
const MaxReleases = 10_000

// Releases are those of one server. They are safe for concurrent use.
type Releases struct {
	cfg    Config
	broken error // why none can be used; nil if they can

	change sync.Mutex // held over a change
	ledger *ledger.Ledger
	ring   *seal.Ring // the keys of other servers in it are records of the ledger

	mu    sync.RWMutex // guards what follows
	known map[isle.Digest]record
	// stages are what stages of projects point at.
	stages map[stageKey]Stage
}

// A record is what the ledger says of a release beside its digest.
type record struct {
	Created  time.Time   `json:"created"`
	By       isle.Actor  `json:"by"`
	Project  string      `json:"project"`
	Source   Source      `json:"source"`
	Lock     isle.Digest `json:"lock"` // of the lock file beside it
	Imported bool        `json:"imported,omitempty"`
	// Attestations are those beside it, the first one first.
	Attestations []Attestation `json:"attestations"`
}

// Open reads the releases, and takes away what was half made or half removed when
// an earlier server died. Where the ledger is not what the audit log says it is
// there is a Releases all the same, of which every use fails with that, and
// nothing is taken away.
func Open(ctx context.Context, cfg Config) (*Releases, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Slog == nil {
		cfg.Slog = slog.New(slog.DiscardHandler)
	}
	if cfg.Fault == nil {
		cfg.Fault = func(string) {}
	}
	if cfg.InUse == nil {
		cfg.InUse = func(isle.Digest) []string { return nil }
	}
	r := &Releases{cfg: cfg, known: map[isle.Digest]record{}, stages: map[stageKey]Stage{}, ring: seal.NewRing(cfg.Key, "release", isle.ActionReleaseTrust)}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, isle.Errorf(isle.Unavailable, "cannot make the folder of releases: %w", err)
	}
	l, records, err := ledger.Open(ctx, cfg.Store, ledgerName)
	if err != nil {
		if isle.CodeOf(err) != isle.Unavailable {
			return nil, err
		}
		r.broken = err
		cfg.Slog.Error("no release can be used", "err", err)
		return r, nil
	}
	r.ledger = l
	for _, rec := range records {
		if err := r.load(rec); err != nil {
			r.broken = err
			cfg.Slog.Error("no release can be used", "err", err)
			return r, nil
		}
	}
	return r, r.sweep()
}

// load takes one record in.
func (r *Releases) load(rec ledger.Record) error {
	if hex, ok := strings.CutPrefix(rec.Key, keyRelease); ok {
		var v record
		d := isle.Digest("sha256:" + hex)
		if json.Unmarshal(rec.Body, &v) == nil && d.Valid() {
			r.known[d] = v
			return nil
		}
	} else if key, ok := strings.CutPrefix(rec.Key, keyStage); ok && r.loadStage(key, rec.Body) || !ok && r.ring.Load(rec) {
		return nil
	}
	return isle.Errorf(isle.Unavailable, "the record %q of the release ledger cannot be read", rec.Key).WithHint("start with the program that wrote it")
}

// sweep takes away every folder that no record names.
func (r *Releases) sweep() error {
	entries, err := os.ReadDir(r.cfg.Dir)
	if err != nil {
		return isle.Errorf(isle.Unavailable, "cannot read the folder of releases: %w", err)
	}
	for _, e := range entries {
		d := isle.Digest("sha256:" + e.Name())
		if _, ok := r.known[d]; ok || !d.Valid() && !strings.HasPrefix(e.Name(), prefixDraft) {
			continue
		}
		r.cfg.Slog.Warn("a release was half made, or half removed: the rest of it is taken away", "folder", e.Name())
		if err := os.RemoveAll(filepath.Join(r.cfg.Dir, e.Name())); err != nil {
			r.cfg.Slog.Error("what is left of a release could not be taken away", "folder", e.Name(), "err", err)
		}
	}
	return nil
}

// Err says why no release can be used; nil if they can.
func (r *Releases) Err() error { return r.broken }

// dir is the folder of a release.
func (r *Releases) dir(d isle.Digest) string { return filepath.Join(r.cfg.Dir, d.Hex()) }

// text is what is signed of a release.
func text(d isle.Digest) string { return "isle release v1\n" + string(d) + "\n" }

// read reads the manifest of a release and its signature. It fails with Untrusted
// where they are not what they were.
func (r *Releases) read(d isle.Digest) (m Manifest, sig []byte, err error) {
	b, err := seal.Read(filepath.Join(r.dir(d), fileManifest), MaxManifest)
	if err == nil {
		sig, err = seal.Read(filepath.Join(r.dir(d), fileSignature), seal.MaxNote)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return m, nil, isle.Errorf(isle.Untrusted, "release %s is not whole: %w", d.Short(), err).WithHint("put its folder back from a backup, or remove it: isle release rm %s", d.Short())
	case err != nil:
		return m, nil, isle.Errorf(isle.CodeOf(err), "release %s cannot be read: %w", d.Short(), err)
	case isle.DigestOf(b) != d:
		return m, nil, isle.Errorf(isle.Untrusted, "release %s was changed on disk: its manifest does not have its digest; nothing is launched from it", d.Short()).
			WithHint("find out who wrote to %s", r.dir(d))
	}
	m, err = Decode(b)
	return m, sig, err
}

// view is a release as it is on disk.
func (r *Releases) view(d isle.Digest) (Release, error) {
	r.mu.RLock()
	rec, ok := r.known[d]
	r.mu.RUnlock()
	out := Release{Digest: d, Created: rec.Created, By: rec.By, Source: rec.Source, Attestations: rec.Attestations, Imported: rec.Imported}
	if !ok {
		return out, isle.Errorf(isle.NotFound, "there is no release %s", d.Short())
	}
	m, sig, err := r.read(d)
	if err != nil {
		out.Manifest.Project = rec.Project // who may see it is asked by that
		return out, err
	}
	out.Manifest = m
	out.Signer, out.Trusted, err = seal.OpenNote(sig, "release "+d.Short(), text(d), r.ring.Verifiers())
	return out, err
}

// List returns all releases, the first one first. What is wrong with one that
// cannot be used is in its Broken.
func (r *Releases) List() ([]Release, error) {
	if r.broken != nil {
		return nil, r.broken
	}
	out := []Release{}
	for _, d := range r.digests() {
		v, err := r.view(d)
		if err != nil && isle.CodeOf(err) == isle.NotFound {
			continue // removed meanwhile
		}
		v.Broken = err
		out = append(out, v)
	}
	return out, nil
}

// digests are those of all releases, in the order in which they came.
func (r *Releases) digests() []isle.Digest {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make([]isle.Digest, 0, len(r.known))
	for d := range r.known {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b isle.Digest) int {
		if c := r.known[a].Created.Compare(r.known[b].Created); c != 0 {
			return c
		}
		return strings.Compare(string(a), string(b))
	})
	return out
}

// Images calls use with each image that a release needs.
func (r *Releases) Images(use func(image.Image)) {
	for _, d := range r.digests() {
		m, _, err := r.read(d)
		if err != nil {
			continue // it cannot be used, whatever is kept
		}
		for _, s := range m.Services {
			use(s.Image)
		}
	}
}

// Look returns the release of a digest, of a part of one that begins it (at least
// minPrefix hexadecimal characters), or that a stage points at, PROJECT@STAGE. What is wrong with it is in Broken.
func (r *Releases) Look(name string) (Release, error) {
	d, err := r.find(name)
	if err != nil {
		return Release{}, err
	}
	v, err := r.view(d)
	if err != nil && isle.CodeOf(err) == isle.NotFound {
		return Release{}, err
	}
	v.Broken = err
	return v, nil
}

// Launch is Use with the images of the services, whose layers are what their
// digests say. They stay in the store as long as their caller holds it.
func (r *Releases) Launch(ctx context.Context, name string) (rel Release, images map[string]image.Image, err error) {
	if rel, err = r.Use(name); err != nil {
		return rel, nil, err
	}
	images = rel.Manifest.Images()
	for _, s := range rel.Manifest.Services {
		if _, err := r.cfg.Images.Verify(ctx, s.Image); err != nil {
			e := isle.Errorf(isle.CodeOf(err), "release %s cannot be launched, the image of service %s: %w", rel.Digest.Short(), s.Name, err)
			if c := rel.Source.Commit; c != "" {
				return rel, nil, e.WithHint("`isle build --no-cache` of commit %s makes the image anew, bit for bit", c[:min(len(c), 12)])
			}
			return rel, nil, e.WithHint("`isle build --no-cache` of the files that it was made of makes the image anew, bit for bit")
		}
		if titled, err := r.cfg.Images.Image(s.Digest); err == nil {
			images[s.Name] = titled
		}
	}
	return rel, images, nil
}

// Use returns a release that something is about to be made of. It fails with
// Untrusted where it is not what was sealed, or not signed by a key that this
// server trusts.
func (r *Releases) Use(name string) (Release, error) {
	v, err := r.Look(name)
	switch {
	case err != nil:
		return v, err
	case v.Broken != nil:
		return v, v.Broken
	case !v.Trusted:
		return v, isle.Errorf(isle.Untrusted, "release %s is signed by %s, which this server does not trust: nothing is launched from it", v.Digest.Short(), clip(v.Signer)).
			WithHint("trust its key, as `isle release trust` shows it on that server: isle release trust KEY")
	}
	return v, nil
}

// minPrefix is how much of a digest must be said.
const minPrefix = 6

// find returns the digest that a name is of.
func (r *Releases) find(name string) (isle.Digest, error) {
	if r.broken != nil {
		return "", r.broken
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if project, stage, ok := strings.Cut(name, "@"); ok {
		if s, ok := r.stages[stageKey{project, stage}]; ok {
			return s.Release, nil
		}
		return "", isle.Errorf(isle.NotFound, "stage %s of %s points at no release", clip(stage), clip(project)).WithHint("isle promote %s --to %s", clip(project), clip(stage))
	}
	hex := strings.TrimPrefix(name, "sha256:")
	var found []isle.Digest
	if len(hex) >= minPrefix && len(hex) <= 64 && strings.Trim(hex, "0123456789abcdef") == "" {
		for d := range r.known {
			if strings.HasPrefix(d.Hex(), hex) {
				found = append(found, d)
			}
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return "", isle.Errorf(isle.Conflict, "%q begins %d releases", clip(name), len(found)).WithHint("say more of its digest")
	case len(r.known) == 0:
		return "", isle.Errorf(isle.NotFound, "there is no release %q", clip(name)).WithHint("there is none yet: isle release create makes one")
	}
	return "", isle.Errorf(isle.NotFound, "there is no release %q", clip(name)).WithHint("isle release ls lists them; say at least %d characters of a digest", minPrefix)
}

// Keys returns the keys that are trusted, this server's own first.
func (r *Releases) Keys() ([]seal.TrustedKey, error) {
	if r.broken != nil {
		return nil, r.broken
	}
	return r.ring.Keys(), nil
}

// Trust makes the signatures of another server's key count: what it released is
// launched here.
func (r *Releases) Trust(ctx context.Context, actor isle.Actor, key string) (seal.TrustedKey, error) {
	if r.broken != nil {
		return seal.TrustedKey{}, r.broken
	}
	r.change.Lock()
	defer r.change.Unlock()
	return r.ring.Trust(ctx, r.ledger, actor, key)
}

// Distrust makes the signatures of a key count no more. It is said whole, or by
// its name.
func (r *Releases) Distrust(ctx context.Context, actor isle.Actor, key string) (seal.TrustedKey, error) {
	if r.broken != nil {
		return seal.TrustedKey{}, r.broken
	}
	r.change.Lock()
	defer r.change.Unlock()
	return r.ring.Distrust(ctx, r.ledger, actor, key)
}
