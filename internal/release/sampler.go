package release

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/image"
)

// Entry is what the log says of a finding.
func (f Finding) Entry(actor isle.Actor, run Running) audit.Entry {
	e := audit.NewEvent(actor, isle.ActionReleaseDrift, isle.Resource{Kind: "release", Name: run.Project, Stage: run.Ref.Stage}, isle.Allow, f.Message).
		In(run.Ref, run.Instance).With("kind", f.Kind).With("service", f.Service)
	if f.Detail != "" {
		e = e.With("detail", f.Detail)
	}
	e.Release, e.Result = run.Release, string(isle.Failed)
	return e
}

// A SamplerConfig is what a Sampler needs.
type SamplerConfig struct {
	Releases *Releases
	// Running are the environments that run releases.
	Running func(ctx context.Context) ([]Running, error)
	// Sample reads every byte of a layer, as slowly as wait has it;
	// image.Store.Sample does.
	Sample func(ctx context.Context, l image.Layer, wait func(ctx context.Context, n int) error) error
	// Pace is how many bytes of layers are read in a minute; 0: none.
	Pace int64
	// Every is how often what runs is compared with its release without reading
	// layers that nobody has touched. Default a minute.
	Every  time.Duration
	Append func(ctx context.Context, entries ...audit.Entry) error
	Slog   *slog.Logger // nil discards
}

// A Sampler looks for drift all the time, gently: it compares what runs with its
// release, and reads the layers again and again, one after the other. What it finds
// is an entry of the log once, and is kept until it is not so any more.
type Sampler struct {
	cfg SamplerConfig

	next time.Time // when to look again; Run alone has it

	mu     sync.Mutex // guards what follows
	found  map[isle.ID]drifting
	before map[isle.ID]drifting // what the last look has seen, sure of it or not
	layers int                  // of what runs, when it was last looked at
	read   int                  // layers that were read whole since the start
	bytes  int64
	err    error // of the last look
}

// drifting is what was found of an instance.
type drifting struct {
	run   Running
	found []Finding
}

// NewSampler returns a Sampler that does nothing before Run.
func NewSampler(cfg SamplerConfig) *Sampler {
	if cfg.Every <= 0 {
		cfg.Every = time.Minute
	}
	if cfg.Slog == nil {
		cfg.Slog = slog.New(slog.DiscardHandler)
	}
	return &Sampler{cfg: cfg, found: map[isle.ID]drifting{}}
}

// Run looks until ctx ends.
func (s *Sampler) Run(ctx context.Context) {
	if s.cfg.Pace <= 0 {
		return
	}
	s.next = time.Now().Add(s.cfg.Every)
	var last isle.Digest // that was read
	for ctx.Err() == nil {
		layers := s.running(ctx)
		if len(layers) == 0 {
			s.sleep(ctx, time.Until(s.next))
			s.look(ctx)
			continue
		}
		i, _ := slices.BinarySearchFunc(layers, last, func(l image.Layer, d isle.Digest) int { return cmp.Compare(l.Digest, d) })
		if i < len(layers) && layers[i].Digest == last {
			i++
		}
		l := layers[i%len(layers)]
		last = l.Digest
		err := s.cfg.Sample(ctx, l, s.wait)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			s.mu.Lock()
			s.read++
			s.mu.Unlock()
		case isle.CodeOf(err) == isle.NotFound: // it is not needed any more, or the next look finds it
			s.sleep(ctx, min(time.Second, s.cfg.Every))
		default:
			s.cfg.Slog.Warn("a layer that runs is not as released", "layer", l.Digest.Short(), "err", err)
			s.next = time.Time{} // who runs it is found at once
			s.look(ctx)
		}
	}
}

// wait takes the time that so many bytes have, and looks where that is due.
func (s *Sampler) wait(ctx context.Context, n int) error {
	s.sleep(ctx, time.Duration(float64(n)/float64(s.cfg.Pace)*float64(time.Minute)))
	s.mu.Lock()
	s.bytes += int64(n)
	s.mu.Unlock()
	s.look(ctx)
	return ctx.Err()
}

