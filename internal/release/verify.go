package release

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"path/filepath"

	"isle"
	"isle/internal/seal"
	"isle/internal/spec"
)

// A Verified is what Verify found in order.
type Verified struct {
	Release Release
	Layers  int   // that have their digests
	Bytes   int64 // of those layers
}

// Verify checks a release as a launch would, and what lies with it: the manifest,
// its signature, its lock, every layer of its images, and every attestation with what that
// says it is of. It fails with the first that is wrong.
func (r *Releases) Verify(ctx context.Context, name string) (out Verified, err error) {
	if out.Release, err = r.Use(name); err != nil {
		return out, err
	}
	rel := out.Release
	lock, err := seal.Read(filepath.Join(r.dir(rel.Digest), fileLock), spec.MaxLockSize)
	if err != nil {
		return out, isle.Errorf(isle.Untrusted, "the lock of release %s cannot be read: %w", rel.Digest.Short(), err).WithHint("put its folder back from a backup")
	}
	if err := r.checkLock(rel.Digest, lock); err != nil {
		return out, err
	}
	for _, a := range rel.Attestations {
		b, err := r.Statement(rel.Digest, a)
		if err != nil {
			return out, err
		}
		if err := verifyStatement(b, a.Kind, rel.Digest, rel.Manifest.Project, publics(r.shelf.Ring().Keys())); err != nil {
			return out, err
		}
	}
	for _, s := range rel.Manifest.Services {
		if _, err := r.cfg.Images.Verify(ctx, s.Image); err != nil {
			return out, isle.Errorf(isle.CodeOf(err), "the image of service %s of release %s: %w", s.Name, rel.Digest.Short(), err)
		}
	}
	for _, l := range rel.Manifest.layers() {
		out.Layers, out.Bytes = out.Layers+1, out.Bytes+l.Size
	}
	return out, ctx.Err()
}

// publics are the keys behind verifiers.
func publics(keys []seal.TrustedKey) (out []ed25519.PublicKey) {
	for _, k := range keys {
		if p, err := seal.PublicOf(k.Key); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// verifyStatement checks the envelope of a statement: one of the keys has signed
// it, it is of the kind, and of the release.
func verifyStatement(b []byte, kind string, d isle.Digest, project string, keys []ed25519.PublicKey) error {
	wrong := func(format string, args ...any) error {
		return isle.Errorf(isle.Untrusted, "the "+kind+" of release "+d.Short()+": "+format, args...)
	}
	e, s, err := decodeEnvelope(b)
	if err != nil {
		return wrong("%w", err)
	}
	signed := false
	message := preAuthentication(e.PayloadType, e.Payload)
	for _, sig := range e.Signatures {
		for _, k := range keys {
			signed = signed || ed25519.Verify(k, message, sig.Sig)
		}
	}
	switch {
	case !signed:
		return wrong("no key that is trusted has signed it")
	case s.PredicateType != predicateType(kind):
		return wrong("it is a statement of another kind, %s", clip(s.PredicateType))
	case len(s.Subject) != 1 || s.Subject[0].Digest["sha256"] != d.Hex() || s.Subject[0].Name != project:
		return wrong("it is of something else")
	case len(*s.Predicate.(*json.RawMessage)) == 0:
		return wrong("it says nothing")
	}
	return nil
}
