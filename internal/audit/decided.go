package audit

import (
	"context"
	"sync"

	"isle"
)

// decisions are what was allowed in one call, and by which rules: entries of
// what it then does name the rule although whoever writes them decided nothing.
type decisions struct {
	mu   sync.Mutex // guards list
	list []decision
}

type decision struct {
	actor    isle.Actor
	action   isle.Action
	resource isle.Resource
	rule     string
}

type decisionsKey struct{}

// maxDecisions bounds what a call remembers; one that asks about more writes
// entries without a rule for the rest.
const maxDecisions = 1024

// WithDecisions returns the context of a call, in which Allowed is remembered.
func WithDecisions(ctx context.Context) context.Context {
	return context.WithValue(ctx, decisionsKey{}, &decisions{})
}

// Allowed says by which rule a call may do something. The last word counts.
func Allowed(ctx context.Context, actor isle.Actor, action isle.Action, resource isle.Resource, rule string) {
	d, ok := ctx.Value(decisionsKey{}).(*decisions)
	if !ok {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, o := range d.list {
		if o.actor == actor && o.action == action && o.resource == resource {
			d.list[i].rule = rule
			return
		}
	}
	if len(d.list) < maxDecisions {
		d.list = append(d.list, decision{actor, action, resource, rule})
	}
}

// Carry returns to with what from remembers: for work that outlasts its call.
func Carry(to, from context.Context) context.Context {
	if d, ok := from.Value(decisionsKey{}).(*decisions); ok {
		return context.WithValue(to, decisionsKey{}, d)
	}
	return to
}

// Explained returns the entry with the rule that allowed what it is about, where
// it names none and the call that ctx is of was decided.
func (e Entry) Explained(ctx context.Context) Entry {
	d, ok := ctx.Value(decisionsKey{}).(*decisions)
	if !ok || e.Rule != "" || e.Decision != isle.Allow {
		return e
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	e.Rule = d.rule(e)
	return e
}

// Explained is that of many. Whoever stores entries calls it.
func Explained(ctx context.Context, entries []Entry) []Entry {
	out := make([]Entry, len(entries))
	for i, e := range entries {
		out[i] = e.Explained(ctx)
	}
	return out
}

// rule is what allowed e: the decision about its resource, or about the
// environment that the resource is of, or the only one about its action. mu is held.
func (d *decisions) rule(e Entry) string {
	only, n := "", 0
	for _, o := range d.list {
		if o.actor != e.Actor || o.action != e.Action {
			continue
		}
		if o.resource == e.Resource || e.Environment != "" && e.Environment == o.resource.Name+"@"+o.resource.Stage {
			return o.rule
		}
		only, n = o.rule, n+1
	}
	if n == 1 {
		return only
	}
	return ""
}
