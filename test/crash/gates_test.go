package crash

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// gated are the stories of promotions and rollbacks with all that can be in force:
// a check in a copy of the stage before, people who agree, a watch, and marks.
func gated() []story {
	var old, next, first, second, well, mortal string // digests, of each story its own: they are told at once
	return []story{
		{
			name: "promote past gates", points: []string{
				"fork.recorded", "fork.captured", "fork.copied", "approval.spending", "approval.spent", "promote.checked", "promote.recorded",
				"switch.recorded", "switch.up", "switch.committed", "switch.taken", "switch.drained", "switch.frozen",
			},
			before: func(t *testing.T, w *world) {
				next, old = w.lightRelease(t, 2), w.lightRelease(t, 1)
				w.apply(t, "")
				w.reach(t, "testing", old)
				w.reach(t, "staging", "")
				w.apply(t, gates)
				w.reach(t, "testing", next)
				w.agree(t)
			},
			act: func(w *world) error { _, err := w.isle("promote", w.name, "--to", "staging"); return err },
			after: func(t *testing.T, w *world, point string) {
				points, serves := old, 1
				if slices.Contains([]string{"promote.recorded", "switch.committed", "switch.taken", "switch.drained", "switch.frozen"}, point) {
					points = next
				}
				if slices.Contains([]string{"switch.taken", "switch.drained", "switch.frozen"}, point) {
					serves = 2
				}
				w.servesIn(t, "staging", serves)
				w.told(t, "staging", points)
				if got := w.must(t, "ls"); strings.Contains(got, w.name+"-f1") {
					t.Errorf("the copy that the check ran in is there still:\n%s", got)
				}
				if _, err := w.isle("promote", w.name, "--to", "staging"); code(err) == 4 { // what they agreed to was spent
					w.agree(t)
					w.must(t, "promote", w.name, "--to", "staging")
				} else if err != nil {
					t.Error(err)
				}
				w.servesIn(t, "staging", 2)
				if s := w.told(t, "staging", next); len(s.Watches) != 1 || len(s.Marks) != 0 {
					t.Errorf("the stage is %+v", s)
				}
				w.must(t, "audit", "verify")
			},
		},
		{
			name: "rollback of what is watched", points: []string{"switch.thawed", "rollback.checked", "rollback.recorded", "switch.committed", "switch.taken"},
			before: func(t *testing.T, w *world) {
				second, first = w.lightRelease(t, 2), w.lightRelease(t, 1)
				w.apply(t, "")
				w.unmark(t, second)
				w.reach(t, "testing", first)
				w.apply(t, watch)
				w.reach(t, "testing", second)
			},
			act: func(w *world) error { _, err := w.isle("rollback", w.name+"@testing", "-m", "lost"); return err },
			after: func(t *testing.T, w *world, point string) {
				moved := slices.Contains([]string{"rollback.recorded", "switch.committed", "switch.taken"}, point)
				points, serves := second, 2
				if moved {
					points = first
				}
				if point == "switch.taken" {
					serves = 1
				}
				w.servesIn(t, "testing", serves)
				s := w.told(t, "testing", points)
				if moved != (len(s.Marks) == 1) || moved == (len(s.Watches) == 1) {
					t.Errorf("the stage is %+v", s)
				}
				if !moved {
					w.must(t, "rollback", w.name+"@testing", "-m", "lost")
				} else {
					w.must(t, "up", "--release", w.name+"@testing")
				}
				w.servesIn(t, "testing", 1)
				if s := w.told(t, "testing", first); len(s.Marks) != 1 || s.Marks[0].Reason != "lost" || len(s.Watches) != 0 {
					t.Errorf("the stage is %+v", s)
				}
				if out, err := w.isle("promote", w.name, "--to", "testing", "--release", second); code(err) != 3 {
					t.Errorf("promoted again: %v, %s", err, out)
				}
				w.must(t, "audit", "verify")
			},
		},
		{
			name: "rollback by itself", points: []string{"switch.thawed", "rollback.checked", "rollback.recorded", "switch.committed", "switch.taken"},
			before: func(t *testing.T, w *world) {
				mortal, well = w.mortalRelease(t), w.lightRelease(t, 1)
				w.apply(t, "")
				w.unmark(t, mortal)
				w.reach(t, "testing", well)
				w.apply(t, watch)
				w.reach(t, "testing", mortal)
			},
			act: func(w *world) error {
				_, err := w.isle("exec", w.name, "-s", "web", "--", "sh", "-c", "echo > /tmp/end")
				return err
			},
			after: func(t *testing.T, w *world, _ string) {
				eventually(t, "the next server rolls it back", func() error {
					if s := w.stageOf(t, "testing"); s.Release != well || len(s.Marks) != 1 || s.Marks[0].By != "system:watch" || len(s.Watches) != 0 {
						return fmt.Errorf("%+v", s)
					}
					return nil
				})
				if _, err := w.isle("up", "--release", w.name+"@testing"); err != nil { // where it died before the other served
					t.Error(err)
				}
				w.servesIn(t, "testing", 1)
				w.told(t, "testing", well)
				if out, err := w.isle("promote", w.name, "--to", "testing", "--release", mortal); code(err) != 3 {
					t.Errorf("promoted again: %v, %s", err, out)
				}
				w.must(t, "audit", "verify")
			},
		},
	}
}

