package debian

import (
	"context"
	"path/filepath"
	"testing"

	"isle/internal/image"
)

func BenchmarkUnpackPostgresAndPython(b *testing.B) {
	dir := cacheDir(b)
	store, err := image.Open(filepath.Join(dir, "store"))
	if err != nil {
		b.Fatal(err)
	}
	a, err := New(Config{Dir: filepath.Join(dir, "debian"), Blobs: store})
	if err != nil {
		b.Fatal(err)
	}
	pkgs, _, err := a.Resolve(context.Background(), "bookworm", []string{"postgresql-15", "python3", "python3-psycopg2"}, ResolveOptions{}, nil)
	if err == nil {
		err = a.Fetch(context.Background(), pkgs, FetchOptions{Suite: "bookworm"}, nil)
	}
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		tree, err := Unpack(context.Background(), pkgs, store.OpenBlob, UnpackOptions{Spool: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		tree.Close()
	}
}
