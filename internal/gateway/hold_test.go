package gateway_test

import (
	"io"
	"strings"
	"testing"
	"time"

	"isle"
	"isle/internal/approval"
	"isle/internal/gateway"
	"isle/internal/gateway/gatewaytest"
)

const approvals = `
approvals:
  - {actions: [postgres:write], resources: [connection:orders-db], approvers: [human:root], when: {tables: [ledger]}, timeout: 20m}
  - {actions: [postgres:write], resources: [connection:orders-db], approvers: [human:bo], when: {tables: [accounts]}}
  - {actions: [postgres:write], resources: [connection:orders-db], approvers: [human:root], when: {tables: [later]}, hold: error}
`

func heldWorld(t *testing.T) *gatewaytest.World {
	w := world(t)
	w.Apply(document + approvals)
	return w
}

func mill(w *gatewaytest.World, t *testing.T) (*client, isle.ID) {
	caller := gatewaytest.Workload("mill", "testing")
	return connect(w, t, caller, "orders-db"), caller.Instance
}

func TestWhatIsHeldPassesOnceAHumanHasApprovedIt(t *testing.T) {
	w := heldWorld(t)
	c, instance := mill(w, t)
	c.wants("read", "ok")
	c.wants("held", "waits: approval at main.yaml")
	r := w.Held()
	if n := w.Gateway.Waiting(instance); n["orders-db"] != 1 {
		t.Errorf("%v wait", n)
	}
	if string(r.Text) != "held" || r.Estimate != "about 3 rows" || r.Connection != "orders-db" || r.Stage != "testing" || r.Actor.Name != "mill@testing" ||
		r.Owner != "human:ann" || r.Instance != instance || r.Session == "" || r.Timeout != 20*time.Minute || r.Address != "127.0.0.1:5432" {
		t.Errorf("%+v", r)
	}
	w.Decide(r, true, "fine")
	c.wants("", "ok")
	if n := w.Gateway.Waiting(instance); len(n) != 0 {
		t.Errorf("%v wait", n)
	}
	writes := w.Log.Entries(isle.ActionPostgresWrite)
	if len(writes) == 0 {
		t.Fatal("nothing is written down")
	}
	var passed bool
	for _, e := range writes {
		passed = passed || e.Kind == "event" && e.Decision == isle.Allow && e.Details["approval"] == string(r.ID) && strings.HasPrefix(e.Rule, "approval at main.yaml")
	}
	if !passed {
		t.Errorf("%+v", writes)
	}
	c.wants("held", "waits: ") // a use is one
	w.Decide(w.Held(), false, "not today")
	c.wants("", "not today")
	c.wants("read", "ok")
}

func TestWhatTwoRulesHoldNeedsBoth(t *testing.T) {
	w := heldWorld(t)
	c, _ := mill(w, t)
	c.wants("two", "waits: ")
	first := w.Held()
	w.Decide(first, true, "")
	c.wants("", "waits: ")
	second := w.Held()
	if first.Rule == second.Rule {
		t.Errorf("%s twice", first.Rule)
	}
	w.Decide(second, false, "one is not enough")
	c.wants("", "one is not enough")
	for _, e := range w.Log.Entries(isle.ActionPostgresWrite) {
		if e.Kind == "event" && e.Decision == isle.Allow {
			t.Errorf("it passed: %+v", e)
		}
	}
}

func TestAHoldInATransactionThatHasWrittenIsShort(t *testing.T) {
	w := heldWorld(t)
	c, _ := mill(w, t)
	c.wants("in write: held", "waits: ")
	if r := w.Held(); r.Timeout != time.Minute {
		t.Errorf("it waits for %s", r.Timeout)
	}
}

func TestAClientThatDoesNotWaitIsToldToComeAgain(t *testing.T) {
	w := heldWorld(t)
	c, _ := mill(w, t)
	c.wants("later", "no: it awaits approval: request ")
	w.Decide(w.Held(), true, "")
	c.wants("later", "ok")
	c.wants("later", "no: it awaits approval: request ")
}

