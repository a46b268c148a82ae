package approval

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/policy"
)

// Bounds of access for a time.
const (
	MaxAccess     = 24 * time.Hour
	MaxBreakGlass = time.Hour
	minAccess     = time.Minute
	// accessTimeout is how long a request for access waits.
	accessTimeout = 24 * time.Hour
)

// BreakGlass is the rule of what is done by access that was taken at once.
const BreakGlass = "break-glass"

// Keepers is the rule of access that no rule of the policy says who may approve:
// whoever may change the policy does.
const Keepers = "whoever keeps the policy"

// GrantedDocument is the name of the policy document that holds what was granted
// for a time. It is written by the server alone.
const GrantedDocument = "granted"

// An Access is what an access request asks for.
type Access struct {
	What        string         `json:"what"` // KindRole or KindDoor
	Name        string         `json:"name"` // of the role, or of the connection
	Connections []string       `json:"connections"`
	Actions     []isle.Action  `json:"actions,omitempty"` // that it lets one do
	Subject     policy.Subject `json:"subject"`
	For         time.Duration  `json:"for"`
	Until       time.Time      `json:"until,omitzero"`
	Granted     bool           `json:"granted,omitempty"` // it is in the policy now
	Glass       bool           `json:"glass,omitempty"`   // it was taken at once
	Review      *Verdict       `json:"review,omitempty"`  // of what was taken at once
}

// String says what is asked for: "role orders-reader for 1h0m0s".
func (x *Access) String() string {
	s := x.What + " " + x.Name
	if len(x.Actions) > 0 {
		var all []string
		for _, a := range x.Actions {
			all = append(all, string(a))
		}
		s += " (" + strings.Join(all, ", ") + ")"
	}
	return s + " for " + x.For.String() + ", to " + x.Subject.String()
}

// sum adds what is asked for to what Sum hashes.
func (x *Access) sum(add func(string), count func(int)) {
	if x == nil {
		count(0)
		return
	}
	count(1)
	add(x.String())
	add(x.For.String())
}

func (x *Access) unreviewed() bool          { return x.Glass && x.Review == nil }
func (x *Access) over(now time.Time) bool   { return !now.Before(x.Until) }
func (x *Access) active(now time.Time) bool { return x.Granted && !x.over(now) }

// A Granter puts what was granted in force: all that is granted now, in the
// place of what was before.
type Granter interface {
	// Check says whether that would work.
	Check(ctx context.Context, document []byte) error
	Publish(ctx context.Context, document []byte) error
}

