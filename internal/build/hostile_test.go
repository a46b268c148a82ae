package build

import (
	"context"
	"os"
	"path/filepath"
	"testing"

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
