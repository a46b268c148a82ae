package gateway

import (
	"isle"
	"isle/internal/policy"
)

// A Caller is who opens a connection. It does not change; what may end it is
// asked of Check.
type Caller struct {
	Actor isle.Actor
	Owner string   // who answers for the actor: human:NAME
	Chain []string // on whose behalf, nearest first

	Groups []string     // of a person
	Place  policy.Place // of a workload
	Stage  string       // the session's, of a person or machine

	Ref      isle.Ref // of an environment, as Instance is
	Instance isle.ID
	Source   string  // the address of who is outside
	Key      isle.ID // of the credential that was shown

	// As is what a workload calls the connection; "": by its name.
	As string

	// Check says why the caller does not count any more; nil while it does. It is
	// cheap. nil: it always counts.
	Check func() error
	// Over is closed when Check may answer otherwise; take it before Check. nil:
	// never.
	Over func() <-chan struct{}
}

// check is Check where there is one.
func (c *Caller) check() error {
	if c.Check == nil {
		return nil
	}
	return c.Check()
}

func (c *Caller) over() <-chan struct{} {
	if c.Over == nil {
		return nil
	}
	return c.Over()
}

// key names who shares a bound of sessions.
func (c *Caller) key() string {
	if c.Instance != "" {
		return "instance " + string(c.Instance)
	}
	return c.Actor.String()
}

// query asks whether the caller may do something to a connection.
func (c *Caller) query(action isle.Action, conn *policy.Connection, facts *policy.Facts) policy.Query {
	return policy.Query{
		Actor: c.Actor, Groups: c.Groups, Place: c.Place, Stage: c.Stage,
		Action: action, Resource: resourceOf(conn), Facts: facts,
	}
}

func resourceOf(c *policy.Connection) isle.Resource {
	if c.Kind == kindEgress {
		return isle.Resource{Kind: "egress", Name: c.Name, Stage: c.Stage}
	}
	return isle.Resource{Kind: "connection", Name: c.Name, Stage: c.Stage}
}
