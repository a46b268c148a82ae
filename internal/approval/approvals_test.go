package approval

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/ledger"
	"isle/internal/ledger/ledgertest"
)

var (
	ann  = Decider{Actor: isle.Actor{Kind: isle.Human, Name: "ann"}}
	bob  = Decider{Actor: isle.Actor{Kind: isle.Human, Name: "bob"}}
	eve  = Decider{Actor: isle.Actor{Kind: isle.Human, Name: "eve"}}
	shop = isle.Actor{Kind: isle.Workload, Name: "shop@production"}
)

// A clock that tests move.
type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time        { return time.Unix(0, c.at.Load()).UTC() }
func (c *clock) pass(by time.Duration) { c.at.Add(int64(by)) }

// A lab is what the tests' Approvals are made of.
type lab struct {
	t      *testing.T
	store  *ledgertest.Memory
	clock  *clock
	stands func(Request) error
	mu     sync.Mutex
	told   []Notice
	grants *granter
}

// granter keeps what was published.
type granter struct {
	mu       sync.Mutex
	document string
	err      error
}

func (g *granter) Check(context.Context, []byte) error { return g.err }
func (g *granter) Publish(_ context.Context, d []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.document = string(d)
	}
	return g.err
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, store: ledgertest.New(), clock: &clock{}, grants: &granter{}}
	l.clock.at.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano())
	return l
}

