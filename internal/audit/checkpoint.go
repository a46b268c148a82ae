package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"isle"
)

// maxCheckpoint bounds a checkpoint in bytes, its cosignatures included.
const maxCheckpoint = 64 << 10

// A Checkpoint is a head that a log has put its name to (c2sp.org/tlog-checkpoint).
type Checkpoint struct {
	Origin string // which log; also the name of its key
	Head
	// Note is the signed note (c2sp.org/signed-note) that it was read from, with
	// every signature, checked or not.
	Note []byte
}

// text is what is signed.
func (c Checkpoint) text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
}

// ParseCheckpoint reads a signed checkpoint. One of the signatures must be by
// the key (a verifier key, NAME+HASH+BASE64) and the origin must be that key's
// name; "" takes the checkpoint for what it says, unproven.
func ParseCheckpoint(msg []byte, key string) (Checkpoint, error) {
	if len(msg) > maxCheckpoint {
		return Checkpoint{}, isle.Errorf(isle.Invalid, "checkpoint: %d bytes, at most %d", len(msg), maxCheckpoint)
	}
	text, _, ok := bytes.Cut(msg, []byte("\n\n"))
	if !ok {
		return Checkpoint{}, isle.Errorf(isle.Invalid, "checkpoint: no signed note: there is no empty line before signatures")
	}
	c, err := parseHead(string(text) + "\n")
	if err != nil {
		return Checkpoint{}, err
	}
	c.Note = bytes.Clone(msg)
	if key == "" {
		return c, nil
	}
	v, err := note.NewVerifier(key)
	if err != nil {
		return Checkpoint{}, isle.Errorf(isle.Invalid, "verifier key %q: %w", key, err)
	}
	if c.Origin != v.Name() {
		return Checkpoint{}, isle.Errorf(isle.Invalid, "the checkpoint is of another log: it is of %s, the key is of %s", c.Origin, v.Name())
	}
	if _, err := note.Open(msg, note.VerifierList(v)); err != nil {
		return Checkpoint{}, isle.Errorf(isle.Invalid, "the checkpoint of %s is not signed by the key %s: %w", c.Origin, key, err)
	}
	return c, nil
}

// parseHead reads the text of a checkpoint: origin, size, root, and extension
// lines, which are let be.
func parseHead(text string) (Checkpoint, error) {
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) < 4 || lines[0] == "" || strings.ContainsAny(lines[0], "+ \t\r") {
		return Checkpoint{}, isle.Errorf(isle.Invalid, "checkpoint: want an origin, a size and a root hash, a line each")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || size > 1<<62 || strconv.FormatInt(size, 10) != lines[1] {
		return Checkpoint{}, isle.Errorf(isle.Invalid, "checkpoint: %q is no size", clip(lines[1], 40))
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil || base64.StdEncoding.EncodeToString(root[:]) != lines[2] {
		return Checkpoint{}, isle.Errorf(isle.Invalid, "checkpoint: %q is no hash", clip(lines[2], 80))
	}
	return Checkpoint{Origin: lines[0], Head: Head{uint64(size), root}}, nil
}

// A Signer puts a log's name to heads.
type Signer struct {
	signer note.Signer
	key    string
}

// Key is the verifier key, NAME+HASH+BASE64, as c2sp.org/signed-note has it.
func (s *Signer) Key() string { return s.key }

// Origin is the log's name: the first line of each checkpoint.
func (s *Signer) Origin() string { return s.signer.Name() }

// Sign returns the checkpoint of a head.
func (s *Signer) Sign(h Head) (Checkpoint, error) {
	c := Checkpoint{Origin: s.Origin(), Head: h}
	msg, err := note.Sign(&note.Note{Text: c.text()}, s.signer)
	if err != nil {
		return c, isle.Errorf(isle.Internal, "cannot sign a checkpoint: %w", err)
	}
	c.Note = msg
	return c, nil
}

// OpenSigner reads the log's key from a file (mode 0600, an encoded signer key
// of c2sp.org/signed-note). Where there is no such file and fresh is true it
// makes one, for a new log of a name that is nobody else's: isle-log/ and an ID.
func OpenSigner(path string, fresh bool) (*Signer, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && fresh {
		return createSigner(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, isle.Errorf(isle.Unavailable, "the audit log has entries, and its key %s is not there", path).
			WithHint("put the key back from a backup; or start once with `isle server --accept-rollback` to go on with a new key, of which every client and monitor must be told")
	}
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "cannot read the audit log's key: %w", err)
	}
	return parseSigner(path, strings.TrimSpace(string(b)))
}

