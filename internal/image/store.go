package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"isle"
)

// A Store is one folder of content-addressed files:
//
//	blobs/sha256/HEX    downloaded packages, copied files, trees
//	layers/sha256/HEX   EROFS files
//	images/sha256/HEX   manifests, JSON
//	names/HEX           what people call images, by the hash of the name, JSON
//	partial/HEX         blobs of which a part has arrived (PullBlob)
//	stamps/HEX          which state of a layer's file was hashed
//	tmp/                files on their way in; emptied at Open
//
// Folders are 0700 and files 0400. One process at a time uses the folder; its
// methods may be called from any number of goroutines.
type Store struct {
	dir     string
	reserve int64 // bytes of the disk that a large file leaves free

	mu     sync.Mutex
	stamps map[string]stamp // by path; what was hashed and found right

	using sync.RWMutex // held shared by who relies on what is in the store, whole by Collect

	pulling pulls
}

// pulls lets one goroutine at a time pull a blob.
type pulls struct {
	mu   sync.Mutex
	busy map[isle.Digest]chan struct{} // closed when its puller is done
}

// enter waits until nobody else pulls d, and returns the way out.
func (p *pulls) enter(ctx context.Context, d isle.Digest) (leave func(), err error) {
	for {
		p.mu.Lock()
		other := p.busy[d]
		if other == nil {
			if p.busy == nil {
				p.busy = make(map[isle.Digest]chan struct{})
			}
			mine := make(chan struct{})
			p.busy[d] = mine
			p.mu.Unlock()
			return func() {
				p.mu.Lock()
				delete(p.busy, d)
				p.mu.Unlock()
				close(mine)
			}, nil
		}
		p.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

var storeFolders = []string{"blobs/sha256", "layers/sha256", "images/sha256", "names", "partial", "stamps", "tmp"}

// Open opens the store in dir and makes it if it is not there. What a process
// that died left in tmp is removed.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, storeError("open the image store", err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "tmp")); err != nil {
		return nil, storeError("clear the image store's tmp folder", err)
	}
	for _, name := range storeFolders {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			return nil, storeError("open the image store", err)
		}
	}
	return &Store{dir: dir, reserve: reserve, stamps: make(map[string]stamp)}, nil
}

// Hold keeps Collect from removing anything until release is called. Whoever
// finds something in the store and will use it later holds the store between.
func (s *Store) Hold() (release func()) {
	s.using.RLock()
	return sync.OnceFunc(s.using.RUnlock)
}

// Missing returns those of the digests whose blobs the store lacks.
func (s *Store) Missing(digests []isle.Digest) []isle.Digest {
	var missing []isle.Digest
	seen := make(map[isle.Digest]bool, len(digests))
	for _, d := range digests {
		if seen[d] {
			continue
		}
		seen[d] = true
		if _, err := os.Lstat(s.BlobPath(d)); !d.Valid() || err != nil {
			missing = append(missing, d)
		}
	}
	return missing
}

// BlobPath is where the blob with the digest is or would be.
func (s *Store) BlobPath(d isle.Digest) string { return s.path("blobs", d) }

// LayerPath is where the layer with the digest is or would be.
func (s *Store) LayerPath(d isle.Digest) string { return s.path("layers", d) }

// path never leaves the store, whatever d is.
func (s *Store) path(kind string, d isle.Digest) string {
	if !d.Valid() {
		return filepath.Join(s.dir, kind, "sha256", "invalid")
	}
	return filepath.Join(s.dir, kind, "sha256", d.Hex())
}

// PutBlob stores what r gives under its digest. It reads r to its end even
// where the store has the blob. Bytes with another digest are Invalid, and
// nothing of them stays; a failure of r's is Unavailable.
func (s *Store) PutBlob(ctx context.Context, d isle.Digest, r io.Reader) error {
	if !d.Valid() {
		return isle.Errorf(isle.Invalid, "%q is no digest: want sha256: and 64 lower-case hexadecimal characters", d)
	}
	return s.put(ctx, d, s.BlobPath(d), r)
}

// put makes what r gives the file at path, if it has the digest.
func (s *Store) put(ctx context.Context, d isle.Digest, path string, r io.Reader) error {
	w, err := s.newDraft()
	if err != nil {
		return err
	}
	defer w.discard()
	source := &failingReader{r: contextReader{ctx, r}}
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, source, make([]byte, 256<<10)); err != nil {
		var known *isle.Error
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case source.err != nil && !errors.As(err, &known):
			return isle.Errorf(isle.Unavailable, "the content of %s ended too early: %w", d.Short(), err)
		}
		return storeError("store "+d.Short(), err)
	}
	if got := isle.DigestFromSum(w.hash.Sum(nil)); got != d {
		return isle.Errorf(isle.Invalid, "content has digest %s, not %s", got, d).WithHint("it was changed on the way; send it again")
	}
	if err := w.publish(path); err != nil {
		return storeError("store "+d.Short(), err)
	}
	return s.remember(path)
}

