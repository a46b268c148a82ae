// Package approval lets a human decide before something is done.
//
// A Request says who wants to do what, where and why, with the exact bytes and
// everything that changes their meaning; its Hash covers all of that, and an
// approver approves that hash. Requests that are equal, by the same identity and
// under the same rule, share one card with the count of who waits. An approval
// holds for some time, counted from when it is given, and for some uses. A Use is
// spent durably, with its audit entry, before what was approved is done; if the
// server dies before its outcome is known, the outcome is unknown and nothing is
// done again.
//
// Where more wait than an approval has uses for, the first of them get those,
// in the order in which they asked. The others go on waiting, on a new card: an
// approval covers what it was given for and no more.
//
// An access request asks for a role or a door for a time; a break-glass takes it
// at once and is listed until somebody else has reviewed it. A webhook tells
// people elsewhere, and may bring their answer back.
package approval

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"
	"unicode/utf8"

	"isle"
)

// Bounds of requests.
const (
	MaxText      = 1 << 20   // bytes of a request's text
	MaxParams    = 512 << 10 // bytes of all parameters
	MaxContext   = 64 << 10  // bytes of all of its context
	MaxReason    = 1 << 10   // bytes of a reason, of why something is wanted and of an estimate
	paramWeight  = 48        // what a parameter counts for beside its bytes
	MaxPending   = 10_000    // requests that wait at once
	MaxEach      = 100       // of them, of one identity
	maxTextTotal = 64 << 20  // bytes of text and parameters of all that wait
	maxTextEach  = 8 << 20   // of them, of one identity
	maxWaiters   = 1000      // on one card
	maxEnded     = 5000      // requests that have ended and are still listed
	keepEnded    = 30 * 24 * time.Hour
)

// A Param is a parameter of a statement.
type Param struct {
	Type   string `json:"type"` // "int4"; the OID as text where the name is unknown
	Value  []byte `json:"value,omitempty"`
	Null   bool   `json:"null,omitempty"`
	Binary bool   `json:"binary,omitempty"` // Value is in the binary format
}

// A Pair is a setting that changes what a text means.
type Pair struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// The states of a request.
const (
	Pending   = "pending"
	Approved  = "approved"
	Denied    = "denied"
	Expired   = "expired"   // nobody decided in time, or nobody used it in time
	Withdrawn = "withdrawn" // who asked went away, or policy changed
	Spent     = "spent"     // every use is used
)

// The kinds of request that are no statement or request of a connection's.
const (
	KindRole = "role" // access: Connection is the role's name
	KindDoor = "door" // access: Connection is the connection's
)

// A Request is what somebody wants to do, and what became of that.
type Request struct {
	ID      isle.ID   `json:"id"`
	Asked   time.Time `json:"asked"`
	Expires time.Time `json:"expires"` // of waiting; what is approved ends at Until

	Actor    isle.Actor `json:"actor"`
	Owner    string     `json:"owner,omitempty"` // human:NAME, who answers for the actor
	Chain    []string   `json:"chain,omitempty"` // on whose behalf, nearest first
	Ref      isle.Ref   `json:"ref"`             // of an environment
	Instance isle.ID    `json:"instance,omitempty"`
	Session  isle.ID    `json:"session,omitempty"`
	Source   string     `json:"source,omitempty"` // the address of who is outside

	Connection string `json:"connection"`
	Kind       string `json:"kind"` // "postgres", "http", or a Kind above
	Stage      string `json:"stage"`
	Address    string `json:"address,omitempty"`
	Database   string `json:"database,omitempty"`
	Role       string `json:"role,omitempty"` // of the database

	Actions  []isle.Action `json:"actions"`
	Rule     string        `json:"rule"`
	Text     []byte        `json:"-"` // exact and complete; nil once the request has ended
	Params   []Param       `json:"-"` // as Text
	Context  []Pair        `json:"context,omitempty"`
	Shape    string        `json:"shape,omitempty"` // the text without literals
	Estimate string        `json:"estimate,omitempty"`
	Why      string        `json:"why,omitempty"`
	Hash     isle.Digest   `json:"hash"`

	Approvers []string      `json:"approvers"` // role:NAME, human:NAME, group:NAME
	Quorum    int           `json:"quorum"`    // how many people; at least 1
	Separate  bool          `json:"separate,omitempty"`
	NoWait    bool          `json:"no_wait,omitempty"` // answered at once, and asked again by the client
	Timeout   time.Duration `json:"timeout"`
	ValidFor  time.Duration `json:"valid_for"`
	Uses      int           `json:"uses"`
	Used      int           `json:"used,omitempty"`
	Count     int           `json:"count"` // of who asked for the same
	State     string        `json:"state"`
	Decisions []Verdict     `json:"decisions,omitempty"`
	Until     time.Time     `json:"until,omitzero"` // of what is approved
	Ended     time.Time     `json:"ended,omitzero"`
	Ending    string        `json:"ending,omitempty"` // why it ended
	Notify    []string      `json:"notify,omitempty"`

	Access *Access `json:"access,omitempty"` // of an access request

	// Still, where it is set, is asked right before a use is spent whether the
	// caller may still do it. An error is the answer.
	Still func() error `json:"-"`
}

// A Verdict is one person's answer.
type Verdict struct {
	Actor   isle.Actor `json:"actor"`
	At      time.Time  `json:"at"`
	Approve bool       `json:"approve"`
	Reason  string     `json:"reason,omitempty"`
	Via     string     `json:"via,omitempty"` // the webhook that vouches for the actor
}

// Live reports whether something can still come of the request.
func (r Request) Live() bool { return r.State == Pending || r.State == Approved }

