package approval

import (
	"context"
	"time"

	"isle"
)

// Run ends what nobody decided about or used in time, until ctx is done. It is
// called once.
func (a *Approvals) Run(ctx context.Context) {
	if a.broken != nil {
		return
	}
	for {
		changed, next, err := a.sweep(ctx)
		if err != nil && ctx.Err() == nil {
			a.cfg.Slog.Error("approvals that are over could not be ended; that is tried again", "err", err)
			next = 5 * time.Second
		}
		var tick <-chan time.Time
		var t *time.Timer
		if next > 0 {
			t = time.NewTimer(next)
			tick = t.C
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-tick:
		}
		if t != nil {
			t.Stop()
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// lookAtClock is how long the end of something may go unnoticed where the clock
// jumps to it.
const lookAtClock = 5 * time.Second

// sweep ends what is over. It returns what says that something changed since,
// and after how long to look again; 0: not before.
func (a *Approvals) sweep(ctx context.Context) (changed <-chan struct{}, next time.Duration, err error) {
	if err := a.take(ctx); err != nil {
		return nil, 0, err
	}
	defer a.leave()
	a.mu.RLock()
	changed = a.changed
	a.mu.RUnlock()
	var ch change
	now := a.now()
	at := func(t time.Time) {
		if left := min(max(t.Sub(now), time.Millisecond), lookAtClock); next == 0 || left < next {
			next = left
		}
	}
	regrant := false
	for _, c := range a.cards {
		switch {
		case c.State == Approved && !now.Before(c.Until):
			ch.end(a, c, Expired, "it was approved and not used in time")
		case c.State == Approved:
			at(c.Until)
		case c.State == Pending && len(c.waiters) == 0 && !c.NoWait:
			ch.end(a, c, Withdrawn, "whoever asked went away")
		case c.State == Pending && len(c.waiters) == 0 && !now.Before(c.Expires):
			ch.end(a, c, Expired, "nobody decided in time")
		case c.State == Pending:
			at(c.Expires)
		case c.Access != nil && c.Access.Granted && c.Access.over(now):
			to := c.Request
			access := *to.Access
			access.Granted = false
			to.Access = &access
			ch.put(c, to)
			ch.entries = append(ch.entries, entryOf(system("access"), to, isle.Allow, isle.ActionAccessRequest, "ended: "+access.String()))
			regrant = true
		case c.Access != nil && c.Access.Granted:
			at(c.Access.Until)
		}
	}
	if err := a.commit(ctx, &ch); err != nil {
		return changed, next, err
	}
	if regrant || a.stale {
		return changed, next, a.publish(ctx)
	}
	return changed, next, nil
}

// PolicyChanged ends what the policy in force has no room for any more, waiting
// or approved. It is called after each change of the policy.
func (a *Approvals) PolicyChanged(ctx context.Context) error {
	if err := a.take(ctx); err != nil {
		return err
	}
	defer a.leave()
	var ch change
	for _, l := range a.live {
		for _, c := range l {
			if err := a.cfg.Stands(c.Request); err != nil {
				ch.end(a, c, Withdrawn, "the policy changed: "+err.Error())
			}
		}
	}
	return a.commit(ctx, &ch)
}

// A watcher is somebody who follows the requests.
type watcher struct {
	dirty map[isle.ID]bool // under Approvals.mu
	ready chan struct{}    // holds one where dirty is not empty
}

// note is called with mu held.
func (w *watcher) note(id isle.ID) {
	w.dirty[id] = true
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// Watch calls emit with each request of which something can still come, and
// then with each that has changed, as it is by then: who is slow misses what was
// in between, and not how it came out. It ends with emit's error or ctx.
func (a *Approvals) Watch(ctx context.Context, emit func(Request) error) error {
	if a.broken != nil {
		return a.broken
	}
	w := &watcher{dirty: map[isle.ID]bool{}, ready: make(chan struct{}, 1)}
	a.mu.Lock()
	a.watchers[w] = true
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.watchers, w)
		a.mu.Unlock()
	}()
	list, err := a.List(false)
	if err != nil {
		return err
	}
	for _, r := range list {
		if err := emit(r); err != nil {
			return err
		}
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.ready:
		}
		var changed []Request
		a.mu.Lock()
		for id := range w.dirty {
			if c := a.cards[id]; c != nil {
				changed = append(changed, c.Request)
			}
		}
		clear(w.dirty)
		a.mu.Unlock()
		for _, r := range changed {
			if err := emit(r); err != nil {
				return err
			}
		}
	}
}
