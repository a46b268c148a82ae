package httpdoor

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"isle"
	"isle/internal/approval"
	"isle/internal/audit"
	"isle/internal/gateway"
	"isle/internal/policy"
	"isle/internal/session"
)

// MaxHeld bounds the body of a request that is held, in bytes: whoever approves
// sees all of it.
const MaxHeld = 1 << 20

// An exchange is one request and its response.
type exchange struct {
	*serving
	w     http.ResponseWriter
	r     *http.Request
	began time.Time

	target  target
	query   string
	asked   bool // there is a question mark
	facts   *policy.Facts
	upgrade bool
	masked  bool
	held    []byte // its body, once that was read for an approval
	isHeld  bool

	pass    pass
	in      counter // of the request's body
	out     counter // of the response's
	tap     *tap    // of the response's, for the recording; nil: none
	hidden  *forms  // of the credential; nil: there is none to hide
	veil    *veil   // over the response's body; nil: none
	sent    bool    // something went to the real thing, or may have
	replied bool
	wrong   error // why there is no answer, as operators are told it
}

// ServeHTTP implements http.Handler: it lets one request through, or says why
// not.
func (s *serving) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{serving: s, w: w, r: r, began: time.Now()}
	if err := x.prepare(); err != nil {
		x.answer(problemOf(err))
		return
	}
	ctx, cancel := x.deadline()
	defer cancel()
	p, err := s.door.Ask(ctx, x.ask(ctx))
	if err != nil {
		if errors.Is(context.Cause(ctx), errGone) {
			panic(http.ErrAbortHandler)
		}
		x.answer(problemOf(err))
		return
	}
	x.pass = p
	outcome := audit.Unknown
	defer func() { x.over(outcome) }() // also where the response is broken off
	if err := x.record(session.Event{Kind: session.Request, Text: x.text(), Shape: x.facts.Shape, Decision: isle.Allow, Rule: p.Rule(), Approval: p.Approval()}); err != nil {
		outcome = "not done"
		x.answer(problemOf(err))
		return
	}
	res, err := x.send(ctx)
	if err != nil {
		if outcome = audit.Unknown; !x.sent {
			outcome = "not done"
		}
		x.failed(ctx, err)
		return
	}
	defer res.Body.Close()
	outcome = strconv.Itoa(res.StatusCode)
	if err := x.reply(res); err != nil {
		outcome += ", broken off"
		x.failed(ctx, err)
	}
}

// deadline bounds an exchange by the connection's time for a statement.
func (x *exchange) deadline() (context.Context, context.CancelFunc) {
	if x.conn.StatementTimeout <= 0 || x.upgrade {
		return x.r.Context(), func() {}
	}
	return context.WithTimeoutCause(x.r.Context(), x.conn.StatementTimeout, errSlow)
}

var errSlow = errors.New("the connection's statement_timeout is over")

// prepare finds out what the request is. What has no one meaning, or is too
// much, fails.
func (x *exchange) prepare() error {
	r := x.r
	switch r.Method {
	case http.MethodConnect, http.MethodTrace, "TRACK":
		return &badRequest{http.StatusMethodNotAllowed, "the gateway passes no " + r.Method}
	}
	if len(r.Method) > 32 || !token(r.Method) {
		return bad("the request's method is none")
	}
	path, query, asked := strings.Cut(r.RequestURI, "?")
	if strings.IndexFunc(query, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '#' }) >= 0 {
		return bad("the request's query has a character that has to be percent-encoded")
	}
	t, err := readTarget(path)
	if err != nil {
		return err
	}
	if t.path == "*" && r.Method != http.MethodOptions {
		return bad("the request's target is no path")
	}
	x.target, x.query, x.asked = t, query, asked
	for name, values := range r.Header {
		if overrides(name) && len(values) > 0 {
			return bad("the request says another method by " + name + ", past the rules: send it with that method")
		}
	}
	if x.own && !x.named(r.Host) {
		return &badRequest{http.StatusMisdirectedRequest, "this is " + x.name + ", and the request is for another host"}
	}
	if limit := x.conn.Limits.Body; limit > 0 && r.ContentLength > limit {
		return tooLarge(limit)
	}
	if x.rate != nil && !x.rate.Take(x.key, x.began) {
		return &tooMany{after: x.rate.Rate.Every}
	}
	x.upgrade = wantsWebSocket(r)
	x.masked = x.masking != nil
	x.facts = x.factsOf()
	if x.upgrade && x.masked && !x.door.Lifts(x.facts) {
		return isle.Errorf(isle.Refused, "connection %s masks what it answers, and cannot do that in a WebSocket", x.conn.Name).
			WithHint("an allow rule of the connection for this path lets it pass unmasked")
	}
	return nil
}