// AddBlob stores what write writes, and returns its digest and its size.
func (s *Store) AddBlob(write func(w io.Writer) error) (isle.Digest, int64, error) {
	w, err := s.newDraft()
	if err != nil {
		return "", 0, err
	}
	defer w.discard()
	b := bufio.NewWriterSize(storing{w}, 256<<10)
	if err := write(b); err != nil {
		return "", 0, err
	}
	if err := b.Flush(); err != nil {
		return "", 0, storeError("store a blob", err)
	}
	size, err := w.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return "", 0, storeError("store a blob", err)
	}
	d := isle.DigestFromSum(w.hash.Sum(nil))
	if err := w.publish(s.BlobPath(d)); err != nil {
		return "", 0, storeError("store "+d.Short(), err)
	}
	return d, size, s.remember(s.BlobPath(d))
}

// storing gives errors of the disk their code.
type storing struct{ w io.Writer }

func (s storing) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	return n, storeError("store a blob", err)
}

// A failingReader remembers how its reader failed, to tell that from a failure
// of the disk.
type failingReader struct {
	r   io.Reader
	err error
}

func (f *failingReader) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}

// OpenBlob opens a blob for reading, hashing it first if this process has not
// seen its present state. A blob that was damaged is removed, so that the next
// try fetches it again.
func (s *Store) OpenBlob(d isle.Digest) (*os.File, error) {
	f, err := os.Open(s.BlobPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, isle.Errorf(isle.NotFound, "the image store has no blob %s", d)
	} else if err != nil {
		return nil, storeError("open blob "+d.Short(), err)
	}
	ok, err := s.intact(f, d)
	if err == nil && !ok {
		os.Remove(f.Name())
		err = isle.Errorf(isle.Unavailable, "blob %s was changed on disk and has been removed", d).WithHint("run the command again to fetch it anew")
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, storeError("open blob "+d.Short(), err)
	}
	return f, nil
}

// ReadBlob returns a blob of at most limit bytes.
func (s *Store) ReadBlob(d isle.Digest, limit int64) ([]byte, error) {
	f, err := s.OpenBlob(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, storeError("read blob "+d.Short(), err)
	}
	if int64(len(b)) > limit {
		return nil, isle.Errorf(isle.Invalid, "blob %s is larger than %d bytes", d, limit)
	}
	return b, nil
}

// PutImage stores an image's manifest. Its layers must be there.
func (s *Store) PutImage(m Image) error {
	for _, l := range m.Layers {
		if !s.HasLayer(l.Digest) {
			return isle.Errorf(isle.NotFound, "image %s: the store has no layer %s", m.Digest().Short(), l.Digest)
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		return storeError("encode image", err)
	}
	path := s.path("images", m.Digest())
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, b) {
		return nil // two fsyncs less
	}
	w, err := s.newDraft()
	if err != nil {
		return err
	}
	defer w.discard()
	if _, err := w.Write(b); err != nil {
		return storeError("store image", err)
	}
	return storeError("store image", w.publish(path))
}

// Image returns the image with the digest.
func (s *Store) Image(d isle.Digest) (Image, error) {
	b, err := os.ReadFile(s.path("images", d))
	if errors.Is(err, fs.ErrNotExist) {
		return Image{}, isle.Errorf(isle.NotFound, "there is no image %s", d).WithHint("`isle build` makes it")
	} else if err != nil {
		return Image{}, storeError("read image "+d.Short(), err)
	}
	var m Image
	if err := json.Unmarshal(b, &m); err != nil || m.Digest() != d {
		return Image{}, isle.Errorf(isle.Invalid, "the manifest of image %s was changed on disk", d).WithHint("`isle build` makes it anew")
	}
	return m, nil
}

// Images returns every image of the store, by digest. Damaged manifests are
// left out.
func (s *Store) Images() ([]Image, error) {
	digests, err := s.list("images")
	if err != nil {
		return nil, err
	}
	var images []Image
	for _, d := range digests {
		if m, err := s.Image(d); err == nil {
			images = append(images, m)
		}
	}
	return images, nil
}

// HasLayer reports whether the layer's file is there; Verify says whether it
// is right.
func (s *Store) HasLayer(d isle.Digest) bool {
	if !d.Valid() {
		return false
	}
	fi, err := os.Lstat(s.LayerPath(d))
	return err == nil && fi.Mode().IsRegular()
}

// list returns the digests of one kind, sorted.
func (s *Store) list(kind string) ([]isle.Digest, error) {
	names, err := os.ReadDir(filepath.Join(s.dir, kind, "sha256"))
	if err != nil {
		return nil, storeError("list "+kind, err)
	}
	var digests []isle.Digest
	for _, n := range names {
		if d := isle.Digest("sha256:" + strings.ToLower(n.Name())); d.Valid() {
			digests = append(digests, d)
		}
	}
	sort.Slice(digests, func(i, j int) bool { return digests[i] < digests[j] })
	return digests, nil
}
