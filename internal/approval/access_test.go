package approval

import (
	"slices"
	"strings"
	"testing"
	"time"

	"isle"
	"isle/internal/policy"
)

// accessRequest asks for a door to write.
func accessRequest(actor isle.Actor) Request {
	return Request{
		Actor: actor, Stage: "production", Actions: []isle.Action{isle.ActionAccessRequest}, Rule: "approval at main.yaml:20:5", Approvers: []string{"human:bob"}, Why: "incident 77",
		Access: &Access{
			What: KindDoor, Name: "orders-db", Connections: []string{"orders-db"}, Actions: []isle.Action{isle.ActionConnectionOpen, isle.ActionPostgresWrite}, For: 15 * time.Minute,
			Subject: policy.Subject{Kind: string(actor.Kind), Name: actor.Name},
		},
	}
}

// withConnections is what the main document has in these tests.
const withConnections = `
bindings: [{role: admin, subjects: [human:root]}]
connections:
  orders-db: {kind: postgres, address: "db.example:5432", database: orders, stage: production}
`

// may decides by what was published.
func (l *lab) may(actor isle.Actor, action isle.Action) bool {
	l.t.Helper()
	set, err := policy.Compile(policy.Document{Name: "main", Format: policy.YAML, Body: []byte(withConnections)}, policy.Document{Name: GrantedDocument, Format: policy.YAML, Body: []byte(l.grants.document)})
	if err != nil {
		l.t.Fatalf("%v\n%s", err, l.grants.document)
	}
	return set.Decide(policy.Query{Actor: actor, Stage: "production", Action: action, Resource: isle.Resource{Kind: "connection", Name: "orders-db", Stage: "production"}, Now: l.clock.now()}).Allowed()
}

func TestAccessIsGivenForATimeAndEndsByItself(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r, err := a.Request(t.Context(), accessRequest(ann.Actor))
	if err != nil || r.State != Pending {
		t.Fatal(err)
	}
	again, err := a.Request(t.Context(), accessRequest(ann.Actor))
	if err != nil || again.ID != r.ID || again.Count != 2 {
		t.Fatalf("asked again: %v %+v", err, again)
	}
	if _, err := a.Approve(t.Context(), ann, r.ID, r.Hash, ""); isle.CodeOf(err) != isle.Refused {
		t.Fatal(err)
	}
	a = l.open() // it waits for people, and not for a client
	if _, err := a.Approve(t.Context(), bob, r.ID, r.Hash, ""); err != nil {
		t.Fatal(err)
	}
	if !l.may(ann.Actor, isle.ActionPostgresWrite) || l.may(ann.Actor, isle.ActionPostgresSchema) || l.may(eve.Actor, isle.ActionPostgresWrite) {
		t.Fatalf("%s", l.grants.document)
	}
	l.clock.pass(15 * time.Minute)
	if l.may(ann.Actor, isle.ActionPostgresWrite) {
		t.Error("it holds beyond its end")
	}
	if _, _, err := a.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l.grants.document != string(Nothing()) {
		t.Errorf("%s", l.grants.document)
	}
}

func TestAccessIsTakenBack(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r, _ := a.Request(t.Context(), accessRequest(ann.Actor))
	if _, err := a.Approve(t.Context(), bob, r.ID, r.Hash, ""); err != nil {
		t.Fatal(err)
	}
	if list, _ := a.List(false); len(list) != 1 {
		t.Errorf("%+v", list)
	}
	if _, err := a.Deny(t.Context(), eve, r.ID, ""); isle.CodeOf(err) != isle.Refused {
		t.Fatal(err)
	}
	if _, err := a.Deny(t.Context(), ann, r.ID, "done with it"); err != nil {
		t.Fatal(err)
	}
	if l.may(ann.Actor, isle.ActionPostgresWrite) {
		t.Error("it holds")
	}
}

