package environment

import (
	"context"
	"slices"
	"strconv"

	"isle"
	"isle/internal/audit"
	"isle/internal/spec"
)

// A Policy says what environments may have of what their files ask for.
type Policy interface {
	// Egress says whether an environment may reach a destination, by which rule,
	// and, where it may not, which grant would let it.
	Egress(e Environment, destination string) (allowed bool, rule, grant string)
}

// An asked destination is one entry of a file's egress with the answer.
type asked struct {
	spec.Egress
	destination string // host:port
	allowed     bool
	rule, grant string
}

// reason is what doors say of it.
func (a asked) reason() string {
	switch {
	case a.rule == "":
		return "granted by egress"
	case a.allowed:
		return "granted by egress and " + a.rule
	case a.grant == "":
		return "asked for by egress, refused by policy: " + a.rule
	}
	return "asked for by egress, refused by policy: " + a.rule + "; ask for the grant " + a.grant
}

// ask puts every destination of an environment's file to the policy, and every
// network that is not public and that a destination's name may resolve to: what
// is reached there is decided by whoever answers for the name.
func (m *Manager) ask(e Environment) []asked {
	out := make([]asked, 0, len(e.Spec.Egress))
	for _, d := range e.Spec.Egress {
		a := asked{Egress: d, destination: d.Host + ":" + strconv.Itoa(d.Port), allowed: true}
		if m.cfg.Policy != nil {
			a.allowed, a.rule, a.grant = m.cfg.Policy.Egress(e, a.destination)
			for _, network := range d.Addresses {
				if allowed, rule, grant := m.cfg.Policy.Egress(e, network+":"+strconv.Itoa(d.Port)); a.allowed && !allowed {
					a.allowed, a.rule, a.grant = false, "the network "+network+": "+rule, grant
				}
			}
		}
		out = append(out, a)
	}
	return out
}

// openNetwork opens the airlock for what the policy grants of what the file
// asks for, and records what it refuses, each once.
func (m *Manager) openNetwork(ctx context.Context, l *live) (refused []asked, err error) {
	l.opening.Lock()
	defer l.opening.Unlock()
	if l.shut {
		return nil, isle.Errorf(isle.Conflict, "environment %s is being torn down", l.ref)
	}
	rec := l.snapshot()
	var granted []spec.Egress
	var entries []audit.Entry
	for _, a := range m.ask(rec) {
		if a.allowed {
			granted = append(granted, a.Egress)
			delete(l.told, a.destination)
			continue
		}
		refused = append(refused, a)
		if !l.told[a.destination] {
			l.told[a.destination] = true
			e := audit.NewEvent(isle.Actor{Kind: isle.Workload, Name: rec.Ref.Name + "@" + rec.Ref.Stage}, isle.ActionEgressConnect,
				isle.Resource{Kind: "egress", Name: a.destination, Stage: rec.Ref.Stage}, isle.Deny, "asked for by its file").In(rec.Ref, rec.Instance)
			e.Rule = a.rule
			entries = append(entries, e)
		}
	}
	if len(entries) > 0 {
		if err := m.cfg.Store.Append(ctx, entries...); err != nil {
			return nil, err
		}
	}
	netns, err := m.cfg.Network.Open(ctx, rec.Instance, granted)
	if err != nil {
		return nil, err
	}
	l.granted = granted
	l.mu.Lock()
	l.netns = netns
	l.mu.Unlock()
	return refused, nil
}

// closeNetwork removes the airlock; nothing opens it again.
func (m *Manager) closeNetwork(ctx context.Context, l *live) error {
	l.opening.Lock()
	defer l.opening.Unlock()
	l.shut = true
	return m.cfg.Network.Close(ctx, l.instance)
}

// PolicyChanged makes the doors of every environment what the policy now says.
// Connections through a door that closes end. It waits for no other work.
func (m *Manager) PolicyChanged(ctx context.Context) {
	for _, l := range m.all() {
		rec := l.snapshot()
		var want []spec.Egress
		for _, a := range m.ask(rec) {
			if a.allowed {
				want = append(want, a.Egress)
			}
		}
		l.opening.Lock()
		same := l.shut || !l.opened() || slices.EqualFunc(want, l.granted, func(a, b spec.Egress) bool {
			return a.Host == b.Host && a.Port == b.Port && slices.Equal(a.Addresses, b.Addresses)
		})
		l.opening.Unlock()
		if same {
			continue
		}
		if _, err := m.openNetwork(ctx, l); err != nil && isle.CodeOf(err) != isle.Conflict {
			m.cfg.Log.Error("an environment's doors could not be changed", "environment", l.ref, "error", err)
		}
	}
}

// opened reports whether the airlock was opened by this server.
func (l *live) opened() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.netns != ""
}

// withPolicy adds to doors what policy says of them: by what they are open, and
// those that it refuses.
func (m *Manager) withPolicy(doors []Door, e Environment) []Door {
	for _, a := range m.ask(e) {
		i := slices.IndexFunc(doors, func(d Door) bool { return d.Destination == a.destination && d.Protocol == "tcp" })
		switch {
		case i >= 0 && doors[i].State == "open" && a.allowed && doors[i].Reason == "granted by egress":
			doors[i].Reason = a.reason()
		case i >= 0 && !a.allowed:
			doors[i].Reason = a.reason()
		case i < 0 && !a.allowed:
			doors = append(doors, Door{Destination: a.destination, Protocol: "tcp", State: "refused", Reason: a.reason()})
		}
	}
	return doors
}
