package image_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"isle/internal/image"
)

// inOwnMounts runs f on a thread with a mount namespace of its own, which ends
// with everything that f mounted when f returns.
func inOwnMounts(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			t.Errorf("unshare: %v (the tests run as root)", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Errorf("make mounts private: %v", err)
			return
		}
		f()
	}()
	<-done
}

// mountLayer mounts from the file itself where the kernel can (6.12), else
// through a loop device that goes with the mount.
func mountLayer(t *testing.T, file, at string) bool {
	t.Helper()
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Error(err)
		return false
	}
	if unix.Mount(file, at, "erofs", unix.MS_RDONLY, "") == nil {
		return true
	}
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "ro,loop", file, at).CombinedOutput(); err != nil {
		t.Errorf("mount %s: %v: %s", file, err, out)
		return false
	}
	return true
}

func TestTheKernelShowsALayerAsItWasWritten(t *testing.T) {
	s := open(t, t.TempDir())
	l := write(t, s, everything())
	if out, err := exec.Command("fsck.erofs", s.LayerPath(l.Digest)).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v: %s", err, out)
	}
	dir := t.TempDir()
	inOwnMounts(t, func() {
		if !mountLayer(t, s.LayerPath(l.Digest), dir) {
			return
		}
		defer unix.Unmount(dir, 0)
		want := map[string]bool{"/": true, "/bin": true, "/etc": true, "/many": true, "/deep": true, "/deep/er": true, "/deep/er/and": true, "/deep/er/and/deeper": true}
		for _, it := range everything() {
			want[it.Path] = true
			compare(t, dir, it)
		}
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if name := "/" + strings.TrimPrefix(strings.TrimPrefix(p, dir), "/"); err != nil || !want[name] {
				t.Errorf("%s is there too: %v", name, err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// compare checks what the kernel says of one entry.
func compare(t *testing.T, dir string, it item) {
	p := filepath.Join(dir, it.Path)
	fi, err := os.Lstat(p)
	if err != nil {
		t.Errorf("%s: %v", it.Path, err)
		return
	}
	st := fi.Sys().(*syscall.Stat_t)
	if fi.Mode() != it.Mode || st.Uid != it.UID || st.Gid != it.GID || st.Rdev != 0 {
		t.Errorf("%s: %v %d:%d device %d, want %v %d:%d", it.Path, fi.Mode(), st.Uid, st.Gid, st.Rdev, it.Mode, it.UID, it.GID)
	}
	if !fi.ModTime().Equal(image.Time) {
		t.Errorf("%s: modified at %v, want %v", it.Path, fi.ModTime(), image.Time)
	}
	switch {
	case it.Mode.IsRegular():
		if b, err := os.ReadFile(p); err != nil || string(b) != it.content {
			t.Errorf("%s: %d bytes, %v; want %d", it.Path, len(b), err, len(it.content))
		}
	case it.Mode&fs.ModeSymlink != 0:
		if to, err := os.Readlink(p); err != nil || to != it.Target {
			t.Errorf("%s: to %.40q, %v", it.Path, to, err)
		}
	}
}

func TestAStackOfLayersShowsTheUpperOneThroughWhiteouts(t *testing.T) {
	s := open(t, t.TempDir())
	lower := write(t, s, []item{
		{image.Entry{Path: "/keep", Mode: 0o644}, "lower"},
		{image.Entry{Path: "/gone", Mode: 0o644}, "lower"},
		{image.Entry{Path: "/changed", Mode: 0o644}, "lower"},
		{image.Entry{Path: "/opaque/old", Mode: 0o644}, "lower"},
		{image.Entry{Path: "/merged/old", Mode: 0o644}, "lower"},
	})
	upper := write(t, s, []item{
		{image.Entry{Path: "/gone", Mode: image.Whiteout}, ""},
		{image.Entry{Path: "/changed", Mode: 0o600, UID: 9}, "upper"},
		{image.Entry{Path: "/opaque", Mode: fs.ModeDir | 0o755, Xattrs: map[string][]byte{image.OpaqueXattr: []byte("y")}}, ""},
		{image.Entry{Path: "/opaque/new", Mode: 0o644}, "upper"},
		{image.Entry{Path: "/merged/new", Mode: 0o644}, "upper"},
	})
	dir := t.TempDir()
	inOwnMounts(t, func() {
		a, b, at := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "at")
		if !mountLayer(t, s.LayerPath(lower.Digest), a) || !mountLayer(t, s.LayerPath(upper.Digest), b) {
			return
		}
		if err := os.Mkdir(at, 0o700); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, "lowerdir="+b+":"+a); err != nil {
			t.Errorf("mount overlay: %v", err)
			return
		}
		defer func() {
			for _, p := range []string{at, b, a} {
				if err := unix.Unmount(p, 0); err != nil {
					t.Errorf("unmount %s: %v", p, err)
				}
			}
		}()
		for name, want := range map[string]string{"keep": "lower", "changed": "upper", "opaque/new": "upper", "merged/old": "lower", "merged/new": "upper"} {
			if b, err := os.ReadFile(filepath.Join(at, name)); err != nil || string(b) != want {
				t.Errorf("%s: %q, %v; want %q", name, b, err, want)
			}
		}
		for _, name := range []string{"gone", "opaque/old"} {
			if _, err := os.Lstat(filepath.Join(at, name)); !os.IsNotExist(err) {
				t.Errorf("%s shows through: %v", name, err)
			}
		}
	})
}