func TestWhoeverLeavesWithdrawsWhatWaits(t *testing.T) {
	w := heldWorld(t)
	c, _ := mill(w, t)
	c.wants("held", "waits: ")
	r := w.Held()
	w.Gateway.Close()
	<-c.served
	if got, err := w.Approvals.Get(r.ID); err != nil || got.State != approval.Withdrawn {
		t.Errorf("%+v %v", got, err)
	}
}

// What was approved before the policy said no is not done after.
func TestAnApprovalDoesNotOutliveThePolicyItWasAskedUnder(t *testing.T) {
	for name, x := range map[string]struct{ document, want string }{
		"denied by a rule":    {strings.Replace(document, "tables: [payments]", "tables: [payments, ledger]", 1) + approvals, "payments are nobody's"},
		"role is gone":        {strings.Replace(document, "[connection:open, postgres:select, postgres:write]", "[connection:open]", 1) + approvals, "default: nothing grants it"},
		"other approvers":     {document + strings.Replace(approvals, "[human:root], when: {tables: [ledger]}", "[human:cy], when: {tables: [ledger]}", 1), "the policy has changed"},
		"another rule by now": {document + strings.Replace(approvals, "approvers: [human:root], when: {tables: [ledger]}", "approvers: [human:cy], quorum: 2, when: {tables: [ledger, x]}", 1) + "\n  - {actions: [postgres:write], resources: [connection:orders-db], approvers: [human:dee]}\n", "the policy has changed"},
	} {
		t.Run(name, func(t *testing.T) {
			w := heldWorld(t)
			c, _ := mill(w, t)
			c.wants("held", "waits: ")
			r := w.Held()
			w.Apply(x.document)
			w.Decide(r, true, "")
			c.wants("", x.want)
			for _, e := range w.Log.Entries(isle.ActionPostgresWrite) {
				if e.Kind != "event" || e.Decision == isle.Allow {
					t.Errorf("it passed: %+v", e)
				}
			}
		})
	}
}

func TestADoorThatHasToBeApprovedOpensOnceItIs(t *testing.T) {
	w := world(t)
	w.Apply(document + "approvals: [{actions: [connection:open], resources: [connection:orders-db], approvers: [human:root]}]\n")
	shop := gatewaytest.Workload("shop", "testing")
	c := connect(w, t, shop, "orders-db")
	io.WriteString(c.conn, "read\n")
	r := w.Held()
	if r.Actions[0] != isle.ActionConnectionOpen || w.Gateway.Waiting(shop.Instance)["orders-db"] != 1 {
		t.Errorf("%+v", r)
	}
	w.Decide(r, true, "")
	c.wants("", "ok")
	w.Apply("\n\n" + document + "approvals: [{actions: [connection:open], resources: [connection:orders-db], approvers: [human:root]}]\n")
	c.wants("read", "ok")
	w.Apply("\n" + document + "approvals: [{actions: [connection:open], resources: [connection:orders-db], approvers: [human:bo]}]\n")
	c.wants("", "over: connection orders-db: to have it open needs a human's approval now")

	gone := connect(w, t, gatewaytest.Workload("shop", "testing"), "orders-db")
	r = w.Held()
	gone.conn.Close() // nobody reads from it, and it is seen all the same
	if err := <-gone.served; err == nil || !strings.Contains(err.Error(), "the client left") {
		t.Error(err)
	}
	if got, err := w.Approvals.Get(r.ID); err != nil || got.State != approval.Withdrawn {
		t.Errorf("%+v %v", got, err)
	}
}

func TestWithoutAnybodyToAskWhatIsHeldIsRefused(t *testing.T) {
	w := world(t, func(c *gateway.Config) { c.Approvals = nil })
	w.Apply(document + approvals)
	c, _ := mill(w, t)
	c.wants("held", "this server asks none")
}
