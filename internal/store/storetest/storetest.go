// Package storetest is the conformance suite of environment.Store,
// environment.Ports, authority.Store and ledger.Store: every store runs it.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/authority"
	"isle/internal/environment"
	"isle/internal/image"
	"isle/internal/ledger"
	"isle/internal/policy"
	"isle/internal/spec"
)

// A Store is what is tested.
type Store interface {
	environment.Store
	environment.Ports
	authority.Store
	ledger.Store
	// Entries returns up to limit audit entries from a sequence number on.
	Entries(ctx context.Context, from uint64, limit int) ([]audit.Entry, error)
	Close() error
}

// Open opens the store of one test; called again, after Close, it opens the
// same state. The clock is what the store must take the time from.
type Open func(t *testing.T, now environment.Clock) Store

// Run runs the suite; fresh returns an Open of a state of its own.
func Run(t *testing.T, fresh func(t *testing.T) Open) {
	tests := map[string]func(*testing.T, Open){
		"records_come_back_as_they_were_put":         records,
		"a_ref_has_one_environment":                  refIsUnique,
		"a_change_is_whole_or_not_at_all":            atomic,
		"volumes_come_back_and_go":                   volumes,
		"the_log_has_no_gaps_and_time_never_goes":    gapless,
		"parallel_callers_lose_nothing":              parallel,
		"intents_stay_open_until_their_outcome":      intents,
		"ports_are_remembered_and_belong_to_one":     ports,
		"policies_keep_versions_and_their_entries":   policies,
		"a_ledger_is_what_the_log_says":              ledgers,
		"a_caller_that_has_left_changes_nothing":     left,
		"what_was_acknowledged_is_there_after_close": reopened,
	}
	for name, f := range tests {
		t.Run(name, func(t *testing.T) { f(t, fresh(t)) })
	}
}

