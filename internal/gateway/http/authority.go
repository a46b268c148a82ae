package httpdoor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"isle"
	"isle/internal/inspection"
)

// authorityTime is how long an authority counts from its instance's launch on.
const authorityTime = 10 * 365 * 24 * time.Hour

// newAuthority makes the authority with which the inspected egress of one
// instance to hosts (DNS names) is opened. Its key is derived from one of the
// server's and never leaves it, nor is it kept: it is made again when it is
// needed. What it signs counts for those hosts only, and nobody but the
// instance's services trusts it.
func newAuthority(server []byte, instance isle.ID, hosts []string) (*inspection.Authority, error) {
	key, err := instanceKey(server, instance)
	if err != nil {
		return nil, err
	}
	from := instance.Time()
	return inspection.New(key, inspection.Scope{
		Name: "Isle inspection of " + string(instance), From: from, Until: from.Add(authorityTime), Hosts: slices.Sorted(slices.Values(hosts)),
	})
}

// instanceKey derives the key of an instance: HKDF-SHA256 (RFC 5869) until what
// comes out is a scalar of P-256, which it is at once but once in 2^32.
func instanceKey(server []byte, instance isle.ID) (*ecdsa.PrivateKey, error) {
	if len(server) < 16 || !instance.Valid() {
		return nil, isle.Errorf(isle.Unavailable, "there is no key to inspect egress with").WithHint("isle doctor says what is wrong with the server's key")
	}
	for n := range 16 {
		b, err := hkdf.Key(sha256.New, server, nil, fmt.Sprintf("isle inspection v1\n%s\n%d", instance, n), 32)
		if err != nil {
			return nil, isle.Errorf(isle.Internal, "cannot derive a key: %w", err)
		}
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), b)
		clear(b)
		if err == nil {
			return key, nil
		}
	}
	return nil, isle.Errorf(isle.Internal, "cannot derive a key")
}
