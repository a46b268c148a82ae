package image_test

import (
	"fmt"
	"io/fs"
	"slices"
	"testing"

	"isle/internal/image"
)

func TestImagesAreComparedAsAWhole(t *testing.T) {
	s := open(t, t.TempDir())
	layer := func(kind string, items ...item) image.Layer {
		l := write(t, s, items)
		l.Kind = kind
		return l
	}
	file := func(path, content string) item {
		return item{image.Entry{Path: path, Mode: 0o644}, content}
	}
	base := layer("packages", file("/lib/c", "c"), file("/etc/os", "12"), file("/opt/a", "a"), file("/opt/b", "b"))
	was := image.Image{Format: image.FormatVersion, Layers: []image.Layer{base, layer("copy", file("/app/one", "1"), file("/app/same", "s"), file("/app/gone", "g"), file("/app/mode", "m"))}}
	is := image.Image{Format: image.FormatVersion, Layers: []image.Layer{
		base, layer("copy", file("/app/one", "2"), file("/app/same", "s"), file("/app/new", "n"), item{image.Entry{Path: "/app/mode", Mode: 0o755}, "m"}),
		layer("run", item{image.Entry{Path: "/opt", Mode: fs.ModeDir | 0o755, Xattrs: map[string][]byte{image.OpaqueXattr: []byte("y")}}, ""}, file("/opt/a", "a"), item{image.Entry{Path: "/lib", Mode: image.Whiteout}, ""}),
		layer("packages", file("/usr/bin/new", "a package's")),
	}}
	c, err := s.Compare(t.Context(), was, is)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range c.Files {
		got = append(got, fmt.Sprintf("%s %s %d", f.Kind, f.Path, f.Size))
	}
	want := []string{"deleted /app/gone 1", "modified /app/mode 1", "added /app/new 1", "modified /app/one 1", "deleted /lib 0", "deleted /lib/c 1", "deleted /opt/b 1"}
	for i, g := range got { // what a folder's size is says nothing
		if g[:len("deleted /lib ")] == "deleted /lib " {
			got[i] = "deleted /lib 0"
		}
	}
	if !slices.Equal(got, want) || len(c.Gone) != 1 || len(c.New) != 3 || c.More {
		t.Errorf("%q\nwant %q\n%d layers gone, %d new", got, want, len(c.Gone), len(c.New))
	}
	if c, err := s.Compare(t.Context(), was, was); err != nil || len(c.Files)+len(c.Gone)+len(c.New) > 0 {
		t.Errorf("%+v, %v", c, err)
	}
}
