package approval

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"isle"
	"isle/internal/allowance"
	"isle/internal/audit"
)

// asking is how often one identity may begin a request: each is an entry of the
// log when it begins and another when it ends.
var asking = allowance.Rate{Burst: MaxEach, Every: time.Second}

// maxAskers is how many identities that have asked lately are told apart; the
// others have one share together.
const maxAskers = 2000

// A Use is one use of an approval, spent.
type Use struct {
	a      *Approvals
	intent audit.Entry
	id     isle.ID
	rule   string
}

// Approval is the request that was approved.
func (u Use) Approval() isle.ID { return u.id }

// Rule is what the log says it was done by.
func (u Use) Rule() string { return u.rule }

// Done records what became of it: "UPDATE 3", "error 23505", or audit.Unknown
// where nobody can say. It returns when that is durable. A use without it is
// closed as unknown when the server starts again.
func (u Use) Done(outcome string) error {
	if u.a == nil {
		return nil
	}
	e := u.intent.Outcome(nil)
	e.Summary = cut(outcome, MaxReason)
	if outcome == "" || outcome == audit.Unknown {
		e.Result, e.Summary = audit.Unknown, ""
	} else if strings.HasPrefix(outcome, "error") {
		e.Result = string(isle.Failed)
	}
	return u.a.cfg.Log.Append(context.Background(), e)
}

// Acquire returns once the request may be done, this once: with a use of an
// approval of just this, under just these terms, spent durably. One that is
// there is used at once. Else the request waits on a card of its like, until
// somebody decides, its Timeout is over, or ctx is done; the last who goes
// withdraws the card. waiting, where it is set, is called each time that it
// begins to wait on a card (a second time where others used up what was
// approved); an error from it ends the waiting.
//
// The error is isle.Refused where somebody denied it, or the policy changed;
// isle.Held at once where the request says NoWait, or after Timeout; its message
// has the ID. Where the store is away it is isle.Unavailable, and nothing may be
// done. Where ctx is done first it is ctx's cause.
func (a *Approvals) Acquire(ctx context.Context, r Request, waiting func(Request) error) (Use, error) {
	if a.broken != nil {
		return Use{}, a.broken
	}
	if err := r.check(); err != nil {
		return Use{}, err
	}
	r.Hash = r.Sum()
	k := key{r.Hash, r.terms()}
	w := &waiter{deadline: a.now().Add(r.Timeout)}
	timer := time.NewTimer(r.Timeout)
	defer timer.Stop()
	var on standing
	for {
		use, next, err := a.step(ctx, r, k, w, on.card)
		if err != nil || use.a != nil {
			return use, err
		}
		begins := next.card != on.card
		if on = next; begins {
			if err := began(r, on.request, waiting); err != nil {
				a.quit(w, on.card, Withdrawn, "whoever asked does not wait")
				return Use{}, err
			}
		}
		select {
		case <-on.wake:
		case <-ctx.Done():
			a.quit(w, on.card, Withdrawn, "whoever asked went away")
			return Use{}, context.Cause(ctx)
		case <-timer.C:
			return a.late(ctx, r, k, w, on)
		}
	}
}

// late is the last look of who has waited as long as they may: an approval that
// came in that moment counts.
func (a *Approvals) late(ctx context.Context, r Request, k key, w *waiter, on standing) (Use, error) {
	if err := a.take(ctx); err == nil {
		g := a.granted(k)
		a.leave()
		if g != nil {
			use, next, err := a.step(ctx, r, k, w, on.card)
			if err != nil || use.a != nil {
				return use, err
			}
			on = next
		}
	}
	a.quit(w, on.card, Expired, "nobody decided in time")
	return Use{}, isle.Errorf(isle.Held, "nobody approved request %s within %s", on.request.ID, r.Timeout).
		WithHint("ask one of %s, and do it again", approversText(r.Approvers))
}

// began tells that a request has begun to wait.
func began(r, asked Request, waiting func(Request) error) error {
	if r.NoWait {
		return isle.Errorf(isle.Held, "it awaits approval: request %s, until %s", asked.ID, asked.Expires.Format(time.RFC3339)).
			WithHint("do just the same again once one of %s has approved it with `isle approvals approve %s`", approversText(r.Approvers), asked.ID)
	}
	if waiting == nil {
		return nil
	}
	return waiting(asked)
}

// A standing is where somebody waits.
type standing struct {
	card    *card
	request Request
	wake    <-chan struct{}
}

