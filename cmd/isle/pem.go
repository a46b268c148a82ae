package main

import (
	"crypto/x509"
	"encoding/pem"

	"isle/internal/seal"
)

// pemOf is the key behind a verifier as other tools read it, "" where it is none.
func pemOf(verifier string) string {
	key, err := seal.PublicOf(verifier)
	if err != nil {
		return ""
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return ""
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}
