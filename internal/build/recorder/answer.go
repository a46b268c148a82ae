package recorder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"isle"
	"isle/internal/spec"
)

// A query is a request as it is sent on: what it is answered by is its Key as a
// material's, and agent is said besides, for servers that answer nobody else.
type query struct {
	spec.Material        // Method, URL, Accept and Body
	agent         string // User-Agent
	whole         bool   // no part of the answer is asked for, and no condition made
	asked         []byte // what a POST sends
	encoding      string // its Content-Encoding
}

// material is that of an answer to it.
func (q query) material() spec.Material {
	return spec.Material{Method: q.Method, URL: q.URL, Accept: q.Accept, Body: q.Body}
}

// recordable reports whether a lock can have an answer to it.
func (q query) recordable() bool {
	m := q.Material
	m.Status, m.Digest, m.Time = http.StatusOK, isle.DigestOf(nil), time.Unix(0, 0).UTC()
	return m.Check() == nil
}

func (q query) String() string {
	if q.Method != "" {
		return q.Method + " " + shown(q.URL)
	}
	return shown(q.URL)
}

// shown is a URL as people are told it: without its query, which may have keys
// in it.
func shown(address string) string {
	base, _, asked := strings.Cut(address, "?")
	if len(base) > 200 {
		base = base[:200] + "…"
	}
	if asked {
		base += "?…"
	}
	return base
}

// A refusal is an answer of the Recorder's own.
type refusal struct {
	status int
	reason string
	noted  bool // it is among the Recorder's lists
}

func (e *refusal) Error() string { return e.reason }

// begin has Close wait for a request, until end. One that comes after it is none.
func (r *Recorder) begin() (end func(), ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, false
	}
	r.serving.Add(1)
	return r.serving.Done, true
}

// answer answers one request of the step.
func (r *Recorder) answer(w http.ResponseWriter, req *http.Request) {
	end, ok := r.begin()
	if !ok {
		panic(http.ErrAbortHandler)
	}
	defer end()
	q, err := query{}, r.tellsSecret(req)
	if err == nil {
		q, err = understood(req)
	}
	if err == nil && q.Method == http.MethodPost {
		err = q.readAsked(w, req)
	}
	if err == nil {
		err = r.answerQuery(w, req, q)
	}
	var no *refusal
	switch {
	case err == nil:
	case errors.As(err, &no):
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Connection", "close")
		w.WriteHeader(no.status)
		io.WriteString(w, said(no.reason))
		if !no.noted {
			r.note(&r.refused, "%s", no.reason)
		}
	default: // in the middle of an answer
		r.note(&r.refused, "%v: %v", q, err)
		panic(http.ErrAbortHandler)
	}
}

// answerQuery answers a request from the store, or sends it on.
func (r *Recorder) answerQuery(w http.ResponseWriter, req *http.Request, q query) error {
	var stream http.ResponseWriter
	if q.whole {
		stream = w
	}
	m, streamed, err := r.obtain(r.ctx, q, stream)
	if streamed && err != nil {
		return errors.New(err.Error()) // to one that has its header already nothing else can be said
	}
	if err != nil || streamed {
		return err
	}
	return r.short(q, r.serve(w, req, m))
}

// short notes why a request got no answer that is a material, and returns it. The
// step has failed then, whatever it says: what it makes without the answer is not
// what its inputs give. It may be given nil.
func (r *Recorder) short(q query, err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && r.lacks == nil && r.ctx.Err() == nil {
		code := isle.CodeOf(err)
		if no := new(refusal); errors.As(err, &no) {
			code = isle.Exhausted
		}
		r.lacks = isle.Errorf(code, "%v could not be recorded: %v", q, reason(err))
	}
	return err
}

// tellsSecret refuses a request that has a secret in what would be locked, or in what
// would be said of it: it is told without its address.
func (r *Recorder) tellsSecret(req *http.Request) error {
	s := r.o.Secrets
	plain, err := url.QueryUnescape(req.URL.RawQuery)
	if err != nil {
		plain = ""
	}
	if s.In(plain) || s.In(req.Method) || s.In(req.Host) || s.In(req.RequestURI) || s.In(req.URL.Path) || s.In(strings.Join(req.Header.Values("Accept"), ", ")) {
		return &refusal{http.StatusForbidden, "a request has a secret of the step in its address: it would be in isle.lock", false}
	}
	return nil
}

