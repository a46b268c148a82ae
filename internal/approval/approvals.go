package approval

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"isle"
	"isle/internal/allowance"
	"isle/internal/audit"
	"isle/internal/ledger"
)

// ledgerName is the ledger that requests are records of, each under request/ID;
// the text and the parameters of one that waits are under text/ID and params/ID.
const ledgerName = "approval"

const (
	requestKey = "request/"
	textKey    = "text/"
	paramsKey  = "params/"
)

// A Log takes entries that belong to no change of the ledger.
type Log interface {
	// Append makes the entries durable before it returns.
	Append(ctx context.Context, entries ...audit.Entry) error
}

// A Decider is who wants to decide.
type Decider struct {
	Actor  isle.Actor
	Groups []string
	// Stage is the only one that they act in; "" is any, one at a time.
	Stage string
	// Via is the webhook that vouches for the actor; "" where the API does.
	Via string
}

// Config is what Approvals need.
type Config struct {
	Store ledger.Store
	Log   Log
	// May says whether the policy has somebody among a request's approvers and
	// lets them decide about its connection; the error says why not. That the
	// decider is a person, and not the one who asks, is seen to before.
	May func(d Decider, r Request) error
	// Stands says whether the policy in force still has the rule that a request
	// waits under, its connection as it was, and lets its actor ask; the error
	// says what is otherwise. nil: all stands.
	Stands func(r Request) error
	// Notify is told of what people elsewhere are to hear; it does not block. nil:
	// nobody is.
	Notify func(n Notice)
	Grants Granter          // of access; nil: none can be had
	Now    func() time.Time // default time.Now
	Slog   *slog.Logger     // nil discards
	// Fault, in tests, is told of each point that is passed. FaultPoints lists the
	// names.
	Fault func(point string)
}

// Approvals are the requests of one server. They are safe for concurrent use.
type Approvals struct {
	cfg    Config
	broken error // why nothing can be approved; nil if it can

	turn   chan struct{} // holds one while somebody changes the ledger and what is in memory
	ledger *ledger.Ledger
	asks   allowance.Table // by actor
	asked  uint64          // places that were given, under turn
	stale  bool            // what is granted is not in force as it is, under turn

	mu       sync.RWMutex // guards what follows; who writes holds turn too
	cards    map[isle.ID]*card
	live     map[key][]*card // that wait or are approved, oldest first
	access   map[isle.ID]*card
	watchers map[*watcher]bool
	changed  chan struct{} // closed and replaced at each change
}

// A key names the requests that share a card.
type key struct {
	hash  isle.Digest
	terms string
}

// A card is a request with who waits on it. A card's Request is replaced whole:
// what was read of it never changes.
type card struct {
	Request
	key     key
	waiters []*waiter     // in the order in which they first asked
	wake    chan struct{} // closed and replaced when they are to look again
}

// A waiter is one call of Acquire.
type waiter struct {
	place    uint64 // counts who asked
	deadline time.Time
}

// Open reads the requests. What waited when the server ended is withdrawn, since
// who waited is gone; what was approved, and what is asked for by clients that do
// not wait, goes on. Where the ledger is not what the audit log says it is there
// are Approvals all the same, of which every use fails with that.
func Open(ctx context.Context, cfg Config) (*Approvals, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Slog == nil {
		cfg.Slog = slog.New(slog.DiscardHandler)
	}
	if cfg.Stands == nil {
		cfg.Stands = func(Request) error { return nil }
	}
	if cfg.Notify == nil {
		cfg.Notify = func(Notice) {}
	}
	if cfg.Fault == nil {
		cfg.Fault = func(string) {}
	}
	a := &Approvals{
		cfg: cfg, turn: make(chan struct{}, 1), asks: allowance.Table{Rate: asking, Max: maxAskers},
		cards: map[isle.ID]*card{}, live: map[key][]*card{}, access: map[isle.ID]*card{}, watchers: map[*watcher]bool{}, changed: make(chan struct{}),
	}
	l, records, err := ledger.Open(ctx, cfg.Store, ledgerName)
	if err == nil {
		a.ledger = l
		err = a.load(records)
	}
	switch {
	case isle.CodeOf(err) == isle.Unavailable && err != nil:
		a.broken, a.cards, a.live, a.access = err, map[isle.ID]*card{}, map[key][]*card{}, map[isle.ID]*card{}
		cfg.Slog.Error("nothing can be approved", "err", err)
		return a, nil
	case err != nil:
		return nil, err
	}
	return a, a.recover(ctx)
}

