package recorder

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"isle/internal/inspection"
)

// life is how long before and after now the authority of a step counts: the
// clock of a step is the machine's, and a step has an end.
const life = 48 * time.Hour

// newAuthority makes that of one step, whose key is gone with it.
func newAuthority() (*inspection.Authority, error) {
	key, err := inspection.NewKey()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return inspection.New(key, inspection.Scope{Name: "Isle, the recorded network of one build step", From: now.Add(-life), Until: now.Add(life)})
}

// opened ends TLS of a connection to an address: with the name that the client
// says (RFC 6066, section 3), or that address.
func opened(a *inspection.Authority, to net.Addr) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			host := hello.ServerName
			if host == "" {
				host, _, _ = net.SplitHostPort(to.String())
			}
			host = strings.ToLower(host)
			if _, err := netip.ParseAddr(host); err != nil && !validName(host) { // each is kept, and a step may say names of 64 KiB
				return nil, fmt.Errorf("%.100q is no host", host)
			}
			return a.For(host)
		},
	}
}
