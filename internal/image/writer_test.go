package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"isle"
	"isle/internal/image"
)

func open(t *testing.T, dir string) *image.Store {
	t.Helper()
	s, err := image.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func text(s string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil }
}

// An item is an entry with its content.
type item struct {
	image.Entry
	content string
}

// everything is a tree with one of each thing that a layer can hold.
func everything() []item {
	items := []item{
		{image.Entry{Path: "/", Mode: fs.ModeDir | 0o755}, ""},
		{image.Entry{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777}, ""},
		{image.Entry{Path: "/empty", Mode: 0o600, UID: 42}, ""},
		{image.Entry{Path: "/bin/su", Mode: fs.ModeSetuid | 0o755}, "#!/bin/sh\n"},
		{image.Entry{Path: "/bin/wall", Mode: fs.ModeSetgid | 0o755, GID: 5}, "#!/bin/sh\n"},
		{image.Entry{Path: "/etc/shadow", Mode: 0o640, GID: 42}, "root:*:\n"},
		{image.Entry{Path: "/big", Mode: 0o644, UID: 100000, GID: 200000}, strings.Repeat("0123456789abcdef", 1<<16) + "tail"},
		{image.Entry{Path: "/block", Mode: 0o644}, strings.Repeat("x", 4096)},
		{image.Entry{Path: "/nearly", Mode: 0o644}, strings.Repeat("y", 4095)},
		{image.Entry{Path: "/link", Mode: fs.ModeSymlink | 0o777, Target: "usr/bin"}, ""},
		{image.Entry{Path: "/long", Mode: fs.ModeSymlink | 0o777, Target: strings.Repeat("d/", 1500)}, ""},
		{image.Entry{Path: "/gone", Mode: image.Whiteout}, ""},
		{image.Entry{Path: "/opaque", Mode: fs.ModeDir | 0o750, UID: 7, GID: 8, Xattrs: map[string][]byte{image.OpaqueXattr: []byte("y")}}, ""},
		{image.Entry{Path: "/opaque/new", Mode: 0o644}, "new"},
		{image.Entry{Path: "/deep/er/and/deeper/file", Mode: 0o644}, "deep"},
		{image.Entry{Path: "/ünï cödé \n", Mode: 0o644}, "name"},
	}
	for i := range 1200 { // directories of several blocks, metadata of several
		items = append(items, item{image.Entry{Path: fmt.Sprintf("/many/%0*d", 1+i%40, i), Mode: 0o644}, fmt.Sprint(i)})
	}
	return items
}