// understood is a request that can be recorded, or a refusal.
func understood(req *http.Request) (query, error) {
	scheme, port := "http", "80"
	if req.TLS != nil {
		scheme, port = "https", "443"
	}
	local, _ := req.Context().Value(http.LocalAddrContextKey).(net.Addr)
	host, err := authorityOf(req.Host, local, port)
	if err != nil {
		return query{}, &refusal{http.StatusBadRequest, err.Error(), false}
	}
	u := url.URL{Scheme: scheme, Host: host, Path: req.URL.Path, RawPath: req.URL.RawPath, RawQuery: req.URL.RawQuery, ForceQuery: req.URL.ForceQuery}
	if u.Path == "" {
		u.Path = "/"
	}
	q := query{Material: spec.Material{URL: u.String(), Accept: strings.Join(req.Header.Values("Accept"), ", ")}, agent: req.UserAgent(), whole: true}
	git := isGit(req)
	switch {
	case req.Method == http.MethodHead:
		q.Method = http.MethodHead
	case git:
		q.Method, q.Body = http.MethodPost, isle.DigestOf(nil) // until it is read
	}
	no := func(status int, format string, args ...any) (query, error) {
		return q, &refusal{status, fmt.Sprintf("%s %s: ", req.Method, shown(q.URL)) + fmt.Sprintf(format, args...), false}
	}
	switch {
	case req.Method != http.MethodGet && req.Method != http.MethodHead && !git:
		return no(http.StatusMethodNotAllowed, "only GET and HEAD can be recorded, and what git fetches with")
	case req.ContentLength != 0 && !git:
		return no(http.StatusBadRequest, "a request with a body cannot be recorded")
	case !q.recordable():
		return no(http.StatusRequestURITooLong, "its address or its Accept is none that can be recorded")
	}
	for _, name := range []string{"Authorization", "Cookie"} {
		if req.Header.Get(name) != "" {
			return no(http.StatusForbidden, "it has a credential (%s): what it gets would be there for everyone who has isle.lock", name)
		}
	}
	for _, name := range []string{"Range", "If-Range", "If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since"} {
		if req.Header.Get(name) != "" {
			q.whole = false
		}
	}
	return q, nil
}

// authorityOf is where a request goes: what it names as its host, and else the
// address that its connection was opened to. A port that is the scheme's own is
// left out.
func authorityOf(named string, local net.Addr, usual string) (string, error) {
	at, ok := local.(*net.TCPAddr)
	if !ok {
		return "", errors.New("a connection without an address")
	}
	host, port := named, ""
	if h, p, err := net.SplitHostPort(named); err == nil {
		host, port = h, p
	}
	host = strings.Trim(host, "[]")
	if host == "" {
		host = at.IP.String()
	}
	if port == "" {
		port = strconv.Itoa(at.Port)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("%.100q names no port", named)
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if a, err := netip.ParseAddr(host); err == nil {
		host = a.WithZone("").String()
	} else if !validName(host) {
		return "", fmt.Errorf("%.100q is no host", named)
	}
	if port == usual {
		if strings.Contains(host, ":") {
			return "[" + host + "]", nil
		}
		return host, nil
	}
	return net.JoinHostPort(host, port), nil
}

// validName reports whether s can be a host's DNS name (RFC 1123, and underscores
// as they occur).
func validName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, func(c rune) bool {
			return !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_')
		}) {
			return false
		}
	}
	return true
}