func (s *Sampler) sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// running are the layers of what runs, each once, sorted.
func (s *Sampler) running(ctx context.Context) (out []image.Layer) {
	runs, err := s.cfg.Running(ctx)
	if err != nil {
		return nil
	}
	for _, run := range runs {
		for _, m := range run.Images {
			out = append(out, m.Layers...)
		}
	}
	slices.SortFunc(out, func(a, b image.Layer) int { return cmp.Compare(a.Digest, b.Digest) })
	return slices.CompactFunc(out, func(a, b image.Layer) bool { return a.Digest == b.Digest })
}

// look compares what runs with its release, where that is due.
func (s *Sampler) look(ctx context.Context) {
	if time.Now().Before(s.next) || ctx.Err() != nil {
		return
	}
	s.next = time.Now().Add(s.cfg.Every)
	runs, err := s.cfg.Running(ctx)
	now := map[isle.ID]drifting{}
	seen := map[isle.Digest]bool{}
	for _, run := range runs {
		found, derr := s.cfg.Releases.Drift(ctx, run, false)
		if ctx.Err() != nil {
			return
		}
		if derr != nil {
			err = derr
			continue
		}
		for _, m := range run.Images {
			for _, l := range m.Layers {
				seen[l.Digest] = true
			}
		}
		if len(found) > 0 {
			now[run.Instance] = drifting{run, found}
		}
	}
	s.note(ctx, s.sure(now), len(seen), err)
}

// sure are the findings that are no moment of a switch or a start: those that the
// look before has seen too, and those that no such moment has.
func (s *Sampler) sure(now map[isle.ID]drifting) map[isle.ID]drifting {
	s.mu.Lock()
	before := s.before
	s.before = now
	s.mu.Unlock()
	out := map[isle.ID]drifting{}
	for instance, d := range now {
		d.found = slices.DeleteFunc(slices.Clone(d.found), func(f Finding) bool {
			return f.Kind != DriftBytes && f.Kind != DriftRelease && !slices.Contains(before[instance].found, f)
		})
		if len(d.found) > 0 {
			out[instance] = d
		}
	}
	return out
}

// note keeps what was found. What was not so before is written down first.
func (s *Sampler) note(ctx context.Context, now map[isle.ID]drifting, layers int, err error) {
	s.mu.Lock()
	before := s.found
	s.mu.Unlock()
	var entries []audit.Entry
	for instance, d := range now {
		for _, f := range d.found {
			if !slices.Contains(before[instance].found, f) {
				entries = append(entries, f.Entry(isle.Actor{Kind: isle.System, Name: "drift"}, d.run))
				s.cfg.Slog.Warn("what runs is not as released", "environment", d.run.Ref, "service", f.Service, "kind", f.Kind, "what", f.Message)
			}
		}
	}
	if len(entries) > 0 {
		if aerr := s.cfg.Append(ctx, entries...); aerr != nil {
			err, now = aerr, before // tried again by the next look
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found, s.layers, s.err = now, layers, err
}

// Of is what was found last of an instance, for people.
func (s *Sampler) Of(instance isle.ID) (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.found[instance].found {
		out = append(out, f.String())
	}
	return out
}

// String is a finding for people.
func (f Finding) String() string {
	if f.Service == "" {
		return f.Kind + ": " + f.Message
	}
	return f.Service + ": " + f.Kind + ": " + f.Message
}

// State says for people what is found now, and else what is done. err is why
// nothing is found out.
func (s *Sampler) State() (found []string, doing string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.found {
		for _, f := range d.found {
			found = append(found, d.run.Ref.String()+": "+f.String())
		}
	}
	slices.Sort(found)
	if s.cfg.Pace <= 0 {
		return found, "nothing is looked at", s.err
	}
	return found, fmt.Sprintf("%d layers run; %d were read since the start, %d MiB at %d MiB a minute", s.layers, s.read, s.bytes>>20, s.cfg.Pace>>20), s.err
}
