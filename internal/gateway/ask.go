package gateway

import (
	"context"
	"slices"
	"time"

	"isle"
	"isle/internal/approval"
	"isle/internal/audit"
	"isle/internal/policy"
	"isle/internal/session"
)

// An Ask is one statement or request that a protocol wants to pass.
type Ask struct {
	// Facts are what it is. Decisions are remembered by this pointer.
	Facts *policy.Facts
	// Text is it, exactly: what an approval is bound to.
	Text []byte
	// More gives the rest of the text, where a human has to see it: a body that
	// otherwise passes without being kept. It may be nil.
	More   func() ([]byte, error)
	Params []approval.Param
	// Record is what a recording may hold of Text; nil: all of it.
	Record []byte
	// Context is what else makes out its meaning: database, role, search_path.
	Context []approval.Pair
	// InWrite says that its transaction has written: others wait for its locks, so
	// a hold lasts a minute at most.
	InWrite bool
	// Waiting is called each time that it begins to wait for a human; an error
	// ends the waiting. It may be nil.
	Waiting func(approval.Request) error
	// Estimate says for the approver how much it would do: "about 120 rows". It
	// has a few seconds. It may be nil.
	Estimate func(ctx context.Context) string
	// Quiet says that the protocol itself records what passes, and its outcome.
	// Refusals, holds and what came of these are recorded here all the same.
	Quiet bool
	// Prepare says that nothing is done yet: only what policy refuses outright is
	// refused. It is asked again, without, before it is done.
	Prepare bool
}

const (
	inWriteHold   = time.Minute
	estimateLimit = 5 * time.Second
)

// A Pass lets one statement or request through. Done must be called.
type Pass struct {
	door  *Door
	rule  string
	uses  []approval.Use
	quiet bool
	began time.Time // zero where quiet
}

// Rule is what allowed it.
func (p Pass) Rule() string { return p.rule }

// Approval is the request for approval that a human granted; "" where none was
// needed.
func (p Pass) Approval() isle.ID {
	if len(p.uses) == 0 {
		return ""
	}
	return p.uses[0].Approval()
}

// Done says what became of it: "DELETE 3", "error 23505", or audit.Unknown where
// nobody can tell. Of what was approved that is durable when Done returns.
func (p Pass) Done(outcome string, rows int64) {
	if p.door == nil {
		return
	}
	for _, u := range p.uses {
		p.door.done(u, outcome)
	}
	if p.quiet {
		return
	}
	// Where it can't be recorded the session ends by itself: what passed has passed.
	_ = p.door.session.Record(session.Event{Kind: session.Result, Tag: outcome, Rows: rows, Took: time.Since(p.began)})
}

// recorded is what a recording holds of what is asked.
func (a Ask) recorded() []byte {
	if a.Record != nil {
		return a.Record
	}
	return a.Text
}

// Ask says whether one statement or request may pass, and returns once it may.
// What changes something is in the audit log by then. The error is isle.Refused
// where policy or a human says no; isle.Held where it awaits a human and is not
// to wait, or nobody decided in time; isle.Unavailable where the log or the store
// is away, and where the session has ended: nothing may pass.
func (d *Door) Ask(ctx context.Context, a Ask) (Pass, error) {
	v, err := d.verdict(a.Facts)
	if err != nil {
		return Pass{}, err
	}
	if v.decision == isle.Deny {
		return Pass{}, d.refuse(a, v)
	}
	if a.Prepare {
		return Pass{}, nil
	}
	pass := Pass{door: d, rule: v.rule, quiet: a.Quiet}
	if v.decision == isle.Hold {
		if a.More != nil {
			more, err := a.More()
			if err != nil {
				return Pass{}, err
			}
			a.Text = append(slices.Clip(a.Text), more...)
		}
		if pass.uses, err = d.hold(ctx, a, v); err != nil {
			return Pass{}, err
		}
		pass.rule = pass.uses[0].Rule()
	}
	if v.changes {
		if err := d.writeDown(ctx, a, v, &pass); err != nil {
			pass.Done("not done", 0)
			return Pass{}, err
		}
	}
	if a.Quiet {
		return pass, nil
	}
	pass.began = time.Now()
	err = d.session.Record(session.Event{Kind: session.Statement, Text: a.recorded(), Shape: a.Facts.Shape, Decision: isle.Allow, Rule: pass.rule, Approval: pass.Approval()})
	if err != nil {
		d.end(err)
		pass.quiet = true
		pass.Done("not done", 0)
		return Pass{}, err
	}
	return pass, nil
}

