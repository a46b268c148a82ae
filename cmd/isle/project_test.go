package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"isle"
	"isle/internal/spec"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestAnEnvironmentIsCalledAfterProjectAndBranch(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"no git":         {nil, "shop"},
		"main":           {map[string]string{".git/HEAD": "ref: refs/heads/main\n"}, "shop"},
		"master":         {map[string]string{".git/HEAD": "ref: refs/heads/master\n"}, "shop"},
		"a branch":       {map[string]string{".git/HEAD": "ref: refs/heads/feature/Cart-2\n"}, "shop-feature-cart-2"},
		"detached":       {map[string]string{".git/HEAD": "0123456789012345678901234567890123456789\n"}, "shop"},
		"origin's trunk": {map[string]string{".git/HEAD": "ref: refs/heads/trunk\n", ".git/refs/remotes/origin/HEAD": "ref: refs/remotes/origin/trunk\n"}, "shop"},
		"not origin's":   {map[string]string{".git/HEAD": "ref: refs/heads/main\n", ".git/refs/remotes/origin/HEAD": "ref: refs/remotes/origin/trunk\n"}, "shop-main"},
		"a linked work tree": {map[string]string{
			".git": "gitdir: ../repo/worktrees/w\n", "../repo/worktrees/w/HEAD": "ref: refs/heads/fix\n", "../repo/worktrees/w/commondir": "../..\n",
			"../repo/refs/remotes/origin/HEAD": "ref: refs/remotes/origin/main\n",
		}, "shop-fix"},
		"a broken one":            {map[string]string{".git": "nonsense"}, ""},
		"a reftable":              {map[string]string{".git/HEAD": "ref: refs/heads/.invalid\n", ".git/config": "[extensions]\nrefStorage = reftable\n"}, ""},
		"one that steers":         {map[string]string{".git/HEAD": "ref: refs/heads/\x1b[2J\n"}, ""},
		"a folder with no branch": {map[string]string{".git/HEAD": "ref: refs/tags/x\n"}, ""},
	} {
		dir := filepath.Join(t.TempDir(), "work")
		for path, content := range c.files {
			write(t, filepath.Join(dir, path), content)
		}
		write(t, filepath.Join(dir, "sub", "x"), "")
		write(t, filepath.Join(dir, "sub", "isle.yaml"), "name: shop\nservices: {web: {}}\n")
		p, err := readProject(filepath.Join(dir, "sub"))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, _, err := p.name()
		if got != c.want {
			t.Errorf("%s: %q, not %q", name, got, c.want)
		}
		if c.want == "" && (isle.CodeOf(err) != isle.Unavailable || !strings.Contains(err.Error(), "--name")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestALockIsReplacedWholeAndOnlyWhenItChanged(t *testing.T) {
	dir := t.TempDir()
	p := &project{lockPath: filepath.Join(dir, "isle.lock"), lock: []byte("old")}
	for _, same := range []string{"", "old"} {
		if err := p.writeLock([]byte(same)); err != nil {
			t.Fatal(err)
		}
		if fileExists(p.lockPath) {
			t.Fatal("a lock that is as it was is written")
		}
	}
	if err := p.writeLock([]byte("new")); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(dir)
	b, _ := os.ReadFile(p.lockPath)
	if string(b) != "new" || len(entries) != 1 {
		t.Errorf("it is %q beside %v", b, entries)
	}
}

func TestAFileIsFoundFromAFolderBelow(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "isle.yaml"), "name: shop\nservices: {web: {packages: [bash]}}\n")
	write(t, filepath.Join(dir, "a", "b", "x"), "")
	t.Chdir(filepath.Join(dir, "a", "b"))
	p, err := readProject("")
	if err != nil || p.file.Name != "shop" || p.lockPath != filepath.Join(p.dir, "isle.lock") {
		t.Errorf("got %+v, %v", p, err)
	}
	if _, err := readProject("."); err == nil {
		t.Error("a folder that was named is not the one that has the file")
	}
}

func TestAChangeIsSeenByItsFingerprint(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "isle.yaml"), "x")
	write(t, filepath.Join(dir, "app", "a"), "x")
	p := &project{path: filepath.Join(dir, "isle.yaml"), dir: dir, file: spec.File{Services: []spec.Service{{Copy: []spec.Copy{{From: "app/"}}}}}}
	seen := [][32]byte{p.fingerprint()}
	step := func(what string, change func() error) {
		t.Helper()
		if err := change(); err != nil {
			t.Fatal(err)
		}
		now := p.fingerprint()
		if slices.Contains(seen, now) {
			t.Errorf("%s is not seen", what)
		}
		seen = append(seen, now)
	}
	app := filepath.Join(dir, "app")
	step("a new file", func() error { return os.WriteFile(filepath.Join(app, "b"), nil, 0o644) })
	step("another content", func() error { return os.WriteFile(filepath.Join(app, "b"), []byte("yy"), 0o644) })
	step("another time", func() error { return os.Chtimes(filepath.Join(app, "b"), time.Time{}, time.Unix(1, 0)) })
	step("another mode", func() error { return os.Chmod(filepath.Join(app, "b"), 0o755) })
	step("another file", func() error { return os.WriteFile(p.path, []byte("longer"), 0o644) })
	p.file.Services = append(p.file.Services, spec.Service{Build: &spec.Build{Context: "made", Dockerfile: "Dockerfile"}})
	write(t, filepath.Join(dir, "made", "Dockerfile"), "FROM x")
	seen = append(seen, p.fingerprint())
	step("another Dockerfile", func() error {
		return os.WriteFile(filepath.Join(dir, "made", "Dockerfile"), []byte("FROM longer"), 0o644)
	})
	step("a file gone", func() error { return os.Remove(filepath.Join(app, "a")) })
}

func TestSpansAndSizesForPeople(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", -time.Hour: "0s", 42 * time.Second: "42s", 90 * time.Second: "2m", 8*time.Hour - time.Second: "8h",
		150 * time.Minute: "2h30m", 30 * time.Hour: "30h", 7 * 24 * time.Hour: "7d",
	} {
		if got := span(d); got != want {
			t.Errorf("%v is %q, not %q", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 512 << 20: "512 MiB", 2 << 30: "2.0 GiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d is %q, not %q", n, got, want)
		}
	}
}

func TestTextFromInsideDoesNotSteerTheTerminal(t *testing.T) {
	if got := clean("a\x1b[2Jb\x07c\u009bd\te\n"); got != "a·[2Jb·c·d\te\n" {
		t.Errorf("got %q", got)
	}
}

func TestANegativeDurationIsNoFlag(t *testing.T) {
	got := subtractions([]string{"ttl", "shop", "-1h", "-o", "json"})
	if !slices.Equal(got, []string{"ttl", "shop", "+-1h", "-o", "json"}) {
		t.Errorf("got %q", got)
	}
	if d, err := duration("-1h30m"); err != nil || d != -90*time.Minute {
		t.Errorf("got %v, %v", d, err)
	}
}

func TestAFileThatNeverEndsIsNotReadToItsEnd(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "isle.yaml"), "name: shop\nservices: {web: {command: [x]}}\n")
	for _, name := range []string{"isle.lock", ".git"} {
		if err := os.Symlink("/dev/zero", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := readProject(dir); isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), "isle.lock") {
		t.Errorf("it was read: %v", err)
	}
}
