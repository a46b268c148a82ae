package server

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"isle"
	"isle/internal/audit"
)

// notebook is a log in memory.
type notebook struct {
	mu      sync.Mutex
	entries []audit.Entry
}

func (n *notebook) Append(_ context.Context, list ...audit.Entry) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.entries = append(n.entries, list...)
	return nil
}

func (n *notebook) of(instance isle.ID, action isle.Action) (list []audit.Entry, count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.entries {
		if e.Instance == instance && e.Action == action {
			list, count = append(list, e), count+e.Count
		}
	}
	return list, count
}

func refusal(instance isle.ID, to string, count int) audit.Entry {
	e := audit.NewEvent(isle.Actor{Kind: isle.Workload, Name: "a@testing"}, isle.ActionEgressConnect, isle.Resource{Kind: "egress", Name: to}, isle.Deny, "tcp")
	e.Instance, e.Count = instance, count
	return e
}

func TestRefusalsBeyondARateAreToldOfTogetherAndNoneIsLost(t *testing.T) {
	log := &notebook{}
	r := newRefusals(log, slog.New(slog.DiscardHandler), func(context.Context, isle.Ref) error { t.Error("stopped"); return nil })
	now := time.Unix(1000, 0)
	r.now = func() time.Time { return now }
	loud, quiet := isle.NewID(), isle.NewID()
	const n = 5000
	for i := range n {
		r.add(refusal(loud, fmt.Sprintf("192.0.2.%d:443", i%200), 1), isle.Ref{Name: "loud", Stage: "testing"})
	}
	r.add(refusal(quiet, "192.0.2.1:443", 1), isle.Ref{Name: "quiet", Stage: "testing"})
	if list, _ := log.of(loud, isle.ActionEgressConnect); len(list) != refusalBurst {
		t.Errorf("%d entries of one that is loud", len(list))
	}
	if list, _ := log.of(quiet, isle.ActionEgressConnect); len(list) != 1 {
		t.Errorf("%d entries of one that is not", len(list))
	}
	now = now.Add(2 * refusalEvery) // two more of its own
	for range 5 {
		r.add(refusal(loud, "192.0.2.1:443", 1), isle.Ref{Name: "loud", Stage: "testing"})
	}
	r.flush(r.shares[string(loud)]) // as its timer does
	list, count := log.of(loud, isle.ActionEgressConnect)
	if len(list) != refusalBurst+2+1 || count != n+5 {
		t.Errorf("%d entries of %d refusals", len(list), count)
	}
	last := list[len(list)-1]
	if b, err := last.Encode(); err != nil || last.Count != n+5-refusalBurst-2 || len(last.Details) != togetherNamed+1 {
		t.Errorf("%+v %s %v", last, b, err)
	}
	for range 3 {
		r.add(refusal(loud, "192.0.2.1:443", 1), isle.Ref{})
	}
	r.close()
	if _, count := log.of(loud, isle.ActionEgressConnect); count != n+8 {
		t.Errorf("closing lost some: %d", count)
	}
	r.add(refusal(loud, "192.0.2.1:443", 1), isle.Ref{}) // too late, and harmless
}

func TestAnEnvironmentThatUsesUpItsShareIsStoppedAndTheOthersGoOn(t *testing.T) {
	log := &notebook{}
	stopped := make(chan isle.Ref, 10)
	r := newRefusals(log, slog.New(slog.DiscardHandler), func(_ context.Context, ref isle.Ref) error { stopped <- ref; return nil })
	now := time.Unix(1000, 0)
	r.now = func() time.Time { return now }
	flood, other := isle.NewID(), isle.NewID()
	for range 100 { // at the rate at which it is refilled: for ever
		now = now.Add(time.Hour)
		r.add(refusal(other, "192.0.2.1:443", 3600*refusalRefill), isle.Ref{Name: "other", Stage: "testing"})
	}
	for range 20 {
		r.add(refusal(flood, "others", refusalShare/10), isle.Ref{Name: "flood", Stage: "testing"})
	}
	r.close()
	if len(stopped) != 1 || (<-stopped).Name != "flood" {
		t.Fatalf("%d were stopped", len(stopped))
	}
	if list, _ := log.of(flood, isle.ActionEnvironmentDown); len(list) != 1 || list[0].Actor.Name != "log" {
		t.Errorf("it is not recorded why: %+v", list)
	}
}

func TestManySourcesPutNoMoreIntoTheLogThanOne(t *testing.T) {
	log := &notebook{}
	r := newRefusals(log, slog.New(slog.DiscardHandler), func(context.Context, isle.Ref) error { t.Error("stopped"); return nil })
	now := time.Unix(1000, 0)
	r.now = func() time.Time { return now }
	const n = 5000
	for i := range n {
		e := audit.NewEvent(isle.Actor{Kind: isle.Machine, Name: "?"}, isle.ActionIdentityUse, isle.Resource{Kind: "identity", Name: "?"}, isle.Deny, "no credential")
		r.source(e, fmt.Sprintf("2001:db8:%x::1", i))
	}
	r.flush(r.shares[sources]) // as its timer does
	list, count := log.of("", isle.ActionIdentityUse)
	if len(list) != refusalBurst+1 || count != n {
		t.Errorf("%d entries of %d refusals", len(list), count)
	}
	last := list[len(list)-1]
	if last.Count != n-refusalBurst || last.Details["2001:db8:64::/64"] != "1" || last.Details["others"] == "" {
		t.Errorf("%+v", last)
	}
	if len(r.shares) > maxShares {
		t.Errorf("%d sources are remembered", len(r.shares))
	}
	r.close()
}

// Whoever may speak to the server and do nothing there fills its log no more
// than a stranger, and hides nobody else's refusals.
func TestACallerWhoIsRefusedOnAndOnIsToldOfTogether(t *testing.T) {
	log := &notebook{}
	r := newRefusals(log, slog.New(slog.DiscardHandler), func(context.Context, isle.Ref) error { t.Error("stopped"); return nil })
	now := time.Unix(1000, 0)
	r.now = func() time.Time { return now }
	by := func(name string, action isle.Action) audit.Entry {
		return audit.NewEvent(isle.Actor{Kind: isle.Machine, Name: name}, action, isle.Resource{Kind: "environment", Name: "shop", Stage: "testing"}, isle.Deny, "")
	}
	const n = 5000
	for range n {
		r.actor(by("loud", isle.ActionEnvironmentExec))
	}
	r.actor(by("quiet", isle.ActionEnvironmentExec))
	r.close()
	list, count := log.of("", isle.ActionEnvironmentExec)
	if len(list) != refusalBurst+2 || count != n+1 {
		t.Errorf("%d entries of %d refusals", len(list), count)
	}
	if e := list[refusalBurst]; e.Actor.Name != "quiet" {
		t.Errorf("the quiet one's is not one of its own: %+v", e)
	}
	if e := list[refusalBurst+1]; e.Actor.Name != "loud" || e.Count != n-refusalBurst || e.Details["environment:exec environment:shop@testing"] != fmt.Sprint(n-refusalBurst) {
		t.Errorf("%+v", e)
	}
}
