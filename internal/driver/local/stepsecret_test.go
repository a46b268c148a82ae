package local

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"isle/internal/build"
)

// holds names the files below a folder that have a text.
func holds(t *testing.T, dir, text string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // what vanishes meanwhile holds nothing
		}
		if b, err := os.ReadFile(name); err == nil && bytes.Contains(b, []byte(text)) {
			found = append(found, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// commandsWith are the command lines of processes that have a text.
func commandsWith(t *testing.T, text string) (found []string) {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(names) == 0 {
		t.Fatal("there are no processes", err)
	}
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil && bytes.Contains(b, []byte(text)) {
			found = append(found, string(b))
		}
	}
	return found
}

func TestWhatABuildStepIsGivenIsOnNoDisk(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		const canary = "canary-of-a-step"
		s, _ := step(t, b, "/bin/guest", "sleep")
		s.Plain, s.Env["TOKEN"] = true, canary
		s.Mounts = []build.Mount{{Target: "/run/secrets/key", Content: []byte(canary), Mode: 0o400, ReadOnly: true}}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		read, write := io.Pipe()
		s.Output = write
		go func() {
			read.Read(make([]byte, 64)) // it runs
			if found := commandsWith(t, canary); len(found) > 0 {
				t.Errorf("in the list of processes: %q", found)
			}
			for _, dir := range []string{b.given.State, filepath.Dir(s.Upper)} {
				if found := holds(t, dir, canary); len(found) > 0 {
					t.Errorf("while it runs: %v", found)
				}
			}
			cancel()
			io.Copy(io.Discard, read)
		}()
		if err := b.RunStep(ctx, s); err != context.Canceled {
			t.Errorf("%v", err)
		}
		write.Close()
		if found := holds(t, b.given.State, canary); len(found) > 0 {
			t.Errorf("afterwards: %v", found)
		}
		seesNothing(t, b.Driver)
	})
}
