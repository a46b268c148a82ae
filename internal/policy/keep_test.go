package policy

import (
	"strings"
	"testing"
	"time"
)

func TestARuleOfWhatIsKeptSaysWhatIsWrongWithIt(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"{projects: [shop]}", "keeps nothing"},
		{"{stages: [production], for: 90d}", "stages are what `last` counts"},
		{"{stages: [prod], last: 3}", "nothing is promoted to stage prod"},
		{"{last: 0}", "is no number of releases"},
		{"{last: many}", "is no number of releases"},
		{"{for: -1d}", "is no time; want 90d"},
		{"{for: 99999999999999d}", "is no time; want 90d"},
		{"{for: 5000d}", "at most 3650d"},
		{"{for: d}", "is no time"},
	} {
		_, err := Compile(Document{Name: "doc.yaml", Format: YAML, Body: []byte("keep:\n  - " + c.text)})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n got %v\nwant %s", c.text, err, c.want)
		}
	}
	s := compile(t, "keep:\n  - {projects: [shop], last: 3, for: 90d}\n  - {projects: [bank], for: 36h}")
	if k := s.Keeps("shop"); len(k) != 1 || k[0].Last != 3 || k[0].For != 90*24*time.Hour {
		t.Error(k)
	}
	if k := s.Keeps("other"); len(k) != 0 {
		t.Error(k)
	}
	var got []string
	for _, c := range compile(t, "{}").keepsTo(s) {
		got = append(got, c.String())
	}
	if all := strings.Join(got, "\n"); !strings.Contains(all, "everyone gains releases kept: the last 3, those of 2160h0m0s (of shop)") {
		t.Error(all)
	}
}
