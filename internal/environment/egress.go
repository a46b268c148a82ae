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
	// Connection says the same of a connection, by its name. There may be none
	// of that name.
	Connection(e Environment, name string) Connection
}

// A Connection is a resource behind the gateway as a policy has it for one
// environment.
type Connection struct {
	Kind  string // "" if there is none
	Stage string
	Ports []int // where it is found inside
	// Allowed says that the environment may open it, or may once a human has
	// approved.
	Allowed     bool
	Rule, Grant string
}

// An asked destination is one entry of a file's egress or uses with the answer.
type asked struct {
	spec.Egress            // of egress
	connection  Connection // of uses
	destination string     // host:port, or the name of a connection
	by          string     // the key of the file: "egress" or "uses"
	as          string     // the name of a connection inside; "": its own
	allowed     bool
	rule, grant string
}

// reason is what doors say of it.
func (a asked) reason() string {
	by := a.by
	if a.as != "" {
		by += " (as " + a.as + ")"
	}
	switch {
	case a.rule == shutReason:
		return "asked for by " + by + ": " + shutReason
	case a.by == "uses" && a.connection.Kind == "":
		return "there is no connection " + a.destination
	case a.rule == "":
		return "granted by " + by
	case a.allowed:
		return "granted by " + by + " and " + a.rule
	case a.grant == "":
		return "asked for by " + by + ", refused by policy: " + a.rule
	}
	return "asked for by " + by + ", refused by policy: " + a.rule + "; ask for the grant " + a.grant
}

// warning is what whoever launches is told of its refusal.
func (a asked) warning() string {
	if a.by == "uses" && a.connection.Kind == "" {
		return a.reason()
	}
	return a.destination + " is " + a.reason()
}

// entry is that of its refusal.
func (a asked) entry(rec Environment) audit.Entry {
	action, resource := isle.ActionEgressConnect, isle.Resource{Kind: "egress", Name: a.destination, Stage: rec.Ref.Stage}
	if a.by == "uses" {
		action, resource = isle.ActionConnectionOpen, isle.Resource{Kind: "connection", Name: a.destination, Stage: a.connection.Stage}
	}
	e := audit.NewEvent(isle.Actor{Kind: isle.Workload, Name: rec.Ref.Name + "@" + rec.Ref.Stage}, action, resource, isle.Deny, "asked for by its file").In(rec.Ref, rec.Instance)
	e.Rule = a.rule
	return e
}

// ask puts every destination of an environment's file to the policy, and every
// network that is not public and that a destination's name may resolve to: what
// is reached there is decided by whoever answers for the name.
func (m *Manager) ask(e Environment) []asked {
	out := make([]asked, 0, len(e.Spec.Egress)+len(e.Spec.Uses))
	for _, d := range e.Spec.Egress {
		a := asked{Egress: d, destination: d.Host + ":" + strconv.Itoa(d.Port), by: "egress", allowed: true}
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
	for _, name := range e.Spec.Uses {
		a := asked{destination: name, by: "uses", as: e.Spec.UsesAs[name]}
		if m.cfg.Policy != nil { // without one there are no connections
			a.connection = m.cfg.Policy.Connection(e, name)
		}
		a.allowed, a.rule, a.grant = a.connection.Allowed && a.connection.Kind != "", a.connection.Rule, a.connection.Grant
		if a.connection.Kind == "" {
			a.rule = a.reason()
		}
		out = append(out, a)
	}
	return out
}

// askOpen is ask of what is open: nothing else has doors.
func (m *Manager) askOpen(e Environment) []asked {
	if e.Opening != Open {
		return nil
	}
	return m.ask(e)
}

// granted are the doors of what is allowed.
func granted(all []asked) (g Grants) {
	for _, a := range all {
		switch {
		case !a.allowed:
		case a.by == "uses":
			g.Connections = append(g.Connections, ConnectionDoor{Name: a.destination, As: a.as, Kind: a.connection.Kind, Stage: a.connection.Stage, Ports: a.connection.Ports})
		default:
			g.Egress = append(g.Egress, a.Egress)
		}
	}
	return g
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
	var all []asked
	if !l.parted {
		all = m.askOpen(rec)
	}
	var entries []audit.Entry
	for _, a := range all {
		if a.allowed {
			delete(l.told, a.destination)
			continue
		}
		refused = append(refused, a)
		if !l.told[a.destination] {
			l.told[a.destination] = true
			entries = append(entries, a.entry(rec))
		}
	}
	if len(entries) > 0 {
		if err := m.cfg.Store.Append(ctx, entries...); err != nil {
			return nil, err
		}
	}
	grants := granted(all)
	netns, err := m.cfg.Network.Open(ctx, rec.Instance, grants)
	if err != nil {
		return nil, err
	}
	l.granted = grants
	l.mu.Lock()
	l.netns = netns
	l.mu.Unlock()
	return refused, nil
}

// part closes the doors of an instance that was put aside, or opens them again.
func (m *Manager) part(ctx context.Context, l *live, parted bool) error {
	l.opening.Lock()
	was, shut := l.parted, l.shut
	l.parted = parted
	l.opening.Unlock()
	if was == parted || shut {
		return nil
	}
	_, err := m.openNetwork(ctx, l)
	return err
}

// closeNetwork removes the airlock; nothing opens it again.
func (m *Manager) closeNetwork(ctx context.Context, l *live) error {
	l.opening.Lock()
	defer l.opening.Unlock()
	l.shut = true
	return m.cfg.Network.Close(ctx, l.instance)
}

// PolicyChanged makes the doors of every environment, and who is connected to its
// published ports, what the policy now says. Connections through a door that closes
// end. It waits for no other work.
func (m *Manager) PolicyChanged(ctx context.Context) {
	for _, l := range m.all() {
		l.revisit()
		want := granted(m.askOpen(l.snapshot()))
		l.opening.Lock()
		same := l.shut || l.parted || !l.opened() || want.equal(l.granted)
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
// those that it refuses. A door where somebody waits for an approval is held.
func (m *Manager) withPolicy(doors []Door, e Environment) []Door {
	for _, a := range m.ask(e) {
		if e.Opening != Open {
			a.allowed, a.rule, a.grant = false, shutReason, ""
		}
		i := slices.IndexFunc(doors, func(d Door) bool {
			return d.Destination == a.destination && d.Kind == a.kind() && (d.Kind == KindConnection || d.Protocol == "tcp")
		})
		switch {
		case i >= 0 && doors[i].State == "open" && a.allowed && doors[i].Reason == "granted by "+a.by:
			doors[i].Reason = a.reason()
		case i >= 0 && !a.allowed:
			doors[i].Reason = a.reason()
		case i < 0 && !a.allowed:
			protocol := "tcp"
			if a.connection.Kind != "" {
				protocol = a.connection.Kind
			}
			doors = append(doors, Door{Destination: a.destination, Kind: a.kind(), Protocol: protocol, Stage: a.connection.Stage, State: "refused", Reason: a.reason()})
		}
	}
	if m.cfg.Waiting == nil {
		return doors
	}
	waiting := m.cfg.Waiting(e.Instance)
	for i, d := range doors {
		if n := waiting[d.Destination]; d.Kind == KindConnection && d.State == "open" && n > 0 {
			doors[i].State, doors[i].Held = "held", n
		}
	}
	return doors
}

func (a asked) kind() string {
	if a.by == "uses" {
		return KindConnection
	}
	return KindEgress
}
