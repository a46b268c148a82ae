package seal

import (
	"testing"

	"isle"
	"isle/internal/ledger"
	"isle/internal/ledger/ledgertest"
)

// Who has signed is told, and asked for by gates, by the name of a key, which its
// owner chooses: no other key that counts is called so.
func TestNoKeyIsTrustedUnderTheNameOfAnother(t *testing.T) {
	alice := isle.Actor{Kind: isle.Human, Name: "alice"}
	l, _, err := ledger.Open(t.Context(), ledgertest.New(), "release")
	if err != nil {
		t.Fatal(err)
	}
	r := NewRing(keyOf(t, "server"), "release", isle.ActionReleaseTrust)
	if _, err := r.Trust(t.Context(), l, alice, keyOf(t, "other").Verifier()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"server", "other"} {
		seed := make([]byte, 32)
		seed[0] = 7
		posing, err := NewKey(name, seed)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Trust(t.Context(), l, alice, posing.Verifier()); isle.CodeOf(err) != isle.Conflict {
			t.Errorf("another key called %s is trusted: %v", name, err)
		}
	}
	if n := len(r.Keys()); n != 2 {
		t.Errorf("%d keys count", n)
	}
}
