package identity

import (
	"crypto/rand"
	"hash/crc32"
	"strings"

	"isle"
)

// A secret is a prefix, secretRandom characters of base62 from the kernel's
// random numbers (238 bits) and secretSum characters of base62 that are the
// CRC-32 (IEEE) of all that is before them, with zeros in front. So secret
// scanners find it by its shape and know a real one from a look-alike without
// asking anybody:
//
//	\bislep?_[0-9A-Za-z]{46}\b
const (
	machinePrefix  = "isle_"
	personalPrefix = "islep_"

	secretRandom = 40
	secretSum    = 6

	// MaxCredential bounds what is looked at as a credential, in bytes.
	MaxCredential = 128
	// hintLength is how many of the random characters a Hint has.
	hintLength = 4
)

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// SecretPattern is the regular expression that finds API keys and personal
// tokens, for secret scanners.
const SecretPattern = `\bislep?_[0-9A-Za-z]{46}\b`

// newSecret returns a fresh secret of a kind of key, its hash, and the hint to
// find it again by.
func newSecret(kind string) (secret string, hash isle.Digest, hint string) {
	prefix := machinePrefix
	if kind == Personal {
		prefix = personalPrefix
	}
	var b strings.Builder
	b.WriteString(prefix)
	var random [64]byte
	for b.Len() < len(prefix)+secretRandom {
		rand.Read(random[:])
		for _, c := range random {
			// 248 is the largest multiple of 62 in a byte: each character is as
			// likely as any other.
			if c < 248 && b.Len() < len(prefix)+secretRandom {
				b.WriteByte(base62[c%62])
			}
		}
	}
	body := b.String()
	secret = body + checksum(body)
	return secret, hashSecret(secret), body[:len(prefix)+hintLength]
}

// hashSecret is all that is kept of a secret. It has 238 random bits, so a fast
// hash is enough: there is nothing to guess.
func hashSecret(secret string) isle.Digest { return isle.DigestOf([]byte(secret)) }

func checksum(body string) string {
	sum := crc32.ChecksumIEEE([]byte(body))
	var out [secretSum]byte
	for i := secretSum - 1; i >= 0; i-- {
		out[i] = base62[sum%62]
		sum /= 62
	}
	return string(out[:])
}

// The shapes that a credential may have.
type shape int

const (
	shapeless shape = iota // not one of ours
	mistyped               // ours, but its checksum does not fit
	whole
)

// shapeOf says whether a credential can be an API key or a personal token, from
// its text alone, and which kind.
func shapeOf(credential string) (kind string, s shape) {
	rest, ok := strings.CutPrefix(credential, machinePrefix)
	kind = APIKey
	if !ok {
		if rest, ok = strings.CutPrefix(credential, personalPrefix); !ok {
			return "", shapeless
		}
		kind = Personal
	}
	if len(rest) != secretRandom+secretSum {
		return kind, mistyped
	}
	for i := range len(rest) {
		if strings.IndexByte(base62, rest[i]) < 0 {
			return kind, mistyped
		}
	}
	body := credential[:len(credential)-secretSum]
	if checksum(body) != credential[len(body):] {
		return kind, mistyped
	}
	return kind, whole
}

// holdsSecret reports whether a whole API key or personal token stands anywhere
// in a text.
func holdsSecret(s string) bool {
	for i := range s {
		for _, prefix := range []string{machinePrefix, personalPrefix} {
			if end := i + len(prefix) + secretRandom + secretSum; end <= len(s) {
				if _, shape := shapeOf(s[i:end]); shape == whole {
					return true
				}
			}
		}
	}
	return false
}

// LooksLikeSecret reports whether a text begins as API keys and personal tokens
// do.
func LooksLikeSecret(s string) bool {
	_, shape := shapeOf(s)
	return shape != shapeless
}

// Redacted is a text, or what stands for it where an API key or a personal token
// is in it: of what somebody gave as a name, and is told or written down.
func Redacted(s string) string {
	if holdsSecret(s) {
		return "[credential]"
	}
	return s
}
