package main

import (
	"archive/tar"
	"bytes"
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