func parseSigner(path, key string) (*Signer, error) {
	bad := func(err error) error {
		return isle.Errorf(isle.Invalid, "%s is no key of an audit log: %w", path, err).WithHint("put the key back from a backup")
	}
	s, err := note.NewSigner(key)
	if err != nil {
		return nil, bad(err)
	}
	// PRIVATE+KEY+NAME+HASH+BASE64: a type's byte, 1 for Ed25519, and a seed.
	parts := strings.SplitN(key, "+", 5)
	seed, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || len(seed) != 1+ed25519.SeedSize {
		return nil, bad(errors.New("it is not an Ed25519 key"))
	}
	public := ed25519.NewKeyFromSeed(seed[1:]).Public().(ed25519.PublicKey)
	v, err := note.NewEd25519VerifierKey(s.Name(), public)
	if err != nil {
		return nil, bad(err)
	}
	return &Signer{s, v}, nil
}

// createSigner makes a key. It is there whole or not at all.
func createSigner(path string) (*Signer, error) {
	key, _, err := note.GenerateKey(rand.Reader, "isle-log/"+string(isle.NewID()))
	if err == nil {
		err = writeFile(path, []byte(key+"\n"))
	}
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "cannot make the audit log's key: %w", err)
	}
	return parseSigner(path, key)
}

// writeFile replaces a file's content, for its owner only, synced: after a
// power cut the old or the new is there.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// A cosigner is a witness's key (c2sp.org/tlog-cosignature, version 1).
type cosigner struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

// algCosignature is the type of cosignature/v1 keys in verifier keys.
const algCosignature = 0x04

// A Cosignature is a witness's word that it saw a checkpoint, consistent with
// all that it had seen of that log.
type Cosignature struct {
	Witness string
	Time    time.Time
}

// Cosignatures returns those of a checkpoint that are by the witnesses, given
// as verifier keys. One that is there and wrong is an error; one that is not
// there is not returned.
func Cosignatures(msg []byte, witnesses []string) ([]Cosignature, error) {
	var out []Cosignature
	for _, w := range witnesses {
		v, err := newCosigner(w)
		if err != nil {
			return nil, err
		}
		n, err := note.Open(msg, note.VerifierList(v))
		if e := new(note.UnverifiedNoteError); errors.As(err, &e) {
			continue
		}
		if err != nil {
			return nil, isle.Errorf(isle.Invalid, "the cosignature of %s is wrong: %w", v.name, err)
		}
		sig, _ := base64.StdEncoding.DecodeString(n.Sigs[0].Base64)
		at := binary.BigEndian.Uint64(sig[4:])
		out = append(out, Cosignature{v.name, time.Unix(int64(at), 0).UTC()})
	}
	return out, nil
}

// newCosigner reads a witness's verifier key. Ed25519 keys of plain notes (type
// 1) are not taken: they would not say when.
func newCosigner(vkey string) (*cosigner, error) {
	name, rest, _ := strings.Cut(vkey, "+")
	hash, key64, _ := strings.Cut(rest, "+")
	key, err := base64.StdEncoding.DecodeString(key64)
	if err != nil || name == "" || len(key) != 1+ed25519.PublicKeySize || key[0] != algCosignature {
		return nil, isle.Errorf(isle.Invalid, "%q is no key of a witness: want NAME+HASH+BASE64 of type 4 (c2sp.org/tlog-cosignature)", clip(vkey, 200))
	}
	sum := sha256.Sum256(append([]byte(name+"\n"), key...))
	if hash != fmt.Sprintf("%08x", binary.BigEndian.Uint32(sum[:])) {
		return nil, isle.Errorf(isle.Invalid, "the witness key %q has another hash than it says", clip(vkey, 200))
	}
	return &cosigner{name, binary.BigEndian.Uint32(sum[:]), ed25519.PublicKey(key[1:])}, nil
}

// Name implements note.Verifier.
func (c *cosigner) Name() string { return c.name }

// KeyHash implements note.Verifier.
func (c *cosigner) KeyHash() uint32 { return c.hash }

// Verify implements note.Verifier.
func (c *cosigner) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	at := binary.BigEndian.Uint64(sig)
	if at > 1<<62 {
		return false
	}
	return ed25519.Verify(c.key, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at, msg), sig[8:])
}
