package checkout

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A repository is anybody's, and what it costs to look at it is not its to say.

func TestPatternsThatTakeLongEndWithTheTimeThereIs(t *testing.T) {
	r := newRepo(t)
	r.write("file", "x")
	r.commit()
	r.write(".gitignore", strings.Repeat(strings.Repeat("*a", 20)+"b\n", 1000))
	r.write(strings.Repeat("a", 200), "x")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := &scan{c: r.find(""), ctx: ctx}
	if _, err := s.untracked(); !errors.Is(err, context.Canceled) {
		t.Errorf("it goes on: %v", err)
	}
}

func TestPatternsOfManyFoldersTakeABoundedMemory(t *testing.T) {
	r := newRepo(t)
	r.write("file", "x")
	dir := ""
	for i := range 4 {
		r.write(dir+".gitignore", strings.Repeat(fmt.Sprintf("no%d\n", i), maxPatterns/3))
		dir += "d/"
	}
	r.write(dir+"file", "x")
	r.git("add", "-f", ".")
	r.commit()
	if _, err := r.find("").Dirty(t.Context()); err == nil || !strings.Contains(err.Error(), "patterns") {
		t.Errorf("more than %d patterns: %v", maxPatterns, err)
	}
}

func TestPathsOfASmallIndexTakeABoundedMemory(t *testing.T) {
	const count = maxPaths/4000 + 10
	b := binary.BigEndian.AppendUint32([]byte("DIRC"), 4)
	b = binary.BigEndian.AppendUint32(b, count)
	for i := range count {
		b = append(b, make([]byte, fixed+20+2)...)
		name := fmt.Sprintf("%08d", i)
		if i == 0 { // all others have it in common
			b = append(b, 0)
			name = strings.Repeat("d", 4000) + name
		} else {
			b = append(b, 8)
		}
		b = append(append(b, name...), 0)
	}
	b = append(b, make([]byte, 20)...)
	if _, err := parseIndex(b, 20, ""); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("an index of %d bytes: %v", len(b), err)
	}
}

func TestAFolderIsOfNoRepositoryThatDoesNotKnowIt(t *testing.T) {
	r := newRepo(t)
	r.write("app/x", "x")
	r.commit()
	r.git("worktree", "add", "-q", "-b", "side", "../side")
	git := filepath.Join(r.dir, ".git")
	want := map[string]bool{r.find("").Repository(): true}
	side := &repo{t, filepath.Join(r.dir, "../side")}
	if want[side.find("").Repository()] = true; len(want) != 1 {
		t.Fatalf("the linked work tree is another one's: %v", want)
	}
	for name, forge := range map[string]func(dir string) error{
		"a file that names its folder": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, ".git"), []byte("gitdir: "+git+"\n"), 0o600)
		},
		"a file that names another's work tree": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, ".git"), []byte("gitdir: "+git+"/worktrees/side\n"), 0o600)
		},
		"a link": func(dir string) error { return os.Symlink(git, filepath.Join(dir, ".git")) },
		"a folder of its own that names it": func(dir string) error {
			at := filepath.Join(dir, ".git")
			return errors.Join(os.Mkdir(at, 0o700), os.WriteFile(filepath.Join(at, "HEAD"), []byte("ref: refs/heads/new\n"), 0o600),
				os.WriteFile(filepath.Join(at, "commondir"), []byte(git+"\n"), 0o600), os.WriteFile(filepath.Join(at, "gitdir"), []byte(at+"\n"), 0o600))
		},
	} {
		dir := t.TempDir()
		if err := forge(dir); err != nil {
			t.Fatal(err)
		}
		c, err := Find(dir)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if want[c.Repository()] {
			t.Errorf("%s makes it the repository's, on branch %s", name, c.Branch)
		}
		if again, err := Find(dir); err != nil || again.Repository() != c.Repository() {
			t.Errorf("%s: it is another one each time: %v", name, err)
		}
	}
}
