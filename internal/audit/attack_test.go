package audit

import (
	"os"
	"path/filepath"
	"testing"
)

// Root may remember below another user's home. A link that lies there must not
// lead its writing elsewhere.
func TestWhatIsRememberedFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(dir, "shadow")
	if err := os.WriteFile(precious, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := OpenSigner(filepath.Join(dir, "key"), true)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Sign(Tree{}.Head())
	if err != nil {
		t.Fatal(err)
	}
	m := Memory{Dir: filepath.Join(dir, "seen")}
	if err := os.Mkdir(m.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	seen := Seen{Server: "/run/isle.sock", Key: s.Key(), Checkpoint: string(c.Note)}
	for _, name := range []string{m.Path(seen.Server) + ".new", m.Path(seen.Server)} {
		if err := os.Symlink(precious, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Accept(seen); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(precious); string(b) != "precious" {
		t.Errorf("another file was written to: %q", b)
	}
	if last, err := m.Last(seen.Server); err != nil || last == nil || *last != seen {
		t.Errorf("%+v %v", last, err)
	}
	if err := os.Remove(filepath.Join(m.Dir, "lock")); err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(dir, "elsewhere")
	if err := os.Symlink(elsewhere, filepath.Join(m.Dir, "lock")); err != nil {
		t.Fatal(err)
	}
	if err := m.Accept(seen); err == nil {
		t.Error("a link was taken for the lock")
	}
	if _, err := os.Lstat(elsewhere); err == nil {
		t.Error("a file was made where a link leads")
	}
}