func policies(t *testing.T, open Open) {
	s, ctx := opened(t, open)
	if docs, epoch, last, err := s.Policies(ctx); err != nil || epoch != 0 || len(docs) != 0 || last.Bound != nil {
		t.Fatalf("%v %d %v", docs, epoch, err)
	}
	put := func(name string, version int, epoch uint64, body string) error {
		e := audit.NewEvent(root, isle.ActionPolicyApply, isle.Resource{Kind: "policy", Name: "policy"}, isle.Allow, body)
		e.Bound = &audit.Bound{Ledger: authority.Ledger, Epoch: epoch, State: isle.DigestOf([]byte(body))}
		return s.PutPolicy(ctx, authority.Stored{Document: policy.Document{Name: name, Format: policy.YAML, Version: version, Body: []byte(body)}, Entry: e}, epoch)
	}
	for i, c := range []struct {
		name    string
		version int
	}{{"main", 1}, {"orders", 1}, {"main", 2}} {
		if err := put(c.name, c.version, uint64(i+1), fmt.Sprintf("body %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	before, err := s.Entries(ctx, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	if err := put("main", 3, 3, "too late"); isle.CodeOf(err) != isle.Conflict {
		t.Errorf("an epoch is used twice: %v", err)
	}
	if err := put("main", 3, 9, "a gap"); err == nil {
		t.Error("epochs have a gap")
	}
	if after, err := s.Entries(ctx, 0, 100); err != nil || len(after) != len(before) {
		t.Errorf("a change that failed left an entry: %v", err)
	}
	s.Close()
	s, ctx = opened(t, open)
	docs, epoch, last, err := s.Policies(ctx)
	if err != nil || epoch != 3 || len(docs) != 2 || last.Bound == nil || last.Bound.Epoch != 3 || last.Summary != "body 2" {
		t.Fatalf("%v %d %v", docs, epoch, err)
	}
	for i, want := range []struct{ name, body string }{{"main", "body 2"}, {"orders", "body 1"}} {
		if d := docs[i]; d.Name != want.name || string(d.Body) != want.body || d.Entry.Summary != want.body || d.Entry.Actor != root {
			t.Errorf("%+v", d)
		}
	}
}

var root = isle.Actor{Kind: isle.Human, Name: "root"}

func opened(t *testing.T, open Open) (Store, context.Context) {
	t.Helper()
	s := open(t, time.Now)
	t.Cleanup(func() { s.Close() })
	return s, t.Context()
}

// Env is a record with something in every field.
func env(name string, at time.Time) environment.Environment {
	code := 3
	img := image.Image{Format: 1, Architecture: "amd64", Layers: []image.Layer{{Digest: isle.DigestOf([]byte(name)), Size: 1, Kind: "packages", Title: "x"}}}
	return environment.Environment{
		Instance: isle.NewID(), Ref: isle.Ref{Name: name, Stage: "testing"}, Project: "p", Owner: root,
		Desired: environment.WantRunning, Phase: environment.Starting, Created: at.UTC().Truncate(time.Microsecond),
		Expires: at.Add(time.Hour).UTC().Truncate(time.Microsecond), UIDBase: 1 << 28, Branch: "b",
		Spec: spec.File{Name: "p", Isolation: "container", Services: []spec.Service{{Name: "web", Env: map[string]string{"A": "<&>\u2028"}, Restart: "no"}}},
		Services: []environment.Service{{
			Name: "web", Launch: isle.NewID(), Image: img, Digest: img.Digest(), ExitCode: &code,
			Ports: []environment.PublishedPort{{Name: "web", Number: 80, Host: 20000}},
		}},
	}
}

func event(name string) audit.Entry {
	return audit.NewEvent(root, isle.ActionServiceExit, isle.Resource{Kind: "service", Name: name}, isle.Allow, "")
}

func put(e ...environment.Environment) environment.Mutation {
	return environment.Mutation{PutEnvironments: e}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, err error, code isle.Code) {
	t.Helper()
	if err == nil || isle.CodeOf(err) != code {
		t.Fatalf("got %v, want an error of code %s", err, code)
	}
}

func records(t *testing.T, open Open) {
	s, ctx := opened(t, open)
	now := time.Now()
	a, b := env("a", now.Add(time.Second)), env("b", now)
	check(t, s.Update(ctx, put(a)))
	check(t, s.Update(ctx, put(b)))
	a.Phase = environment.Running
	check(t, s.Update(ctx, put(a)))
	got, err := s.Environments(ctx)
	check(t, err)
	if want := []environment.Environment{b, a}; !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
	check(t, s.Update(ctx, environment.Mutation{RemoveEnvironments: []isle.ID{b.Instance, isle.NewID()}}))
	got, err = s.Environments(ctx)
	check(t, err)
	if len(got) != 1 || got[0].Instance != a.Instance {
		t.Fatalf("after removal: %+v", got)
	}
}

func refIsUnique(t *testing.T, open Open) {
	s, ctx := opened(t, open)
	a, b := env("a", time.Now()), env("a", time.Now())
	check(t, s.Update(ctx, put(a)))
	wantCode(t, s.Update(ctx, put(b)), isle.Conflict)
	c := put(b)
	c.RemoveEnvironments = []isle.ID{a.Instance}
	check(t, s.Update(ctx, c)) // one leaves and the other comes
	b2 := env("a", time.Now())
	b2.Ref.Stage = "staging"
	check(t, s.Update(ctx, put(b2)))
}

func atomic(t *testing.T, open Open) {
	s, ctx := opened(t, open)
	a := env("a", time.Now())
	check(t, s.Update(ctx, put(a)))
	v := environment.Volume{ID: isle.NewID(), Ref: a.Ref, Service: "web", Path: "/data", Created: time.Now()}
	bad := environment.Mutation{
		PutEnvironments: []environment.Environment{env("c", time.Now()), env("a", time.Now())},
		PutVolumes:      []environment.Volume{v}, Entries: []audit.Entry{event("never")},
	}
	wantCode(t, s.Update(ctx, bad), isle.Conflict)
	tooLong := event("x")
	tooLong.Details = map[string]string{"x": string(make([]byte, audit.MaxSize))}
	wantCode(t, s.Update(ctx, environment.Mutation{PutEnvironments: []environment.Environment{env("d", time.Now())}, Entries: []audit.Entry{event("never"), tooLong}}), isle.Invalid)
	envs, err := s.Environments(ctx)
	check(t, err)
	vols, err := s.Volumes(ctx)
	check(t, err)
	entries, err := s.Entries(ctx, 0, 10)
	check(t, err)
	if len(envs) != 1 || len(vols) != 0 || len(entries) != 0 {
		t.Fatalf("a refused change left %d environments, %d volumes, %d entries", len(envs), len(vols), len(entries))
	}
	check(t, s.Append(ctx, event("first")))
	entries, err = s.Entries(ctx, 0, 10)
	check(t, err)
	if len(entries) != 1 || entries[0].Sequence != 0 || entries[0].Resource.Name != "first" {
		t.Fatalf("%+v", entries)
	}
}

func volumes(t *testing.T, open Open) {
	s, ctx := opened(t, open)
	v := environment.Volume{ID: isle.NewID(), Ref: isle.Ref{Name: "a", Stage: "testing"}, Project: "p", Service: "db", Path: "/data", Size: 1 << 30, Created: time.Now().UTC().Truncate(time.Microsecond)}
	check(t, s.Update(ctx, environment.Mutation{PutVolumes: []environment.Volume{v}}))
	v.Ready, v.DeleteAfter = true, v.Created.Add(time.Hour)
	check(t, s.Update(ctx, environment.Mutation{PutVolumes: []environment.Volume{v}}))
	got, err := s.Volumes(ctx)
	check(t, err)
	if !reflect.DeepEqual(got, []environment.Volume{v}) {
		t.Fatalf("got %+v, want %+v", got, v)
	}
	check(t, s.Update(ctx, environment.Mutation{RemoveVolumes: []isle.ID{v.ID}}))
	if got, err = s.Volumes(ctx); err != nil || len(got) != 0 {
		t.Fatal(got, err)
	}
}

// sound reads the whole log and fails on a gap, a step back in time, or an
// entry that is there twice.
func sound(t *testing.T, s Store) []audit.Entry {
	t.Helper()
	var all []audit.Entry
	ids := map[isle.ID]bool{}
	for {
		part, err := s.Entries(t.Context(), uint64(len(all)), 100)
		check(t, err)
		for _, e := range part {
			if e.Sequence != uint64(len(all)) {
				t.Fatalf("entry %d has sequence %d", len(all), e.Sequence)
			}
			if n := len(all); n > 0 && e.Time.Before(all[n-1].Time) {
				t.Fatalf("entry %d is from before entry %d", n, n-1)
			}
			if ids[e.ID] {
				t.Fatalf("entry %s is there twice", e.ID)
			}
			ids[e.ID] = true
			all = append(all, e)
		}
		if len(part) < 100 {
			return all
		}
	}
}

func gapless(t *testing.T, open Open) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := open(t, func() time.Time { return now })
	for i := range 5 {
		check(t, s.Append(t.Context(), event("a"), event("b")))
		if i == 2 {
			now = now.Add(-time.Hour) // the machine's clock is set back
			s.Close()
			s = open(t, func() time.Time { return now })
		}
	}
	defer s.Close()
	all := sound(t, s)
	if len(all) != 10 {
		t.Fatalf("%d entries", len(all))
	}
	if part, err := s.Entries(t.Context(), 4, 3); err != nil || len(part) != 3 || part[0].Sequence != 4 {
		t.Fatal(part, err)
	}
}

func parallel(t *testing.T, open Open) {
	s, ctx := opened(t, open)
	var wg sync.WaitGroup
	errs := make([]error, 100)
	for i := range errs {
		wg.Go(func() {
			e := env(fmt.Sprintf("e%d", i%50), time.Now()) // each name twice: one of the two conflicts
			c := put(e)
			c.Entries = []audit.Entry{event(string(e.Instance))}
			errs[i] = s.Update(ctx, c)
		})
	}
	wg.Wait()
	ok := 0
	for _, err := range errs {
		if err == nil {
			ok++
		} else {
			wantCode(t, err, isle.Conflict)
		}
	}
	envs, err := s.Environments(ctx)
	check(t, err)
	if all := sound(t, s); ok != 50 || len(envs) != 50 || len(all) != 50 {
		t.Fatalf("%d succeeded, %d environments, %d entries", ok, len(envs), len(all))
	}
}

func intents(t *testing.T, open Open) {
	s, ctx := opened(t, open)
	a := audit.NewIntent(root, isle.ActionEnvironmentLaunch, isle.Resource{Kind: "environment", Name: "a"}, "")
	b := audit.NewIntent(root, isle.ActionEnvironmentDown, isle.Resource{Kind: "environment", Name: "b"}, "")
	check(t, s.Append(ctx, a, event("x"), b))
	check(t, s.Append(ctx, a.Outcome(nil)))
	got, err := s.OpenIntents(ctx)
	check(t, err)
	if len(got) != 1 || got[0].ID != b.ID {
		t.Fatalf("%+v", got)
	}
	check(t, s.Append(ctx, got[0].Unknown("the server died")))
	if got, err = s.OpenIntents(ctx); err != nil || len(got) != 0 {
		t.Fatal(got, err)
	}
}

func ports(t *testing.T, open Open) {
	s, ctx := opened(t, open)
	a, b := isle.Ref{Name: "a", Stage: "testing"}, isle.Ref{Name: "a", Stage: "staging"}
	if p, err := s.Port(ctx, a, "web", "http"); err != nil || p != 0 {
		t.Fatal(p, err)
	}
	check(t, s.SetPort(ctx, a, "web", "http", 20001))
	check(t, s.SetPort(ctx, a, "web", "http", 20001))
	wantCode(t, s.SetPort(ctx, b, "web", "http", 20001), isle.Conflict)
	check(t, s.SetPort(ctx, a, "web", "http", 20002))
	check(t, s.SetPort(ctx, b, "web", "http", 20001))
	if p, err := s.Port(ctx, a, "web", "http"); err != nil || p != 20002 {
		t.Fatal(p, err)
	}
	check(t, s.ForgetPorts(ctx, a))
	if p, err := s.Port(ctx, a, "web", "http"); err != nil || p != 0 {
		t.Fatal(p, err)
	}
	if p, err := s.Port(ctx, b, "web", "http"); err != nil || p != 20001 {
		t.Fatal(p, err)
	}
}

func left(t *testing.T, open Open) {
	s, ctx := opened(t, open)
	gone, leave := context.WithCancel(ctx)
	leave()
	if err := s.Append(gone, event("x")); err == nil {
		t.Fatal("a caller that had left was served")
	}
	if all := sound(t, s); len(all) != 0 {
		t.Fatalf("%+v", all)
	}
}

func reopened(t *testing.T, open Open) {
	s := open(t, time.Now)
	a := env("a", time.Now())
	c := put(a)
	c.Entries = []audit.Entry{event("x")}
	check(t, s.Update(t.Context(), c))
	check(t, s.Close())
	wantCode(t, s.Append(t.Context(), event("y")), isle.Unavailable)
	s = open(t, time.Now)
	defer s.Close()
	envs, err := s.Environments(t.Context())
	check(t, err)
	if len(envs) != 1 || !reflect.DeepEqual(envs[0], a) || len(sound(t, s)) != 1 {
		t.Fatalf("%+v", envs)
	}
}

func ledgers(t *testing.T, open Open) {
	s, ctx := opened(t, open)
	of := func(name string) *ledger.Ledger {
		t.Helper()
		l, _, err := ledger.Open(ctx, s, name)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	entry := func() audit.Entry {
		return audit.NewEvent(root, isle.ActionSecretSet, isle.Resource{Kind: "secret", Name: "x"}, isle.Allow, "")
	}
	keys, others := of("keys"), of("others")
	put := func(l *ledger.Ledger, key, body string) error {
		return l.Change(ctx, []ledger.Record{{Key: key, Body: []byte(body)}}, nil, entry())
	}
	stale := of("keys")
	for i := range 3 {
		if err := errors.Join(put(keys, fmt.Sprint("k", i), "body"), put(keys, "k0", fmt.Sprint(i)), put(others, "k0", "theirs")); err != nil {
			t.Fatal(err)
		}
	}
	before, err := s.Entries(ctx, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	if err := put(stale, "k0", "late"); isle.CodeOf(err) != isle.Conflict {
		t.Errorf("who does not know of a change makes one: %v", err)
	}
	gap := entry()
	gap.Bound = &audit.Bound{Ledger: "keys", Epoch: 99, State: isle.DigestOf(nil)}
	if err := s.ChangeLedger(ctx, ledger.Change{Ledger: "keys", Put: []ledger.Record{{Key: "k9"}}, Entries: []audit.Entry{gap}}); isle.CodeOf(err) != isle.Conflict {
		t.Errorf("epochs have a gap: %v", err)
	}
	if err := s.ChangeLedger(ctx, ledger.Change{Ledger: "keys", Put: []ledger.Record{{Key: "k9"}}, Entries: []audit.Entry{entry()}}); err == nil {
		t.Error("a change is not bound to an entry")
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := keys.Change(gone, []ledger.Record{{Key: "k9"}}, nil, entry()); err == nil {
		t.Error("a caller that has left changes a ledger")
	}
	if err := keys.Change(ctx, nil, []string{"k1"}, entry()); err != nil {
		t.Fatal(err)
	}
	if after, err := s.Entries(ctx, 0, 100); err != nil || len(after) != len(before)+1 {
		t.Errorf("a change that failed left an entry: %v", err)
	}
	s.Close()
	s, ctx = opened(t, open)
	l, records, err := ledger.Open(ctx, s, "keys")
	if err != nil || l.Epoch() != 7 || len(records) != 2 || records[0].Key != "k0" || string(records[0].Body) != "2" || records[1].Key != "k2" {
		t.Fatalf("%v %v", records, err)
	}
	if _, records, err = ledger.Open(ctx, s, "others"); err != nil || len(records) != 1 || string(records[0].Body) != "theirs" {
		t.Errorf("%v %v", records, err)
	}
}
