package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isle"
)

// stream is a tar stream of the headers, each file with its name as content.
func stream(t *testing.T, headers ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 || h.Typeflag == tar.TypeReg {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(h.Name))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, h.Name)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestWhatAnEnvironmentSendsNeverLandsOutsideTheDestination(t *testing.T) {
	for name, headers := range map[string][]tar.Header{
		"dots":                  {{Name: "a/../../outside/x"}},
		"an absolute path":      {{Name: "/outside/x"}},
		"only dots":             {{Name: "../outside"}},
		"a link to the outside": {{Name: "a", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "a/l", Typeflag: tar.TypeSymlink, Linkname: "../../outside"}, {Name: "a/l/x"}},
		"an absolute link":      {{Name: "a", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "a/l", Typeflag: tar.TypeSymlink, Linkname: "OUTSIDE"}, {Name: "a/l/x"}},
		"a folder over a link":  {{Name: "a/l", Typeflag: tar.TypeSymlink, Linkname: "OUTSIDE"}, {Name: "a/l", Typeflag: tar.TypeDir, Mode: 0o777}, {Name: "a/l/x"}},
		"a hard link":           {{Name: "a/h", Typeflag: tar.TypeLink, Linkname: "../outside/secret"}, {Name: "a/h"}},
		"a hard link by a link": {{Name: "a/l", Typeflag: tar.TypeSymlink, Linkname: "OUTSIDE"}, {Name: "a/h", Typeflag: tar.TypeLink, Linkname: "a/l/secret"}, {Name: "a/h"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			outside := filepath.Join(dir, "outside")
			for _, d := range []string{outside, filepath.Join(dir, "to")} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			secret := filepath.Join(outside, "secret")
			if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
				t.Fatal(err)
			}
			for i := range headers {
				headers[i].Linkname = strings.ReplaceAll(headers[i].Linkname, "OUTSIDE", outside)
			}
			_, err := extract(filepath.Join(dir, "to"), "a", stream(t, headers...), &progress{w: io.Discard})
			if err == nil {
				t.Error("it was taken without a word")
			}
			entries, _ := os.ReadDir(outside)
			b, _ := os.ReadFile(secret)
			if len(entries) != 1 || string(b) != "secret" {
				t.Errorf("outside there is %v, secret is %q", entries, b)
			}
		})
	}
}

func TestACopyTakesOverNeitherSetIDBitsNorDevices(t *testing.T) {
	dir := t.TempDir()
	n, err := extract(dir, "new", stream(t,
		tar.Header{Name: "old", Typeflag: tar.TypeDir, Mode: 0o555},
		tar.Header{Name: "old/su", Mode: 0o6755},
		tar.Header{Name: "old/dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1},
		tar.Header{Name: "old/fifo", Typeflag: tar.TypeFifo},
		tar.Header{Name: "old/link", Typeflag: tar.TypeSymlink, Linkname: "su"},
	), &progress{w: io.Discard})
	if err != nil || n != 3 {
		t.Fatalf("%d entries, %v", n, err)
	}
	st, err := os.Lstat(filepath.Join(dir, "new", "su"))
	if err != nil || st.Mode() != 0o755 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	entries, _ := os.ReadDir(filepath.Join(dir, "new"))
	if len(entries) != 2 {
		t.Errorf("there are %v", entries)
	}
}

func TestACopyReplacesALinkInsteadOfWritingThroughIt(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	if err := os.WriteFile(target, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("target", filepath.Join(dir, "file")); err != nil {
		t.Fatal(err)
	}
	if _, err := extract(dir, "file", stream(t, tar.Header{Name: "x"}), &progress{w: io.Discard}); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(target); string(b) != "kept" {
		t.Errorf("the link's target is %q", b)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "file")); string(b) != "x" {
		t.Errorf("the file is %q", b)
	}
}

func TestWhatIsArchivedIsExtractedTheSame(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for name, content := range map[string]string{"a/b/c": "deep", "x": "top", "empty": ""} {
		p := filepath.Join(from, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a/b", filepath.Join(from, "l")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".", "dir"} { // relative to itself, and by its own name
		var b bytes.Buffer
		if err := archive(&b, from, name, &progress{w: io.Discard}); err != nil {
			t.Fatal(err)
		}
		as := "as" + strings.Trim(name, ".")
		if _, err := extract(to, as, &b, &progress{w: io.Discard}); err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string]string{"a/b/c": "deep", "x": "top", "empty": "", "l/c": "deep"} {
			got, err := os.ReadFile(filepath.Join(to, as, name))
			if err != nil || string(got) != content {
				t.Errorf("%s/%s is %q, %v", as, name, got, err)
			}
		}
	}
}

func TestPlacesAreTold(t *testing.T) {
	for s, want := range map[string]place{
		"shop:/a":            {"shop", "", "/a"},
		"shop@staging/db:/a": {"shop@staging", "db", "/a"},
		"shop:/a:b":          {"shop", "", "/a:b"},
	} {
		got, inside, err := parsePlace(s)
		if err != nil || !inside || got != want {
			t.Errorf("%s: %+v, %v, %v", s, got, inside, err)
		}
	}
	for _, s := range []string{"file", "./a:b", "/x/a:b", ":x", "../a:b"} {
		if _, inside, err := parsePlace(s); inside || err != nil {
			t.Errorf("%s: %v, %v", s, inside, err)
		}
	}
	for _, s := range []string{"shop:a", "Shop:/a"} {
		if _, _, err := parsePlace(s); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: %v", s, err)
		}
	}
}

