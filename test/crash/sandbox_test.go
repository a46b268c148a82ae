package crash

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// newSandboxWorld is a world whose environment is in a sandbox of gVisor.
func newSandboxWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.class = "gvisor"
	w.generation(t, 1)
	return w
}

// sentry is the process of the sandbox's kernel.
func (w *world) sentry(t *testing.T) int {
	t.Helper()
	for _, p := range w.launched() {
		if strings.HasPrefix(string(p.file("cmdline")), "runsc-sandbox\x00") && strings.Contains(string(p.file("cgroup")), "/sandbox\n") {
			return p.pid
		}
	}
	t.Fatal("there is no sandbox")
	return 0
}

// What is another way in a sandbox than in a container: the first launch makes
// the sandbox, those after it come into it, and it stays when they end.
func TestKilledAtAnyStepOfASandboxEverythingIsFinishedOrUndone(t *testing.T) {
	starting := []string{"launch.folder", "launch.mounts", "launch.runtime", "launch.running", "launch.told"}
	points := map[string][]string{
		"up":       starting,
		"replace":  starting,
		"exit":     {"kill.ended", "kill.groups", "launch.running"},
		"down":     {"kill.ended", "remove.groups"},
		"start":    {"reconcile.adopted"},
		"prepared": {"launch.told", "spare.stocked"},
		// What stands still is the sandbox with its memory.
		"snapshot": {"capture.stopped", "capture.frozen", "capture.cloned"},
	}
	for _, s := range wakes() {
		points[s.name] = s.points
	}
	for _, s := range append(stories(), wakes()...) {
		if points[s.name] == nil {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			w := newSandboxWorld(t)
			for i, point := range s.points {
				if !slices.Contains(points[s.name], point) {
					continue
				}
				second := ""
				if i%3 == 1 {
					second = "reconcile.adopted"
				}
				if !t.Run(point, func(t *testing.T) { killAt(t, w, s, point, second) }) {
					w.clear(t)
				}
			}
		})
	}
}

func TestASandboxOutlivesTheServer(t *testing.T) {
	t.Parallel()
	w := newSandboxWorld(t)
	up(t, w)
	before, sentry := w.running(t, 1), w.sentry(t)
	w.tryDoor(t, "192.0.2.1")
	count := w.count(t)
	w.kill(t)
	if err := get(before.Port("web"), ""); err == nil {
		t.Error("the port answers without a server")
	}
	after := w.running(t, 1) // starts the next
	for _, s := range before.Services {
		if after.Launch(s.Name) != s.Launch {
			t.Errorf("%s was launch %s and is %s", s.Name, s.Launch, after.Launch(s.Name))
		}
	}
	if w.sentry(t) != sentry {
		t.Error("it is another sandbox")
	}
	eventually(t, "it has gone on counting", func() error {
		if n := w.count(t); n <= count {
			return fmt.Errorf("%d, and %d before", n, count)
		}
		return nil
	})
	w.tryDoor(t, "192.0.2.2")
	w.clear(t)
}

// The kernel of a sandbox dies with all that is in it, as a machine does; what
// is to be started again is, in another one, with its data and its network.
func TestASandboxWhoseKernelDiesIsMadeAgain(t *testing.T) {
	t.Parallel()
	w := newSandboxWorld(t)
	up(t, w)
	before, sentry := w.running(t, 1), w.sentry(t)
	if err := syscall.Kill(sentry, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the service that is to be started again is", func() error {
		e, err := w.Status(w.name)
		if err != nil {
			return err
		}
		for _, s := range e.Services {
			switch {
			case s.Name == "db" && (s.Phase != "running" || s.Launch == before.Launch("db")):
				return fmt.Errorf("db is %s", s.Phase)
			case s.Name == "web" && s.Phase != "failed":
				return fmt.Errorf("web, which is not to be started again, is %s", s.Phase)
			}
		}
		return nil
	})
	w.must(t, "up", w.dir)
	w.running(t, 1)
	if got := token(t, w); got != "precious" {
		t.Errorf("the data is %q", got)
	}
	w.tryDoor(t, "192.0.2.1")
	if now := w.sentry(t); now == sentry {
		t.Error("it is the same process")
	}
	w.clear(t)
}

// The records of gVisor's runtime are in a folder that does not outlive the
// machine's boot.
func TestASandboxIsMadeAgainAfterItsRecordsAreGone(t *testing.T) {
	t.Parallel()
	w := newSandboxWorld(t)
	up(t, w)
	w.kill(t)
	for _, p := range w.launched() {
		syscall.Kill(p.pid, syscall.SIGKILL)
	}
	eventually(t, "all processes end", func() error {
		if n := len(w.launched()); n > 0 {
			return errors.New("some are left")
		}
		return nil
	})
	records, _ := filepath.Glob(filepath.Join("/run", w.group()+".gvisor", "*"))
	if len(records) == 0 {
		t.Fatal("there are no records")
	}
	for _, r := range records {
		syscall.Unlink(r)
	}
	w.otherBoot(t)
	w.running(t, 1)
	if got := token(t, w); got != "precious" {
		t.Errorf("the data is %q", got)
	}
	w.clear(t)
}
