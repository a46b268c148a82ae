package httpdoor

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"time"

	"isle"
)

const (
	// authorityTime is how long an authority counts from its instance's launch on.
	authorityTime = 10 * 365 * 24 * time.Hour
	// leafTime is how long a certificate that it gives counts.
	leafTime = 24 * time.Hour
	// skew is by how much clocks may differ.
	skew = time.Hour
)

// An Authority gives the certificates with which the inspected egress of one
// instance is opened. Its key is derived from one of the server's and never
// leaves it, nor is it kept: it is made again when it is needed. What it signs
// counts for the hosts that are inspected only, as its own certificate says, and
// nobody but the instance's services trusts it. It is safe for concurrent use.
type Authority struct {
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate

	mu     sync.Mutex // guards what follows
	leaves map[string]*leaf
}

type leaf struct {
	certificate *tls.Certificate
	until       time.Time // when another is made
}

// NewAuthority makes the authority of an instance for hosts (DNS names), from
// the server's key. For the same arguments it is the same: its certificates
// differ in their signatures only.
func NewAuthority(server []byte, instance isle.ID, hosts []string) (*Authority, error) {
	key, err := instanceKey(server, instance)
	if err != nil {
		return nil, err
	}
	hosts = slices.Sorted(slices.Values(hosts))
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot make an authority: %w", err)
	}
	sum := sha256.Sum256(public)
	from := instance.Time()
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(sum[:16]), SubjectKeyId: sum[:20],
		Subject:   pkix.Name{CommonName: "Isle inspection of " + string(instance)},
		NotBefore: from.Add(-skew), NotAfter: from.Add(authorityTime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
		ExtKeyUsage:                 []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: hosts,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, crypto.Signer(key))
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot make an authority: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot make an authority: %w", err)
	}
	return &Authority{key: key, certificate: certificate, leaves: make(map[string]*leaf)}, nil
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

// PEM is the authority's certificate.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw})
}

// certificateFor returns the certificate for a host.
func (a *Authority) certificateFor(host string) (*tls.Certificate, error) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if l := a.leaves[host]; l != nil && now.Before(l.until) {
		return l.certificate, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot make a certificate: %w", err)
	}
	serial := make([]byte, 16)
	rand.Read(serial)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: host[:min(len(host), 64)]}, DNSNames: []string{host},
		NotBefore: now.Add(-skew), NotAfter: now.Add(leafTime), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.certificate, &key.PublicKey, a.key)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot make a certificate: %w", err)
	}
	l := &leaf{&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, now.Add(leafTime / 2)}
	a.leaves[host] = l
	return l.certificate, nil
}
