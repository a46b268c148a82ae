package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"isle"
	"isle/internal/spec"
)

// treeOf unpacks packages and returns all entries of one layer, as lines, by
// path; "system" or "packages".
func treeOf(t testing.TB, layer string, pkgs ...testPackage) (map[string]string, error) {
	dir := t.TempDir()
	var locked []spec.LockedPackage
	for _, p := range pkgs {
		b := p.deb(t)
		d := isle.DigestOf(b)
		writeFile(t, dir, d.Hex(), string(b))
		locked = append(locked, spec.LockedPackage{Name: p.name, Version: p.version, Architecture: "amd64", Size: int64(len(b)), Digest: d})
	}
	spool := t.TempDir()
	tree, err := Unpack(context.Background(), locked, func(d isle.Digest) (*os.File, error) { return os.Open(filepath.Join(dir, d.Hex())) }, UnpackOptions{Spool: spool})
	if err != nil {
		if left, _ := os.ReadDir(spool); len(left) > 0 {
			t.Errorf("a failed unpack left %v", left)
		}
		return nil, err
	}
	defer tree.Close()
	out := map[string]string{}
	give := map[string]func(Add) error{"packages": tree.Packages, "system": tree.System}[layer]
	return out, give(func(e Entry, content func() (io.ReadCloser, error)) error {
		text := ""
		if content != nil {
			r, err := content()
			if err != nil {
				return err
			}
			defer r.Close()
			b, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			text = " " + string(b)
		}
		if e.Target != "" {
			text = " -> " + e.Target
		}
		out[e.Path] = fmt.Sprintf("%v %d:%d%s", e.Mode, e.UID, e.GID, text)
		return nil
	})
}

func reg(name, content string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Linkname: content}
}
func dir(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755} }
func link(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
}
func pkg(name string, files ...tar.Header) testPackage {
	return testPackage{name: name, version: "1", files: files}
}

func wantEntries(t *testing.T, got map[string]string, want map[string]string) {
	t.Helper()
	for p, w := range want {
		if got[p] != w {
			t.Errorf("%s: %q, want %q", p, got[p], w)
		}
	}
}

func TestRootIsMergedUsr(t *testing.T) {
	got, err := treeOf(t, "packages",
		pkg("a", dir("./"), dir("./bin/"), reg("./bin/sh", "shell"), dir("./lib64/"), link("./lib64/ld.so", "/lib/x/ld.so")),
		pkg("base-files", link("./bin", "usr/bin"), link("./lib", "usr/lib")),
		pkg("c", reg("./usr/bin/x", "x"), tar.Header{Name: "./bin/y", Typeflag: tar.TypeLink, Linkname: "./usr/bin/x"}))
	if err != nil {
		t.Fatal(err)
	}
	wantEntries(t, got, map[string]string{
		"/bin": "Lrwxrwxrwx 0:0 -> usr/bin", "/lib": "Lrwxrwxrwx 0:0 -> usr/lib", "/lib64": "Lrwxrwxrwx 0:0 -> usr/lib64",
		"/usr/bin/sh": "-rw-r--r-- 0:0 shell", "/usr/bin/y": "-rw-r--r-- 0:0 x", "/usr/lib64/ld.so": "Lrwxrwxrwx 0:0 -> /lib/x/ld.so",
		"/bin/sh": "",
	})
}

func TestOwnersAndModesAreThePackages(t *testing.T) {
	got, err := treeOf(t, "packages", pkg("a",
		tar.Header{Name: "usr/bin/su", Typeflag: tar.TypeReg, Mode: 0o4755},
		tar.Header{Name: "usr/bin/wall", Typeflag: tar.TypeReg, Mode: 0o2755, Gid: 5},
		tar.Header{Name: "usr/bin/built", Typeflag: tar.TypeReg, Mode: 0o755, Uid: 1000, Gid: 1000}))
	if err != nil {
		t.Fatal(err)
	}
	wantEntries(t, got, map[string]string{"/usr/bin/su": "urwxr-xr-x 0:0", "/usr/bin/wall": "grwxr-xr-x 0:5", "/usr/bin/built": "-rwxr-xr-x 0:0"})
}

func TestDocumentationIsLeftOutAndCopyrightStays(t *testing.T) {
	got, err := treeOf(t, "packages", pkg("a", reg("usr/share/doc/a/copyright", "free"), reg("usr/share/doc/a/NEWS", "n"),
		reg("usr/share/man/man1/a.1", "m"), reg("usr/share/locale/de/LC_MESSAGES/a.mo", "l"), reg("usr/share/locale/locale.alias", "x")))
	if err != nil {
		t.Fatal(err)
	}
	wantEntries(t, got, map[string]string{
		"/usr/share/doc/a/copyright": "-rw-r--r-- 0:0 free", "/usr/share/doc/a/NEWS": "", "/usr/share/man/man1/a.1": "",
		"/usr/share/locale/de/LC_MESSAGES/a.mo": "", "/usr/share/locale/locale.alias": "-rw-r--r-- 0:0 x",
	})
}

