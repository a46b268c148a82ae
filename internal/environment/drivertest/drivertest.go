// Package drivertest is the conformance suite of environment.Driver: every
// driver runs it, on the real thing.
package drivertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"isle"
	"isle/internal/environment"
	"isle/internal/spec"
)

// A Bench is one driver with a state of its own, and what a launch needs.
type Bench struct {
	Driver environment.Driver
	// Isolation is the class of what is launched.
	Isolation string
	// Again opens another driver on the same state, as a server does that
	// starts after one that died.
	Again func(t *testing.T) environment.Driver
	// Fill completes a launch: image, layers, network, init, boot, uids. What
	// it launches runs until it is killed.
	Fill func(t *testing.T, l *environment.Launch)
	// Spoil makes a filled launch one that cannot succeed.
	Spoil func(l *environment.Launch)
	// End makes the launch's isle-init end by itself; nil if the bench can't.
	End func(t *testing.T, instance, launch isle.ID)
}

// Run runs the suite; fresh returns a Bench whose driver has nothing.
func Run(t *testing.T, fresh func(t *testing.T) Bench) {
	for name, f := range map[string]func(*testing.T, Bench){
		"what_is_launched_is_found_alive_and_killed_is_gone": launchAndKill,
		"methods_can_be_repeated":                            idempotent,
		"remove_leaves_nothing":                              remove,
		"the_end_is_told_once":                               exited,
		"a_failed_launch_leaves_nothing":                     failed,
		"another_server_finds_watches_and_ends_what_runs":    again,
		"usage_counts_processes":                             usage,
		"instances_do_not_touch_each_other":                  apart,
		"many_at_once":                                       many,
	} {
		t.Run(name, func(t *testing.T) { f(t, fresh(t)) })
	}
}

var limits = spec.Limits{CPUs: 1, Memory: 256 << 20, PIDs: 64}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// prepared returns a new instance that is removed after the test.
func (b Bench) prepared(t *testing.T) isle.ID {
	t.Helper()
	id := isle.NewID()
	check(t, b.Driver.Prepare(t.Context(), environment.Shared{Instance: id, Isolation: b.Isolation, Limits: limits}))
	t.Cleanup(func() {
		if err := b.Driver.Remove(context.Background(), id); err != nil {
			t.Error(err)
		}
	})
	return id
}

// An ending counts how often the end of a launch was told.
type ending struct {
	count atomic.Int32
	once  sync.Once
	told  chan struct{}
}

func newEnding() *ending { return &ending{told: make(chan struct{})} }

func (e *ending) tell() {
	e.count.Add(1)
	e.once.Do(func() { close(e.told) })
}

func (e *ending) wait(t *testing.T) {
	t.Helper()
	select {
	case <-e.told:
	case <-time.After(30 * time.Second):
		t.Fatal("the end of the launch was not told")
	}
}

func (b Bench) filled(t *testing.T, instance isle.ID) (environment.Launch, *ending) {
	t.Helper()
	e := newEnding()
	l := environment.Launch{Instance: instance, ID: isle.NewID(), Isolation: b.Isolation, Service: "web", Hostname: "web", Limits: limits, Exited: e.tell}
	b.Fill(t, &l)
	return l, e
}

func (b Bench) launch(t *testing.T, instance isle.ID) (isle.ID, *ending) {
	t.Helper()
	l, e := b.filled(t, instance)
	check(t, b.Driver.Launch(t.Context(), l))
	return l.ID, e
}

// find returns what List says of a launch; "" asks for the instance.
func find(t *testing.T, d environment.Driver, instance, launch isle.ID) (environment.Sandbox, bool) {
	t.Helper()
	all, err := d.List(t.Context())
	check(t, err)
	i := slices.IndexFunc(all, func(s environment.Sandbox) bool {
		return s.Instance == instance && (launch == "" || s.Launch == launch)
	})
	if i < 0 {
		return environment.Sandbox{}, false
	}
	return all[i], true
}

func wantAlive(t *testing.T, d environment.Driver, instance, launch isle.ID) {
	t.Helper()
	if s, ok := find(t, d, instance, launch); !ok || !s.Alive {
		t.Fatalf("launch %s: %+v, %v", launch, s, ok)
	}
}

func wantNone(t *testing.T, d environment.Driver, instance, launch isle.ID) {
	t.Helper()
	if s, ok := find(t, d, instance, launch); ok {
		t.Fatalf("it is there still: %+v", s)
	}
}

func launchAndKill(t *testing.T, b Bench) {
	i := b.prepared(t)
	id, end := b.launch(t, i)
	wantAlive(t, b.Driver, i, id)
	check(t, b.Driver.Kill(t.Context(), i, id))
	end.wait(t)
	wantNone(t, b.Driver, i, id)
}

