package stages

import (
	"slices"
	"strings"
	"testing"
)

func stages() []string { return []string{"testing", "staging", "production"} }

// databases has the database run in every stage, released by itself.
func (s *shop) databases() {
	s.Helper()
	one := s.release("orders.yaml")
	for _, stage := range stages() {
		args := []string{}
		if stage == "testing" {
			args = []string{"--release", one}
		}
		if _, err := s.promote("orders", stage, args...); err != nil {
			s.Fatal(err)
		}
		s.must("up", "--release", "orders@"+stage)
	}
}

// policy applies the example's, with shorter waits and one key that has to have
// signed.
func (s *shop) policy() {
	s.Helper()
	var keys []struct {
		Name string
	}
	s.read(&keys, "release", "trust")
	s.edit("stages.yaml", "soak: 24h", "soak: 2s", "quiet: 1h", "quiet: 1s", "fresh: 720h", "fresh: 720h\n    signers: ["+keys[0].Name+"]", "uses: 1}", "uses: 12}")
	s.must("apply", "-f", "stages.yaml", "--document", "shop")
}

// approve says yes to the one request that waits.
func (s *shop) approve() {
	s.Helper()
	var waiting []struct{ ID, State string }
	s.read(&waiting, "approvals")
	waiting = slices.DeleteFunc(waiting, func(r struct{ ID, State string }) bool { return r.State != "pending" })
	if len(waiting) != 1 {
		s.Fatalf("%d requests wait: %+v", len(waiting), waiting)
	}
	s.must("approvals", "approve", waiting[0].ID, "--yes")
}

// The shop goes through its stages, each time through every gate, with one
// approval, while production is under load: ten switches, ten rollbacks, and no
// request fails.
func TestTheShopIsPromotedThroughItsGatesWithOneApproval(t *testing.T) {
	s := open(t)
	s.policy()
	s.databases()
	one := s.release("storefront.yaml")
	s.edit("app/shop.py", "<h1>Orders</h1>", "<h1>Orders, newest first</h1>")
	two := s.release("storefront.yaml")
	through := func(digest string) promoted {
		t.Helper()
		var out promoted
		for _, stage := range stages() {
			args := []string{}
			if stage == "testing" {
				args = []string{"--release", digest}
			}
			got, err := s.promote("storefront", stage, args...)
			if stage == "production" && exit(err) == 4 {
				s.approve()
				got, err = s.promote("storefront", stage)
			} else if stage == "production" {
				t.Errorf("nobody was asked: %+v, %v", got, err)
			}
			if err != nil {
				t.Fatal(err)
			}
			s.must("up", "--release", "storefront@"+stage) // nothing to do where it was switched
			out = got
		}
		return out
	}
	through(one)
	at := s.address("storefront@production")
	load, visits := startWrk(t, "http://"+at+"/healthz"), startVisitor(t, at)
	met := through(two).Gates
	for _, kind := range []string{"soak", "quiet", "fresh", "signers", "check", "approvals"} {
		if !slices.ContainsFunc(met, func(g gate) bool { return g.Kind == kind && g.State == "met" && g.Claim == (kind == "check") }) {
			t.Errorf("no gate %s is met: %+v", kind, met)
		}
	}
	for n := 1; n <= 10; n++ {
		if n > 1 { // what people have agreed to holds, and every gate is asked again
			got, err := s.promote("storefront", "production")
			if err != nil {
				t.Fatal(err)
			}
			if got.Switch.Kept || got.Switch.Instance == "" || got.Switch.Pause != 0 || len(got.Gates) != len(met) {
				t.Errorf("switch %d: %+v", n, got)
			}
			t.Logf("switch %d took %.0f ms", n, got.Switch.Took*1000)
		}
		if err := visits.sees("Orders, newest first"); err != nil {
			t.Errorf("after switch %d: %v", n, err)
		}
		var back struct{ Switch switched }
		s.read(&back, "rollback", "storefront@production")
		if !back.Switch.Kept {
			t.Errorf("rollback %d: %+v", n, back)
		}
		t.Logf("rollback %d took %.0f ms", n, back.Switch.Took*1000)
		if err := visits.sees("Orders"); err != nil {
			t.Errorf("after rollback %d: %v", n, err)
		}
		if _, err := s.promote("storefront", "production"); exit(err) != 3 || !strings.Contains(err.Error(), "was rolled back from release") {
			t.Errorf("promoted again: %v", err)
		}
		s.must("release", "clear", "storefront@production", two)
	}
	requests, failed := load.end(t)
	if visits.end(); failed != "" || len(visits.failed) > 0 || requests == 0 {
		t.Errorf("of %d requests of wrk: %s; of %d with a connection of their own %d: %v", requests, failed, visits.asked, len(visits.failed), visits.failed)
	}
	t.Logf("%d requests of wrk, none failed; and with connections of their own %v", requests, visits.seen)
	s.must("audit", "verify")
}
