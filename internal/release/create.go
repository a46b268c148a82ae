package release

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/image"
	"isle/internal/ledger"
	"isle/internal/seal"
	"isle/internal/spec"
)

// A Request asks for a release of what was built.
type Request struct {
	Spec   spec.File
	Lock   *spec.Lock
	Images map[string]image.Image // by service
	Source Source
}

// Create seals a release, with its provenance and its bill of materials. One that
// is there already stays as it is, made is false, and only what is new of where it
// comes from is added.
func (r *Releases) Create(ctx context.Context, actor isle.Actor, req Request) (rel Release, made bool, err error) {
	switch {
	case r.shelf.Err() != nil:
		return rel, false, r.shelf.Err()
	case r.cfg.Key == nil:
		return rel, false, isle.Errorf(isle.Unavailable, "nothing can be released: this server has no key to sign with").WithHint("see `isle doctor`")
	}
	m, err := New(req.Spec, req.Images)
	if err != nil {
		return rel, false, err
	}
	encoded, err := m.Encode()
	if err != nil {
		return rel, false, err
	}
	d := isle.DigestOf(encoded)
	r.shelf.Lock()
	defer r.shelf.Unlock()
	if _, ok := r.record(d); ok {
		rel, err := r.again(ctx, actor, d, req)
		return rel, false, err
	}
	sig, err := r.shelf.Sign(d)
	if err != nil {
		return rel, false, err
	}
	lock := req.Lock.Encode()
	rec := record{Created: r.cfg.Now().UTC(), By: actor, Project: m.Project, Source: req.Source, Lock: isle.DigestOf(lock)}
	e := audit.NewEvent(actor, isle.ActionReleaseCreate, resourceOf(m.Project), isle.Allow, "")
	files := map[string][]byte{seal.FileManifest: encoded, seal.FileSignature: sig, fileLock: lock}
	about := subject{digest: d, manifest: m, lock: req.Lock, source: req.Source, actor: actor, entry: e.ID, at: rec.Created}
	for _, say := range []func(subject) (any, string){r.provenance, r.bill} {
		predicate, kind := say(about)
		b, err := r.attest(about, kind, predicate)
		if err != nil {
			return rel, false, err
		}
		a := Attestation{Kind: kind, Digest: isle.DigestOf(b), Added: rec.Created, Source: req.Source}
		rec.Attestations = append(rec.Attestations, a)
		files[a.file()] = b
	}
	if err := r.publish(ctx, d, rec, files, from(e, req.Source)); err != nil {
		return rel, false, err
	}
	rel, err = r.view(d)
	return rel, true, err
}

// record is what is known of a release.
func (r *Releases) record(d isle.Digest) (record, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	rec, ok := r.known[d]
	return rec, ok
}

// resourceOf is the releases of a project as what an action is done to.
func resourceOf(project string) isle.Resource { return isle.Resource{Kind: "release", Name: project} }

// from puts into an entry what git knows of the files.
func from(e audit.Entry, s Source) audit.Entry {
	if s.Branch != "" {
		e = e.With("branch", s.Branch)
	}
	if s.Commit != "" {
		e = e.With("commit", s.Commit)
	}
	return e.With("dirty", strconv.FormatBool(s.Dirty || s.Commit == ""))
}

// publish makes files a release. dir is folder and record at once: what the ledger
// does not name the next start takes away. change is held.
func (r *Releases) publish(ctx context.Context, d isle.Digest, rec record, files map[string][]byte, e audit.Entry) (err error) {
	r.mu.RLock()
	n := len(r.known)
	r.mu.RUnlock()
	if n >= MaxReleases {
		return isle.Errorf(isle.Exhausted, "there are %d releases, as many as there may be", n).WithHint("remove some: isle release rm")
	}
	dir, err := os.MkdirTemp(r.cfg.Dir, seal.PrefixDraft)
	if err != nil {
		return diskError("make a release", err)
	}
	defer func() {
		if err != nil {
			err = diskError("make a release", errors.Join(err, os.RemoveAll(dir)))
		}
	}()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := seal.Write(filepath.Join(dir, name), files[name]); err != nil {
			return err
		}
	}
	if err := seal.SyncFolder(dir); err != nil {
		return err
	}
	r.cfg.Fault("release.written")
	if err := os.Rename(dir, r.dir(d)); err != nil {
		return err
	}
	dir = r.dir(d)
	if err := seal.SyncFolder(r.cfg.Dir); err != nil {
		return err
	}
	r.cfg.Fault("release.renamed")
	if err := r.put(ctx, d, rec, e); err != nil {
		return err
	}
	r.cfg.Fault("release.recorded")
	return nil
}

