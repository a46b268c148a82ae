package main

import (
	"fmt"

	islev1 "isle/internal/api/isle/v1"
)

type gateJSON struct {
	Kind   string `json:"kind"`
	Name   string `json:"name,omitempty"`
	Rule   string `json:"rule"`
	State  string `json:"state"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"`
	Claim  bool   `json:"claim,omitempty"` // the environment said so of itself
}

func gateViews(gates []*islev1.Gate) []gateJSON {
	out := []gateJSON{}
	for _, g := range gates {
		out = append(out, gateJSON{g.GetKind(), g.GetName(), g.GetRule(), g.GetState(), g.GetText(), g.GetRemedy(), g.GetClaim()})
	}
	return out
}

// showGates says how what stands before a promotion stands.
func (a *app) showGates(gates []*islev1.Gate) {
	for _, g := range gates {
		what := g.GetKind()
		if g.GetName() != "" {
			what += " " + g.GetName()
		}
		fmt.Fprintf(a.stdout, "  gate      %s: %s, %s", cleanLine(what), g.GetState(), cleanLine(g.GetText()))
		if g.GetClaim() {
			fmt.Fprint(a.stdout, " (the environment's own claim)")
		}
		fmt.Fprintln(a.stdout)
		if g.GetRemedy() != "" {
			fmt.Fprintf(a.stdout, "            -> %s\n", cleanLine(g.GetRemedy()))
		}
	}
}
