package approval

import (
	"testing"
	"time"

	"isle"
	"isle/internal/audit"
)

// promotion asks people whether a release may go to production.
func promotion(by isle.Actor, text string) Request {
	return Request{
		Actor: by, Connection: "shop", Kind: KindRelease, Stage: "production", Actions: []isle.Action{isle.ActionReleasePromote}, Rule: "approval at main.yaml:30:5",
		Approvers: []string{"human:ann", "human:bob"}, Quorum: 2, Separate: true, NoWait: true, Timeout: time.Hour, ValidFor: time.Hour, Uses: 1, Text: []byte(text), Shape: "promote",
	}
}

func TestAPromotionIsAskedOnceAndIsOfJustThat(t *testing.T) {
	l := newLab(t)
	a := l.open()
	if _, ok, err := a.Find(t.Context(), promotion(eve.Actor, "one")); ok || err != nil {
		t.Fatal("nobody asked yet", err)
	}
	r, err := a.Ask(t.Context(), promotion(eve.Actor, "one"))
	if err != nil || r.State != Pending || r.Resource().String() != "release:shop@production" {
		t.Fatal(r.Resource(), r.State, err)
	}
	if again, err := a.Ask(t.Context(), promotion(eve.Actor, "one")); err != nil || again.ID != r.ID {
		t.Fatal("asked again it is another request", err)
	}
	for _, d := range []Decider{ann, bob} {
		if _, err := a.Acquire(t.Context(), promotion(eve.Actor, "one"), nil); isle.CodeOf(err) != isle.Held {
			t.Fatalf("done before both agreed: %v", err)
		}
		if _, err := a.Approve(t.Context(), d, r.ID, r.Hash, ""); err != nil {
			t.Fatal(err)
		}
	}
	a = l.open() // it waits for people, and not for a client
	if found, ok, err := a.Find(t.Context(), promotion(eve.Actor, "one")); !ok || err != nil || found.State != Approved || found.Used != 0 {
		t.Fatal(found.State, ok, err)
	}
	for what, other := range map[string]Request{"other values": promotion(eve.Actor, "two"), "somebody else": promotion(ann.Actor, "one")} {
		if _, err := a.Acquire(t.Context(), other, nil); isle.CodeOf(err) != isle.Held {
			t.Errorf("%s pass with it: %v", what, err)
		}
	}
	use, err := a.Acquire(t.Context(), promotion(eve.Actor, "one"), nil)
	if err != nil || use.Approval() != r.ID {
		t.Fatal(err)
	}
	if err := use.Done("promoted"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Acquire(t.Context(), promotion(eve.Actor, "one"), nil); isle.CodeOf(err) != isle.Held {
		t.Fatalf("it was used twice: %v", err)
	}
}

func TestWhoAsksForAPromotionDoesNotAgreeToItWhereOthersHaveTo(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r, err := a.Ask(t.Context(), promotion(ann.Actor, "one"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Approve(t.Context(), ann, r.ID, r.Hash, ""); isle.CodeOf(err) != isle.Refused {
		t.Errorf("who asks approves: %v", err)
	}
	if _, err := a.Deny(t.Context(), bob, r.ID, "not on a Friday"); err != nil {
		t.Fatal(err)
	}
	found, ok, err := a.Find(t.Context(), promotion(ann.Actor, "one"))
	if err != nil || !ok || found.State != Denied || found.Decisions[0].Reason != "not on a Friday" {
		t.Errorf("why it was denied is not found: %+v, %v", found, err)
	}
	if next, err := a.Ask(t.Context(), promotion(ann.Actor, "one")); err != nil || next.ID == r.ID || next.State != Pending {
		t.Errorf("it cannot be asked for again: %v", err)
	}
}

func TestAPromotionPastItsGatesIsListedUntilSomebodyElseReviewsIt(t *testing.T) {
	l := newLab(t)
	a := l.open()
	r := promotion(ann.Actor, "one")
	if _, err := a.PassedOver(t.Context(), r, "past soak"); isle.CodeOf(err) != isle.Invalid {
		t.Errorf("no reason is needed: %v", err)
	}
	r.Why = "the site is down"
	robot := r
	robot.Actor = isle.Actor{Kind: isle.Machine, Name: "ci"}
	if _, err := a.PassedOver(t.Context(), robot, "past soak"); isle.CodeOf(err) != isle.Refused {
		t.Errorf("a machine breaks the glass: %v", err)
	}
	r.Approvers = []string{"human:ann", "human:bob"}
	made, err := a.PassedOver(t.Context(), r, "past soak")
	if err != nil {
		t.Fatal(err)
	}
	if l.grants.document != "" {
		t.Errorf("it gives access:\n%s", l.grants.document)
	}
	a = l.open()
	if list, err := a.List(false); err != nil || len(list) != 1 || !list[0].Access.Glass || list[0].Shape != "past soak" {
		t.Fatalf("%+v, %v", list, err)
	}
	if _, err := a.Reviewed(t.Context(), ann, made.ID, ""); isle.CodeOf(err) != isle.Refused {
		t.Errorf("they review themselves: %v", err)
	}
	if _, err := a.Reviewed(t.Context(), bob, made.ID, "right"); err != nil {
		t.Fatal(err)
	}
	if list, err := a.List(false); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	var entries []audit.Entry
	for _, e := range l.store.Entries() {
		if e.Action == isle.ActionReleaseSkip {
			entries = append(entries, e)
		}
	}
	if len(entries) != 1 || entries[0].Rule != BreakGlass || entries[0].Details["why"] != "the site is down" {
		t.Errorf("%+v", entries)
	}
}
