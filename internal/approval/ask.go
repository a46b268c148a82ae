package approval

import (
	"context"
	"strings"
	"time"

	"isle"
	"isle/internal/audit"
)

// KindRelease is the kind of a request to promote a release. Its Connection is
// the project, its Stage the one to which is promoted, and its Text says what is:
// the hash covers the release's digest and the values of the stage.
const KindRelease = "release"

// Ask has a request wait whose asker does not, and comes again: it returns the
// card of its like that is approved and has a use left, which Acquire would
// spend; else the one that waits, which it makes where there is none.
func (a *Approvals) Ask(ctx context.Context, r Request) (Request, error) {
	if a.broken != nil {
		return Request{}, a.broken
	}
	if err := r.check(); err != nil {
		return Request{}, err
	}
	r.NoWait, r.Hash = true, r.Sum()
	k := key{r.Hash, r.terms()}
	if err := a.take(ctx); err != nil {
		return Request{}, err
	}
	defer a.leave()
	if g := a.granted(k); g != nil {
		return g.Request, nil
	}
	if c := a.waiting(k); c != nil {
		return c.Request, nil
	}
	c, err := a.begin(ctx, r, k, &waiter{deadline: a.now().Add(r.Timeout)})
	if err != nil {
		return Request{}, err
	}
	return c.Request, nil
}

// Find is Ask that makes nothing: where no request of its like waits or is
// approved it returns the last one that was denied. ok is false if there is none.
func (a *Approvals) Find(ctx context.Context, r Request) (found Request, ok bool, err error) {
	if a.broken != nil {
		return Request{}, false, a.broken
	}
	if err := r.check(); err != nil {
		return Request{}, false, err
	}
	r.Hash = r.Sum()
	k := key{r.Hash, r.terms()}
	if err := a.take(ctx); err != nil {
		return Request{}, false, err
	}
	defer a.leave()
	if g := a.granted(k); g != nil {
		return g.Request, true, nil
	}
	if c := a.waiting(k); c != nil {
		return c.Request, true, nil
	}
	for _, c := range a.cards {
		if c.Hash == r.Hash && c.State == Denied && c.Ended.After(found.Ended) {
			found, ok = c.Request, true
		}
	}
	return found, ok, nil
}

// PassedOver records that a person promoted a release past what stands before it.
// It is told to every webhook and in the server's log, and is listed until
// somebody else has reviewed it; it gives nobody access. r.Why says why.
func (a *Approvals) PassedOver(ctx context.Context, r Request, what string) (Request, error) {
	switch {
	case a.broken != nil:
		return Request{}, a.broken
	case r.Actor.Kind != isle.Human:
		return Request{}, isle.Errorf(isle.Refused, "%s is no person: only people break the glass", r.Actor).WithHint("ask a person to promote it")
	case strings.TrimSpace(r.Why) == "":
		return Request{}, isle.Errorf(isle.Invalid, "why the glass is broken is not said")
	}
	now := a.now()
	r.Access = &Access{What: KindRelease, Name: r.Connection, Actions: r.Actions, Glass: true, Until: now}
	r.Shape = what
	if err := r.check(); err != nil {
		return Request{}, err
	}
	r.Hash, r.Rule = r.Sum(), BreakGlass
	if err := a.take(ctx); err != nil {
		return Request{}, err
	}
	defer a.leave()
	r.ID, r.Asked, r.Expires, r.Ended, r.Count, r.Uses, r.Used = isle.NewID(), now, now, now, 1, 1, 1
	r.State, r.Ending = Spent, "it was done at once"
	c := &card{key: key{r.Hash, r.terms()}, wake: make(chan struct{})}
	e := entryOf(r.Actor, r, isle.Allow, isle.ActionReleaseSkip, what)
	if err := a.commit(ctx, &change{next: []next{{c, r}}, entries: []audit.Entry{e}, notices: []Notice{{What: Broken, Request: r}}}); err != nil {
		return Request{}, err
	}
	a.cfg.Slog.Error("BREAK-GLASS: a release is promoted past its gates, and that is to be reviewed", "actor", r.Actor, "project", r.Connection, "stage", r.Stage,
		"past", what, "why", r.Why, "request", r.ID, "at", now.Format(time.RFC3339))
	return r, nil
}
