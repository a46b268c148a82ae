// Package seal keeps what is sealed: files that never change, and signatures that
// say whose they are.
//
// A Key puts a server's name to a text, as a signed note (c2sp.org/signed-note);
// whoever has its verifier, NAME+HASH+BASE64, can tell. What is sealed lies in
// files of this user's that nobody else may write to: Open hands out no other.
package seal

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"

	"isle"
)

// A Key puts a server's name to texts: an Ed25519 key (RFC 8032). It is safe for
// concurrent use.
type Key struct {
	signer   note.Signer
	verifier string
	private  ed25519.PrivateKey
}

// ed25519Type is the type of key that signed notes call Ed25519.
const ed25519Type = 1

// NewKey is the key of a server by its name, which has neither spaces nor plus
// signs, and a secret of 32 bytes that is used for nothing else.
func NewKey(name string, seed []byte) (*Key, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, isle.Errorf(isle.Internal, "a key that seals is made of %d bytes, not of %d", ed25519.SeedSize, len(seed))
	}
	private := ed25519.NewKeyFromSeed(seed)
	public := private.Public().(ed25519.PublicKey)
	verifier, err := note.NewEd25519VerifierKey(name, public)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "the key %s: %w", name, err)
	}
	hash := sha256.Sum256(append([]byte(name+"\n"), append([]byte{ed25519Type}, public...)...))
	signer, err := note.NewSigner(fmt.Sprintf("PRIVATE+KEY+%s+%08x+%s", name, binary.BigEndian.Uint32(hash[:]),
		base64.StdEncoding.EncodeToString(append([]byte{ed25519Type}, seed...))))
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "the key %s: %w", name, err)
	}
	return &Key{signer, verifier, private}, nil
}

// Verifier is what another server must know to trust this key:
// NAME+HASH+BASE64.
func (k *Key) Verifier() string { return k.verifier }

// Name is the name of the key.
func (k *Key) Name() string { return k.signer.Name() }

// Sign returns a signed note of a text, which ends in a line break.
func (k *Key) Sign(text string) ([]byte, error) {
	b, err := note.Sign(&note.Note{Text: text}, k.signer)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot sign: %w", err)
	}
	return b, nil
}

// SignBytes is the bare Ed25519 signature of a message of another format, which
// begins as no note that this key signs does.
func (k *Key) SignBytes(message []byte) []byte { return ed25519.Sign(k.private, message) }

// Public is the key that verifies.
func (k *Key) Public() ed25519.PublicKey { return k.private.Public().(ed25519.PublicKey) }

// MaxNote bounds a signed note in bytes.
const MaxNote = 4 << 10

// OpenNote reads the signed note of a text. It returns the name of the key that
// signed, and whether that is one of those given. what names what is signed, for
// people: "snapshot 0123". It fails with Untrusted where the note is of another
// text, or a signature is wrong.
func OpenNote(b []byte, what, text string, keys []note.Verifier) (signer string, trusted bool, err error) {
	if len(b) > MaxNote {
		return "", false, isle.Errorf(isle.Untrusted, "the signature of %s is none: it has %d bytes", what, len(b))
	}
	n, err := note.Open(b, note.VerifierList(keys...))
	if unverified := new(note.UnverifiedNoteError); errors.As(err, &unverified) {
		n, err = unverified.Note, nil
	}
	if err != nil {
		return "", false, isle.Errorf(isle.Untrusted, "the signature of %s is wrong: %w", what, err)
	}
	if n.Text != text {
		return "", false, isle.Errorf(isle.Untrusted, "the signature that lies with %s is of something else", what)
	}
	if len(n.Sigs) > 0 {
		return n.Sigs[0].Name, true, nil
	}
	return n.UnverifiedSigs[0].Name, false, nil
}

// maxVerifier bounds a verifier in bytes.
const maxVerifier = 512

// ParseVerifier reads a key that another server has, NAME+HASH+BASE64.
func ParseVerifier(s string) (note.Verifier, error) {
	v, err := note.NewVerifier(s)
	if err != nil || !printable(s) || len(s) > maxVerifier {
		return nil, isle.Errorf(isle.Invalid, "%q is no key: want NAME+HASH+BASE64", clip(s))
	}
	return v, nil
}

// PublicOf is the key behind a verifier that ParseVerifier takes.
func PublicOf(verifier string) (ed25519.PublicKey, error) {
	if _, err := ParseVerifier(verifier); err != nil {
		return nil, err
	}
	fields := strings.SplitN(verifier, "+", 3)
	b, err := base64.StdEncoding.DecodeString(fields[2])
	if err != nil || len(b) != 1+ed25519.PublicKeySize || b[0] != ed25519Type {
		return nil, isle.Errorf(isle.Invalid, "%q is no Ed25519 key", clip(verifier))
	}
	return ed25519.PublicKey(b[1:]), nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// clip is text that is none, as far as it is of use.
func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), 100)], "") }
