package initproto

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"isle"
)

// A Kind says what a connection is for.
type Kind byte

// The kinds of connection.
const (
	KindEvents   Kind = 1
	KindWork     Kind = 2
	KindWorkload Kind = 3
)

// SecretSize is the size of a launch's secret, in bytes.
const SecretSize = sha256.Size

const (
	challengeSize = 1 + 32
	helloSize     = 1 + 1 + 26 + 16 + SecretSize
)

// A Challenge opens every connection.
type Challenge struct {
	Version byte
	Nonce   [32]byte
}

// NewChallenge returns a fresh Challenge.
func NewChallenge() Challenge {
	c := Challenge{Version: Version}
	rand.Read(c.Nonce[:])
	return c
}

// Encode returns the payload of a Challenge frame.
func (c Challenge) Encode() []byte { return append([]byte{c.Version}, c.Nonce[:]...) }

// ParseChallenge reads the payload of a Challenge frame.
func ParseChallenge(b []byte) (Challenge, error) {
	var c Challenge
	if len(b) != challengeSize {
		return c, fmt.Errorf("%w: challenge of %d bytes", errFrame, len(b))
	}
	c.Version = b[0]
	copy(c.Nonce[:], b[1:])
	if c.Version != Version {
		return c, fmt.Errorf("the server speaks version %d of the protocol and this isle-init version %d", c.Version, Version)
	}
	return c, nil
}

// A Hello says which launch is calling, and proves it.
type Hello struct {
	Version byte
	Kind    Kind
	Launch  isle.ID
	Nonce   [16]byte
	Proof   [SecretSize]byte
}

// NewHello answers a challenge.
func NewHello(c Challenge, kind Kind, launch isle.ID, secret []byte) Hello {
	h := Hello{Version: Version, Kind: kind, Launch: launch}
	rand.Read(h.Nonce[:])
	key := sha256.Sum256(secret)
	subtle.XORBytes(h.Proof[:], secret, h.sign(c, "init", key[:]))
	return h
}

// sign covers everything both sides have said.
func (h *Hello) sign(c Challenge, who string, key []byte) []byte {
	m := hmac.New(sha256.New, key)
	fmt.Fprintf(m, "isle %s %d %d %s\n", who, h.Version, h.Kind, h.Launch)
	m.Write(c.Nonce[:])
	m.Write(h.Nonce[:])
	return m.Sum(nil)
}

// Proves reports, in constant time, whether the Hello answers c with the
// secret whose SHA-256 is key.
func (h *Hello) Proves(c Challenge, key [sha256.Size]byte) bool {
	secret := h.secret(c, key)
	sum := sha256.Sum256(secret)
	clear(secret)
	return subtle.ConstantTimeCompare(sum[:], key[:]) == 1
}

// secret is the one that h proves, if it proves the one whose SHA-256 is key.
func (h *Hello) secret(c Challenge, key [sha256.Size]byte) []byte {
	secret := make([]byte, SecretSize)
	subtle.XORBytes(secret, h.Proof[:], h.sign(c, "init", key[:]))
	return secret
}

// Welcome returns the payload of the Welcome frame that answers h.
func (h *Hello) Welcome(c Challenge, key [sha256.Size]byte) []byte {
	return h.sign(c, "home", key[:])
}

// Encode returns the payload of a Hello frame.
func (h *Hello) Encode() []byte {
	b := make([]byte, 0, helloSize)
	b = append(b, h.Version, byte(h.Kind))
	b = append(b, h.Launch...)
	b = append(b, h.Nonce[:]...)
	return append(b, h.Proof[:]...)
}

// ParseHello reads the payload of a Hello frame.
func ParseHello(b []byte) (Hello, error) {
	var h Hello
	if len(b) != helloSize {
		return h, fmt.Errorf("%w: hello of %d bytes", errFrame, len(b))
	}
	h.Version, h.Kind, h.Launch = b[0], Kind(b[1]), isle.ID(b[2:28])
	copy(h.Nonce[:], b[28:44])
	copy(h.Proof[:], b[44:])
	switch {
	case h.Version != Version:
		return h, fmt.Errorf("%w: version %d", errFrame, h.Version)
	case h.Kind != KindEvents && h.Kind != KindWork && h.Kind != KindWorkload:
		return h, fmt.Errorf("%w: kind %d", errFrame, h.Kind)
	case !h.Launch.Valid():
		return h, fmt.Errorf("%w: launch %q", errFrame, h.Launch)
	}
	return h, nil
}

// Greet does isle-init's half of the handshake on a fresh connection. The
// caller sets deadlines.
func (c *Conn) Greet(kind Kind, launch isle.ID, secret []byte) error {
	_, _, err := c.Introduce(kind, launch, secret)
	return err
}

// Introduce is Greet, and returns what was said: with it a Become is read.
func (c *Conn) Introduce(kind Kind, launch isle.ID, secret []byte) (challenge Challenge, hello Hello, err error) {
	if len(secret) != SecretSize {
		return challenge, hello, fmt.Errorf("a secret of %d bytes", len(secret))
	}
	b, err := c.Expect(FrameChallenge)
	if err != nil {
		return challenge, hello, err
	}
	if challenge, err = ParseChallenge(b); err != nil {
		return challenge, hello, err
	}
	hello = NewHello(challenge, kind, launch, secret)
	if err := c.WriteFrame(FrameHello, hello.Encode()); err != nil {
		return challenge, hello, err
	}
	welcome, err := c.Expect(FrameWelcome)
	if errors.Is(err, io.EOF) {
		return challenge, hello, errors.New("the server did not accept the launch")
	}
	if err != nil {
		return challenge, hello, err
	}
	if !hmac.Equal(welcome, hello.Welcome(challenge, sha256.Sum256(secret))) {
		return challenge, hello, errors.New("whoever answers at home is not the server")
	}
	return challenge, hello, nil
}

// keyOf returns the bytes of a digest.
func keyOf(d isle.Digest) (key [sha256.Size]byte, ok bool) {
	b, err := hex.DecodeString(d.Hex())
	return [sha256.Size]byte(append(b, make([]byte, sha256.Size)...)), err == nil && len(b) == sha256.Size
}
