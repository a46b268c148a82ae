package snapshot

import (
	"golang.org/x/mod/sumdb/note"

	"isle"
	"isle/internal/seal"
)

// text is what is signed of a snapshot.
func text(d isle.Digest) string { return "isle snapshot v1\n" + string(d) + "\n" }

// openNote reads the signed note of a snapshot, as seal.OpenNote does.
func openNote(b []byte, d isle.Digest, keys []note.Verifier) (signer string, trusted bool, err error) {
	return seal.OpenNote(b, "snapshot "+d.Short(), text(d), keys)
}
