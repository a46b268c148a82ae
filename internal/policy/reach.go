package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"isle"
)

// A Reach is what the environment of a project in a stage may do through its
// doors, and where they lead: what somebody agrees to who lets a release into
// the stage. It is of what the policy says, whatever was tried, so that two of
// different times can be compared. It holds no secret, but the names of secrets.
type Reach struct {
	Doors []Door `json:"doors,omitempty"` // in the order of their names
}

// A Door is one of a Reach.
type Door struct {
	Name string   `json:"name"`           // "connection:orders-db", "egress:api.example.com:443"
	May  []string `json:"may,omitempty"`  // actions that are allowed, in order
	Asks []string `json:"asks,omitempty"` // actions that are allowed once people have agreed, each time
	// Terms are how the connection is defined, and by which rules people are asked:
	// each as text, or where that is long the hash of it.
	Terms map[string]string `json:"terms,omitempty"`

	by map[string]string // the rule that allows an action, where the Reach was just made
}

// An EgressDoor is a destination that an environment asks for.
type EgressDoor struct {
	Destination string // host:port
	// Networks are those that are not public and that its name may resolve to: each
	// has to be allowed too.
	Networks []string
	Inspect  bool // requests are read, and policy speaks of each
}

// A ReachChange is one thing that differs between two Reaches.
type ReachChange struct {
	Role    bool   // what may be done; otherwise where a door leads, and how
	Message string // for people: "connection:orders-db: postgres:write is allowed (role …), and was refused"
	// Detail is what it was and is, of a term that is text, for those who may read
	// the policy: "db.internal:5432 -> db2.internal:5432".
	Detail string
}

// maxTerm bounds a term that is kept as text, in bytes.
const maxTerm = 200

