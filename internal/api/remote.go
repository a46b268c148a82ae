package api

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/approval"
	"isle/internal/audit"
	"isle/internal/identity"
)

// RemoteConfig is what stands before the API for callers from elsewhere.
type RemoteConfig struct {
	API         http.Handler // what New returned
	Credentials Credentials
	// Endpoints answers below /oauth/ and /.well-known/, where callers come for
	// a credential and have none; nil: nothing does.
	Endpoints http.Handler
	// Callback answers at approval.CallbackPath, where webhooks bring decisions
	// back, which prove themselves by a signature; nil: nothing does.
	Callback http.Handler
	// Group is that of the operating system whose members, beside root, may
	// speak to the server. A person who left it is refused here too.
	Group string
	// Refused records what a source showed that is no credential, or a workload's.
	Refused func(e audit.Entry, source string)
	// Tries counts credentials that do not count; nil: by itself.
	Tries *Tries
	// Proven says that the connection of a request has shown a credential that
	// counts; false: there are too many of those. nil: there is no bound.
	Proven func(r *http.Request) bool
	Log    *slog.Logger
}

// NewRemote returns the API for callers from elsewhere: each request proves who
// makes it by a bearer token (RFC 6750). It speaks HTTP over TLS only.
func NewRemote(cfg RemoteConfig) http.Handler {
	if cfg.Tries == nil {
		cfg.Tries = NewTries()
	}
	r := &remote{RemoteConfig: cfg,
		strangers: places{all: maxBrief, each: maxBriefEach}, known: places{all: maxOpen, each: maxOpenEach}, held: places{all: maxHeld, each: maxHeldEach}}
	mux := http.NewServeMux()
	if cfg.Endpoints != nil {
		h := r.brief(cfg.Endpoints)
		mux.Handle("/oauth/", h)
		mux.Handle("/.well-known/", h)
	}
	if cfg.Callback != nil {
		mux.Handle(approval.CallbackPath, r.brief(cfg.Callback))
	}
	mux.HandleFunc("/", r.serve)
	return mux
}

// Bounds of a request without a credential. One that is sent slowly holds the
// memory of its body and of whoever reads it.
const (
	maxBrief     = 1024     // at once
	maxBriefEach = 64       // of one source
	briefBody    = 64 << 10 // bytes
	briefRequest = 10 * time.Second
	briefAnswer  = 30 * time.Second // from its beginning
)

// Bounds of calls with one that counts: a call may be open for as long as it
// likes, and some before they have said what they want.
const (
	maxOpen     = 10_000 // at once
	maxOpenEach = 1000   // of one key

	// Bytes of requests that are held at once. The largest is maxMessage.
	maxHeld     = 1 << 30
	maxHeldEach = 256 << 20
)

// brief bounds requests that anybody may make.
func (c *remote) brief(next http.Handler) http.Handler {
	return http.MaxBytesHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		source := identity.Neighbours(SourceOf(r.RemoteAddr))
		if !c.strangers.take(source) {
			c.full(w, isle.Errorf(isle.Exhausted, "there are as many requests without a credential as are served at once"))
			return
		}
		defer c.strangers.leave(source)
		control, now := http.NewResponseController(w), time.Now()
		_ = control.SetReadDeadline(now.Add(briefRequest)) // a writer without deadlines (tests) has no hostile caller
		_ = control.SetWriteDeadline(now.Add(briefAnswer))
		next.ServeHTTP(w, r)
	}), briefBody)
}

type remote struct {
	RemoteConfig
	// What is open: requests of anybody, by source; calls, by key.
	strangers, known places
	held             places // bytes, by key
}

// unproven is the rule that refuses what is no credential: it never counted.
const unproven = ended

