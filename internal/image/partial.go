package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	"isle"
)

// maxPartial is how old the part of a blob may be that is still gone on with.
const maxPartial = 7 * 24 * time.Hour

// A Fetch opens a blob's bytes from an offset on. It says where what it opened
// begins: at the offset, or at 0 where the other side cannot begin elsewhere.
type Fetch func(ctx context.Context, offset int64) (r io.ReadCloser, start int64, err error)

// PullBlob stores a blob of size bytes that fetch opens. What has arrived before
// an error is kept, and the next PullBlob of the digest, of this process or of a
// later one, goes on from there. More bytes than size are not read; bytes with
// another digest are Untrusted, and nothing of them stays. progress, which may be
// nil, is told how many bytes are there. One PullBlob of a digest runs at a time.
func (s *Store) PullBlob(ctx context.Context, d isle.Digest, size int64, fetch Fetch, progress func(done int64)) error {
	if !d.Valid() || size < 0 {
		return isle.Errorf(isle.Invalid, "%.80q of %d bytes is no blob", d, size)
	}
	leave, err := s.pulling.enter(ctx, d)
	if err != nil {
		return err
	}
	defer leave()
	if f, err := s.OpenBlob(d); err == nil {
		return f.Close()
	}
	name := filepath.Join(s.dir, "partial", d.Hex())
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return storeError("store "+d.Short(), err)
	}
	defer f.Close()
	p := &partial{draft: draft{file: f, hash: sha256.New(), room: s.room()}, size: size, progress: progress}
	if err := p.resume(ctx); err != nil {
		return storeError("store "+d.Short(), err)
	}
	if err := p.pull(ctx, fetch); err != nil {
		return err
	}
	if got := isle.DigestFromSum(p.hash.Sum(nil)); got != d || p.done != size {
		os.Remove(name)
		return isle.Errorf(isle.Untrusted, "content has digest %s and %d bytes, and %s with %d was asked for", got, p.done, d, size).
			WithHint("it is not what its name says: nothing of it was kept")
	}
	if err := p.publish(s.BlobPath(d)); err != nil {
		return storeError("store "+d.Short(), err)
	}
	return s.remember(s.BlobPath(d))
}

// A partial is a blob of which a part is there.
type partial struct {
	draft
	done, size int64
	progress   func(int64)
}

// resume hashes what is there of an earlier attempt.
func (p *partial) resume(ctx context.Context) error {
	n, err := io.Copy(p.hash, contextReader{ctx, io.LimitReader(p.file, p.size+1)})
	if err != nil {
		return err
	}
	if p.done = n; n > p.size {
		return p.restart()
	}
	return nil
}

// restart throws away what is there.
func (p *partial) restart() error {
	p.done = 0
	p.hash.Reset()
	if err := p.file.Truncate(0); err != nil {
		return err
	}
	_, err := p.file.Seek(0, io.SeekStart)
	return err
}

func (p *partial) pull(ctx context.Context, fetch Fetch) error {
	if p.done == p.size {
		return nil
	}
	r, start, err := fetch(ctx, p.done)
	if err != nil {
		return err
	}
	defer r.Close()
	switch start {
	case p.done:
	case 0:
		if err := p.restart(); err != nil {
			return storeError("store a blob", err)
		}
	default:
		return isle.Errorf(isle.Unavailable, "the content was asked for from byte %d on, and came from %d", p.done, start)
	}
	source := &failingReader{r: contextReader{ctx, io.LimitReader(r, p.size-p.done)}}
	_, err = io.CopyBuffer(struct{ io.Writer }{p}, source, make([]byte, 256<<10))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case source.err != nil:
		return isle.Errorf(isle.Unavailable, "the content ended after %d of %d bytes: %w", p.done, p.size, source.err)
	case err != nil:
		return storeError("store a blob", err)
	case p.done < p.size:
		return isle.Errorf(isle.Unavailable, "the content ended after %d of %d bytes", p.done, p.size)
	}
	return nil
}

// Write appends to what is there.
func (p *partial) Write(b []byte) (int, error) {
	n, err := p.draft.Write(b)
	p.done += int64(n)
	if p.progress != nil {
		p.progress(p.done)
	}
	return n, err
}

// dropPartials removes what arrived of blobs that nobody went on with.
func (s *Store) dropPartials(now time.Time, dryRun bool, c *Collected) error {
	files, err := os.ReadDir(filepath.Join(s.dir, "partial"))
	if err != nil {
		return storeError("list what arrived of blobs", err)
	}
	for _, f := range files {
		if fi, err := f.Info(); err == nil && now.Sub(fi.ModTime()) > maxPartial {
			if err := s.drop(filepath.Join(s.dir, "partial", f.Name()), dryRun, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// A Verifier passes bytes on and says at their end whether they were those of a
// digest and as many as was said. It never passes on more than that.
type Verifier struct {
	r    io.Reader
	hash hash.Hash
	want isle.Digest
	left int64
}

// NewVerifier makes a Verifier of what r gives.
func NewVerifier(r io.Reader, want isle.Digest, size int64) *Verifier {
	return &Verifier{r: r, hash: sha256.New(), want: want, left: size}
}

// Read implements io.Reader. Its last call returns io.EOF only where digest and
// size are right; otherwise the error is Untrusted.
func (v *Verifier) Read(p []byte) (int, error) {
	if v.left == 0 {
		var more [1]byte
		if n, err := io.ReadFull(v.r, more[:]); n > 0 {
			return 0, isle.Errorf(isle.Untrusted, "%s is longer than it is said to be", v.want)
		} else if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if got := isle.DigestFromSum(v.hash.Sum(nil)); got != v.want {
			return 0, isle.Errorf(isle.Untrusted, "content has digest %s, not %s", got, v.want)
		}
		return 0, io.EOF
	}
	n, err := v.r.Read(p[:min(int64(len(p)), v.left)])
	v.hash.Write(p[:n])
	v.left -= int64(n)
	if errors.Is(err, io.EOF) {
		if err = nil; v.left > 0 && n == 0 {
			err = isle.Errorf(isle.Untrusted, "%s ends %d bytes too early", v.want, v.left)
		}
	}
	return n, err
}

// ReadVerified reads all of what has a digest and a size of at most limit bytes.
func ReadVerified(r io.Reader, want isle.Digest, size, limit int64) ([]byte, error) {
	if size < 0 || size > limit {
		return nil, isle.Errorf(isle.Invalid, "%s has %d bytes; at most %d are read", want, size, limit)
	}
	var b bytes.Buffer
	if _, err := io.Copy(&b, NewVerifier(r, want, size)); err != nil {
		return nil, fmt.Errorf("read %s: %w", want.Short(), err)
	}
	return b.Bytes(), nil
}
