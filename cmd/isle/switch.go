package main

import (
	"fmt"
	"time"

	islev1 "isle/internal/api/isle/v1"
)

type switchJSON struct {
	Environment string     `json:"environment"`
	Instance    string     `json:"instance"`
	Before      string     `json:"before"`
	Took        float64    `json:"took"`
	Pause       float64    `json:"pause"`
	Kept        bool       `json:"kept"`
	Until       *time.Time `json:"until,omitempty"`
	Snapshot    string     `json:"snapshot,omitempty"`
}

func switchView(s *islev1.Switch) *switchJSON {
	if s == nil {
		return nil
	}
	return &switchJSON{
		s.GetEnvironment(), s.GetInstance(), s.GetBefore(), s.GetTook().AsDuration().Seconds(), s.GetPause().AsDuration().Seconds(), s.GetKept(), at(s.GetUntil()), s.GetSnapshot(),
	}
}

// showSwitch says how one instance took the place of another.
func (a *app) showSwitch(s *islev1.Switch) {
	how := "switched"
	if s.GetKept() {
		how = "switched back to the instance that was kept"
	}
	fmt.Fprintf(a.stdout, "%s: %s in %s", s.GetEnvironment(), how, s.GetTook().AsDuration().Round(time.Millisecond))
	if p := s.GetPause().AsDuration(); p > 0 {
		fmt.Fprintf(a.stdout, ", requests were held for %s", p.Round(time.Millisecond))
	}
	fmt.Fprintln(a.stdout)
	if s.GetUntil() != nil {
		fmt.Fprintf(a.stdout, "  what served before is kept, frozen, until %s\n", s.GetUntil().AsTime().Local().Format(time.DateTime))
	}
	if d := s.GetSnapshot(); d != "" {
		fmt.Fprintf(a.stdout, "  the volumes as they were before are snapshot %s\n", shortDigest(d))
	}
}