// Request asks for access, which somebody has to approve. It returns the request
// that was made, or the one of the same kind that waits already.
func (a *Approvals) Request(ctx context.Context, r Request) (Request, error) {
	if err := a.accessible(&r, MaxAccess); err != nil {
		return Request{}, err
	}
	r.NoWait, r.Timeout, r.ValidFor, r.Uses = true, accessTimeout, time.Minute, 1
	if err := r.check(); err != nil {
		return Request{}, err
	}
	r.Hash = r.Sum()
	if err := a.take(ctx); err != nil {
		return Request{}, err
	}
	defer a.leave()
	k := key{r.Hash, r.terms()}
	c := a.waiting(k)
	if c == nil {
		var err error
		if c, err = a.begin(ctx, r, k, &waiter{deadline: a.now().Add(r.Timeout)}); err != nil {
			return Request{}, err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	to := c.Request
	to.Count++
	a.set(c, to)
	return to, nil
}

// accessible checks a request for access, and says it as a text.
func (a *Approvals) accessible(r *Request, most time.Duration) error {
	x := r.Access
	switch {
	case a.broken != nil:
		return a.broken
	case a.cfg.Grants == nil:
		return isle.Errorf(isle.Unavailable, "this server grants no access for a time")
	case x == nil || len(x.Connections) == 0:
		return isle.Errorf(isle.Internal, "a request for access to nothing")
	case x.For < minAccess || x.For > most:
		return isle.Errorf(isle.Invalid, "access for %s: want from %s to %s", x.For, minAccess, most)
	case strings.TrimSpace(r.Why) == "":
		return isle.Errorf(isle.Invalid, "why the access is needed is not said").WithHint("say it with --why: whoever decides reads it")
	}
	r.Connection, r.Kind = x.Connections[0], x.What
	r.Text, r.Shape = []byte(x.String()), cut(x.String(), MaxReason)
	return nil
}

// grant is an approved request for access as it is granted.
func (a *Approvals) grant(to Request) (Request, error) {
	access := *to.Access
	access.Until, access.Granted = a.now().Add(access.For), true
	to.Access = &access
	to.State, to.Used, to.Ended, to.Ending = Spent, 1, a.now(), "granted until "+access.Until.Format(time.RFC3339)
	document := a.document(&to)
	return to, a.cfg.Grants.Check(context.Background(), document)
}

// document is the policy document of what is granted now, and with one more.
// turn is held.
func (a *Approvals) document(more *Request) []byte {
	now := a.now()
	var all []Request
	for _, c := range a.access {
		if c.Access.active(now) {
			all = append(all, c.Request)
		}
	}
	if more != nil {
		all = append(all, *more)
	}
	slices.SortFunc(all, func(x, y Request) int { return cmp.Compare(x.ID, y.ID) })
	var roles, bindings strings.Builder
	for _, r := range all {
		x := r.Access
		role := x.Name
		if x.What == KindDoor {
			role = "door-" + string(r.ID)
			fmt.Fprintf(&roles, "  %s: {actions: [%s], resources: [%q]}\n", role, joined(x.Actions), isle.Resource{Kind: "connection", Name: x.Name, Stage: r.Stage})
		}
		stages := ", stages: [" + r.Stage + "]"
		if x.Subject.Kind == string(isle.Workload) {
			stages = "" // they are of one
		}
		fmt.Fprintf(&bindings, "  # request %s\n  - {role: %s, subjects: [%s]%s, reason: %q, expires: %s}\n",
			r.ID, role, x.Subject, stages, "request "+string(r.ID), x.Until.UTC().Truncate(time.Second).Format(time.RFC3339))
	}
	if len(all) == 0 {
		return Nothing()
	}
	var b strings.Builder
	b.WriteString(grantedHead)
	if roles.Len() > 0 {
		b.WriteString("roles:\n" + roles.String())
	}
	b.WriteString("bindings:\n" + bindings.String())
	return []byte(b.String())
}

// grantedHead begins GrantedDocument.
const grantedHead = "# What was granted for a time, by `isle approvals` and `isle break-glass`. The server\n# writes this document: what is added here by hand is lost. To end a grant:\n# isle approvals deny REQUEST\n"

// Nothing is GrantedDocument where nothing is granted.
func Nothing() []byte { return []byte(grantedHead + "{}\n") }

func joined(actions []isle.Action) string {
	var all []string
	for _, a := range actions {
		all = append(all, string(a))
	}
	return strings.Join(all, ", ")
}

// publish puts what is granted in force. turn is held.
func (a *Approvals) publish(ctx context.Context) error {
	if a.cfg.Grants == nil {
		return nil
	}
	err := a.cfg.Grants.Publish(context.WithoutCancel(ctx), a.document(nil))
	a.stale = err != nil // Run tries again
	return err
}

// Publish puts what is granted in force, after a start: the server may have died
// between the decision and that.
func (a *Approvals) Publish(ctx context.Context) error {
	if err := a.take(ctx); err != nil {
		return err
	}
	defer a.leave()
	return a.publish(ctx)
}

// Break takes access at once, which the policy lets the actor do. It is told to
// every webhook and in the server's log, and is listed until somebody else has
// reviewed it.
func (a *Approvals) Break(ctx context.Context, r Request) (Request, error) {
	if err := a.accessible(&r, MaxBreakGlass); err != nil {
		return Request{}, err
	}
	if r.Actor.Kind != isle.Human {
		return Request{}, isle.Errorf(isle.Refused, "%s is no person: only people break the glass", r.Actor).WithHint("ask for access with `isle request`")
	}
	if err := r.check(); err != nil {
		return Request{}, err
	}
	access := *r.Access
	access.Glass = true
	r.Access = &access
	r.Hash, r.Rule = r.Sum(), BreakGlass
	if err := a.take(ctx); err != nil {
		return Request{}, err
	}
	defer a.leave()
	if err := a.room(r); err != nil {
		return Request{}, err
	}
	r.ID, r.Asked, r.Count, r.Uses = isle.NewID(), a.now(), 1, 1
	r, err := a.grant(r)
	if err != nil {
		return Request{}, err
	}
	r.Expires = r.Access.Until
	c := &card{key: key{r.Hash, r.terms()}, wake: make(chan struct{})}
	e := entryOf(r.Actor, r, isle.Allow, isle.ActionAccessBreakGlass, r.Access.String()).With("until", r.Access.Until.Format(time.RFC3339))
	if err := a.commit(ctx, &change{next: []next{{c, r}}, entries: []audit.Entry{e}, notices: []Notice{{What: Broken, Request: r}}}); err != nil {
		return Request{}, err
	}
	a.cfg.Slog.Error("BREAK-GLASS: access was taken at once, and is to be reviewed", "actor", r.Actor, "access", r.Access.String(), "until", r.Access.Until, "why", r.Why, "request", r.ID)
	return r, a.publish(ctx)
}

// Reviewed says that a person has looked at access that somebody else took.
func (a *Approvals) Reviewed(ctx context.Context, d Decider, id isle.ID, reason string) (Request, error) {
	if err := a.take(ctx); err != nil {
		return Request{}, err
	}
	defer a.leave()
	c, err := a.find(id)
	if err != nil {
		return Request{}, err
	}
	if c.Access == nil || !c.Access.Glass {
		return Request{}, isle.Errorf(isle.Conflict, "request %s is no break-glass: there is nothing to review", id)
	}
	if d.Actor == c.Actor {
		return Request{}, a.refused(ctx, d, c.Request, "review", isle.Errorf(isle.Refused, "%s took this access: somebody else has to review it", d.Actor))
	}
	if err := a.mayDecide(ctx, d, c.Request, "review"); err != nil {
		return Request{}, err
	}
	if c.Access.Review != nil {
		return Request{}, isle.Errorf(isle.Conflict, "%s has reviewed it already", c.Access.Review.Actor)
	}
	to := c.Request
	access := *to.Access
	access.Review = &Verdict{Actor: d.Actor, At: a.now(), Approve: true, Reason: cut(reason, MaxReason), Via: d.Via}
	to.Access = &access
	e := entryOf(d.Actor, to, isle.Allow, isle.ActionApprovalDecide, "reviewed: "+access.Review.Reason)
	return to, a.commit(ctx, &change{next: []next{{c, to}}, entries: []audit.Entry{e}})
}

// revoke ends access before its time. turn is held.
func (a *Approvals) revoke(ctx context.Context, d Decider, c *card, reason string) (Request, error) {
	to := c.Request
	access := *to.Access
	access.Granted = false
	to.Access = &access
	to.Decisions = append(slices.Clip(to.Decisions), Verdict{Actor: d.Actor, At: a.now(), Reason: cut(reason, MaxReason), Via: d.Via})
	to.Ending = "taken back by " + d.Actor.String()
	e := entryOf(d.Actor, to, isle.Allow, isle.ActionApprovalDecide, "taken back: "+access.String())
	if err := a.commit(ctx, &change{next: []next{{c, to}}, entries: []audit.Entry{e}}); err != nil {
		return Request{}, err
	}
	return to, a.publish(ctx)
}

// broke is the access that a request's actor took at once to its connection, and
// by which nobody has to be asked; nil if there is none.
func (a *Approvals) broke(r Request) *card {
	now := a.now()
	for _, c := range a.access {
		if x := c.Access; x.Glass && x.What == KindDoor && x.active(now) && c.Actor == r.Actor && x.Name == r.Connection && c.Stage == r.Stage {
			return c
		}
	}
	return nil
}

// useBroken is a use of access that was taken at once.
func (a *Approvals) useBroken(ctx context.Context, r Request, c *card) (Use, error) {
	if r.Still != nil {
		if err := r.Still(); err != nil {
			return Use{}, err
		}
	}
	r.ID = c.ID
	e := entryOf(r.Actor, r, isle.Allow, r.Actions[0], r.Estimate).With("instead_of", r.Rule)
	e.Kind, e.Result, e.Rule = audit.Intent, "", BreakGlass
	if err := a.cfg.Log.Append(context.WithoutCancel(ctx), e); err != nil {
		return Use{}, err
	}
	return Use{a: a, intent: e, id: c.ID, rule: BreakGlass}, nil
}
