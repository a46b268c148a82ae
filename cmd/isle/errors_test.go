package main

import "testing"

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
