package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"isle/internal/spec"
	"isle/test/lab"
)

// inBothClasses is the line of a script whose promise is about what runs, and is
// kept in the class gvisor too.
const inBothClasses = "\n# classes: container gvisor\n"

// TestPromisesUnderGVisor keeps those that say so in environments of the class
// gvisor: every file that describes one and names no class gets it.
func TestPromisesUnderGVisor(t *testing.T) {
	all, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var scripts []string
	for _, name := range all {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains("\n"+string(b), inBothClasses) {
			scripts = append(scripts, name)
		}
	}
	if len(scripts) == 0 {
		t.Fatal("no script is for both classes")
	}
	isle("down", "--all", "--volumes") // what the other class left
	t.Cleanup(func() { isle("down", "--all", "--volumes") })
	testscript.Run(t, promises(spec.Gvisor, scripts))
}

// describes is what only a file has that describes an environment.
var describes = regexp.MustCompile(`(?m)^services:`)

// isolate gives the files of a script's folder a class, and a copy of the
// examples that has it too, whose folder it returns.
func isolate(dir, examples, class string) (string, error) {
	copies := filepath.Join(dir, ".examples")
	if err := os.CopyFS(copies, os.DirFS(examples)); err != nil {
		return "", err
	}
	return copies, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || filepath.Ext(path) != ".yaml" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil || !describes.Match(b) {
			return err
		}
		return os.WriteFile(path, []byte(lab.IsolatedAs(string(b), class)), 0o644)
	})
}
