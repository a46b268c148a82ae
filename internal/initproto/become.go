package initproto

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"time"

	"isle"
)

// MaxTrust bounds the authorities in a Become, in bytes.
const MaxTrust = 32 << 10

// A Become tells an isle-init that it is not the one that it was any more: it
// was captured, with its service, and brought back in another instance, as the
// launch of that. All of this is new to it; what is not here stays as it was.
type Become struct {
	Launch   isle.ID `json:"launch"`
	Secret   []byte  `json:"secret"` // 32 bytes; on the wire it is masked
	Hostname string  `json:"hostname"`
	// Generation grows from fork to fork; isle-init never becomes one that it
	// has been, or that came before.
	Generation int64 `json:"generation"`
	// Trust takes the place of Boot.Trust.
	Trust []byte `json:"trust,omitempty"`
}

// Check says what is wrong with a Become.
func (b *Become) Check() error {
	switch {
	case !b.Launch.Valid():
		return fmt.Errorf("%w: become launch %q", errFrame, bound(string(b.Launch), 32))
	case len(b.Secret) != SecretSize:
		return fmt.Errorf("%w: become with a secret of %d bytes", errFrame, len(b.Secret))
	case b.Generation <= 0:
		return fmt.Errorf("%w: become generation %d", errFrame, b.Generation)
	case !hostname(b.Hostname):
		return fmt.Errorf("%w: become host %q", errFrame, bound(b.Hostname, 64))
	case len(b.Trust) > MaxTrust:
		return fmt.Errorf("%w: become with %d bytes of authorities", errFrame, len(b.Trust))
	}
	return nil
}

// hostname reports whether a kernel takes s for one (uname(2): at most 64
// bytes) and no file that it is written to is any worse for it.
func hostname(s string) bool {
	for _, c := range []byte(s) {
		if c != '-' && c != '.' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// Encode returns the payload of a Become frame on the connection of c and h, for
// whoever knows the secret that h was proved with.
func (b Become) Encode(c Challenge, h *Hello, proved []byte) ([]byte, error) {
	if err := b.Check(); err != nil {
		return nil, err
	}
	b.Secret = h.mask(c, proved, b.Secret)
	return json.Marshal(b)
}

// ParseBecome reads the payload of a Become frame. The Secret is the caller's
// to wipe.
func ParseBecome(payload []byte, c Challenge, h *Hello, proved []byte) (Become, error) {
	var b Become
	if err := json.Unmarshal(payload, &b); err != nil {
		return Become{}, fmt.Errorf("%w: become: %v", errFrame, err)
	}
	if err := b.Check(); err != nil {
		return Become{}, err
	}
	b.Secret = h.mask(c, proved, b.Secret)
	return b, nil
}

// mask hides a secret of SecretSize bytes from whoever listens, as the proof
// does, or shows it again. The connection's nonces are in it, so no two are the
// same.
func (h *Hello) mask(c Challenge, proved, secret []byte) []byte {
	m := hmac.New(sha256.New, proved)
	fmt.Fprintf(m, "isle become %d %d %s\n", h.Version, h.Kind, h.Launch)
	m.Write(c.Nonce[:])
	m.Write(h.Nonce[:])
	masked := make([]byte, SecretSize)
	subtle.XORBytes(masked, secret, m.Sum(nil))
	return masked
}

// A forked is a captured isle-init that may dial home from an instance.
type forked struct {
	instance isle.ID
	captured isle.ID           // the launch that it was
	key      [sha256.Size]byte // SHA-256 of the secret that it had
	become   Become
	knows    bool // who it is: there is nothing left to tell
}

// ExpectFork implements Lines.
func (h *Home) ExpectFork(instance, captured isle.ID, secretHash isle.Digest, b Become, sink Events) error {
	key, ok := keyOf(secretHash)
	if !ok {
		return isle.Errorf(isle.Internal, "launch %s was captured without its secret's hash", captured)
	}
	if err := b.Check(); err != nil {
		return isle.Errorf(isle.Internal, "launch %s: %w", b.Launch, err)
	}
	b.Secret = append([]byte(nil), b.Secret...)
	h.Expect(instance, b.Launch, isle.DigestOf(b.Secret), sink)
	h.mu.Lock()
	defer h.mu.Unlock()
	f := &forked{instance: instance, captured: captured, key: key, become: b}
	h.endFork(b.Launch)
	h.forks[b.Launch] = f
	return nil
}

// knows notes that the launch has called. Its old self may still be on the way
// on another connection, which is no attack; it is told nothing any more.
func (h *Home) knows(launch isle.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f := h.forks[launch]; f != nil {
		clear(f.become.Secret)
		f.knows = true
	}
}

// endFork expects a fork no more. The caller holds h.mu.
func (h *Home) endFork(launch isle.ID) {
	if f := h.forks[launch]; f != nil {
		clear(f.become.Secret)
		delete(h.forks, launch)
	}
}

// fork finds what an isle-init that says it is the launch is to become in the
// instance; nil if nothing.
func (h *Home) fork(instance, captured isle.ID) *forked {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.forks {
		if f.instance == instance && f.captured == captured {
			c := *f
			c.become.Secret = append([]byte(nil), f.become.Secret...)
			return &c
		}
	}
	return nil
}

// tell says Become on an events connection that has proved that it is f's; on
// any other there is nothing to do for who it was.
func (f *forked) tell(c *Conn, challenge Challenge, hello *Hello) error {
	if hello.Kind != KindEvents || f.knows {
		return nil
	}
	proved := hello.secret(challenge, f.key)
	defer clear(proved)
	b, err := f.become.Encode(challenge, hello, proved)
	if err != nil {
		return err
	}
	if err := c.WriteFrame(FrameBecome, b); err != nil {
		return err
	}
	// It ends the connection when it has become the other. What it still has to
	// say as who it was is of no interest.
	if err := c.SetReadDeadline(time.Now().Add(HandshakeTimeout)); err != nil {
		return err
	}
	for {
		if _, _, err := c.ReadFrame(); err != nil {
			return nil
		}
	}
}
