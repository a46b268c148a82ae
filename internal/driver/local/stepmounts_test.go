package local

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isle/internal/build"
)

func TestABuildStepSeesItsMountsAsItsUserAndLeavesNothingOfThem(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		cache := filepath.Join(t.TempDir(), "cache")
		if err := os.Mkdir(cache, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(cache, 5, 6); err != nil {
			t.Fatal(err)
		}
		mounts := []build.Mount{
			{Target: "/cache", Folder: cache},
			{Target: "/tree", Layers: b.layers, Source: "/app", ReadOnly: true},
			{Target: "/scratch", Layers: b.layers, Source: "/app"},
			{Target: "/memory", Size: 1 << 20},
			{Target: "/run/secrets/key", Content: []byte("s3cret"), Mode: 0o400, UID: 5, GID: 6, ReadOnly: true},
		}
		for _, c := range []struct{ probe, want string }{
			{"read /run/secrets/key", "s3cret"},
			{"owner /run/secrets/key", "5:6"},
			{"write /run/secrets/key", "read-only file system"},
			{"write /cache/kept", "written"},
			{"owner /cache/kept", "5:6"},
			{"write /tree/x", "read-only file system"},
			{"write /memory/x", "written"},
			{"status CapEff", "0000000000000000"},
			{"status Uid", "5"},
			{"status Groups", "7"},
			{"write /tmp/x", "no such file"}, // a folder of the root, if it has one, and not in memory
		} {
			name, arg, _ := strings.Cut(c.probe, " ")
			s, out := step(t, b, "/bin/guest", "probe", name, arg)
			s.Plain, s.UID, s.GID, s.Groups, s.Dir, s.Mounts = true, 5, 6, []uint32{7}, "/app", mounts
			if err := b.RunStep(t.Context(), s); err != nil || !strings.Contains(out.String(), c.want) {
				t.Errorf("%s: %q, %v", c.probe, out, err)
			}
			left, err := os.ReadDir(s.Upper)
			if err != nil || len(left) > 0 {
				t.Errorf("%s left %v (%v)", c.probe, left, err)
			}
		}
		// As root what is mounted of layers can be written, and is as it was for the next.
		for range 2 {
			s, out := step(t, b, "/bin/guest", "probe", "write", "/scratch/new")
			s.Plain, s.Mounts = true, mounts
			if err := b.RunStep(t.Context(), s); err != nil || !strings.Contains(out.String(), "written") {
				t.Errorf("%q, %v", out, err)
			}
			s, out = step(t, b, "/bin/guest", "probe", "list", "/scratch")
			s.Plain, s.Mounts = true, mounts
			if err := b.RunStep(t.Context(), s); err != nil || strings.Contains(out.String(), "new") {
				t.Errorf("%q, %v", out, err)
			}
		}
		kept, err := os.ReadDir(cache)
		if err != nil || len(kept) != 1 {
			t.Errorf("%v (%v)", kept, err)
		}
		seesNothing(t, b.Driver)
	})
}
