// Package authority keeps the policy in force.
//
// The documents of the policy are in a Store, every version of each. An
// Authority holds the Set that they compile to, with the epoch that counts
// changes: a decision reads both from memory without a lock. A change replaces
// one document whole; it is durable with its audit entry before it counts, and
// whoever waits on the State of before is woken, so that what is open can be
// asked about again.
package authority

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
	"isle/internal/policy"
)

// A Store keeps versions of documents.
type Store interface {
	// Policies returns the last version of each document, by name, the epoch (0
	// if there was never one) and the last audit entry that is bound to the
	// policy, the zero Entry if there is none.
	Policies(ctx context.Context) (docs []Stored, epoch uint64, last audit.Entry, err error)
	// PutPolicy adds a version under the epoch that it makes, in one transaction
	// with its entry. It fails with Conflict if that epoch is there already.
	PutPolicy(ctx context.Context, d Stored, epoch uint64) error
}

// A Stored is a version of a document with the audit entry of its change.
type Stored struct {
	policy.Document
	Entry audit.Entry
}

// Config is what an Authority needs.
type Config struct {
	Store Store
	Now   func() time.Time // default time.Now
	// Since is a time that is past for sure, such as that of the audit log's last
	// entry: nothing is decided as of one before it.
	Since time.Time
	Log   *slog.Logger // nil discards
	// Reaches says whether a subject, as a binding has it ("group:ops"), is
	// anybody who could call: who is nobody keeps no policy. nil believes all.
	Reaches func(subject string) bool
	// Reset replaces whatever policy there is by the default one: the way back
	// in for who has locked everyone out.
	Reset bool
}

// An Authority answers by the policy in force. It is safe for concurrent use.
type Authority struct {
	cfg    Config
	state  atomic.Pointer[State]
	latest atomic.Int64 // Unix nanoseconds: the latest time that was decided as of

	trying chan struct{} // holds one while somebody asks what a change would do

	mu   sync.Mutex // held over a change; guards docs
	docs []Stored
}

// A State is the policy between two changes. It never changes.
type State struct {
	Epoch uint64
	Set   *policy.Set

	over chan struct{}
}

// Over is closed once another State is in force.
func (s *State) Over() <-chan struct{} { return s.over }

// Open loads the policy. Where there was never one it writes the default. It
// fails where a document cannot be read or is not the one that its audit entry
// names: a policy that is in doubt grants nothing.
func Open(ctx context.Context, cfg Config) (*Authority, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	a := &Authority{cfg: cfg, trying: make(chan struct{}, 1)}
	if !cfg.Since.IsZero() {
		a.latest.Store(cfg.Since.UnixNano())
	}
	docs, epoch, last, err := cfg.Store.Policies(ctx)
	if err != nil {
		return nil, err
	}
	a.docs = docs
	next := epoch
	if last.Bound != nil {
		next = max(epoch, last.Bound.Epoch) // a version that was taken away is not written again
	}
	if next == 0 || cfg.Reset {
		return a, a.reset(ctx, next)
	}
	if err := Check(docs, epoch, last); err != nil {
		return nil, err
	}
	set, err := policy.Compile(plain(docs)...)
	if err != nil {
		flat := isle.Errorf(isle.CodeOf(err), "the policy cannot be read: %w", err)
		return nil, flat.WithHint("start with the program that wrote it, or once with `isle server --default-policy`")
	}
	a.put(set, epoch)
	return a, nil
}

// Ledger is what the entries of the policy's changes are bound to.
const Ledger = "policy"

