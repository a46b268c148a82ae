package debian

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"isle"
	"isle/internal/spec"
)

// parallelFetches is how many packages are downloaded at once.
const parallelFetches = 4

// Fetch brings those of the packages that the store lacks into it, from the
// mirror of the options or of the apt configuration. An interrupted download
// goes on where it stopped. progress is called, one call at a time, with bytes
// of what is missing; nil is none.
//
// Errors are NotFound for a package that the mirror does not have any more,
// Unavailable for a mirror that is away or sends wrong bytes, Exhausted for a
// full disk, Invalid for a lock that names something impossible.
func (a *Archive) Fetch(ctx context.Context, pkgs []spec.LockedPackage, o FetchOptions, progress func(done, total int64)) error {
	missing, err := a.missing(pkgs)
	if err != nil || len(missing) == 0 {
		return err
	}
	suite := o.Suite
	if suite == "" {
		suite = "stable"
	}
	repos, err := a.repositories(suite, o.Mirror)
	if err != nil {
		return err
	}
	bases := map[string][]string{}
	for _, r := range repos {
		if r.suite != suite+"-updates" {
			bases[r.name] = r.bases
		}
	}
	m := &meter{report: progress}
	for _, p := range missing {
		m.total += p.Size
	}
	sort.Slice(missing, func(i, j int) bool { return missing[i].Size > missing[j].Size }) // the long ones first
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelFetches)
	for _, p := range missing {
		g.Go(func() error { return a.fetch(gctx, p, bases[p.Repository], m) })
	}
	err = g.Wait()
	m.flush()
	return err
}

// missing checks what a lock says and returns the packages to fetch, each once.
func (a *Archive) missing(pkgs []spec.LockedPackage) ([]spec.LockedPackage, error) {
	byDigest := map[isle.Digest]spec.LockedPackage{}
	var digests []isle.Digest
	for _, p := range pkgs {
		if !p.Digest.Valid() || !safePath(p.Path) || p.Size <= 0 || p.Repository != "" && p.Repository != "security" {
			return nil, isle.Errorf(isle.Invalid, "the lock's entry for package %q is damaged", p.Name).WithHint("make it anew with `isle lock --update`")
		}
		if _, twice := byDigest[p.Digest]; !twice {
			digests = append(digests, p.Digest)
		}
		byDigest[p.Digest] = p
	}
	var out []spec.LockedPackage
	for _, d := range a.cfg.Blobs.Missing(digests) {
		out = append(out, byDigest[d])
	}
	return out, nil
}

