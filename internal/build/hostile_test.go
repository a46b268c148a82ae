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
	"testing"

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
