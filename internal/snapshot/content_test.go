package snapshot

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"isle"
)

func contentOf(t *testing.T, f *os.File) content {
	t.Helper()
	c, err := readContent(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Equal content has an equal digest, whatever of it is a hole.
func TestEqualContentHasAnEqualDigestHoweverSparse(t *testing.T) {
	for _, size := range []int64{1, 4096, BlockSize, BlockSize + 1, 5*BlockSize - 7} {
		sparse, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
		if err != nil {
			t.Fatal(err)
		}
		defer sparse.Close()
		dense, err := os.Create(filepath.Join(t.TempDir(), "dense"))
		if err != nil {
			t.Fatal(err)
		}
		defer dense.Close()
		b := make([]byte, size)
		if err := sparse.Truncate(size); err != nil {
			t.Fatal(err)
		}
		zeros := contentOf(t, sparse)
		for range 3 {
			at := rand.Int64N(size)
			b[at] = 1
			if _, err := sparse.WriteAt([]byte{1}, at); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := dense.Write(b); err != nil {
			t.Fatal(err)
		}
		x, y := contentOf(t, sparse), contentOf(t, dense)
		if x != y || x.size != size || x.digest == zeros.digest || zeros.bytes != 0 || x.bytes == 0 {
			t.Errorf("%d bytes: sparse %+v, dense %+v, zeros %+v", size, x, y, zeros)
		}
	}
}

func TestADigestOfContentIsWhatItWas(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if c := contentOf(t, f); c.digest != isle.DigestOf(append([]byte("isle volume v1\n"), make([]byte, 8)...)) {
		t.Errorf("empty: %+v", c)
	}
	if err := f.Truncate(3 << 20); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("isle"), 2<<20); err != nil {
		t.Fatal(err)
	}
	if c := contentOf(t, f); c.digest != "sha256:6317da371186116f888addc9bf8a6b10fbe3378b8206a427fa7da8db3665a3ab" {
		t.Errorf("%+v", c)
	}
}

// A file of which nobody knows how it lies on disk is hashed in several windows.
func TestALargeFileIsHashedInWindows(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size := int64(3*window*BlockSize + 5)
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	a := contentOf(t, f)
	for _, at := range []int64{window*BlockSize - 1, window * BlockSize, size - 1} {
		if _, err := f.WriteAt([]byte{1}, at); err != nil {
			t.Fatal(err)
		}
		b := contentOf(t, f)
		if b.digest == a.digest || b.bytes <= a.bytes {
			t.Errorf("a byte at %d makes %+v of %+v", at, b, a)
		}
		a = b
	}
	if a.bytes != 2*BlockSize+5 {
		t.Errorf("%+v", a)
	}
}

// What a snapshot's digest covers never changes: a manifest of today is read by
// every later version. A key that comes to the file of an environment is left out
// of the JSON where it has its zero value.
func TestAManifestHasTheDigestThatItHad(t *testing.T) {
	m := manifest()
	m.Version, m.Created = Version, time.Date(2026, 11, 22, 6, 0, 0, 123456789, time.UTC)
	m.Volumes = []Volume{{Service: "db", Path: "/data", Size: 8 << 20, Digest: isle.DigestOf([]byte("v")), Bytes: 1 << 20}}
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile("testdata/manifest.json")
	if err != nil || string(b) != string(golden) {
		t.Errorf("%s\nwas\n%s\n%v", b, golden, err)
	}
	if _, err := DecodeManifest(golden); err != nil {
		t.Error(err)
	}
}