// writeDown makes the entry of what is about to change something durable. It
// holds no literals: the shape, and the hash of the exact text.
func (d *Door) writeDown(ctx context.Context, a Ask, v *verdict, p *Pass) error {
	e := d.entry(v.action, isle.Allow, a.Facts, a.Text)
	e.Rule = p.rule
	if id := p.Approval(); id != "" {
		e = e.With("approval", string(id))
	}
	if err := d.gateway.config.Log.Append(ctx, e); err != nil {
		if ctx.Err() != nil {
			return contextCause(ctx)
		}
		return isle.Errorf(isle.Unavailable, "connection %s: it could not be written to the audit log, so it is not done: %w", d.connection.Name, err)
	}
	return nil
}

// entry is one about this caller and this connection.
func (d *Door) entry(action isle.Action, decision isle.Decision, f *policy.Facts, text []byte) audit.Entry {
	summary := ""
	if f != nil {
		summary = f.Shape
	}
	e := audit.NewEvent(d.caller.Actor, action, resourceOf(&d.connection), decision, summary)
	e.OnBehalfOf = d.behalf
	if d.caller.Instance != "" {
		e = e.In(d.caller.Ref, d.caller.Instance)
		e.Sessions = d.gateway.config.Inside(d.caller.Instance, time.Now())
	}
	details := make(map[string]string, 4)
	if d.session != nil {
		details["session"] = string(d.session.ID())
	}
	if d.caller.Source != "" {
		details["source"] = d.caller.Source
	}
	if text != nil {
		details["hash"] = string(isle.DigestOf(text))
	}
	e.Details = details
	return e
}

// refuse says no, and writes that down.
func (d *Door) refuse(a Ask, v *verdict) error {
	p := d.gateway.config.Policy
	q := d.caller.query(v.action, &d.connection, a.Facts)
	q.Now = p.Now()
	err := refusalOf(p.State().Set, q, v.answer)
	if a.Facts != nil && a.Facts.Uncertain != "" {
		err.Message += "; it counts as the most that it could be, for it can't be read with certainty: " + a.Facts.Uncertain
	}
	d.refusal(v.action, v.rule, a.Facts, a.Text)
	ev := session.Event{Kind: session.Refused, Text: a.recorded(), Decision: isle.Deny, Rule: v.rule, Error: err.Message}
	if a.Facts != nil {
		ev.Shape = a.Facts.Shape
	}
	if rerr := d.session.Record(ev); rerr != nil {
		d.end(rerr)
	}
	return err
}

// Refuse writes down what the protocol refuses by itself, with the rule that it
// has for that, as Ask does with what policy refuses.
func (d *Door) Refuse(a Ask, rule string, err error) {
	action := d.opening()
	for _, other := range a.Facts.Actions {
		if gravity(other) > gravity(action) {
			action = other
		}
	}
	d.refusal(action, rule, a.Facts, a.Text)
	e := session.Event{Kind: session.Refused, Text: a.recorded(), Shape: a.Facts.Shape, Decision: isle.Deny, Rule: rule, Error: err.Error()}
	if err := d.session.Record(e); err != nil {
		d.end(err)
	}
}

// refusal writes down that something was refused, within the caller's share.
func (d *Door) refusal(action isle.Action, rule string, f *policy.Facts, text []byte) {
	e := d.entry(action, isle.Deny, f, text)
	e.Rule = rule
	cfg := &d.gateway.config
	if cfg.Refused != nil {
		cfg.Refused(e)
		return
	}
	if err := cfg.Log.Append(context.WithoutCancel(d.ctx), e); err != nil {
		cfg.Slog.Error("gateway: a refusal could not be recorded", "actor", e.Actor, "action", action, "resource", e.Resource, "err", err)
	}
}

// refusalOf is a refusal for whoever asked.
func refusalOf(set *policy.Set, q policy.Query, a policy.Answer) *isle.Error {
	err := isle.Errorf(isle.Refused, "%s may not %s %s: %s", q.Actor, q.Action, q.Resource, a.Rule)
	switch {
	case a.Message != "":
		return err.WithHint("%s", a.Message)
	case a.Final:
		return err.WithHint("no role lifts this")
	}
	if grant := set.Grant(q); grant != "" {
		return err.WithHint("ask whoever keeps the policy for the binding %s", grant)
	}
	return err.WithHint("ask whoever keeps the policy")
}

// contextCause is why a context ended.
func contextCause(ctx context.Context) error { return context.Cause(ctx) }
