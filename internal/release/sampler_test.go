package release

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/image"
)

// A sampled is a world whose release runs in production, and is looked at all the
// time.
type sampled struct {
	*world
	*Sampler
	mu      sync.Mutex // guards what follows
	run     Running
	entries []audit.Entry
	read    map[isle.Digest]int
}

func newSampled(t *testing.T) *sampled {
	w := newWorld(t, "here")
	s := &sampled{world: w, read: map[isle.Digest]int{}}
	rel := w.create(shop(t, ""))
	if _, err := w.Promote(t.Context(), alice, Promotion{Project: "shop", To: "testing", Order: []string{"testing"}, Release: string(rel.Digest)}, ""); err != nil {
		t.Fatal(err)
	}
	s.run = Running{Ref: isle.Ref{Name: "shop", Stage: "testing"}, Instance: isle.NewID(), Project: "shop", Release: rel.Digest, Spec: rel.Manifest.Spec, Images: rel.Manifest.Images()}
	s.Sampler = NewSampler(SamplerConfig{
		Releases: w.Releases, Every: time.Millisecond, Pace: 1 << 40,
		Running: func(context.Context) ([]Running, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return []Running{s.run}, nil
		},
		Sample: func(ctx context.Context, l image.Layer, wait func(context.Context, int) error) error {
			if err := wait(ctx, 1); err != nil {
				return err
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.read[l.Digest]++
			return nil
		},
		Append: func(_ context.Context, entries ...audit.Entry) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.entries = append(s.entries, entries...)
			return nil
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

// until waits for something that goes on by itself.
func (s *sampled) until(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s did not come", what)
		}
	}
}

func TestLayersOfWhatRunsAreReadAgainAndAgain(t *testing.T) {
	s := newSampled(t)
	s.until("every layer twice", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		n := 0
		for _, times := range s.read {
			if times > 1 {
				n++
			}
		}
		return n == 3
	})
	if found, _, err := s.State(); len(found) > 0 || err != nil {
		t.Errorf("%q, %v", found, err)
	}
}

func TestWhatIsFoundIsWrittenDownOnceUntilItIsOver(t *testing.T) {
	s := newSampled(t)
	change := func(undeclared map[string][]string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.run.Undeclared = undeclared
	}
	change(map[string][]string{"web": {"something is mounted at /app"}})
	s.until("the finding", func() bool { return len(s.Of(s.run.Instance)) > 0 })
	reads := func() (n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, times := range s.read {
			n += times
		}
		return n
	}
	at := reads()
	s.until("a few more looks", func() bool { return reads() > at+50 })
	s.mu.Lock()
	if len(s.entries) != 1 || s.entries[0].Environment != "shop@testing" || s.entries[0].Details["kind"] != DriftMounts || s.entries[0].Result != string(isle.Failed) {
		t.Errorf("%+v", s.entries)
	}
	s.mu.Unlock()
	if found, _, _ := s.State(); len(found) != 1 || !strings.Contains(found[0], "web: mounts: something is mounted at /app") {
		t.Errorf("%q", found)
	}
	change(nil)
	s.until("its end", func() bool { return len(s.Of(s.run.Instance)) == 0 })
}

func TestNothingIsSampledWhereItIsOff(t *testing.T) {
	s := NewSampler(SamplerConfig{})
	s.Run(t.Context()) // returns
	if _, doing, _ := s.State(); doing != "nothing is looked at" {
		t.Error(doing)
	}
}
