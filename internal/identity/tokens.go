package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"isle"
	"isle/internal/allowance"
	"isle/internal/audit"
	"isle/internal/ledger"
)

// Clients are the machines that may ask for access tokens; *Registry
// implements it.
type Clients interface {
	// Authenticate says whom an API key proves; Refused where it counts for
	// nothing.
	Authenticate(ctx context.Context, credential, source string) (Subject, error)
	// Subject is whom a key proves, if it counts now.
	Subject(key isle.ID) (Subject, error)
	Machine(name string) (Machine, bool)
	// PublicKeys are those of a machine that count now.
	PublicKeys(machine string) []Key
	// Used notes that a key was used, and from where, as Authenticate does.
	Used(ctx context.Context, key isle.ID, source string) error
}

// TokensConfig is what a Tokens needs.
type TokensConfig struct {
	Issuer  *Issuer
	Clients Clients
	Store   ledger.Store
	Log     Log
	// Refused records that a source was refused a token, within what one source
	// may put into the log. nil: each refusal is appended.
	Refused func(e audit.Entry, source string)
	// URL is the server's, which is the issuer (iss) of access tokens and who
	// they are for (aud) where nothing else is asked; "" as long as there is none.
	URL func() string
	Now func() time.Time // default time.Now
	// Latest is Now, and never goes back: nothing that has ended by it comes to
	// life when the clock is set back. Default: Now.
	Latest func() time.Time
}

var _ Clients = (*Registry)(nil)

// Tokens gives access tokens (RFC 9068) to machines that prove themselves
// (RFC 6749, 4.4), and says what such a token proves. It is safe for concurrent
// use.
type Tokens struct {
	cfg   TokensConfig
	decoy verifyKey // what an assertion of nobody is checked by

	mu     sync.Mutex // held over a change of the ledger; guards what follows
	ledger *ledger.Ledger
	used   map[string]usedAssertion // by the key of its record
	// forgotten is the latest end of an assertion that is in used no more.
	forgotten time.Time

	pace allowance.Table // of tokens, by machine
}

// OpenTokens reads which assertions were used.
func OpenTokens(ctx context.Context, cfg TokensConfig) (*Tokens, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Latest == nil {
		cfg.Latest = cfg.Now
	}
	if cfg.Refused == nil {
		cfg.Refused = func(e audit.Entry, _ string) {
			ctx, cancel := context.WithTimeout(context.Background(), changeTimeout)
			defer cancel()
			// It is refused all the same; a log that takes no entries says so itself.
			_ = cfg.Log.Append(ctx, e)
		}
	}
	decoy, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "a key: %w", err)
	}
	t := &Tokens{cfg: cfg, decoy: verifyKey{public: &decoy.PublicKey, alg: jose.ES256}, pace: allowance.Table{Rate: tokenRate, Max: maxPaced}}
	l, records, err := ledger.Open(ctx, cfg.Store, assertionLedger)
	if err != nil {
		return nil, err
	}
	t.ledger = l
	t.used, t.forgotten, err = readUsed(records)
	return t, err
}

// TokenPath is where, below the server's URL, tokens are given.
const TokenPath = "/oauth/token"

// A TokenResponse is RFC 6749, 5.1.
type TokenResponse struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"` // "Bearer"
	ExpiresIn   int    `json:"expires_in"` // seconds
}

// The codes of a GrantError: RFC 6749, 5.2, and RFC 8707, 2.
const (
	InvalidRequest       = "invalid_request"
	InvalidClient        = "invalid_client"
	InvalidScope         = "invalid_scope"
	InvalidTarget        = "invalid_target"
	UnsupportedGrantType = "unsupported_grant_type"
	// Not RFC 6749's for this place, but what clients know from its 4.1.2.1.
	TemporarilyUnavailable = "temporarily_unavailable"
	ServerError            = "server_error"
)

// A GrantError is why no token was given, in the words of the standard.
type GrantError struct {
	OAuth       string // one of the codes
	Description string // for who asked: it says nothing about who there is
	err         error  // the reason, for the log
}

// Error implements error.
func (e *GrantError) Error() string { return e.OAuth + ": " + e.Description }

// Unwrap returns the cause.
func (e *GrantError) Unwrap() error { return e.err }

func refuseGrant(code, description string) *GrantError {
	return &GrantError{code, description, isle.Errorf(isle.Refused, "%s", description)}
}

