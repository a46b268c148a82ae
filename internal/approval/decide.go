package approval

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"time"

	"isle"
	"isle/internal/problem"
)

// Approve adds a person's approval of the hash that they saw. Once the quorum is
// reached the request is approved, and its time begins. It fails with Refused,
// which is recorded, where they may not, or the hash is another; with Conflict
// where the request does not wait or they have said so already.
func (a *Approvals) Approve(ctx context.Context, d Decider, id isle.ID, hash isle.Digest, reason string) (Request, error) {
	if err := a.take(ctx); err != nil {
		return Request{}, err
	}
	defer a.leave()
	c, err := a.find(id)
	if err != nil {
		return Request{}, err
	}
	if err := a.mayDecide(ctx, d, c.Request, "approve"); err != nil {
		return Request{}, err
	}
	switch {
	case c.State != Pending:
		return Request{}, over(c.Request)
	case !a.now().Before(c.Expires):
		return Request{}, isle.Errorf(isle.Conflict, "request %s ended: nobody decided in time", id)
	case hash != c.Hash:
		return Request{}, a.refused(ctx, d, c.Request, "approve", isle.Errorf(isle.Refused, "request %s has the hash %s, not %s", id, c.Hash, problem.Clip(string(hash))).
			WithHint("look at it again: isle approvals show %s", id))
	case slices.ContainsFunc(c.Decisions, func(v Verdict) bool { return v.Actor == d.Actor }):
		return Request{}, isle.Errorf(isle.Conflict, "%s has approved request %s already; it needs %d people", d.Actor, id, c.Quorum)
	}
	if err := a.cfg.Stands(c.Request); err != nil {
		return Request{}, isle.Errorf(isle.Conflict, "request %s holds no more: %w", id, err)
	}
	to := c.Request
	to.Decisions = append(slices.Clip(to.Decisions), Verdict{Actor: d.Actor, At: a.now(), Approve: true, Reason: cut(reason, MaxReason), Via: d.Via})
	summary := "one of " + strconv.Itoa(to.Quorum) + " approvals"
	what := Notice{}
	if len(to.Decisions) >= to.Quorum {
		to.State, to.Until = Approved, a.now().Add(to.ValidFor)
		summary = "approved for " + to.ValidFor.String() + ", uses: " + strconv.Itoa(to.Uses)
		what = Notice{What: Decided, Request: to}
	}
	if to.Access != nil && to.State == Approved {
		if to, err = a.grant(to); err != nil {
			return Request{}, err
		}
		summary = to.Access.String()
	}
	ch := &change{next: []next{{c, to}}}
	if what.What != "" {
		ch.notices = append(ch.notices, what)
	}
	e := entryOf(d.Actor, to, isle.Allow, isle.ActionApprovalDecide, summary)
	if to.Decisions[len(to.Decisions)-1].Reason != "" {
		e = e.With("reason", to.Decisions[len(to.Decisions)-1].Reason)
	}
	if d.Via != "" {
		e = e.With("vouched_by", "webhook:"+d.Via)
	}
	ch.entries = append(ch.entries, e)
	if err := a.commit(ctx, ch); err != nil {
		return Request{}, err
	}
	if to.Access != nil && to.State == Spent {
		return to, a.publish(ctx)
	}
	return to, nil
}

