package outside

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"isle"
	"isle/internal/identity"
)

// httpServer serves visits that speak HTTP.
func (l *Listener) httpServer() *http.Server {
	srv := &http.Server{
		Handler:           http.HandlerFunc(l.serveHTTP),
		BaseContext:       func(net.Listener) context.Context { return l.ctx },
		ConnContext:       withVisit,
		TLSConfig:         l.tls(alpnHTTP2, alpnHTTP1),
		ReadHeaderTimeout: greeting,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		Protocols:         new(http.Protocols),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 100, MaxReceiveBufferPerStream: 1 << 20, MaxReceiveBufferPerConnection: 4 << 20,
			SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second, WriteByteTimeout: 30 * time.Second,
		},
		ErrorLog: slog.NewLogLogger(l.config.Slog.Handler(), slog.LevelDebug),
	}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetHTTP2(true)
	return srv
}

type visitKey struct{}

func withVisit(ctx context.Context, conn net.Conn) context.Context {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		if v, ok := t.NetConn().(*visit); ok {
			return context.WithValue(ctx, visitKey{}, v)
		}
	}
	return ctx
}

// serveHTTP serves one request. Each proves who makes it; what proved it goes no
// further.
func (l *Listener) serveHTTP(w http.ResponseWriter, r *http.Request) {
	v, ok := r.Context().Value(visitKey{}).(*visit)
	if !ok {
		problem(w, isle.Errorf(isle.Internal, "a request came from nowhere"))
		return
	}
	credential, err := takeCredential(r.Header)
	if err == nil && credential == "" && identity.Claimed("", v.certificates()) == "" {
		err = isle.Errorf(isle.Refused, "the gateway wants to know who asks").
			WithHint("send the key of a machine, or a token of yours, as Authorization: Bearer, or as the password of Basic")
	}
	if err != nil {
		challenge(w, err)
		return
	}
	s, err := v.prove(r.Context(), credential)
	switch {
	case err != nil && isle.CodeOf(err) == isle.Refused:
		challenge(w, err)
		return
	case err != nil:
		problem(w, err)
		return
	}
	name, path, ok := cutConnection(r.URL)
	if !ok || r.Method == http.MethodConnect {
		problem(w, isle.Errorf(isle.NotFound, "no connection is named").WithHint("the first segment of the path is its name: https://GATEWAY/NAME/PATH"))
		return
	}
	if rest := path.EscapedPath(); rest == "" { // as a server does for a folder
		to := "/" + name + "/"
		if r.URL.RawQuery != "" {
			to += "?" + r.URL.RawQuery
		}
		w.Header().Set("Location", to)
		w.WriteHeader(http.StatusPermanentRedirect)
		return
	}
	d, err := v.door(s, name, r.ProtoMajor == 2)
	if err != nil {
		problem(w, err)
		return
	}
	d.proxy(path).ServeHTTP(w, r)
}

// takeCredential takes out of a header what proves who asks: Proxy-Authorization
// where there is one, so that Authorization can be meant for who is behind the
// gateway, else Authorization. It is "" where there is none.
func takeCredential(h http.Header) (string, error) {
	name := "Authorization"
	if len(h["Proxy-Authorization"]) > 0 {
		name = "Proxy-Authorization"
	}
	values := h[name]
	delete(h, name)
	switch {
	case len(values) == 0:
		return "", nil
	case len(values) > 1:
		return "", isle.Errorf(isle.Invalid, "the request has %d %s headers", len(values), name)
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	token = strings.TrimSpace(token)
	switch {
	case token == "":
	case strings.EqualFold(scheme, "Bearer"):
		return token, nil
	case strings.EqualFold(scheme, "Basic"):
		if b, err := base64.StdEncoding.DecodeString(token); err == nil {
			if _, password, ok := strings.Cut(string(b), ":"); ok && password != "" {
				return password, nil
			}
		}
	}
	return "", isle.Errorf(isle.Invalid, "the %s header has no Bearer token and no password of Basic", name)
}

// cutConnection takes the name of a connection off the front of a path. The rest
// stays as it was written.
func cutConnection(u *url.URL) (name string, rest *url.URL, ok bool) {
	path, ok := strings.CutPrefix(u.EscapedPath(), "/")
	if !ok || u.Opaque != "" {
		return "", nil, false
	}
	name, path, slash := strings.Cut(path, "/")
	if !isle.ValidName(name) {
		return "", nil, false
	}
	if slash {
		path = "/" + path
	}
	plain, err := url.PathUnescape(path)
	if err != nil {
		return "", nil, false
	}
	return name, &url.URL{Path: plain, RawPath: path, RawQuery: u.RawQuery, ForceQuery: u.ForceQuery}, true
}

// maxDoors bounds the sessions that one visit has at a time for next requests.
const maxDoors = 16

// A doorKey tells apart what one visit opened: by the credential that opened it.
type doorKey struct {
	key        isle.ID
	expires    time.Time // of an access token, of which a key may have several
	connection string
	h2         bool
}

// A door is a connection as one visitor opened it. Requests share its sessions.
type door struct {
	visit     *visit
	name      string
	transport *http.Transport
	subject   atomic.Pointer[identity.Subject] // as the last request proved them: in other groups, maybe
	refused   atomic.Pointer[error]            // why the last session was not served
}

// door finds a door of the visit, or makes one. It opens nothing yet.
func (v *visit) door(s identity.Subject, name string, h2 bool) (*door, error) {
	key := doorKey{s.Key, s.Expires, name, h2}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.over {
		return nil, errLeft
	}
	d := v.doors[key]
	if d == nil {
		for k, other := range v.doors {
			if len(v.doors) < maxDoors {
				break
			}
			other.transport.CloseIdleConnections()
			delete(v.doors, k)
		}
		d = &door{visit: v, name: name}
		d.transport = &http.Transport{
			DialContext: d.dial, Protocols: new(http.Protocols), DisableCompression: true,
			MaxIdleConnsPerHost: 4, IdleConnTimeout: idle, MaxResponseHeaderBytes: 256 << 10,
		}
		// What HTTP/2 alone can, such as gRPC, goes on as HTTP/2.
		d.transport.Protocols.SetHTTP1(!h2)
		d.transport.Protocols.SetUnencryptedHTTP2(h2)
		v.doors[key] = d
	}
	d.subject.Store(&s)
	return d, nil
}

// dial begins a session, and returns the client's end of it.
func (d *door) dial(context.Context, string, string) (net.Conn, error) {
	near, far, err := Pair()
	if err != nil {
		return nil, err
	}
	v, subject := d.visit, *d.subject.Load()
	if !v.l.work(func() { // ends with the session, which ends with the visit
		standing := v.follow(subject)
		defer v.unfollow(standing)
		err := v.l.serve(v.ctx, v.callerBy(subject, standing), d.name, "http", far)
		d.refused.Store(&err) // before the client's end sees that it is over
		far.Close()
	}) {
		near.Close()
		far.Close()
		return nil, context.Cause(v.l.ctx)
	}
	return near, nil
}

// proxy passes a request on, to a path.
func (d *door) proxy(to *url.URL) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport: d.transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			u := *to
			u.Scheme, u.Host = "http", d.name
			r.Out.URL, r.Out.Host = &u, d.name
		},
		FlushInterval:  -1,
		ModifyResponse: d.modify,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if cause := context.Cause(d.visit.ctx); cause != nil {
				err = cause
			} else if why := d.refused.Load(); why != nil && *why != nil {
				err = *why
			}
			if _, ok := errors.AsType[*isle.Error](err); !ok {
				err = isle.Errorf(isle.Unavailable, "connection %s ended the request", d.name).WithHint("try again")
			}
			problem(w, err)
		},
		ErrorLog: slog.NewLogLogger(d.visit.l.config.Slog.Handler(), slog.LevelDebug),
	}
}