func (c *remote) serve(w http.ResponseWriter, r *http.Request) {
	source := SourceOf(r.RemoteAddr)
	token, err := bearer(r.Header)
	var certificates []*x509.Certificate
	if r.TLS != nil {
		certificates = r.TLS.PeerCertificates
	}
	if claimed := identity.Claimed(token, certificates); claimed != "" {
		c.refuse(w, source, identity.WorkloadRule, claimed, isle.Errorf(isle.Refused, "a workload's credential counts only inside its own airlock").
			WithHint("what runs outside proves itself as a machine: see `isle identity create --help`"))
		return
	}
	if err != nil {
		c.refuse(w, source, unproven, "", err)
		return
	}
	if token == "" {
		// Not recorded: whoever asks without a credential learns nothing, and is
		// as often a browser as somebody who means harm.
		c.answer(w, http.StatusUnauthorized, `Bearer realm="isle"`, isle.Errorf(isle.Refused, "this server wants to know who asks").WithHint("log in with `isle login`"))
		return
	}
	s, err := c.Credentials.Authenticate(r.Context(), token, source)
	if err != nil {
		switch isle.CodeOf(err) {
		case isle.Refused, isle.Invalid:
			c.deny(w, source, err)
		default:
			c.Log.Error("a credential could not be looked at", "source", source, "err", err)
			c.answer(w, http.StatusServiceUnavailable, "", isle.Errorf(isle.Unavailable, "the server cannot say now who asks").WithHint("try again; see the server's log"))
		}
		return
	}
	if c.Proven != nil && !c.Proven(r) {
		c.full(w, isle.Errorf(isle.Exhausted, "the server has as many connections as it takes"))
		return
	}
	if !c.known.take(string(s.Key)) {
		c.full(w, isle.Errorf(isle.Exhausted, "%s has as many calls open as may be", s.Actor))
		return
	}
	defer c.known.leave(string(s.Key))
	if key := string(s.Key); r.Body != http.NoBody && !pieces(r.URL.Path) {
		total := 0 // one goroutine reads a body at a time
		r.Body = &weighedBody{r.Body, func(n int) bool {
			if !c.held.takeAll(key, n) {
				return false
			}
			total += n
			return true
		}}
		defer func() { c.held.leaveAll(key, total) }()
	}
	r.Header.Del("Authorization") // nothing behind here has a use for it
	c.API.ServeHTTP(w, r.WithContext(withSource(withSubject(r.Context(), s, c.Group), source)))
}

// full says that there is no place for a request now.
func (c *remote) full(w http.ResponseWriter, err *isle.Error) {
	w.Header().Set("Retry-After", "10")
	c.answer(w, http.StatusServiceUnavailable, "", err.WithHint("end some, or try again later"))
}

// refuse records what is no credential, and answers.
func (c *remote) refuse(w http.ResponseWriter, source, rule, claimed string, err error) {
	e := identity.Unproven(Flatten(err).Message, source)
	e.Rule = rule
	if claimed != "" {
		e = e.With("claimed", claimed)
	}
	c.Refused(e, source)
	c.deny(w, source, err)
}

// deny answers a credential that counts for nothing: beyond a rate, that the
// source is to wait. A credential that counts is never held up by others from
// the same address, so that nobody is locked out by a neighbour.
func (c *remote) deny(w http.ResponseWriter, source string, err error) {
	flat := Flatten(err)
	if !c.Tries.Take(source) {
		w.Header().Set("Retry-After", "5")
		c.answer(w, http.StatusTooManyRequests, "", isle.Errorf(isle.Exhausted, "too many credentials from %s that count for nothing", source).WithHint("wait some seconds; log in again with `isle login`"))
		return
	}
	if flat.Hint == "" {
		flat.Hint = "log in again with `isle login`"
	}
	c.answer(w, http.StatusUnauthorized, `Bearer realm="isle", error="invalid_token", error_description="`+quotable(flat.Message)+`"`, &isle.Error{Code: isle.Refused, Message: flat.Message, Hint: flat.Hint})
}

// quotable is what error_description may hold: RFC 6750, section 3.
func quotable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return '\''
		}
		return r
	}, s)
}

// answer writes an error as Connect's unary protocol has it, which is JSON that
// anybody can read, with a status that every HTTP client understands.
func (c *remote) answer(w http.ResponseWriter, status int, challenge string, err *isle.Error) {
	type detail struct {
		Type  string `json:"type"`
		Value string `json:"value"`
	}
	var details []detail
	if d, derr := connect.NewErrorDetail(&islev1.ErrorDetail{Code: string(err.Code), Message: err.Message, Hint: err.Hint}); derr == nil {
		details = append(details, detail{d.Type(), base64.RawStdEncoding.EncodeToString(d.Bytes())})
	}
	code := "unauthenticated"
	if status != http.StatusUnauthorized {
		code = connectCode(err.Code).String()
	}
	h := w.Header()
	if challenge != "" {
		h.Set("WWW-Authenticate", challenge)
	}
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"code": code, "message": err.Message, "details": details})
}

// SourceOf is the address of host:port without its port, and without a zone.
func SourceOf(address string) string {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return "?"
	}
	return a.Addr().Unmap().WithZone("").String()
}
