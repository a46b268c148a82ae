package release

import (
	"context"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"isle"
	"isle/internal/image"
	"isle/internal/ledger/ledgertest"
	"isle/internal/seal"
	"isle/internal/spec"
)

// layers are Images of which all are there, but for those that are damaged.
type layers struct {
	damaged map[isle.Digest]bool
	dir     string
}

func (l *layers) Reread(ctx context.Context, m image.Image) error {
	_, err := l.Verify(ctx, m)
	return err
}

func (l *layers) Verify(_ context.Context, m image.Image) ([]string, error) {
	for _, x := range m.Layers {
		if l.damaged[x.Digest] {
			return nil, isle.Errorf(isle.Invalid, "layer %s was changed on disk", x.Digest)
		}
	}
	return nil, nil
}

func (l *layers) LayerPath(d isle.Digest) string { return filepath.Join(l.dir, d.Hex()) }

func (l *layers) HasLayer(d isle.Digest) bool {
	_, err := os.Stat(l.LayerPath(d))
	return err == nil
}

func (l *layers) PutLayer(_ context.Context, d isle.Digest, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err == nil && isle.DigestOf(b) != d {
		err = isle.Errorf(isle.Invalid, "content has digest %s, not %s", isle.DigestOf(b), d)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(l.LayerPath(d), b, 0o400)
}

func (l *layers) PutImage(image.Image) error { return nil }

func (l *layers) Image(d isle.Digest) (image.Image, error) {
	return image.Image{}, isle.Errorf(isle.NotFound, "there is no image %s", d)
}

// A world is a server's releases with all that they stand on.
type world struct {
	t      testing.TB
	store  *ledgertest.Memory
	images *layers
	config Config
	*Releases
}

var alice = isle.Actor{Kind: isle.Human, Name: "alice"}

func keyOf(t testing.TB, name string) *seal.Key {
	t.Helper()
	seed := sha256.Sum256([]byte(name))
	k, err := seal.NewKey(name, seed[:])
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newWorld(t testing.TB, name string) *world {
	t.Helper()
	w := &world{t: t, store: ledgertest.New(), images: &layers{map[isle.Digest]bool{}, t.TempDir()}}
	w.config = Config{
		Dir: filepath.Join(t.TempDir(), "releases"), Store: w.store, Key: keyOf(t, name), Images: w.images,
		Builder: "spiffe://" + name, BuilderVersion: "1",
		Now: func() time.Time { return time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC) },
	}
	w.open()
	return w
}

// open opens the releases, as a server does that starts.
func (w *world) open() {
	w.t.Helper()
	r, err := Open(w.t.Context(), w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	w.Releases = r
}

// create makes a release as alice.
func (w *world) create(req Request) Release {
	w.t.Helper()
	rel, _, err := w.Create(w.t.Context(), alice, req)
	if err != nil {
		w.t.Fatal(err)
	}
	return rel
}

const shopFile = `name: shop
services:
  db:
    packages: [postgresql-15]
    volumes: {/data: {size: 1GiB}}
  web:
    copy: [{from: app/, to: /app}]
    env: {B: "2", A: "1"}
egress: [api.example.com:443]
uses: [orders-db]
`

// shop is what a request for a release of the shop is. Titles are for people.
func shop(t testing.TB, title string) Request {
	t.Helper()
	f, err := spec.Parse("isle.yaml", []byte(shopFile))
	if err != nil {
		t.Fatal(err)
	}
	digest := func(s string) isle.Digest { return isle.DigestOf([]byte(s)) }
	of := func(name string) image.Image {
		return image.Image{Format: image.FormatVersion, Architecture: "amd64", Layers: []image.Layer{
			{Digest: digest("base"), Size: 4, Kind: "packages", Title: title}, {Digest: digest(name), Size: int64(len(name)), Kind: "copy", Title: title},
		}}
	}
	libc := spec.LockedPackage{Name: "libc6", Version: "2.36-9+deb12u1", Architecture: "amd64", Path: "pool/main/g/glibc/libc6.deb", Size: 5, Digest: digest("libc6")}
	return Request{
		Spec: f, Images: map[string]image.Image{"db": of("db"), "web": of("web")},
		Lock: &spec.Lock{Version: spec.LockVersion, ImageFormat: image.FormatVersion, Architecture: "amd64", Suites: map[string]spec.SuiteLock{"bookworm": {Releases: map[string]isle.Digest{"dists/bookworm/InRelease": digest("InRelease")}}},
			Services: map[string]spec.ServiceLock{
				"db":  {Suite: "bookworm", Requests: []string{"postgresql-15"}, Packages: []spec.LockedPackage{libc}},
				"web": {Suite: "bookworm", Packages: []spec.LockedPackage{libc}, Copy: []spec.LockedCopy{{From: "app/", To: "/app", Tree: digest("app")}}},
			}},
		Source: Source{Branch: "main", Commit: strings.Repeat("1", 40), Repository: strings.Repeat("2", 32)},
	}
}

// damage flips a byte of a file.
func damage(t testing.TB, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func code(err error) isle.Code {
	if err == nil {
		return ""
	}
	return isle.CodeOf(err)
}
