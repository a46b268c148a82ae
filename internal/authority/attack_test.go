package authority

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"isle"
	"isle/internal/policy"
)

// A clock that tests set.
type clock struct{ at atomic.Pointer[time.Time] }

func newClock(at time.Time) *clock {
	c := &clock{}
	c.set(at)
	return c
}

func (c *clock) set(at time.Time) { c.at.Store(&at) }
func (c *clock) now() time.Time   { return *c.at.Load() }

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// Whoever can set the clock back revives nothing that has ended, in this run of
// the server and in the next.
func TestAGrantThatHasEndedStaysEndedWhenTheClockIsSetBack(t *testing.T) {
	c := newClock(noon)
	m := &memory{docs: map[string]Stored{}}
	a, err := Open(t.Context(), Config{Store: m, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	body := strings.Replace(policy.Default, "bindings:", "bindings:\n  - {role: admin, subjects: [human:temp], expires: 2026-06-01T13:00:00Z}", 1)
	if _, err := a.Apply(t.Context(), root, request(body)); err != nil {
		t.Fatal(err)
	}
	if !may(a, "temp") {
		t.Fatal("the grant does not hold")
	}
	c.set(noon.Add(2 * time.Hour))
	if may(a, "temp") {
		t.Fatal("the grant has no end")
	}
	c.set(noon)
	if may(a, "temp") {
		t.Error("setting the clock back revived it")
	}
	if !a.Now().Equal(noon.Add(2 * time.Hour)) {
		t.Errorf("it is %s", a.Now())
	}
	// The next start has the log's last time.
	b, err := Open(t.Context(), Config{Store: m, Now: c.now, Since: noon.Add(90 * time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	if may(b, "temp") {
		t.Error("a restart with the clock set back revived it")
	}
}

// Timers do not jump with the clock: what waits for the end of a grant looks.
func TestAClockThatJumpsForwardEndsWhatIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClock(noon)
		a, err := Open(t.Context(), Config{Store: &memory{docs: map[string]Stored{}}, Now: c.now})
		if err != nil {
			t.Fatal(err)
		}
		body := strings.Replace(policy.Default, "bindings:", "bindings:\n  - {role: admin, subjects: [human:temp], expires: 2027-06-01}", 1)
		if _, err := a.Apply(t.Context(), root, request(body)); err != nil {
			t.Fatal(err)
		}
		ended := make(chan bool, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { ended <- a.Await(ctx, a.State(), noon, nil) }()
		synctest.Wait()
		begun := time.Now()
		c.set(noon.AddDate(2, 0, 0))
		if again := <-ended; !again || time.Since(begun) > time.Second {
			t.Errorf("%v after %s", again, time.Since(begun))
		}
		// One that ended between the question and the waiting is seen too.
		if !a.Await(ctx, a.State(), noon, nil) {
			t.Error("an end was missed")
		}
		go func() { ended <- a.Await(ctx, a.State(), c.now(), nil) }()
		synctest.Wait()
		cancel()
		if <-ended {
			t.Error("nothing changed")
		}
	})
}

func TestAKeeperWhoWillSoonBeNoneDoesNotCount(t *testing.T) {
	m := &memory{docs: map[string]Stored{}}
	a, err := Open(t.Context(), Config{Store: m, Now: newClock(noon).now, Reaches: func(who string) bool { return who != "group:empty" && who != "human:nobody" }})
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{
		"bindings: [{role: admin, subjects: [human:root], expires: 2026-06-01T12:00:01Z}]",
		"bindings: [{role: admin, subjects: [human:root], expires: 2026-06-05}]",
		"roles: {keep: {actions: [policy:apply], resources: [\"policy:policy\"], expires: 2026-06-02}}\nbindings: [{role: keep, subjects: [human:root]}]",
		"bindings: [{role: admin, subjects: [group:empty]}]",
		"bindings: [{role: admin, subjects: [human:nobody, group:empty]}]",
	} {
		r, err := a.Apply(t.Context(), root, request(body))
		if isle.CodeOf(err) != isle.Refused || !r.LocksOut || !strings.Contains(err.Error(), "lock everyone out") || !strings.Contains(err.Error(), "--lock-out --lock-out") {
			t.Errorf("%s: %v", body, err)
		}
	}
	if _, err := a.Apply(t.Context(), root, request("bindings: [{role: admin, subjects: [human:root], expires: 2026-12-31}, {role: admin, subjects: [group:empty]}]")); err != nil {
		t.Error(err)
	}
}

// A document that names other protected stages, or none, ends the protection of
// those before; that is said in words.
func TestTheEndOfAProtectionIsWarnedOf(t *testing.T) {
	a := open(t, &memory{docs: map[string]Stored{}}, false)
	for _, protected := range []string{"[]", "[staging]"} {
		req := request(strings.Replace(policy.Default, "protected: [production]", "protected: "+protected, 1))
		req.DryRun = true
		r, err := a.Apply(t.Context(), root, req)
		if err != nil || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "stage production would be protected no more") {
			t.Errorf("%s: %v %q", protected, err, r.Warnings)
		}
	}
}

// The policy is of no stage. Who may change it in one may change it in all.
func TestAKeeperOfOneStageIsWarnedOf(t *testing.T) {
	a := open(t, &memory{docs: map[string]Stored{}}, false)
	req := request(strings.Replace(policy.Default, "bindings:", "bindings:\n  - {role: admin, subjects: [human:ann], stages: [testing]}\n  - {role: developer, subjects: [human:bob], stages: [testing]}", 1))
	for want := 1; want >= 0; want-- {
		r, err := a.Apply(t.Context(), root, req)
		if err != nil || len(r.Warnings) != want || want == 1 && !strings.Contains(r.Warnings[0], "role admin, bound to human:ann in testing may change the policy") {
			t.Fatalf("%v %q", err, r.Warnings)
		}
		req = request(string(req.Document.Body) + "\n# and nothing new\n") // said once
	}
}

// Whoever may read the policy may ask what a change would do, as often as they
// like. The change that takes that from them waits for none of it.
func TestNoChangeWaitsForWhoOnlyAsks(t *testing.T) {
	asking, answer := make(chan struct{}), make(chan struct{})
	var asked atomic.Bool
	a, err := Open(t.Context(), Config{Store: &memory{docs: map[string]Stored{}}, Reaches: func(string) bool {
		if !asked.Swap(true) {
			close(asking)
			<-answer
		}
		return true
	}})
	if err != nil {
		t.Fatal(err)
	}
	req := request(policy.Default + "\n# another\n")
	req.DryRun = true
	done := make(chan error, 2)
	go func() { _, err := a.Apply(t.Context(), root, req); done <- err }()
	<-asking
	ctx, cancel := context.WithCancel(t.Context())
	go func() { _, err := a.Apply(ctx, root, req); done <- err }() // waits for the one before
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	changed := make(chan error, 1)
	go func() {
		_, err := a.Apply(t.Context(), root, request(policy.Default+"\n# a change\n"))
		changed <- err
	}()
	if err := <-changed; err != nil {
		t.Error(err)
	}
	close(answer)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
