package gateway

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/authority"
	"isle/internal/policy"
)

// A standing is what a door may under one policy, until one of its grants ends.
type standing struct {
	state *authority.State
	until time.Time // zero: no grant ends

	mu       sync.Mutex // guards verdicts
	verdicts map[*policy.Facts]*verdict
}

// maxVerdicts is how many decisions a standing remembers before it forgets all.
const maxVerdicts = 512

// A verdict is the answer about facts. It does not change.
type verdict struct {
	decision isle.Decision
	action   isle.Action // of allow and hold the gravest; of deny the one that is
	rule     string
	answer   policy.Answer      // of deny
	holds    []*policy.Approval // each of which has to be given
	changes  bool               // something, so an entry comes before it
}

// gravity orders actions by what they can do.
func gravity(a isle.Action) int {
	switch a {
	case isle.ActionConnectionOpen, isle.ActionEgressConnect:
		return 0
	case isle.ActionPostgresSelect, isle.ActionHTTPRead:
		return 1
	case isle.ActionPostgresWrite, isle.ActionHTTPWrite:
		return 2
	case isle.ActionPostgresSchema:
		return 3
	}
	return 4
}

// unknownFacts is the rule of what a protocol asks without saying what it is.
const unknownFacts = "built in: what it does is not known"

// decide answers about facts under the standing's policy: each of their actions
// has to be allowed, and whatever holds any holds all.
func (s *standing) decide(c *Caller, conn *policy.Connection, f *policy.Facts, now time.Time) *verdict {
	v := &verdict{decision: isle.Allow, rule: unknownFacts}
	if f == nil || len(f.Actions) == 0 {
		return &verdict{decision: isle.Deny, action: isle.ActionConnectionOpen, rule: unknownFacts, answer: policy.Answer{Decision: isle.Deny, Rule: unknownFacts, Final: true}}
	}
	actions := slices.SortedStableFunc(slices.Values(f.Actions), func(a, b isle.Action) int { return cmp.Compare(gravity(b), gravity(a)) })
	for i, action := range actions {
		q := c.query(action, conn, f)
		q.Now = now
		decide := s.state.Set.Decide
		if conn.Kind == kindEgress {
			decide = s.state.Set.DecideRequest
		}
		a := decide(q)
		switch a.Decision {
		case isle.Allow:
		case isle.Hold:
			v.decision = isle.Hold
			for _, h := range a.Holds {
				if !slices.Contains(v.holds, h) {
					v.holds = append(v.holds, h)
				}
			}
		default:
			return &verdict{decision: isle.Deny, action: action, rule: a.Rule, answer: a}
		}
		if i == 0 {
			v.action, v.rule = action, a.Rule
		}
		v.changes = v.changes || gravity(action) > 1
	}
	if v.decision == isle.Hold && len(v.holds) == 0 {
		return &verdict{decision: isle.Deny, action: v.action, rule: v.rule, answer: policy.Answer{Decision: isle.Deny, Rule: v.rule, Final: true, Message: "it is held, and no rule says by whom"}}
	}
	return v
}

// verdict is the answer about facts now.
func (d *Door) verdict(f *policy.Facts) (*verdict, error) {
	s, err := d.current()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	v := s.verdicts[f]
	s.mu.Unlock()
	if v != nil {
		return v, nil
	}
	v = s.decide(&d.caller, &d.connection, f, d.gateway.config.Policy.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.verdicts == nil || len(s.verdicts) >= maxVerdicts {
		s.verdicts = map[*policy.Facts]*verdict{}
	}
	s.verdicts[f] = v
	return v, nil
}

// current is the standing as of now. The error is why the door may be open no
// longer, and then it ends.
func (d *Door) current() (*standing, error) {
	if d.ctx.Err() != nil {
		return nil, d.cause()
	}
	if over := d.over.Load(); over != nil {
		select {
		case <-*over:
			if err := d.caller.check(); err != nil {
				d.end(err)
				return nil, d.cause()
			}
		default:
		}
	}
	p := d.gateway.config.Policy
	if s := d.standing.Load(); s.state == p.State() && (s.until.IsZero() || p.Now().Before(s.until)) {
		return s, nil
	}
	d.deciding.Lock()
	defer d.deciding.Unlock()
	s, err := d.stand(p.State(), p.Now())
	if err != nil {
		d.end(err)
		return nil, d.cause()
	}
	d.standing.Store(s)
	return s, nil
}

// stand asks again whether the door may be open, and to the same thing.
func (d *Door) stand(state *authority.State, now time.Time) (*standing, error) {
	conn, ok := d.find(state.Set)
	if !ok {
		return nil, isle.Errorf(isle.Refused, "connection %s was removed", d.name)
	}
	if !same(conn, d.connection) {
		return nil, isle.Errorf(isle.Unavailable, "connection %s was changed", d.name).WithHint("connect again")
	}
	q := d.caller.query(d.opening(), &d.connection, nil)
	q.Now = now
	a := state.Set.Decide(q)
	switch {
	case a.Allowed():
	case a.Decision == isle.Hold && len(d.opened) > 0 && sameHolds(d.opened, a.Holds):
	case a.Decision == isle.Hold:
		return nil, isle.Errorf(isle.Held, "connection %s: to have it open needs a human's approval now: %s", d.name, strings.Join(namesOf(a.Holds), ", ")).WithHint("connect again, and wait for it")
	default:
		return nil, refusalOf(state.Set, q, a)
	}
	return &standing{state: state, until: state.Set.NextExpiry(now)}, nil
}

// cause is why the door ended.
func (d *Door) cause() error {
	err := contextCause(d.ctx)
	if isle.CodeOf(err) == isle.Internal {
		return isle.Errorf(isle.Unavailable, "connection %s: the session has ended", d.name)
	}
	return err
}