// open is a server's start.
func (l *lab) open() *Approvals {
	l.t.Helper()
	a, err := Open(l.t.Context(), Config{
		Store: l.store, Log: l.store, Now: l.clock.now, Grants: l.grants,
		May: func(d Decider, r Request) error {
			if slices.Contains(r.Approvers, d.Actor.String()) {
				return nil
			}
			return isle.Errorf(isle.Refused, "%s is none of the approvers %s", d.Actor, approversText(r.Approvers))
		},
		Stands: func(r Request) error {
			if l.stands != nil {
				return l.stands(r)
			}
			return nil
		},
		Notify: func(n Notice) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.told = append(l.told, n)
		},
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return a
}

// request is what the shop asks in most tests.
func request() Request {
	return Request{
		Actor: shop, Owner: "human:ann", Chain: []string{"human:ann"}, Ref: isle.Ref{Name: "shop", Stage: "production"}, Instance: "0123456789abcdefghijklmnop", Session: isle.NewID(),
		Connection: "orders-db", Kind: "postgres", Stage: "production", Address: "db.internal:5432", Database: "orders", Role: "app",
		Actions: []isle.Action{isle.ActionPostgresWrite}, Rule: "approval at main.yaml:12:5",
		Text: []byte("UPDATE orders SET paid = true WHERE id = $1"), Params: []Param{{Type: "int4", Value: []byte("7")}},
		Context: []Pair{{"search_path", "public"}, {"standard_conforming_strings", "on"}},
		Shape:   "UPDATE orders SET paid = $1 WHERE id = $2", Approvers: []string{"human:ann", "human:bob"}, Quorum: 1, Timeout: time.Minute, ValidFor: 10 * time.Minute, Uses: 1,
	}
}

// A call is one Acquire that runs.
type call struct {
	cancel  context.CancelFunc
	waiting chan Request
	done    chan struct{}
	use     Use
	err     error
}

func (l *lab) ask(a *Approvals, r Request) *call {
	ctx, cancel := context.WithCancel(l.t.Context())
	c := &call{cancel: cancel, waiting: make(chan Request, 10), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.use, c.err = a.Acquire(ctx, r, func(r Request) error { c.waiting <- r; return nil })
	}()
	l.t.Cleanup(func() { cancel(); <-c.done })
	return c
}

func (c *call) wait() error { <-c.done; return c.err }

// entries are those of an action, as decision and result.
func (l *lab) entries(action isle.Action) (out []string) {
	for _, e := range l.store.Entries() {
		if e.Action == action {
			out = append(out, fmt.Sprint(e.Kind, " ", e.Actor, " ", e.Decision, " ", e.Result))
		}
	}
	return out
}

func TestAStatementWaitsUntilAPersonApprovesItsHash(t *testing.T) {
	l := newLab(t)
	a := l.open()
	c := l.ask(a, request())
	r := <-c.waiting
	if r.State != Pending || string(r.Text) != string(request().Text) || r.Hash != request().Sum() {
		t.Fatalf("%+v", r)
	}
	if _, err := a.Approve(t.Context(), ann, r.ID, isle.DigestOf([]byte("another")), ""); isle.CodeOf(err) != isle.Refused {
		t.Errorf("another hash: %v", err)
	}
	if _, err := a.Approve(t.Context(), ann, r.ID, r.Hash, "it is so"); err != nil {
		t.Fatal(err)
	}
	if err := c.wait(); err != nil || c.use.Approval() != r.ID {
		t.Fatal(err)
	}
	if got, _ := a.Get(r.ID); got.State != Spent || got.Used != 1 || got.Text != nil {
		t.Errorf("%+v", got)
	}
	if err := c.use.Done("UPDATE 1"); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"event workload:shop@production hold held", "intent workload:shop@production allow ", "outcome workload:shop@production allow ok",
	}
	if got := l.entries(isle.ActionPostgresWrite); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	want = []string{"event human:ann deny refused", "event human:ann allow ok"}
	if got := l.entries(isle.ActionApprovalDecide); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestAnApprovalIsOfExactlyWhatWasAsked(t *testing.T) {
	base := request().Sum()
	for name, change := range map[string]func(r *Request){
		"text":               func(r *Request) { r.Text = append(slices.Clone(r.Text), ' ') },
		"parameter":          func(r *Request) { r.Params = []Param{{Type: "int4", Value: []byte("8")}} },
		"parameter's type":   func(r *Request) { r.Params = []Param{{Type: "text", Value: []byte("7")}} },
		"parameter's format": func(r *Request) { r.Params = []Param{{Type: "int4", Value: []byte("7"), Binary: true}} },
		"null":               func(r *Request) { r.Params = []Param{{Type: "int4", Null: true}} },
		"text and parameter": func(r *Request) { r.Text = append(slices.Clone(r.Text), "int4"...); r.Params = nil },
		"database":           func(r *Request) { r.Database = "other" },
		"role":               func(r *Request) { r.Role = "other" },
		"address":            func(r *Request) { r.Address = "other:5432" },
		"connection":         func(r *Request) { r.Connection = "other" },
		"stage":              func(r *Request) { r.Stage = "testing" },
		"search_path": func(r *Request) {
			r.Context = []Pair{{"search_path", "evil, public"}, {"standard_conforming_strings", "on"}}
		},
		"no search_path":       func(r *Request) { r.Context = r.Context[1:] },
		"instance":             func(r *Request) { r.Instance = isle.NewID() },
		"actor":                func(r *Request) { r.Actor.Name = "other@production" },
		"actions":              func(r *Request) { r.Actions = []isle.Action{isle.ActionPostgresAdmin} },
		"key moved into value": func(r *Request) { r.Context = []Pair{{"search_pathpublic", ""}, {"standard_conforming_strings", "on"}} },
	} {
		r := request()
		if change(&r); r.Sum() == base {
			t.Errorf("another %s has the same hash", name)
		}
	}
	r := request()
	slices.Reverse(r.Context)
	r.Session, r.Asked, r.Source = isle.NewID(), time.Now(), "192.0.2.1"
	if r.Sum() != base {
		t.Error("the order of settings, or the session, changes the hash")
	}
}

func TestWhoDeniesGivesTheReason(t *testing.T) {
	l := newLab(t)
	a := l.open()
	c := l.ask(a, request())
	r := <-c.waiting
	if _, err := a.Deny(t.Context(), bob, r.ID, "not on a Friday"); err != nil {
		t.Fatal(err)
	}
	if err := c.wait(); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "human:bob denied") || !strings.Contains(err.Error(), "not on a Friday") {
		t.Error(err)
	}
	if _, err := a.Approve(t.Context(), ann, r.ID, r.Hash, ""); isle.CodeOf(err) != isle.Conflict {
		t.Errorf("approved after it was denied: %v", err)
	}
}

