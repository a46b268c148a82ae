package crash

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// releases are the stories of what is sealed, and of the stages that point at it.
func releases() []story {
	var first, old, next, good, bad, light, lighter, later, earlier string // digests, of each story its own
	return []story{
		{
			name: "release", points: []string{"release.written", "release.renamed", "release.recorded"},
			before: func(t *testing.T, w *world) { w.must(t, "lock", w.dir); w.must(t, "build", w.dir) },
			act:    func(w *world) error { _, err := w.isle("release", "create", w.dir); return err },
			after: func(t *testing.T, w *world, point string) {
				if got := w.released(t); (len(got) == 1) != (point == "release.recorded") || len(got) > 1 {
					t.Errorf("there are %v", got)
				}
				d := w.release(t, 1)
				w.must(t, "release", "verify", d)
				w.must(t, "release", "rm", d)
			},
		},
		{
			name: "release rm", points: []string{"release.forgotten"},
			before: func(t *testing.T, w *world) { first = w.release(t, 1) },
			act:    func(w *world) error { _, err := w.isle("release", "rm", first); return err },
			after: func(t *testing.T, w *world, _ string) {
				if got := w.released(t); len(got) > 0 {
					t.Errorf("there are %v", got)
				}
				w.must(t, "release", "rm", w.release(t, 1))
			},
		},
		{
			name: "promote", points: []string{
				"promote.checked", "promote.recorded", "switch.recorded", "handover.recorded", "handover.stopped", "handover.copied", "switch.up", "switch.committed", "switch.taken",
				"handover.saved", "aside.removed",
			},
			before: func(t *testing.T, w *world) {
				next, old = w.release(t, 2), w.release(t, 1)
				w.must(t, "promote", w.name, "--to", "testing", "--release", old)
				w.must(t, "up", "--release", w.name+"@testing")
				w.running(t, 1)
				w.must(t, "exec", w.name, "-s", "db", "--", "sh", "-c", "echo precious > /data/token; sync")
			},
			act: func(w *world) error {
				_, err := w.isle("promote", w.name, "--to", "testing", "--release", next)
				return err
			},
			after: func(t *testing.T, w *world, point string) {
				serves, points := 1, old
				if slices.Contains([]string{"promote.recorded", "switch.committed", "switch.taken", "handover.saved", "aside.removed"}, point) {
					points = next
				}
				if slices.Contains([]string{"switch.taken", "handover.saved", "aside.removed"}, point) {
					serves = 2
				}
				w.running(t, serves)
				if got := w.pointsAt(t); got != points {
					t.Errorf("the stage points at %s, not at %s", got, points)
				}
				w.must(t, "promote", w.name, "--to", "testing", "--release", next)
				w.running(t, 2)
				if got := token(t, w); got != "precious" {
					t.Errorf("the data is %q", got)
				}
				var kept []struct{ Digest, Message string }
				eventually(t, "what the one before had written is kept", func() error {
					if err := json.Unmarshal([]byte(w.must(t, "snapshot", "ls", w.name, "-o", "json")), &kept); err != nil || len(kept) != 1 || kept[0].Message != "as release "+old[7:19]+" left it" {
						return fmt.Errorf("%+v, %v", kept, err)
					}
					if all, err := os.ReadDir(filepath.Join(w.State, "airlocks")); err != nil || len(all) != 1 {
						return fmt.Errorf("what had written it is there still: %v, %v", all, err)
					}
					return nil
				})
				w.must(t, "snapshot", "rm", kept[0].Digest)
				w.must(t, "audit", "verify")
			},
		},
		{
			name: "promote in vain", points: []string{"handover.resumed"},
			before: func(t *testing.T, w *world) {
				bad, good = w.release(t, -1), w.release(t, 1)
				w.must(t, "promote", w.name, "--to", "testing", "--release", good)
				w.must(t, "up", "--release", w.name+"@testing")
			},
			act: func(w *world) error {
				_, err := w.isle("promote", w.name, "--to", "testing", "--release", bad)
				return err
			},
			after: func(t *testing.T, w *world, _ string) {
				w.running(t, 1)
				if out, err := w.isle("promote", w.name, "--to", "testing", "--release", bad); err == nil {
					t.Errorf("it was promoted: %s", out)
				}
				w.running(t, 1)
				if got := w.pointsAt(t); got != good {
					t.Errorf("the stage points at %s, not at %s", got, good)
				}
			},
		},
		{
			name: "switch", points: []string{"switch.recorded", "switch.up", "switch.committed", "switch.taken", "switch.drained", "switch.frozen"},
			before: func(t *testing.T, w *world) {
				lighter, light = w.lightRelease(t, 2), w.lightRelease(t, 1)
				w.must(t, "promote", w.name, "--to", "testing", "--release", light)
				w.must(t, "up", "--release", w.name+"@testing")
			},
			act: func(w *world) error {
				_, err := w.isle("promote", w.name, "--to", "testing", "--release", lighter)
				return err
			},
			after: func(t *testing.T, w *world, point string) {
				serves, points := 1, light
				if point != "switch.recorded" && point != "switch.up" {
					points = lighter
				}
				if points == lighter && point != "switch.committed" {
					serves = 2
				}
				w.serves(t, w.name, serves)
				if got := w.pointsAt(t); got != points {
					t.Errorf("the stage points at %s, not at %s", got, points)
				}
				w.must(t, "promote", w.name, "--to", "testing", "--release", lighter)
				w.serves(t, w.name, 2)
				w.must(t, "audit", "verify")
			},
		},
		{
			name: "rollback", points: []string{"switch.thawed", "rollback.checked", "rollback.recorded"},
			before: func(t *testing.T, w *world) {
				later, earlier = w.lightRelease(t, 2), w.lightRelease(t, 1)
				w.must(t, "promote", w.name, "--to", "testing", "--release", earlier)
				w.must(t, "up", "--release", w.name+"@testing")
				if _, err := w.isle("promote", w.name, "--to", "testing", "--release", later); err != nil { // of an earlier round
					w.must(t, "release", "clear", w.name+"@testing", later)
					w.must(t, "promote", w.name, "--to", "testing", "--release", later)
				}
			},
			act: func(w *world) error { _, err := w.isle("rollback", w.name+"@testing"); return err },
			after: func(t *testing.T, w *world, point string) {
				points := later
				if point == "rollback.recorded" {
					points = earlier
				}
				w.serves(t, w.name, 2) // until another instance takes its place
				if got := w.pointsAt(t); got != points {
					t.Errorf("the stage points at %s, not at %s", got, points)
				}
				if points == later {
					w.must(t, "rollback", w.name+"@testing")
				} else {
					w.must(t, "up", "--release", w.name+"@testing")
				}
				w.serves(t, w.name, 1)
				w.must(t, "audit", "verify")
			},
		},
	}
}

