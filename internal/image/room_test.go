package image

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"isle"
)

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A copy of a copy of a copy, an archive and an upload are as large as they like:
// the log on the same disk must still be written.
func TestALargeFileLeavesRoomOnTheDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s, err := Open(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	s.reserve = 8 << 20
	file := func(size int64) func(*Writer) error {
		return func(w *Writer) error {
			return w.Add(Entry{Path: "/x", Mode: 0o644}, func() (io.ReadCloser, error) { return io.NopCloser(io.LimitReader(zeros{}, size)), nil })
		}
	}
	for name, write := range map[string]func() error{
		"a layer":               func() error { _, err := s.WriteLayer(t.Context(), "copy", "", file(1<<40)); return err },
		"a layer that fits not": func() error { _, err := s.WriteLayer(t.Context(), "copy", "", file(10<<20)); return err },
		"an upload": func() error {
			return s.PutBlob(t.Context(), isle.DigestOf(nil), zeros{})
		},
	} {
		if err := write(); isle.CodeOf(err) != isle.Exhausted {
			t.Errorf("%s: %v", name, err)
		}
		if left, err := os.ReadDir(filepath.Join(dir, "images/tmp")); err != nil || len(left) != 0 {
			t.Errorf("%s left %v: %v", name, left, err)
		}
	}
	if _, err := s.WriteLayer(t.Context(), "copy", "", file(4<<20)); err != nil {
		t.Errorf("what fits: %v", err)
	}
}