func TestScannersFindWhatIsInstalled(t *testing.T) {
	p := pkg("a", reg("./usr/bin/a", "x"))
	p.fields = "Multi-Arch: same\n"
	got, err := treeOf(t, "packages", p, pkg("b"))
	if err != nil {
		t.Fatal(err)
	}
	status := got["/var/lib/dpkg/status"]
	if !strings.Contains(status, "Package: a\nStatus: install ok installed\nVersion: 1\n") || !strings.Contains(status, "Description: test\n more\n .\n end\n\nPackage: b\n") {
		t.Errorf("status: %s", status)
	}
	wantEntries(t, got, map[string]string{
		"/var/lib/dpkg/info/a:amd64.list":    "-rw-r--r-- 0:0 /.\n/usr/bin/a\n",
		"/var/lib/dpkg/info/a:amd64.md5sums": "-rw-r--r-- 0:0 d41d8cd98f00b204e9800998ecf8427e  usr/bin/x\n",
	})
}

func TestReplacedFileIsTheReplacingPackages(t *testing.T) {
	winner := testPackage{name: "a", version: "1", fields: "Replaces: b\n", files: []tar.Header{reg("usr/bin/x", "a's")}}
	got, err := treeOf(t, "packages", winner, pkg("b", reg("usr/bin/x", "b's")))
	if err != nil {
		t.Fatal(err)
	}
	wantEntries(t, got, map[string]string{"/usr/bin/x": "-rw-r--r-- 0:0 a's"})
}

func TestHostilePackagesAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		files []tar.Header
		words string
	}{
		"path that leaves the root":   {[]tar.Header{reg("../../etc/passwd", "x")}, "bad path"},
		"path with dots inside":       {[]tar.Header{reg("usr/../../x", "x")}, "bad path"},
		"device node":                 {[]tar.Header{{Name: "dev/mem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1}}, "not taken"},
		"fifo":                        {[]tar.Header{{Name: "run/f", Typeflag: tar.TypeFifo}}, "not taken"},
		"hard link outside":           {[]tar.Header{{Name: "x", Typeflag: tar.TypeLink, Linkname: "../../etc/shadow"}}, "bad link target"},
		"hard link to nothing":        {[]tar.Header{{Name: "x", Typeflag: tar.TypeLink, Linkname: "etc/shadow"}}, "does not have"},
		"links in a circle":           {[]tar.Header{link("a", "b"), link("b", "a"), reg("a/x", "x")}, "too many links"},
		"file used as a directory":    {[]tar.Header{reg("a", "x"), reg("a/b", "x")}, "not a directory"},
		"directory in a file's place": {[]tar.Header{dir("a"), reg("a", "x")}, "is a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := treeOf(t, "packages", pkg("evil", c.files...))
			wantError(t, err, isle.Invalid, "evil", c.words)
		})
	}
}

func TestLinkOutOfTheRootStaysInside(t *testing.T) {
	got, err := treeOf(t, "packages", pkg("evil", link("up", "../../../../tmp"), reg("up/x", "x")))
	if err != nil {
		t.Fatal(err)
	}
	wantEntries(t, got, map[string]string{"/tmp/x": "-rw-r--r-- 0:0 x"})
}

func TestPackageThatIsNotTheLockedOneIsRefused(t *testing.T) {
	b := pkg("a").deb(t)
	name := filepath.Join(t.TempDir(), "a.deb")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(isle.Digest) (*os.File, error) { return os.Open(name) }
	_, err := Unpack(context.Background(), []spec.LockedPackage{{Name: "b", Version: "1", Architecture: "amd64"}}, open, UnpackOptions{Spool: t.TempDir()})
	wantError(t, err, isle.Invalid, "it is a 1 amd64")
	if err := os.WriteFile(name, b[:len(b)-20], 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Unpack(context.Background(), []spec.LockedPackage{{Name: "a", Version: "1", Architecture: "amd64"}}, open, UnpackOptions{Spool: t.TempDir()})
	wantError(t, err, isle.Invalid, "cannot be unpacked")
}

func TestFullDiskWhileUnpackingIsSaid(t *testing.T) {
	b := pkg("a", reg("big", strings.Repeat("x", 1<<20))).deb(t)
	name := filepath.Join(t.TempDir(), "a.deb")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	spool := smallDisk(t, "128")
	_, err := Unpack(context.Background(), []spec.LockedPackage{{Name: "a", Version: "1", Architecture: "amd64"}},
		func(isle.Digest) (*os.File, error) { return os.Open(name) }, UnpackOptions{Spool: spool})
	wantError(t, err, isle.Exhausted, "no space left")
	if left, _ := os.ReadDir(spool); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestEveryCompressionOfPackagesIsRead(t *testing.T) {
	var z, x bytes.Buffer
	zw, err := zstd.NewWriter(&z)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(zw, "content")
	zw.Close()
	xw, err := xz.NewWriter(&x)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(xw, "content")
	xw.Close()
	for name, data := range map[string][]byte{"data.tar.zst": z.Bytes(), "data.tar.xz": x.Bytes(), "data.tar": []byte("content")} {
		r, err := decompressor(name, bytes.NewReader(data))
		if err != nil {
			t.Fatal(name, err)
		}
		if b, err := io.ReadAll(r); err != nil || string(b) != "content" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

func FuzzDeb(f *testing.F) {
	f.Add(pkg("a", reg("usr/bin/a", "x"), link("b", "c")).deb(f))
	f.Add([]byte("!<arch>\ndebian-binary   0           0     0     100644  4         `\n2.0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		readDeb(bytes.NewReader(b), func(f file, content io.Reader) error {
			if strings.HasPrefix(f.path, "/") || strings.Contains("/"+f.path+"/", "/../") {
				t.Fatalf("path %q", f.path)
			}
			_, err := io.Copy(io.Discard, io.LimitReader(content, 1<<20))
			return err
		})
	})
}