func idempotent(t *testing.T, b Bench) {
	i := b.prepared(t)
	check(t, b.Driver.Prepare(t.Context(), environment.Shared{Instance: i, Isolation: b.Isolation, Limits: limits}))
	id, _ := b.launch(t, i)
	more := limits
	more.PIDs = 128
	check(t, b.Driver.Prepare(t.Context(), environment.Shared{Instance: i, Isolation: b.Isolation, Limits: more})) // limits change in place
	wantAlive(t, b.Driver, i, id)
	for range 2 {
		check(t, b.Driver.Kill(t.Context(), i, id))
	}
	for range 2 {
		check(t, b.Driver.Remove(t.Context(), i))
	}
	check(t, b.Driver.Kill(t.Context(), isle.NewID(), isle.NewID()))
	check(t, b.Driver.Remove(t.Context(), isle.NewID()))
}

func remove(t *testing.T, b Bench) {
	i := b.prepared(t)
	one, endOne := b.launch(t, i)
	two, endTwo := b.launch(t, i)
	wantAlive(t, b.Driver, i, one)
	wantAlive(t, b.Driver, i, two)
	check(t, b.Driver.Remove(t.Context(), i))
	endOne.wait(t)
	endTwo.wait(t)
	wantNone(t, b.Driver, i, "")
}

func exited(t *testing.T, b Bench) {
	if b.End == nil {
		t.Log("the bench cannot end an isle-init; the end is only shown for kills")
		return
	}
	i := b.prepared(t)
	id, end := b.launch(t, i)
	b.End(t, i, id)
	end.wait(t)
	if s, ok := find(t, b.Driver, i, id); ok && s.Alive {
		t.Fatal("it is alive after its end")
	}
	check(t, b.Driver.Kill(t.Context(), i, id))
	check(t, b.Driver.Remove(t.Context(), i))
	if n := end.count.Load(); n != 1 {
		t.Fatalf("the end was told %d times", n)
	}
}

func failed(t *testing.T, b Bench) {
	i := b.prepared(t)
	l, end := b.filled(t, i)
	b.Spoil(&l)
	if err := b.Driver.Launch(t.Context(), l); err == nil {
		t.Fatal("it succeeded")
	}
	wantNone(t, b.Driver, i, l.ID)
	if end.count.Load() > 1 {
		t.Fatal("an end was told more than once")
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	l, _ = b.filled(t, i)
	if err := b.Driver.Launch(gone, l); err == nil { // it may have been too quick to be stopped
		wantAlive(t, b.Driver, i, l.ID)
	} else if !errors.Is(err, context.Canceled) {
		t.Logf("a cancelled launch: %v", err)
		wantNone(t, b.Driver, i, l.ID)
	}
}

func again(t *testing.T, b Bench) {
	i := b.prepared(t)
	id, _ := b.launch(t, i)
	other := b.Again(t)
	wantAlive(t, other, i, id)
	end := newEnding()
	if w, ok := other.(environment.Watcher); ok {
		check(t, w.Watch(i, id, end.tell))
	} else {
		end.tell()
	}
	check(t, other.Kill(t.Context(), i, id))
	end.wait(t)
	wantNone(t, other, i, id)
	if w, ok := other.(environment.Watcher); ok {
		late := newEnding()
		if err := w.Watch(i, id, late.tell); err == nil {
			late.wait(t)
		}
	}
	check(t, other.Remove(t.Context(), i))
	wantNone(t, other, i, "")
}

func usage(t *testing.T, b Bench) {
	i := b.prepared(t)
	b.launch(t, i)
	u, err := b.Driver.Usage(t.Context(), i)
	check(t, err)
	if u.PIDs < 1 || u.Memory <= 0 {
		t.Fatalf("%+v", u)
	}
}

func apart(t *testing.T, b Bench) {
	one, two := b.prepared(t), b.prepared(t)
	a, _ := b.launch(t, one)
	c, _ := b.launch(t, two)
	check(t, b.Driver.Remove(t.Context(), one))
	wantNone(t, b.Driver, one, a)
	wantAlive(t, b.Driver, two, c)
}

func many(t *testing.T, b Bench) {
	var wg sync.WaitGroup
	errs := make([]error, 10)
	for n := range errs {
		i := b.prepared(t)
		l, _ := b.filled(t, i)
		wg.Go(func() {
			if errs[n] = b.Driver.Launch(t.Context(), l); errs[n] == nil {
				errs[n] = b.Driver.Remove(t.Context(), i)
			}
		})
	}
	wg.Wait()
	for n, err := range errs {
		if err != nil {
			t.Error(fmt.Errorf("launch %d: %w", n, err))
		}
	}
}
