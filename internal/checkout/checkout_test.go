package checkout

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"isle"
)

// A repo is a work tree that the tests make with git itself.
type repo struct {
	t   testing.TB
	dir string
}

func newRepo(t *testing.T, args ...string) *repo {
	t.Helper()
	home := t.TempDir()
	for key, value := range map[string]string{
		"HOME": home, "XDG_CONFIG_HOME": filepath.Join(home, ".config"), "GIT_CONFIG_NOSYSTEM": "1",
		"GIT_AUTHOR_NAME": "x", "GIT_AUTHOR_EMAIL": "x@example.com", "GIT_COMMITTER_NAME": "x", "GIT_COMMITTER_EMAIL": "x@example.com",
	} {
		t.Setenv(key, value)
	}
	r := &repo{t, filepath.Join(t.TempDir(), "work")}
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.git(append([]string{"init", "-q", "-b", "main"}, args...)...)
	return r
}

func (r *repo) git(args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = r.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (r *repo) write(path, content string) {
	r.t.Helper()
	path = filepath.Join(r.dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *repo) commit() {
	r.t.Helper()
	r.git("add", "-A")
	r.git("commit", "-q", "--allow-empty", "-m", "x")
}

func (r *repo) find(folder string) *Checkout {
	r.t.Helper()
	c, err := Find(filepath.Join(r.dir, folder))
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// agrees checks that what is said of a folder is what git says, and returns it.
func (r *repo) agrees(folder, when string) bool {
	r.t.Helper()
	c := r.find(folder)
	got, err := c.Dirty(r.t.Context())
	if err != nil {
		r.t.Fatalf("%s: %v", when, err)
	}
	// Without optional locks git does not write down what it looked up for us.
	status := r.git("--no-optional-locks", "status", "--porcelain", "--untracked-files=normal", "--", "./"+folder)
	if got != (status != "") {
		r.t.Fatalf("%s: %q is said to be dirty: %v, and git says %q", when, folder, got, status)
	}
	head, err := exec.Command("git", "-C", r.dir, "rev-parse", "--verify", "-q", "HEAD").Output()
	if want := strings.TrimSpace(string(head)); err == nil && c.Commit != want {
		r.t.Fatalf("%s: the commit is %q, not %q", when, c.Commit, want)
	}
	return got
}

func TestAFolderIsDirtyWhereGitSaysSo(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		for _, version := range []string{"2", "4"} {
			t.Run(format+" "+version, func(t *testing.T) { dirtySteps(t, format, version) })
		}
	}
}

func dirtySteps(t *testing.T, format, version string) {
	r := newRepo(t, "--object-format="+format)
	r.git("config", "index.version", version)
	for i := range 200 { // alike, so that a pack keeps differences
		r.write("app/data/"+strconv.Itoa(i), strings.Repeat("line\n", 100)+strconv.Itoa(i))
	}
	r.write("app/run.sh", "echo")
	r.write("other/x", "x")
	step := func(what string, want bool, do func()) {
		t.Helper()
		do()
		if got := r.agrees("app", what); got != want {
			t.Errorf("%s: dirty is %v", what, got)
		}
		r.agrees("", what)
	}
	path := func(p string) string { return filepath.Join(r.dir, p) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	step("no commit yet", true, func() {})
	step("committed", false, r.commit)
	step("another folder changed", false, func() { r.write("other/x", "y") })
	step("content of the same length", true, func() { r.write("app/data/7", strings.Repeat("lime\n", 100)+"7") })
	step("staged", true, func() { r.git("add", "-A") })
	step("staged, and as it was in the folder", true, func() { r.git("reset", "-q", "HEAD", "other"); r.git("checkout", "-q", "other") })
	step("committed again", false, r.commit)
	step("packed", false, func() { r.git("gc", "-q") })
	step("a new file", true, func() { r.write("app/new", "") })
	step("ignored", true, func() { r.write("app/.gitignore", "/new\n") })
	step("and that committed", false, r.commit)
	step("executable", true, func() { must(os.Chmod(path("app/run.sh"), 0o755)) })
	step("committed as such", false, r.commit)
	step("written again as it was", false, func() {
		r.write("app/data/9", strings.Repeat("line\n", 100)+"9")
		must(os.Chtimes(path("app/data/9"), time.Now(), time.Now().Add(-time.Hour)))
	})
	step("a link in place of a file", true, func() {
		must(os.Rename(path("app/data/3"), path("app/data/new")))
		must(os.Symlink("new", path("app/data/3")))
	})
	step("committed links", false, r.commit)
	step("another target", true, func() {
		must(os.Remove(path("app/data/3")))
		must(os.Symlink("nex", path("app/data/3")))
	})
	step("undone", false, func() { r.git("checkout", "-q", ".") })
	step("an empty folder", false, func() { must(os.MkdirAll(path("app/empty/in/it"), 0o755)) })
	step("a pipe", false, func() { must(exec.Command("mkfifo", path("app/empty/pipe")).Run()) })
	step("a file removed", true, func() { must(os.Remove(path("app/data/20"))) })
	step("removed for git too", true, func() { r.git("rm", "-q", "--cached", "app/data/20") })
	step("committed without", false, r.commit)
	step("on a branch", false, func() { r.git("checkout", "-q", "-b", "a/b"); r.git("pack-refs", "--all") })
	step("to be added", true, func() { r.write("app/later", "x"); r.git("add", "-N", "app/later") })
	step("committed later", false, r.commit)
	step("detached", false, func() { r.git("checkout", "-q", "--detach", "HEAD~1") })
	step("a merge that is not resolved", true, func() {
		r.git("checkout", "-q", "-B", "one")
		r.write("app/both", "one")
		r.commit()
		r.git("checkout", "-q", "-B", "two", "HEAD~1")
		r.write("app/both", "two")
		r.commit()
		if exec.Command("git", "-C", r.dir, "merge", "one").Run() == nil {
			t.Fatal("it merged")
		}
	})
	step("resolved", false, r.commit)
	step("a folder that a link stands for", true, func() {
		must(os.Rename(path("app/data"), path("data.out")))
		must(os.Symlink("../data.out", path("app/data")))
	})
}

func TestWhateverIsDoneGitAgrees(t *testing.T) {
	r := newRepo(t)
	r.write("a/f0", "x")
	r.commit()
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 1))
	names := []string{"a/f0", "a/f1", "a/b/f2", "a/b/.hid", "a/b/c/f3.o", "a/f4.o", "f5", "a/b c/f6", "d/f7", "a/é"}
	patterns := []string{"*.o", "!f3.o", "/a/b", "b/", "a/**/f2", "**/c", "f[0-4]", "[!a-e]*", "\\!x", "a/b/*", "!a/b/c", "b*c", "a/", "f?", "a/**", "[[:digit:]]*", "*é"}
	var done []string
	for range 250 {
		name := names[random.IntN(len(names))]
		path := filepath.Join(r.dir, name)
		var what string
		switch n := random.IntN(16); {
		case n < 5:
			what = "write " + name
			if st, err := os.Lstat(path); err == nil && st.IsDir() {
				continue
			}
			r.write(name, strconv.Itoa(random.IntN(3)))
		case n < 7:
			what = "remove " + name
			os.Remove(path)
		case n < 8:
			what = "chmod " + name
			os.Chmod(path, 0o644|os.FileMode(random.IntN(2))*0o111)
		case n < 9:
			what = "commit -a"
			exec.Command("git", "-C", r.dir, "commit", "-q", "-a", "-m", "x").Run()
		case n < 10:
			what = "add " + name
			exec.Command("git", "-C", r.dir, "add", name).Run()
		case n < 12:
			file := []string{".gitignore", "a/.gitignore", "a/b/.gitignore", ".git/info/exclude"}[random.IntN(4)]
			text := patterns[random.IntN(len(patterns))] + "\n" + patterns[random.IntN(len(patterns))] + "\n"
			what = "patterns " + strconv.Quote(text) + " in " + file
			r.write(file, text)
		case n < 14:
			what = "commit all"
			r.commit()
		case n < 15:
			what = "pack"
			r.git("repack", "-q", "-a", "-d")
		default:
			what = "clean, and reset"
			r.git("clean", "-q", "-f", "-d")
			r.git("reset", "-q", "--hard")
		}
		done = append(done, what)
		for _, folder := range []string{"", "a", "a/b"} {
			if st, err := os.Stat(filepath.Join(r.dir, folder)); err == nil && st.IsDir() {
				r.agrees(folder, "seed "+strconv.FormatUint(seed, 10)+": "+strings.Join(done[max(0, len(done)-12):], "; "))
			}
		}
	}
}

func TestLinkedWorkTreesShareARepositoryAndClonesDoNot(t *testing.T) {
	r := newRepo(t)
	r.write("app/x", "x")
	r.commit()
	r.git("worktree", "add", "-q", "-b", "side", "../side")
	r.git("clone", "-q", "--shared", ".", "../clone")
	side, clone := &repo{t, filepath.Join(r.dir, "../side")}, &repo{t, filepath.Join(r.dir, "../clone")}
	clone.write("app/y", "y")
	clone.commit()
	for name, other := range map[string]*repo{"side": side, "clone": clone} {
		if other.agrees("app", name) {
			t.Errorf("%s is dirty", name)
		}
		other.write("app/x", "z")
		if !other.agrees("app", name) {
			t.Errorf("%s is not dirty", name)
		}
	}
	main := r.find("")
	if s := side.find("app"); s.Repository() != main.Repository() || s.Branch != "side" || s.Default {
		t.Errorf("the linked work tree is %+v", s)
	}
	if clone.find("").Repository() == main.Repository() || len(main.Repository()) != 32 {
		t.Error("a clone has the repository's name")
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Join(r.dir, "app"), link); err != nil {
		t.Fatal(err)
	}
	if c, err := Find(link); err != nil || c.Repository() != main.Repository() {
		t.Errorf("by a link it is %+v, %v", c, err)
	}
}

func TestASubmoduleIsPartOfTheFolder(t *testing.T) {
	inner := newRepo(t)
	inner.write("x", "x")
	inner.commit()
	r := newRepo(t)
	r.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", inner.dir, "app/sub")
	r.commit()
	sub := &repo{t, filepath.Join(r.dir, "app/sub")}
	for _, c := range []struct {
		what string
		want bool
		do   func()
	}{
		{"as committed", false, func() {}},
		{"changed in it", true, func() { sub.write("x", "y") }},
		{"another commit of it", true, sub.commit},
		{"committed outside", false, r.commit},
		{"a file that is not tracked", true, func() { sub.write("z", "") }},
		{"cleaned", false, func() { sub.git("clean", "-q", "-f") }},
		{"not fetched", false, func() { r.git("submodule", "deinit", "-q", "-f", "app/sub") }},
	} {
		c.do()
		if got := r.agrees("app", c.what); got != c.want {
			t.Errorf("%s: dirty is %v", c.what, got)
		}
	}
	r.write("app/another/.git/HEAD", "ref: refs/heads/main\n")
	if dirty, err := r.find("app").Dirty(t.Context()); !dirty || err != nil {
		t.Errorf("with another repository in it: %v, %v", dirty, err)
	}
}

func TestWhatTheUserIgnoresEverywhereIsIgnored(t *testing.T) {
	r := newRepo(t)
	r.commit()
	r.write("x.swp", "")
	if !r.agrees("", "not ignored") {
		t.Error("it is clean")
	}
	home, _ := os.UserHomeDir()
	(&repo{t, home}).write(".config/git/ignore", "*.swp\n")
	if r.agrees("", "ignored by the user") {
		t.Error("it is dirty")
	}
	(&repo{t, home}).write(".gitconfig", "[core]\n\texcludesFile = \"~/mine\" # not that\n")
	(&repo{t, home}).write("mine", "*.o\n")
	if !r.agrees("", "the user's file is another") {
		t.Error("it is clean")
	}
}

func TestASparseWorkTreeIsClean(t *testing.T) {
	r := newRepo(t)
	r.write("app/x", "x")
	r.write("left/out/y", "y")
	r.commit()
	r.git("sparse-checkout", "set", "--cone", "--sparse-index", "app")
	if r.agrees("", "sparse") || r.agrees("app", "sparse") {
		t.Error("it is dirty")
	}
}

func TestABranchIsGoneWhenTheRepositoryHasItNoMore(t *testing.T) {
	origin := newRepo(t)
	origin.commit()
	origin.git("branch", "there")
	origin.git("branch", "packed-there")
	r := newRepo(t)
	r.commit()
	r.git("remote", "add", "team/origin", origin.dir)
	r.git("fetch", "-q", "team/origin", "packed-there")
	r.git("fetch", "-q", "team/origin")
	r.git("branch", "deep/er/one")
	r.git("pack-refs", "--all")
	r.git("fetch", "-q", "team/origin", "refs/heads/there:refs/remotes/team/origin/also")
	r.git("branch", "loose")
	r.git("worktree", "add", "-q", "-b", "side", "../side")
	r.git("update-ref", "-d", "refs/heads/side") // as if it had no commit yet
	names := []string{"main", "loose", "deep/er/one", "there", "packed-there", "also", "side", "gone", "deep", "er/one", "../../HEAD", "", "deep/er", "tags/x"}
	got, err := r.find("").Gone(t.Context(), names)
	if err != nil || !slices.Equal(got, []string{"gone", "deep", "er/one", "../../HEAD", "", "deep/er", "tags/x"}) {
		t.Errorf("gone are %q, %v", got, err)
	}
	r.git("branch", "-D", "loose", "deep/er/one")
	r.git("remote", "remove", "team/origin")
	if got, err = r.find("").Gone(t.Context(), names[:5]); err != nil || !slices.Equal(got, names[1:5]) {
		t.Errorf("then gone are %q, %v", got, err)
	}
	c := r.find("")
	r.write(".git/packed-refs", "nonsense\n")
	if got, err = c.Gone(t.Context(), names[:5]); isle.CodeOf(err) != isle.Unavailable || got != nil {
		t.Errorf("of what cannot be read %q are gone, %v", got, err)
	}
}

func TestWhatCannotBeToldIsAnError(t *testing.T) {
	r := newRepo(t)
	r.write("x", "x")
	r.commit()
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 300 {
		r.write("many/"+strconv.Itoa(i), "")
	}
	r.commit()
	if _, err := r.find("").Dirty(over); !errors.Is(err, context.Canceled) {
		t.Errorf("out of time: %v", err)
	}
	tree := r.git("rev-parse", "HEAD^{tree}")
	r.write("y", "")
	r.git("add", "y") // what the index says is the commit's no more: its tree is read
	r.git("reset", "-q", "--soft", "HEAD")
	r.git("rm", "-q", "-f", "--cached", "y")
	object := filepath.Join(r.dir, ".git/objects", tree[:2], tree[2:])
	os.Chmod(object, 0o644)
	os.WriteFile(object, []byte("x\x9cnonsense"), 0o644)
	r.write("x", "other")
	r.git("update-index", "--cacheinfo", "100644,"+r.git("hash-object", "-w", "x")+",x")
	if dirty, err := r.find("").Dirty(t.Context()); err == nil {
		t.Errorf("with a damaged tree dirty is %v", dirty)
	}
	r.write("x", "x")
	r.git("read-tree", "--empty")
	r.git("update-index", "--split-index")
	if _, err := r.find("").Dirty(t.Context()); err == nil || !strings.Contains(err.Error(), "split") {
		t.Errorf("with a split index: %v", err)
	}
}

func TestWhatARepositoryNamesIsNotRun(t *testing.T) {
	r := newRepo(t)
	mark := filepath.Join(t.TempDir(), "ran")
	r.write("x.bin", "x")
	r.commit()
	hook := filepath.Join(r.dir, ".git/hooks/post-index-change")
	r.write(".git/hooks/post-index-change", "#!/bin/sh\ntouch "+mark+".hook\n")
	os.Chmod(hook, 0o755)
	r.write(".gitattributes", "* filter=bad\n")
	config, _ := os.ReadFile(filepath.Join(r.dir, ".git/config"))
	r.write(".git/config", string(config)+"\tfsmonitor = touch "+mark+".fsmonitor\n[filter \"bad\"]\n\tclean = touch "+mark+".clean; cat\n")
	r.write("x.bin", "y")
	if dirty, err := r.find("").Dirty(t.Context()); !dirty || err != nil {
		t.Errorf("dirty is %v, %v", dirty, err)
	}
	if ran, _ := filepath.Glob(mark + "*"); ran != nil {
		t.Errorf("run were %q", ran)
	}
	r.git("status")
	if ran, _ := filepath.Glob(mark + "*"); len(ran) < 2 {
		t.Errorf("git itself runs only %q: this shows nothing", ran)
	}
}

func TestABranchGrowsFromTheOneItWasCreatedFrom(t *testing.T) {
	r := newRepo(t)
	r.commit()
	parents := func(folder string) []string {
		t.Helper()
		got, err := r.find(folder).Parents()
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for _, c := range []struct {
		want []string
		git  []string
	}{
		{nil, []string{"status"}}, // on main
		{[]string{"main", "master"}, []string{"checkout", "-q", "-b", "one"}},
		{[]string{"one", "main", "master"}, []string{"checkout", "-q", "-b", "two"}},
		{[]string{"main", "master"}, []string{"checkout", "-q", "-b", "three", "main"}},
		{[]string{"one", "main", "master"}, []string{"switch", "-q", "-c", "four", "refs/heads/one"}},
		{[]string{"main", "master"}, []string{"checkout", "-q", "one"}},
		{[]string{"one", "main", "master"}, []string{"checkout", "-q", "two"}},
		{[]string{"main", "master"}, []string{"checkout", "-q", "-b", "five", "HEAD^{commit}"}},
		{nil, []string{"checkout", "-q", "--detach"}},
		{[]string{"main", "master"}, []string{"checkout", "-q", "--orphan", "six"}},
	} {
		r.git(c.git...)
		if got := parents(""); !slices.Equal(got, c.want) {
			t.Errorf("after git %q they are %q, not %q", c.git, got, c.want)
		}
	}
	// A remote's is the branch itself, and its HEAD names the default one.
	r.git("checkout", "-q", "-f", "two")
	r.git("update-ref", "refs/remotes/origin/other/way", "HEAD")
	r.git("update-ref", "refs/remotes/origin/trunk", "HEAD")
	r.git("symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/trunk")
	r.git("checkout", "-q", "--no-track", "-b", "seven", "origin/other/way")
	if got := parents(""); !slices.Equal(got, []string{"other/way", "trunk"}) {
		t.Errorf("of a remote's they are %q", got)
	}
	r.git("worktree", "add", "-q", "-b", "eight", "../side")
	if got := parents("../side"); !slices.Equal(got, []string{"trunk"}) {
		t.Errorf("in a linked work tree they are %q", got)
	}
	r.write(".git/logs/refs/heads/seven", "nonsense\n\nx y z\n")
	if got := parents(""); !slices.Equal(got, []string{"trunk"}) {
		t.Errorf("of a log that is none they are %q", got)
	}
}
