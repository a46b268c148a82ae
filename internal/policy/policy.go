// Package policy answers whether somebody may do something, and why.
//
// A Document is a file of policy: YAML with roles, bindings, connections and
// approvals, or hand-written Cedar. A role is a set of actions on resources; a
// binding gives a role to subjects (people, groups of the operating system,
// machines, workloads), where it says so in some stages only. Compile makes a
// Set of documents: roles become Cedar policies, bindings become membership of
// principals in roles. A Query asks; the Answer is a decision with the rule
// that decided. What nothing permits is denied; what anything forbids is
// denied whatever permits it. Some forbids are built in, and no role lifts
// them: a workload's stage must be its resource's stage, and people and
// machines act in a session of one stage at a time.
//
// The package is pure: it reads no clock, file or database, and a Set never
// changes. Room authority keeps the documents and the Set in force.
package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"isle"
)

// The formats of a Document.
const (
	YAML  = "yaml"
	Cedar = "cedar"
)

// A Document is one file of policy as it was applied.
type Document struct {
	Name    string // "main"
	Format  string // YAML or Cedar
	Version int    // counts from 1 for each name; given by the store
	Body    []byte
}

// DefaultDocument is the name of the document that a first start writes, and
// that is replaced where none is named.
const DefaultDocument = "main"

// A Position is a place in a document.
type Position struct {
	File         string
	Line, Column int
}

// String returns file:line:column.
func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// A Role is a set of actions on resources.
type Role struct {
	Name      string
	Does      string // one line, of built-in roles
	Actions   []isle.Action
	All       bool // every action, those to come as well
	Resources []Pattern
	Reason    string    // of a wildcard
	Expires   time.Time // zero: never
	Builtin   bool
	At        Position
}

// A Pattern says which resources are meant.
type Pattern struct {
	Kind    string // "environment"; "*" is every kind
	Name    string // may hold "*"; "*" is every name
	Stage   string // "" is every stage
	Project string // of environments, instead of Name
}

// String is the pattern as a file says it.
func (p Pattern) String() string {
	if p.Kind == "*" {
		return "*"
	}
	if p.Project != "" {
		if p.Stage == "" {
			return "{project: " + p.Project + "}"
		}
		return "{project: " + p.Project + ", stage: " + p.Stage + "}"
	}
	return isle.Resource{Kind: p.Kind, Name: p.Name, Stage: p.Stage}.String()
}

func (p Pattern) wild() bool {
	return p.Kind == "*" || strings.Contains(p.Name, "*") || p.Project == "*"
}

// A Subject is who a role is given to: a person, group or machine by name, or
// workloads by where they run, all that is set being required.
type Subject struct {
	Kind string // "human", "group", "machine" or "workload"
	Name string // of a person, group or machine; "*" is every one

	Project, Stage, Environment, Service string // of workloads
}

// String is the subject as a file says it.
func (s Subject) String() string {
	if s.Kind != "workload" {
		return s.Kind + ":" + s.Name
	}
	var parts []string
	for _, f := range [][2]string{{"project", s.Project}, {"stage", s.Stage}, {"name", s.Environment}, {"service", s.Service}} {
		if f[1] != "" {
			parts = append(parts, f[0]+": "+f[1])
		}
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

func (s Subject) wild() bool {
	return s.Name == "*" || s.Project == "*" || s.Environment == "*" || s.Service == "*"
}

// A Binding gives a role to subjects.
type Binding struct {
	Role     string
	Subjects []Subject
	Stages   []string // empty: every stage, and of protected ones what does not reach inside
	Reason   string
	Expires  time.Time // zero: never
	At       Position
}

// A File is what one YAML document says.
type File struct {
	Roles       []Role
	Bindings    []Binding
	Connections []Connection
	Approvals   []Approval
	Webhooks    []Webhook
	Gates       []Gate
	Keeps       []Keep
	Protected   []string // stages; nil if the document does not speak of them
	Public      []string // stages whose published ports everybody on the machine may connect to
	Stages      []string // in the order of promotion; nil if the document does not speak of it
	StagesAt    Position
}

// A Place is where a workload runs.
type Place struct {
	Project, Stage, Environment, Service string
}

// A Query asks whether an actor may do an action to a resource.
type Query struct {
	Actor  isle.Actor
	Groups []string // of a person, as the operating system has them
	Place  Place    // of a workload
	// Stage is the one that the session of a person or machine is in. Everything
	// with a stage that is done in it has to be in that one.
	Stage    string
	Action   isle.Action
	Resource isle.Resource
	Project  string // of the resource, where it has one
	Release  bool   // what is launched is a release
	// Facts are what a statement or request is, for the rules of its connection
	// and for approvals; nil of everything else.
	Facts *Facts
	Now   time.Time
}

// An Answer is a decision and its reasons.
type Answer struct {
	Decision isle.Decision
	// Rule is what decided, as it stands in the audit log: "role developer,
	// bound to group:devs".
	Rule string
	// Because is every rule that decided the same, Rule first.
	Because []string
	// Final says that no grant changes a refusal: something forbids it.
	Final bool
	// Message says more of a refusal that is built in; it may be empty.
	Message string
	// Holds are the rules that hold it, of the decision hold. Each has to be met.
	Holds []*Approval
}

// Allowed reports whether the answer is allow.
func (a Answer) Allowed() bool { return a.Decision == isle.Allow }

// stageable reports whether resources of a kind may be of a stage: those that
// always are, and releases, which are of none until they are promoted to one.
func stageable(kind string) bool { return isle.Staged(kind) || kind == "release" }

// kinds are those of resources that patterns may name.
func kinds() []string {
	var out []string
	for _, a := range isle.Actions() {
		if !a.Own && !slices.Contains(out, a.Resource) {
			out = append(out, a.Resource)
		}
	}
	return out
}

// grantable are the actions that roles may hold.
func grantable() []isle.ActionInfo {
	return slices.DeleteFunc(isle.Actions(), func(a isle.ActionInfo) bool { return a.Own })
}
