package main

import (
	"strings"
	"testing"

	islev1 "isle/internal/api/isle/v1"
)

func TestAnUnknownCommandLeadsToTheHelpOfItsParent(t *testing.T) {
	for message, want := range map[string]string{
		`unknown command "show" for "isle secret"`:                           "isle secret",
		"unknown command \"lss\" for \"isle\"\n\nDid you mean this?\n\tls\n": "isle",
		"unknown command ": "isle",
	} {
		if got := parentOf(message); got != want {
			t.Errorf("%q: %q, want %q", message, got, want)
		}
	}
}

func TestWhatComesFromInsideIsOneLine(t *testing.T) {
	var out strings.Builder
	a := &app{stdout: &out}
	a.showChanges([]*islev1.Change{{Service: "web", Volume: "/data", Path: "x\nD db:/data/all of it\t\x1b[2J", Kind: "added"}})
	if got, want := out.String(), "A web:/data/x·D db:/data/all of it ·[2J\n"; got != want {
		t.Errorf("a file is shown as %q, not %q", got, want)
	}
	out.Reset()
	if err := table(&out, "snapshot\tmessage\tby", [][]string{{"0123", "before\tadmin\n4567", "bob"}}); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "SNAPSHOT  MESSAGE            BY\n0123      before admin 4567  bob\n"; got != want {
		t.Errorf("a row is shown as\n%q, not\n%q", got, want)
	}
	if got := nodeText(&islev1.TreeNode{Kind: "environment", Name: "shop", Message: "a\tb\nc"}); got != "shop  a b c" {
		t.Errorf("%q", got)
	}
}
