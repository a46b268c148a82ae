package release

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"path/filepath"
	"time"

	"isle"
	"isle/internal/seal"
	"isle/internal/spec"
)

// The file of a release is a tar (POSIX pax) of entries in this order: the
// manifest, the signature, the lock, each attestation, the first one first, and,
// where they are wanted, each layer once, in the order of the manifest. The same
// release gives the same bytes.
const (
	entryManifest    = "isle-release/manifest.json"
	entrySignature   = "isle-release/signature"
	entryLock        = "isle-release/isle.lock"
	entryAttestation = "isle-release/attestations/" // and its digest's hexadecimal
	entryLayer       = "isle-release/layers/"       // and its digest's hexadecimal
)

// Export writes a release as one file, with its layers where those are wanted.
func (r *Releases) Export(ctx context.Context, name string, layers bool, w io.Writer) error {
	rel, err := r.Use(name)
	if err != nil {
		return err
	}
	if layers {
		if _, _, err := r.Launch(ctx, string(rel.Digest)); err != nil {
			return err
		}
	}
	t := tar.NewWriter(w)
	dir := r.dir(rel.Digest)
	for _, f := range []struct {
		entry, file string
		limit       int64
	}{{entryManifest, seal.FileManifest, MaxManifest}, {entrySignature, seal.FileSignature, seal.MaxNote}, {entryLock, fileLock, spec.MaxLockSize}} {
		b, err := seal.Read(filepath.Join(dir, f.file), f.limit)
		if err != nil {
			return diskError("export a release", err)
		}
		if f.file == fileLock {
			if err := r.checkLock(rel.Digest, b); err != nil {
				return err
			}
		}
		if err := entry(t, f.entry, int64(len(b)), bytes.NewReader(b)); err != nil {
			return err
		}
	}
	for _, a := range rel.Attestations {
		b, err := r.Statement(rel.Digest, a)
		if err != nil {
			return err
		}
		if err := entry(t, entryAttestation+a.Digest.Hex(), int64(len(b)), bytes.NewReader(b)); err != nil {
			return err
		}
	}
	if layers {
		for _, l := range rel.Manifest.layers() {
			if err := r.exportLayer(ctx, t, l.Digest, l.Size); err != nil {
				return err
			}
		}
	}
	return t.Close()
}

// checkLock fails with Untrusted where the lock that lies with a release is not the
// one that was recorded with it.
func (r *Releases) checkLock(d isle.Digest, lock []byte) error {
	if rec, ok := r.record(d); ok && rec.Lock == isle.DigestOf(lock) {
		return nil
	}
	return isle.Errorf(isle.Untrusted, "the lock of release %s was changed on disk", d.Short()).WithHint("find out who wrote to %s", r.dir(d))
}

func entry(t *tar.Writer, name string, size int64, r io.Reader) error {
	err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o400, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
	if err == nil {
		_, err = io.CopyBuffer(struct{ io.Writer }{t}, r, make([]byte, 256<<10))
	}
	return err
}

func (r *Releases) exportLayer(ctx context.Context, t *tar.Writer, d isle.Digest, size int64) error {
	f, err := seal.Open(r.cfg.Images.LayerPath(d))
	if err != nil {
		return diskError("export layer "+d.Short(), err)
	}
	defer f.Close()
	return entry(t, entryLayer+d.Hex(), size, contextReader{ctx, io.LimitReader(f, size)})
}

// A contextReader ends when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
