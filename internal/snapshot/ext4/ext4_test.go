package ext4_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/snapshot/ext4"
)

// make4 makes an image of size bytes out of a folder, as volumes are made.
func make4(t testing.TB, from string, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-I", "256", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0", "-d", from, path)
	return path
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/sbin:/usr/bin:/bin")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %s: %v", name, args, out, err)
	}
}

// fill makes a folder "data" of everything that a file system can hold.
func fill(t testing.TB, dir string, many int) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, "data", name) }
	must(os.MkdirAll(at("a/b/c"), 0o755))
	must(os.WriteFile(at("empty"), nil, 0o600))
	must(os.WriteFile(at("a/small"), []byte("some text\n"), 0o640))
	must(os.Chown(at("a/small"), 70, 700))
	must(os.Chmod(at("a/small"), 0o4751))
	must(os.Chtimes(at("a/small"), time.Unix(1e9, 0), time.Unix(1e9, 0)))
	large := make([]byte, 3<<20+17)
	for i := range large {
		large[i] = byte(i * i >> 7)
	}
	must(os.WriteFile(at("a/b/large"), large, 0o644))
	must(os.Link(at("a/b/large"), at("z-again")))
	must(os.Symlink("../a/b", at("a/short")))
	must(os.Symlink(strings.Repeat("/long", 200), at("a/long")))
	must(unix.Mkfifo(at("fifo"), 0o600))
	must(unix.Mknod(at("device"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	must(os.WriteFile(at("ümlaut \n\x01"), []byte("x"), 0o600))
	must(os.MkdirAll(at("many"), 0o1777))
	for i := range many {
		must(os.WriteFile(at(fmt.Sprintf("many/%06d-%s", i, strings.Repeat("n", i%100))), nil, 0o600))
	}
	f, err := os.Create(at("holes"))
	must(err)
	for _, n := range []int64{0, 1 << 20, 7<<20 + 5} {
		_, err := f.WriteAt([]byte("piece"), n)
		must(err)
	}
	must(f.Truncate(20 << 20))
	must(f.Close())
	must(unix.Setxattr(at("a/small"), "user.short", []byte("1"), 0))
	must(unix.Setxattr(at("a/small"), "user.long", bytes.Repeat([]byte("v"), 700), 0))
	must(unix.Setxattr(at("a/b"), "trusted.other", []byte("1"), 0))
}

// An entry is what the test compares, of an image and of a folder.
type entry struct {
	mode     fs.FileMode
	uid, gid uint32
	size     int64
	time     int64
	target   string
	sum      string
	user     string
}

func sum(b []byte) string { s := sha256.Sum256(b); return fmt.Sprintf("%x", s[:6]) }

// ofImage reads an image's folder "data".
func ofImage(ctx context.Context, path string) (map[string]entry, map[string]uint32, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	m, err := ext4.New(f, fi.Size())
	if err != nil {
		return nil, nil, err
	}
	out, inodes, sums := map[string]entry{}, map[string]uint32{}, map[uint32]string{}
	last := ""
	err = m.Walk(ctx, "data", func(e ext4.Entry, data func(func(int64, []byte) error) error) error {
		if e.Path <= last && e.Path != "" && !strings.Contains(last, "/") && !strings.Contains(e.Path, "/") {
			return fmt.Errorf("%q comes after %q", e.Path, last)
		}
		last = e.Path
		x := entry{mode: e.Mode, uid: e.UID, gid: e.GID, size: e.Size, time: e.ModTime.Unix(), target: e.Target}
		if data != nil {
			b := make([]byte, e.Size)
			if err := data(func(at int64, piece []byte) error { copy(b[at:], piece); return nil }); err != nil {
				return err
			}
			sums[e.Inode] = sum(b)
		}
		x.sum = sums[e.Inode]
		for _, k := range slices.Sorted(maps.Keys(e.Xattrs)) {
			x.user += k + "=" + sum([]byte(e.Xattrs[k])) + " "
		}
		out[e.Path], inodes[e.Path] = x, e.Inode
		return nil
	})
	return out, inodes, err
}

// ofFolder reads the same through the kernel.
func ofFolder(t testing.TB, dir string) map[string]entry {
	t.Helper()
	out := map[string]entry{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		x := entry{mode: fi.Mode(), uid: st.Uid, gid: st.Gid, time: fi.ModTime().Unix()}
		switch {
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			x.size, x.sum = fi.Size(), sum(b)
		case fi.Mode()&fs.ModeSymlink != 0:
			if x.target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		if fi.Mode().IsRegular() || fi.IsDir() {
			names := make([]byte, 4096)
			n, err := unix.Llistxattr(path, names)
			if err != nil {
				return err
			}
			list := strings.Split(string(names[:n]), "\x00")
			slices.Sort(list)
			for _, k := range list {
				if strings.HasPrefix(k, "user.") {
					value := make([]byte, 4096)
					n, err := unix.Lgetxattr(path, k, value)
					if err != nil {
						return err
					}
					x.user += k + "=" + sum(value[:n]) + " "
				}
			}
		}
		rel, _ := filepath.Rel(dir, path)
		if rel == "." {
			rel = ""
		}
		out[rel] = x
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func compare(t *testing.T, got, want map[string]entry) {
	t.Helper()
	for p, w := range want {
		if g, ok := got[p]; !ok || g != w {
			t.Errorf("%q is read as\n%+v, and is\n%+v", p, g, w)
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			t.Errorf("%q is read, and is not there", p)
		}
	}
}

func TestAnImageIsReadAsTheKernelReadsIt(t *testing.T) {
	for _, size := range []int64{40 << 20, 700 << 20} { // blocks of 1024 and of 4096 bytes
		t.Run(fmt.Sprint(size>>20), func(t *testing.T) {
			dir := t.TempDir()
			fill(t, dir, 3000)
			image := make4(t, dir, size)
			got, inodes, err := ofImage(t.Context(), image)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, got, ofFolder(t, filepath.Join(dir, "data")))
			if inodes["a/b/large"] != inodes["z-again"] || inodes["empty"] == inodes["holes"] {
				t.Error("names of one file are not told from others")
			}
		})
	}
}

// What the kernel writes is laid out otherwise than what mke2fs does: folders
// have an index, files many extents. It is copied while it is frozen, as volumes
// are.
func TestAVolumeThatWasFrozenIsReadAsItWas(t *testing.T) {
	empty := t.TempDir()
	if err := os.Mkdir(filepath.Join(empty, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	image, mount := make4(t, empty, 200<<20), t.TempDir()
	run(t, "mount", "-o", "loop,user_xattr", image, mount)
	mounted := true
	defer func() {
		if mounted {
			run(t, "umount", mount)
		}
	}()
	fill(t, mount, 9000)
	var pieces []*os.File // written in turn, so that each has many extents
	for i := range 3 {
		f, err := os.Create(filepath.Join(mount, "data", fmt.Sprint("turn", i)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		pieces = append(pieces, f)
	}
	for n := range 40 {
		for i, f := range pieces {
			if _, err := f.WriteAt(bytes.Repeat([]byte{byte(n + i)}, 5000), int64(n)*9000); err != nil || f.Sync() != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range 5000 {
		if i%3 > 0 {
			os.Remove(filepath.Join(mount, "data/many", fmt.Sprintf("%06d-%s", i, strings.Repeat("n", i%100))))
		}
	}
	open, err := os.Create(filepath.Join(mount, "data/removed"))
	if err != nil {
		t.Fatal(err)
	}
	open.WriteString("still open")
	os.Remove(open.Name())
	want := ofFolder(t, filepath.Join(mount, "data"))

	dir, err := os.Open(mount)
	if err != nil {
		t.Fatal(err)
	}
	const freeze, thaw = 0xC0045877, 0xC0045878 // FIFREEZE, FITHAW
	if err := unix.IoctlSetInt(int(dir.Fd()), freeze, 0); err != nil {
		t.Fatal(err)
	}
	b, rerr := os.ReadFile(image)
	if err := unix.IoctlSetInt(int(dir.Fd()), thaw, 0); err != nil || rerr != nil {
		t.Fatal(err, rerr)
	}
	dir.Close()
	open.Close()
	for _, f := range pieces {
		f.Close()
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(copied, b, 0o600); err != nil {
		t.Fatal(err)
	}
	got, _, err := ofImage(t.Context(), copied)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, got, want)
	if b, err = os.ReadFile(image); err != nil { // thawed, and mounted still
		t.Fatal(err)
	}
	if err := os.WriteFile(copied, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ofImage(t.Context(), copied); isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), "journal") {
		t.Errorf("an image that is written to: %v", err)
	}
	run(t, "umount", mount)
	mounted = false
}

// A hostile image is refused, and never costs more than its size.
func TestAHostileImageIsRefused(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 50)
	good, err := os.ReadFile(make4(t, dir, 40<<20))
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	const sb = 1024
	inode := func(b []byte, n int) []byte { // of the first group, in blocks of 1024 bytes
		table := int(le.Uint32(b[2048+8:])) * 1024
		return b[table+(n-1)*256 : table+n*256]
	}
	for name, change := range map[string]func(b []byte) []byte{
		"empty":              func([]byte) []byte { return nil },
		"cut off":            func(b []byte) []byte { return b[:20<<20] },
		"no magic":           func(b []byte) []byte { b[sb+0x38] = 0; return b },
		"an unknown feature": func(b []byte) []byte { b[sb+0x62] |= 1; return b },
		"a journal":          func(b []byte) []byte { b[sb+0x60] |= 4; return b },
		"huge blocks":        func(b []byte) []byte { b[sb+0x18] = 30; return b },
		"no inodes":          func(b []byte) []byte { le.PutUint32(b[sb+0x28:], 0); return b },
		"tiny inodes":        func(b []byte) []byte { le.PutUint16(b[sb+0x58:], 2); return b },
		"many inodes":        func(b []byte) []byte { le.PutUint32(b[sb:], 1<<31); return b },
		"a table outside":    func(b []byte) []byte { le.PutUint32(b[2048+8:], 1<<30); return b },
		"a root that is no folder": func(b []byte) []byte {
			le.PutUint16(inode(b, 2), 0x81ed)
			return b
		},
		"a root of extents that lead to themselves": func(b []byte) []byte {
			i := inode(b, 2)
			block := le.Uint32(i[0x28+12+8:])
			le.PutUint16(i[0x28+6:], 5)
			le.PutUint32(i[0x28+12+4:], block)
			copy(b[block*1024:], i[0x28:0x28+24])
			return b
		},
		"a root that is in itself": func(b []byte) []byte {
			i := inode(b, 2)
			at := le.Uint32(i[0x28+12+8:]) * 1024
			for n := uint32(0); n < 1024; n += uint32(le.Uint16(b[at+n+4:])) {
				if string(b[at+n+8:at+n+8+4]) == "data" {
					le.PutUint32(b[at+n:], 2)
				}
			}
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(path, change(slices.Clone(good)), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, _, err := ofImage(t.Context(), path); err == nil || isle.CodeOf(err) != isle.Invalid {
				t.Error(err)
			}
		})
	}
}

func TestAWalkEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 5)
	image := make4(t, dir, 40<<20)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := ofImage(ctx, image); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A small image can have many names, long ones, and names that count twice.
func TestTheNamesOfAWalkTakeABoundedMemory(t *testing.T) {
	dir := t.TempDir()
	deep := filepath.Join(dir, "data", strings.Repeat("d", 200), strings.Repeat("e", 200))
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 400 {
		at := filepath.Join(deep, fmt.Sprint(i))
		if err := os.WriteFile(at, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			if err := os.Link(at, at+"-again"); err != nil {
				t.Fatal(err)
			}
		}
	}
	f, err := os.Open(make4(t, dir, 40<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := ext4.New(f, 40<<20)
	if err != nil {
		t.Fatal(err)
	}
	walk := func() (n int, err error) {
		err = m.Walk(t.Context(), "data", func(ext4.Entry, func(func(int64, []byte) error) error) error { n++; return nil })
		return n, err
	}
	// 600 names in one folder, and 200 files of several names whose paths have 405 bytes and more.
	const enough = 600*70 + 200*480 + 2000
	for memory, fits := range map[int64]bool{enough: true, 600 * 60: false, enough / 2: false} {
		m.SetMemory(memory)
		if n, err := walk(); fits && (err != nil || n != 603) || !fits && (isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), "memory")) {
			t.Errorf("in %d bytes: %d names, %v", memory, n, err)
		}
	}
}