// Egress is the kind of a request to a destination outside that is inspected,
// which is no connection of the policy's: its resource is egress:HOST:PORT.
const Egress = "egress"

// Resource is what the request is done to.
func (r Request) Resource() isle.Resource {
	kind := "connection"
	switch {
	case r.Kind == KindRelease:
		kind = "release"
	case r.Kind == Egress && r.Access == nil:
		kind = Egress
	}
	return isle.Resource{Kind: kind, Name: r.Connection, Stage: r.Stage}
}

// Resources are those that a request is about: one, or all connections that a
// role for a time would open.
func (r Request) Resources() []isle.Resource {
	if r.Access == nil || r.Kind == KindRelease {
		return []isle.Resource{r.Resource()}
	}
	out := make([]isle.Resource, len(r.Access.Connections))
	for i, name := range r.Access.Connections {
		out[i] = isle.Resource{Kind: "connection", Name: name, Stage: r.Stage}
	}
	return out
}

// sumVersion heads what Sum hashes. Another one makes every hash another.
const sumVersion = "isle approval request v1\n"

// Sum is the hash of everything that makes a request what it is: SHA-256 over a
// heading and then, each with its length before it (big-endian uint32; lists
// with their number), kind, connection, stage, address, database, role, actor,
// owner, environment, instance, actions, text, parameters with type, format and
// null, and context in the order of its keys. Time, session, source and rule are
// no part of it: the same asked again is the same.
func (r Request) Sum() isle.Digest {
	b := []byte(sumVersion)
	count := func(n int) { b = binary.BigEndian.AppendUint32(b, uint32(n)) }
	add := func(s string) { count(len(s)); b = append(b, s...) }
	for _, s := range []string{
		r.Kind, r.Connection, r.Stage, r.Address, r.Database, r.Role,
		string(r.Actor.Kind), r.Actor.Name, r.Owner, r.Ref.Name, r.Ref.Stage, string(r.Instance),
	} {
		add(s)
	}
	count(len(r.Actions))
	for _, a := range r.Actions {
		add(string(a))
	}
	add(string(r.Text))
	count(len(r.Params))
	for _, p := range r.Params {
		add(p.Type)
		flags := byte(0)
		if p.Null {
			flags |= 1
		}
		if p.Binary {
			flags |= 2
		}
		b = append(b, flags)
		add(string(p.Value))
	}
	context := slices.Clone(r.Context)
	slices.SortStableFunc(context, func(x, y Pair) int { return cmp.Compare(x.Key, y.Key) })
	count(len(context))
	for _, p := range context {
		add(p.Key)
		add(p.Value)
	}
	r.Access.sum(add, count)
	s := sha256.Sum256(b)
	return isle.DigestFromSum(s[:])
}

// terms are what an approval was given under. A grant under other terms is
// another.
func (r Request) terms() string {
	b := []byte("isle approval terms v1\n")
	add := func(s string) { b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...) }
	add(r.Rule)
	for _, n := range []int64{int64(r.Quorum), int64(r.Uses), int64(r.ValidFor), int64(len(r.Approvers))} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	if r.Separate {
		b = append(b, 1)
	}
	for _, a := range r.Approvers {
		add(a)
	}
	s := sha256.Sum256(b)
	return string(s[:])
}

// size is what a request that waits holds in bytes.
func (r Request) size() int {
	n := len(r.Text)
	for _, p := range r.Params {
		n += len(p.Type) + len(p.Value)
	}
	return n
}

// texts are what is written down as text.
func (r Request) texts() []string {
	out := append([]string{r.Connection, r.Kind, r.Stage, r.Database, r.Role, r.Actor.Name, r.Owner, r.Ref.Name, r.Ref.Stage}, r.Chain...)
	for _, p := range r.Context {
		out = append(out, p.Key, p.Value)
	}
	for _, p := range r.Params {
		out = append(out, p.Type)
	}
	return out
}

// check bounds what comes from outside, and cuts what is there for people only.
func (r *Request) check() error {
	params, context := r.size()-len(r.Text)+paramWeight*len(r.Params), 0
	for _, p := range r.Context {
		context += len(p.Key) + len(p.Value)
	}
	for _, b := range []struct {
		what    string
		has, of int
	}{{"text", len(r.Text), MaxText}, {"parameters", params, MaxParams}, {"settings", context, MaxContext}} {
		if b.has > b.of {
			return isle.Errorf(isle.Exhausted, "%s needs a human's approval, and is too large to be shown to one: its %s has %d bytes, at most %d", r.Connection, b.what, b.has, b.of).
				WithHint("do it in smaller pieces")
		}
	}
	if r.Connection == "" || len(r.Actions) == 0 || r.Actor.Name == "" {
		return isle.Errorf(isle.Internal, "a request for approval without actor, action or connection")
	}
	for _, s := range r.texts() {
		if !utf8.ValidString(s) {
			return isle.Errorf(isle.Invalid, "%s needs a human's approval, and one of the settings that it is done with is no text: %q", r.Connection, cut(s, 100)).
				WithHint("use names and settings in UTF-8")
		}
	}
	r.Quorum, r.Uses = max(r.Quorum, 1), max(r.Uses, 1)
	if r.Timeout <= 0 {
		r.Timeout = 15 * time.Minute
	}
	if r.ValidFor <= 0 {
		r.ValidFor = 10 * time.Minute
	}
	for _, s := range []*string{&r.Why, &r.Estimate, &r.Source, &r.Address} {
		*s = cut(*s, MaxReason)
	}
	r.Shape = cut(r.Shape, 2<<10)
	r.Chain = r.Chain[:min(len(r.Chain), 16)]
	return nil
}
