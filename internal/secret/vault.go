package secret

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"isle"
	"isle/internal/problem"
)

// VaultConfig says which server is asked for values by the protocol of Vault's
// KV version 2 (HTTP: GET /v1/MOUNT/data/PATH).
type VaultConfig struct {
	// Address is its URL: https, or http on loopback only.
	Address string
	// TokenFile holds the token that the server is asked with. Nobody else may
	// read it. It is read each time, so whatever renews it may replace it.
	TokenFile string
	// CA is a file of PEM certificates, one of which must have signed the
	// server's. Default: those of the machine.
	CA string
	// Namespace is sent as X-Vault-Namespace where it is not "".
	Namespace string
}

// Bounds of one question.
const (
	vaultTimeout = 10 * time.Second
	maxAnswer    = 1 << 20 // bytes
	maxToken     = 8 << 10 // bytes
	maxCA        = 1 << 20 // bytes
)

// check says whether the configuration makes sense.
func (c VaultConfig) check() error {
	if c.Address == "" {
		if c.TokenFile != "" || c.CA != "" || c.Namespace != "" {
			return isle.Errorf(isle.Invalid, "Vault is configured without its address").WithHint("say --vault-address https://HOST:8200")
		}
		return nil
	}
	u, err := url.Parse(c.Address)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return isle.Errorf(isle.Invalid, "--vault-address is no URL such as https://vault.example.com:8200")
	case u.Scheme == "http" && !loopback(u.Hostname()), u.Scheme != "https" && u.Scheme != "http":
		return isle.Errorf(isle.Invalid, "--vault-address %s: the token and the secrets would be sent in the clear", u.Redacted()).WithHint("use https; http is for loopback addresses")
	case c.TokenFile == "" || !filepath.IsAbs(c.TokenFile):
		return isle.Errorf(isle.Invalid, "Vault needs a token").WithHint("say --vault-token-file with the absolute path of a file that only root may read")
	case strings.ContainsFunc(c.Namespace, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return isle.Errorf(isle.Invalid, "--vault-namespace %q is no namespace", c.Namespace)
	}
	return nil
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

func noVault() error {
	return isle.Errorf(isle.Invalid, "no Vault is configured").WithHint("start the server with --vault-address and --vault-token-file")
}

// A vaultReference is MOUNT/PATH[?version=N]#FIELD. The mount is what stands
// before the first slash.
type vaultReference struct {
	mount, path, field string
	version            int // 0: the last one
}

func parseVaultReference(s string) (r vaultReference, err error) {
	wrong := isle.Errorf(isle.Invalid, "%q names nothing in Vault", problem.Clip(s)).WithHint("want MOUNT/PATH#FIELD, such as kv/shop/db#password, or MOUNT/PATH?version=3#FIELD")
	s, r.field, _ = strings.Cut(s, "#")
	s, query, asked := strings.Cut(s, "?")
	if asked {
		v, ok := strings.CutPrefix(query, "version=")
		if r.version, err = strconv.Atoi(v); !ok || err != nil || r.version < 1 || strconv.Itoa(r.version) != v {
			return r, wrong
		}
	}
	r.mount, r.path, _ = strings.Cut(s, "/")
	if r.field == "" {
		return r, wrong
	}
	for _, part := range strings.Split(r.mount+"/"+r.path, "/") {
		if part == "" || part == "." || part == ".." {
			return r, wrong
		}
	}
	return r, nil
}

func (r vaultReference) String() string { return r.mount + "/" + r.path }

// url is where the reference is read (Vault's HTTP API, "Read secret version").
func (r vaultReference) url(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", isle.Errorf(isle.Internal, "Vault's address cannot be read") // checked at the start
	}
	u = u.JoinPath("v1", url.PathEscape(r.mount), "data")
	for part := range strings.SplitSeq(r.path, "/") {
		u = u.JoinPath(url.PathEscape(part))
	}
	if r.version > 0 {
		u.RawQuery = "version=" + strconv.Itoa(r.version)
	}
	return u.String(), nil
}

// read asks for one value. No error has a word of an answer's body in it.
func (c VaultConfig) read(ctx context.Context, reference string) ([]byte, error) {
	if c.Address == "" {
		return nil, noVault()
	}
	r, err := parseVaultReference(reference)
	if err != nil {
		return nil, err
	}
	where, err := r.url(c.Address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, vaultTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "%s cannot be asked for in Vault", r)
	}
	token, err := c.token()
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Vault-Token", token)
	req.Header.Set("X-Vault-Request", "true") // what a Vault agent in between may insist on
	if c.Namespace != "" {
		req.Header.Set("X-Vault-Namespace", c.Namespace)
	}
	client, err := c.client()
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	res, err := client.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	defer clear(body)
	switch {
	case err != nil:
		return nil, c.unreachable(err)
	case len(body) > maxAnswer:
		return nil, isle.Errorf(isle.Unavailable, "Vault's answer about %s has more than %d bytes", r, maxAnswer)
	}
	return readAnswer(r, res.StatusCode, body)
}

// unreachable says why there was no answer. What the HTTP client says names the
// address and nothing that was sent.
func (c VaultConfig) unreachable(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	e := isle.Errorf(isle.Unavailable, "Vault at %s does not answer: %w", c.Address, err)
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return e.WithHint("if its certificate is of an authority of your own, name that with --vault-ca")
	}
	return e
}

