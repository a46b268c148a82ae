package local

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"isle"
	"isle/internal/environment"
)

func TestAVolumeOutlivesItsLaunchAndIsMountedOnce(t *testing.T) {
	install(t, "mke2fs")
	b := newBench(t, "crun")
	volume := isle.NewID()
	if err := b.volumes.Create(t.Context(), volume, 32<<20); err != nil {
		t.Fatal(err)
	}
	if used, err := b.volumes.Used(volume); err != nil || used == 0 || used > 16<<20 {
		t.Errorf("used %d, %v", used, err)
	}
	mount := []environment.Mount{{Volume: volume, Path: "/data"}}
	first := b.launchOf(isle.NewID(), "write /data/x", "chown /data/x", "fill /data/full")
	first.Volumes = mount
	b.up(&first)
	if r := b.report(first); r["fill /data/full"] != "no space left on device" {
		t.Errorf("a volume holds more than its size: %q", r)
	}
	second := b.launchOf(isle.NewID(), "owner /data/x", "list /data")
	second.Volumes, second.UIDBase = mount, testUIDs+idRange
	if err := b.Prepare(t.Context(), environment.Shared{Instance: second.Instance}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := b.Launch(ctx, second); isle.CodeOf(err) != isle.Conflict {
		t.Errorf("the second mount of a volume: %v", err)
	}
	if err := b.Kill(t.Context(), first.Instance, first.ID); err != nil {
		t.Fatal(err)
	}
	// The replacement waits for the kernel to let go, and has other host uids.
	if err := b.Launch(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if r := b.report(second); r["owner /data/x"] != "42:42 644" || r["list /data"] != "full x" {
		t.Errorf("%q", r)
	}
	if ids, err := b.volumes.List(t.Context()); err != nil || !slices.Equal(ids, []isle.ID{volume}) {
		t.Errorf("%v, %v", ids, err)
	}
	for range 2 {
		if err := b.volumes.Delete(t.Context(), volume); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAFileThatIsleDidNotMakeIsNotMounted(t *testing.T) {
	b := newBench(t, "crun")
	elsewhere := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(elsewhere, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	link, shared, sealed := isle.NewID(), isle.NewID(), isle.NewID()
	if err := os.Symlink(elsewhere, b.volumes.Path(link)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.volumes.Path(shared), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(b.volumes.Path(shared), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	install(t, "mke2fs")
	if err := b.volumes.Create(t.Context(), sealed, 8<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(b.volumes.Path(sealed), 0o400); err != nil { // as a snapshot's
		t.Fatal(err)
	}
	for _, id := range []isle.ID{link, shared, sealed, "../../../etc/passwd", ""} {
		l := b.launchOf(isle.NewID())
		l.Volumes = []environment.Mount{{Volume: id, Path: "/data"}}
		if err := b.Prepare(t.Context(), environment.Shared{Instance: l.Instance}); err != nil {
			t.Fatal(err)
		}
		if err := b.Launch(t.Context(), l); err == nil {
			t.Errorf("volume %q was mounted", id)
		}
		if left := b.launches()[l.Instance]; len(left) != 0 {
			t.Errorf("a failed launch left %v", left)
		}
	}
}

func TestAVolumeThatDoesNotFitOnTheDiskIsNotMade(t *testing.T) {
	install(t, "mke2fs")
	b := newBench(t, "crun")
	id := isle.NewID()
	if err := b.volumes.Create(t.Context(), id, 1<<50); isle.CodeOf(err) != isle.Exhausted {
		t.Errorf("a petabyte was promised: %v", err)
	}
	if ids, err := b.volumes.List(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("left are %v, %v", ids, err)
	}
}
