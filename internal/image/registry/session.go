package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"isle"
)

// A Credential is what a registry knows a caller by. It is never written down,
// and its text shows nothing of it.
type Credential struct {
	Username string
	Password string
	// IdentityToken is a refresh token (OAuth 2.0), in place of a password.
	IdentityToken string
}

// String hides the credential.
func (c Credential) String() string {
	if c == (Credential{}) {
		return "anonymous"
	}
	return "credential"
}

// GoString hides the credential.
func (c Credential) GoString() string { return c.String() }

// A session is one caller's talk with one registry about one repository.
type session struct {
	client     *Client
	ref        Reference
	credential Credential
	actions    string // "pull" or "pull,push"
	http       *http.Client

	mu    sync.Mutex
	base  string // URL of the repository; "" before the first call
	token string // bearer
	basic bool   // the credential goes with every call
}

func newSession(c *Client, r Reference, cred Credential, actions string) *session {
	s := &session{client: c, ref: r, credential: cred, actions: actions}
	self := loopback(r.Registry)
	dialer := &net.Dialer{Timeout: dialTimeout}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, TLSHandshakeTimeout: dialTimeout, ResponseHeaderTimeout: headTimeout,
		MaxResponseHeaderBytes: 256 << 10, DisableCompression: true, ForceAttemptHTTP2: true, IdleConnTimeout: 30 * time.Second,
		MaxConnsPerHost: 8, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: r.Registry}}); err == nil && proxy == nil && !self {
		dialer.Control = notHere // a proxy may well be on this machine
	}
	s.http = &http.Client{Transport: transport, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		switch {
		case len(via) > maxRedirects:
			return errors.New("it leads from one address to the next")
		case req.URL.Scheme != "https" && !(self && loopback(req.URL.Host)):
			return errors.New("it leads to an address without TLS")
		case req.Body != nil && req.URL.Host != via[0].URL.Host:
			return errors.New("what is sent to it would go on to another server")
		}
		if req.URL.Host != via[0].URL.Host {
			req.Header.Del("Authorization") // of the registry, and of nobody else
		}
		return nil
	}}
	return s
}

// notHere keeps what a registry's answers lead to away from this machine and from
// what clouds keep beside it: a registry elsewhere has no business there.
func notHere(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if ip := at.Addr().Unmap(); ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast() {
		return fmt.Errorf("it leads to %s, which is this machine itself or beside it", ip)
	}
	return nil
}

// at is the URL of the repository. Without TLS only this machine itself is spoken
// to, and only where it does not speak TLS.
func (s *session) at(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.base != "" {
		return s.base, nil
	}
	scheme := "https"
	if loopback(s.ref.Registry) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+s.ref.Registry+"/v2/", nil)
		if err != nil {
			return "", away(err)
		}
		res, err := s.http.Do(req)
		var plain tls.RecordHeaderError
		switch {
		case err == nil:
			res.Body.Close()
		case errors.As(err, &plain) || strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
			scheme = "http"
		default:
			return "", away(err)
		}
	}
	s.base = scheme + "://" + s.ref.Registry + "/v2/" + s.ref.Repository + "/"
	return s.base, nil
}

// do sends a request and returns an answer of success. What the registry wants to
// know of the caller is told it, once.
func (s *session) do(ctx context.Context, method, path string, h http.Header, body *content) (*http.Response, error) {
	base, err := s.at(ctx)
	if err != nil {
		return nil, err
	}
	target := path
	if !strings.Contains(path, "://") {
		target = base + path
	}
	for again := false; ; again = true {
		res, err := s.send(ctx, method, target, h, body)
		if err != nil {
			return nil, err
		}
		if res.StatusCode != http.StatusUnauthorized {
			return res, s.failure(res)
		}
		challenges, asks := res.Header.Values("WWW-Authenticate"), res.Request.URL.Host
		drain(res)
		if asks != s.ref.Registry { // where it led to; what that asks for is none of its business
			return nil, isle.Errorf(isle.Failed, "the registry %s leads to %.100s, which wants a login of its own", s.ref.Registry, asks)
		}
		if again {
			return nil, s.refused()
		}
		if err := s.authenticate(ctx, challenges); err != nil {
			return nil, err
		}
	}
}

func (s *session) send(ctx context.Context, method, target string, h http.Header, body *content) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "the registry %s gave an address that is none", s.ref.Registry)
	}
	if body != nil {
		if req.Body, err = body.open(); err != nil {
			return nil, err
		}
		req.ContentLength = body.size
	}
	for k, v := range h {
		req.Header[k] = v
	}
	s.authorize(req)
	res, err := s.http.Do(req)
	if err != nil {
		return nil, away(err)
	}
	return res, nil
}

// authorize adds what the registry asked for before, to requests to it alone.
func (s *session) authorize(req *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if req.URL.Host != s.ref.Registry {
		return
	}
	switch {
	case s.token != "":
		req.Header.Set("Authorization", "Bearer "+s.token)
	case s.basic:
		req.SetBasicAuth(s.credential.Username, s.credential.Password)
	}
}

func (s *session) refused() error {
	e := isle.Errorf(isle.Refused, "the registry %s does not give %s to this caller: %w", s.ref.Registry, s.ref.Repository, &LoginNeeded{s.ref.Registry})
	return e.WithHint("log in with `docker login %s`, whose credentials isle takes; or the image has another name", s.ref.Registry)
}

