package secret

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/identity"
)

// A Keyring seals by one key, of 32 random bytes, in a file of its own outside
// of what it seals. It is safe for concurrent use.
//
// What it seals is, in this order: the byte 1 for this format; the 8 bytes of
// the key's ID; a random nonce of 24 bytes; and what XChaCha20-Poly1305
// (draft-irtf-cfrg-xchacha) gives for it, under a key that is derived from the
// Keyring's by HKDF-SHA256 (RFC 5869) for the purpose, with all that stands in
// front of the nonce and the purpose as associated data. A nonce of that length
// may be random however often a key is used, which one of AES-GCM's 12 bytes may
// not, and the cipher takes the same time for every input on machines without
// instructions for AES too.
type Keyring struct {
	path string
	key  *key  // nil: err says why
	err  error // of a keyring without a key
}

// A key stands behind a pointer: what prints a struct that holds one prints an
// address.
type key struct {
	bytes [keySize]byte
	id    keyID
}

// A keyID tells keys apart. It is derived from the key, and says nothing of it.
type keyID [8]byte

func (id keyID) String() string { return hex.EncodeToString(id[:]) }

const (
	keySize = 32
	// maxSealed bounds what is sealed and opened in bytes: a record of a ledger
	// is no larger.
	maxSealed = 1 << 20
	// formatOne is the first byte of what is sealed.
	formatOne = 1
	// overhead is what sealing adds in bytes.
	overhead = 1 + len(keyID{}) + chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead
)

var _ identity.Sealer = (*Keyring)(nil)

// OpenKeyring reads the key at path. Where there is none it fails with NotFound,
// or makes one if it may create it: for root only, durable when it returns. It
// fails with Invalid for what is no key, or could be read or replaced by others.
func OpenKeyring(path string, create bool) (*Keyring, error) {
	k, err := readKey(path)
	if create && err != nil && isle.CodeOf(err) == isle.NotFound {
		if err = makeKey(path); err == nil {
			k, err = readKey(path)
		}
	}
	if err != nil {
		return nil, err
	}
	return &Keyring{path: path, key: k}, nil
}

// WithoutKey is a keyring of which every use fails with err.
func WithoutKey(path string, err error) *Keyring { return &Keyring{path: path, err: err} }

// Path is where the key is.
func (k *Keyring) Path() string { return k.path }

// ID tells this keyring's key from others; it is "" without one.
func (k *Keyring) ID() string {
	if k.key == nil {
		return ""
	}
	return k.key.id.String()
}

// Err says why the keyring has no key; nil if it has.
func (k *Keyring) Err() error { return k.err }

// Format implements fmt.Formatter: a key is not printed.
func (k *Keyring) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[keyring %s]", k.ID()) }

// Derive gives a key of 32 bytes for a purpose, always the same: for what is not
// sealed, since it is made again instead of being kept. It says nothing of the
// keyring's own, nor of those for other purposes.
func (k *Keyring) Derive(purpose string) ([]byte, error) {
	if k.err != nil {
		return nil, k.err
	}
	b, err := hkdf.Key(sha256.New, k.key.bytes[:], nil, "isle derive v1\n"+purpose, 32)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot derive a key: %w", err)
	}
	return b, nil
}

// Seal implements identity.Sealer.
func (k *Keyring) Seal(purpose string, plain []byte) ([]byte, error) {
	if k.err != nil {
		return nil, k.err
	}
	if len(plain) > maxSealed-overhead {
		return nil, isle.Errorf(isle.Invalid, "cannot seal %d bytes: at most %d", len(plain), maxSealed-overhead)
	}
	aead, err := k.key.aead(purpose)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, overhead+len(plain))
	out = append(append(out, formatOne), k.key.id[:]...)
	bound := append(out[:len(out):len(out)], purpose...)
	out = out[:len(out)+chacha20poly1305.NonceSizeX]
	nonce := out[len(out)-chacha20poly1305.NonceSizeX:]
	rand.Read(nonce)
	return aead.Seal(out, nonce, plain, bound), nil
}

// Open implements identity.Sealer. It tells what was sealed under another key
// from what is damaged.
func (k *Keyring) Open(purpose string, sealed []byte) ([]byte, error) {
	if k.err != nil {
		return nil, k.err
	}
	id, rest, err := parseSealed(sealed)
	if err != nil {
		return nil, err
	}
	if id != k.key.id {
		return nil, isle.Errorf(isle.Invalid, "it was sealed under the key %s, and the key at %s is %s", id, k.path, k.key.id).WithHint("put the key %s back at %s", id, k.path)
	}
	aead, err := k.key.aead(purpose)
	if err != nil {
		return nil, err
	}
	head := sealed[: len(sealed)-len(rest) : len(sealed)-len(rest)]
	nonce, text := rest[:chacha20poly1305.NonceSizeX], rest[chacha20poly1305.NonceSizeX:]
	plain, err := aead.Open(nil, nonce, text, append(head, purpose...))
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "it is damaged, or was not sealed for %q", purpose)
	}
	return plain, nil
}