// named reports whether a request's host is the one that is served.
func (x *exchange) named(host string) bool {
	name, _, ok := strings.Cut(host, ":")
	return strings.EqualFold(host, x.host) || ok && strings.EqualFold(name, x.name) || strings.EqualFold(host, x.name)
}

// tooLarge is why a body is refused.
func tooLarge(limit int64) error {
	return &badRequest{http.StatusRequestEntityTooLarge, "the request's body is larger than the " + strconv.FormatInt(limit, 10) + " bytes that the connection takes"}
}

// A tooMany is why a request comes too soon.
type tooMany struct{ after time.Duration }

func (e *tooMany) Error() string { return "more requests than the connection takes of one caller" }

// factsOf are the facts of the request. One that is like an earlier one has the
// same pointer.
func (x *exchange) factsOf() *policy.Facts {
	key := x.r.Method + "\x00" + x.target.path
	if x.upgrade {
		key = "\x00" + key
	}
	told := make(map[string]string, len(x.r.Header))
	for name, values := range x.r.Header {
		if !private(name) && !passing(name) {
			told[strings.ToLower(name)] = strings.Join(values, ", ")
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if f := x.serving.facts[key]; f != nil && f.Uncertain == x.target.uncertain && equal(f.Headers, told) {
		return f
	}
	if len(x.serving.facts) >= maxFacts {
		clear(x.serving.facts)
	}
	f := &policy.Facts{Actions: []isle.Action{isle.ActionHTTPWrite}, Method: x.r.Method, Path: x.target.path, Host: x.name, Headers: told,
		Uncertain: x.target.uncertain, Shape: x.r.Method + " " + shapeOf(x.target.path)}
	switch {
	case x.upgrade: // what passes in it is not looked at
		f.Actions = []isle.Action{isle.ActionHTTPWrite, isle.ActionHTTPRead}
		f.Shape = "WebSocket " + shapeOf(x.target.path)
	case x.r.Method == http.MethodGet || x.r.Method == http.MethodHead || x.r.Method == http.MethodOptions:
		f.Actions = []isle.Action{isle.ActionHTTPRead}
	}
	x.serving.facts[key] = f
	return f
}

// maxFacts is how many facts a session remembers.
const maxFacts = 512

func equal(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// private reports whether a field's value is for the real thing only: it is in
// no recording, and rules do not speak of it.
func private(name string) bool {
	switch name {
	case "Authorization", "Cookie", "Proxy-Authorization":
		return true
	}
	return false
}

// passing reports whether a field says nothing of what is asked: such fields
// differ from request to request, or from client to client.
func passing(name string) bool {
	switch name {
	case "Connection", "Content-Length", "Date", "Keep-Alive", "Traceparent", "Tracestate", "Baggage", "X-Request-Id", "X-Correlation-Id",
		"X-Amzn-Trace-Id", "User-Agent", "Accept-Encoding", "Accept-Language", "Te", "Trailer":
		return true
	}
	return strings.HasPrefix(name, "X-B3-") || strings.HasPrefix(name, "Sec-Websocket-")
}

// text is the request's first line and those fields of its header that make out
// what it means. An approval is bound to it, and to the body. Of what is private
// it has the hash.
func (x *exchange) text() []byte {
	names := make([]string, 0, len(x.r.Header))
	for name := range x.r.Header {
		if !passing(name) && !claims(name) && !alike(name, x.cred.header()) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	b := make([]byte, 0, 512)
	b = append(append(append(b, x.r.Method...), ' '), x.scheme...)
	b = append(append(append(b, "://"...), x.host...), x.target.forward...)
	if x.asked {
		b = append(append(b, '?'), x.query...)
	}
	b = append(b, '\n')
	for _, name := range names {
		for _, v := range x.r.Header[name] {
			if private(name) {
				sum := sha256.Sum256([]byte(v))
				v = "sha256:" + hex.EncodeToString(sum[:])
			}
			b = append(append(append(append(b, name...), ": "...), v...), '\n')
		}
	}
	return b
}

// ask is what the gateway is asked of the request.
func (x *exchange) ask(ctx context.Context) gateway.Ask {
	return gateway.Ask{
		Facts: x.facts, Text: x.text(), Quiet: true, Context: []approval.Pair{{Key: "host", Value: x.host}},
		More: func() ([]byte, error) {
			if x.upgrade {
				return nil, nil
			}
			x.isHeld = true
			b, err := io.ReadAll(io.LimitReader(x.r.Body, MaxHeld+1))
			if err != nil {
				return nil, err
			}
			if len(b) > MaxHeld {
				return nil, isle.Errorf(isle.Refused, "a human has to approve this request, and its body is larger than the %d bytes that one can be shown", MaxHeld)
			}
			x.in.n.Add(int64(len(b)))
			x.held = b
			return append([]byte("\n"), b...), nil
		},
	}
}

// send sends the request to the real thing, and waits for the response's head.
func (x *exchange) send(ctx context.Context) (*http.Response, error) {
	h := x.outgoing()
	if err := x.put(ctx, h); err != nil {
		return nil, err
	}
	res, err := x.roundTrip(ctx, h)
	if err != nil || res.StatusCode != http.StatusUnauthorized {
		return res, err
	}
	// The credential may have been another by now; once more, if nothing of the
	// request is gone.
	if name := x.cred.header(); name == "" || !x.cred.renew(h.Get(name)) || !(x.isHeld || x.r.Body == http.NoBody) {
		return res, err
	}
	h = maps.Clone(h)
	if err := x.put(ctx, h); err != nil {
		return res, nil // what the real thing said of the first is the better answer
	}
	res.Body.Close()
	return x.roundTrip(ctx, h)
}

// roundTrip sends the request with a header, and waits for the response's head.
func (x *exchange) roundTrip(ctx context.Context, h http.Header) (*http.Response, error) {
	grpc := x.prior != nil && strings.HasPrefix(x.r.Header.Get("Content-Type"), "application/grpc")
	if x.r.ContentLength == 0 && !x.upgrade && !grpc && !x.speaksH2.Load() {
		res, err := x.peers.do(ctx, &plainRequest{
			method: x.r.Method, target: x.requestTarget(), host: x.host, header: h,
			sending: func() { x.sent = true }, informed: x.informed,
		})
		if err == nil {
			res.Request = &http.Request{Method: x.r.Method, Header: h} // as net/http's says what was asked
		}
		if !errors.Is(err, errH2) {
			return res, err
		}
	}
	if x.upgrade { // WebSocket is said in HTTP/1.1
		ctx = context.WithValue(ctx, onlyH1{}, true)
	}
	out := (&http.Request{Method: x.r.Method, URL: x.url(x.target, x.query, x.asked), Host: x.host, Header: h}).WithContext(x.trace(ctx))
	x.setBody(out)
	if grpc {
		return x.prior.RoundTrip(out)
	}
	return x.transport.RoundTrip(out)
}

// requestTarget is what stands in the request's first line.
func (x *exchange) requestTarget() string {
	if x.asked {
		return x.target.forward + "?" + x.query
	}
	return x.target.forward
}

// put puts the credential into a header, and notes what is to be hidden in the
// answer.
func (x *exchange) put(ctx context.Context, h http.Header) error {
	if err := x.cred.put(ctx, h); err != nil {
		return err
	}
	if name := x.cred.header(); name != "" {
		x.hidden = x.cred.forms(h.Get(name))
	}
	return nil
}

// outgoing is the header of the request as it goes on.
func (x *exchange) outgoing() http.Header {
	h := outgoing(x.r.Header, x.cred.header(), x.own)
	delete(h, "Content-Length")
	if x.upgrade {
		h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	}
	if x.masked || x.cred.header() != "" {
		h["Accept-Encoding"] = []string{"identity"} // nothing is seen in what is compressed
	}
	if x.masked {
		delete(h, "Range")
		delete(h, "If-Range")
		for _, name := range []string{"If-Match", "If-None-Match"} {
			if values := h[name]; len(values) > 0 {
				h[name] = []string{x.untag(strings.Join(values, ", "))}
			}
		}
	}
	return h
}

// setBody gives a request its body: what is held, or what comes from the client.
func (x *exchange) setBody(out *http.Request) {
	switch {
	case x.isHeld && len(x.held) == 0 || x.r.Body == http.NoBody:
		out.Body = http.NoBody
		if x.isHeld || len(x.r.Header["Idempotency-Key"]) > 0 {
			// Without a body that can be had again net/http sends it once only.
			out.Body = io.NopCloser(bytes.NewReader(nil))
		}
	case x.isHeld:
		out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(x.held)), int64(len(x.held))
	default:
		out.Body, out.ContentLength = &limited{r: x.r.Body, count: &x.in, limit: x.conn.Limits.Body}, x.r.ContentLength
		out.Trailer = x.r.Trailer
		for name := range out.Trailer {
			if x.cred.header() != "" && alike(name, x.cred.header()) {
				delete(out.Trailer, name)
			}
		}
	}
}

// trace notes that something may be sent, before it is, and passes informational
// responses on.
func (x *exchange) trace(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { x.sent = true },
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			if code != http.StatusContinue {
				x.informed(code, http.Header(header))
			}
			return nil
		},
	})
}

