package gateway

import (
	"context"
	"net"
	"reflect"
	"slices"

	"isle"
	"isle/internal/approval"
	"isle/internal/policy"
	"isle/internal/session"
)

// hold waits until a human has approved under every rule that holds it, and
// returns with a use of each, spent.
func (d *Door) hold(ctx context.Context, a Ask, v *verdict) (uses []approval.Use, err error) {
	estimate := ""
	if a.Estimate != nil {
		few, cancel := context.WithTimeout(ctx, estimateLimit)
		estimate = a.Estimate(few)
		cancel()
	}
	for _, rule := range v.holds {
		r := d.request(rule)
		r.Actions, r.Text, r.Params, r.Context, r.Shape, r.Estimate = a.Facts.Actions, a.Text, a.Params, a.Context, a.Facts.Shape, estimate
		if a.InWrite {
			r.Timeout = min(r.Timeout, inWriteHold)
		}
		// Right before a use is spent, the policy is asked again: a while has passed.
		r.Still = func() error { return d.still(a, v) }
		use, err := d.acquire(ctx, r, func(r approval.Request) error {
			err := d.session.Record(session.Event{Kind: session.Holding, Text: a.recorded(), Shape: a.Facts.Shape, Decision: isle.Hold, Rule: rule.String(), Approval: r.ID})
			if err == nil && a.Waiting != nil {
				err = a.Waiting(r)
			}
			return err
		})
		if err != nil {
			for _, u := range uses {
				d.done(u, "not done: another approval that it needs was not given")
			}
			kind := session.Denied
			if rerr := d.session.Record(session.Event{Kind: kind, Shape: a.Facts.Shape, Decision: isle.Deny, Rule: rule.String(), Error: err.Error()}); rerr != nil {
				d.end(rerr)
			}
			return nil, err
		}
		uses = append(uses, use)
		if err := d.session.Record(session.Event{Kind: session.Approved, Shape: a.Facts.Shape, Decision: isle.Allow, Rule: use.Rule(), Approval: use.Approval()}); err != nil {
			d.end(err)
			for _, u := range uses {
				d.done(u, "not done")
			}
			return nil, err
		}
	}
	return uses, nil
}

// still reports whether what was held is held by the same rules as then.
func (d *Door) still(a Ask, was *verdict) error {
	v, err := d.verdict(a.Facts)
	if err != nil {
		return err
	}
	if v.decision == isle.Deny {
		return d.refuse(a, v)
	}
	if v != was && !sameHolds(v.holds, was.holds) {
		return isle.Errorf(isle.Refused, "the policy has changed since it was asked").WithHint("do it again: it is decided anew")
	}
	return nil
}

// sameHolds reports whether two lists of rules ask for the same. Where they
// stand in a file means nothing.
func sameHolds(a, b []*policy.Approval) bool {
	return slices.EqualFunc(a, b, func(a, b *policy.Approval) bool {
		x, y := *a, *b
		x.At, y.At = policy.Position{}, policy.Position{}
		return reflect.DeepEqual(x, y)
	})
}

// namesOf are the rules' names.
func namesOf(holds []*policy.Approval) (out []string) {
	for _, h := range holds {
		out = append(out, h.String())
	}
	return out
}

// approved has a human approve, under each of the rules, that the door is
// opened. It returns what the log says it was opened by.
func (d *Door) approved(client net.Conn, holds []*policy.Approval) (rule string, err error) {
	if len(holds) == 0 {
		return "", isle.Errorf(isle.Refused, "connection %s is held, and no rule says by whom", d.name)
	}
	ctx, stop := untilGone(d.ctx, client)
	defer stop()
	var uses []approval.Use
	outcome := "not opened"
	defer func() {
		for _, u := range uses {
			d.done(u, outcome)
		}
	}()
	for _, h := range holds {
		r := d.request(h)
		r.Actions, r.Text = []isle.Action{d.opening()}, []byte(d.what())
		u, err := d.acquire(ctx, r, nil)
		if err != nil {
			return "", err
		}
		uses = append(uses, u)
	}
	outcome = "opened"
	return uses[0].Rule(), nil
}

// done records the outcome of what was approved.
func (d *Door) done(u approval.Use, outcome string) {
	if err := u.Done(outcome); err != nil {
		d.gateway.config.Slog.Error("gateway: the outcome of an approved action could not be recorded; the next start closes it as unknown", "approval", u.Approval(), "err", err)
	}
}

// acquire waits for an approval, as long as the door may be open.
func (d *Door) acquire(ctx context.Context, r approval.Request, waiting func(approval.Request) error) (approval.Use, error) {
	if d.gateway.config.Approvals == nil {
		return approval.Use{}, isle.Errorf(isle.Refused, "%s has to be approved by a human, and this server asks none: %s", r.Connection, r.Rule)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(d.ctx, func() { cancel(context.Cause(d.ctx)) })()
	d.waiting.Add(1)
	defer d.waiting.Add(-1)
	return d.gateway.config.Approvals.Acquire(ctx, r, waiting)
}