// unknownClient is what everybody hears who proved nothing, for whatever reason.
func unknownClient(why error) *GrantError {
	return &GrantError{InvalidClient, "the client did not prove who it is", why}
}

// A proof is who asks for a token.
type proof struct {
	subject Subject
	method  string         // how they proved it, as RFC 8414 names it
	use     *usedAssertion // to be kept with the token; nil if there is none
}

// Grant gives an access token to a client that proves itself: by its API key as
// client_secret_basic or client_secret_post, or by an assertion that its key
// signs (private_key_jwt). The names are the form's, and basicUser and
// basicPassword those of HTTP's Basic authentication as they stand there. What
// goes wrong is a GrantError. The token is given once its entry is durable.
func (t *Tokens) Grant(ctx context.Context, form url.Values, basicUser, basicPassword string, hasBasic bool, source string) (TokenResponse, error) {
	claimed := form.Get("client_id")
	if hasBasic {
		claimed, _ = url.QueryUnescape(basicUser)
	}
	if claimed == "" { // RFC 7523, 3: beside an assertion client_id may be left out
		claimed = claimedSubject(form.Get("client_assertion"))
	}
	response, err := t.grant(ctx, form, basicUser, basicPassword, hasBasic, source)
	if err == nil {
		return response, nil
	}
	var refused *GrantError
	if !errors.As(err, &refused) {
		refused = &GrantError{ServerError, "the token could not be given; the server's log says why", err}
		if c := isle.CodeOf(err); c == isle.Unavailable || c == isle.Exhausted {
			refused = &GrantError{TemporarilyUnavailable, "the token could not be given now; try again", err}
		}
	}
	if refused.OAuth != ServerError && refused.OAuth != TemporarilyUnavailable {
		t.refuse(refused, claimed, source)
	}
	return TokenResponse{}, refused
}

// refuse records a refusal. What the client says that it is called is in it
// only where a machine is called so: whoever mistypes may have put a secret there.
func (t *Tokens) refuse(err *GrantError, claimed, source string) {
	who := isle.Resource{Kind: "identity", Name: "?"}
	if m, ok := t.cfg.Clients.Machine(claimed); ok {
		who.Name, who.Stage = m.Name, m.Stage
	}
	why := err.err.Error()
	if e, ok := errors.AsType[*isle.Error](err.err); ok {
		why = e.WithHint("").Error() // what to do next is for who asks
	}
	// Nobody has proved to be that machine, so it is not who did this.
	e := audit.NewEvent(nobody, isle.ActionTokenIssue, who, isle.Deny, why).
		With("source", source).With("error", err.OAuth)
	e.Rule = tokenRule
	t.cfg.Refused(e, source)
}

// tokenRule is what decides about tokens.
const tokenRule = "built in: a token is for a machine that proves itself"

func (t *Tokens) grant(ctx context.Context, form url.Values, basicUser, basicPassword string, hasBasic bool, source string) (TokenResponse, error) {
	issuer := t.cfg.URL()
	if issuer == "" {
		return TokenResponse{}, isle.Errorf(isle.Unavailable, "the server has no URL yet, by which its tokens would be known")
	}
	audience, err := readGrant(form)
	if err != nil {
		return TokenResponse{}, err
	}
	if audience == "" {
		audience = issuer
	}
	p, err := t.prove(ctx, form, basicUser, basicPassword, hasBasic, source)
	if err != nil {
		return TokenResponse{}, err
	}
	if !t.pace.Take(p.subject.Actor.Name, t.cfg.Latest()) {
		return TokenResponse{}, isle.Errorf(isle.Exhausted, "%s asks for more access tokens than one machine gets", p.subject.Actor).
			WithHint("keep an access token until it ends")
	}
	now := t.cfg.Now().UTC().Truncate(time.Second)
	expires := now.Add(AccessToken)
	if p.subject.Expires.Before(expires) {
		expires = p.subject.Expires.Truncate(time.Second)
	}
	if !now.Before(expires) {
		return TokenResponse{}, unknownClient(isle.Errorf(isle.Refused, "its key has expired"))
	}
	id := isle.NewID()
	token, err := t.cfg.Issuer.sign(accessKey, map[string]any{
		"iss": issuer, "sub": p.subject.Actor.String(), "client_id": p.subject.Actor.Name, "aud": audience,
		"iat": now.Unix(), "exp": expires.Unix(), "jti": string(id), "stage": p.subject.Stage, "key": string(p.subject.Key),
		asOf: max(t.cfg.Latest().Unix(), now.Unix()),
	}, now)
	if err != nil {
		return TokenResponse{}, err
	}
	e := audit.NewEvent(p.subject.Actor, isle.ActionTokenIssue, isle.Resource{Kind: "identity", Name: p.subject.Actor.Name, Stage: p.subject.Stage}, isle.Allow, "an access token").
		With("key", string(p.subject.Key)).With("token", string(id)).With("audience", audience).With("method", p.method).
		With("expires", expires.Format(time.RFC3339)).With("source", source).With("stage", p.subject.Stage)
	e.Rule = tokenRule
	// Whether who asked still waits or not: what is begun is written or not.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
	defer cancel()
	if p.use != nil {
		if err = t.useUp(ctx, *p.use, e); err == nil {
			err = t.noteUse(ctx, p.subject, source)
		}
	} else {
		err = t.cfg.Log.Append(ctx, e)
	}
	if err != nil {
		return TokenResponse{}, err
	}
	return TokenResponse{AccessToken: token, TokenType: "Bearer", ExpiresIn: int(expires.Sub(now) / time.Second)}, nil
}

