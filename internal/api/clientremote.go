package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"isle"
)

// A Remote is a server elsewhere, and how to know it and be known to it.
type Remote struct {
	URL string // https://HOST[:PORT], as ServerURL gives it
	// Pin is the server's key, as PinOf gives it: whoever has another is not the
	// server, whoever vouches for them. "": the system's roots vouch, or Roots.
	Pin   string
	Roots *x509.CertPool
	// Token is asked for the credential of each request; nil or "": none.
	Token func() (string, error)
}

// NewRemoteClient makes a client for a server elsewhere. It dials when first
// used, and sends no credential before the server has proven who it is.
func NewRemoteClient(r Remote) (*Client, error) {
	address, err := ServerURL(r.URL)
	if err != nil {
		return nil, err
	}
	if r.Pin != "" {
		if err := CheckPin(r.Pin); err != nil {
			return nil, err
		}
	}
	c := &Client{address: address, base: address, remote: true}
	c.transport = &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		TLSClientConfig:     r.tls(address),
		Protocols:           new(http.Protocols),
		HTTP2:               &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		DisableCompression:  true,
	}
	c.transport.Protocols.SetHTTP2(true)
	c.speak(bearing{c.transport, r.Token})
	return c, nil
}

// tls is how the server is known.
func (r Remote) tls(address string) *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: r.Roots}
	if r.Pin == "" {
		return cfg
	}
	// The key says who it is, whatever the certificate says and whoever signed
	// it. This is asked in resumed sessions too.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		leaf := s.PeerCertificates[0]
		if got := PinOf(leaf); subtle.ConstantTimeCompare([]byte(got), []byte(r.Pin)) != 1 {
			return isle.Errorf(isle.Untrusted, "the server at %s has another key than the one that is trusted: %s, not %s; somebody may be in between", address, got, r.Pin).
				WithHint("ask whoever runs it for `isle version` on its machine; if its key was changed, log in again with `isle login %s --token --pin PIN`", address)
		}
		if now := time.Now(); now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
			return expired(address, leaf)
		}
		return nil
	}
	return cfg
}

func expired(address string, leaf *x509.Certificate) error {
	return isle.Errorf(isle.Untrusted, "the certificate of the server at %s holds from %s to %s, and not now", address, leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339)).
		WithHint("look at both machines' clocks; whoever runs the server renews its certificate")
}

// PinOf is the key of a certificate as curl's --pinnedpubkey takes it: sha256//
// and the SHA-256 of its SubjectPublicKeyInfo in base64 (RFC 7469, section 2.4).
func PinOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return pinPrefix + base64.StdEncoding.EncodeToString(sum[:])
}

const pinPrefix = "sha256//"

// CheckPin fails with Invalid where a pin is not one that PinOf gives.
func CheckPin(pin string) error {
	b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(pin, pinPrefix))
	if err != nil || len(b) != sha256.Size || !strings.HasPrefix(pin, pinPrefix) {
		return isle.Errorf(isle.Invalid, "%q is no pin: want %s and 44 characters of base64", pin, pinPrefix).WithHint("`isle version` on the server's machine shows it")
	}
	return nil
}

// Remotely reports whether an address is a URL and not a socket's path.
func Remotely(address string) bool {
	return strings.Contains(address, "://") && !strings.HasPrefix(address, "unix:")
}

// ServerURL is the address of a server elsewhere in one form, so that one
// server has one: https://HOST:PORT.
func ServerURL(s string) (string, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Scheme != "https" || u.Hostname() == "":
		return "", isle.Errorf(isle.Invalid, "that is no address of a server: want https://HOST:PORT")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return "", isle.Errorf(isle.Invalid, "the address of a server is https://HOST:PORT, with nothing before or behind")
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", isle.Errorf(isle.Invalid, "%q is no address of a server: its port is not one", s)
	}
	return "https://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port), nil
}

// bearing gives each request its credential.
type bearing struct {
	next  http.RoundTripper
	token func() (string, error)
}

// RoundTrip implements http.RoundTripper.
func (b bearing) RoundTrip(req *http.Request) (*http.Response, error) {
	if b.token == nil {
		return b.next.RoundTrip(req)
	}
	token, err := b.token()
	if err != nil || token != "" && !token68(token) {
		if req.Body != nil {
			req.Body.Close()
		}
		if err == nil {
			err = isle.Errorf(isle.Invalid, "what is given as a token is none").WithHint("log in again with `isle login`, or see the file of ISLE_TOKEN_FILE")
		}
		return nil, err
	}
	if token != "" {
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return b.next.RoundTrip(req)
}

// answersRemote is Answers for a server elsewhere: it has proven who it is when
// it returns nil.
func (c *Client) answersRemote(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, c.base+"/", nil)
	if err != nil {
		return isle.Errorf(isle.Invalid, "%s: %w", c.address, err)
	}
	res, err := c.transport.RoundTrip(req) // without a credential
	if err == nil {
		return res.Body.Close()
	}
	if told := remoteError(c.address, err); told != nil {
		return told
	}
	return isle.Errorf(isle.Unavailable, "cannot speak to the server at %s: %w", c.address, err).WithHint("see whether it is an isle server that listens there")
}

// remoteError says why there is no connection to a server elsewhere, or why
// whoever answers is not believed; nil if err is another.
func remoteError(address string, err error) error {
	if e, ok := errors.AsType[*isle.Error](err); ok {
		return e // of the pin, or of the token
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
			return expired(address, invalid.Cert)
		}
		return isle.Errorf(isle.Untrusted, "nobody who is trusted vouches for the server at %s: %w", address, e.Err).
			WithHint("log in with its key, which `isle version` on its machine shows: isle login %s --token --pin PIN; or name who signed its certificate with --ca FILE", address)
	}
	op, ok := errors.AsType[*net.OpError](err)
	switch {
	case ok && op.Op == "dial" && errors.Is(err, syscall.ECONNREFUSED):
		return isle.Errorf(isle.NotFound, "no server answers at %s", address).WithHint("see whether it runs, with --listen, and whether the address is right")
	case ok && (op.Op == "dial" || op.Op == "proxyconnect"):
		return isle.Errorf(isle.Unavailable, "cannot reach the server at %s: %w", address, op.Err).WithHint("see whether the address is right, and whether something on the way keeps you out")
	}
	return nil
}

// unaccepted is what a credential gets of which the server says no more.
func unaccepted(address string) error {
	err := isle.Errorf(isle.Refused, "the server at %s does not accept the credential", address)
	if !Remotely(address) {
		return err
	}
	return err.WithHint("log in again with `isle login %s --token`", address)
}

// Peek returns the key of whoever answers at the address, as PinOf gives it, and
// whether it is vouched for. Nothing is sent to them; that they are who they
// should be is for somebody else to say.
func Peek(ctx context.Context, r Remote) (pin string, trusted bool, err error) {
	address, err := ServerURL(r.URL)
	if err != nil {
		return "", false, err
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, NextProtos: []string{"h2"}}
	host := strings.TrimPrefix(address, "https://")
	d := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: cfg}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		if told := remoteError(address, err); told != nil {
			return "", false, told
		}
		return "", false, isle.Errorf(isle.Unavailable, "cannot speak to the server at %s: %w", address, err).WithHint("see whether it is an isle server that listens there")
	}
	defer conn.Close()
	chain := conn.(*tls.Conn).ConnectionState().PeerCertificates
	name, _, _ := net.SplitHostPort(host)
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, verr := chain[0].Verify(x509.VerifyOptions{DNSName: name, Roots: r.Roots, Intermediates: between})
	return PinOf(chain[0]), verr == nil, nil
}