// step spends a use for w, or has it wait on a card.
func (a *Approvals) step(ctx context.Context, r Request, k key, w *waiter, on *card) (Use, standing, error) {
	if err := a.take(ctx); err != nil {
		if on != nil {
			a.quit(w, on, Withdrawn, "whoever asked went away")
		}
		return Use{}, standing{}, err
	}
	defer a.leave()
	if on != nil && !on.Live() && on.State != Spent && on.State != Expired {
		return Use{}, standing{}, ending(on.Request)
	}
	if g := a.broke(r); g != nil {
		use, err := a.useBroken(ctx, r, g)
		a.part(w, on, Withdrawn, "whoever asked took access at once")
		return use, standing{}, err
	}
	if g := a.granted(k); g != nil {
		place := slices.Index(g.waiters, w)
		if place < 0 {
			place = len(g.waiters)
		}
		if place < g.Uses-g.Used {
			use, err := a.spend(ctx, r, g)
			a.part(w, on, Withdrawn, "whoever asked has an earlier approval")
			return use, standing{}, err
		}
	}
	c := a.waiting(k)
	if c == nil {
		var err error
		if c, err = a.begin(ctx, r, k, w); err != nil {
			a.part(w, on, Withdrawn, "whoever asked went away")
			return Use{}, standing{}, err
		}
	}
	if c != on {
		if len(c.waiters) >= maxWaiters {
			return Use{}, standing{}, isle.Errorf(isle.Exhausted, "%d wait for request %s already", len(c.waiters), c.ID).WithHint("wait until somebody has decided")
		}
		a.part(w, on, Withdrawn, "whoever asked waits on another card")
		a.join(r, w, c)
	}
	return Use{}, standing{c, c.Request, c.wake}, nil
}

// ending is the error for who waited on a card that has ended.
func ending(r Request) error {
	if r.State == Denied {
		for _, v := range slices.Backward(r.Decisions) {
			if v.Approve {
				continue
			}
			why := "without a reason"
			if v.Reason != "" {
				why = v.Reason
			}
			return isle.Errorf(isle.Refused, "%s denied request %s: %s", v.Actor, r.ID, why)
		}
	}
	return isle.Errorf(isle.Refused, "request %s for approval ended: %s", r.ID, r.Ending).WithHint("do it again to ask again")
}

// granted is the approved card of a key that has uses left; nil if there is
// none. turn is held, as by those below.
func (a *Approvals) granted(k key) *card {
	now := a.now()
	for _, c := range a.live[k] {
		if c.State == Approved && c.Used < c.Uses && now.Before(c.Until) {
			return c
		}
	}
	return nil
}

func (a *Approvals) waiting(k key) *card {
	now := a.now()
	for _, c := range a.live[k] {
		if c.State == Pending && now.Before(c.Expires) {
			return c
		}
	}
	return nil
}

// spend uses an approval once.
func (a *Approvals) spend(ctx context.Context, r Request, g *card) (Use, error) {
	if r.Still != nil {
		if err := r.Still(); err != nil {
			return Use{}, err
		}
	}
	if err := a.cfg.Stands(g.Request); err != nil {
		return Use{}, isle.Errorf(isle.Refused, "what was approved as request %s holds no more: %w", g.ID, err)
	}
	to := g.Request
	to.Used++
	var by []string
	for _, v := range to.Decisions {
		if v.Approve {
			by = append(by, v.Actor.String())
		}
	}
	now := r
	now.ID, now.Count = g.ID, 1
	e := entryOf(r.Actor, now, isle.Allow, r.Actions[0], r.Estimate).With("approved_by", strings.Join(by, ", ")).
		With("use", strconv.Itoa(to.Used)+" of "+strconv.Itoa(to.Uses))
	e.Kind, e.Result = audit.Intent, ""
	if to.Used == to.Uses {
		to.State, to.Ended, to.Ending = Spent, a.now(), "every use is used"
	}
	a.cfg.Fault("approval.spending")
	if err := a.commit(ctx, &change{next: []next{{g, to}}, entries: []audit.Entry{e}}); err != nil {
		return Use{}, err
	}
	a.cfg.Fault("approval.spent")
	return Use{a: a, intent: e, id: g.ID, rule: to.Rule}, nil
}

