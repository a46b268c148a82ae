package environment

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"isle"
	"isle/internal/spec"
)

// What an error says is read by whoever forks, what an entry says by whoever may
// read the log of the other stage, and neither need be allowed to see the data.
func TestWhatAForkOfAnotherStageSaysIsToldToNobody(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*UpRequest)
		says   []string
	}{
		"on_fork fails":   {func(r *UpRequest) { r.Spec.Services[1].OnFork = []string{"refuse"} }, []string{"no seed"}},
		"a service fails": {func(r *UpRequest) { r.Spec.Services[0].Command = []string{"fail"} }, []string{"boom"}},
		"a check fails": {func(r *UpRequest) {
			r.Spec.Services[0].Command = []string{"never"}
			r.Spec.Services[0].Healthcheck = &spec.Healthcheck{TCP: 1, Start: 100 * time.Millisecond}
		}, []string{"Godot", "connection refused"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			m := w.serve(nil)
			req := reseeds("shop", "reseed")
			c.change(&req)
			m.Up(t.Context(), root, req, nil) // what fails is copied too
			w.mu.Lock()
			before := len(w.entries)
			w.mu.Unlock()
			for stage, stays := range map[string]bool{"testing": true, "staging": false} {
				var said strings.Builder
				copied := forkOf("shop")
				copied.Stage = stage
				_, err := m.Fork(t.Context(), root, copied, func(p Progress) {
					e, _ := m.Get(t.Context(), isle.Ref{Name: "shop-f1", Stage: stage})
					fmt.Fprintln(&said, p, e.Trouble, e.Services)
				})
				if err == nil {
					t.Fatal("it came up")
				}
				fmt.Fprintln(&said, err)
				w.mu.Lock()
				for _, e := range w.entries[before:] {
					if strings.HasSuffix(e.Environment, "@"+stage) {
						fmt.Fprintln(&said, e.Summary, e.Details)
					}
				}
				w.mu.Unlock()
				for _, word := range c.says {
					if strings.Contains(said.String(), word) != stays {
						t.Errorf("in stage %s what is said has %q, or lacks it: %s", stage, word, said.String())
					}
				}
			}
		})
	}
}
