package policy

import (
	"maps"
	"slices"
	"strings"
	"time"

	"isle"
)

// A Connection is a resource behind the gateway: where it is, how the gateway
// proves itself to it, and what may be done through it beside what roles say.
type Connection struct {
	Name string
	Kind string // "postgres", "http", "tcp"
	// Address is host:port of the real thing; "" where it is the service of
	// another environment, of the same stage.
	Address              string
	Environment, Service string
	Port                 int // of the service; 0 is the kind's
	Database             string
	Stage                string
	TLS                  TLS
	Credential           Credential
	ReadOnly             bool          // nothing that changes something passes
	StatementTimeout     time.Duration // of postgres, 0: the role's own; of http that of a request, 0: none
	Rules                []Rule
	Functions            []string // that are allowed beside the harmless built-in ones
	Mask                 []Mask
	Detect               []string // "card", "iban", "token": looked for in what is not masked
	Results              bool     // recordings hold what was answered, masked
	Limits               HTTPLimits
	At                   Position
}

// TLS says how the gateway speaks to the real thing.
type TLS struct {
	Off  bool
	CA   string // PEM; "": the system's
	Name string // in the certificate; "": the address' host
}

// A Credential is what the gateway shows to the real thing. It names a secret,
// whose value never is in a policy.
type Credential struct {
	Kind     string // "password", "certificate", "header", "bearer", "basic", "oauth"; "": none
	User     string
	Secret   string
	Header   string   // of kind header
	TokenURL string   // of kind oauth, as ClientID and Scopes: RFC 6749, section 4.4
	ClientID string   // the secret is the client's
	Scopes   []string // may be empty
}

// HTTPLimits bound requests. Zero is the gateway's own bound.
type HTTPLimits struct {
	PerSecond      float64 // requests of one caller
	Burst          int
	Body, Response int64 // bytes
}

// A Mask says how a column, or a field of JSON, leaves a connection.
type Mask struct {
	Column string   // "customers.email", "shop.customers.email"; of http "$.customer.email"
	Show   string   // "full", "partial", "hash", "null", "type"
	Allow  []string // what may be done with it beside plain output: "filter", "order", "group", "aggregate"
	At     Position
}

// A Rule denies, or allows what the gateway refuses by itself, whatever roles
// say. It grants nothing.
type Rule struct {
	Effect string // "deny" or "allow"
	Match  Match
	Reason string
	At     Position
}

// A Match says which statements or requests are meant. All that is set has to
// fit; a list fits if one of its members does. Names may hold "*".
type Match struct {
	Statements []string // "select", "delete", "ddl"
	Tables     []string // "orders", "public.orders"
	Columns    []string // "customers.email"
	Functions  []string
	Where      *bool // of an UPDATE or DELETE: whether it has a WHERE
	Methods    []string
	Paths      []string
	Hosts      []string
	Headers    map[string]string
}

// An Approval says which actions wait for a human.
type Approval struct {
	Actions   []isle.Action
	Resources []Pattern
	When      Match
	Approvers []string      // "role:NAME", "human:NAME", "group:NAME"
	Timeout   time.Duration // how long a request waits; default 15 minutes
	ValidFor  time.Duration // how long an approval holds, from when it is given; default 10 minutes
	Uses      int           // how often; default 1
	Quorum    int           // how many people have to approve; default 1
	Separate  bool          // who owns what asks may not approve
	NoWait    bool          // hold: error; the client is told at once to come again
	Notify    []string      // webhooks
	At        Position
}

// A Webhook is told of what waits.
type Webhook struct {
	Name, URL string
	Secret    string   // the name of the one that signs
	Format    string   // "isle", "slack"
	Approvers []string // whose decisions it may bring back: "human:NAME"; empty: nobody's
	Addresses []string // networks that its host may resolve to though they are not public
	At        Position
}