// lightRelease seals a generation of the project without its data.
func (w *world) lightRelease(t *testing.T, n int) string {
	t.Helper()
	w.lighten(t, n)
	return w.seal(t)
}

// lighten writes the project as of a generation, without its data.
func (w *world) lighten(t *testing.T, n int) {
	t.Helper()
	w.generation(t, n)
	path := filepath.Join(w.dir, "isle.yaml")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, _ := strings.Cut(string(b), "  db:\n")
	_, web, _ := strings.Cut(rest, "  web:\n")
	light := before + "  web:\n" + strings.Replace(web, "    depends_on: [db]\n", "", 1)
	if err := os.WriteFile(path, []byte(light), 0o600); err != nil {
		t.Fatal(err)
	}
}

// serves waits until the port of an environment of the project answers with a
// generation.
func (w *world) serves(t *testing.T, name string, generation int) {
	t.Helper()
	eventually(t, fmt.Sprintf("generation %d serves in %s", generation, name), func() error {
		out, err := w.isle("status", name, "-o", "json")
		if err != nil {
			return err
		}
		e, err := decode(out)
		if err != nil {
			return err
		}
		w.note(e.Instance)
		return get(e.Port("web"), fmt.Sprintf("hello %d", generation))
	})
}

// release seals a generation of the project and returns its digest.
func (w *world) release(t *testing.T, n int) string {
	t.Helper()
	w.generation(t, n)
	return w.seal(t)
}

// seal makes a release of what the project is.
func (w *world) seal(t *testing.T) string {
	t.Helper()
	w.must(t, "lock", w.dir)
	var out struct {
		Release struct {
			Digest string `json:"digest"`
		} `json:"release"`
	}
	if err := json.Unmarshal([]byte(w.must(t, "release", "create", w.dir, "-o", "json")), &out); err != nil {
		t.Fatal(err)
	}
	return out.Release.Digest
}

// released are the digests of all releases.
func (w *world) released(t *testing.T) (digests []string) {
	t.Helper()
	var list []struct {
		Digest string `json:"digest"`
	}
	if err := json.Unmarshal([]byte(w.must(t, "release", "ls", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		digests = append(digests, r.Digest)
	}
	return digests
}

// pointsAt is the release of the project's first stage.
func (w *world) pointsAt(t *testing.T) string {
	t.Helper()
	var list []struct {
		Release string `json:"release"`
	}
	if err := json.Unmarshal([]byte(w.must(t, "release", "stages", w.name, "-o", "json")), &list); err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	return list[0].Release
}
