package session

import (
	"slices"
	"strings"
	"testing"

	"isle"
)

func TestAFloodOfOneActorEndsItsSessionsAndNobodyElses(t *testing.T) {
	cfg, log := testConfig(t)
	cfg.share = 400 << 10
	s := open(t, cfg)
	info := someInfo()
	info.Actor = isle.Actor{Kind: isle.Workload, Name: "flood@testing"}
	flood, err := s.Begin(t.Context(), info)
	if err != nil {
		t.Fatal(err)
	}
	other := begin(t, s)
	for i := 0; i < 1000 && flood.Cause() == nil; i++ {
		_ = flood.Record(Event{Kind: Statement, Text: noise(make([]byte, 64<<10), i)})
	}
	if err := flood.Cause(); isle.CodeOf(err) != isle.Exhausted || !strings.Contains(err.Error(), "flood@testing") {
		t.Fatalf("it goes on: %v", err)
	}
	flood.End("")
	record(t, other, Event{Kind: Statement, Text: []byte("select 1")})
	if _, err := s.Begin(t.Context(), info); isle.CodeOf(err) != isle.Exhausted {
		t.Errorf("another session of it begins: %v", err)
	}
	other.End("done")
	s.Close()
	if all := verify(t, cfg, log, flood.ID()); !slices.ContainsFunc(all, func(r Report) bool { return r.ID == flood.ID() }) {
		t.Errorf("%+v", all)
	}
	// Nor after a restart.
	s = open(t, cfg)
	defer s.Close()
	if h := s.shares.of[info.Actor]; int64(h.bytes) < cfg.share*9/10 {
		t.Errorf("a restart forgives %+v", h)
	}
	if _, err := s.Begin(t.Context(), someInfo()); err != nil {
		t.Error(err)
	}
}