// Reach is that of the environment PROJECT@STAGE by this policy.
func (s *Set) Reach(project, stage string, uses []string, egress []EgressDoor, now time.Time) Reach {
	q := Query{
		Actor: isle.Actor{Kind: isle.Workload, Name: project + "@" + stage},
		Place: Place{Project: project, Stage: stage, Environment: project},
		Now:   now,
	}
	var out Reach
	for _, name := range slices.Compact(slices.Sorted(slices.Values(uses))) {
		c, ok := s.Connection(name)
		d := Door{Name: "connection:" + name}
		if !ok { // nothing may be done
			out.Doors = append(out.Doors, d)
			continue
		}
		q.Resource = isle.Resource{Kind: "connection", Name: name, Stage: c.Stage}
		actions := []isle.Action{isle.ActionConnectionOpen}
		switch c.Kind {
		case "postgres":
			actions = append(actions, isle.ActionPostgresSelect, isle.ActionPostgresWrite, isle.ActionPostgresSchema, isle.ActionPostgresAdmin)
		case "http":
			actions = append(actions, isle.ActionHTTPRead, isle.ActionHTTPWrite)
		}
		d.Terms = c.terms()
		s.ask(&d, q, actions, s.Decide)
		s.asks(&d, q, actions)
		out.Doors = append(out.Doors, d)
	}
	for _, e := range egress {
		d := Door{Name: "egress:" + e.Destination, Terms: map[string]string{}}
		q.Resource = isle.Resource{Kind: "egress", Name: e.Destination, Stage: stage}
		s.ask(&d, q, []isle.Action{isle.ActionEgressConnect}, s.within(e))
		if e.Inspect {
			s.ask(&d, q, []isle.Action{isle.ActionHTTPRead, isle.ActionHTTPWrite}, s.DecideRequest)
		}
		s.asks(&d, q, []isle.Action{isle.ActionEgressConnect, isle.ActionHTTPRead, isle.ActionHTTPWrite})
		out.Doors = append(out.Doors, d)
	}
	slices.SortStableFunc(out.Doors, func(a, b Door) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// within decides about a destination and its networks: the first that is not
// allowed decides.
func (s *Set) within(e EgressDoor) func(Query) Answer {
	_, port, _ := net.SplitHostPort(e.Destination)
	return func(q Query) Answer {
		a := s.Decide(q)
		for _, network := range e.Networks {
			if q.Resource.Name = network + ":" + port; a.Allowed() {
				a = s.Decide(q)
			}
		}
		return a
	}
}

// ask finds out what may be done at a door.
func (s *Set) ask(d *Door, q Query, actions []isle.Action, decide func(Query) Answer) {
	if d.by == nil {
		d.by = map[string]string{}
	}
	for _, q.Action = range actions {
		a := decide(q)
		switch {
		case a.Allowed():
			d.May = append(d.May, string(q.Action))
		case a.Decision == isle.Hold:
			d.Asks = append(d.Asks, string(q.Action))
		}
		d.by[string(q.Action)] = a.Rule
	}
}

// asks adds the rules by which people are asked at a door, those too that are of
// some statements or requests alone.
func (s *Set) asks(d *Door, q Query, actions []isle.Action) {
	var rules []Approval
	for _, a := range s.approvals {
		if slices.ContainsFunc(a.Actions, func(x isle.Action) bool { return slices.Contains(actions, x) }) &&
			slices.ContainsFunc(a.Resources, func(p Pattern) bool { return s.matches(p, q) }) {
			a.At, a.Notify = Position{}, nil
			rules = append(rules, a)
		}
	}
	if len(rules) > 0 {
		d.Terms["approvals"] = term(rules)
	}
}

// terms are how a connection is defined.
func (c Connection) terms() map[string]string {
	out := map[string]string{"kind": c.Kind}
	set := func(name, value string) {
		if value != "" {
			out[name] = short(value)
		}
	}
	address := c.Address
	if c.Environment != "" {
		address = "service " + c.Service + " of environment " + c.Environment
		if c.Port != 0 {
			address += ", port " + strconv.Itoa(c.Port)
		}
	}
	set("address", address)
	set("stage", c.Stage)
	set("database", c.Database)
	switch {
	case c.TLS.Off:
		set("tls", "off")
	case c.TLS != TLS{}:
		set("tls", strings.TrimSpace(strings.Join([]string{c.TLS.Name, hash(c.TLS.CA)}, " ")))
	}
	if k := c.Credential; k.Kind != "" {
		parts := []string{k.Kind, "of secret " + k.Secret}
		for _, p := range [][2]string{{"as user", k.User}, {"in header", k.Header}, {"from", k.TokenURL}, {"as client", k.ClientID}, {"with scopes", strings.Join(k.Scopes, " ")}} {
			if p[1] != "" {
				parts = append(parts, p[0]+" "+p[1])
			}
		}
		set("credential", strings.Join(parts, " "))
	}
	if c.ReadOnly {
		set("read_only", "true")
	}
	if c.StatementTimeout != 0 {
		set("statement_timeout", c.StatementTimeout.String())
	}
	if c.Limits != (HTTPLimits{}) {
		set("limits", term(c.Limits))
	}
	rules, masks := slices.Clone(c.Rules), slices.Clone(c.Mask)
	for i := range rules {
		rules[i].At, rules[i].Reason = Position{}, ""
	}
	for i := range masks {
		masks[i].At = Position{}
	}
	for _, l := range []struct {
		name string
		n    int
		v    any
	}{{"rules", len(rules), rules}, {"mask", len(masks), masks}, {"functions", len(c.Functions), c.Functions}, {"detect", len(c.Detect), c.Detect}} {
		if l.n > 0 {
			set(l.name, term(l.v))
		}
	}
	return out
}

// term is a value as a term: always its hash, since nobody reads its JSON.
func term(v any) string {
	b, err := json.Marshal(v)
	if err != nil { // they are plain values
		return err.Error()
	}
	return hash(string(b))
}

func short(s string) string {
	if len(s) > maxTerm {
		return hash(s)
	}
	return s
}

func hash(s string) string {
	if s == "" {
		return ""
	}
	return string(isle.DigestOf([]byte(s)))
}

// Changes are what differs from a Reach of before to this one, in the order of
// the doors.
func (r Reach) Changes(was Reach) (out []ReachChange) {
	names := map[string][2]Door{}
	for _, d := range was.Doors {
		names[d.Name] = [2]Door{d, {}}
	}
	for _, d := range r.Doors {
		names[d.Name] = [2]Door{names[d.Name][0], d}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		out = append(out, names[name][1].changes(name, names[name][0])...)
	}
	return out
}

func (d Door) changes(name string, was Door) (out []ReachChange) {
	for _, action := range slices.Compact(slices.Sorted(slices.Values(slices.Concat(d.May, d.Asks, was.May, was.Asks)))) {
		before, now := was.state(action), d.state(action)
		if before == now {
			continue
		}
		if rule := d.by[action]; rule != "" {
			now += " (" + rule + ")"
		}
		before = ", and was " + before
		if was.Name == "" {
			before = ", by a door that is new"
		}
		out = append(out, ReachChange{Role: true, Message: fmt.Sprintf("%s: %s is %s%s", name, action, now, before)})
	}
	if was.Name == "" || d.Name == "" { // the file asks for another door
		return out
	}
	if before, now := was.Terms["kind"], d.Terms["kind"]; before != now && (before == "" || now == "") && strings.HasPrefix(name, "connection:") {
		text := "there is none, and was one"
		if before == "" {
			text = "there is one, and was none"
		}
		return append(out, ReachChange{Message: name + ": " + text})
	}
	for _, t := range slices.Compact(slices.Sorted(slices.Values(slices.Concat(slices.Collect(maps.Keys(d.Terms)), slices.Collect(maps.Keys(was.Terms)))))) {
		before, now := was.Terms[t], d.Terms[t]
		if before == now {
			continue
		}
		c := ReachChange{Message: fmt.Sprintf("%s: %s differs from what it was", name, t)}
		if !isle.Digest(before).Valid() && !isle.Digest(now).Valid() {
			c.Detail = orNothing(before) + " -> " + orNothing(now)
		}
		out = append(out, c)
	}
	return out
}

// state is how an action stands, for people.
func (d Door) state(action string) string {
	switch {
	case slices.Contains(d.May, action):
		return "allowed"
	case slices.Contains(d.Asks, action):
		return "asked of people"
	}
	return "refused"
}

func orNothing(s string) string {
	if s == "" {
		return "(none)"
	}
	return s
}

// Lines are a Reach for people, a door each: "connection:orders-db may
// connection:open, postgres:select". Where doors lead is not in them.
func (r Reach) Lines() (out []string) {
	for _, d := range r.Doors {
		line := d.Name
		switch {
		case len(d.May)+len(d.Asks) == 0:
			line += " is closed"
		case len(d.May) > 0:
			line += " may " + strings.Join(d.May, ", ")
		}
		if len(d.Asks) > 0 {
			line += ", asks people for " + strings.Join(d.Asks, ", ")
		}
		out = append(out, line)
	}
	return out
}

// Digest is the hash of a Reach, "" of one without doors.
func (r Reach) Digest() isle.Digest {
	b, err := json.Marshal(r)
	if err != nil || len(r.Doors) == 0 { // they are plain values
		return ""
	}
	return isle.DigestOf(b)
}