// failure is the error of an answer that is none of success; its body is closed
// then.
func (s *session) failure(res *http.Response) error {
	if res.StatusCode >= 200 && res.StatusCode < 300 {
		return nil
	}
	said := s.says(res)
	drain(res)
	switch code := res.StatusCode; {
	case code == http.StatusNotFound:
		return isle.Errorf(isle.NotFound, "the registry %s has no such thing in %s%s", s.ref.Registry, s.ref.Repository, said)
	case code == http.StatusForbidden:
		return s.refused()
	case code == http.StatusTooManyRequests:
		later := &askLater{}
		if n, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && n > 0 {
			later.after = time.Duration(min(n, 3600)) * time.Second
		}
		return isle.Errorf(isle.Unavailable, "the registry %s%s: %w", s.ref.Registry, said, later)
	case code >= 500 || code == http.StatusRequestTimeout:
		return isle.Errorf(isle.Unavailable, "the registry %s answers %d%s", s.ref.Registry, code, said)
	default:
		return isle.Errorf(isle.Failed, "the registry %s answers %d%s", s.ref.Registry, code, said)
	}
}

// says is what the registry says of an error (distribution specification, error
// codes), as one short text.
func (s *session) says(res *http.Response) string {
	b, err := io.ReadAll(io.LimitReader(res.Body, maxError))
	var list struct {
		Errors []struct{ Code, Message string }
	}
	if err != nil || json.Unmarshal(b, &list) != nil || len(list.Errors) == 0 {
		return ""
	}
	return fmt.Sprintf(", and says %.200q", list.Errors[0].Code+": "+list.Errors[0].Message)
}

func drain(res *http.Response) {
	io.Copy(io.Discard, io.LimitReader(res.Body, maxError))
	res.Body.Close()
}

// authenticate does what a challenge asks for (RFC 9110, section 11.6.1).
func (s *session) authenticate(ctx context.Context, challenges []string) error {
	for _, c := range challenges {
		scheme, fields := challenge(c)
		switch {
		case strings.EqualFold(scheme, "bearer"):
			token, err := s.fetchToken(ctx, fields)
			if err != nil {
				return err
			}
			s.mu.Lock()
			s.token = token
			s.mu.Unlock()
			return nil
		case strings.EqualFold(scheme, "basic") && s.credential.Password != "":
			s.mu.Lock()
			s.basic = true
			s.mu.Unlock()
			return nil
		}
	}
	return s.refused()
}

// challenge reads one challenge: a scheme and fields.
func challenge(s string) (scheme string, fields map[string]string) {
	scheme, rest, _ := strings.Cut(strings.TrimSpace(s), " ")
	fields = map[string]string{}
	for len(rest) > 0 && len(fields) < 16 {
		var name, value string
		name, rest, _ = strings.Cut(rest, "=")
		name = strings.ToLower(strings.Trim(name, " ,\t"))
		if strings.HasPrefix(rest, `"`) {
			var b strings.Builder
			i := 1
			for ; i < len(rest) && rest[i] != '"'; i++ {
				if rest[i] == '\\' && i+1 < len(rest) {
					i++
				}
				b.WriteByte(rest[i])
			}
			value, rest = b.String(), rest[min(i+1, len(rest)):]
		} else {
			value, rest, _ = strings.Cut(rest, ",")
			value = strings.TrimSpace(value)
		}
		if name != "" {
			fields[name] = value
		}
	}
	return scheme, fields
}

// fetchToken gets a token where the registry says (distribution's token
// specification): for this repository and what is to be done alone.
func (s *session) fetchToken(ctx context.Context, fields map[string]string) (string, error) {
	realm, err := url.Parse(fields["realm"])
	if err != nil || realm.Host == "" || realm.Scheme != "https" && !(realm.Scheme == "http" && loopback(s.ref.Registry) && loopback(realm.Host)) {
		return "", isle.Errorf(isle.Refused, "the registry %s sends its callers to %.100q, and a credential goes over TLS alone", s.ref.Registry, fields["realm"])
	}
	scope := "repository:" + s.ref.Repository + ":" + s.actions
	var req *http.Request
	if s.credential.IdentityToken != "" {
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {s.credential.IdentityToken}, "service": {fields["service"]}, "scope": {scope}, "client_id": {"isle"}}
		req, err = http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
	} else {
		q := realm.Query()
		q.Set("scope", scope)
		if fields["service"] != "" {
			q.Set("service", fields["service"])
		}
		realm.RawQuery = q.Encode()
		req, err = http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
		if err == nil && s.credential.Password != "" {
			req.SetBasicAuth(s.credential.Username, s.credential.Password)
		}
	}
	if err != nil {
		return "", isle.Errorf(isle.Invalid, "the registry %s gave an address that is none", s.ref.Registry)
	}
	res, err := s.http.Do(req)
	if err != nil {
		return "", away(err)
	}
	defer drain(res)
	if res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden || res.StatusCode == http.StatusBadRequest {
		return "", s.refused()
	}
	if res.StatusCode != http.StatusOK {
		return "", isle.Errorf(isle.Unavailable, "the registry %s gives no token: its server answers %d", s.ref.Registry, res.StatusCode)
	}
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return "", away(err)
	}
	if json.Unmarshal(b, &answer) != nil || answer.Token+answer.AccessToken == "" {
		return "", isle.Errorf(isle.Failed, "the registry %s gives no token: its server answers with something else", s.ref.Registry)
	}
	if answer.Token == "" {
		answer.Token = answer.AccessToken
	}
	if strings.ContainsAny(answer.Token, "\r\n\x00") {
		return "", isle.Errorf(isle.Failed, "the registry %s gives a token that is none", s.ref.Registry)
	}
	return answer.Token, nil
}
