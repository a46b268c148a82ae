package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/build/dockerfile"
	"isle/internal/image"
	"isle/internal/spec"
)

// project is a file of one service that a Dockerfile makes, of a project.
func project(name string) spec.File {
	f := dockered(spec.Build{})
	f.Name = name
	return f
}

// Whoever builds a project writes its caches. The same Dockerfile in another
// project must not be given what came of them.
func TestWhatAStepMadeOfAProjectsCacheIsNoOtherProjects(t *testing.T) {
	b := newBench(t)
	b.sandbox.programs["fill"] = func(_ context.Context, s Step) error {
		return os.WriteFile(filepath.Join(s.Mounts[0].Folder, "package"), []byte("poison"), 0o644)
	}
	b.sandbox.programs["install"] = func(_ context.Context, s Step) error {
		content, err := os.ReadFile(filepath.Join(s.Mounts[0].Folder, "package"))
		if err != nil {
			content = []byte("good")
		}
		return os.WriteFile(filepath.Join(s.Upper, "installed"), content, 0o644)
	}
	const fill, install = "FROM scratch\nCOPY a /\nRUN --mount=type=cache,target=/c fill\n", "FROM scratch\nCOPY a /\nRUN --mount=type=cache,target=/c install\n"
	files := map[string]string{"a": "1"}
	build := func(name, dockerfile string) image.Image {
		m, err := b.docker(project(name), dockerfile, files)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	build("attacker", fill)
	poisoned := build("attacker", install)
	good := build("victim", install)
	if good.Digest() == poisoned.Digest() {
		t.Fatal("the victim was given what the attacker's cache made")
	}
	b.started()
	if again := build("victim", install); again.Digest() != good.Digest() || len(b.started()) != 0 {
		t.Error("the victim's own result was not found again")
	}
}

func TestAStagesNewNameMakesNothingAgain(t *testing.T) {
	b := newBench(t)
	files := map[string]string{"a": "1"}
	b.mustDocker("FROM scratch AS one\nCOPY a /\nFROM scratch\nCOPY --from=one /a /b\n", files)
	b.started()
	b.mustDocker("FROM scratch AS two\nCOPY a /\nFROM scratch\nCOPY --from=two /a /b\n", files)
	if got := b.started(); len(got) != 0 {
		t.Errorf("made again: %q", got)
	}
}

// A source with a million of files in each folder, and folders without end.
type endless struct{}

func (endless) Lookup(name string) (image.Entry, error) {
	if strings.HasPrefix(path.Base(name), "f") {
		return image.Entry{Path: name, Mode: 0o644}, nil
	}
	return image.Entry{Path: name, Mode: fs.ModeDir | 0o755}, nil
}
func (endless) Resolve(name string) (string, error) { return name, nil }
func (endless) Open(string) (io.ReadCloser, error)  { return nil, fs.ErrNotExist }
func (endless) Names(string) ([]string, error) {
	names := make([]string, 0, 20_000)
	for i := range cap(names) / 2 {
		names = append(names, fmt.Sprint("d", i), fmt.Sprint("f", i))
	}
	return names, nil
}

func TestACopyOfMillionsOfFilesIsStopped(t *testing.T) {
	for name, op := range map[string]dockerfile.Copy{
		"a folder":              {Sources: []string{"."}},
		"patterns":              {Sources: []string{"*/*/*/*"}},
		"a folder many times":   {Sources: slices.Repeat([]string{"d1/f1"}, 100_000)},
		"with its parents":      {Sources: []string{"**"}, Parents: true},
		"all but what is there": {Sources: []string{"."}, Exclude: []string{"d2", "!d2/x"}},
	} {
		_, err := (&choosing{ctx: context.Background(), from: endless{}, left: 50_000}).choose(&op)
		if isle.CodeOf(err) != isle.Exhausted && isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := (&choosing{ctx: ctx, from: endless{}, left: 1 << 40}).choose(&op); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: it goes on without its build: %v", name, err)
		}
	}
}

// A link that leads to the folder that it is in doubles what a pattern matches,
// folder by folder.
func TestPatternsThroughLinksInALoopAreStopped(t *testing.T) {
	b := newBench(t)
	tree := spec.Tree{Entries: []spec.TreeEntry{{Type: spec.TypeDir}}}
	for i := range 60 {
		tree.Entries = append(tree.Entries, spec.TreeEntry{Path: fmt.Sprintf("l%02d", i), Type: spec.TypeLink, Target: "."})
	}
	_, err := choose(t.Context(), newTreeSource(b.Images, tree), &dockerfile.Copy{Sources: []string{"*/*/*/*/*/*/*/*"}})
	if isle.CodeOf(err) != isle.Exhausted {
		t.Error(err)
	}
}

// A step may nest folders deeper than the server may have files open.
func TestFoldersThatNestDeepAreRemoved(t *testing.T) {
	b := newBench(t)
	b.sandbox.programs["dig"] = func(_ context.Context, s Step) error {
		at, err := unix.Open(s.Upper, unix.O_DIRECTORY|unix.O_PATH, 0)
		for i := range 30_000 {
			if err == nil {
				err = unix.Mkdirat(at, "moved-1", 0o755)
			}
			if err != nil {
				return err
			}
			if i%1000 == 0 {
				f, err := unix.Openat(at, "file", unix.O_CREAT|unix.O_WRONLY, 0o600)
				if err != nil {
					return err
				}
				unix.Close(f)
			}
			below, oerr := unix.Openat(at, "moved-1", unix.O_DIRECTORY|unix.O_PATH, 0)
			unix.Close(at)
			at, err = below, oerr
		}
		return unix.Close(at)
	}
	_, err := b.docker(dockered(spec.Build{}), "FROM scratch\nCOPY a /\nRUN dig\n", map[string]string{"a": "1"})
	if err == nil {
		t.Error("a layer has folders that no path is short enough for")
	}
	left, err := os.ReadDir(b.scratchDir())
	if err != nil || len(left) != 0 {
		t.Errorf("%v is left: %v", left, err)
	}
}

func TestRemoveAllFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	keep := filepath.Join(dir, "keep")
	for _, d := range []string{keep, filepath.Join(dir, "gone/a/b/c"), filepath.Join(dir, "gone/moved-0")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3000 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("gone/a/", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range []string{"gone/l", "gone/a/b/l", "gone/a/b/c/l"} {
		if err := os.Symlink(keep, filepath.Join(dir, l)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(keep, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // what is not there is gone
		if err := removeAll(filepath.Join(dir, "gone")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(keep, "x")); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Error(left, err)
	}
}

func TestAMountThatALinkLeadsToTheSandboxsOwnIsRefused(t *testing.T) {
	b := newBench(t)
	for name, to := range map[string]string{"/proc": "/p", "/proc/sys": "/p/kernel", "..": "/p", "dev": "/p"} {
		b.sandbox.programs["link"] = func(_ context.Context, s Step) error { return os.Symlink(name, filepath.Join(s.Upper, "p")) }
		for _, mount := range []string{"type=tmpfs", "type=cache", "type=bind,source=a"} {
			_, err := b.docker(project("p"+isle.Slug(name)), "FROM scratch\nCOPY a /\nENV L="+name+"\nRUN link\nRUN --mount="+mount+",target="+to+" x\n", map[string]string{"a": "1"})
			if isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), "leads to") {
				t.Errorf("%s to %s: %v", mount, name, err)
			}
		}
	}
}

// Whoever builds what another builds waits for it, and not for its client: one that
// is stopped, or reads nothing on purpose.
func TestAClientThatDoesNotReadKeepsNoOtherBuildWaiting(t *testing.T) {
	b := newBench(t)
	b.patience = 20 * time.Millisecond
	b.sandbox.programs["talk"] = func(ctx context.Context, s Step) error {
		_, err := io.WriteString(s.Output, "hello\n")
		return err
	}
	file, files := "FROM scratch\nCOPY a /\nRUN talk\n", map[string]string{"a": "1"}
	for _, state := range []string{"log", "start", "cached"} {
		f, lock := project("p"), b.dockerLock(project("p"), file, files)
		stuck, goOn, first := make(chan struct{}), make(chan struct{}), make(chan error)
		var once sync.Once
		go func() {
			_, err := b.Build(context.Background(), f, lock, Options{}, func(e Event) {
				if e.State == state {
					once.Do(func() { close(stuck) })
					<-goOn
				}
			})
			first <- err
		}()
		<-stuck
		if _, err := b.Build(t.Context(), f, lock, Options{}, nil); err != nil {
			t.Error(err)
		}
		close(goOn)
		if err := <-first; err != nil {
			t.Error(err)
		}
		if state == "log" {
			if _, err := b.ForgetSteps(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestATimeThatIsGivenAsAnArgumentIsAnInputOfTheSteps(t *testing.T) {
	b := newBench(t)
	var times []string
	b.sandbox.programs["tell"] = func(_ context.Context, s Step) error {
		times = append(times, s.Env["SOURCE_DATE_EPOCH"])
		return nil
	}
	const file = "FROM scratch\nCOPY a /\nARG SOURCE_DATE_EPOCH\nRUN tell\n"
	for _, args := range []map[string]string{nil, {"SOURCE_DATE_EPOCH": "1700000000"}, nil} {
		if _, err := b.docker(dockered(spec.Build{Args: args}), file, map[string]string{"a": "1"}); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{runEnv()["SOURCE_DATE_EPOCH"], "1700000000"}; !slices.Equal(times, want) {
		t.Errorf("%v", times)
	}
}

// What is pulled is pulled once, for all who want it: whoever tells of it must not
// wait for a client.
func TestNothingWaitsToTellHowFarAPullIs(t *testing.T) {
	stuck, goOn := make(chan struct{}), make(chan struct{})
	p := serial(func(e Event) {
		if e.State == "log" {
			close(stuck)
			<-goOn
		}
	})
	done := make(chan struct{})
	go func() { defer close(done); p(Event{State: "log"}) }()
	<-stuck
	p(Event{State: "progress"}) // it comes back
	close(goOn)
	<-done
}

// To read a pattern takes memory by the square of its length.
func TestPatternsThatTakeGigabytesAreRefused(t *testing.T) {
	long := strings.Repeat("**/", 20_000)
	for name, text := range map[string]string{
		"one":       "COPY --exclude=" + long + "x x /x/\n",
		"parents":   "ARG A=" + long + "\nCOPY --parents ${A}x /x/\n",
		"very many": "COPY " + strings.Repeat("--exclude="+strings.Repeat("?*", 400)+" \\\n", 200) + "x /x/\n",
	} {
		b := newBench(t)
		_, err := b.docker(dockered(spec.Build{}), "FROM scratch\n"+text, map[string]string{"x": "1"})
		if isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), "at most") {
			t.Errorf("%s: %.200v", name, err)
		}
	}
}