// begin makes a card that waits, and forgets what has ended long ago.
func (a *Approvals) begin(ctx context.Context, r Request, k key, w *waiter) (*card, error) {
	if err := a.room(r); err != nil {
		return nil, err
	}
	r.ID, r.Asked, r.State, r.Count, r.Used = isle.NewID(), a.now(), Pending, 0, 0
	r.Expires = w.deadline
	r.Decisions, r.Until, r.Ended, r.Ending = nil, time.Time{}, time.Time{}, ""
	r.Still = nil // it is the asker's own, and a card is of many
	r.Text, r.Actions, r.Context = slices.Clone(r.Text), slices.Clone(r.Actions), slices.Clone(r.Context)
	r.Params = slices.Clone(r.Params) // the asker's memory is its own: a card is shown as it was hashed
	for i := range r.Params {
		r.Params[i].Value = slices.Clone(r.Params[i].Value)
	}
	if err := a.cfg.Stands(r); err != nil {
		return nil, isle.Errorf(isle.Refused, "nobody can be asked: %w", err)
	}
	e := entryOf(r.Actor, r, isle.Hold, r.Actions[0], r.Estimate).With("approvers", approversText(r.Approvers)).With("text_bytes", strconv.Itoa(len(r.Text)))
	e.Result = string(isle.Held)
	c := &card{key: k, wake: make(chan struct{})}
	ch := &change{next: []next{{c, r}}, entries: []audit.Entry{e}, remove: a.forgotten(), notices: []Notice{{What: Asked, Request: r}}}
	if err := a.commit(ctx, ch); err != nil {
		return nil, err
	}
	return c, nil
}

// room says whether another request may begin.
func (a *Approvals) room(r Request) error {
	total, own, bytes, ownBytes := 0, 0, r.size(), r.size()
	for _, l := range a.live {
		for _, c := range l {
			if c.State != Pending {
				continue
			}
			total, bytes = total+1, bytes+c.size()
			if c.Actor == r.Actor {
				own, ownBytes = own+1, ownBytes+c.size()
			}
		}
	}
	full := func(format string, args ...any) error {
		return isle.Errorf(isle.Exhausted, format, args...).WithHint("wait until somebody has decided about them: isle approvals")
	}
	switch {
	case own >= MaxEach || ownBytes > maxTextEach:
		return full("%s has %d requests for approval open, as many as it may", r.Actor, own)
	case total >= MaxPending || bytes > maxTextTotal:
		return full("%d requests for approval are open, as many as there may be", total)
	}
	if !a.asks.Take(r.Actor.String(), a.now()) {
		return isle.Errorf(isle.Exhausted, "%s asks for approval more often than it may", r.Actor).WithHint("wait some seconds")
	}
	return nil
}

// forgotten are requests that ended so long ago, or with so many after them,
// that only the audit log knows them still. A change has some of them.
func (a *Approvals) forgotten() []isle.ID {
	var ended []*card
	for _, c := range a.cards {
		if !c.Live() && (c.Access == nil || !c.Access.unreviewed() && !c.Access.Granted) {
			ended = append(ended, c)
		}
	}
	slices.SortFunc(ended, func(x, y *card) int { return cmp.Compare(x.ID, y.ID) })
	var out []isle.ID
	old := a.now().Add(-keepEnded)
	for i, c := range ended {
		if len(out) == 100 || len(ended)-i <= maxEnded && c.Ended.After(old) {
			break
		}
		out = append(out, c.ID)
	}
	return out
}

// join has w wait on a card, which waits as long as the last who does.
func (a *Approvals) join(r Request, w *waiter, c *card) {
	if w.place == 0 {
		a.asked++
		w.place = a.asked
	}
	i, _ := slices.BinarySearchFunc(c.waiters, w.place, func(o *waiter, place uint64) int { return cmp.Compare(o.place, place) })
	c.waiters = slices.Insert(c.waiters, i, w)
	a.mu.Lock()
	defer a.mu.Unlock()
	to := c.Request
	to.Count++
	if r.NoWait {
		to.NoWait = true // it stays when nobody waits
	} else if w.deadline.After(to.Expires) {
		to.Expires = w.deadline
	}
	a.set(c, to)
}

// part has w wait on a card no more, and ends the card if it was the last. A
// store that is away is no reason to wait: Run tries again.
func (a *Approvals) part(w *waiter, c *card, state, why string) {
	if c == nil {
		return
	}
	c.waiters = slices.DeleteFunc(c.waiters, func(o *waiter) bool { return o == w })
	switch {
	case c.State == Approved:
		// A use that it does not take may be for who waits on the card after.
		a.mu.Lock()
		for _, o := range a.live[c.key] {
			close(o.wake)
			o.wake = make(chan struct{})
		}
		a.mu.Unlock()
	case c.State == Pending && len(c.waiters) == 0 && !c.NoWait:
		var ch change
		ch.end(a, c, state, why)
		if err := a.commit(context.Background(), &ch); err != nil {
			a.cfg.Slog.Error("a request for approval that nobody waits for could not be ended; it is tried again", "request", c.ID, "err", err)
		}
	}
}

// quit is part for who has not the turn.
func (a *Approvals) quit(w *waiter, c *card, state, why string) {
	a.turn <- struct{}{}
	defer a.leave()
	a.part(w, c, state, why)
}

// approversText names who may decide.
func approversText(approvers []string) string {
	if len(approvers) == 0 {
		return "nobody"
	}
	return strings.Join(approvers, ", ")
}
