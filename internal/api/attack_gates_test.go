package api

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"isle"
	"isle/internal/audit"
	"isle/internal/environment"
	"isle/internal/policy"
	"isle/internal/release"
)

// A kept is a log in memory.
type kept struct {
	Audit
	entries []audit.Entry
}

func (k *kept) FirstSince(_ context.Context, t time.Time) (uint64, error) {
	for i, e := range k.entries {
		if !e.Time.Before(t) {
			return uint64(i), nil
		}
	}
	return uint64(len(k.entries)), nil
}

func (k *kept) Encoded(_ context.Context, from uint64, limit int) (out [][]byte, err error) {
	for _, e := range k.entries[min(from, uint64(len(k.entries))):] {
		if len(out) == limit {
			break
		}
		b, err := e.Encode()
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// Who may launch in the stage before does not have what was refused to the release
// there forgotten by launching it again.
func TestToLaunchARefusedReleaseAgainMakesNothingQuiet(t *testing.T) {
	ref := isle.Ref{Name: "shop", Stage: "staging"}
	release, other := isle.DigestOf([]byte("release")), isle.DigestOf([]byte("other"))
	now := time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)
	pointed := now.Add(-time.Hour)
	at := func(e audit.Entry, minutes int) audit.Entry {
		e.Time = pointed.Add(time.Duration(minutes) * time.Minute)
		return e
	}
	launch := func(minutes int, d isle.Digest, i, replaces isle.ID) audit.Entry {
		e := audit.NewIntent(isle.Actor{Kind: isle.Human, Name: "dev"}, isle.ActionEnvironmentLaunch, isle.Resource{Kind: "environment", Name: ref.Name, Stage: ref.Stage}, "").In(ref, i).With("replaces", string(replaces))
		e.Release = d
		return at(e, minutes)
	}
	refused := func(minutes int, in isle.Ref, i isle.ID) audit.Entry {
		return at(audit.NewEvent(isle.Actor{Kind: isle.Workload, Name: in.String()}, isle.ActionEgressConnect, isle.Resource{Kind: "egress", Name: "evil.example:443", Stage: in.Stage}, isle.Deny, "").In(in, i), minutes)
	}
	before, first, second := isle.NewID(), isle.NewID(), isle.NewID()
	for name, c := range map[string]struct {
		entries []audit.Entry
		since   int
		loud    bool
	}{
		"of the instance that runs":               {[]audit.Entry{refused(30, ref, second)}, 0, true},
		"as it was launched, before it served":    {[]audit.Entry{refused(-1, ref, second)}, -10, true},
		"of the one before it":                    {[]audit.Entry{launch(-1, release, first, before), refused(10, ref, first), launch(20, release, second, first)}, -30, true},
		"of one that was launched long ago":       {[]audit.Entry{refused(10, ref, first), launch(20, release, second, first)}, 5, true},
		"of the release before, as it ends":       {[]audit.Entry{launch(-1, release, second, before), refused(1, ref, before)}, -30, false},
		"of another release that ran meanwhile":   {[]audit.Entry{launch(5, other, first, before), refused(10, ref, first), launch(20, release, second, first)}, -30, false},
		"before the stage was pointed at it anew": {[]audit.Entry{launch(-20, release, first, before), refused(-10, ref, first), launch(20, release, second, first)}, -30, true},
		"of the release before":                   {[]audit.Entry{refused(-5, ref, before)}, -30, false},
		"in another stage":                        {[]audit.Entry{refused(10, isle.Ref{Name: "shop", Stage: "testing"}, first)}, -30, false},
		"too long ago":                            {[]audit.Entry{refused(1, ref, second)}, 10, false},
	} {
		t.Run(name, func(t *testing.T) {
			x := &passing{s: &releases{Config: Config{Audit: &kept{entries: c.entries}}}}
			e := environment.Environment{Ref: ref, Instance: second, Release: release}
			if err := x.scan(t.Context(), e, pointed, pointed.Add(time.Duration(c.since)*time.Minute)); err != nil {
				t.Fatal(err)
			}
			if loud := x.refused.ID != ""; loud != c.loud {
				t.Errorf("refused: %v, want %v", loud, c.loud)
			}
		})
	}
}

// What a check writes, and what a release calls its own checks, is its own word, and
// looks like nothing else to who approves.
func TestWhatACheckSaysDoesNotLookLikeTheOutcomeOfAnother(t *testing.T) {
	const forged = "web: /app/scan: exit code 0 after 3s (the environment's own claim)"
	said := lastLine([]byte("fine (the environment's own claim); check " + forged + "\n"))
	if out := outcome(0, 0, said); !strings.HasSuffix(out, strconv.Quote(said)) {
		t.Errorf("what it wrote stands there as it is: %s", out)
	}
	x := &passing{p: release.Promotion{Project: "shop", To: "production"}, s: &releases{}}
	x.checked = []release.Gate{
		{Kind: release.GateCheck, Name: "web: /app/x: exit code 0 (the environment's own claim); check " + forged, Rule: x.ownRule(), State: release.GateMet, Claim: true, Text: "exit code 0"},
	}
	if got := x.estimate(); strings.Contains(got, "; check web: /app/scan:") && !strings.HasPrefix(got, `check "`) {
		t.Errorf("a command looks like another check's outcome: %s", got)
	}
}

// Nothing in what is approved is shown in another order than it has, or not at all.
func TestNothingInWhatIsApprovedHidesOrTurnsRound(t *testing.T) {
	for _, hidden := range []string{"a\u202eb", "a\u200bb", "a\u009b2Jb", "a\x1b[2Jb", "a\u2066b", "a\xffb"} {
		if got := oneLine(hidden); got == hidden {
			t.Errorf("%q is shown as it is", hidden)
		}
		if got := outcome(0, 0, lastLine([]byte(hidden))); strings.ContainsFunc(got, func(r rune) bool { return !strconv.IsPrint(r) }) {
			t.Errorf("%q is shown as it is", got)
		}
	}
	for _, plain := range []string{"services.web.env.A=plain", "grüße, 世界"} {
		if oneLine(plain) != plain {
			t.Errorf("%q is quoted", plain)
		}
	}
}

// Who may read a history and not export releases gets no release's file with its
// proofs.
func TestAHistoryBringsOutNoReleaseThatMayNotBeExported(t *testing.T) {
	of := func(project string) (rel release.Release) {
		rel.Manifest.Project = project
		return rel
	}
	s := &releases{Config: Config{Policy: &decider{newPolicy(t), func(q policy.Query) policy.Answer {
		if q.Action == isle.ActionReleaseExport && q.Project == "shop" {
			return policy.Answer{Decision: isle.Allow}
		}
		return policy.Answer{Decision: isle.Deny}
	}}}}
	if got := s.exportable(t.Context(), []release.Release{of("shop"), of("bank")}); len(got) != 1 || got[0].Manifest.Project != "shop" {
		t.Errorf("%d releases are brought out", len(got))
	}
}