func TestOnlyPeopleWhomTheRuleNamesDecide(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r := request()
	r.Separate = true
	c := l.ask(a, r)
	got := <-c.waiting
	for _, d := range []Decider{eve, ann, {Actor: shop}, {Actor: isle.Actor{Kind: isle.Machine, Name: "ann"}}, {Actor: isle.Actor{Kind: isle.System, Name: "ann"}}} {
		if _, err := a.Approve(t.Context(), d, got.ID, got.Hash, ""); isle.CodeOf(err) != isle.Refused {
			t.Errorf("%s approves: %v", d.Actor, err)
		}
		if _, err := a.Deny(t.Context(), d, got.ID, ""); isle.CodeOf(err) != isle.Refused {
			t.Errorf("%s denies: %v", d.Actor, err)
		}
	}
	if n := len(l.entries(isle.ActionApprovalDecide)); n != 10 {
		t.Errorf("%d refusals are recorded", n)
	}
	if _, err := a.Approve(t.Context(), bob, got.ID, got.Hash, ""); err != nil {
		t.Error(err)
	}
	if err := c.wait(); err != nil {
		t.Error(err)
	}
}

func TestNobodyApprovesTheirOwnRequestWhereSomebodyElseIsAskedFor(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r := request()
	r.Actor, r.Owner, r.Chain, r.Separate = ann.Actor, "human:ann", nil, true
	c := l.ask(a, r)
	got := <-c.waiting
	if _, err := a.Approve(t.Context(), ann, got.ID, got.Hash, ""); isle.CodeOf(err) != isle.Refused {
		t.Error(err)
	}
	r.Separate = false
	c = l.ask(a, r)
	got = <-c.waiting
	if _, err := a.Approve(t.Context(), ann, got.ID, got.Hash, ""); err != nil {
		t.Error(err)
	}
	if err := c.wait(); err != nil {
		t.Error(err)
	}
}