// gates have staging ask for a check in a copy of testing, and for somebody's yes.
const gates = `gates:
  - stages: [staging]
    quiet: 1ms
    checks: [{service: web, run: test -e /tmp/www/index.html}]
    watch: {for: 2h, errors: 50%}
approvals:
  - {actions: [release:promote], resources: ["release:NAME@staging"], approvers: [human:root]}
`

// watch has testing watched for a service that ends.
const watch = `gates:
  - {stages: [testing], watch: {for: 2h, health: true}}
`

// apply applies a document of policy; "" is one that says nothing.
func (w *world) apply(t *testing.T, text string) {
	t.Helper()
	path := filepath.Join(w.dir, "policy.yaml")
	if err := os.WriteFile(path, []byte("bindings: []\n"+strings.ReplaceAll(text, "NAME", w.name)), 0o600); err != nil {
		t.Fatal(err)
	}
	w.must(t, "apply", "-f", path, "--document", "gates")
}

// reach points a stage at a release, "" for that of the stage before, and has it
// run there.
func (w *world) reach(t *testing.T, stage, release string) {
	t.Helper()
	args := []string{"promote", w.name, "--to", stage}
	if release != "" {
		args = append(args, "--release", release)
	}
	w.must(t, args...)
	w.must(t, "up", "--release", w.name+"@"+stage)
}

// unmark lets a release be promoted to the first stage again, after an earlier
// round.
func (w *world) unmark(t *testing.T, release string) {
	t.Helper()
	for _, s := range w.stages(t) {
		for _, m := range s.Marks {
			if m.Release == release {
				w.must(t, "release", "clear", w.name+"@"+s.Stage, release)
			}
		}
	}
}

// agree asks for the promotion to staging, and says yes to it.
func (w *world) agree(t *testing.T) {
	t.Helper()
	if out, err := w.isle("promote", w.name, "--to", "staging"); code(err) != 4 {
		t.Fatalf("nobody was asked: %v, %s", err, out)
	}
	var waiting []struct{ ID, State string }
	if err := json.Unmarshal([]byte(w.must(t, "approvals", "-o", "json")), &waiting); err != nil {
		t.Fatal(err)
	}
	for _, r := range waiting {
		if r.State == "pending" {
			w.must(t, "approvals", "approve", r.ID, "--yes")
		}
	}
}

// A stage is what the server says of it.
type stage struct {
	Stage, Release, Before string
	Marks                  []struct{ Release, By, Reason string }
	Watches                []struct{ Rule string }
}

func (w *world) stages(t *testing.T) (out []stage) {
	t.Helper()
	if err := json.Unmarshal([]byte(w.must(t, "release", "stages", w.name, "-o", "json")), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func (w *world) stageOf(t *testing.T, name string) stage {
	t.Helper()
	all := w.stages(t)
	i := slices.IndexFunc(all, func(s stage) bool { return s.Stage == name })
	if i < 0 {
		t.Fatalf("stage %s points at nothing: %+v", name, all)
	}
	return all[i]
}

// told compares what a stage points at with what it has to, and with what the log
// says was done to it last.
func (w *world) told(t *testing.T, name, points string) stage {
	t.Helper()
	s := w.stageOf(t, name)
	if s.Release != points {
		t.Errorf("stage %s points at %s, not at %s", name, s.Release, points)
	}
	var last string
	for line := range strings.Lines(w.must(t, "audit", "search", "--action", "release", "--resource", "release:"+w.name+"@"+name, "--decision", "allow", "-o", "json")) {
		var e struct{ Kind, Action, Release, Result string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if e.Kind == "event" && e.Result == "ok" && (e.Action == "release:promote" || e.Action == "release:rollback") {
			last = e.Release
		}
	}
	if last != points {
		t.Errorf("the log says that stage %s points at %s, and it points at %s", name, last, points)
	}
	return s
}

// servesIn is serves of a stage.
func (w *world) servesIn(t *testing.T, stage string, generation int) {
	t.Helper()
	own := w.name
	if stage != "testing" {
		own += "@" + stage
	}
	w.serves(t, own, generation)
}

// mortalRelease seals a version of the project without its data whose service ends
// when it is told to.
func (w *world) mortalRelease(t *testing.T) string {
	t.Helper()
	w.lighten(t, 2)
	path := filepath.Join(w.dir, "isle.yaml")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), "exec busybox httpd -f -p 8080 -h /tmp/www\"]\n")
	if !ok {
		t.Fatalf("the project is another: %s", b)
	}
	text := before + "busybox httpd -p 8080 -h /tmp/www; until [ -e /tmp/end ]; do busybox sleep 0.1; done\"]\n    restart: always\n" + rest
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return w.seal(t)
}

// code is the exit code of a command; 0: it succeeded.
func code(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return 0
}
