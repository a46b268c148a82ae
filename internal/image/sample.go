package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"isle"
)

// sampleChunk is how much of a layer is read at once where there is time.
const sampleChunk = 256 << 10

// Sample reads every byte of a layer, as slowly as wait has it, which is called
// before each part with its length. It fails with Invalid where they do not have
// the layer's digest, and it is not handed out any more then; one that is not there
// any more is NotFound.
func (s *Store) Sample(ctx context.Context, l Layer, wait func(ctx context.Context, n int) error) error {
	path := s.LayerPath(l.Digest)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return isle.Errorf(isle.NotFound, "layer %s (%s) is not in the store", l.Digest, l.Kind)
	}
	if err != nil {
		return storeError("open layer "+l.Digest.Short(), err)
	}
	defer f.Close()
	h, buf := sha256.New(), make([]byte, sampleChunk)
	for err == nil {
		if err := wait(ctx, len(buf)); err != nil {
			return err
		}
		var n int
		n, err = io.ReadFull(f, buf)
		h.Write(buf[:n])
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return storeError("read layer "+l.Digest.Short(), err)
	}
	if isle.DigestFromSum(h.Sum(nil)) == l.Digest {
		return nil
	}
	s.mu.Lock()
	delete(s.stamps, path)
	s.mu.Unlock()
	os.Remove(filepath.Join(s.dir, "stamps", l.Digest.Hex())) // which said otherwise
	return s.verifyLayer(l)
}
