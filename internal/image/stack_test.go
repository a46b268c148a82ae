package image_test

import (
	"errors"
	"io/fs"
	"testing"

	"isle/internal/image"
)

func TestAStackIsLookedUpAsOverlayfsShowsIt(t *testing.T) {
	s := open(t, t.TempDir())
	var paths []string
	for _, items := range [][]item{{
		{image.Entry{Path: "/usr/bin/sh", Mode: 0o755}, "sh"},
		{image.Entry{Path: "/bin", Mode: fs.ModeSymlink | 0o777, Target: "usr/bin"}, ""},
		{image.Entry{Path: "/abs", Mode: fs.ModeSymlink | 0o777, Target: "/../usr/./bin"}, ""},
		{image.Entry{Path: "/loop", Mode: fs.ModeSymlink | 0o777, Target: "loop"}, ""},
		{image.Entry{Path: "/var/lib/db", Mode: fs.ModeDir | 0o700, UID: 100, GID: 101}, ""},
		{image.Entry{Path: "/gone/file", Mode: 0o644}, ""},
		{image.Entry{Path: "/opaque/old", Mode: 0o644}, ""},
	}, {
		{image.Entry{Path: "/gone", Mode: image.Whiteout}, ""},
		{image.Entry{Path: "/opaque", Mode: fs.ModeDir | 0o711, Xattrs: map[string][]byte{image.OpaqueXattr: []byte("y")}}, ""},
		{image.Entry{Path: "/var/new", Mode: 0o644}, ""},
	}} {
		paths = append(paths, s.LayerPath(write(t, s, items).Digest))
	}
	st, err := image.OpenStack(paths)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	for name, want := range map[string]fs.FileMode{
		"/": fs.ModeDir | 0o755, "/usr/bin/sh": 0o755, "/var/lib/db": fs.ModeDir | 0o700, "/var/new": 0o644, "/opaque": fs.ModeDir | 0o711, "/bin": fs.ModeSymlink | 0o777,
	} {
		if e, err := st.Lookup(name); err != nil || e.Mode != want || e.Path != name {
			t.Errorf("%s: %+v, %v; want %v", name, e, err, want)
		}
	}
	if e, _ := st.Lookup("/var/lib/db"); e.UID != 100 || e.GID != 101 {
		t.Errorf("owner %d:%d", e.UID, e.GID)
	}
	for _, name := range []string{"/gone", "/gone/file", "/opaque/old", "/bin/sh", "/usr/bin/sh/x", "/no/where"} {
		if e, err := st.Lookup(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
	for name, want := range map[string]string{"/bin/sh": "/usr/bin/sh", "/bin/new/x": "/usr/bin/new/x", "/abs/sh": "/usr/bin/sh", "/abs": "/usr/bin", "/no/where": "/no/where", "/": "/"} {
		if got, err := st.Resolve(name); err != nil || got != want {
			t.Errorf("%s leads to %s, %v; want %s", name, got, err, want)
		}
	}
	if _, err := st.Resolve("/loop/x"); err == nil {
		t.Error("a loop ends somewhere")
	}
}
