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
	if out := s.must("drift", "storefront", "--full"); !strings.Contains(out, "storefront: testing, staging, production are equal: release "+two[7:19]) {
		t.Errorf("the stages are not equal:\n%s", out)
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

// The database is released with a schema that the release before can't use: nobody
// goes back to that without its data, and with it all is as it was then. What was
// written since is not lost.
func TestADatabaseWithAnotherSchemaGoesBackWithItsData(t *testing.T) {
	s := open(t)
	one := s.release("orders.yaml")
	s.edit("orders.yaml", "schema: {version: 1}", "schema: {version: 2}")
	two := s.release("orders.yaml")
	if _, err := s.promote("orders", "testing", "--release", one); err != nil {
		t.Fatal(err)
	}
	s.must("up", "--release", "orders@testing")
	ask := func(environment, sql string) string {
		t.Helper()
		return strings.TrimSpace(s.must("exec", environment, "--", "psql", "-XqAt", "-h", "/run/postgresql", "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-c", sql, "orders"))
	}
	insert := "insert into orders (customer, product, quantity, price) values ('%', 'Tea kettle', 1, 54.30)"
	ask("orders", strings.Replace(insert, "%", "Before", 1))
	there, err := s.promote("orders", "testing", "--release", two)
	if err != nil {
		t.Fatal(err)
	}
	if there.Switch.Pause <= 0 || there.Switch.Snapshot == "" || there.Switch.Kept {
		t.Errorf("%+v", there.Switch)
	}
	t.Logf("requests waited for %.0f ms", there.Switch.Pause*1000)
	ask("orders", "alter table orders add column gift boolean not null default false")
	ask("orders", strings.Replace(insert, "%", "Since", 1))

	// Refused, with what would be lost and how to look at it.
	_, err = s.isle("rollback", "orders@testing")
	if exit(err) != 1 {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{"only releases of schema 2", "isle rollback orders@testing --restore", "what was written since is in a snapshot then, and not in the stage", "isle diff " + there.Switch.Snapshot[7:19] + " orders@testing"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("it does not say %q: %v", want, err)
		}
	}
	if out := s.must("diff", there.Switch.Snapshot[7:19], "orders@testing"); !strings.Contains(out, "/data") {
		t.Errorf("what would be lost is not shown:\n%s", out)
	}
	if got := ask("orders", "select count(*) from orders where customer in ('Before', 'Since')"); got != "2" {
		t.Errorf("a rollback that was refused has left %s of 2 orders", got)
	}

	var back struct{ Release, Restored, Saved string }
	s.read(&back, "rollback", "orders@testing", "--restore")
	if back.Release != one || back.Restored != there.Switch.Snapshot || back.Saved == "" {
		t.Errorf("%+v", back)
	}
	if got := ask("orders", "select count(*) from orders where customer = 'Before'"); got != "1" {
		t.Errorf("what was written before is there %s times", got)
	}
	if got := ask("orders", "select count(*) from orders where customer = 'Since'"); got != "0" {
		t.Errorf("what was written since is there %s times", got)
	}
	if got := ask("orders", "select count(*) from information_schema.columns where table_name = 'orders' and column_name = 'gift'"); got != "0" {
		t.Error("the schema is still the other one")
	}
	s.must("fork", back.Saved[7:19], "--name", "saved")
	s.eventually("saved", "pg_isready", "-h", "/run/postgresql") // it was copied as it ran
	if got := ask("saved", "select gift from orders where customer = 'Since'"); got != "f" {
		t.Errorf("what was written since is not in the snapshot: %q", got)
	}
	s.must("audit", "verify")
}