// A folder that is copied out a second time may have become what the first
// copy has a link for: the link is to the folder around, and in that are files
// that run things.
func TestALinkOfAnEarlierCopyLeadsNoLaterOneOutOfItsFolder(t *testing.T) {
	for name, target := range map[string]string{"the folder around": "..", "a file beside": "../hooks", "a folder in it": "sub"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "hooks"), 0o755); err != nil {
				t.Fatal(err)
			}
			for _, f := range []string{"profile", "hooks/profile"} {
				if err := os.WriteFile(filepath.Join(dir, f), []byte("mine"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			show := &progress{w: io.Discard}
			if _, err := extract(dir, "out", stream(t,
				tar.Header{Name: "out/", Typeflag: tar.TypeDir, Mode: 0o755},
				tar.Header{Name: "out/l", Typeflag: tar.TypeSymlink, Linkname: target},
			), show); err != nil {
				t.Fatal(err)
			}
			if _, err := extract(dir, "out", stream(t,
				tar.Header{Name: "out/", Typeflag: tar.TypeDir, Mode: 0o755},
				tar.Header{Name: "out/l/", Typeflag: tar.TypeDir, Mode: 0o777},
				tar.Header{Name: "out/l/profile", Mode: 0o777},
			), show); err != nil {
				t.Fatal(err)
			}
			for _, f := range []string{"profile", "hooks/profile"} {
				if b, _ := os.ReadFile(filepath.Join(dir, f)); string(b) != "mine" {
					t.Errorf("%s is %q", f, b)
				}
			}
			if st, err := os.Lstat(filepath.Join(dir, "out", "l")); err != nil || !st.IsDir() {
				t.Errorf("out/l is %v, %v", st, err)
			}
			if st, _ := os.Stat(filepath.Join(dir, "hooks")); st.Mode().Perm() != 0o755 {
				t.Errorf("the folder beside has mode %v", st.Mode())
			}
		})
	}
}

