package crash

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"isle/internal/airlock"
	"isle/internal/approval"
	"isle/internal/driver/local"
	"isle/internal/environment"
	"isle/internal/release"
)

// A story is something that happens to an environment, in which the server dies.
type story struct {
	name   string
	points []string                     // that it passes
	before func(t *testing.T, w *world) // what there is
	act    func(w *world) error         // may fail: the server dies under it
	after  func(t *testing.T, w *world, point string)
}

// The steps that several stories have.
var (
	launching = []string{"up.launching", "launch.folder", "launch.group", "launch.mounts", "launch.runtime", "launch.running", "launch.told", "up.launched"}
	healthy   = []string{"up.healthy", "up.concluding"}
	killing   = []string{"kill.ended", "kill.groups"}
	removing  = []string{"down.recorded", "down.stopped", "airlock.stopped", "airlock.unpinned", "airlock.removed", "down.network", "remove.groups", "down.removed", "down.forgotten"}
)

func up(t *testing.T, w *world) {
	w.must(t, "up", w.dir)
	w.running(t, 1)
	w.must(t, "exec", w.name, "-s", "db", "--", "sh", "-c", "echo precious > /data/token; sync")
}

// token is the data that up left, "" if it is gone.
func token(t *testing.T, w *world) string {
	t.Helper()
	return w.must(t, "exec", w.name, "-s", "db", "--", "sh", "-c", "cat /data/token 2>/dev/null || true")
}

// prepared is the before of a story in which something is kept ready.
func prepared(t *testing.T, w *world) {
	w.prepare = "container=1,gvisor=1"
	if w.class == "" {
		w.prepare = "container=1"
	}
	w.must(t, "server", "stop")
	w.must(t, "ls") // starts another
	eventually(t, "a launch is prepared", func() error {
		out := w.must(t, "doctor", "-o", "json")
		if strings.Contains(out, " 0 of 1") || !strings.Contains(out, " 1 of 1") {
			return errors.New(out)
		}
		return nil
	})
}

// nothing is the before of a story that begins with nothing.
func nothing(*testing.T, *world) {}

func stories() []story {
	return append(slices.Concat(copies(), releases(), gated()), []story{
		{
			name: "up",
			points: slices.Concat([]string{"up.begin", "up.recorded", "airlock.folder", "airlock.joined", "airlock.half", "airlock.pinned", "up.network", "up.prepared", "volume.formatted", "up.volume"},
				launching, []string{"setup.done", "setup.recorded"}, healthy),
			before: nothing,
			act:    func(w *world) error { _, err := w.isle("up", w.dir); return err },
			after: func(t *testing.T, w *world, point string) {
				if point == "up.begin" {
					if !w.gone(t) {
						t.Error("it is there though nothing was recorded")
					}
					return
				}
				w.running(t, 1)
			},
		},
		{
			name:   "replace",
			points: slices.Concat([]string{"replace.begin", "replace.recorded"}, killing, []string{"replace.stopped", "up.network", "up.prepared"}, launching, healthy),
			before: func(t *testing.T, w *world) { up(t, w); w.generation(t, 2) },
			act:    func(w *world) error { _, err := w.isle("up", w.dir); return err },
			after: func(t *testing.T, w *world, point string) {
				generation := 2
				if point == "replace.begin" {
					generation = 1
				}
				w.running(t, generation)
				if got := token(t, w); got != "precious" {
					t.Errorf("the data is %q", got)
				}
			},
		},
		{
			name: "down", points: slices.Concat(removing, killing), before: up,
			act:   func(w *world) error { _, err := w.isle("down", w.name); return err },
			after: goneButForItsData,
		},
		{
			name: "down --volumes", points: slices.Concat(removing, killing, []string{"down.volume"}), before: up,
			act:   func(w *world) error { _, err := w.isle("down", w.name, "--volumes"); return err },
			after: goneWithItsData,
		},
		{
			name: "delete volumes", points: []string{"volume.recorded", "volume.deleted"},
			before: func(t *testing.T, w *world) { up(t, w); w.must(t, "down", w.name) },
			act:    func(w *world) error { _, err := w.isle("down", w.name, "--volumes"); return err },
			after:  goneWithItsData,
		},
		{
			name: "ttl", points: []string{"expire.recorded", "down.recorded", "airlock.unpinned", "down.removed", "down.forgotten"}, before: up,
			act:   func(w *world) error { _, err := w.isle("up", w.dir, "--ttl", "1s"); return err },
			after: goneButForItsData,
		},
		{
			name: "exit", points: slices.Concat([]string{"exit.recorded", "kill.ended", "kill.groups", "exit.removed", "restart.recorded"}, launching), before: up,
			act: func(w *world) error {
				_, err := w.isle("exec", w.name, "-s", "db", "--", "touch", "/data/end")
				return err
			},
			after: func(t *testing.T, w *world, _ string) {
				w.running(t, 1)
				if got := token(t, w); got != "precious" {
					t.Errorf("the data is %q", got)
				}
			},
		},
		{
			name: "build", points: []string{"launch.folder", "launch.group", "launch.mounts", "launch.runtime", "launch.running", "kill.ended", "kill.groups", "remove.groups"},
			before: up,
			act: func(w *world) error {
				next := filepath.Join(w.dir, "next")
				os.Mkdir(next, 0o700)
				file := fmt.Sprintf("name: next-%s\nservices:\n  one:\n    packages: [busybox]\n    run: [\"echo %d > /made\"]\n    command: [sleep, \"1000\"]\n", w.name, time.Now().UnixNano())
				if err := os.WriteFile(filepath.Join(next, "isle.yaml"), []byte(file), 0o600); err != nil {
					return err
				}
				_, err := w.isle("build", next)
				return err
			},
			after: func(t *testing.T, w *world, _ string) {
				w.running(t, 1)
				w.must(t, "up", filepath.Join(w.dir, "next"))
				w.must(t, "exec", "next-"+w.name, "--", "cat", "/made")
				w.must(t, "down", "next-"+w.name)
				w.must(t, "gc")
			},
		},
		{
			name: "prepared", points: []string{"launch.furnished", "launch.told", "spare.network", "spare.stocked"}, before: prepared,
			act: func(w *world) error { _, err := w.isle("up", w.dir); return err },
			after: func(t *testing.T, w *world, _ string) {
				w.running(t, 1)
				w.prepare = ""
			},
		},
		{
			name: "start", points: []string{"reconcile.read", "reconcile.swept", "reconcile.adopted"}, before: up,
			act: func(w *world) error { _, err := w.isle("ls"); return err },
			after: func(t *testing.T, w *world, _ string) {
				w.running(t, 1)
				if got := token(t, w); got != "precious" {
					t.Errorf("the data is %q", got)
				}
			},
		},
	}...)
}

