package spec

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"isle"
)

// lay writes files: a path that ends in a slash is a folder, content that
// begins with -> is a link.
func lay(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = os.Symlink(target, p)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(p, 0o755)
		} else {
			err = os.WriteFile(p, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func paths(tr Tree) (out []string) {
	for _, e := range tr.Entries {
		out = append(out, e.Path)
	}
	return out
}

func TestATreeIsTheFilesAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	lay(t, dir, map[string]string{
		"app/a.py": "a", "app/sub/b": "b", "app/sub-c": "c", "app/empty/": "", "app/link": "->../../etc/passwd",
		"app/.git/HEAD": "x", "app/isle.lock": "x", "app/x.pyc": "x", "app/node_modules/m": "x", "app/keep.pyc": "x",
		".isleignore": "# built\n*.pyc\n!keep.pyc\nnode_modules/\n",
	})
	if err := os.Chmod(filepath.Join(dir, "app/sub/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	got, files, err := HashTree(t.Context(), dir, "app/", nil)
	if err != nil {
		t.Fatal(err)
	}
	want := Tree{[]TreeEntry{
		{Path: "", Type: "dir"},
		{Path: "a.py", Type: "file", Size: 1, Digest: isle.DigestOf([]byte("a"))},
		{Path: "empty", Type: "dir"},
		{Path: "keep.pyc", Type: "file", Size: 1, Digest: isle.DigestOf([]byte("x"))},
		{Path: "link", Type: "link", Target: "../../etc/passwd"},
		{Path: "sub", Type: "dir"},
		{Path: "sub-c", Type: "file", Size: 1, Digest: isle.DigestOf([]byte("c"))},
		{Path: "sub/b", Type: "file", Exec: true, Size: 1, Digest: isle.DigestOf([]byte("b"))},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if p := files[isle.DigestOf([]byte("b"))]; p != filepath.Join(dir, "app/sub/b") {
		t.Errorf("b is read from %q", p)
	}
	back, err := DecodeTree(got.Encode())
	if err != nil || !reflect.DeepEqual(back, got) || back.Digest() != got.Digest() {
		t.Errorf("it does not survive being written: %v", err)
	}
	one, _, err := HashTree(t.Context(), dir, "app/a.py", nil)
	if err != nil || !reflect.DeepEqual(one, Tree{[]TreeEntry{{Type: "file", Size: 1, Digest: isle.DigestOf([]byte("a"))}}}) {
		t.Errorf("a single file: %+v, %v", one, err)
	}
	same, _, err := HashTree(t.Context(), dir, "./app", nil)
	if err != nil || same.Digest() != got.Digest() {
		t.Errorf("with and without the slash a folder differs: %v", err)
	}
}

func TestNothingOutsideTheProjectIsRead(t *testing.T) {
	outside := t.TempDir()
	lay(t, outside, map[string]string{"secret": "s"})
	dir := t.TempDir()
	lay(t, dir, map[string]string{"in/f": "f", "abs": "->" + outside, "file": "->" + outside + "/secret", "inside": "->in", "deep": "->in/../../" + filepath.Base(outside)})
	for _, from := range []string{"abs", "abs/", "abs/secret", "file", "deep", "../" + filepath.Base(outside), "/etc", "in/../../x"} {
		if tr, _, err := HashTree(t.Context(), dir, from, nil); err == nil {
			t.Errorf("%s gave %+v", from, tr)
		}
	}
	tr, _, err := HashTree(t.Context(), dir, "inside/", nil)
	if err != nil || !reflect.DeepEqual(paths(tr), []string{"", "f"}) {
		t.Errorf("a link that stays inside: %v, %v", paths(tr), err)
	}
	tr, _, err = HashTree(t.Context(), dir, ".", nil)
	if err != nil || !reflect.DeepEqual(paths(tr), []string{"", "abs", "deep", "file", "in", "in/f", "inside"}) {
		t.Errorf("links are listed as links: %v, %v", paths(tr), err)
	}
}

func TestWhatIsNoFileIsRefusedByName(t *testing.T) {
	dir := t.TempDir()
	lay(t, dir, map[string]string{"app/": "", "lone": "x"})
	if err := syscall.Mkfifo(filepath.Join(dir, "app/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for from, want := range map[string]string{
		"app":      "copy: app/fifo is a named pipe; only files, folders and links can be copied (remove it, or name it in .isleignore)",
		"app/fifo": "copy: app/fifo is a named pipe; only files, folders and links can be copied (remove it, or name it in .isleignore)",
		"lone/":    "copy: lone/ is a file and not a folder (leave out the slash at its end)",
		"nothing":  "copy: there is no nothing in " + dir + " (from is relative to the folder of isle.yaml)",
	} {
		if _, _, err := HashTree(t.Context(), dir, from, nil); err == nil || err.Error() != want {
			t.Errorf("%s: %v", from, err)
		}
	}
	lay(t, dir, map[string]string{"bad/\xff": "x"})
	if _, _, err := HashTree(t.Context(), dir, "bad", nil); err == nil || !strings.Contains(err.Error(), "not UTF-8") {
		t.Errorf("a name that is not UTF-8: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := HashTree(ctx, dir, "app", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of the context: %v", err)
	}
}

func TestAnUnchangedTreeIsNotReadAgain(t *testing.T) {
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "cache")
	lay(t, dir, map[string]string{"a": "1", "b/c": "2", "gone": "3"})
	later := func() time.Time { return time.Now().Add(time.Minute) }
	hash := func(now func() time.Time) (isle.Digest, int) {
		t.Helper()
		c := OpenCache(file)
		c.Now = now
		tr, _, err := HashTree(t.Context(), dir, ".", c)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Save(); err != nil {
			t.Fatal(err)
		}
		return tr.Digest(), c.Hashed()
	}
	first, n := hash(later)
	if n != 3 {
		t.Errorf("at first %d files were read", n)
	}
	if d, n := hash(later); n != 0 || d != first {
		t.Errorf("without a change %d files were read", n)
	}
	// The same length and the same modification time, but the change time tells.
	info, err := os.Stat(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	lay(t, dir, map[string]string{"a": "9"})
	if err := os.Chtimes(filepath.Join(dir, "a"), info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "gone")); err != nil {
		t.Fatal(err)
	}
	d, n := hash(later)
	if n != 1 || d == first {
		t.Errorf("after a change %d files were read, digest changed: %v", n, d != first)
	}
	if b, _ := os.ReadFile(file); bytes.Contains(b, []byte("gone")) {
		t.Error("the cache keeps what is gone")
	}
	// What changed within the clock's grain of being read is not trusted.
	lay(t, dir, map[string]string{"a": "7"})
	just := func() time.Time {
		info, err := os.Stat(filepath.Join(dir, "a"))
		if err != nil {
			t.Fatal(err)
		}
		st, _ := statOf(info)
		return time.Unix(0, st.ctime)
	}
	hash(just)
	if _, n := hash(later); n == 0 {
		t.Error("a file that changed just before it was read was remembered")
	}
	if err := os.WriteFile(file, []byte(cacheHeader+"nonsense\n\n0 0 0 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := hash(later); got != d && got == first {
		t.Error("a damaged cache changed the result")
	}
}

func TestIgnorePatternsMeanWhatGitMeans(t *testing.T) {
	for _, c := range []struct {
		patterns, path string
		dir, want      bool
	}{
		{"*.log", "a/b.log", false, true},
		{"*.log", "b.logs", false, false},
		{"/build", "build", true, true},
		{"/build", "a/build", true, false},
		{"build/", "build", false, false},
		{"build/", "a/build", true, true},
		{"a/*.txt", "a/b.txt", false, true},
		{"a/*.txt", "x/a/b.txt", false, false},
		{"a/**/z", "a/z", false, true},
		{"a/**/z", "a/b/c/z", false, true},
		{"a/**/z", "b/z", false, false},
		{"a/**", "a/b/c", false, true},
		{"**/t/x", "p/q/t/x", false, true},
		{"*\n!keep", "keep", false, false},
		{"!keep\n*", "keep", false, true},
		{`\#x`, "#x", false, true},
		{"[ab].c", "q/b.c", false, true},
		{"", ".git", true, true},
		{"!.git", "m/.git", false, true},
	} {
		ig, err := parseIgnore([]byte(c.patterns))
		if err != nil {
			t.Fatal(err)
		}
		if got := ig.match(c.path, c.dir); got != c.want {
			t.Errorf("%q on %s (folder %v): %v", c.patterns, c.path, c.dir, got)
		}
	}
	for in, want := range map[string]string{
		"ok\n[a":  `.isleignore:2: "[a" is no pattern: a [ or \ is not ended`,
		"a//b":    `.isleignore:1: "a//b" is no pattern; want names, *, ?, [a-z] and **, separated by single slashes`,
		"../x":    `.isleignore:1: "../x" is no pattern; want names, *, ?, [a-z] and **, separated by single slashes`,
		"/":       `.isleignore:1: "" is no pattern; want names, *, ?, [a-z] and **, separated by single slashes`,
		"a/../b ": `.isleignore:1: "a/../b" is no pattern; want names, *, ?, [a-z] and **, separated by single slashes`,
	} {
		if _, err := parseIgnore([]byte(in)); err == nil || err.Error() != want {
			t.Errorf("%q: %v", in, err)
		}
	}
	// Many ** and no match: the work is bounded.
	ig, err := parseIgnore([]byte(strings.Repeat("**/a/", 200) + "b"))
	if err != nil {
		t.Fatal(err)
	}
	if ig.match(strings.Repeat("a/", 2000)+"c", false) {
		t.Error("matched")
	}
}

func TestAHostileTreeIsRefused(t *testing.T) {
	d := `"sha256:` + isle.DigestOf(nil).Hex() + `"`
	for name, in := range map[string]string{
		"nothing":          `{"entries":[]}`,
		"null":             `null`,
		"no root":          `{"entries":[{"path":"a","type":"dir"}]}`,
		"up":               `{"entries":[{"path":"","type":"dir"},{"path":"..","type":"dir"}]}`,
		"up and in":        `{"entries":[{"path":"","type":"dir"},{"path":"../x","type":"link","target":"y"}]}`,
		"absolute":         `{"entries":[{"path":"","type":"dir"},{"path":"/x","type":"dir"}]}`,
		"unclean":          `{"entries":[{"path":"","type":"dir"},{"path":"a","type":"dir"},{"path":"a//b","type":"dir"}]}`,
		"dot":              `{"entries":[{"path":"","type":"dir"},{"path":".","type":"dir"}]}`,
		"below a link":     `{"entries":[{"path":"","type":"dir"},{"path":"a","type":"link","target":"/etc"},{"path":"a/b","type":"dir"}]}`,
		"below a file":     `{"entries":[{"path":"","type":"file","digest":` + d + `},{"path":"b","type":"dir"}]}`,
		"no parent":        `{"entries":[{"path":"","type":"dir"},{"path":"a/b","type":"dir"}]}`,
		"twice":            `{"entries":[{"path":"","type":"dir"},{"path":"a","type":"dir"},{"path":"a","type":"dir"}]}`,
		"order":            `{"entries":[{"path":"","type":"dir"},{"path":"b","type":"dir"},{"path":"a","type":"dir"}]}`,
		"type":             `{"entries":[{"path":"","type":"device"}]}`,
		"digest":           `{"entries":[{"path":"","type":"file","digest":"sha256:../../x"}]}`,
		"size":             `{"entries":[{"path":"","type":"file","size":-1,"digest":` + d + `}]}`,
		"folder with size": `{"entries":[{"path":"","type":"dir","size":1}]}`,
		"no target":        `{"entries":[{"path":"","type":"link"}]}`,
		"NUL":              `{"entries":[{"path":"","type":"dir"},{"path":"a\u0000","type":"dir"}]}`,
		"unknown key":      `{"entries":[{"path":"","type":"dir","mode":4755}]}`,
		"white space":      `{"entries": [{"path":"","type":"dir"}]}`,
		"long name":        `{"entries":[{"path":"","type":"dir"},{"path":"` + strings.Repeat("x", 256) + `","type":"dir"}]}`,
	} {
		if tr, err := DecodeTree([]byte(in + "\n")); err == nil {
			t.Errorf("%s: accepted %+v", name, tr)
		} else if isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: code %s", name, isle.CodeOf(err))
		}
	}
}

func FuzzDecodeTree(f *testing.F) {
	d := isle.DigestOf(nil)
	f.Add(Tree{[]TreeEntry{{Type: "dir"}, {Path: "a", Type: "dir"}, {Path: "a/b", Type: "file", Size: 1, Exec: true, Digest: d}, {Path: "l", Type: "link", Target: "<x>"}}}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		tr, err := DecodeTree(b)
		if err != nil {
			return
		}
		if !bytes.Equal(tr.Encode(), b) {
			t.Errorf("not canonical: %q", b)
		}
		for _, e := range tr.Entries {
			if clean := filepath.Join("/root", e.Path); clean != "/root" && !strings.HasPrefix(clean, "/root/") {
				t.Errorf("leads out: %q", e.Path)
			}
		}
	})
}

func FuzzIgnore(f *testing.F) {
	f.Add("*.log\n!a/**/b/\n[a-z]?\n", "a/b/c.log")
	f.Fuzz(func(t *testing.T, patterns, p string) {
		ig, err := parseIgnore([]byte(patterns))
		if err != nil {
			if isle.CodeOf(err) != isle.Invalid {
				t.Errorf("code %s", isle.CodeOf(err))
			}
			return
		}
		ig.match(p, true)
		if !ig.match(p+"/.git", true) {
			t.Error(".git is not left out")
		}
	})
}

func TestAFilesOwnLockIsNotInWhatItCopies(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "shop.lock", "sub/shop.lock"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tr, _, err := HashCopy(t.Context(), dir, "shop.lock", ".", nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range tr.Entries {
		names = append(names, e.Path)
	}
	if want := []string{"", "a", "sub", "sub/shop.lock"}; !slices.Equal(names, want) {
		t.Errorf("it copies %q, not %q", names, want)
	}
}
