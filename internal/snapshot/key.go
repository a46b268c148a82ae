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

// parseVerifier reads a key that another server has, NAME+HASH+BASE64.
func parseVerifier(s string) (note.Verifier, error) {
	v, err := seal.ParseVerifier(s)
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "%q is no key of snapshots: want NAME+HASH+BASE64", clip(s)).WithHint("`isle snapshot trust` on the other server shows it")
	}
	return v, nil
}