// Check says whether documents are those that the audit log vouches for: each
// the one that its own entry names, and together those of the last entry that
// is bound to the policy.
func Check(docs []Stored, epoch uint64, last audit.Entry) error {
	behind := func(format string, args ...any) error {
		return isle.Errorf(isle.Unavailable, format+": it was changed behind the audit log", args...).
			WithHint("restore the state folder, or start once with `isle server --default-policy`, which replaces the policy and says so in the log")
	}
	for _, d := range docs {
		if want := d.Entry.Details["digest"]; want != string(isle.DigestOf(d.Body)) {
			return behind("version %d of the policy document %s is not the one that the audit log names", d.Version, d.Name)
		}
	}
	switch b := last.Bound; {
	case b == nil: // it was last changed before entries were bound
	case b.Ledger != Ledger || b.Epoch != epoch:
		return behind("the policy has had %d changes, and the audit log knows of %d", epoch, b.Epoch)
	case b.State != stateOf(docs):
		return behind("the policy's documents are not those that the audit log names")
	}
	return nil
}

func stateOf(docs []Stored) isle.Digest {
	records := make([]ledger.Record, len(docs))
	for i, d := range docs {
		records[i] = ledger.Record{Key: d.Name + "." + d.Format, Body: d.Body}
	}
	return ledger.StateOf(Ledger, records)
}

func plain(docs []Stored) []policy.Document {
	out := make([]policy.Document, len(docs))
	for i, d := range docs {
		out[i] = d.Document
	}
	return out
}

// put puts a set in force and wakes who waits on the one before.
func (a *Authority) put(set *policy.Set, epoch uint64) {
	old := a.state.Swap(&State{Epoch: epoch, Set: set, over: make(chan struct{})})
	if old != nil {
		close(old.over)
	}
}

// reset writes the default document and empties the others.
func (a *Authority) reset(ctx context.Context, epoch uint64) error {
	actor := isle.Actor{Kind: isle.System, Name: "first-start"}
	if a.cfg.Reset && epoch > 0 {
		actor.Name = "default-policy"
	}
	docs := slices.DeleteFunc(slices.Clone(a.docs), func(d Stored) bool { return d.Name == policy.DefaultDocument })
	for i := range docs {
		docs[i].Body = empty(docs[i].Format)
	}
	docs = append(docs, Stored{Document: policy.Document{Name: policy.DefaultDocument, Format: policy.YAML, Body: []byte(policy.Default)}})
	for i, d := range docs {
		docs[i].Version = a.next(d.Name)
	}
	set, err := policy.Compile(plain(docs)...)
	if err != nil {
		return err
	}
	for _, d := range docs {
		epoch++
		if err := a.write(ctx, actor, d.Document, epoch, "the default policy"); err != nil {
			return err
		}
	}
	a.put(set, epoch)
	return nil
}

func empty(format string) []byte {
	if format == policy.Cedar {
		return []byte("\n")
	}
	return []byte("{}\n")
}

// next is the version that a document has after its next change.
func (a *Authority) next(name string) int {
	for _, o := range a.docs {
		if o.Name == name {
			return o.Version + 1
		}
	}
	return 1
}

// write makes a version durable. mu is held, or nobody else has a yet.
func (a *Authority) write(ctx context.Context, actor isle.Actor, d policy.Document, epoch uint64, summary string) error {
	i := slices.IndexFunc(a.docs, func(o Stored) bool { return o.Name == d.Name })
	d.Version = a.next(d.Name)
	e := audit.NewEvent(actor, isle.ActionPolicyApply, resource, isle.Allow, summary).
		With("document", d.Name).With("version", strconv.Itoa(d.Version)).With("digest", string(isle.DigestOf(d.Body)))
	stored := Stored{Document: d, Entry: e}
	docs := slices.Clone(a.docs)
	if i >= 0 {
		docs[i] = stored
	} else {
		docs = append(docs, stored)
	}
	stored.Entry.Bound = &audit.Bound{Ledger: Ledger, Epoch: epoch, State: stateOf(docs)}
	if err := a.cfg.Store.PutPolicy(ctx, stored, epoch); err != nil {
		return err
	}
	a.docs = docs
	return nil
}

// resource is the policy as a resource.
var resource = isle.Resource{Kind: "policy", Name: "policy"}

// State is the policy in force.
func (a *Authority) State() *State { return a.state.Load() }

// Decide answers a query by the policy in force; its time is Now.
func (a *Authority) Decide(q policy.Query) policy.Answer {
	q.Now = a.Now()
	return a.State().Set.Decide(q)
}