// obtain is what a request is answered by: a material that is known, or a new
// one, of which stream is sent all while it comes where it is not nil.
func (r *Recorder) obtain(ctx context.Context, q query, stream http.ResponseWriter) (m spec.Material, streamed bool, err error) {
	leave, err := r.enter(ctx, q.Key())
	if err != nil {
		return m, false, err
	}
	defer leave()
	m, ok := r.known(q)
	if !ok {
		if r.o.Frozen {
			return m, false, &refusal{http.StatusGatewayTimeout, r.note(&r.missed, "%v", q) + " is not in isle.lock", true}
		}
		return r.forward(ctx, q, stream)
	}
	if err := r.have(ctx, q, m); err != nil {
		return m, false, err
	}
	return m, false, r.short(q, r.use(m))
}

// known is the material that answers a request. One that says that something went
// wrong is asked for again, where that may be.
func (r *Recorder) known(q query) (spec.Material, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	keys := []string{q.Key()}
	if q.Method == http.MethodHead { // a GET tells more
		keys = append(keys, spec.Material{URL: q.URL, Accept: q.Accept}.Key())
	}
	for _, from := range []map[string]spec.Material{r.used, r.locked} {
		for _, k := range keys {
			if m, ok := from[k]; ok && (r.o.Frozen || !passing(m.Status)) {
				return m, true
			}
		}
	}
	return spec.Material{}, false
}

// passing reports whether a status says that another try may go better.
func passing(status int) bool {
	return status >= 500 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout
}

// use notes that a material answered the step.
func (r *Recorder) use(m spec.Material) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bytes += m.Size; r.bytes > maxBytes {
		return &refusal{http.StatusInsufficientStorage, fmt.Sprintf("a step is answered at most %d GiB", maxBytes>>30), false}
	}
	_, again := r.used[m.Key()]
	if !again && len(r.used) >= spec.MaxMaterials {
		return &refusal{http.StatusTooManyRequests, fmt.Sprintf("a step has at most %d answers", spec.MaxMaterials), false}
	}
	if again {
		r.noted -= noted(r.used[m.Key()])
	}
	if r.noted += noted(m); r.noted > maxNoted {
		return &refusal{http.StatusInsufficientStorage, fmt.Sprintf("the addresses and headers of a step's answers have at most %d MiB", maxNoted>>20), false}
	}
	r.used[m.Key()] = m
	return nil
}

// noted is about how many bytes of a lock a material is.
func noted(m spec.Material) int {
	n := 300 + len(m.URL) + len(m.Accept)
	for k, v := range m.Header {
		n += len(k) + len(v) + 6
	}
	return n
}

// enter waits until nobody else obtains what the key names.
func (r *Recorder) enter(ctx context.Context, key string) (leave func(), err error) {
	for {
		r.mu.Lock()
		other := r.flights[key]
		if other == nil {
			mine := make(chan struct{})
			r.flights[key] = mine
			r.mu.Unlock()
			return func() {
				r.mu.Lock()
				delete(r.flights, key)
				r.mu.Unlock()
				close(mine)
			}, nil
		}
		r.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// head writes the header of a material's answer, as it is said each time.
func head(h http.Header, m spec.Material) {
	h["Content-Type"] = nil // none is made up
	for name, value := range m.Header {
		h.Set(name, value)
	}
	h.Set("Date", m.Time.UTC().Format(http.TimeFormat))
	if m.Status == http.StatusOK {
		h.Set("Accept-Ranges", "bytes")
	}
}

// serve answers a request with a material whose body the store has. Parts and
// conditions (RFC 9110, sections 13 and 14) are answered of the whole.
func (r *Recorder) serve(w http.ResponseWriter, req *http.Request, m spec.Material) error {
	f, err := r.config.Store.OpenBlob(m.Digest)
	if err != nil {
		return err
	}
	defer f.Close()
	head(w.Header(), m)
	if m.Method != http.MethodHead && !slices.Contains([]int{http.StatusNoContent, http.StatusNotModified}, m.Status) {
		w.Header().Set("Content-Length", strconv.FormatInt(m.Size, 10))
	}
	if m.Status == http.StatusOK && m.Method == "" {
		modified, _ := http.ParseTime(m.Header["Last-Modified"])
		http.ServeContent(w, req, "", modified, f)
		return nil
	}
	w.WriteHeader(m.Status)
	if req.Method != http.MethodHead {
		io.Copy(w, f) // a client that left is none that is answered
	}
	return nil
}
