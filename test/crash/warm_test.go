package crash

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// warms are the stories of ready states, and of what begins with them.
func warms() []story {
	act := func(w *world) error { _, err := w.isle("up", w.dir); return err }
	return []story{
		{
			name:   "keep",
			points: []string{"ready.captured", "ready.kept"},
			before: func(t *testing.T, w *world) { w.warm(t, "true") },
			act:    act,
			after: func(t *testing.T, w *world, point string) {
				w.running(t, 1)
				w.counting(t)
				if kept := len(w.readyStates(t)); kept != map[string]int{"ready.kept": 1}[point] {
					t.Errorf("there are %d ready states", kept)
				}
				w.forgetReady(t)
			},
		},
		{
			name:   "warm",
			points: []string{"warm.recorded", "clone.written", "warm.copied", "fork.waking", "launch.running", "fork.restored", "fork.woken", "fork.on_fork", "fork.opened", "up.concluding"},
			before: func(t *testing.T, w *world) { w.warm(t, "true"); w.leaveReady(t) },
			act:    act,
			after: func(t *testing.T, w *world, _ string) { // it was asked for, and is there
				w.running(t, 1)
				w.counting(t)
				if got := token(t, w); got != "" {
					t.Errorf("it holds %q of another", got)
				}
				w.forgetReady(t)
			},
		},
		{
			name:   "cold",
			points: []string{"warm.withdrawing", "warm.withdrawn"},
			before: func(t *testing.T, w *world) { w.warm(t, "false"); w.leaveReady(t) },
			act:    act,
			after: func(t *testing.T, w *world, _ string) {
				eventually(t, "it is gone", func() error {
					if !w.gone(t) {
						return errors.New("it is there")
					}
					return nil
				})
				w.must(t, "up", w.dir)
				w.running(t, 1)
				w.forgetReady(t)
			},
		},
	}
}

// warm has the project begin with a ready state, and its copies run something.
func (w *world) warm(t *testing.T, onFork string) {
	t.Helper()
	path := filepath.Join(w.dir, "isle.yaml")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file := strings.Replace(string(b), "    setup:", "    on_fork: "+onFork+"\n    setup:", 1) + "warm: true\n"
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
}

// leaveReady leaves a ready state, and nothing that is up.
func (w *world) leaveReady(t *testing.T) {
	t.Helper()
	w.must(t, "up", w.dir)
	eventually(t, "its ready state is kept", func() error {
		if len(w.readyStates(t)) == 0 {
			return errors.New(w.must(t, "status", w.name))
		}
		return nil
	})
	w.running(t, 1)
	w.must(t, "exec", w.name, "-s", "db", "--", "sh", "-c", "echo precious > /data/token; sync")
	w.must(t, "down", w.name, "--volumes")
}

var digest = regexp.MustCompile(`"digest": "(sha256:[0-9a-f]{64})",\n +"tags"`)

// readyStates are the digests of those that there are.
func (w *world) readyStates(t *testing.T) (out []string) {
	t.Helper()
	for _, m := range digest.FindAllStringSubmatch(w.must(t, "snapshot", "ls", "-o", "json"), -1) {
		out = append(out, m[1])
	}
	return out
}

// forgetReady takes them away, once nothing is kept any more.
func (w *world) forgetReady(t *testing.T) {
	t.Helper()
	w.must(t, "down", "--all", "--volumes")
	w.must(t, "server", "stop")
	for _, d := range w.readyStates(t) {
		w.must(t, "snapshot", "rm", d)
	}
}