// client is for one question: what it trusts is read each time, and no
// connection stays open.
func (c VaultConfig) client() (*http.Client, error) {
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		f, err := os.Open(c.CA)
		if err != nil {
			return nil, isle.Errorf(isle.Unavailable, "cannot read --vault-ca: %w", err)
		}
		defer f.Close()
		pem, err := io.ReadAll(io.LimitReader(f, maxCA))
		if err != nil {
			return nil, isle.Errorf(isle.Unavailable, "cannot read --vault-ca: %w", err)
		}
		trust.RootCAs = x509.NewCertPool()
		if !trust.RootCAs.AppendCertsFromPEM(pem) {
			return nil, isle.Errorf(isle.Unavailable, "--vault-ca %s holds no certificate in PEM", c.CA)
		}
	}
	return &http.Client{
		Transport: &http.Transport{
			// No proxy: the token is for Vault, and a proxy of the environment was
			// meant for packages.
			DialContext:            (&net.Dialer{Timeout: vaultTimeout / 2}).DialContext,
			TLSClientConfig:        trust,
			TLSHandshakeTimeout:    vaultTimeout / 2,
			MaxResponseHeaderBytes: 64 << 10,
			DisableCompression:     true, // bounds hold for what comes over the wire
			ForceAttemptHTTP2:      true,
		},
		// A redirect would take the token along.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// token reads the token.
func (c VaultConfig) token() (string, error) {
	f, err := os.Open(c.TokenFile)
	if err != nil {
		return "", isle.Errorf(isle.Unavailable, "cannot read Vault's token: %w", err)
	}
	defer f.Close()
	b, err := readPrivate(f, maxToken)
	if err != nil {
		return "", err
	}
	defer clear(b)
	token := strings.TrimSpace(string(b))
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "", isle.Errorf(isle.Unavailable, "the file %s holds no token", c.TokenFile)
	}
	return token, nil
}

// An answer is what Vault says about a version.
type answer struct {
	Data *struct {
		Data     map[string]json.RawMessage `json:"data"`
		Metadata *struct {
			Version      int    `json:"version"`
			DeletionTime string `json:"deletion_time"`
			Destroyed    bool   `json:"destroyed"`
		} `json:"metadata"`
	} `json:"data"`
}

// readAnswer finds the field in an answer, or says why there is none. Vault
// answers 404 both for what is not there and, with its metadata, for what was
// deleted.
func readAnswer(r vaultReference, status int, body []byte) ([]byte, error) {
	var a answer
	parsed := json.Unmarshal(body, &a) == nil && a.Data != nil && a.Data.Metadata != nil
	switch {
	case parsed && (status == http.StatusOK || status == http.StatusNotFound):
		m := a.Data.Metadata
		switch {
		case m.Destroyed:
			return nil, isle.Errorf(isle.NotFound, "version %d of %s was destroyed in Vault", m.Version, r)
		case a.Data.Data == nil && m.DeletionTime != "":
			return nil, isle.Errorf(isle.NotFound, "version %d of %s was deleted in Vault", m.Version, r).WithHint("undelete it there, or write a new version")
		}
	}
	switch {
	case status == http.StatusOK && parsed:
		return a.field(r)
	case status == http.StatusOK:
		return nil, isle.Errorf(isle.Unavailable, "what Vault answers about %s is not of KV version 2", r).WithHint("see that %s is a mount of that kind: vault secrets list -detailed", r.mount)
	case status == http.StatusNotFound:
		return nil, isle.Errorf(isle.NotFound, "Vault has no %s, or no KV version 2 at %s", r, r.mount)
	case status == http.StatusForbidden:
		return nil, isle.Errorf(isle.Unavailable, "Vault refuses to show %s: the token has ended, or its policy does not let it read %s/data/%s", r, r.mount, r.path).
			WithHint("look at the token in --vault-token-file: vault token lookup")
	case status == http.StatusServiceUnavailable:
		return nil, isle.Errorf(isle.Unavailable, "Vault is sealed, or down for maintenance").WithHint("unseal it: vault status")
	case status == http.StatusTooManyRequests:
		return nil, isle.Errorf(isle.Unavailable, "Vault is asked too often, or is a standby")
	case status/100 == 3:
		return nil, isle.Errorf(isle.Unavailable, "Vault sends elsewhere, and redirects are not followed: they would take the token along").WithHint("give the address of the active server with --vault-address")
	}
	return nil, isle.Errorf(isle.Unavailable, "Vault answers about %s with HTTP status %d", r, status)
}

// field is the value of the field; a string's is its text.
func (a answer) field(r vaultReference) ([]byte, error) {
	raw, ok := a.Data.Data[r.field]
	if !ok {
		return nil, isle.Errorf(isle.NotFound, "%s in Vault has no field %q", r, r.field)
	}
	var text *string
	if err := json.Unmarshal(raw, &text); err != nil || text == nil {
		return nil, isle.Errorf(isle.Unavailable, "the field %q of %s in Vault is no text", r.field, r)
	}
	return []byte(*text), nil
}