func TestAQuorumIsOfDistinctPeople(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r := request()
	r.Quorum = 2
	c := l.ask(a, r)
	got := <-c.waiting
	if _, err := a.Approve(t.Context(), ann, got.ID, got.Hash, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Approve(t.Context(), ann, got.ID, got.Hash, ""); isle.CodeOf(err) != isle.Conflict {
		t.Errorf("ann twice: %v", err)
	}
	select {
	case <-c.done:
		t.Fatal("one of two was enough", c.err)
	default:
	}
	if _, err := a.Approve(t.Context(), bob, got.ID, got.Hash, ""); err != nil {
		t.Fatal(err)
	}
	if err := c.wait(); err != nil {
		t.Error(err)
	}
}

func TestOfAHundredThatWaitExactlyAsManyProceedAsWereApproved(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r := request()
	r.Uses = 3
	var calls []*call
	for range 100 {
		calls = append(calls, l.ask(a, r))
	}
	var card Request
	for _, c := range calls {
		card = <-c.waiting
	}
	if got, _ := a.Get(card.ID); got.Count != 100 {
		t.Errorf("the card counts %d", got.Count)
	}
	if list, _ := a.List(false); len(list) != 1 {
		t.Fatalf("%d cards", len(list))
	}
	if _, err := a.Approve(t.Context(), ann, card.ID, card.Hash, ""); err != nil {
		t.Fatal(err)
	}
	var went []*call
	for _, c := range calls { // each either proceeds, or waits on the next card
		select {
		case <-c.done:
			if c.err != nil {
				t.Error(c.err)
			}
			went = append(went, c)
		case again := <-c.waiting:
			if again.ID == card.ID {
				t.Error("it waits on the same card")
			}
		}
	}
	if len(went) != 3 {
		t.Fatalf("%d proceed", len(went))
	}
	list, _ := a.List(false)
	if len(list) != 1 || list[0].Count != 97 || list[0].Hash != card.Hash {
		t.Fatalf("%+v", list)
	}
	if _, err := a.Deny(t.Context(), ann, list[0].ID, "enough"); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for _, c := range calls {
		if c.wait(); isle.CodeOf(c.err) == isle.Refused && c.err != nil {
			refused++
		}
	}
	if refused != 97 {
		t.Errorf("%d are refused", refused)
	}
}

func TestTheFirstWhoAskedAreTheFirstToProceed(t *testing.T) {
	l := newLab(t)
	a := l.open()
	var calls []*call
	for range 5 {
		c := l.ask(a, request())
		<-c.waiting
		calls = append(calls, c)
	}
	for i, c := range calls {
		list, _ := a.List(false)
		if len(list) != 1 {
			t.Fatal(list)
		}
		if _, err := a.Approve(t.Context(), ann, list[0].ID, list[0].Hash, ""); err != nil {
			t.Fatal(err)
		}
		if err := c.wait(); err != nil {
			t.Fatal(i, err)
		}
		for _, later := range calls[i+1:] {
			<-later.waiting
		}
	}
}

func TestAClientThatDoesNotWaitFindsTheApprovalWhenItComesAgain(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r := request()
	r.NoWait = true
	_, err := a.Acquire(t.Context(), r, nil)
	if isle.CodeOf(err) != isle.Held {
		t.Fatal(err)
	}
	if _, err = a.Acquire(t.Context(), r, nil); isle.CodeOf(err) != isle.Held {
		t.Fatal(err)
	}
	list, _ := a.List(false)
	if len(list) != 1 || list[0].Count != 2 || !strings.Contains(err.Error(), string(list[0].ID)) {
		t.Fatalf("%+v %v", list, err)
	}
	a = l.open() // it is still there after a restart
	if _, err := a.Approve(t.Context(), bob, list[0].ID, list[0].Hash, ""); err != nil {
		t.Fatal(err)
	}
	a = l.open()
	other := r
	other.Text = []byte("DROP TABLE orders")
	if _, err := a.Acquire(t.Context(), other, nil); isle.CodeOf(err) != isle.Held {
		t.Errorf("another statement: %v", err)
	}
	terms := r
	terms.Approvers = []string{"human:eve"}
	if _, err := a.Acquire(t.Context(), terms, nil); isle.CodeOf(err) != isle.Held {
		t.Errorf("under a rule with other approvers: %v", err)
	}
	r.Session = isle.NewID()
	use, err := a.Acquire(t.Context(), r, nil)
	if err != nil || use.Approval() != list[0].ID {
		t.Fatal(err)
	}
	if _, err := a.Acquire(t.Context(), r, nil); isle.CodeOf(err) != isle.Held {
		t.Errorf("twice: %v", err)
	}
}

func TestTheTimeOfAnApprovalBeginsWhenItIsGiven(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r := request()
	r.NoWait, r.Timeout, r.ValidFor = true, time.Hour, 10*time.Minute
	a.Acquire(t.Context(), r, nil)
	l.clock.pass(50 * time.Minute)
	list, _ := a.List(false)
	got, err := a.Approve(t.Context(), ann, list[0].ID, list[0].Hash, "")
	if err != nil || !got.Until.Equal(l.clock.now().Add(10*time.Minute)) {
		t.Fatal(err, got.Until)
	}
	l.clock.pass(10*time.Minute - time.Second)
	two := r
	if _, err := a.Acquire(t.Context(), two, nil); err != nil {
		t.Errorf("within its time: %v", err)
	}
	r.Text = []byte("UPDATE orders SET paid = false WHERE id = 1")
	a.Acquire(t.Context(), r, nil)
	list, _ = a.List(false)
	if _, err := a.Approve(t.Context(), ann, list[0].ID, list[0].Hash, ""); err != nil {
		t.Fatal(err)
	}
	l.clock.pass(10 * time.Minute)
	if _, err := a.Acquire(t.Context(), r, nil); isle.CodeOf(err) != isle.Held {
		t.Errorf("after its time: %v", err)
	}
	if _, _, err := a.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, _ := a.Get(list[0].ID); got.State != Expired {
		t.Error(got.State)
	}
}

func TestWhatNobodyDecidesAboutEnds(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r := request()
	r.Timeout = 10 * time.Millisecond
	c := l.ask(a, r)
	id := (<-c.waiting).ID
	if err := c.wait(); isle.CodeOf(err) != isle.Held || !strings.Contains(err.Error(), string(id)) {
		t.Error(err)
	}
	if got, _ := a.Get(id); got.State != Expired {
		t.Error(got.State)
	}
	r.NoWait, r.Timeout = true, time.Minute
	a.Acquire(t.Context(), r, nil)
	l.clock.pass(time.Minute)
	if _, _, err := a.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if list, _ := a.List(false); len(list) != 0 {
		t.Errorf("%+v", list)
	}
}

func TestTheLastWhoGoesWithdrawsTheRequest(t *testing.T) {
	l := newLab(t)
	a := l.open()
	one, two := l.ask(a, request()), l.ask(a, request())
	id := (<-one.waiting).ID
	<-two.waiting
	one.cancel()
	if err := one.wait(); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if got, _ := a.Get(id); got.State != Pending {
		t.Error(got.State)
	}
	two.cancel()
	two.wait()
	if got, _ := a.Get(id); got.State != Withdrawn || got.Text != nil {
		t.Error(got.State)
	}
	if _, err := a.Approve(t.Context(), ann, id, request().Sum(), ""); isle.CodeOf(err) != isle.Conflict {
		t.Errorf("approved after it was withdrawn: %v", err)
	}
}

// A use that the first does not take, because they go, is for the next.
func TestAUseThatIsNotTakenIsForWhoStillWaits(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r := request()
	r.Still = func() error { return isle.Errorf(isle.Refused, "its role has ended") }
	first := l.ask(a, r)
	<-first.waiting
	second := l.ask(a, request())
	card := <-second.waiting
	if _, err := a.Approve(t.Context(), ann, card.ID, card.Hash, ""); err != nil {
		t.Fatal(err)
	}
	if err := first.wait(); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "its role has ended") {
		t.Error(err)
	}
	if err := second.wait(); err != nil {
		t.Error(err)
	}
	if list, _ := a.List(false); len(list) != 0 {
		t.Errorf("%+v is left", list)
	}
}