// A Request asks for a change.
type Request struct {
	Document policy.Document // Version counts for nothing
	// Edit, where it is set, makes the document's body of the one that is in force,
	// which is nil where there is no such document. Document.Body counts for nothing then.
	Edit   func(body []byte) ([]byte, error)
	DryRun bool
	// Confirmations is how often somebody said that the change is meant
	// although it locks everyone out.
	Confirmations int
}

// lockOutConfirmations is how often a lock-out has to be confirmed.
const lockOutConfirmations = 2

// A Result is what a change comes to.
type Result struct {
	Changed  bool // false: the document is as it was
	Version  int
	Epoch    uint64
	Changes  []policy.Change
	Warnings []string
	LocksOut bool // nobody could change the policy any more
}

// Apply replaces one document. It fails with Invalid, naming the place, where
// the policy would not compile; with Refused where it would lock everyone out
// and was not confirmed twice.
func (a *Authority) Apply(ctx context.Context, actor isle.Actor, req Request) (Result, error) {
	d := req.Document
	if !isle.ValidName(d.Name) {
		return Result{}, isle.Errorf(isle.Invalid, "%q is no name for a document: want lower-case letters, digits and dashes, at most 40, beginning with a letter", d.Name)
	}
	if req.DryRun { // one at a time, and no change waits for it: a revocation least of all
		select {
		case a.trying <- struct{}{}:
			defer func() { <-a.trying }()
		case <-ctx.Done():
			return Result{}, ctx.Err()
		}
	}
	a.mu.Lock()
	state, docs := a.State(), plain(a.docs)
	if req.DryRun {
		a.mu.Unlock()
	} else {
		defer a.mu.Unlock()
	}
	i := slices.IndexFunc(docs, func(o policy.Document) bool { return o.Name == d.Name })
	if req.Edit != nil {
		var before []byte
		if i >= 0 {
			before = docs[i].Body
		}
		var err error
		if d.Body, err = req.Edit(before); err != nil {
			return Result{}, err
		}
	}
	if d.Body == nil {
		d.Body = []byte{} // an empty document is one all the same
	}
	switch {
	case i < 0:
		d.Version = 1
		docs = append(docs, d)
	case docs[i].Format != d.Format && len(strings.TrimSpace(string(docs[i].Body))) > 2:
		return Result{}, isle.Errorf(isle.Conflict, "the document %s is %s, not %s", d.Name, docs[i].Format, d.Format).WithHint("choose another name with --document")
	case string(docs[i].Body) == string(d.Body):
		return Result{Version: docs[i].Version, Epoch: state.Epoch}, nil
	default:
		d.Version = docs[i].Version + 1
		docs[i] = d
	}
	set, err := policy.Compile(docs...)
	if err != nil {
		return Result{}, err
	}
	now := a.Now()
	r := Result{Changed: true, Epoch: state.Epoch, Changes: state.Set.Diff(set, now)}
	r.Warnings, r.LocksOut = a.warnings(actor, state.Set, set, now)
	if req.DryRun {
		return r, nil
	}
	if r.LocksOut && req.Confirmations < lockOutConfirmations {
		return r, isle.Errorf(isle.Refused, "this policy would lock everyone out: %s", r.Warnings[0]).
			WithHint("keep a binding such as {role: admin, subjects: [human:root]}; if it is meant, say so twice: --lock-out --lock-out")
	}
	var lines []string
	for _, c := range r.Changes {
		lines = append(lines, c.String())
	}
	if err := a.write(ctx, actor, d, state.Epoch+1, strings.Join(lines, "; ")); err != nil {
		return r, err
	}
	r.Epoch = state.Epoch + 1
	for _, o := range a.docs {
		if o.Name == d.Name {
			r.Version = o.Version
		}
	}
	a.put(set, r.Epoch)
	a.cfg.Log.Info("policy changed", "epoch", r.Epoch, "document", d.Name, "by", actor, "now", set.Summary())
	return r, nil
}