// modify has a response lead where the client came from: below the connection's
// name.
func (d *door) modify(r *http.Response) error {
	for _, name := range []string{"Location", "Content-Location"} {
		if to := r.Header.Get(name); to != "" {
			r.Header.Set(name, d.outward(to))
		}
	}
	if cookies := r.Header["Set-Cookie"]; len(cookies) > 0 {
		r.Header.Del("Set-Cookie")
		for _, line := range cookies {
			if c, err := http.ParseSetCookie(line); err == nil {
				c.Path, c.Domain = d.below(c.Path), ""
				r.Header.Add("Set-Cookie", c.String())
			}
		}
	}
	return nil
}

// outward is a reference of the connection's as it leads there from outside.
func (d *door) outward(reference string) string {
	u, err := url.Parse(reference)
	switch {
	case err != nil, u.Opaque != "":
		return reference
	case u.Host != "" && !strings.EqualFold(u.Host, d.name):
		return reference // somebody else's
	case u.Host == "" && !strings.HasPrefix(u.Path, "/"):
		return reference // relative to where the client is
	}
	rest := u.EscapedPath()
	if u.RawQuery != "" {
		rest += "?" + u.RawQuery
	}
	if u.Fragment != "" {
		rest += "#" + u.EscapedFragment()
	}
	return "/" + d.name + rest
}

// below is a cookie's path as it is seen from outside: no other connection gets
// the cookie.
func (d *door) below(path string) string {
	if !strings.HasPrefix(path, "/") {
		path = "/"
	}
	return "/" + d.name + path
}

// challenge answers a request that proves nobody. Basic is taken and not asked for:
// a browser that is asked shows the credential again wherever a page sends it.
func challenge(w http.ResponseWriter, err error) {
	w.Header().Set("WWW-Authenticate", `Bearer realm="isle"`)
	answer(w, http.StatusUnauthorized, err)
}

// problem answers a request that is not served.
func problem(w http.ResponseWriter, err error) {
	status := http.StatusBadGateway
	switch isle.CodeOf(err) {
	case isle.Invalid:
		status = http.StatusBadRequest
	case isle.NotFound:
		status = http.StatusNotFound
	case isle.Refused, isle.Held:
		status = http.StatusForbidden
	case isle.Exhausted:
		status = http.StatusTooManyRequests
		w.Header().Set("Retry-After", "5")
	case isle.Unavailable:
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "5")
	}
	answer(w, status, err)
}

// answer writes an error as RFC 9457 has it.
func answer(w http.ResponseWriter, status int, err error) {
	body := map[string]any{"type": "urn:isle:problem:" + string(isle.CodeOf(err)), "title": http.StatusText(status), "status": status, "detail": err.Error()}
	if e, ok := errors.AsType[*isle.Error](err); ok {
		body["detail"] = e.Message
		if e.Hint != "" {
			body["hint"] = e.Hint
		}
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}