// What an environment chooses must not be where the next copy, or any other
// program, writes.
func TestNoLinkToAnythingElseIsCopiedOut(t *testing.T) {
	dir := t.TempDir()
	headers := []tar.Header{{Name: "out/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "out/a/b/", Typeflag: tar.TypeDir, Mode: 0o755}}
	for i, target := range []string{"/etc", "..", "a/../..", "a/b/../../../x", "./../x", "a/b/../up"} {
		headers = append(headers, tar.Header{Name: fmt.Sprintf("out/bad%d", i), Typeflag: tar.TypeSymlink, Linkname: target})
	}
	headers = append(headers,
		tar.Header{Name: "out/a/b/bad", Typeflag: tar.TypeSymlink, Linkname: "../../../x"},
		tar.Header{Name: "out/a/b/good", Typeflag: tar.TypeSymlink, Linkname: "../../good"},
		tar.Header{Name: "out/good", Typeflag: tar.TypeSymlink, Linkname: "a/./b"},
		tar.Header{Name: "out/a/bad", Typeflag: tar.TypeLink, Linkname: "out/good"})
	_, err := extract(dir, "out", stream(t, headers[:len(headers)-1]...), &progress{w: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"bad0": "", "bad1": "", "bad2": "", "bad3": "", "bad4": "", "bad5": "", "a/b/bad": "", "a/b/good": "../../good", "good": "a/./b"} {
		if got, _ := os.Readlink(filepath.Join(dir, "out", name)); got != want {
			t.Errorf("%s is a link to %q, want %q", name, got, want)
		}
	}
	if _, err := extract(t.TempDir(), "out", stream(t, headers...), &progress{w: io.Discard}); err == nil {
		t.Error("a link was moved by a hard link")
	}
	if n, err := extract(dir, "top", stream(t, tar.Header{Name: "x", Typeflag: tar.TypeSymlink, Linkname: "/etc"}), &progress{w: io.Discard}); n != 0 || err != nil {
		t.Errorf("a link alone: %d entries, %v", n, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "top")); err == nil {
		t.Error("a link to anywhere lies at the destination")
	}
	if err := os.MkdirAll(filepath.Join(dir, "out", "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..", filepath.Join(dir, "out", "deep", "up")); err != nil { // of an earlier copy
		t.Fatal(err)
	}
	if _, err := extract(dir, "out", stream(t, tar.Header{Name: "out/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "out/deep/up/sly", Typeflag: tar.TypeSymlink, Linkname: "../../x"}), &progress{w: io.Discard}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "out", "sly")); err == nil {
		t.Error("a link was made through a link, where it leads elsewhere")
	}
}

func TestAnEnvironmentCannotSendAFewBytesThatFillADisk(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "out/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	w.Flush()
	// A sparse file of PAX format 0.1: 64 MiB of hole. The writer refuses to
	// make one, so its header is taken from another tar.
	records := pax("GNU.sparse.major", "0") + pax("GNU.sparse.minor", "1") + pax("GNU.sparse.size", "67108864") + pax("GNU.sparse.numblocks", "1") + pax("GNU.sparse.map", "67108864,0")
	for _, h := range []struct {
		name string
		kind byte
		data string
	}{{"x", tar.TypeXHeader, records}, {"out/f", tar.TypeReg, ""}} {
		block := make([]byte, 512)
		copy(block, h.name)
		copy(block[100:], "0000644\x000000000\x000000000\x00")
		copy(block[124:], fmt.Sprintf("%011o\x00%011o\x00        ", len(h.data), 0))
		block[156] = h.kind
		copy(block[257:], "ustar\x0000")
		sum := 0
		for _, c := range block {
			sum += int(c)
		}
		copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
		b.Write(block)
		data := make([]byte, (len(h.data)+511)/512*512)
		copy(data, h.data)
		b.Write(data)
	}
	b.Write(make([]byte, 1024))
	if _, err := extract(t.TempDir(), "out", &b, &progress{w: io.Discard}); err == nil || !strings.Contains(err.Error(), "sparse") {
		t.Errorf("it was taken: %v", err)
	}
}

// pax is one record of a PAX header.
func pax(key, value string) string {
	size := len(key) + len(value) + 3
	n := size + len(fmt.Sprint(size))
	if len(fmt.Sprint(n)) > len(fmt.Sprint(size)) {
		n++
	}
	return fmt.Sprintf("%d %s=%s\n", n, key, value)
}
