package secret

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"isle"
)

func TestAVariableIsReadWhenItIsUsed(t *testing.T) {
	w := newWorld(t)
	if _, err := w.s.Refer(t.Context(), ann, "db", Environment, "ISLE_SECRET_DB"); err != nil {
		t.Fatal(err)
	}
	w.resolve("db", "from outside")
	if _, err := w.s.Refer(t.Context(), ann, "none", Environment, "ISLE_SECRET_NONE"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.s.Resolve(t.Context(), "none"); isle.CodeOf(err) != isle.Unavailable || !strings.Contains(err.Error(), "ISLE_SECRET_NONE") {
		t.Error(err)
	}
}

func TestAFileIsReadWhenItIsUsed(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(w.cfg.Files[0], "folder", "db")
	if _, err := w.s.Refer(t.Context(), ann, "db", File, path); err != nil {
		t.Fatal(err)
	}
	os.Mkdir(filepath.Dir(path), 0o755)
	for text, want := range map[string]string{"one": "one", "two\n": "two", "three\n\n": "three\n", strings.Repeat("x", MaxValue) + "\n": strings.Repeat("x", MaxValue)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		w.resolve("db", want)
	}
}

func TestAFileThatOthersCouldHaveAHandInIsRefused(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("canary"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spoil func(p string) error
		text  string
	}{
		"missing":            {os.Remove, "there is no file"},
		"group may read":     {func(p string) error { return os.Chmod(p, 0o640) }, "has mode 0640"},
		"everybody may read": {func(p string) error { return os.Chmod(p, 0o604) }, "has mode 0604"},
		"somebody else's":    {func(p string) error { return os.Chown(p, 65534, 0) }, "belongs to user 65534"},
		"a link out":         {func(p string) error { os.Remove(p); return os.Symlink(outside, p) }, "symbolic link"},
		"a link inside":      {func(p string) error { os.Rename(p, p+"2"); return os.Symlink("db2", p) }, "symbolic link"},
		"a link on the way": {func(p string) error {
			os.Remove(p)
			os.Remove(filepath.Dir(p))
			return os.Symlink(filepath.Dir(outside), filepath.Dir(p))
		}, "symbolic link"},
		"a second name":  {func(p string) error { os.Remove(p); return os.Link(outside, p) }, "hard link"},
		"a folder":       {func(p string) error { os.Remove(p); return os.Mkdir(p, 0o700) }, "is no regular file"},
		"a pipe":         {func(p string) error { os.Remove(p); return unix.Mkfifo(p, 0o600) }, "is no regular file"},
		"empty":          {func(p string) error { return os.Truncate(p, 0) }, "is empty"},
		"only a newline": {func(p string) error { return os.WriteFile(p, []byte("\n"), 0o600) }, "is empty"},
		"too large":      {func(p string) error { return os.Truncate(p, MaxValue+1) }, "more than 65536 bytes"},
		"far too large":  {func(p string) error { return os.Truncate(p, 1<<30) }, "more than 6553"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			path := filepath.Join(w.cfg.Files[0], "folder", "db")
			os.Mkdir(filepath.Dir(path), 0o755)
			if err := os.WriteFile(path, []byte("canary"), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := w.s.Refer(t.Context(), ann, "db", File, path); err != nil {
				t.Fatal(err)
			}
			if err := c.spoil(path); err != nil {
				t.Fatal(err)
			}
			v, err := w.s.Resolve(t.Context(), "db")
			if isle.CodeOf(err) != isle.Unavailable || !strings.Contains(err.Error(), c.text) || v.Reveal() != nil {
				t.Errorf("%v; want %q", err, c.text)
			}
		})
	}
}

// A folder that the operator takes away again closes what was set below it.
func TestAFileBelowAFolderThatIsNoLongerNamedIsNotRead(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(w.cfg.Files[0], "db")
	os.WriteFile(path, []byte("canary"), 0o600)
	if _, err := w.s.Refer(t.Context(), ann, "db", File, path); err != nil {
		t.Fatal(err)
	}
	w.cfg.Files = []string{t.TempDir()}
	w.open()
	if _, err := w.s.Resolve(t.Context(), "db"); isle.CodeOf(err) != isle.Refused {
		t.Error(err)
	}
}
