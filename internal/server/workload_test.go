package server

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"isle"
	"isle/internal/audit"
)

// ask asks for a document and returns how many entries that made.
func (n *notebook) ask(t *testing.T, i *issues, id, kind string, audience ...string) int {
	t.Helper()
	before := len(n.entries)
	err := i.add(t.Context(), id, kind, audience, func(summary string) audit.Entry {
		return audit.NewEvent(isle.Actor{Kind: isle.Workload, Name: id}, isle.ActionSVIDIssue, isle.Resource{Kind: "service", Name: "web"}, isle.Allow, summary)
	})
	if err != nil {
		t.Fatal(err)
	}
	return len(n.entries) - before
}

func TestEveryDocumentHasAnEntryOfTheLastMinuteBeforeIt(t *testing.T) {
	log := &notebook{}
	i := newIssues(log)
	now := time.Unix(1000, 0)
	i.now = func() time.Time { return now }
	if log.ask(t, i, "web", "x509") != 1 || log.ask(t, i, "web", "x509") != 0 || log.ask(t, i, "db", "x509") != 1 {
		t.Error("one covers another's, or not its own")
	}
	if log.ask(t, i, "web", "jwt", "b", "a") != 1 || log.ask(t, i, "web", "jwt", "a", "b") != 0 || log.ask(t, i, "web", "jwt", "a b") != 1 {
		t.Error("audiences are not told apart")
	}
	if e := log.entries[2]; e.Details["audience"] != "a b" || e.Summary != "jwt" {
		t.Errorf("%+v", e)
	}
	now = now.Add(issueCovers)
	if log.ask(t, i, "web", "x509") != 1 {
		t.Error("an entry of long ago covers what is given now")
	}
	if e := log.entries[len(log.entries)-1]; e.Details["more_before"] != "1" {
		t.Errorf("what an entry covered is not told: %+v", e)
	}
	now = now.Add(-time.Hour)
	if log.ask(t, i, "web", "x509") != 1 {
		t.Error("after the clock was set back an entry covers for an hour")
	}
}

// Who has a command open in a service may be who asks: no entry of before they
// came covers what is given while they are there.
func TestADocumentThatIsGivenWhileSomebodyIsInsideHasAnEntryThatNamesThem(t *testing.T) {
	log := &notebook{}
	i := newIssues(log)
	now := time.Unix(1000, 0)
	i.now = func() time.Time { return now }
	ask := func(sessions ...isle.ID) {
		t.Helper()
		err := i.add(t.Context(), "web", "x509", nil, func(summary string) audit.Entry { return audit.Entry{Summary: summary, Sessions: sessions} })
		if e := log.entries[len(log.entries)-1]; err != nil || !slices.Equal(e.Sessions, sessions) {
			t.Errorf("with %v inside the last entry has %v, %v", sessions, e.Sessions, err)
		}
	}
	ask()
	ask("ann")
	ask("ann")
	ask("ann", "bob")
	ask("bob")
	if n := len(log.entries); n != 4 {
		t.Errorf("%d entries, want 4", n)
	}
	for n := range 2 * issueBurst { // beyond what is told one by one
		log.ask(t, i, "web", "jwt", fmt.Sprint(n))
		ask("cid")
		ask()
	}
}

// A workload that asks for another audience each time, for an hour.
func TestNoWorkloadFillsTheLogByAskingForItsDocuments(t *testing.T) {
	log := &notebook{}
	i := newIssues(log)
	now := time.Unix(1000, 0)
	i.now = func() time.Time { return now }
	for n := range 36_000 {
		log.ask(t, i, "loud", "jwt", fmt.Sprint("audience", n))
		now = now.Add(100 * time.Millisecond)
	}
	if n, most := len(log.entries), issueBurst+int(time.Hour/issueEvery)+int(time.Hour/issueCovers)+1; n > most {
		t.Errorf("%d entries in an hour, want at most %d", n, most)
	}
	if n := len(i.of["loud"].covered); n > 2*issueBurst {
		t.Errorf("%d entries are remembered", n)
	}
	if log.ask(t, i, "quiet", "jwt", "a") != 1 {
		t.Error("another is not recorded for it")
	}
	for n := range 2 * maxIssuers {
		log.ask(t, i, fmt.Sprint("w", n), "x509")
		now = now.Add(time.Minute)
	}
	if len(i.of) > maxIssuers {
		t.Errorf("%d workloads are remembered", len(i.of))
	}
}

// fullLog cannot be written.
type fullLog struct{}

func (fullLog) Append(context.Context, ...audit.Entry) error {
	return isle.Errorf(isle.Unavailable, "the disk is full")
}

func TestWhatCannotBeRecordedCoversNothing(t *testing.T) {
	i := newIssues(fullLog{})
	for range 3 {
		err := i.add(t.Context(), "web", "x509", nil, func(string) audit.Entry { return audit.Entry{} })
		if isle.CodeOf(err) != isle.Unavailable {
			t.Errorf("%v", err)
		}
	}
}