// noteUse notes the use of a key that signed; that of an API key Authenticate
// has noted.
func (t *Tokens) noteUse(ctx context.Context, s Subject, source string) error {
	err := t.cfg.Clients.Used(ctx, s.Key, source)
	if err != nil && isle.CodeOf(err) == isle.Refused { // it ended meanwhile
		return unknownClient(err)
	}
	return err
}

// Each token is an entry of the audit log. A machine gets so many in a row, and
// one more as time passes: as many as assertions that are remembered of it.
var tokenRate = allowance.Rate{Burst: maxUsedOfOne, Every: AccessToken / maxUsedOfOne}

// maxPaced is how many machines are told apart before those are forgotten that
// have all of it again.
const maxPaced = 1000

// readGrant reads what is asked for: the audience, "" for the server itself. A
// token has one audience: who gets it there cannot show it anywhere else.
func readGrant(form url.Values) (audience string, err error) {
	for name, values := range form {
		if len(values) > 1 && name != "resource" && name != "audience" {
			return "", refuseGrant(InvalidRequest, "a parameter is there more than once (RFC 6749, 3.2)")
		}
	}
	switch form.Get("grant_type") {
	case "client_credentials":
	case "":
		return "", refuseGrant(InvalidRequest, "grant_type is missing; it is client_credentials here")
	default:
		return "", refuseGrant(UnsupportedGrantType, "the grant type here is client_credentials")
	}
	if form.Get("scope") != "" {
		return "", refuseGrant(InvalidScope, "there are no scopes here: what a machine may do is up to the server's policy")
	}
	targets := slices.Concat(form["resource"], form["audience"])
	targets = slices.Compact(slices.DeleteFunc(targets, func(s string) bool { return s == "" }))
	if len(targets) == 0 {
		return "", nil
	}
	if len(targets) > 1 {
		return "", refuseGrant(InvalidTarget, "a token is for one resource; ask for one token each")
	}
	if r := form.Get("resource"); r != "" {
		// RFC 8707, 2: an absolute URI without a fragment.
		if u, err := url.Parse(r); err != nil || !u.IsAbs() || strings.Contains(r, "#") {
			return "", refuseGrant(InvalidTarget, "resource is an absolute URI without a fragment (RFC 8707, 2)")
		}
	}
	if checkAudiences(targets) != nil {
		return "", refuseGrant(InvalidTarget, "an audience has at most 256 bytes and no spaces")
	}
	return targets[0], nil
}