// put records a release. change is held.
func (r *Releases) put(ctx context.Context, d isle.Digest, rec record, e audit.Entry) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return isle.Errorf(isle.Internal, "cannot encode a release's record: %w", err)
	}
	e.Release = d
	for _, a := range rec.Attestations { // the log vouches for them by their hashes
		e = e.With(a.Kind, string(a.Digest))
	}
	if err := r.shelf.Change(ctx, []ledger.Record{{Key: keyRelease + d.Hex(), Body: b}}, nil, e); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[d] = rec
	return nil
}

// again is Create of what is there: where it comes from another commit, or from
// committed files now, that is attested too. change is held.
func (r *Releases) again(ctx context.Context, actor isle.Actor, d isle.Digest, req Request) (Release, error) {
	rel, err := r.view(d)
	if err != nil {
		return rel, err
	}
	rec, _ := r.record(d)
	if slices.ContainsFunc(rec.Attestations, func(a Attestation) bool { return a.Kind == Provenance && a.Source == req.Source }) {
		return rel, nil
	}
	if len(rec.Attestations) >= maxAttestations {
		return rel, nil
	}
	e := audit.NewEvent(actor, isle.ActionReleaseCreate, resourceOf(rec.Project), isle.Allow, "it is there already; where it comes from is added")
	at := r.cfg.Now().UTC()
	about := subject{digest: d, manifest: rel.Manifest, lock: req.Lock, source: req.Source, actor: actor, entry: e.ID, at: at}
	predicate, kind := r.provenance(about)
	b, err := r.attest(about, kind, predicate)
	if err != nil {
		return rel, err
	}
	a := Attestation{Kind: kind, Digest: isle.DigestOf(b), Added: at, Source: req.Source}
	if err := seal.Write(filepath.Join(r.dir(d), a.file()), b); err != nil {
		return rel, diskError("add to a release", err)
	}
	if err := seal.SyncFolder(r.dir(d)); err != nil {
		return rel, diskError("add to a release", err)
	}
	rec.Attestations = append(slices.Clone(rec.Attestations), a)
	if err := r.put(ctx, d, rec, from(e, req.Source)); err != nil {
		return rel, err
	}
	return r.view(d)
}

// Remove removes a release. Where something runs it that is a Conflict.
func (r *Releases) Remove(ctx context.Context, actor isle.Actor, name string) (isle.Digest, error) {
	d, err := r.find(name)
	if err != nil {
		return "", err
	}
	return r.remove(ctx, actor, d, "")
}

// remove is Remove of one release; why is for the log.
func (r *Releases) remove(ctx context.Context, actor isle.Actor, d isle.Digest, why string) (isle.Digest, error) {
	r.shelf.Lock()
	defer r.shelf.Unlock()
	rec, ok := r.record(d)
	if !ok {
		return d, isle.Errorf(isle.NotFound, "there is no release %s any more", d.Short())
	}
	if r.cfg.Now().Before(rec.Keep) {
		return d, isle.Errorf(isle.Conflict, "release %s is kept until %s", d.Short(), rec.Keep.Format(time.DateTime)).WithHint("isle release keep %s --off", d.Short())
	}
	if on := r.cfg.InUse(d); len(on) > 0 {
		return d, isle.Errorf(isle.Conflict, "release %s runs in %s", d.Short(), some(on)).WithHint("end that first, or run another release there")
	}
	if err := r.kept(d); err != nil {
		return d, err
	}
	e := audit.NewEvent(actor, isle.ActionReleaseRemove, resourceOf(rec.Project), isle.Allow, why)
	e.Release = d
	if err := r.shelf.Change(ctx, nil, []string{keyRelease + d.Hex()}, e); err != nil {
		return d, err
	}
	r.mu.Lock()
	delete(r.known, d)
	r.mu.Unlock()
	r.cfg.Fault("release.forgotten")
	// It is gone by the log: what cannot be removed now the next start removes.
	if err := os.RemoveAll(r.dir(d)); err != nil {
		r.cfg.Slog.Error("what is left of a removed release could not be taken away; the next start does it", "release", d, "err", err)
	}
	return d, nil
}

// some names the first few of many.
func some(names []string) string {
	const few = 3
	out := ""
	for i, n := range names {
		switch {
		case i == few:
			return out + " and " + strconv.Itoa(len(names)-few) + " more"
		case i > 0:
			out += ", "
		}
		out += n
	}
	return out
}

// diskError gives an error of the file system its code: a full disk is Exhausted
// and says how to make room.
func diskError(what string, err error) error {
	if err == nil {
		return nil
	}
	if known := new(isle.Error); errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return isle.Errorf(isle.Exhausted, "no space left to %s: %w", what, err).WithHint("free what nothing uses with `isle gc`; nothing half-made is left")
	}
	return isle.Errorf(isle.Unavailable, "cannot %s: %w", what, err)
}