// load takes the records in.
func (a *Approvals) load(records []ledger.Record) error {
	unreadable := func(key string) error {
		return isle.Errorf(isle.Unavailable, "the record %q of the approval ledger cannot be read", key).WithHint("start with the program that wrote it")
	}
	for _, rec := range records { // in the order of their keys: params/, request/, text/
		id, ok := strings.CutPrefix(rec.Key, requestKey)
		if !ok {
			continue
		}
		c := &card{wake: make(chan struct{})}
		if json.Unmarshal(rec.Body, &c.Request) != nil || string(c.ID) != id || !c.ID.Valid() {
			return unreadable(rec.Key)
		}
		if a.cards[c.ID] = c; c.Access != nil {
			a.access[c.ID] = c
		}
	}
	for _, rec := range records {
		kind, id, _ := strings.Cut(rec.Key, "/")
		c := a.cards[isle.ID(id)]
		switch {
		case c == nil:
			return unreadable(rec.Key)
		case kind+"/" == textKey:
			c.Text = rec.Body
		case kind+"/" == paramsKey:
			if json.Unmarshal(rec.Body, &c.Params) != nil {
				return unreadable(rec.Key)
			}
		}
	}
	for _, c := range a.cards {
		if !c.Live() {
			continue
		}
		if c.Sum() != c.Hash {
			return unreadable(requestKey + string(c.ID))
		}
		c.key = key{c.Hash, c.terms()}
		a.live[c.key] = append(a.live[c.key], c)
	}
	for _, l := range a.live {
		slices.SortFunc(l, func(x, y *card) int { return cmp.Compare(x.ID, y.ID) })
	}
	return nil
}

// recover withdraws what nobody waits for any more.
func (a *Approvals) recover(ctx context.Context) error {
	var ch change
	for _, c := range a.cards {
		if c.State == Pending && !c.NoWait {
			ch.end(a, c, Withdrawn, "the server ended while it waited")
		}
	}
	return a.commit(ctx, &ch)
}

// Err says why nothing can be approved; nil if it can.
func (a *Approvals) Err() error { return a.broken }

