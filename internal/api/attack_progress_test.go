package api

import (
	"context"
	"errors"
	"strconv"
	"testing"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/build"
)

// Whoever forks, launches or tears down holds the environment's name while it
// tells of it. A client that gives its stream no window would hold it too, and
// nobody could tear the environment down.
func TestAClientThatDoesNotReadKeepsNobodyWaiting(t *testing.T) {
	stuck := make(chan struct{})
	sent := 0
	tell, work := Config{}.newTeller(t.Context(), isle.ActionEnvironmentFork, isle.Resource{}, func(*islev1.ProgressEvent) error { <-stuck; sent++; return nil })
	for range 2 * tellAhead {
		tell.event(&islev1.ProgressEvent{Step: "volume", State: "progress", Total: 1, Done: 1})
	}
	if work.Err() != nil {
		t.Error("its work is cut short for what the next event says too")
	}
	tell.event(&islev1.ProgressEvent{Step: "fork", State: "start"})
	if isle.CodeOf(context.Cause(work)) != isle.Unavailable {
		t.Errorf("its work goes on: %v", context.Cause(work))
	}
	close(stuck)
	tell.done()
	if sent > 1 {
		t.Errorf("%d events were sent to who had been given up", sent)
	}
}

// Whoever pulls what another wants too waits for nobody to read how far it is.
func TestABuildWaitsForNobodyToReadHowFarItIs(t *testing.T) {
	stuck := make(chan struct{})
	tell, work := Config{}.newTeller(t.Context(), isle.ActionImageBuild, isle.Resource{}, func(*islev1.ProgressEvent) error { <-stuck; return nil })
	for range 2 * tellAhead {
		tell.build(build.Event{Step: "pull", State: "progress", Total: 1, Done: 1})
	}
	if work.Err() != nil {
		t.Error(context.Cause(work))
	}
	close(stuck)
	tell.done()
}

func TestWhatIsToldIsSentInItsOrderBeforeTheResult(t *testing.T) {
	var got []string
	tell, work := Config{}.newTeller(t.Context(), isle.ActionImageBuild, isle.Resource{}, func(e *islev1.ProgressEvent) error { got = append(got, e.GetMessage()); return nil })
	const many = 3 * tellAhead
	for i := range many { // a build waits for who reads
		tell.build(build.Event{Step: "run", State: "log", Message: strconv.Itoa(i)})
	}
	tell.done()
	tell.event(&islev1.ProgressEvent{Message: "late"})
	tell.done()
	if len(got) != many || got[0] != "0" || got[many-1] != strconv.Itoa(many-1) || work.Err() == nil {
		t.Errorf("%d events, the last %q", len(got), got[len(got)-1])
	}
}

func TestABrokenStreamEndsTheWork(t *testing.T) {
	broken := errors.New("broken")
	tell, work := Config{}.newTeller(t.Context(), isle.ActionImageBuild, isle.Resource{}, func(*islev1.ProgressEvent) error { return broken })
	tell.build(build.Event{Step: "run", State: "log"})
	<-work.Done()
	for range 2 * tellAhead { // nobody is kept waiting by it
		tell.build(build.Event{Step: "run", State: "log"})
	}
	tell.done()
	if !errors.Is(context.Cause(work), broken) {
		t.Error(context.Cause(work))
	}
}
