package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"isle/internal/identity"
)

// A holder is a service that renews its SVID at half of its life, and reads the
// bundle each refresh hint: as late as may be.
type holder struct {
	t      *testing.T
	issuer *identity.Issuer
	clock  *setClock

	mu     sync.Mutex
	svid   tls.Certificate
	half   time.Time
	bundle *spiffebundle.Bundle
	read   time.Time
}

func (h *holder) config() *tls.Config {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.clock.Now()
	if now.Sub(h.read) >= identity.RefreshHint {
		h.bundle, h.read = bundles(h.t, h.issuer), now
	}
	if !now.Before(h.half) {
		s, err := h.issuer.X509SVID(web(h.issuer))
		if err != nil {
			h.t.Error(err)
			return &tls.Config{}
		}
		key, err := x509.ParsePKCS8PrivateKey(s.Key)
		if err != nil {
			h.t.Error(err)
		}
		h.svid, h.half = tls.Certificate{Certificate: s.Chain, PrivateKey: key}, now.Add(s.Expires.Sub(now)/2)
	}
	bundle := h.bundle
	return &tls.Config{
		Certificates: []tls.Certificate{h.svid}, ClientAuth: tls.RequireAnyClientCert, InsecureSkipVerify: true, Time: h.clock.Now,
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			_, _, err := x509svid.ParseAndVerify(raw, bundle, x509svid.WithTime(now))
			return err
		},
	}
}

// shake makes one connection between two holders.
func shake(client, server *holder) error {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	failed := make(chan error, 1)
	go func() {
		c := tls.Server(b, server.config())
		err := c.Handshake()
		if err == nil {
			_, err = c.Write([]byte("x")) // with TLS 1.3 the client's certificate is refused after its handshake
		}
		failed <- err
	}()
	c := tls.Client(a, client.config())
	_, err := c.Read(make([]byte, 1))
	return errors.Join(err, <-failed)
}

// TestNoHandshakeFailsWhileKeysRotate: mutual TLS goes on without a failure
// while the next authority is published and while it takes over, between
// services that learn of it as late as they may.
func TestNoHandshakeFailsWhileKeysRotate(t *testing.T) {
	c := newSetClock()
	i := openIssuer(t, identity.IssuerConfig{Now: c.Now})
	holders := make([]*holder, 4)
	for n := range holders {
		holders[n] = &holder{t: t, issuer: i, clock: c}
	}
	day := 24 * time.Hour
	authorities := map[string]bool{}
	for _, jump := range []time.Duration{0, 6*day - time.Hour, day - 2*time.Hour} {
		// In a jump nobody is asleep: what was done in it is what a minute does.
		for end := c.Now().Add(jump); c.Now().Before(end); {
			c.Add(6 * time.Hour)
			if err := i.Rotate(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for minute := range 150 {
			c.Add(time.Minute)
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := i.Rotate(t.Context()); err != nil {
					t.Error(err)
				}
			})
			for n := range holders {
				wg.Go(func() {
					if err := shake(holders[n], holders[(n+minute)%len(holders)]); err != nil {
						t.Errorf("minute %d after %s: %v", minute, jump, err)
					}
				})
			}
			wg.Wait()
			leaf, err := x509.ParseCertificate(holders[0].svid.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			authorities[string(leaf.AuthorityKeyId)] = true
		}
	}
	if len(authorities) != 2 {
		t.Errorf("%d authorities signed, not 2: the test misses the rotation", len(authorities))
	}
}

func TestAnSVIDDoesNotPrintItsKey(t *testing.T) {
	i := openIssuer(t, identity.IssuerConfig{})
	x, j := works(t, i, time.Now(), bundles(t, i))
	asJSON, err := json.Marshal([]any{x, j})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprintf("%v %+v %#v %x", x, x, x, x), fmt.Sprintf("%v %+v %#v %s", j, j, j, j), string(asJSON)} {
		if strings.Contains(text, j.Token[40:80]) || strings.Contains(text, fmt.Sprintf("%x", x.Key[20:40])) || strings.Contains(text, `"Key"`) || strings.Contains(text, "[]byte") {
			t.Errorf("it prints %s", text)
		}
	}
}
