package image

import (
	"context"
	"io"

	"isle"
)

// PutLayer stores a layer's file, as PutBlob does a blob. What is in it is not
// looked at: it is for whoever trusts where the layer comes from, since the
// kernel will read it.
func (s *Store) PutLayer(ctx context.Context, d isle.Digest, r io.Reader) error {
	if !d.Valid() {
		return isle.Errorf(isle.Invalid, "%q is no digest: want sha256: and 64 lower-case hexadecimal characters", d)
	}
	return s.put(ctx, d, s.LayerPath(d), r)
}
