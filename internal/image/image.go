// Package image is what an environment's root is made of.
//
// A Layer is one EROFS file named by the SHA-256 digest of its bytes. An Image
// is an ordered list of layers, lowest first, and its digest covers that list:
// change a byte anywhere and it is another image. Provenance is not part of the
// digest, so that a cached build gives the same one. A Store keeps blobs
// (downloaded packages, copied files), layers and images in one folder; what
// it hands out is read-only and was hashed.
package image

import (
	"encoding/json"

	"isle"
)

// FormatVersion is the version of the image format: how layers are written and
// what the digest covers. A lock records it; another version, other digests.
const FormatVersion = 1

// An Image is a read-only root: layers stacked lowest first.
type Image struct {
	Format       int     `json:"format"` // FormatVersion
	Architecture string  `json:"architecture"`
	Layers       []Layer `json:"layers"`
}

// A Layer is one EROFS file.
type Layer struct {
	Digest isle.Digest `json:"digest"`
	Size   int64       `json:"size"`  // bytes
	Kind   string      `json:"kind"`  // "packages", "system", "copy", "run"
	Title  string      `json:"title"` // for people: "postgresql-15 and 84 more"
}

// Digest is the digest of the image's canonical JSON without titles: format,
// architecture, and each layer's digest, size and kind.
func (m Image) Digest() isle.Digest {
	c := m
	c.Layers = make([]Layer, len(m.Layers))
	for i, l := range m.Layers {
		l.Title = ""
		c.Layers[i] = l
	}
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // strings and integers only
	}
	return isle.DigestOf(b)
}

// Size is the sum of the layers' sizes in bytes.
func (m Image) Size() (n int64) {
	for _, l := range m.Layers {
		n += l.Size
	}
	return n
}
