package release

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"strconv"

	"isle"
	"isle/internal/audit"
	"isle/internal/seal"
)

// Import reads a release from a file that Export wrote, here or elsewhere. Nothing
// of one is taken in that a key that this server trusts has not signed, and each
// layer must have its digest: what is launched is read by the kernel. allow is
// asked before anything is stored or kept in memory, whether whoever imports may, for
// the project.
func (r *Releases) Import(ctx context.Context, actor isle.Actor, from io.Reader, allow func(project string) error) (Release, error) {
	if r.shelf.Err() != nil {
		return Release{}, r.shelf.Err()
	}
	in := &reader{tar: tar.NewReader(bufio.NewReaderSize(contextReader{ctx, from}, 256<<10))}
	var refused error
	f, err := in.file(r.shelf.Ring().Verifiers(), publics(r.shelf.Ring().Keys()), func(project string) error {
		refused = allow(project)
		return refused
	})
	switch {
	case refused != nil:
		return Release{}, refused
	case err != nil:
		return Release{}, ended(ctx, err)
	}
	err = in.layers(&f, func(d isle.Digest, body io.Reader) error {
		if r.cfg.Images.HasLayer(d) {
			_, err := io.Copy(io.Discard, body)
			return err
		}
		return r.cfg.Images.PutLayer(ctx, d, body)
	})
	if err != nil {
		return Release{}, ended(ctx, err)
	}
	for _, s := range f.Manifest.Services { // those that are whole are images from now on
		if err := r.cfg.Images.PutImage(s.Image); err != nil && isle.CodeOf(err) != isle.NotFound {
			return Release{}, err
		}
	}
	r.shelf.Lock()
	defer r.shelf.Unlock()
	if _, ok := r.record(f.Digest); ok {
		return r.view(f.Digest)
	}
	now := r.cfg.Now().UTC()
	rec := record{Created: now, By: actor, Project: f.Manifest.Project, Lock: isle.DigestOf(f.lock), Imported: true}
	files := map[string][]byte{seal.FileManifest: f.manifest, seal.FileSignature: f.signature, fileLock: f.lock}
	for i, a := range f.Attestations {
		if a.Kind == Provenance && rec.Source == (Source{}) {
			rec.Source = a.Source
		}
		a.Added = a.added(now)
		rec.Attestations = append(rec.Attestations, a)
		files[a.file()] = f.statements[i]
	}
	e := audit.NewEvent(actor, isle.ActionReleaseImport, resourceOf(f.Manifest.Project), isle.Allow, "").With("signer", f.Signer).With("layers", strconv.Itoa(f.Layers))
	if err := r.publish(ctx, f.Digest, rec, files, e); err != nil {
		return Release{}, err
	}
	return r.view(f.Digest)
}

// ended gives a read that was cut short its cause.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if known := new(isle.Error); !errors.As(err, &known) {
		return errFile("%w", err)
	}
	return err
}

// digestOf reads to the end.
func digestOf(r io.Reader) (isle.Digest, error) {
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, r, make([]byte, 256<<10)); err != nil {
		return "", errFile("%w", err)
	}
	return isle.DigestFromSum(h.Sum(nil)), nil
}