// fetch downloads one package, or waits for another call that is doing so.
func (a *Archive) fetch(ctx context.Context, p spec.LockedPackage, bases []string, m *meter) error {
	for {
		a.mu.Lock()
		other, busy := a.fetches[p.Digest]
		if !busy {
			mine := make(chan struct{})
			a.fetches[p.Digest] = mine
			a.mu.Unlock()
			defer func() {
				a.mu.Lock()
				delete(a.fetches, p.Digest)
				a.mu.Unlock()
				close(mine)
			}()
			return a.download(ctx, p, bases, m)
		}
		a.mu.Unlock()
		select {
		case <-other:
			if len(a.cfg.Blobs.Missing([]isle.Digest{p.Digest})) == 0 {
				m.add(p.Size)
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *Archive) download(ctx context.Context, p spec.LockedPackage, bases []string, m *meter) error {
	name := filepath.Join(a.cfg.Dir, "partial", p.Digest.Hex())
	var last error
	for _, base := range bases {
		address := joinURL(base, p.Path)
		last = a.retry(ctx, address, func() error { return a.downloadOnce(ctx, address, name, p, m) })
		if last == nil || isle.CodeOf(last) != isle.NotFound && isle.CodeOf(last) != isle.Unavailable {
			break
		}
	}
	switch {
	case len(bases) == 0:
		return isle.Errorf(isle.Unavailable, "no %s archive is known to fetch %s %s from", p.Repository, p.Name, p.Version).WithHint("name one with --mirror MAIN,SECURITY")
	case last == nil:
		return a.store(ctx, name, p)
	case isle.CodeOf(last) == isle.NotFound:
		return isle.Errorf(isle.NotFound, "package %s %s is no longer on the mirror (%s)", p.Name, p.Version, p.Path).
			WithHint("fetch it from a snapshot mirror with --mirror URL, or choose new versions with `isle lock --update`")
	}
	return fmt.Errorf("package %s %s: %w", p.Name, p.Version, last)
}

// downloadOnce brings the partial file as far as it gets. When it returns nil
// the file is whole and has the right hash.
func (a *Archive) downloadOnce(ctx context.Context, address, name string, p spec.LockedPackage, m *meter) (err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return diskError("keep a download", err)
	}
	defer f.Close()
	h := sha256.New()
	have, err := io.Copy(h, io.LimitReader(f, p.Size+1))
	if err != nil {
		return diskError("read a download", err)
	}
	if have > p.Size {
		have = 0
	}
	sent := int64(0) // what m was told of this try
	defer func() {
		if err != nil {
			m.add(-sent)
		}
	}()
	if have < p.Size {
		header := http.Header{}
		if have > 0 {
			header.Set("Range", fmt.Sprintf("bytes=%d-", have))
		}
		err = a.do(ctx, address, header, func(r *http.Response, body io.Reader) error {
			if have > 0 && (r.StatusCode != 206 || !strings.HasPrefix(r.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", have))) {
				if r.StatusCode == 206 {
					f.Truncate(0)
					return isle.Errorf(isle.Unavailable, "%s: the mirror sends another part than was asked for", redact(address))
				}
				have = 0
			}
			return a.receive(f, h, body, address, have, p.Size, func(n int64) { sent += n; m.add(n) })
		})
		if errors.Is(err, statusError(http.StatusRequestedRangeNotSatisfiable)) {
			f.Truncate(0)
		}
		if err != nil {
			return err
		}
	} else {
		sent = have
		m.add(have)
	}
	if isle.DigestFromSum(h.Sum(nil)) != p.Digest {
		f.Truncate(0)
		return isle.Errorf(isle.Unavailable, "%s is not the file that is locked", redact(address)).
			WithHint("the mirror or a proxy changed it; nothing was taken from it: name another with --mirror URL")
	}
	return nil
}

// receive appends a body to the partial file from offset have on; the file and
// the hash are reset where that is 0.
func (a *Archive) receive(f *os.File, h hash.Hash, body io.Reader, address string, have, size int64, got func(int64)) error {
	if have == 0 {
		h.Reset()
		if err := f.Truncate(0); err != nil {
			return diskError("keep a download", err)
		}
	}
	if _, err := f.Seek(have, io.SeekStart); err != nil {
		return diskError("keep a download", err)
	}
	got(have)
	buffer := make([]byte, 128<<10)
	for have < size {
		n, err := body.Read(buffer[:min(int64(len(buffer)), size-have)])
		if n > 0 {
			if _, werr := f.Write(buffer[:n]); werr != nil {
				if isle.CodeOf(diskError("", werr)) == isle.Exhausted {
					f.Truncate(0) // leave nothing of it on a full disk
				}
				return diskError("keep a download in "+filepath.Dir(f.Name()), werr)
			}
			h.Write(buffer[:n])
			have += int64(n)
			got(int64(n))
		}
		if have < size && err != nil {
			if err == io.EOF {
				err = errShort
			}
			return isle.Errorf(isle.Unavailable, "%s: %w", redact(address), err)
		}
	}
	return nil
}

func (a *Archive) store(ctx context.Context, name string, p spec.LockedPackage) error {
	f, err := os.Open(name)
	if err != nil {
		return diskError("read a download", err)
	}
	defer f.Close()
	if err := a.cfg.Blobs.PutBlob(ctx, p.Digest, f); err != nil {
		return err
	}
	return os.Remove(name)
}

// A meter adds up progress and reports it, at most ten times a second.
type meter struct {
	total  int64
	report func(done, total int64)

	mu   sync.Mutex
	done int64
	last time.Time
}

func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += n
	if now := time.Now(); m.report != nil && (m.done == m.total || now.Sub(m.last) > 100*time.Millisecond) {
		m.last = now
		m.report(m.done, m.total)
	}
}

func (m *meter) flush() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.report != nil {
		m.report(m.done, m.total)
	}
}
