package identity

import (
	"context"
	"time"

	"isle"
)

const (
	// lookEvery is how often Run looks at the clock at least: it may have been set.
	lookEvery = 10 * time.Second
	// ownersEvery is how often it asks whether the operating system still knows
	// owners. Whoever is missed twice in a row has left.
	ownersEvery = 10 * time.Minute
)

// Run wakes whoever waits on Over when something ends by itself, notes owners
// whom the operating system does not know any more, and tells of refusals that
// were counted together, until ctx ends.
func (r *Registry) Run(ctx context.Context) {
	owners := time.NewTicker(ownersEvery)
	defer owners.Stop()
	seen := r.now()
	for {
		s := r.state.Load()
		wait := lookEvery
		if next := s.nextEnd(seen); !next.IsZero() {
			wait = min(wait, max(next.Sub(r.now()), 0))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			r.tellTogether(ctx, true)
			return
		case <-s.over:
		case <-owners.C:
			r.lookForOwners(ctx)
		case <-timer.C:
		}
		timer.Stop()
		now := r.now()
		if next := r.state.Load().nextEnd(seen); !next.IsZero() && !now.Before(next) {
			r.wake()
		}
		seen = now
		r.tellTogether(ctx, false)
	}
}

// nextEnd is the first end of anything after a time; zero if there is none.
func (s *registered) nextEnd(after time.Time) (next time.Time) {
	look := func(t time.Time) {
		if t.After(after) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for _, m := range s.machines {
		if m.Revoked.IsZero() {
			look(m.ends())
		}
	}
	for _, k := range s.keys {
		if k.Revoked.IsZero() {
			look(k.Expires)
		}
	}
	return next
}

// wake has whoever waits on Over ask again.
func (r *Registry) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.state.Load()
	next := *old
	next.over = make(chan struct{})
	r.state.Store(&next)
	close(old.over)
}

// lookForOwners notes people whom the operating system does not know any more,
// and did not the last time.
func (r *Registry) lookForOwners(ctx context.Context) {
	people := map[string]bool{}
	s, now := r.state.Load(), r.now()
	for _, m := range s.machines {
		if m.why(now) == "" && m.OwnerLeft.IsZero() {
			people[m.Owner.Name] = true
		}
	}
	for _, k := range s.keys {
		if k.Kind == Personal && s.why(k, now) == "" {
			people[k.Holder.Name] = true
		}
	}
	gone := map[string]bool{}
	for name := range people {
		if r.cfg.Known(name) {
			continue
		}
		gone[name] = true
		if !r.gone[name] {
			continue
		}
		by, owner := isle.Actor{Kind: isle.System, Name: "owners"}, isle.Actor{Kind: isle.Human, Name: name}
		machines, tokens, err := r.OwnerLeft(ctx, by, owner, DefaultGrace, false, nil)
		if err != nil {
			r.cfg.Slog.Error("an owner who left could not be noted; it is tried again", "owner", owner, "err", err)
			continue
		}
		r.cfg.Slog.Warn("the operating system does not know an owner any more", "owner", owner, "machines", len(machines), "tokens", len(tokens))
	}
	r.gone = gone
}