// Facts are what one statement or request is, for rules to speak of. They never
// change. What can't be read with certainty says so, and then every rule that
// denies or holds fits it.
type Facts struct {
	Actions    []isle.Action // each of them has to be allowed
	Statements []string
	Tables     []string // with their schema where the text has it
	Columns    []string // "table.column" where it can be told, else "column"
	Functions  []string
	Unbounded  bool   // an UPDATE or DELETE without WHERE, or TRUNCATE
	Uncertain  string // why it can't be read with certainty; "" if it was
	Shape      string // the text without literals and comments, for entries

	Method, Path, Host string
	Headers            map[string]string // lower-case names
}

// Whether a match means facts: those of a rule that stops something fit if any
// part of the statement is meant, those of a rule that lets something pass only
// if every part is.
const (
	anyPart  = false
	allParts = true
)

func (m Match) fits(f *Facts, all bool) bool {
	if f.Uncertain != "" {
		return !all
	}
	if m.Where != nil && *m.Where == f.Unbounded {
		return false
	}
	if m.Where != nil && *m.Where && !slices.ContainsFunc(f.Statements, func(s string) bool { return s == "update" || s == "delete" }) {
		return false
	}
	for name, value := range m.Headers {
		if have, ok := f.Headers[strings.ToLower(name)]; !ok || !glob(value, have) {
			return false
		}
	}
	same := func(pattern, name string) bool { return glob(pattern, name) }
	fold := func(pattern, name string) bool { return glob(strings.ToLower(pattern), strings.ToLower(name)) }
	named := func(pattern, name string) bool { return qualified(pattern, name, all) }
	return fit(m.Statements, f.Statements, all, fold) && fit(m.Tables, f.Tables, all, named) &&
		fit(m.Columns, f.Columns, all, named) && fit(m.Functions, f.Functions, all, named) &&
		fit(m.Methods, one(f.Method), all, fold) && fit(m.Paths, one(f.Path), all, same) && fit(m.Hosts, one(f.Host), all, fold)
}

func one(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// fit reports whether some, or all, of what is there is meant.
func fit(patterns, there []string, all bool, same func(pattern, name string) bool) bool {
	if len(patterns) == 0 {
		return true
	}
	meant := func(name string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool { return same(p, name) })
	}
	if all {
		return len(there) > 0 && !slices.ContainsFunc(there, func(name string) bool { return !meant(name) })
	}
	return slices.ContainsFunc(there, meant)
}

// qualified compares names of which either may have more parts before the last:
// where it is not exact, what one leaves out could be what the other says.
func qualified(pattern, name string, exact bool) bool {
	if glob(pattern, name) {
		return true
	}
	if exact {
		return false
	}
	pattern, name = known(pattern), known(name)
	if glob(pattern, name) {
		return true
	}
	p, n := strings.Split(pattern, "."), strings.Split(name, ".")
	if n[len(n)-1] == "*" { // a whole row is each of its columns
		p, n = p[:len(p)-1], n[:len(n)-1]
	} else if len(p) == len(n) {
		return false
	}
	short := min(len(p), len(n))
	return glob(strings.Join(p[len(p)-short:], "."), strings.Join(n[len(n)-short:], "."))
}

// known is a name as far as PostgreSQL knows it: without its case, which counts in
// quotes only, and of each part the first 63 bytes (NAMEDATALEN). A rule that stops
// something may stop what is called almost so, and must not miss what it means.
func known(name string) string {
	parts := strings.Split(strings.ToLower(name), ".")
	for i, p := range parts {
		if len(p) > 63 && !strings.Contains(p, "*") {
			parts[i] = strings.ToValidUTF8(p[:63], "")
		}
	}
	return strings.Join(parts, ".")
}

const unbounded = "built in: no write without WHERE"