// informed passes an informational response on.
func (x *exchange) informed(code int, header http.Header) {
	if x.isHeld {
		return
	}
	h := x.w.Header()
	x.incoming(header, h)
	x.w.WriteHeader(code)
	clear(h)
}

// failed answers what could not be done, or breaks the response off where it has
// begun.
func (x *exchange) failed(ctx context.Context, err error) {
	x.veil.end()
	x.wrong = err
	cause := context.Cause(ctx)
	if x.replied || errors.Is(cause, errGone) {
		panic(http.ErrAbortHandler)
	}
	var wrong *badRequest
	var ours *isle.Error
	switch {
	case errors.As(err, &wrong):
		problemOf(err).closing(x.w)
	case errors.Is(cause, errSlow):
		x.answer(problem{Status: http.StatusGatewayTimeout, Type: "timeout", Title: "It took too long", Detail: "connection " + x.conn.Name + " did not answer within " + x.conn.StatementTimeout.String()})
	case cause != nil:
		problemOf(cause).closing(x.w)
	case errors.As(err, &ours):
		x.answer(problemOf(err))
	default:
		x.answer(problem{Status: http.StatusBadGateway, Type: "no-answer", Title: "There is no answer", Detail: "connection " + x.conn.Name + " did not answer: " + whyNot(err)})
	}
}

// whyNot says to a client why there is no answer, without where the real thing
// is: what the network says of it, and a certificate for another name, tell.
func whyNot(err error) string {
	var certificate *tls.CertificateVerificationError
	var alert tls.AlertError
	var timeout net.Error
	switch {
	case errors.As(err, &certificate):
		return "its certificate could not be verified"
	case errors.As(err, &alert):
		return "it ended the TLS handshake"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "nothing came in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "it closed the connection"
	}
	return "its answer could not be read"
}

// answer answers for the gateway itself.
func (x *exchange) answer(p problem) {
	p.write(x.w)
	x.replied = true
}

// over says what became of what was let through.
func (x *exchange) over(outcome string) {
	x.pass.Done(outcome, 0)
	e := session.Event{Kind: session.Response, Tag: outcome, Shape: x.facts.Shape, Bytes: x.out.n.Load(), Took: time.Since(x.began)}
	if x.wrong != nil {
		e.Error = x.wrong.Error()
	}
	if x.tap != nil {
		e.Data = x.tap.kept
	}
	x.door.Count(x.in.n.Load(), x.out.n.Load())
	_ = x.record(e) // what passed has passed; the session ends by itself
}

func (x *exchange) record(e session.Event) error { return x.door.Record(e) }
