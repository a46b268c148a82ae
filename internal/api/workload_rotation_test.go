package api

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"isle/internal/identity"
)

// A hasty issues X.509-SVIDs that live for seconds, where identity.Issuer's live
// for minutes.
type hasty struct {
	SVIDs
	t      *testing.T
	issued atomic.Int32

	mu    sync.Mutex // guards what follows
	roots []hastyRoot
	signs int // of roots
	over  chan struct{}
}

type hastyRoot struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

const hastyLife = 4 * time.Second

func newHasty(t *testing.T) *hasty {
	h := &hasty{t: t, over: make(chan struct{})}
	h.roots = []hastyRoot{h.root()}
	return h
}

func (h *hasty) root() hastyRoot {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: "isle.example.org"}}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		h.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		h.t.Fatal(err)
	}
	return hastyRoot{c, key}
}

// change changes the roots, as a rotation does a step at a time.
func (h *hasty) change(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	close(h.over)
	h.over = make(chan struct{})
}

func (h *hasty) Over() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.over
}

func (h *hasty) Bundle() identity.Bundle {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := identity.Bundle{TrustDomain: "isle.example.org"}
	for _, r := range h.roots {
		b.X509 = append(b.X509, r.certificate.Raw)
	}
	return b
}

func (h *hasty) X509SVID(id identity.SPIFFEID) (identity.X509SVID, error) {
	h.mu.Lock()
	root := h.roots[h.signs]
	h.mu.Unlock()
	h.issued.Add(1)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return identity.X509SVID{}, err
	}
	uri, _ := url.Parse(id.String())
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(hastyLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, URIs: []*url.URL{uri}}
	der, err := x509.CreateCertificate(rand.Reader, template, root.certificate, key.Public(), root.key)
	if err != nil {
		return identity.X509SVID{}, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	return identity.X509SVID{ID: id, Chain: [][]byte{der}, Key: pkcs8, Expires: template.NotAfter.Truncate(time.Second)}, err
}

// Two services speak mTLS with what their Workload APIs give them, while SVIDs
// end every few seconds and the roots are replaced: no handshake fails.
func TestSVIDsRotateUnderLoadWithoutAFailedHandshake(t *testing.T) {
	h := newHasty(t)
	l := newWorkloadLab(t, h)
	i := newIssuer(t)
	source := func(service string) *workloadapi.X509Source {
		s, err := workloadapi.NewX509Source(t.Context(), workloadapi.WithClientOptions(workloadapi.WithAddr(l.socket(callerOf(i, service)))))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	web, db := source("web"), source("db")
	id := func(service string) spiffeid.ID {
		return spiffeid.RequireFromString("spiffe://isle.example.org/shop/testing/shop/" + service)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(db, db, tlsconfig.AuthorizeID(id("web"))))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var served sync.WaitGroup
	defer served.Wait()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer c.Close()
				io.Copy(c, c)
			})
		}
	}()
	stop := make(chan struct{})
	var shakes atomic.Int32
	var rounds [4]atomic.Int32
	var load sync.WaitGroup
	for worker := range rounds {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := tls.Dial("tcp", listener.Addr().String(), tlsconfig.MTLSClientConfig(web, web, tlsconfig.AuthorizeID(id("db"))))
				if err == nil {
					b := make([]byte, 1)
					if _, err = c.Write([]byte("x")); err == nil {
						_, err = io.ReadFull(c, b)
					}
					c.Close()
				}
				if err != nil {
					t.Errorf("after %d handshakes and %d SVIDs: %v", shakes.Load(), h.issued.Load(), err)
					return
				}
				shakes.Add(1)
				rounds[worker].Add(1)
			}
		})
	}
	// knows waits until both services know so many roots, and have an SVID of
	// the one that signs.
	domain := spiffeid.RequireTrustDomainFromString("isle.example.org")
	knows := func(roots int) {
		for _, s := range []*workloadapi.X509Source{web, db} {
			for {
				updated := s.Updated()
				b, err := s.GetX509BundleForTrustDomain(domain)
				svid, serr := s.GetX509SVID()
				if err != nil || serr != nil {
					t.Fatal(err, serr)
				}
				h.mu.Lock()
				signs := h.roots[h.signs].certificate
				h.mu.Unlock()
				if len(b.X509Authorities()) == roots && svid.Certificates[0].CheckSignatureFrom(signs) == nil {
					break
				}
				<-updated
			}
		}
	}
	// pass lets handshakes that were begun before end: each worker ends two.
	pass := func() {
		for worker := range rounds {
			for began := rounds[worker].Load(); rounds[worker].Load() < began+2 && !t.Failed(); {
				time.Sleep(time.Millisecond)
			}
		}
	}
	for range 3 {
		h.change(func() { h.roots = append(h.roots, h.root()) }) // known first
		knows(2)
		pass()
		h.change(func() { h.signs = 1 }) // then it signs
		knows(2)
		pass()
		h.change(func() { h.roots, h.signs = h.roots[1:], 0 }) // then the old one goes
		knows(1)
		pass()
	}
	for began := h.issued.Load(); h.issued.Load() < began+6; { // three renewals each, at half of their lives
		time.Sleep(50 * time.Millisecond)
	}
	close(stop)
	load.Wait()
	t.Logf("%d handshakes with %d SVIDs", shakes.Load(), h.issued.Load())

	// Nobody else gets in, be its SVID as good as any.
	other := source("other")
	c, err := tls.Dial("tcp", listener.Addr().String(), tlsconfig.MTLSClientConfig(other, other, tlsconfig.AuthorizeID(id("db"))))
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
		c.Close()
	}
	if err == nil {
		t.Error("another service was let in")
	}
}