func TestAccessOfAWorkloadIsOfItAlone(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r := accessRequest(shop)
	r.Access.Subject = policy.Subject{Kind: "workload", Project: "shop", Stage: "production", Environment: "shop"}
	r, _ = a.Request(t.Context(), r)
	if _, err := a.Approve(t.Context(), bob, r.ID, r.Hash, ""); err != nil {
		t.Fatal(err)
	}
	set, err := policy.Compile(policy.Document{Name: "main", Format: policy.YAML, Body: []byte(withConnections)}, policy.Document{Name: GrantedDocument, Format: policy.YAML, Body: []byte(l.grants.document)})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"shop": true, "shop-2": false} {
		q := policy.Query{Actor: isle.Actor{Kind: isle.Workload, Name: name + "@production"}, Place: policy.Place{Project: "shop", Stage: "production", Environment: name}, Action: isle.ActionPostgresWrite, Resource: r.Resource(), Now: l.clock.now()}
		if got := set.Decide(q).Allowed(); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestAPolicyThatWouldNotCompileGrantsNothing(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r, _ := a.Request(t.Context(), accessRequest(ann.Actor))
	l.grants.err = isle.Errorf(isle.Invalid, "granted.yaml:6:5: unknown role")
	if _, err := a.Approve(t.Context(), bob, r.ID, r.Hash, ""); isle.CodeOf(err) != isle.Invalid {
		t.Fatal(err)
	}
	if got, _ := a.Get(r.ID); got.State != Pending {
		t.Error(got.State)
	}
}

func TestBrokenGlassWorksAtOnceAndIsListedUntilSomebodyElseReviewedIt(t *testing.T) {
	l := newLab(t)
	a := l.open()
	if _, err := a.Break(t.Context(), accessRequest(shop)); isle.CodeOf(err) != isle.Refused {
		t.Errorf("a workload: %v", err)
	}
	r, err := a.Break(t.Context(), accessRequest(ann.Actor))
	if err != nil || !l.may(ann.Actor, isle.ActionPostgresWrite) {
		t.Fatal(err)
	}
	// What an approval would hold passes, under the rule's name.
	held := request()
	held.Actor, held.Instance = ann.Actor, ""
	use, err := a.Acquire(t.Context(), held, nil)
	if err != nil || use.Rule() != BreakGlass || use.Approval() != r.ID {
		t.Fatal(err)
	}
	use.Done("UPDATE 1")
	if got := l.entries(isle.ActionPostgresWrite); !slices.Equal(got, []string{"intent human:ann allow ", "outcome human:ann allow ok"}) {
		t.Errorf("%q", got)
	}
	if got := l.entries(isle.ActionAccessBreakGlass); len(got) != 1 {
		t.Errorf("%q", got)
	}
	elsewhere := held
	elsewhere.Connection, elsewhere.NoWait = "other-db", true
	if _, err := a.Acquire(t.Context(), elsewhere, nil); isle.CodeOf(err) != isle.Held {
		t.Errorf("another connection: %v", err)
	}
	l.clock.pass(time.Hour)
	a.sweep(t.Context())
	held.NoWait = true
	if _, err := a.Acquire(t.Context(), held, nil); isle.CodeOf(err) != isle.Held {
		t.Errorf("after its end: %v", err)
	}
	listed := func() bool {
		list, _ := a.List(false)
		return slices.ContainsFunc(list, func(o Request) bool { return o.ID == r.ID })
	}
	if !listed() {
		t.Error("it is not listed any more, and nobody reviewed it")
	}
	if _, err := a.Reviewed(t.Context(), ann, r.ID, "all well"); isle.CodeOf(err) != isle.Refused {
		t.Errorf("ann reviews what she took: %v", err)
	}
	if _, err := a.Reviewed(t.Context(), bob, r.ID, "all well"); err != nil {
		t.Fatal(err)
	}
	if listed() {
		t.Error("it is listed still")
	}
}

func TestAccessIsBounded(t *testing.T) {
	l := newLab(t)
	a := l.open()
	for name, change := range map[string]func(r *Request){
		"too long":  func(r *Request) { r.Access.For = MaxAccess + 1 },
		"too short": func(r *Request) { r.Access.For = 0 },
		"no reason": func(r *Request) { r.Why = "  " },
	} {
		r := accessRequest(ann.Actor)
		if change(&r); r.Access == nil {
			continue
		}
		if _, err := a.Request(t.Context(), r); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := accessRequest(ann.Actor)
	r.Access.For = MaxBreakGlass + 1
	if _, err := a.Break(t.Context(), r); isle.CodeOf(err) != isle.Invalid {
		t.Error(err)
	}
}

func TestAGrantIsInForceAgainAfterADeathInBetween(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r, _ := a.Request(t.Context(), accessRequest(ann.Actor))
	a.Approve(t.Context(), bob, r.ID, r.Hash, "")
	l.grants.document = "" // the server died before the policy was written
	a = l.open()
	if err := a.Publish(t.Context()); err != nil || !strings.Contains(l.grants.document, string(r.ID)) {
		t.Errorf("%v %s", err, l.grants.document)
	}
}

func TestWhatIsTakenBackIsTakenBackAsSoonAsItCanBe(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r, _ := a.Request(t.Context(), accessRequest(ann.Actor))
	a.Approve(t.Context(), bob, r.ID, r.Hash, "")
	l.grants.err = isle.Errorf(isle.Unavailable, "the disk is full")
	if _, err := a.Deny(t.Context(), bob, r.ID, ""); isle.CodeOf(err) != isle.Unavailable {
		t.Errorf("it is said to be over, and is not: %v", err)
	}
	l.grants.err = nil
	if _, _, err := a.sweep(t.Context()); err != nil || l.may(ann.Actor, isle.ActionPostgresWrite) {
		t.Errorf("it holds: %v", err)
	}
}
