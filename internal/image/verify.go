package image

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"isle"
)

// Verify checks that every layer's file has the bytes its digest says and
// returns their paths, lowest first. A file is hashed once; its stamp is kept
// in memory and beside the layers, so that neither the next launch nor the next
// server hashes it again unless the file was touched. A changed layer is
// Invalid, and is never handed out.
func (s *Store) Verify(ctx context.Context, m Image) ([]string, error) {
	if m.Format != FormatVersion {
		return nil, isle.Errorf(isle.Invalid, "image %s has format %d, this server knows %d", m.Digest().Short(), m.Format, FormatVersion).WithHint("`isle lock --update`, then `isle build`")
	}
	paths := make([]string, len(m.Layers))
	for i, l := range m.Layers {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := s.verifyLayer(l); err != nil {
			return nil, err
		}
		paths[i] = s.LayerPath(l.Digest)
	}
	return paths, nil
}

// Reread is Verify that reads every byte, whatever is known of the files. It fails
// with Invalid for the first layer that has changed.
func (s *Store) Reread(ctx context.Context, m Image) error {
	for _, l := range m.Layers {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.mu.Lock()
		delete(s.stamps, s.LayerPath(l.Digest))
		s.mu.Unlock()
		if err := s.rereadLayer(l); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) rereadLayer(l Layer) error {
	path := s.LayerPath(l.Digest)
	f, err := os.Open(path)
	if err != nil {
		return storeError("open layer "+l.Digest.Short(), err)
	}
	defer f.Close()
	ok, err := s.intact(f, l.Digest)
	if err != nil {
		return storeError("verify layer "+l.Digest.Short(), err)
	}
	if !ok {
		os.Remove(filepath.Join(s.dir, "stamps", l.Digest.Hex())) // which said otherwise
		return isle.Errorf(isle.Invalid, "layer %s (%s, %s) was changed on disk: its bytes do not have its digest; it will not be launched", l.Digest, l.Kind, path).
			WithHint("find out who wrote to it; `isle build --no-cache` makes it anew")
	}
	return nil
}

// VerifyLayer does for one layer what Verify does for an image's.
func (s *Store) VerifyLayer(l Layer) (path string, err error) {
	return s.LayerPath(l.Digest), s.verifyLayer(l)
}

func (s *Store) verifyLayer(l Layer) error {
	path := s.LayerPath(l.Digest)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return isle.Errorf(isle.NotFound, "layer %s (%s) is not in the store", l.Digest, l.Kind).WithHint("`isle build` makes it")
	} else if err != nil {
		return storeError("open layer "+l.Digest.Short(), err)
	}
	defer f.Close()
	s.recall(path, l.Digest)
	ok, err := s.intact(f, l.Digest)
	if err != nil {
		return storeError("verify layer "+l.Digest.Short(), err)
	}
	if !ok {
		return isle.Errorf(isle.Invalid, "layer %s (%s, %s) was changed on disk: its bytes do not have its digest; it will not be launched", l.Digest, l.Kind, path).
			WithHint("find out who wrote to it; `isle build --no-cache` makes it anew")
	}
	s.persist(path, l.Digest)
	return nil
}

// intact reports whether f has digest d. It believes a stamp it knows, and
// hashes otherwise. The stamp is taken before hashing and checked after it, so
// that a file written to meanwhile is not believed.
func (s *Store) intact(f *os.File, d isle.Digest) (bool, error) {
	before, err := f.Stat()
	if err != nil {
		return false, err
	}
	if !before.Mode().IsRegular() {
		return false, nil
	}
	now, err := stampOf(before)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	known, ok := s.stamps[f.Name()]
	s.mu.Unlock()
	if ok && known == now {
		return true, nil
	}
	got, err := digestFile(f)
	if err != nil {
		return false, err
	}
	after, err := f.Stat()
	if err != nil {
		return false, err
	}
	end, err := stampOf(after)
	if err != nil || end != now || got != d {
		return false, err
	}
	s.mu.Lock()
	s.stamps[f.Name()] = now
	s.mu.Unlock()
	return true, nil
}

// remember notes that the file at path was just written with the right bytes.
func (s *Store) remember(path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return storeError("read back "+filepath.Base(path), err)
	}
	st, err := stampOf(fi)
	if err != nil {
		return storeError("read back "+filepath.Base(path), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stamps[path] = st
	return nil
}

// recall takes up the stamp that an earlier process persisted.
func (s *Store) recall(path string, d isle.Digest) {
	s.mu.Lock()
	_, ok := s.stamps[path]
	s.mu.Unlock()
	if ok {
		return
	}
	b, err := os.ReadFile(filepath.Join(s.dir, "stamps", d.Hex()))
	var st stamp
	if err != nil || json.Unmarshal(b, &st) != nil {
		return // hashed again
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.stamps[path]; !ok {
		s.stamps[path] = st
	}
}

// persist writes the stamp for the next process. It is a hint: lost or torn, it
// costs one hashing, so it is neither synced nor reported.
func (s *Store) persist(path string, d isle.Digest) {
	s.mu.Lock()
	st, ok := s.stamps[path]
	s.mu.Unlock()
	name := filepath.Join(s.dir, "stamps", d.Hex())
	b, err := json.Marshal(st)
	if err != nil || !ok {
		return
	}
	if old, err := os.ReadFile(name); err == nil && string(old) == string(b) {
		return
	}
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "stamp-")
	if err != nil {
		return
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err != nil || cerr != nil || os.Rename(f.Name(), name) != nil {
		os.Remove(f.Name())
	}
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