func TestAfterACrashWhatWasSpentIsSpentAndItsOutcomeUnknown(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r := request()
	r.NoWait = true
	a.Acquire(t.Context(), r, nil)
	list, _ := a.List(false)
	a.Approve(t.Context(), ann, list[0].ID, list[0].Hash, "")
	waits := request()
	waits.Text = []byte("DELETE FROM orders WHERE id = 1")
	c := l.ask(a, waits)
	held := <-c.waiting
	if _, err := a.Acquire(t.Context(), r, nil); err != nil {
		t.Fatal(err)
	}
	// The server dies here: the outcome is never written.
	again := l.open()
	if _, err := again.Acquire(t.Context(), r, nil); isle.CodeOf(err) != isle.Held {
		t.Errorf("it is done twice: %v", err)
	}
	if got, _ := again.Get(held.ID); got.State != Withdrawn {
		t.Errorf("what waited is %s", got.State)
	}
	open := map[isle.ID]bool{}
	for _, e := range l.store.Entries() {
		switch e.Kind {
		case audit.Intent:
			open[e.ID] = true
		case audit.Outcome:
			delete(open, e.Link)
		}
	}
	if len(open) != 1 {
		t.Errorf("%d intents without an outcome, which recovery closes as unknown; want 1", len(open))
	}
}

func TestWithoutTheStoreNothingIsAllowed(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r := request()
	r.NoWait = true
	a.Acquire(t.Context(), r, nil)
	list, _ := a.List(false)
	l.store.Fail(isle.Errorf(isle.Unavailable, "the disk is away"))
	if _, err := a.Approve(t.Context(), ann, list[0].ID, list[0].Hash, ""); isle.CodeOf(err) != isle.Unavailable {
		t.Error(err)
	}
	l.store.Fail(nil)
	if _, err := a.Approve(t.Context(), ann, list[0].ID, list[0].Hash, ""); err != nil {
		t.Fatal(err)
	}
	l.store.Fail(isle.Errorf(isle.Unavailable, "the disk is away"))
	if _, err := a.Acquire(t.Context(), r, nil); isle.CodeOf(err) != isle.Unavailable {
		t.Errorf("it was spent without a word: %v", err)
	}
	l.store.Fail(nil)
	if _, err := a.Acquire(t.Context(), r, nil); err != nil {
		t.Errorf("the use is gone: %v", err)
	}
}

