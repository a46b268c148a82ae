package server

import (
	"context"
	"strings"

	"isle"
	"isle/internal/api"
	"isle/internal/identity"
)

// openTokens opens what proves callers from elsewhere: keys, and the access
// tokens that are given for them.
func (r *rooms) openTokens(ctx context.Context) error {
	tokens, err := identity.OpenTokens(ctx, identity.TokensConfig{
		Issuer: r.issuer, Clients: r.machines, Store: r.store, Log: r.store, Refused: r.refusals.source, URL: r.server.URL,
		Now: r.server.cfg.Now, Latest: r.policy.Now,
	})
	if err != nil {
		return err
	}
	r.credentials = credentials{r.machines, tokens, r.refusals}
	r.endpoints = api.NewIdentityEndpoints(api.IdentityEndpoints{Tokens: tokens, Issuer: r.issuer, URL: r.server.URL, Log: r.server.log})
	return nil
}

// credentials are those by which callers from elsewhere prove themselves. An
// access token stands on the key that it was given for: Check and Over are the
// registry's.
type credentials struct {
	*identity.Registry
	tokens   *identity.Tokens
	refusals *refusals
}

// Authenticate implements api.Credentials. The registry records what it refuses
// itself.
func (c credentials) Authenticate(ctx context.Context, credential, source string) (identity.Subject, error) {
	if strings.Count(credential, ".") != 2 { // no JWT: no key has a dot
		return c.Registry.Authenticate(ctx, credential, source)
	}
	s, err := c.tokens.Verify(ctx, credential, "")
	if isle.CodeOf(err) == isle.Refused && err != nil {
		c.refusals.source(identity.Unproven(api.Flatten(err).Message, source), source)
	}
	return s, err
}
