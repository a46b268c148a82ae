package crash

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"isle/internal/driver/local"
)

// copies are the stories of what is made of what runs.
func copies() []story {
	return []story{
		{
			name: "fork",
			points: slices.Concat([]string{"fork.recorded", "capture.frozen", "clone.written", "fork.captured", "fork.copied", "up.network"},
				launching, []string{"up.healthy", "fork.on_fork", "fork.opened", "up.concluding"}),
			before: func(t *testing.T, w *world) { w.forking(t); up(t, w) },
			act: func(w *world) error {
				_, err := w.isle("fork", w.name, "-n", "2", "--name", "x"+w.name)
				return err
			},
			after: wholeForks,
		},
		{
			name: "snapshot", points: append(capturing(), "snapshot.captured"), before: up,
			act: func(w *world) error { _, err := w.isle("snapshot", w.name); return err },
			after: func(t *testing.T, w *world, _ string) {
				w.running(t, 1)
				w.counting(t)
				if out := w.must(t, "snapshot", "ls", "-o", "json"); out != "[]" {
					t.Errorf("half of it is there: %s", out)
				}
				if got := w.must(t, "snapshot", w.name, "--tag", "good"); !strings.Contains(got, "tagged good") {
					t.Error(got)
				}
				w.must(t, "snapshot", "rm", "good")
				if got := token(t, w); got != "precious" {
					t.Errorf("the data is %q", got)
				}
			},
		},
		{
			name:   "restore",
			points: slices.Concat([]string{"restore.recorded", "restore.copied"}, launching, []string{"restore.up", "restore.swapped", "restore.dropped"}),
			before: func(t *testing.T, w *world) {
				up(t, w)
				w.must(t, "snapshot", w.name, "--tag", "good")
				w.must(t, "exec", w.name, "-s", "db", "--", "sh", "-c", "echo newer > /data/token; sync")
			},
			act:   func(w *world) error { _, err := w.isle("restore", w.name, "--at", "good"); return err },
			after: restored,
		},
	}
}

// wakes are the stories of what goes on from memory, which a sandbox has.
func wakes() []story {
	return append(warms(), []story{
		{
			name:   "wake",
			points: []string{"capture.cloned", "fork.captured", "fork.waking", "launch.mounts", "launch.running", "fork.restored", "fork.woken", "fork.on_fork"},
			before: func(t *testing.T, w *world) { w.forking(t); up(t, w) },
			act: func(w *world) error {
				_, err := w.isle("fork", w.name, "-n", "2", "--name", "x"+w.name)
				return err
			},
			after: wholeForks,
		},
		{
			name:   "recall",
			points: []string{"restore.copied", "fork.waking", "launch.running", "fork.restored", "fork.woken", "restore.up", "restore.swapped"},
			before: func(t *testing.T, w *world) {
				up(t, w)
				w.must(t, "snapshot", w.name, "--tag", "good")
				w.must(t, "exec", w.name, "-s", "db", "--", "sh", "-c", "echo newer > /data/token; sync")
			},
			act:   func(w *world) error { _, err := w.isle("restore", w.name, "--at", "good"); return err },
			after: restored,
		},
	}...)
}

// restored looks which state is there: the one of before the swap, or of after it.
func restored(t *testing.T, w *world, point string) {
	w.running(t, 1)
	want := "newer"
	if point == "restore.swapped" || point == "restore.dropped" {
		want = "precious"
	}
	if got := token(t, w); got != want {
		t.Errorf("the data is %q, not %q", got, want)
	}
	w.must(t, "snapshot", "rm", "--force", "good")
}

// capturing are the points of a capture. The first, which is passed once in the
// life of a state folder, is for the driver's own tests.
func capturing() []string { return local.CaptureFaultPoints()[1:] }

// counting waits until the service with the data has gone on with its work:
// nothing that stood still for a capture does so for ever.
func (w *world) counting(t *testing.T) {
	t.Helper()
	count := func() string { return w.must(t, "exec", w.name, "-s", "db", "--", "cat", "/data/count") }
	before := count()
	eventually(t, "it goes on", func() error {
		if count() == before {
			return errors.New("it stands still at " + before)
		}
		return nil
	})
}

// forking gives the project an on_fork that may run twice.
func (w *world) forking(t *testing.T) {
	t.Helper()
	path := filepath.Join(w.dir, "isle.yaml")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file := strings.Replace(string(b), "    setup:", "    on_fork: echo forked > /data/forked\n    setup:", 1)
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
}

// wholeForks looks for forks: before their volumes were made, or before they went
// on from memory, there are none, and after that each is open, with the data. Of
// two that go on from memory one may have got there.
func wholeForks(t *testing.T, w *world, point string) {
	w.running(t, 1)
	gone := 0
	for _, n := range []string{"1", "2"} {
		name := "x" + w.name + "-" + n
		out, err := w.isle("status", name, "-o", "json")
		undone := slices.Contains([]string{"fork.recorded", "clone.written", "fork.captured"}, point) || strings.HasPrefix(point, "capture.") || w.class == "gvisor" && (point == "fork.waking" || point == "fork.restored" || strings.HasPrefix(point, "launch."))
		if undone {
			if err == nil {
				t.Errorf("%s is there: %s", name, out)
			}
			continue
		}
		if w.class == "gvisor" && err != nil && gone == 0 {
			gone++
			continue
		}
		eventually(t, name+" is open", func() error {
			out, err := w.isle("status", name, "-o", "json")
			if err == nil && (!strings.Contains(out, `"phase": "running"`) || strings.Contains(out, `"opening"`)) {
				err = errors.New(out)
			}
			return err
		})
		if got := w.must(t, "exec", name, "-s", "db", "--", "sh", "-c", "cat /data/token /data/forked"); got != "precious\nforked" {
			t.Errorf("%s holds %q", name, got)
		}
	}
	if got := w.must(t, "exec", w.name, "-s", "db", "--", "sh", "-c", "cat /data/token; ls /data"); !strings.HasPrefix(got, "precious") || strings.Contains(got, "forked") {
		t.Errorf("the source holds %q", got)
	}
	w.must(t, "down", "--all", "--volumes")
	if left, _ := filepath.Glob(filepath.Join(w.State, "volumes", "*.ext4*")); len(left) > 0 {
		t.Error(fmt.Sprint("volumes are left: ", left))
	}
}
