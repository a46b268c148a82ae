package image_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/image"
)

func put(t *testing.T, s *image.Store, content string) isle.Digest {
	t.Helper()
	d := isle.DigestOf([]byte(content))
	if err := s.PutBlob(context.Background(), d, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestABlobIsStoredUnderItsDigestOrNotAtAll(t *testing.T) {
	s := open(t, t.TempDir())
	d := put(t, s, "hello")
	put(t, s, "hello")
	b, err := s.ReadBlob(d, 100)
	if err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
	if _, err := s.ReadBlob(d, 4); isle.CodeOf(err) != isle.Invalid {
		t.Errorf("a blob over the limit: %v", err)
	}
	fi, err := os.Stat(s.BlobPath(d))
	if err != nil || fi.Mode() != 0o400 {
		t.Errorf("mode %v, %v; want 0400", fi.Mode(), err)
	}
	other := isle.DigestOf([]byte("other"))
	if err := s.PutBlob(context.Background(), other, strings.NewReader("changed on the way")); isle.CodeOf(err) != isle.Invalid {
		t.Errorf("wrong bytes: %v", err)
	}
	if err := s.PutBlob(context.Background(), "sha256:../../etc/passwd", strings.NewReader("")); isle.CodeOf(err) != isle.Invalid {
		t.Errorf("no digest: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.PutBlob(ctx, other, strings.NewReader("other")); !errors.Is(err, context.Canceled) {
		t.Errorf("a client gone: %v", err)
	}
	if err := s.PutBlob(context.Background(), other, io.MultiReader(strings.NewReader("ot"), failing{})); isle.CodeOf(err) != isle.Unavailable {
		t.Errorf("a broken stream: %v", err)
	}
	if got := s.Missing([]isle.Digest{d, other, other, "nonsense"}); len(got) != 2 || got[0] != other {
		t.Errorf("missing %v", got)
	}
	if n := files(t, s, "tmp"); n != 0 {
		t.Errorf("%d half-written files are left", n)
	}
	if _, err := s.OpenBlob(other); isle.CodeOf(err) != isle.NotFound {
		t.Errorf("open a missing blob: %v", err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("connection lost") }

func TestADamagedBlobIsRemovedAndFetchedAgain(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	d := put(t, s, "hello")
	tamper(t, s.BlobPath(d))
	if _, err := s.OpenBlob(d); isle.CodeOf(err) != isle.Unavailable {
		t.Fatalf("got %v", err)
	}
	if len(s.Missing([]isle.Digest{d})) != 1 {
		t.Fatal("the damaged blob is still there")
	}
	put(t, s, "hello")
	tamper(t, s.BlobPath(d)) // while no server runs
	if _, err := open(t, dir).OpenBlob(d); isle.CodeOf(err) != isle.Unavailable {
		t.Fatalf("after a restart: %v", err)
	}
}

// tamper changes the last byte of a file and puts its modification time back,
// as someone would who does not want it seen.
func tamper(t *testing.T, name string) {
	t.Helper()
	fi, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{0x5a}, fi.Size()-1); err != nil {
		t.Fatal(err)
	}
	if err := f.Chmod(fi.Mode()); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(name, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
}

func oneLayer(t *testing.T, s *image.Store, content string) image.Image {
	l := write(t, s, []item{{image.Entry{Path: "/f", Mode: 0o644}, content}})
	m := image.Image{Format: image.FormatVersion, Architecture: "amd64", Layers: []image.Layer{l}}
	if err := s.PutImage(m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestATamperedLayerIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	m := oneLayer(t, s, "content")
	path := s.LayerPath(m.Layers[0].Digest)
	if paths, err := s.Verify(context.Background(), m); err != nil || paths[0] != path {
		t.Fatalf("%v, %v", paths, err)
	}
	tamper(t, path)
	for name, s := range map[string]*image.Store{"the same server": s, "the next server": open(t, dir)} {
		_, err := s.Verify(context.Background(), m)
		if isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), string(m.Layers[0].Digest)) || !strings.Contains(err.Error(), "--no-cache") {
			t.Errorf("%s: got %v, want Invalid that names the layer and the remedy", name, err)
		}
	}
	// To write the layer again mends it.
	if again := oneLayer(t, s, "content"); again.Digest() != m.Digest() {
		t.Fatal("another digest")
	}
	if _, err := s.Verify(context.Background(), m); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Verify(context.Background(), m); isle.CodeOf(err) != isle.NotFound {
		t.Fatalf("a layer that is gone: %v", err)
	}
	m.Format++
	if _, err := s.Verify(context.Background(), m); isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), "isle lock --update") {
		t.Fatalf("another format: %v", err)
	}
}

func TestARestartDoesNotHashALayerAgain(t *testing.T) {
	dir := t.TempDir()
	m := oneLayer(t, open(t, dir), "content")
	path := open(t, dir).LayerPath(m.Layers[0].Digest)
	stampFile := filepath.Join(dir, "stamps", m.Layers[0].Digest.Hex())
	// Change the file and forge its stamp, which takes the rights to write to
	// the state folder: that it is believed shows that nothing was hashed.
	tamper(t, path)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	forged := fmt.Sprintf(`{"device":%d,"inode":%d,"size":%d,"mtime":%d,"ctime":%d}`, st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
	if err := os.WriteFile(stampFile, []byte(forged), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir).Verify(context.Background(), m); err != nil {
		t.Fatal("the layer was hashed again although its stamp was known")
	}
	oneLayer(t, open(t, dir), "other") // the store goes on
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	oneLayer(t, open(t, dir), "content")
	if err := os.WriteFile(stampFile, []byte("{torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir).Verify(context.Background(), m); err != nil {
		t.Fatalf("a torn stamp: %v", err)
	}
}

func TestWhatADeadServerLeftIsRemovedAtOpen(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	if err := os.WriteFile(filepath.Join(dir, "tmp", "draft-123"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	if names, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(names) != 0 {
		t.Fatalf("left: %v, %v", names, err)
	}
	for _, name := range []string{"", "blobs/sha256", "layers/sha256", "tmp"} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || name != "" && fi.Mode().Perm() != 0o700 {
			t.Errorf("%s is %v, %v; want 0700", name, fi.Mode(), err)
		}
	}
}

func TestAFullDiskIsSaidAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	inOwnMounts(t, func() {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
			t.Error(err)
			return
		}
		defer unix.Unmount(dir, 0)
		s, err := image.Open(dir)
		if err != nil {
			t.Error(err)
			return
		}
		big := strings.Repeat("big ", 1<<20)
		err = s.PutBlob(context.Background(), isle.DigestOf([]byte(big)), strings.NewReader(big))
		if isle.CodeOf(err) != isle.Exhausted || !strings.Contains(err.Error(), "isle gc") {
			t.Errorf("blob: got %v, want Exhausted and the remedy", err)
		}
		for _, size := range []int{4 << 20, 1200 << 10} { // the spool is too large; spool and layer together are
			_, err = s.WriteLayer(context.Background(), "test", "t", func(w *image.Writer) error {
				return w.Add(image.Entry{Path: "/big", Mode: 0o644}, text(big[:size]))
			})
			if isle.CodeOf(err) != isle.Exhausted {
				t.Errorf("layer of %d bytes: got %v, want Exhausted", size, err)
			}
		}
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil || (st.Blocks-st.Bfree)*uint64(st.Bsize) > 64<<10 {
			t.Errorf("%d blocks of %d are still used, %v", st.Blocks-st.Bfree, st.Blocks, err)
		}
	})
}

func TestAnImageIsKeptByDigest(t *testing.T) {
	s := open(t, t.TempDir())
	m := oneLayer(t, s, "a")
	got, err := s.Image(m.Digest())
	if err != nil || got.Digest() != m.Digest() || got.Layers[0].Title != "a test" {
		t.Fatalf("%+v, %v", got, err)
	}
	if all, err := s.Images(); err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	if _, err := s.Image(isle.DigestOf(nil)); isle.CodeOf(err) != isle.NotFound {
		t.Errorf("got %v", err)
	}
	m.Layers = append(m.Layers, image.Layer{Digest: isle.DigestOf(nil)})
	if err := s.PutImage(m); isle.CodeOf(err) != isle.NotFound {
		t.Errorf("an image without its layer: %v", err)
	}
}

func TestCollectRemovesWhatNothingKeeps(t *testing.T) {
	s := open(t, t.TempDir())
	kept, gone := oneLayer(t, s, "kept"), oneLayer(t, s, "gone")
	blob, old := put(t, s, "blob"), put(t, s, "old")
	keepLayers := func(d isle.Digest) bool { return d == kept.Layers[0].Digest }
	keepBlobs := func(d isle.Digest) bool { return d == blob }

	release := s.Hold()
	if _, err := s.Collect(keepLayers, keepBlobs, false); isle.CodeOf(err) != isle.Conflict {
		t.Fatalf("while a build runs: %v", err)
	}
	release()
	dry, err := s.Collect(keepLayers, keepBlobs, true)
	if err != nil || dry.Layers != 1 || dry.Blobs != 1 || dry.Images != 1 || dry.Bytes == 0 || !s.HasLayer(gone.Layers[0].Digest) {
		t.Fatalf("dry: %+v, %v", dry, err)
	}
	got, err := s.Collect(keepLayers, keepBlobs, false)
	if err != nil || got != dry {
		t.Fatalf("%+v, %v; want %+v", got, err, dry)
	}
	if s.HasLayer(gone.Layers[0].Digest) || len(s.Missing([]isle.Digest{old})) != 1 {
		t.Error("it is still there")
	}
	if _, err := s.Verify(context.Background(), kept); err != nil {
		t.Error(err)
	}
	if _, err := s.Image(gone.Digest()); isle.CodeOf(err) != isle.NotFound {
		t.Errorf("the image without layers: %v", err)
	}
}