// judge applies a connection's rules, and approvals, to what roles allow.
func (s *Set) judge(q Query, a *Answer) {
	deny := func(rule, message string) {
		*a = Answer{Decision: isle.Deny, Rule: rule, Because: []string{rule}, Final: true, Message: message}
	}
	lifted := false
	if c, ok := s.connections[q.Resource.Name]; ok && q.Resource.Kind == "connection" {
		switch q.Action {
		case isle.ActionPostgresWrite, isle.ActionPostgresSchema, isle.ActionPostgresAdmin, isle.ActionHTTPWrite:
			if c.ReadOnly {
				deny("connection "+c.Name+" is read-only", "connection "+c.Name+" is read-only")
				return
			}
		}
		if q.Facts != nil {
			for _, r := range c.Rules {
				switch {
				case r.Effect == "deny" && r.Match.fits(q.Facts, anyPart):
					message := r.Reason
					if message == "" {
						message = "a rule of connection " + c.Name + " denies it"
					}
					deny("connection "+c.Name+", rule at "+r.At.String(), message)
					return
				case r.Effect == "allow" && r.Match.fits(q.Facts, allParts):
					lifted = true
				}
			}
		}
	}
	held := s.heldBy(q)
	if q.Facts != nil && q.Facts.Unbounded && !lifted && !slices.ContainsFunc(held, func(a *Approval) bool { return a.When.Where != nil && !*a.When.Where }) {
		deny(unbounded, "it changes every row of a table: it is an UPDATE or DELETE without WHERE, or a TRUNCATE; say which rows, or have a rule of the connection with effect: allow")
		return
	}
	if len(held) > 0 {
		a.Decision, a.Holds = isle.Hold, held
		a.Message = "a human has to approve it: " + held[0].String()
	}
}

// String names the rule as it stands in the audit log.
func (a *Approval) String() string { return "approval at " + a.At.String() }

// DecideRequest is Decide for a request to an egress destination that is
// inspected. Where an environment may connect it may ask for anything, unless
// something forbids it; what waits for a human waits. That it connects was
// approved when it did, where that has to be, and is not asked of each request.
func (s *Set) DecideRequest(q Query) Answer {
	a := s.Decide(q)
	if a.Decision != isle.Deny || a.Final {
		return a
	}
	connect := q
	connect.Action = isle.ActionEgressConnect
	a = s.Decide(connect)
	if a.Decision == isle.Hold {
		a.Holds = slices.DeleteFunc(slices.Clone(a.Holds), func(h *Approval) bool { return h.When.empty() })
		if len(a.Holds) == 0 {
			a.Decision, a.Message = isle.Allow, ""
		}
	}
	if a.Decision != isle.Deny {
		also := a.Holds
		if s.judge(q, &a); a.Decision == isle.Hold {
			for _, h := range also {
				if !slices.Contains(a.Holds, h) {
					a.Holds = append(a.Holds, h)
				}
			}
		}
	}
	return a
}

// heldBy are the approvals that a query waits for, in the order of the files.
func (s *Set) heldBy(q Query) (held []*Approval) {
	for i := range s.approvals {
		a := &s.approvals[i]
		if !slices.Contains(a.Actions, q.Action) || !slices.ContainsFunc(a.Resources, func(p Pattern) bool { return s.matches(p, q) }) {
			continue
		}
		if q.Facts != nil && a.When.fits(q.Facts, anyPart) || q.Facts == nil && a.When.empty() {
			held = append(held, a)
		}
	}
	return held
}

// empty reports whether the match means everything.
func (m Match) empty() bool {
	return len(m.Statements)+len(m.Tables)+len(m.Columns)+len(m.Functions)+len(m.Methods)+len(m.Paths)+len(m.Hosts)+len(m.Headers) == 0 && m.Where == nil
}

// Connection returns one by name.
func (s *Set) Connection(name string) (Connection, bool) {
	c, ok := s.connections[name]
	return c, ok
}

// Lifts reports whether an allow rule of the connection lets something pass that
// is refused without: a write without WHERE, or a use of a masked column.
func (c Connection) Lifts(f *Facts) bool {
	return f != nil && slices.ContainsFunc(c.Rules, func(r Rule) bool { return r.Effect == "allow" && r.Match.fits(f, allParts) })
}

// Connections returns those of all documents, by name.
func (s *Set) Connections() []Connection {
	return slices.SortedFunc(maps.Values(s.connections), func(a, b Connection) int { return strings.Compare(a.Name, b.Name) })
}

// Webhook returns one by name.
func (s *Set) Webhook(name string) (Webhook, bool) {
	w, ok := s.webhooks[name]
	return w, ok
}