// take waits for the turn to change something.
func (a *Approvals) take(ctx context.Context) error {
	if a.broken != nil {
		return a.broken
	}
	select {
	case a.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *Approvals) leave() { <-a.turn }

// A change is what one transaction does: the requests as they are after it, and
// its entries. It is made under turn.
type change struct {
	next    []next
	remove  []isle.ID // are forgotten
	entries []audit.Entry
	notices []Notice
}

type next struct {
	card *card
	to   Request
}

// put has a request be another after the change.
func (ch *change) put(c *card, to Request) { ch.next = append(ch.next, next{c, to}) }

// end ends a request, and says so in the log.
func (ch *change) end(a *Approvals, c *card, state, why string) {
	to := c.Request
	to.State, to.Ending, to.Ended = state, why, a.now()
	ch.put(c, to)
	e := entryOf(system(state), to, isle.Deny, to.Actions[0], "approval "+state+": "+why)
	e.Result = state
	ch.entries = append(ch.entries, e)
}

// commit makes a change durable, and then takes it in and wakes whoever it
// concerns. Nothing of it counts where it fails.
func (a *Approvals) commit(ctx context.Context, ch *change) error {
	if len(ch.entries) == 0 {
		return nil
	}
	var put []ledger.Record
	var remove []string
	for _, n := range ch.next {
		body, err := json.Marshal(n.to)
		if err != nil {
			return isle.Errorf(isle.Internal, "cannot encode a request: %w", err)
		}
		id := string(n.to.ID)
		put = append(put, ledger.Record{Key: requestKey + id, Body: body})
		_, known := a.cards[n.to.ID]
		switch {
		case !n.to.Live():
			remove = append(remove, textKey+id, paramsKey+id)
		case !known:
			params, err := json.Marshal(n.to.Params)
			if err != nil {
				return isle.Errorf(isle.Internal, "cannot encode a request: %w", err)
			}
			put = append(put, ledger.Record{Key: textKey + id, Body: n.to.Text}, ledger.Record{Key: paramsKey + id, Body: params})
		}
	}
	for _, id := range ch.remove {
		remove = append(remove, requestKey+string(id))
	}
	// Whoever asked may go away now: what has begun is finished, so that what is
	// in memory is what is durable.
	if err := a.ledger.Change(context.WithoutCancel(ctx), put, remove, ch.entries...); err != nil {
		if isle.CodeOf(err) != isle.Exhausted {
			err = isle.Errorf(isle.Unavailable, "approvals cannot be written down, so nothing is approved: %w", err)
		}
		return err
	}
	a.mu.Lock()
	for _, n := range ch.next {
		a.set(n.card, n.to)
	}
	for _, id := range ch.remove {
		delete(a.cards, id)
		delete(a.access, id)
	}
	close(a.changed)
	a.changed = make(chan struct{})
	a.mu.Unlock()
	for _, n := range ch.notices {
		a.cfg.Notify(n)
	}
	return nil
}

// set has a card hold a request as it is now. mu is held.
func (a *Approvals) set(c *card, to Request) {
	_, known := a.cards[to.ID]
	if !to.Live() {
		to.Text, to.Params, to.Still = nil, nil, nil
	}
	woken := c.State != to.State || c.Used != to.Used
	c.Request = to
	if a.cards[to.ID] = c; to.Access != nil {
		a.access[to.ID] = c
	}
	if to.Live() && !known {
		a.live[c.key] = append(a.live[c.key], c)
	}
	if !to.Live() {
		if l := slices.DeleteFunc(a.live[c.key], func(o *card) bool { return o == c }); len(l) > 0 {
			a.live[c.key] = l
		} else {
			delete(a.live, c.key)
		}
	}
	if woken {
		close(c.wake)
		c.wake = make(chan struct{})
	}
	for w := range a.watchers {
		w.note(to.ID)
	}
}

func (a *Approvals) now() time.Time { return a.cfg.Now().UTC().Truncate(time.Microsecond) }

func system(name string) isle.Actor { return isle.Actor{Kind: isle.System, Name: "approval-" + name} }

// entryOf is an entry about a request.
func entryOf(actor isle.Actor, r Request, decision isle.Decision, action isle.Action, summary string) audit.Entry {
	e := audit.NewEvent(actor, action, r.Resource(), decision, summary).With("request", string(r.ID)).With("hash", string(r.Hash))
	if r.Instance != "" {
		e = e.In(r.Ref, r.Instance)
	}
	if actor != r.Actor {
		e = e.With("by", r.Actor.String())
	}
	for _, d := range [][2]string{{"owner", r.Owner}, {"session", string(r.Session)}, {"shape", r.Shape}, {"why", r.Why}} {
		if d[1] != "" {
			e = e.With(d[0], d[1])
		}
	}
	if r.Count > 1 {
		e = e.With("count", strconv.Itoa(r.Count))
	}
	e.Rule = r.Rule
	return e
}

// cut is at most n bytes of a text that is there for people, at a character's
// boundary.
func cut(s string, n int) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