func goneButForItsData(t *testing.T, w *world, _ string) {
	eventually(t, "it is gone", func() error {
		if !w.gone(t) {
			return errors.New("it is there")
		}
		return nil
	})
	w.must(t, "up", w.dir)
	w.running(t, 1)
	if got := token(t, w); got != "precious" {
		t.Errorf("the data is %q", got)
	}
}

func goneWithItsData(t *testing.T, w *world, _ string) {
	if !w.gone(t) {
		t.Error("it is there")
	}
	volumes, _ := filepath.Glob(filepath.Join(w.State, "volumes", "*.ext4*"))
	w.must(t, "up", w.dir)
	w.running(t, 1)
	if got := token(t, w); got != "" || len(volumes) > 0 {
		t.Errorf("the data is still %q, in %v", got, volumes)
	}
}

// The server is killed at every step of every story. The next command starts
// another, which finishes or undoes what was begun; it may be killed while it
// does. Then everything is taken down, and nothing is left.
func TestKilledAtAnyStepEverythingIsFinishedOrUndone(t *testing.T) {
	for _, s := range stories() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			for i, point := range s.points {
				second := ""
				if i%3 == 1 {
					second = []string{"reconcile.read", "reconcile.swept", "reconcile.adopted"}[i/3%3]
				}
				if !t.Run(point, func(t *testing.T) { killAt(t, w, s, point, second) }) {
					w.clear(t)
				}
			}
		})
	}
}

func killAt(t *testing.T, w *world, s story, point, second string) {
	w.generation(t, 1)
	s.before(t, w)
	if s.name == "start" {
		w.kill(t)
	} else {
		w.must(t, "ls")
	}
	pid := w.server()
	w.arm(t, point)
	err := s.act(w)
	eventually(t, "the server dies at "+point, func() error {
		if _, e := os.Lstat(w.faultFile()); e == nil {
			return fmt.Errorf("it does not pass it; the command: %v", err)
		}
		return nil
	})
	if pid != 0 {
		w.dead(t, pid)
	}
	if _, err := os.Lstat(filepath.Join(w.State, "isle.sock")); pid != 0 && err != nil {
		t.Error("it ended in order: its socket is gone")
	}
	if second != "" {
		w.arm(t, second)
		if out, err := w.isle("ls"); err == nil {
			t.Errorf("a server that was to die at %s answers: %s", second, out)
		}
	}
	s.after(t, w, point)
	w.clear(t)
}

func TestEveryFaultPointIsPassedBySomeStory(t *testing.T) {
	var passed []string
	for _, s := range append(stories(), wakes()...) {
		passed = append(passed, s.points...)
	}
	known := slices.Concat(environment.FaultPoints(), local.FaultPoints(), capturing(), airlock.FaultPoints(), release.FaultPoints(), approval.FaultPoints())
	for _, p := range known {
		if !slices.Contains(passed, p) {
			t.Errorf("%s is passed by no story", p)
		}
	}
	for _, p := range passed {
		if !slices.Contains(known, p) {
			t.Errorf("%s is no point", p)
		}
	}
}
