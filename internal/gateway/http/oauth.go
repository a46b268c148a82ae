package httpdoor

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"isle"
)

const (
	// tokenTime is how long a token counts that does not say so itself.
	tokenTime = 5 * time.Minute
	// tokenEarly is how long before its end a token is used no longer; of short
	// ones a tenth.
	tokenEarly = time.Minute
	// fetchTime bounds the request for a token.
	fetchTime = 15 * time.Second
	// fetchPause is how long a failure counts: whoever waits for a token does not
	// knock again with each request.
	fetchPause = time.Second
	maxTokens  = 1000
	maxGrant   = 64 << 10 // bytes of an answer
)

// A tokenKey says what a token is for.
type tokenKey struct{ connection, url, client, scopes, secret string }

// tokens keeps the access tokens of all connections (RFC 6749, section 4.4).
// They are in memory only.
type tokens struct {
	mu  sync.Mutex // guards what follows
	all map[tokenKey]*access
}

type access struct {
	value   string
	until   time.Time // when it is used no longer
	err     error
	ready   chan struct{} // closed once one of both is there
	settled bool
}

// get returns a token, fetching one where there is none: once at a time,
// whoever else asks waits for it.
func (t *tokens) get(ctx context.Context, key tokenKey, fetch func(context.Context) (string, time.Duration, error)) (string, error) {
	now := time.Now()
	t.mu.Lock()
	tok := t.all[key]
	if tok != nil && tok.settled && !now.Before(tok.until) {
		tok = nil
	}
	if tok == nil {
		if len(t.all) >= maxTokens {
			clear(t.all)
		}
		tok = &access{ready: make(chan struct{})}
		t.all[key] = tok
		// It is for everybody who waits, so that it does not end with the request
		// that happened to be first.
		go t.fetch(context.WithoutCancel(ctx), tok, fetch)
	}
	t.mu.Unlock()
	select {
	case <-tok.ready:
		return tok.value, tok.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// fetch ends within fetchTime.
func (t *tokens) fetch(ctx context.Context, tok *access, fetch func(context.Context) (string, time.Duration, error)) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	value, lasts, err := fetch(ctx)
	until := time.Now().Add(max(lasts-tokenEarly, lasts*9/10-lasts/100))
	if lasts <= tokenEarly {
		until = time.Now().Add(lasts * 9 / 10)
	}
	if err != nil {
		until = time.Now().Add(fetchPause)
	}
	t.mu.Lock()
	tok.value, tok.err, tok.until, tok.settled = value, err, until, true
	t.mu.Unlock()
	close(tok.ready)
}

// drop forgets a token that did not count, unless another is there already. It
// says whether a newer one may count.
func (t *tokens) drop(key tokenKey, value string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if tok := t.all[key]; tok != nil && tok.settled && tok.value == value {
		delete(t.all, key)
	}
	return true
}

// fetch asks the token endpoint for a token.
func (c *credential) fetch(ctx context.Context) (value string, lasts time.Duration, err error) {
	v, err := c.reveal(ctx)
	if err != nil {
		return "", 0, err
	}
	defer v.Destroy()
	form := url.Values{"grant_type": {"client_credentials"}}
	if len(c.of.Scopes) > 0 {
		form.Set("scope", strings.Join(c.of.Scopes, " "))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.of.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return "", 0, isle.Errorf(isle.Invalid, "the token URL of the credential is no URL")
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	// RFC 6749, section 2.3.1
	req.SetBasicAuth(url.QueryEscape(c.of.ClientID), url.QueryEscape(strings.TrimRight(string(v.Reveal()), "\r\n")))
	res, err := c.client.Do(req)
	if err != nil {
		return "", 0, isle.Errorf(isle.Unavailable, "no access token: from %s there is none: %s", req.URL.Host, whyNot(err))
	}
	defer res.Body.Close()
	var grant struct {
		AccessToken string  `json:"access_token"`
		TokenType   string  `json:"token_type"`
		ExpiresIn   float64 `json:"expires_in"`
		Error       string  `json:"error"`
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxGrant))
	if err == nil {
		err = json.Unmarshal(b, &grant)
	}
	switch {
	case res.StatusCode != http.StatusOK:
		return "", 0, isle.Errorf(isle.Unavailable, "no access token: %s answers %d %s", req.URL.Host, res.StatusCode, clean(grant.Error)).
			WithHint("see that the client %s and secret %s are those that it knows", c.of.ClientID, c.of.Secret)
	case err != nil:
		return "", 0, isle.Errorf(isle.Unavailable, "no access token: what %s answers is no JSON", req.URL.Host)
	case grant.AccessToken == "" || !strings.EqualFold(grant.TokenType, "Bearer") || !fieldValue(grant.AccessToken):
		return "", 0, isle.Errorf(isle.Unavailable, "no access token: %s gave none that is of type Bearer", req.URL.Host)
	}
	if lasts = time.Duration(grant.ExpiresIn) * time.Second; lasts <= 0 || lasts > 24*time.Hour {
		lasts = tokenTime
	}
	return grant.AccessToken, lasts, nil
}

// clean keeps of a text from outside what an error code is made of.
func clean(s string) string {
	s = s[:min(len(s), 64)]
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r == '_' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, s)
}