func write(t *testing.T, s *image.Store, items []item) image.Layer {
	t.Helper()
	l, err := s.WriteLayer(context.Background(), "test", "a test", func(w *image.Writer) error {
		for _, it := range items {
			if err := w.Add(it.Entry, text(it.content)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestTheSameEntriesGiveTheSameBytesInAnyOrder(t *testing.T) {
	want := write(t, open(t, t.TempDir()), everything())
	for range 3 {
		items := everything()
		rand.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
		if got := write(t, open(t, t.TempDir()), items); got.Digest != want.Digest {
			t.Fatalf("another order gave another digest: %s, %s", got.Digest, want.Digest)
		}
	}
	items := everything()
	items[len(items)-1].content += "!"
	if got := write(t, open(t, t.TempDir()), items); got.Digest == want.Digest {
		t.Fatal("another content gave the same digest")
	}
}

// The bytes of format 1 are a promise to every lock that was ever written. If
// this digest changes, raise FormatVersion.
func TestFormat1StaysAsItIs(t *testing.T) {
	const want = "sha256:ec4b1667d32ac7b0a883e38476ef66d35aa336a8df355c48448453d8b99be224"
	if got := write(t, open(t, t.TempDir()), everything()).Digest; got != want {
		t.Fatalf("the layer writer gives other bytes than before: %s, want %s", got, want)
	}
}

func TestReadLayerGivesBackWhatWasWritten(t *testing.T) {
	s := open(t, t.TempDir())
	l := write(t, s, everything())
	files, err := image.ReadLayer(context.Background(), s.LayerPath(l.Digest))
	if err != nil {
		t.Fatal(err)
	}
	byPath := map[string]image.File{}
	for _, f := range files {
		byPath[f.Path] = f
	}
	for _, it := range everything() {
		f, ok := byPath[it.Path]
		if !ok {
			t.Errorf("%q is missing", it.Path)
			continue
		}
		if f.Mode != it.Mode || f.UID != it.UID || f.GID != it.GID || f.Target != it.Target || string(f.Xattrs[image.OpaqueXattr]) != string(it.Xattrs[image.OpaqueXattr]) {
			t.Errorf("%q: got %+v, want %+v", it.Path, f.Entry, it.Entry)
		}
		if it.Mode.IsRegular() && f.Digest != isle.DigestOf([]byte(it.content)) {
			t.Errorf("%q has another content", it.Path)
		}
	}
	if f := byPath["/deep/er"]; f.Mode != fs.ModeDir|0o755 || f.UID != 0 {
		t.Errorf("an implied parent is %v of %d", f.Mode, f.UID)
	}
}

func TestALaterAddReplacesAnEarlierOne(t *testing.T) {
	s := open(t, t.TempDir())
	l := write(t, s, []item{
		{image.Entry{Path: "/a", Mode: 0o644}, "one, which is long"},
		{image.Entry{Path: "/d/x", Mode: 0o644}, "x"},
		{image.Entry{Path: "/a", Mode: 0o600}, "two"},
		{image.Entry{Path: "/d", Mode: fs.ModeDir | 0o700, UID: 3}, ""},
	})
	once := write(t, s, []item{
		{image.Entry{Path: "/d", Mode: fs.ModeDir | 0o700, UID: 3}, ""},
		{image.Entry{Path: "/d/x", Mode: 0o644}, "x"},
		{image.Entry{Path: "/a", Mode: 0o600}, "two"},
	})
	if l.Digest != once.Digest {
		t.Fatal("a replaced entry leaves a trace")
	}
}

func TestWhatCannotBeInALayerIsRefused(t *testing.T) {
	s := open(t, t.TempDir())
	for name, entries := range map[string][]image.Entry{
		"relative path":    {{Path: "etc/passwd"}},
		"dotdot":           {{Path: "/a/../b"}},
		"NUL":              {{Path: "/a\x00b"}},
		"long name":        {{Path: "/" + strings.Repeat("n", 256)}},
		"long path":        {{Path: strings.Repeat("/n", 2100)}},
		"device":           {{Path: "/mem", Mode: image.Whiteout, Device: 0x101}},
		"block device":     {{Path: "/sda", Mode: fs.ModeDevice}},
		"socket":           {{Path: "/s", Mode: fs.ModeSocket}},
		"pipe":             {{Path: "/p", Mode: fs.ModeNamedPipe}},
		"empty link":       {{Path: "/l", Mode: fs.ModeSymlink}},
		"file at the root": {{Path: "/"}},
		"under a link":     {{Path: "/l", Mode: fs.ModeSymlink, Target: "x"}, {Path: "/l/x"}},
		"file over tree":   {{Path: "/d/x"}, {Path: "/d"}},
	} {
		_, err := s.WriteLayer(context.Background(), "test", name, func(w *image.Writer) error {
			for _, e := range entries {
				if err := w.Add(e, nil); err != nil {
					return err
				}
			}
			return nil
		})
		if isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: got %v, want Invalid", name, err)
		}
	}
	if n := files(t, s, "layers/sha256"); n != 0 {
		t.Errorf("%d layers were stored", n)
	}
}

func TestAForeignAttributeIsDropped(t *testing.T) {
	s := open(t, t.TempDir())
	with := write(t, s, []item{{image.Entry{Path: "/ping", Mode: 0o755, Xattrs: map[string][]byte{"security.capability": {1}, "user.x": {2}}}, "ping"}})
	without := write(t, s, []item{{image.Entry{Path: "/ping", Mode: 0o755}, "ping"}})
	if with.Digest != without.Digest {
		t.Fatal("an attribute went into the layer")
	}
}

func TestAWriterThatEndsEarlyLeavesNothing(t *testing.T) {
	s := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(context.Background())
	_, err := s.WriteLayer(ctx, "test", "t", func(w *image.Writer) error {
		if err := w.Add(image.Entry{Path: "/a"}, text("a")); err != nil {
			return err
		}
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	broken := errors.New("broken")
	_, err = s.WriteLayer(context.Background(), "test", "t", func(w *image.Writer) error {
		w.Add(image.Entry{Path: "/a"}, func() (io.ReadCloser, error) { return nil, broken })
		return nil // a failure that fill forgets still counts
	})
	if !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	if n := files(t, s, "layers/sha256") + files(t, s, "tmp"); n != 0 {
		t.Fatalf("%d files are left", n)
	}
}

func TestReadLayerSurvivesHostileBytes(t *testing.T) {
	s := open(t, t.TempDir())
	l := write(t, s, everything()[:16])
	good, err := os.ReadFile(s.LayerPath(l.Digest))
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "layer")
	try := func(b []byte) {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := image.ReadLayer(context.Background(), name); err != nil && isle.CodeOf(err) != isle.Invalid {
			t.Fatalf("got %v", err)
		}
	}
	try(nil)
	try(bytes.Repeat([]byte{0xff}, 8192))
	r := rand.New(rand.NewPCG(1, 2))
	start := len(good) - 8192 // the metadata
	for range 400 {
		b := slices.Clone(good)
		for range 1 + r.IntN(8) {
			at := start + r.IntN(len(b)-start)
			if r.IntN(10) == 0 {
				at = 1024 + r.IntN(128) // the superblock
			}
			b[at] = byte(r.Uint32())
		}
		try(b)
	}
}

func files(t *testing.T, s *image.Store, folder string) int {
	t.Helper()
	dir := filepath.Join(filepath.Dir(filepath.Dir(filepath.Dir(s.BlobPath(isle.DigestOf(nil))))), folder)
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func BenchmarkWriteLayer(b *testing.B) {
	s, err := image.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	data := make([]byte, 64<<10)
	for i := range data {
		data[i] = byte(i * i)
	}
	b.SetBytes(2000 * int64(len(data)))
	for b.Loop() {
		_, err := s.WriteLayer(context.Background(), "bench", "", func(w *image.Writer) error {
			for i := range 2000 {
				if err := w.Add(image.Entry{Path: fmt.Sprintf("/%d/%d", i%10, i), Mode: 0o644}, func() (io.ReadCloser, error) {
					return io.NopCloser(bytes.NewReader(data)), nil
				}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