func TestWhatWasChangedBehindTheLogApprovesNothing(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r := request()
	r.NoWait = true
	a.Acquire(t.Context(), r, nil)
	l.store.Edit(ledgerName, func(records []ledger.Record) []ledger.Record {
		for i := range records {
			records[i].Body = []byte(strings.ReplaceAll(string(records[i].Body), Pending, Approved))
		}
		return records
	})
	a = l.open()
	if _, err := a.Acquire(t.Context(), r, nil); isle.CodeOf(err) != isle.Unavailable {
		t.Error(err)
	}
	if _, err := a.List(true); isle.CodeOf(err) != isle.Unavailable {
		t.Error(err)
	}
}

func TestAChangeOfThePolicyEndsWhatItHasNoRoomFor(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r := request()
	r.NoWait, r.Text = true, []byte("SELECT 1")
	a.Acquire(t.Context(), r, nil)
	list, _ := a.List(false)
	a.Approve(t.Context(), ann, list[0].ID, list[0].Hash, "")
	c := l.ask(a, request())
	waits := <-c.waiting
	l.stands = func(Request) error { return isle.Errorf(isle.Refused, "there is no connection orders-db any more") }
	if _, err := a.Acquire(t.Context(), r, nil); isle.CodeOf(err) != isle.Refused {
		t.Errorf("before the change was noticed: %v", err)
	}
	if err := a.PolicyChanged(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.wait(); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "no connection orders-db") {
		t.Error(err)
	}
	for _, id := range []isle.ID{list[0].ID, waits.ID} {
		if got, _ := a.Get(id); got.State != Withdrawn {
			t.Error(got.State)
		}
	}
}

func TestRequestsAreBounded(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r := request()
	r.NoWait = true
	ask := func(text string) error {
		r.Text = []byte(text)
		_, err := a.Acquire(t.Context(), r, nil)
		return err
	}
	for i := range MaxEach {
		if err := ask(fmt.Sprint(i)); isle.CodeOf(err) != isle.Held {
			t.Fatal(err)
		}
	}
	if err := ask("one more"); isle.CodeOf(err) != isle.Exhausted {
		t.Error(err)
	}
	r.Actor.Name = "other@production"
	if err := ask(strings.Repeat("x", MaxText+1)); isle.CodeOf(err) != isle.Exhausted {
		t.Error(err)
	}
	if err := ask(strings.Repeat("x", MaxText)); isle.CodeOf(err) != isle.Held {
		t.Error(err)
	}
	r.Params = make([]Param, 65535)
	if err := ask("many"); isle.CodeOf(err) != isle.Exhausted {
		t.Error(err)
	}
	r.Params = nil
	r.Context = []Pair{{"application_name", "\xff"}}
	if err := ask("x"); isle.CodeOf(err) != isle.Invalid {
		t.Error(err)
	}
	l.open() // what is there can be read again
}

func TestAskingAndGoingAgainAndAgainIsBounded(t *testing.T) {
	l := newLab(t)
	a := l.open()
	for i := range 2 * MaxEach {
		r := request()
		r.Text, r.Timeout = fmt.Append(nil, i), time.Nanosecond
		if _, err := a.Acquire(t.Context(), r, nil); isle.CodeOf(err) == isle.Exhausted {
			return
		}
	}
	t.Error("an identity writes as much into the log as it likes")
}

func TestWhoWatchesSeesWhatWaitsAndHowItComesOut(t *testing.T) {
	l := newLab(t)
	a := l.open()
	seen := make(chan Request, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.Watch(ctx, func(r Request) error { seen <- r; return nil })
	}()
	c := l.ask(a, request())
	r := <-c.waiting
	if first := <-seen; first.ID != r.ID || first.State != Pending {
		t.Fatal(first)
	}
	a.Deny(t.Context(), ann, r.ID, "no")
	for got := range seen {
		if got.ID != r.ID {
			t.Fatal(got)
		}
		if got.State == Denied {
			break
		}
	}
	cancel()
	<-done
}