// Deny ends a request that waits, what is left of one that is approved, or access
// that was granted. The reason becomes the error of who asked. People may do so
// with what they asked for themselves.
func (a *Approvals) Deny(ctx context.Context, d Decider, id isle.ID, reason string) (Request, error) {
	if err := a.take(ctx); err != nil {
		return Request{}, err
	}
	defer a.leave()
	c, err := a.find(id)
	if err != nil {
		return Request{}, err
	}
	if own := d.Actor == c.Actor && d.Actor.Kind == isle.Human; !own { // one may always want something no more
		if err := a.mayDecide(ctx, d, c.Request, "deny"); err != nil {
			return Request{}, err
		}
	}
	if c.Access != nil && c.Access.active(a.now()) {
		return a.revoke(ctx, d, c, reason)
	}
	if !c.Live() {
		return Request{}, over(c.Request)
	}
	to := c.Request
	v := Verdict{Actor: d.Actor, At: a.now(), Reason: cut(reason, MaxReason), Via: d.Via}
	to.Decisions = append(slices.Clip(to.Decisions), v)
	to.State, to.Ended, to.Ending = Denied, a.now(), "denied by "+d.Actor.String()
	e := entryOf(d.Actor, to, isle.Deny, isle.ActionApprovalDecide, "denied: "+v.Reason)
	e.Result = Denied
	if d.Via != "" {
		e = e.With("vouched_by", "webhook:"+d.Via)
	}
	ch := &change{next: []next{{c, to}}, notices: []Notice{{What: Decided, Request: to}}}
	ch.entries = append(ch.entries, e)
	return to, a.commit(ctx, ch)
}

// over says what became of a request that cannot be decided about any more.
func over(r Request) error {
	switch r.State {
	case Approved:
		return isle.Errorf(isle.Conflict, "request %s is approved already, until %s", r.ID, r.Until.Format(time.RFC3339)).
			WithHint("to take that back: isle approvals deny %s", r.ID)
	case Spent:
		return isle.Errorf(isle.Conflict, "request %s was approved, and every use is used", r.ID).WithHint("who still waits does so on another request: isle approvals")
	}
	return isle.Errorf(isle.Conflict, "request %s ended: %s", r.ID, r.Ending)
}

// find finds a request by its ID. turn is held.
func (a *Approvals) find(id isle.ID) (*card, error) {
	if c := a.cards[id]; c != nil {
		return c, nil
	}
	return nil, isle.Errorf(isle.NotFound, "there is no request for approval %s", problem.Clip(string(id))).WithHint("see `isle approvals`")
}

// mayDecide says whether somebody may decide about a request. That they may not
// is recorded.
func (a *Approvals) mayDecide(ctx context.Context, d Decider, r Request, what string) error {
	var err error
	switch {
	case d.Actor.Kind != isle.Human:
		err = isle.Errorf(isle.Refused, "%s is no person: only people approve or deny", d.Actor)
	case r.Separate && (d.Actor == r.Actor || d.Actor.String() == r.Owner || slices.Contains(r.Chain, d.Actor.String())):
		err = isle.Errorf(isle.Refused, "%s may not decide about request %s: it is their own, and the rule %s asks for somebody else (separate: true)", d.Actor, r.ID, r.Rule)
	case a.cfg.May == nil:
		err = isle.Errorf(isle.Refused, "nobody may approve anything here")
	default:
		err = a.cfg.May(d, r)
	}
	if err == nil {
		return nil
	}
	return a.refused(ctx, d, r, what, err)
}

// refused records that somebody may not decide.
func (a *Approvals) refused(ctx context.Context, d Decider, r Request, what string, err error) error {
	e := entryOf(d.Actor, r, isle.Deny, isle.ActionApprovalDecide, what+": "+err.Error())
	e.Rule = "approvers of " + r.Rule
	if lerr := a.cfg.Log.Append(context.WithoutCancel(ctx), e); lerr != nil {
		a.cfg.Slog.Error("a refusal could not be recorded", "actor", d.Actor, "request", r.ID, "err", lerr)
	}
	return err
}

// List returns the requests, the oldest first: those of which something can
// still come, or all that are known.
func (a *Approvals) List(all bool) ([]Request, error) {
	if a.broken != nil {
		return nil, a.broken
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	var out []Request
	for _, c := range a.cards {
		if all || c.Live() || c.Access != nil && (c.Access.unreviewed() || c.Access.active(a.now())) {
			out = append(out, c.Request)
		}
	}
	slices.SortFunc(out, func(x, y Request) int { return cmp.Compare(x.ID, y.ID) })
	return out, nil
}

// Get returns one request.
func (a *Approvals) Get(id isle.ID) (Request, error) {
	if a.broken != nil {
		return Request{}, a.broken
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	c, err := a.find(id)
	if err != nil {
		return Request{}, err
	}
	return c.Request, nil
}
