// Package identitytest has an identity.Sealer for tests.
package identitytest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"

	"isle"
)

// A Sealer seals with AES-256-GCM and a random key of its own.
type Sealer struct{ aead cipher.AEAD }

// NewSealer returns a Sealer that opens what no other one sealed.
func NewSealer() Sealer {
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return Sealer{aead}
}

// Seal implements identity.Sealer.
func (s Sealer) Seal(purpose string, plain []byte) ([]byte, error) {
	return s.aead.Seal(nil, nil, plain, []byte(purpose)), nil
}

// Open implements identity.Sealer.
func (s Sealer) Open(purpose string, sealed []byte) ([]byte, error) {
	plain, err := s.aead.Open(nil, nil, sealed, []byte(purpose))
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "it was not sealed with this key")
	}
	return plain, nil
}
