package release

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/image"
	"isle/internal/ledger"
	"isle/internal/policy"
	"isle/internal/seal"
)

// shelfKind is what is kept here, for people, and the ledger that releases, stages and
// trusted keys are records of.
const shelfKind = "release"

// keyRelease begins the key of a release's record: 64 hexadecimal characters
// follow.
const keyRelease = "release/"

// fileLock is beside a release's manifest and signature.
const fileLock = "isle.lock"

// MaxReleases bounds how many there are.
const MaxReleases = 10_000

// Releases are those of one server. They are safe for concurrent use.
type Releases struct {
	cfg   Config
	shelf *seal.Shelf // locked over a change

	mu    sync.RWMutex // guards what follows
	known map[isle.Digest]record
	// stages are what stages of projects point at.
	stages map[stageKey]Stage
	// reaches are what stages record of their doors, by digest.
	reaches map[isle.Digest]policy.Reach
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
	// Keep is until when somebody keeps it; zero: nobody does.
	Keep time.Time `json:"keep,omitzero"`
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
	r := &Releases{cfg: cfg, known: map[isle.Digest]record{}, stages: map[stageKey]Stage{}, reaches: map[isle.Digest]policy.Reach{}}
	var err error
	r.shelf, err = seal.OpenShelf(ctx, seal.ShelfConfig{
		Kind: shelfKind, Dir: cfg.Dir, Store: cfg.Store, Key: cfg.Key, Trust: isle.ActionReleaseTrust,
		MaxManifest: MaxManifest, Lost: "nothing is launched from it", Slog: cfg.Slog, Load: r.load,
	})
	if err != nil {
		return nil, err
	}
	if r.shelf.Err() != nil {
		return r, nil
	}
	return r, r.shelf.Sweep(func(d isle.Digest) bool { _, ok := r.known[d]; return ok }, os.RemoveAll)
}

// load takes one record in.
func (r *Releases) load(rec ledger.Record) bool {
	if hex, ok := strings.CutPrefix(rec.Key, keyRelease); ok {
		var v record
		d := isle.Digest("sha256:" + hex)
		if json.Unmarshal(rec.Body, &v) != nil || !d.Valid() {
			return false
		}
		r.known[d] = v
		return true
	}
	if hex, ok := strings.CutPrefix(rec.Key, keyReach); ok {
		return r.loadReach(hex, rec.Body)
	}
	key, ok := strings.CutPrefix(rec.Key, keyStage)
	return ok && r.loadStage(key, rec.Body)
}

// Err says why no release can be used; nil if they can.
func (r *Releases) Err() error { return r.shelf.Err() }

// dir is the folder of a release.
func (r *Releases) dir(d isle.Digest) string { return r.shelf.Folder(d) }

// read reads the manifest of a release and its signature. It fails with Untrusted
// where they are not what they were.
func (r *Releases) read(d isle.Digest) (m Manifest, sig []byte, err error) {
	b, sig, err := r.shelf.Read(d)
	if err != nil {
		return m, nil, err
	}
	m, err = Decode(b)
	return m, sig, err
}

// view is a release as it is on disk.
func (r *Releases) view(d isle.Digest) (Release, error) {
	r.mu.RLock()
	rec, ok := r.known[d]
	r.mu.RUnlock()
	out := Release{Digest: d, Created: rec.Created, By: rec.By, Source: rec.Source, Attestations: rec.Attestations, Imported: rec.Imported, Keep: rec.Keep}
	if !ok {
		return out, isle.Errorf(isle.NotFound, "there is no release %s", d.Short())
	}
	m, sig, err := r.read(d)
	if err != nil {
		out.Manifest.Project = rec.Project // who may see it is asked by that
		return out, err
	}
	out.Manifest = m
	out.Signer, out.Trusted, err = r.shelf.OpenNote(sig, d)
	return out, err
}

// List returns all releases, the first one first. What is wrong with one that
// cannot be used is in its Broken.
func (r *Releases) List() ([]Release, error) {
	if r.shelf.Err() != nil {
		return nil, r.shelf.Err()
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
	return seal.ByTime(r.known, func(rec record) time.Time { return rec.Created })
}

// Images calls use with each image that a release needs, but for some.
func (r *Releases) Images(but []isle.Digest, use func(image.Image)) {
	for _, d := range r.digests() {
		if slices.Contains(but, d) {
			continue
		}
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
// seal.MinPrefix hexadecimal characters), or that a stage points at, PROJECT@STAGE. What is wrong with it is in Broken.
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

// find returns the digest that a name is of.
func (r *Releases) find(name string) (isle.Digest, error) {
	if r.shelf.Err() != nil {
		return "", r.shelf.Err()
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if project, stage, ok := strings.Cut(name, "@"); ok {
		if s, ok := r.stages[stageKey{project, stage}]; ok {
			return s.Release, nil
		}
		return "", isle.Errorf(isle.NotFound, "stage %s of %s points at no release", clip(stage), clip(project)).WithHint("isle promote %s --to %s", clip(project), clip(stage))
	}
	found := seal.Begun(r.known, name)
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return "", isle.Errorf(isle.Conflict, "%q begins %d releases", clip(name), len(found)).WithHint("say more of its digest")
	case len(r.known) == 0:
		return "", isle.Errorf(isle.NotFound, "there is no release %q", clip(name)).WithHint("there is none yet: isle release create makes one")
	}
	return "", isle.Errorf(isle.NotFound, "there is no release %q", clip(name)).WithHint("isle release ls lists them; say at least %d characters of a digest", seal.MinPrefix)
}

// Keys returns the keys that are trusted, this server's own first.
func (r *Releases) Keys() ([]seal.TrustedKey, error) { return r.shelf.Keys() }

// Ring is the keys whose signatures count.
func (r *Releases) Ring() (*seal.Ring, error) { return r.shelf.Ring(), r.shelf.Err() }

// Trust makes the signatures of another server's key count: what it released is
// launched here.
func (r *Releases) Trust(ctx context.Context, actor isle.Actor, key string) (seal.TrustedKey, error) {
	return r.shelf.Trust(ctx, actor, key)
}

// Distrust makes the signatures of a key count no more. It is said whole, or by
// its name.
func (r *Releases) Distrust(ctx context.Context, actor isle.Actor, key string) (seal.TrustedKey, error) {
	return r.shelf.Distrust(ctx, actor, key)
}
