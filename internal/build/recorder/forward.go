package recorder

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"isle"
	"isle/internal/spec"
)

// maxRedirects is how often Get is sent elsewhere.
const maxRedirects = 10

// newClient sends requests on: HTTP/2 or HTTP/1.1 (ALPN, RFC 7301), bodies as
// they are, and nowhere but to where Dial says it may.
func (r *Recorder) newClient() *http.Client {
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
				host, port, err := net.SplitHostPort(address)
				if err != nil {
					return nil, err
				}
				n, err := strconv.Atoi(port)
				if err != nil {
					return nil, err
				}
				return r.config.Dial(ctx, host, n)
			},
			TLSClientConfig: &tls.Config{RootCAs: r.config.Roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: 30 * time.Second, ResponseHeaderTimeout: stall, MaxResponseHeaderBytes: 64 << 10,
			DisableCompression: true, MaxIdleConnsPerHost: maxAtOnce, IdleConnTimeout: 30 * time.Second,
		},
	}
}

// forward sends a request on and makes its answer a material. That it failed is
// one too: a step that goes on without it does so the next time.
func (r *Recorder) forward(ctx context.Context, q query, stream http.ResponseWriter) (m spec.Material, streamed bool, err error) {
	m, kept, err := r.fetch(ctx, q, stream)
	streamed = kept != nil
	if err != nil {
		if ctx.Err() != nil || isle.CodeOf(err) == isle.Exhausted {
			return m, streamed, r.short(q, err)
		}
		r.note(&r.refused, "%v: %v", q, reason(err))
		failed, ferr := r.failure(q)
		r.short(q, ferr)
		if ferr != nil || !streamed {
			err = ferr
		}
		return failed, streamed, err
	}
	if err := r.short(q, r.use(m)); err != nil {
		return m, streamed, err
	}
	r.mu.Lock()
	nth := r.fresh
	r.fresh++
	r.mu.Unlock()
	kept.release()
	r.say(nth, "recorded %v: %d, %d bytes", q, m.Status, m.Size)
	return m, streamed, nil
}

// failure is the material of a request that failed. Why it did is for people: it
// has addresses of the network that the server is in, and is otherwise each time.
func (r *Recorder) failure(q query) (spec.Material, error) {
	body := said(elsewhere(q))
	m := q.material()
	m.Status, m.Time, m.Digest, m.Size = http.StatusBadGateway, r.now(), isle.DigestOf([]byte(body)), int64(len(body))
	m.Header = map[string]string{"Content-Type": "text/plain; charset=utf-8"}
	if err := r.config.Store.PutBlob(r.ctx, m.Digest, strings.NewReader(body)); err != nil {
		return m, err
	}
	return m, r.use(m)
}

// elsewhere is what a step is told of what failed outside of it.
func elsewhere(q query) string {
	return fmt.Sprintf("%v could not be had; the build's output says why", q)
}

// said is what a step reads of the Recorder's own.
func said(why string) string { return "The recorded network of the build: " + why + "\n" }

// reason is why a request failed, without the address, which is said before it.
func reason(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	var known *isle.Error
	if errors.As(err, &known) {
		return known
	}
	return err
}

func (r *Recorder) now() time.Time { return r.config.Now().UTC().Truncate(time.Second) }

// An onward answer goes to the step while it comes, all but its last byte: a step
// that has an answer whole may end, with a network that has not recorded it yet.
type onward struct {
	w    http.ResponseWriter // nil: the step left
	left int64               // bytes that go on at once
	last []byte
}

func (o *onward) write(p []byte) {
	now := p[:min(int64(len(p)), o.left)]
	o.left -= int64(len(now))
	o.last = append(o.last, p[len(now):]...)
	if o.w == nil || len(now) == 0 {
		return
	}
	if _, err := o.w.Write(now); err != nil {
		o.w = nil // what it asked for is recorded even so
	}
}

// release sends the rest. It may be called of nil.
func (o *onward) release() {
	if o != nil && o.w != nil {
		o.w.Write(o.last) // one that left is none that is answered
	}
}