// parseSealed takes what is sealed apart; rest is the nonce and what follows.
func parseSealed(sealed []byte) (id keyID, rest []byte, err error) {
	switch {
	case len(sealed) < overhead || len(sealed) > maxSealed:
		return id, nil, isle.Errorf(isle.Invalid, "it is not sealed: it has %d bytes", len(sealed))
	case sealed[0] != formatOne:
		return id, nil, isle.Errorf(isle.Invalid, "it is sealed in format %d, and this program knows format %d only", sealed[0], formatOne)
	}
	n := copy(id[:], sealed[1:])
	return id, sealed[1+n:], nil
}

// aead is the cipher of a purpose.
func (k *key) aead(purpose string) (cipher.AEAD, error) {
	sub, err := hkdf.Key(sha256.New, k.bytes[:], nil, "isle seal v1\n"+purpose, chacha20poly1305.KeySize)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot derive a key: %w", err)
	}
	defer clear(sub)
	return chacha20poly1305.NewX(sub)
}

// newKey is the key of some bytes.
func newKey(b []byte) (*key, error) {
	k := &key{}
	copy(k.bytes[:], b)
	id, err := hkdf.Key(sha256.New, k.bytes[:], nil, "isle key id v1", len(k.id))
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot derive a key's ID: %w", err)
	}
	copy(k.id[:], id)
	return k, nil
}

// The file of a key is one line: what it is, which scanners for secrets can
// look for; the key; and its ID, by which a damaged one is known.
const (
	keyPrefix   = "isle-key-1 "
	keyFileSize = len(keyPrefix) + 2*keySize + 1 + 2*len(keyID{}) + 1
)

func (k *key) encode() []byte {
	return []byte(keyPrefix + hex.EncodeToString(k.bytes[:]) + " " + k.id.String() + "\n")
}

// parseKey reads the text of a key file. Its errors say nothing of the text.
func parseKey(b []byte) (*key, error) {
	if len(b) != keyFileSize {
		return nil, fmt.Errorf("it has %d bytes, and a key file %d", len(b), keyFileSize)
	}
	text, ok := strings.CutPrefix(string(b), keyPrefix)
	if !ok {
		return nil, fmt.Errorf("it does not begin with %q", strings.TrimSpace(keyPrefix))
	}
	secret, rest := text[:2*keySize], text[2*keySize:]
	raw, err := hex.DecodeString(secret)
	if err != nil {
		return nil, errors.New("its key is not hexadecimal")
	}
	defer clear(raw)
	k, err := newKey(raw)
	if err != nil {
		return nil, err
	}
	if rest != " "+k.id.String()+"\n" || secret != strings.ToLower(secret) {
		return nil, errors.New("its key is damaged: it has another check value")
	}
	return k, nil
}

func readKey(path string) (*key, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, isle.Errorf(isle.NotFound, "there is no key at %s", path)
	case errors.Is(err, unix.ELOOP):
		return nil, isle.Errorf(isle.Invalid, "%s is a symbolic link, and no key file", path)
	case err != nil:
		return nil, isle.Errorf(isle.Unavailable, "cannot read the key: %w", err)
	}
	defer f.Close()
	if err := private(f); err != nil {
		return nil, isle.Errorf(isle.Invalid, "the key file %s %w", path, err).WithHint("it has to be a file of whom the server runs as, of mode 0600, in a folder that nobody else may write: chown root %s; chmod 600 %s", path, path)
	}
	if err := ownFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
	b := make([]byte, keyFileSize+1)
	defer clear(b)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, isle.Errorf(isle.Unavailable, "cannot read the key: %w", err)
	}
	k, err := parseKey(b[:n])
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "%s is no key: %w", path, err).WithHint("put the key back there from your backup")
	}
	return k, nil
}

// private says what is wrong with a file that nobody else must read.
func private(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("cannot be looked at: %w", err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("is no regular file")
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("belongs to user %d", st.Uid)
	case st.Mode&0o077 != 0:
		return fmt.Errorf("has mode %04o: others than its owner may use it", st.Mode&0o7777)
	}
	return nil
}

// ownFolder refuses a folder in which others could replace a file.
func ownFolder(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return isle.Errorf(isle.Unavailable, "cannot look at the folder %s: %w", dir, err)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return isle.Errorf(isle.Invalid, "others may write to the folder %s of the key", dir).WithHint("chown root %s; chmod 700 %s", dir, dir)
	}
	return nil
}

// makeKey writes a new key. It replaces nothing: of two that make one at once
// the first counts.
func makeKey(path string) (err error) {
	dir := filepath.Dir(path)
	defer func() {
		if err != nil && isle.CodeOf(err) == isle.Internal {
			err = isle.Errorf(isle.Unavailable, "cannot make the key of secrets: %w", err).WithHint("choose another folder for it with --keys")
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := ownFolder(dir); err != nil {
		return err
	}
	var raw [keySize]byte
	rand.Read(raw[:])
	defer clear(raw[:])
	k, err := newKey(raw[:])
	if err != nil {
		return err
	}
	text := k.encode()
	defer clear(text)
	return place(path, text)
}

// place writes a file that is not there yet, whole or not at all, durably.
func place(path string, text []byte) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".key-") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(text)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, d := range []string{dir, filepath.Dir(dir)} { // the folder may be new too
		if err := syncFolder(d); err != nil {
			return err
		}
	}
	return nil
}

func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
