package httpdoor

import (
	"context"
	"encoding/base64"
	"net/http"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/policy"
	"isle/internal/secret"
)

// credentialTime is how long a session uses a secret before it takes its value
// anew: so a secret that is set again counts soon, and one that is elsewhere is
// not fetched for each request.
const credentialTime = 10 * time.Second

// A credential puts what a connection is opened with into requests. It is safe
// for concurrent use.
type credential struct {
	of     policy.Credential
	reveal func(ctx context.Context) (secret.Value, error)
	tokens *tokens // of kind oauth
	token  tokenKey
	client *http.Client // asks for tokens

	mu     sync.Mutex // guards what follows
	value  string     // of the header
	until  time.Time
	hidden *forms // of the value that was last asked for
	shown  string // that value
}

// forms are those of a value that put has put into a header.
func (c *credential) forms(value string) *forms {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shown != value {
		c.hidden, c.shown = formsOf(c.of.Kind, value), value
	}
	return c.hidden
}

// header is the field that the credential goes in; "" if it goes in none.
func (c *credential) header() string {
	switch c.of.Kind {
	case "header":
		return http.CanonicalHeaderKey(c.of.Header)
	case "bearer", "basic", "oauth":
		return "Authorization"
	}
	return ""
}

// put puts the credential into a request's header.
func (c *credential) put(ctx context.Context, h http.Header) error {
	name := c.header()
	if name == "" {
		return nil
	}
	value, err := c.current(ctx)
	if err != nil {
		return err
	}
	h[name] = []string{value}
	return nil
}

// current is the field's value.
func (c *credential) current(ctx context.Context) (string, error) {
	if c.of.Kind == "oauth" {
		t, err := c.tokens.get(ctx, c.token, c.fetch)
		return "Bearer " + t, err
	}
	now := time.Now()
	c.mu.Lock()
	value, until := c.value, c.until
	c.mu.Unlock()
	if now.Before(until) {
		return value, nil
	}
	v, err := c.reveal(ctx)
	if err != nil {
		return "", err
	}
	defer v.Destroy()
	b := v.Reveal()
	switch c.of.Kind {
	case "bearer":
		value = "Bearer " + string(b)
	case "basic":
		value = "Basic " + base64.StdEncoding.EncodeToString([]byte(c.of.User+":"+string(b)))
	default:
		value = string(b)
	}
	if value = strings.TrimRight(value, "\r\n"); !fieldValue(value) {
		return "", isle.Errorf(isle.Invalid, "secret %s cannot stand in an HTTP header: it has a line break or another control character", c.of.Secret).
			WithHint("set it again without: isle secret set %s", c.of.Secret)
	}
	c.mu.Lock()
	c.value, c.until = value, now.Add(credentialTime)
	c.mu.Unlock()
	return value, nil
}

// fieldValue reports whether s may be a field's value.
func fieldValue(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' && s[i] != '\t' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// renew forgets a value that the real thing did not take, and says whether
// another may be had at once.
func (c *credential) renew(used string) bool {
	if c.of.Kind == "oauth" {
		return c.tokens.drop(c.token, strings.TrimPrefix(used, "Bearer "))
	}
	c.mu.Lock()
	c.until = time.Time{}
	c.mu.Unlock()
	return false
}
