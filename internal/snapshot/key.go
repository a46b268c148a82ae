package snapshot

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/note"

	"isle"
)

// A Key puts a server's name to snapshots: an Ed25519 key (RFC 8032) of signed
// notes (c2sp.org/signed-note). It is safe for concurrent use.
type Key struct {
	signer   note.Signer
	verifier string
}

// NewKey is the key of a server by its name, which has neither spaces nor plus
// signs, and a secret of 32 bytes that is used for nothing else.
func NewKey(name string, seed []byte) (*Key, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, isle.Errorf(isle.Internal, "a key of snapshots is made of %d bytes, not of %d", ed25519.SeedSize, len(seed))
	}
	public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	verifier, err := note.NewEd25519VerifierKey(name, public)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "the key of snapshots: %w", err)
	}
	const ed25519Type = 1
	hash := sha256.Sum256(append([]byte(name+"\n"), append([]byte{ed25519Type}, public...)...))
	signer, err := note.NewSigner(fmt.Sprintf("PRIVATE+KEY+%s+%08x+%s", name, binary.BigEndian.Uint32(hash[:]),
		base64.StdEncoding.EncodeToString(append([]byte{ed25519Type}, seed...))))
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "the key of snapshots: %w", err)
	}
	return &Key{signer, verifier}, nil
}

// Verifier is what another server must know to trust this key:
// NAME+HASH+BASE64.
func (k *Key) Verifier() string { return k.verifier }

// Name is the name of the key.
func (k *Key) Name() string { return k.signer.Name() }

// text is what is signed of a snapshot.
func text(d isle.Digest) string { return "isle snapshot v1\n" + string(d) + "\n" }

// sign returns the signed note of a snapshot.
func (k *Key) sign(d isle.Digest) ([]byte, error) {
	b, err := note.Sign(&note.Note{Text: text(d)}, k.signer)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot sign a snapshot: %w", err)
	}
	return b, nil
}

// maxNote bounds a signed note in bytes.
const maxNote = 4 << 10

// openNote reads the signed note of a snapshot. It returns the name of the key
// that signed, and whether that is one of those given. It fails with Untrusted
// where the note is of another snapshot, or a signature is wrong.
func openNote(b []byte, d isle.Digest, keys []note.Verifier) (signer string, trusted bool, err error) {
	if len(b) > maxNote {
		return "", false, isle.Errorf(isle.Untrusted, "the signature of snapshot %s is none: it has %d bytes", d.Short(), len(b))
	}
	n, err := note.Open(b, note.VerifierList(keys...))
	if unverified := new(note.UnverifiedNoteError); errors.As(err, &unverified) {
		n, err = unverified.Note, nil
	}
	if err != nil {
		return "", false, isle.Errorf(isle.Untrusted, "the signature of snapshot %s is wrong: %w", d.Short(), err)
	}
	if n.Text != text(d) {
		return "", false, isle.Errorf(isle.Untrusted, "the signature that lies with snapshot %s is of something else", d.Short())
	}
	if len(n.Sigs) > 0 {
		return n.Sigs[0].Name, true, nil
	}
	return n.UnverifiedSigs[0].Name, false, nil
}

// parseVerifier reads a key that another server has, NAME+HASH+BASE64.
func parseVerifier(s string) (note.Verifier, error) {
	v, err := note.NewVerifier(s)
	if err != nil || !printable(s, false) || len(s) > maxName {
		return nil, isle.Errorf(isle.Invalid, "%q is no key of snapshots: want NAME+HASH+BASE64", clip(s)).WithHint("`isle snapshot trust` on the other server shows it")
	}
	return v, nil
}
