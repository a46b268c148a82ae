// Package inspection gives the certificates with which TLS is opened on its way.
//
// An Authority is a certificate authority (RFC 5280) that few trust: the
// services of one instance, or one step of a build, whose traffic is read on
// purpose. A leaf is the certificate that it gives to one host or address, made
// when the host is first asked for.
package inspection

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"time"

	"isle"
)

const (
	// leafTime is how long the certificate of a host counts, if its authority does.
	leafTime = 24 * time.Hour
	// skew is by how much clocks may differ.
	skew = time.Hour
	// maxLeaves is how many hosts one authority gives certificates to.
	maxLeaves = 4096
)

// An Authority gives certificates to hosts. It is safe for concurrent use.
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

// A Scope is what an authority's own certificate says.
type Scope struct {
	Name        string // its common name
	From, Until time.Time
	// Hosts are the DNS names that what it signs counts for (RFC 5280, section
	// 4.2.1.10), sorted; with none it counts for all.
	Hosts []string
}

// NewKey makes a key for an authority.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// New makes the authority of a key (of P-256). For the same arguments it is the
// same: its certificates differ in their signatures only.
func New(key *ecdsa.PrivateKey, s Scope) (*Authority, error) {
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot make an authority: %w", err)
	}
	sum := sha256.Sum256(public)
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(sum[:16]), SubjectKeyId: sum[:20],
		Subject: pkix.Name{CommonName: s.Name}, NotBefore: s.From.Add(-skew), NotAfter: s.Until,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
		ExtKeyUsage:                 []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		PermittedDNSDomainsCritical: len(s.Hosts) > 0, PermittedDNSDomains: s.Hosts,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot make an authority: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot make an authority: %w", err)
	}
	return &Authority{key: key, certificate: certificate, leaves: make(map[string]*leaf)}, nil
}

// PEM is the authority's own certificate (RFC 7468).
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw})
}

// For returns the certificate of a host, which is a DNS name or an address.
func (a *Authority) For(host string) (*tls.Certificate, error) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if l := a.leaves[host]; l != nil && now.Before(l.until) {
		return l.certificate, nil
	} else if l == nil && len(a.leaves) >= maxLeaves {
		return nil, isle.Errorf(isle.Exhausted, "no certificate for %.253q: %d hosts have one, which is the most", host, maxLeaves)
	}
	key, err := NewKey()
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot make a certificate: %w", err)
	}
	serial := make([]byte, 16)
	rand.Read(serial)
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: host[:min(len(host), 64)]},
		NotBefore: now.Add(-skew), NotAfter: now.Add(leafTime), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		template.IPAddresses = []net.IP{ip.AsSlice()}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot make a certificate: %w", err)
	}
	l := &leaf{&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, now.Add(leafTime / 2)}
	a.leaves[host] = l
	return l.certificate, nil
}