// fetch sends a request on and stores what comes. What goes to stream meanwhile is
// kept; nil: nothing does.
func (r *Recorder) fetch(ctx context.Context, q query, stream http.ResponseWriter) (m spec.Material, kept *onward, err error) {
	select {
	case r.sending <- struct{}{}:
		defer func() { <-r.sending }()
	case <-ctx.Done():
		return m, nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	response, err := r.send(ctx, q)
	if err != nil {
		return m, nil, err
	}
	defer response.Body.Close()
	if m, err = r.describe(q, response); err != nil {
		return m, nil, err
	}
	// A replay says how long its answer is, and so does this, or it waits for the end.
	if stream != nil && q.Method == "" && response.ContentLength > 0 {
		kept = &onward{w: stream, left: response.ContentLength - 1}
		head(stream.Header(), m)
		stream.Header().Set("Content-Length", strconv.FormatInt(response.ContentLength, 10))
		stream.WriteHeader(m.Status)
		http.NewResponseController(stream).Flush()
	}
	quiet := time.AfterFunc(stall, cancel)
	defer quiet.Stop()
	m.Digest, m.Size, err = r.config.Store.AddBlob(func(w io.Writer) error {
		return r.copyBody(w, kept, response.Body, quiet)
	})
	if err == nil && m.Method == http.MethodHead {
		m.Size = 0
	}
	return m, kept, err
}

// copyBody copies an answer to the store, and to the step for as long as it
// listens.
func (r *Recorder) copyBody(w io.Writer, kept *onward, body io.Reader, quiet *time.Timer) error {
	if err := r.config.Store.Room(); err != nil { // the store itself asks of large ones
		return err
	}
	var size int64
	buffer := make([]byte, 64<<10)
	for {
		n, err := body.Read(buffer)
		if n > 0 {
			quiet.Reset(stall)
			if size += int64(n); size > spec.MaxMaterialSize {
				return isle.Errorf(isle.Exhausted, "it has more than %d GiB", spec.MaxMaterialSize>>30)
			}
			if _, werr := w.Write(buffer[:n]); werr != nil {
				return werr
			}
			if kept != nil {
				kept.write(buffer[:n])
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("the answer ended early: %w", err)
		}
	}
}

// send sends a request on.
func (r *Recorder) send(ctx context.Context, q query) (*http.Response, error) {
	method := http.MethodGet
	if q.Method != "" {
		method = q.Method
	}
	var body io.Reader
	if q.asked != nil {
		body = bytes.NewReader(q.asked)
	}
	req, err := http.NewRequestWithContext(ctx, method, q.URL, body)
	if err != nil {
		return nil, err
	}
	if q.asked != nil {
		req.Header.Set("Content-Type", gitRequest)
	}
	if q.encoding != "" {
		req.Header.Set("Content-Encoding", q.encoding)
	}
	req.Header.Set("User-Agent", "isle")
	if q.agent != "" {
		req.Header.Set("User-Agent", q.agent)
	}
	if q.Accept != "" {
		req.Header.Set("Accept", q.Accept)
	}
	return r.client.Do(req)
}

// describe is what is kept of an answer, its body aside.
func (r *Recorder) describe(q query, response *http.Response) (spec.Material, error) {
	m := q.material()
	m.Status, m.Time = response.StatusCode, r.now()
	if at, err := http.ParseTime(response.Header.Get("Date")); err == nil && at.Year() <= 9999 {
		m.Time = at.UTC()
	}
	for _, name := range spec.MaterialHeaders() {
		value := strings.Join(response.Header.Values(name), ", ")
		if value == "" || name == "Content-Length" && q.Method != http.MethodHead {
			continue
		}
		if m.Header == nil {
			m.Header = map[string]string{}
		}
		if r.o.Secrets.In(value) {
			return m, errors.New("its answer has a secret of the step in its header, which would be in isle.lock")
		}
		m.Header[name] = value
	}
	if to, err := url.Parse(m.Header["Location"]); err != nil || to.User != nil {
		return m, errors.New("it leads to an address with a user and a password in it, or to none")
	}
	whole := m
	whole.Digest = isle.DigestOf(nil)
	if response.StatusCode == http.StatusNotModified || response.StatusCode == http.StatusPartialContent {
		return m, fmt.Errorf("it was answered %d, which nobody asked for", response.StatusCode)
	}
	return m, whole.Check()
}

// have sees to it that the store has a material's body. One that it lacks is
// fetched again, and must be what the lock says.
func (r *Recorder) have(ctx context.Context, q query, m spec.Material) error {
	if len(r.config.Store.Missing([]isle.Digest{m.Digest})) == 0 {
		f, err := r.config.Store.OpenBlob(m.Digest) // a damaged one is removed
		if err == nil {
			defer f.Close()
			st, err := f.Stat()
			if err == nil && st.Size() != m.Size {
				return r.otherSize(q, st.Size(), m)
			}
			return err
		}
	}
	if m.Size == 0 && m.Digest == isle.DigestOf(nil) {
		return r.config.Store.PutBlob(ctx, m.Digest, strings.NewReader(""))
	}
	q.Method, q.Accept = m.Method, m.Accept
	again, _, err := r.fetch(ctx, q, nil)
	switch {
	case err != nil && ctx.Err() != nil:
		return err
	case err != nil:
		r.note(&r.spoiled, "%v: %v", q, reason(err))
		return &refusal{http.StatusBadGateway, elsewhere(q), true}
	case again.Digest != m.Digest:
		return &refusal{http.StatusBadGateway, r.note(&r.spoiled, "%v has %s now, not %s", q, again.Digest.Short(), m.Digest.Short()), true}
	case again.Size != m.Size:
		return r.otherSize(q, again.Size, m)
	}
	return nil
}

// otherSize refuses a material that says less or more of its body than there is: it
// is counted, and sent, by what it says.
func (r *Recorder) otherSize(q query, size int64, m spec.Material) error {
	return &refusal{http.StatusBadGateway, r.note(&r.spoiled, "%v has %d bytes, and isle.lock says %d", q, size, m.Size), true}
}

// Get is what an address is answered, where it leads in the end. It is recorded
// as a step's requests are.
func (r *Recorder) Get(ctx context.Context, address string) (spec.Material, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()
	for range maxRedirects {
		if err := spec.CheckMaterialURL(address); err != nil {
			return spec.Material{}, isle.Errorf(isle.Invalid, "%w", err)
		}
		q := query{Material: spec.Material{URL: address}}
		m, _, err := r.obtain(ctx, q, nil)
		var no *refusal
		switch {
		case errors.As(err, &no):
			return m, isle.Errorf(isle.Unavailable, "%s", no.reason)
		case err != nil:
			return m, err
		case m.Status == http.StatusOK:
			return m, nil
		}
		to := m.Header["Location"]
		if m.Status < 300 || m.Status > 399 || to == "" {
			return m, isle.Errorf(isle.Unavailable, "%v is answered %d %s", q, m.Status, http.StatusText(m.Status))
		}
		base, err := url.Parse(address)
		if err != nil {
			return m, err
		}
		next, err := base.Parse(to)
		if err != nil {
			return m, isle.Errorf(isle.Unavailable, "%v leads to no address", q)
		}
		next.Fragment, next.RawFragment = "", ""
		address = next.String()
	}
	return spec.Material{}, isle.Errorf(isle.Unavailable, "%s leads on and on", shown(address))
}
