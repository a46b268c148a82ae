package crash

import (
	"encoding/json"
	"testing"
)

// releases are the stories of what is sealed, and of the stages that point at it.
func releases() []story {
	var first, second string // digests
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
			name: "promote", points: []string{"promote.checked", "promote.recorded"},
			before: func(t *testing.T, w *world) {
				second, first = w.release(t, 2), w.release(t, 1)
				w.must(t, "promote", w.name, "--to", "testing", "--release", first)
				w.must(t, "up", "--release", w.name+"@testing")
				w.running(t, 1)
			},
			act: func(w *world) error {
				_, err := w.isle("promote", w.name, "--to", "testing", "--release", second)
				return err
			},
			after: func(t *testing.T, w *world, point string) {
				w.running(t, 1) // a promotion launches nothing
				want := first
				if point == "promote.recorded" {
					want = second
				}
				if got := w.pointsAt(t); got != want {
					t.Errorf("the stage points at %s, not at %s", got, want)
				}
				w.must(t, "promote", w.name, "--to", "testing", "--release", second)
				w.must(t, "up", "--release", w.name+"@testing")
				w.running(t, 2)
				w.must(t, "audit", "verify")
			},
		},
	}
}

// release seals a generation of the project and returns its digest.
func (w *world) release(t *testing.T, n int) string {
	t.Helper()
	w.generation(t, n)
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