// assertionType is RFC 7523, 2.2.
const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// prove says who asks.
func (t *Tokens) prove(ctx context.Context, form url.Values, basicUser, basicPassword string, hasBasic bool, source string) (proof, error) {
	methods := 0
	for _, there := range []bool{hasBasic, form.Has("client_secret"), form.Has("client_assertion") || form.Has("client_assertion_type")} {
		if there {
			methods++
		}
	}
	switch {
	case methods == 0:
		return proof{}, unknownClient(isle.Errorf(isle.Refused, "it showed nothing that proves who it is"))
	case methods > 1:
		return proof{}, refuseGrant(InvalidRequest, "the client proves itself in more than one way (RFC 6749, 2.3)")
	case hasBasic:
		// RFC 6749, 2.3.1: both are form-encoded before Basic encodes them.
		user, err := url.QueryUnescape(basicUser)
		password, err2 := url.QueryUnescape(basicPassword)
		if err != nil || err2 != nil {
			return proof{}, unknownClient(isle.Errorf(isle.Refused, "its Basic authentication is not form-encoded"))
		}
		if id := form.Get("client_id"); id != "" && id != user {
			return proof{}, refuseGrant(InvalidRequest, "client_id is not who the Authorization header names")
		}
		return t.proveSecret(ctx, "client_secret_basic", user, password, source)
	case form.Has("client_secret"):
		return t.proveSecret(ctx, "client_secret_post", form.Get("client_id"), form.Get("client_secret"), source)
	case form.Get("client_assertion_type") != assertionType:
		return proof{}, refuseGrant(InvalidRequest, "client_assertion_type is "+assertionType+" here")
	}
	subject, use, err := t.proveAssertion(form.Get("client_assertion"), form.Get("client_id"))
	return proof{subject, "private_key_jwt", use}, err
}

// proveSecret says whose an API key is. It is that of the client that is named,
// or of nobody.
func (t *Tokens) proveSecret(ctx context.Context, method, client, secret, source string) (proof, error) {
	s, err := t.cfg.Clients.Authenticate(ctx, secret, source)
	switch {
	case err != nil && isle.CodeOf(err) == isle.Refused:
		return proof{}, unknownClient(err)
	case err != nil:
		return proof{}, err
	case s.Actor.Kind != isle.Machine:
		return proof{}, unknownClient(isle.Errorf(isle.Refused, "it showed the token of a person, who needs no other one"))
	case client != s.Actor.Name:
		return proof{}, unknownClient(isle.Errorf(isle.Refused, "it showed a key of another machine than it named"))
	}
	return proof{subject: s, method: method}, nil
}

// Verify says whom an access token of this server proves to the audience ("":
// the server itself), if it counts now: it is signed by a key for access tokens,
// its time is now, and the key that it was given for counts still. Else it is
// Refused.
func (t *Tokens) Verify(_ context.Context, token, audience string) (Subject, error) {
	latest := t.cfg.Latest() // before anything is refused by the clock, so that it stays so
	issuer := t.cfg.URL()
	if audience == "" {
		audience = issuer
	}
	claims, _, err := verifyJWT(token, []string{"at+jwt"}, t.cfg.Issuer.verifyKeys(accessKey))
	if err != nil {
		return Subject{}, err
	}
	expires, err := checkTimes(claims, t.cfg.Now(), 0)
	if err != nil {
		return Subject{}, err
	}
	if err := checkAudience(claims, audience); err != nil {
		return Subject{}, err
	}
	if issuer == "" || claims["iss"] != issuer {
		return Subject{}, refuseJWT("it is of another issuer (iss)")
	}
	key, _ := claims["key"].(string)
	s, err := t.cfg.Clients.Subject(isle.ID(key))
	if err != nil {
		return Subject{}, err
	}
	// What the key proves now is what it proved then: a token is no older truth.
	if claims["sub"] != s.Actor.String() || claims["client_id"] != s.Actor.Name || claims["stage"] != s.Stage {
		return Subject{}, refuseJWT("it names somebody else than its key")
	}
	if s.Expires, err = endOf(claims, expires, latest); err != nil {
		return Subject{}, err
	}
	return s, nil
}

// asOf is the claim for when an access token was given by a time that never goes
// back, in seconds since 1970. Its iat and exp are by the clock, which others
// read it by; the two differ only after the clock was set back.
const asOf = "as_of"

// endOf is when an access token ends by the time that never goes back, of which
// latest is now. One that has ended by it has ended, whatever the clock says.
func endOf(claims map[string]any, expires, latest time.Time) (time.Time, error) {
	given, ok := numericDate(claims[asOf])
	issued, dated := numericDate(claims["iat"])
	if !ok || !dated { // of the program before this one
		given, issued = expires, expires
	}
	ends := given.Add(expires.Sub(issued))
	if !latest.Before(ends) {
		return time.Time{}, refuseJWT("it has expired")
	}
	return ends, nil
}
